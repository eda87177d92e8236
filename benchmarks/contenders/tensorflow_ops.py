"""TensorFlow's own SaveV2 and RestoreV2; on S3, their files moved by boto3."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.contenders.base import Contender, sync_files

_NAME = "model"


class Local(Contender):
    """The raw operations on tensors that are there; with the option ``sync``, its files are then synced."""

    libraries: ClassVar[tuple[str, ...]] = ("tensorflow-cpu", "numpy")

    def load(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow as tf

        self.tf = tf

    def prepare(self, operation: str, stamp: int) -> None:
        tf = self.tf
        self.names = tf.constant(list(self.data.shapes))
        self.slices = tf.constant([""] * len(self.data.shapes))
        self.types = [tf.float32] * len(self.data.shapes)
        super().prepare(operation, stamp)

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        # Tensors are what TensorFlow's user has at hand.
        self.arrays = {name: self.tf.constant(array) for name, array in arrays.items()}

    def files(self, where: str) -> Path:
        return self.local_directory(where)

    def save(self, where: str) -> None:
        directory = self.files(where)
        self.tf.raw_ops.SaveV2(
            prefix=str(directory / _NAME),
            tensor_names=self.names,
            shape_and_slices=self.slices,
            tensors=list(self.arrays.values()),
        )
        if self.options.get("sync"):
            sync_files(directory)

    def restore_new(self, where: str) -> Mapping[str, Any]:
        tensors = self.tf.raw_ops.RestoreV2(
            prefix=str(self.files(where) / _NAME),
            tensor_names=self.names,
            shape_and_slices=self.slices,
            dtypes=self.types,
        )
        return dict(zip(self.data.shapes, tensors, strict=True))

    # There is no mapped restore in TensorFlow: this is what its user does in that place.
    restore_mapped = restore_new

    def new_bytes(self, operation: str) -> int:
        return self.data.nbytes if operation.startswith("restore") else 0


class OnS3(Local):
    """Saved to local files that are uploaded; downloaded to local files that are restored."""

    libraries = ("tensorflow-cpu", "boto3", "numpy")

    def connect(self) -> None:
        from benchmarks.contenders.boto import Bucket

        self.bucket = Bucket(self.place)

    def files(self, where: str) -> Path:
        return Path(self.scratch)

    def save(self, where: str) -> None:
        shutil.rmtree(self.scratch)
        Path(self.scratch).mkdir()
        super().save(where)
        self.bucket.upload_files(Path(self.scratch), self.place.object_key(where))

    def restore_new(self, where: str) -> Mapping[str, Any]:
        self.bucket.download_files(self.place.object_key(where), Path(self.scratch))
        return super().restore_new(where)
