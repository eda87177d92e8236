"""torch.save, and safetensors' mapping into torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender


class TorchContender(Contender):
    """Takes the arrays as tensors that share their memory."""

    libraries = ("torch", "numpy")

    def load(self) -> None:
        import torch

        self.torch = torch

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {name: self.torch.from_numpy(array) for name, array in arrays.items()}


class TorchSave(TorchContender):
    """``torch.save`` and ``torch.load``, mapped or not."""

    def file(self, where: str) -> str:
        return str(self.local_directory(where) / "model.pt")

    def save(self, where: str) -> None:
        self.torch.save(dict(self.arrays), self.file(where))

    def restore_new(self, where: str) -> Mapping[str, Any]:
        return dict(self.torch.load(self.file(where), weights_only=True))

    def restore_mapped(self, where: str) -> Mapping[str, Any]:
        return dict(self.torch.load(self.file(where), weights_only=True, mmap=True))


class Safetensors(TorchContender):
    """``safetensors.torch``: tensors over the mapped file."""

    libraries = ("safetensors", "torch")

    def load(self) -> None:
        super().load()
        import safetensors.torch

        self.library = safetensors.torch

    def file(self, where: str) -> str:
        return str(self.local_directory(where) / "model.safetensors")

    def save(self, where: str) -> None:
        self.library.save_file(dict(self.arrays), self.file(where))

    def restore_mapped(self, where: str) -> Mapping[str, Any]:
        return dict(self.library.load_file(self.file(where)))
