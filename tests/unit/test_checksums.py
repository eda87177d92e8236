from __future__ import annotations

from _ctypes import FUNCFLAG_PYTHONAPI as _FUNCFLAG_PYTHONAPI

import google_crc32c
import numpy as np
import pytest

from ckptstore import checksums

DATA = np.random.default_rng(1).integers(0, 255, 3 << 20, np.uint8)


@pytest.mark.parametrize("size", [0, 1, 1000, (256 << 10) - 1, 256 << 10, 3 << 20])
@pytest.mark.parametrize("is_unlocked", [True, False])
def test_large_and_small_buffers_have_the_checksum_of_the_library(monkeypatch, size, is_unlocked):
    if not is_unlocked:
        monkeypatch.setattr(checksums, "_extend_unlocked", None)
    wanted = google_crc32c.extend(77, DATA[:size].tobytes())
    assert checksums.crc32c(DATA[:size], 77) == wanted
    assert checksums.crc32c(DATA[:size].data, 77) == wanted
    assert checksums.crc32c(bytearray(DATA[:size].data), 77) == wanted


def test_it_is_called_in_a_way_that_leaves_the_interpreter_to_others():
    """Of ctypes only functions of a `PyDLL` keep it."""
    assert checksums._extend_unlocked is not None
    assert not type(checksums._extend_unlocked)._flags_ & _FUNCFLAG_PYTHONAPI
