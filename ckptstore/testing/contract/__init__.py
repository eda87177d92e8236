"""The storage contract as tests: a backend is supported when a subclass of `StorageContract` is green.

::

    class TestMyStorage(StorageContract):
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
        for part in ("base", "reads", "writes", "uploads", "parts", "shortcuts", "deletes", "listing")
    )
)

from ckptstore.testing.contract.deletes import DeleteContract  # noqa: E402
from ckptstore.testing.contract.listing import ListContract  # noqa: E402
from ckptstore.testing.contract.parts import PartContract  # noqa: E402
from ckptstore.testing.contract.reads import ReadContract  # noqa: E402
from ckptstore.testing.contract.shortcuts import ShortcutContract  # noqa: E402
from ckptstore.testing.contract.uploads import UploadContract  # noqa: E402
from ckptstore.testing.contract.writes import WriteContract  # noqa: E402

__all__ = ["StorageContract"]


class StorageContract(
    ReadContract,
    WriteContract,
    UploadContract,
    PartContract,
    ShortcutContract,
    DeleteContract,
    ListContract,
):
    """Every promise of `ckptstore.storage.base.Storage`, each a test.

    The subclass supplies `directory`, `put_raw` and `get_raw`. The last two must not go through the storage
    under test: a storage that loses bytes the same way in both directions would otherwise pass.

    What a backend does not claim in its `Capabilities` is skipped, with the reason.
    """
