"""What is worth knowing of the machine, without its name or any path on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from benchmarks.measure import memory_bytes


def facts(directory: Path) -> dict[str, Any]:
    """Return processors, memory, kernel, and the file system below `directory`."""
    kernel = re.match(r"[\d.]+\d", platform.release())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_bytes": memory_bytes("MemTotal"),
        "system": f"{platform.system()} {kernel[0] if kernel else ''}".strip(),
        "architecture": platform.machine(),
        "huge_pages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "file_system": file_system(directory, Path("/proc/self/mounts").read_text()),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _chosen(path: Path) -> str:
    try:
        match = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return "unknown"
    return match[1] if match else "unknown"


def file_system(directory: Path, mounts: str) -> str:
    """Return the type of the file system that holds `directory`, by a table of mounts."""
    best, kind = "", "unknown"
    place = str(directory.resolve())
    for line in mounts.splitlines():
        _, point, found, *_ = line.split()
        point = point.replace("\\040", " ")
        # The later of two mounts on one point hides the earlier.
        if (place == point or place.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, found
    return kind
