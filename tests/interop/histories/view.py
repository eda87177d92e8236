"""What a directory shows after a step, in the same words for both programs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from google.protobuf import text_format
from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState

from tests.interop.histories.steps import UpdateState

__all__ = ["FILE", "Listed", "PrefixFiles", "View", "files_of", "read_listed", "update", "write_listed"]

FILE = re.compile(r"(.+)\.(index|meta|data-\d+-of-\d+)", re.DOTALL)


@dataclass(frozen=True)
class Listed:
    """The four fields of a record. A path begins with ``<directory>/`` where the record has it absolute.

    Attributes
    ----------
    times : tuple of float
        One per path, or none.
    """

    latest: str
    paths: tuple[str, ...]
    times: tuple[float, ...] = ()
    last_preserved: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """What is listed, relative to the directory."""
        return tuple(path.removeprefix("<directory>/") for path in self.paths)

    @property
    def entries(self) -> list[tuple[str, float | None]]:
        """Name and time of what is listed."""
        return list(zip(self.names, self.times or [None] * len(self.names), strict=True))

    def with_entries(self, entries: list[tuple[str, float | None]]) -> Listed:
        """Return this with other entries, paths as they are where they stay."""
        paths = dict(zip(self.names, self.paths, strict=True))
        times = tuple(time_s or 0.0 for _, time_s in entries) if self.times else ()
        return replace(self, paths=tuple(paths.get(name, name) for name, _ in entries), times=times)


@dataclass(frozen=True)
class PrefixFiles:
    """The files of one checkpoint."""

    index: bool = False
    data: tuple[str, ...] = ()
    graph: bool = False


@dataclass
class View:
    """All that is compared after a step."""

    answer: object = None
    checkpoints: dict[str, PrefixFiles] = field(default_factory=dict)
    other_files: tuple[str, ...] = ()
    records: dict[str, Listed] = field(default_factory=dict)
    latest: dict[str, str | None] = field(default_factory=dict)
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)


def files_of(directory: Path) -> tuple[dict[str, PrefixFiles], list[str]]:
    """Return the checkpoints in `directory`, and the names of the other files."""
    checkpoints: dict[str, PrefixFiles] = {}
    others = []
    for name in sorted(os.listdir(directory)):
        match = FILE.fullmatch(name)
        if match is None:
            others.append(name)
            continue
        prefix, kind = match[1], match[2]
        item = checkpoints.get(prefix, PrefixFiles())
        if kind == "index":
            item = replace(item, index=True)
        elif kind == "meta":
            item = replace(item, graph=True)
        else:
            item = replace(item, data=(*item.data, kind))
        checkpoints[prefix] = item
    return checkpoints, others


def read_listed(directory: Path, record: str) -> Listed | None:
    """Return what TensorFlow's protocol buffer says of a record; None if there is none."""
    try:
        text = (directory / record).read_text()
    except FileNotFoundError:
        return None
    state = text_format.Parse(text, CheckpointState())
    inside = f"{directory.absolute()}/"

    def shown(path: str) -> str:
        return "<directory>/" + path.removeprefix(inside) if path.startswith(inside) else path

    return Listed(
        shown(state.model_checkpoint_path),
        tuple(shown(path) for path in state.all_model_checkpoint_paths),
        tuple(state.all_model_checkpoint_timestamps),
        state.last_preserved_timestamp,
    )


def write_listed(directory: Path, record: str, listed: Listed) -> None:
    """Write the fields of a record as TensorFlow does; ckptstore's lines stay."""

    def path(shown: str) -> str:
        return shown.replace("<directory>", str(directory.absolute()), 1)

    state = CheckpointState(
        model_checkpoint_path=path(listed.latest),
        all_model_checkpoint_paths=[path(shown) for shown in listed.paths],
        all_model_checkpoint_timestamps=listed.times,
        last_preserved_timestamp=listed.last_preserved or None,
    )
    comments = [line for line in (directory / record).read_text().splitlines(keepends=True) if line[0] == "#"]
    (directory / record).write_text("".join(comments) + text_format.MessageToString(state))


def update(step: UpdateState, shown: str, update_checkpoint_state: Callable[..., None]) -> None:
    """Call TensorFlow's function, or ours, for a directory."""
    listed = read_listed(Path(shown), step.record or "checkpoint")
    if listed is None:
        return
    position = max(0, len(listed.names) - 1 - step.back)
    names = listed.names[: position + 1] if step.is_cut else listed.names
    update_checkpoint_state(
        shown,
        f"{shown}/{listed.names[position]}",
        [f"{shown}/{name}" for name in names],
        latest_filename=step.record,
        all_model_checkpoint_timestamps=listed.times[: position + 1] if step.with_times else None,
    )
