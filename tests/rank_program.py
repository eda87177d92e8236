"""One rank of the coordinator contract: `python -m tests.rank_program ADDRESS RANK SIZE`.

Ended by `os._exit`: at a normal end it would wait for others, which a test may have killed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import ckptstore as ck
from ckptstore.testing.coordinator_contract.serve import serve_rank


def store_rank(rank: int, size: int) -> Callable[[], Any]:
    options = json.loads(os.environ["STORE_OPTIONS"])
    url = os.environ["STORE_URL"]
    return lambda: ck.coordinator(
        "store", url=url, rank=rank, size=size, attempt="1", storage_options=options or None
    )


if __name__ == "__main__":
    faulthandler.enable()
    address, *numbers = sys.argv[1:]
    serve_rank(address, store_rank(*map(int, numbers)))
    os._exit(0)
