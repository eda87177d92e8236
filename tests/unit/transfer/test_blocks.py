from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from ckptstore.transfer.blocks import BLOCK_SIZE_BYTES, give_blocks, release_blocks, take_block


@pytest.fixture(autouse=True)
def nothing_idle():
    release_blocks()
    yield
    release_blocks()


def test_a_block_begins_with_a_page_and_is_private() -> None:
    block = take_block()
    assert (block.nbytes, block.dtype, block.ctypes.data % mmap.PAGESIZE) == (BLOCK_SIZE_BYTES, np.uint8, 0)
    block[:] = 1
    child = os.fork()
    if not child:
        block[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert block.max() == 1


def test_a_block_that_came_back_is_used_again() -> None:
    block = take_block()
    block[:10] = 7
    address = block.ctypes.data
    give_blocks([block], 3)
    again = take_block()
    assert (again.ctypes.data, again[0]) == (address, 7)


def test_no_more_than_wanted_stay_idle() -> None:
    blocks = [take_block() for _ in range(3)]
    give_blocks(blocks[:2], 2)
    give_blocks(blocks[2:], 2)
    assert release_blocks() == 2 * BLOCK_SIZE_BYTES
    assert release_blocks() == 0


def test_a_forked_child_holds_none() -> None:
    give_blocks([take_block()], 1)
    child = os.fork()
    if not child:
        os._exit(0 if release_blocks() == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert release_blocks() == BLOCK_SIZE_BYTES
