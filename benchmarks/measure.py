"""What one call costs: seconds, CPU seconds, peak memory. And the state of the machine before it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PAGE = mmap.PAGESIZE
_RESET_PEAK = "5"  # proc(5), clear_refs: VmHWM becomes what VmRSS is now


@dataclass(frozen=True)
class Cost:
    """Of one call.

    Attributes
    ----------
    begun_s : float
        On the monotonic clock, which all processes share.
    seconds : float
    cpu_s : float
        User and system time of this process and of children it waited for.
    peak_bytes : int
        Highest resident set during the call, above that before it.
    """

    begun_s: float
    seconds: float
    cpu_s: float
    peak_bytes: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measured(action: Callable[[], Any], *, is_clean: bool = False) -> tuple[Cost, Any]:
    """Return what `action` costs, and its result. Letting go of the result is not part of it.

    Parameters
    ----------
    is_clean : bool
        Whether garbage was collected just now. In a process with a large library that takes 0.1 s, so ranks
        that are to begin at the same time do it before.
    """
    if not is_clean:
        gc.collect()
    gc.disable()
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    try:
        cpu, start = _cpu_s(), time.monotonic()
        result = action()
        seconds, cpu = time.monotonic() - start, _cpu_s() - cpu
    finally:
        gc.enable()
    return Cost(start, seconds, cpu, max(0, _status_bytes("VmHWM") - before)), result


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def peak_rss_bytes() -> int:
    """Return the highest resident set of this process since the last `measured` began."""
    return _status_bytes("VmHWM")


def touch_memory(size_bytes: int) -> None:
    """Touch so much memory and give it back, so that the next owner finds it ready.

    On a virtual machine the first touch of a page may have to fetch it from the host, which takes longer than
    most of what is measured here; afterwards the guest's kernel has it at hand.
    """
    size_bytes = max(_PAGE, size_bytes // _PAGE * _PAGE)
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size_bytes, _PAGE):
            memory[start] = 1


def give_memory_back() -> None:
    """Return what malloc keeps, so that workers that wait hold little."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def read_files(directory: Path) -> None:
    """Bring the files into the page cache, however they were written."""
    buffer = bytearray(8 * 2**20)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def settle() -> None:
    """Have dirty pages written out, so that no contender pays for another."""
    os.sync()


def memory_bytes(field: str = "MemAvailable") -> int:
    """Return a figure of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)
