"""torch.distributed.checkpoint in one process: to local files, over fsspec, over s3torchconnector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders.raw import THREADS
from benchmarks.contenders.torch_files import TorchContender


class Dcp(TorchContender, ABC):
    """A restore fills tensors that are there; new ones are made empty first."""

    def load(self) -> None:
        super().load()
        import torch.distributed.checkpoint as dcp

        self.dcp = dcp

    @abstractmethod
    def writer(self, where: str) -> Any:
        """Return a storage writer."""

    @abstractmethod
    def reader(self, where: str) -> Any:
        """Return a storage reader."""

    def save(self, where: str) -> None:
        self.dcp.save(dict(self.arrays), storage_writer=self.writer(where), no_dist=True)

    def restore_into(self, where: str) -> Mapping[str, Any]:
        return self._load(where, dict(self.arrays))

    def restore_new(self, where: str) -> Mapping[str, Any]:
        torch = self.torch
        return self._load(where, {name: torch.empty(shape) for name, shape in self.data.shapes.items()})

    def read_one(self, where: str) -> Mapping[str, Any]:
        name = self.data.single
        return self._load(where, {name: self.torch.empty(self.data.shapes[name])})

    def _load(self, where: str, tensors: dict[str, Any]) -> Mapping[str, Any]:
        self.dcp.load(tensors, storage_reader=self.reader(where), no_dist=True)
        return tensors


class Local(Dcp):
    """Two threads; it syncs its files."""

    def writer(self, where: str) -> Any:
        return self.dcp.FileSystemWriter(self.local_directory(where), thread_count=2)

    def reader(self, where: str) -> Any:
        return self.dcp.FileSystemReader(self.local_directory(where))

    def load(self) -> None:
        super().load()
        self.stager: Any = None

    def async_save(self, where: str) -> Any:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        if self.stager is None:
            self.stager = DefaultStager(StagingOptions(False, False, False, False))
        return self.dcp.async_save(
            dict(self.arrays), storage_writer=self.writer(where), async_stager=self.stager, no_dist=True
        )

    def settle(self, operation: str, result: Any, where: str) -> Any:
        if operation != "async_save":
            return result
        getattr(result, "upload_completion", result).result()
        return self.restore_new(where)


class Fsspec(Dcp):
    """Over s3fs, with fsspec's file-like objects."""

    libraries = ("torch", "s3fs")

    def load(self) -> None:
        super().load()
        import s3fs  # noqa: F401

        try:
            from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader, FsspecWriter
        except ImportError:
            from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
        self.make_reader, self.make_writer = FsspecReader, FsspecWriter

    def writer(self, where: str) -> Any:
        return self.make_writer(self.place.url(where), sync_files=False, thread_count=2)

    def reader(self, where: str) -> Any:
        return self.make_reader(self.place.url(where))


class S3Torch(Dcp):
    """AWS's connector for torch."""

    libraries = ("torch", "s3torchconnector")

    def load(self) -> None:
        super().load()
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

        self.make_reader, self.make_writer = S3StorageReader, S3StorageWriter
        self.config = S3ClientConfig(force_path_style=True)

    def writer(self, where: str) -> Any:
        return self.make_writer(
            self.place.region, self.place.url(where), s3client_config=self.config, thread_count=THREADS
        )

    def reader(self, where: str) -> Any:
        return self.make_reader(self.place.region, self.place.url(where), s3client_config=self.config)
