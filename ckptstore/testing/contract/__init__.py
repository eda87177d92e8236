"""The storage contract as tests: a backend is supported when a subclass of `StorageContract` is green.

`StorageContract` holds what every backend must do. Each optional ability of `ckptstore.storage.abilities` has
a contract of its own, named beside it by a backend that has the ability::

    class TestMyStorage(StorageContract, CopyContract):
        @pytest.fixture
        def directory(self) -> Location: ...           # an empty place, another one for each test

        def put_raw(self, location, data): ...         # without the storage under test
        def get_raw(self, location): ...
"""

from __future__ import annotations

import pytest

# Before they are imported: their asserts then explain themselves, as in any test file.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            *("base", "reads", "writes", "uploads", "parts", "deletes", "listing"),
            *("views", "copies", "relaxed_durability", "writers", "server"),
        )
    )
)

from ckptstore.storage.base import Location  # noqa: E402
from ckptstore.testing.contract.copies import CopyContract  # noqa: E402
from ckptstore.testing.contract.deletes import DeleteContract, DeleteOnceContract  # noqa: E402
from ckptstore.testing.contract.listing import ListContract  # noqa: E402
from ckptstore.testing.contract.parts import PartContract  # noqa: E402
from ckptstore.testing.contract.reads import ReadContract  # noqa: E402
from ckptstore.testing.contract.relaxed_durability import RelaxedDurabilityContract  # noqa: E402
from ckptstore.testing.contract.server import (  # noqa: E402
    DiagnosisContract,
    ProbeContract,
    ServerTimeContract,
)
from ckptstore.testing.contract.uploads import UploadContract  # noqa: E402
from ckptstore.testing.contract.views import ViewContract  # noqa: E402
from ckptstore.testing.contract.writers import MarkContract, WriterContract  # noqa: E402
from ckptstore.testing.contract.writes import WriteContract  # noqa: E402

__all__ = [
    "CopyContract",
    "DeleteOnceContract",
    "DiagnosisContract",
    "MarkContract",
    "ProbeContract",
    "RelaxedDurabilityContract",
    "ServerTimeContract",
    "StorageContract",
    "ViewContract",
    "WriterContract",
]

_ABILITIES = (
    ViewContract,
    CopyContract,
    RelaxedDurabilityContract,
    WriterContract,
    MarkContract,
    DeleteOnceContract,
    ProbeContract,
    ServerTimeContract,
    DiagnosisContract,
)


class StorageContract(
    ReadContract, WriteContract, UploadContract, PartContract, DeleteContract, ListContract
):
    """Every promise of `ckptstore.storage.base.Storage`, each a test.

    The subclass supplies `directory`, `put_raw` and `get_raw`. The last two must not go through the storage
    under test: a storage that loses bytes the same way in both directions would otherwise pass.

    What a backend does not claim in its `Capabilities` is skipped, with the reason.
    """

    def test_the_contracts_of_its_abilities_are_there_and_no_others(self, directory: Location) -> None:
        has = {contract for contract in _ABILITIES if isinstance(directory.storage, contract.ability)}
        named = {contract for contract in _ABILITIES if issubclass(type(self), contract)}
        assert named == has
