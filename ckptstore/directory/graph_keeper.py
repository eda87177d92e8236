"""The last graph is never lost: before the only one goes with its checkpoint, it is put beside a survivor."""

from __future__ import annotations

from collections import defaultdict
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
        # Suffix of the graph → prefix → whether it has one.
        self._has_graph: defaultdict[str, dict[str, bool]] = defaultdict(dict)

    def remember(self, prefix: str, suffix: str, *, written: bool, fresh: bool) -> None:
        """Remember whether a save wrote a graph, or none on a prefix that had no files before."""
        if written or fresh:
            self._has_graph[suffix][prefix] = written
        else:
            self._has_graph[suffix].pop(prefix, None)

    def forget(self, prefix: str, suffix: str) -> None:
        """Forget a checkpoint that is not listed any more."""
        self._has_graph[suffix].pop(prefix, None)

    def carry_over(self, victims: Sequence[str], survivors: Sequence[str], suffix: str) -> None:
        """Put the newest graph of `victims` beside the oldest of `survivors`, if none of those has one."""
        known = self._has_graph[suffix]
        if not survivors or all(known.get(victim) is False for victim in victims):
            return
        if any(map(known.get, survivors)) or any(self._ask(each, suffix) for each in survivors):
            return
        for victim in reversed(victims):
            location = self._directory.child(meta_name(victim, suffix))
            try:
                graph = location.storage.get(location.key).data
            except NotFoundError:
                continue
            put_graph(self._directory.child(meta_name(survivors[0], suffix)), graph)
            known[survivors[0]] = True
            return

    def _ask(self, prefix: str, suffix: str) -> bool:
        known = self._has_graph[suffix]
        if prefix not in known:
            location = self._directory.child(meta_name(prefix, suffix))
            try:
                location.storage.head(location.key)
                known[prefix] = True
            except NotFoundError:
                known[prefix] = False
        return known[prefix]
