"""The last graph is never lost: before the only one goes with its checkpoint, it is put beside a survivor."""

from __future__ import annotations

from collections.abc import Sequence

from ckptstore.directory.publish import put_graph
from ckptstore.errors import NotFoundError
from ckptstore.format.naming import meta_name, parse_file_name
from ckptstore.storage.base import Location

__all__ = ["GraphKeeper", "is_graph_suffix"]

# With a prefix of 200 bytes it must fit into a file's name.
_MAX_SUFFIX_BYTES = 40


def is_graph_suffix(suffix: str) -> bool:
    """Return whether this suffix is usable: not a path, and not that of another file of a checkpoint."""
    parsed = parse_file_name(meta_name("x", suffix))
    return (
        suffix.isprintable()
        and "/" not in suffix
        and 0 < len(suffix.encode(errors="replace")) <= _MAX_SUFFIX_BYTES
        and (parsed is None or (parsed.kind, parsed.prefix) == ("meta", "x"))
    )


class GraphKeeper:
    """Knows which checkpoints of a directory have a graph beside them, and asks where it does not know.

    Threads
    -------
    One thread.
    """

    def __init__(self, directory: Location) -> None:
        self._directory = directory
        self._has_graph: dict[str, bool] = {}

    def remember(self, prefix: str, suffix: str, *, written: bool, fresh: bool) -> None:
        """Remember whether a save wrote a graph, or none on a prefix that had no files before."""
        name = meta_name(prefix, suffix)
        if written or fresh:
            self._has_graph[name] = written
        else:
            self._has_graph.pop(name, None)

    def forget(self, prefix: str, suffix: str) -> None:
        """Forget a checkpoint that is not listed any more."""
        self._has_graph.pop(meta_name(prefix, suffix), None)

    def carry_over(self, victims: Sequence[str], survivors: Sequence[str], suffix: str) -> None:
        """Put the newest graph of `victims` beside the oldest of `survivors`, if none of those has one."""
        if not victims or not survivors:
            return
        if all(self._has_graph.get(meta_name(victim, suffix)) is False for victim in victims):
            return
        names = [meta_name(prefix, suffix) for prefix in survivors]
        if any(self._has_graph.get(name) for name in names) or any(map(self._ask, names)):
            return
        for victim in reversed(victims):
            location = self._directory.child(meta_name(victim, suffix))
            try:
                graph = location.storage.get(location.key).data
            except NotFoundError:
                continue
            put_graph(self._directory.child(names[0]), graph)
            self._has_graph[names[0]] = True
            return

    def _ask(self, name: str) -> bool:
        if name not in self._has_graph:
            location = self._directory.child(name)
            try:
                location.storage.head(location.key)
                self._has_graph[name] = True
            except NotFoundError:
                self._has_graph[name] = False
        return self._has_graph[name]
