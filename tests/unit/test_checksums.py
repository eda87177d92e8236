from __future__ import annotations

import subprocess
import sys
from _ctypes import FUNCFLAG_PYTHONAPI as _FUNCFLAG_PYTHONAPI
from typing import Any

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
    kind: Any = type(checksums._extend_unlocked)
    assert not kind._flags_ & _FUNCFLAG_PYTHONAPI


@pytest.mark.parametrize("lacks", ["_ctypes", "google_crc32c._crc32c", "crc32c_extend"])
def test_where_the_library_cannot_be_called_directly_the_package_does_it(lacks):
    """In an interpreter without ctypes, with the package in pure Python, with the library somewhere else."""
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")
lacks = {lacks!r}
if lacks == "crc32c_extend":
    import ctypes
    ctypes.CDLL = lambda *_, **__: object()
else:
    sys.modules[lacks] = None
    if lacks == "_ctypes":
        sys.modules["ctypes"] = None
import numpy
from ckptstore import checksums
assert checksums._extend_unlocked is None
assert checksums.crc32c(numpy.zeros(1 << 19, numpy.uint8)) == checksums.crc32c(bytes(1 << 19))
assert checksums.crc32c(b"123456789") == 0xE3069283
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
