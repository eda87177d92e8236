"""safetensors: one file; on S3, that file moved by boto3."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.contenders.base import Contender


class Local(Contender):
    """``save_file`` and ``load_file``, with numpy."""

    libraries: ClassVar[tuple[str, ...]] = ("safetensors", "numpy")

    def load(self) -> None:
        import safetensors.numpy

        self.library = safetensors.numpy

    def file(self, where: str) -> str:
        return str(self.local_directory(where) / "model.safetensors")

    def save(self, where: str) -> None:
        self.library.save_file(dict(self.arrays), self.file(where))

    def restore_new(self, where: str) -> Mapping[str, Any]:
        return dict(self.library.load_file(self.file(where)))


class OnS3(Local):
    """Saved to a local file that is uploaded; downloaded to a local file that is loaded."""

    libraries = ("safetensors", "boto3", "numpy")

    def load(self) -> None:
        super().load()
        from benchmarks.contenders.boto import Bucket

        self.make_bucket = Bucket

    def connect(self) -> None:
        self.bucket = self.make_bucket(self.place)

    def file(self, where: str) -> str:
        return str(Path(self.scratch, "model.safetensors"))

    def key(self, where: str) -> str:
        return self.place.object_key(f"{where}/model.safetensors")

    def save(self, where: str) -> None:
        super().save(where)
        with Path(self.file(where)).open("rb") as file:
            self.bucket.upload(self.key(where), file)

    def restore_new(self, where: str) -> Mapping[str, Any]:
        with Path(self.file(where)).open("wb") as file:
            self.bucket.download(self.key(where), file)
        return super().restore_new(where)

    def read_one(self, where: str) -> Mapping[str, Any]:
        """The header, then one range: what the format is made for."""
        if not hasattr(self, "bucket"):
            self.bucket = self.make_bucket(self.place)
        length = struct.unpack("<Q", self._range(where, 0, 8))[0]
        header = json.loads(self._range(where, 8, 8 + length))[self.data.single]
        start, stop = header["data_offsets"]
        body = self._range(where, 8 + length + start, 8 + length + stop)
        return {self.data.single: np.frombuffer(body, np.float32).reshape(header["shape"])}

    def _range(self, where: str, start: int, stop: int) -> bytes:
        answer = self.bucket.client.get_object(
            Bucket=self.place.bucket, Key=self.key(where), Range=f"bytes={start}-{stop - 1}"
        )
        return bytes(answer["Body"].read())
