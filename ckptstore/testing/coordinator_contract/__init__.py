"""The coordinator contract as tests with real processes: an engine is supported when a subclass is green.

::

    class TestMine(CoordinatorContract):
        @pytest.fixture(scope="class")
        @classmethod
        def start_ranks(cls) -> StartRanks: ...

`start_ranks(size, address)` is a context manager that starts `size` processes, each of which calls
``serve_rank(address, open_coordinator)``, and ends them when it is left, frozen ones too.
"""

from __future__ import annotations

import pytest

# Before it is imported: its asserts then explain themselves, as in any test file.
pytest.register_assert_rewrite(f"{__name__}.contract")

from ckptstore.testing.coordinator_contract.contract import CoordinatorContract, StartRanks  # noqa: E402
from ckptstore.testing.coordinator_contract.processes import RankProcesses, RemoteRank  # noqa: E402
from ckptstore.testing.coordinator_contract.serve import serve_rank  # noqa: E402

__all__ = ["CoordinatorContract", "RankProcesses", "RemoteRank", "StartRanks", "serve_rank"]
