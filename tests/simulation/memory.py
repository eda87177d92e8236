"""Pure functions that answer from memory: the same bytes come by thousands of times in a simulation.

Nothing of the protocol is among them, only what turns immutable values into bytes and back. What was written
is known without being parsed: that both directions agree is proved by the format's own tests.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Generic, TypeVar
from unittest import mock

from ckptstore.bundle.read.index_check import IndexCheck
from ckptstore.bundle.write.index import build_index
from ckptstore.format.entry import decode_entry, decode_header
from ckptstore.format.entry_columns import shards_of
from ckptstore.format.naming import parse_file_name, split_step
from ckptstore.format.record import CheckpointState, parse_state
from ckptstore.format.record_facts import Record
from ckptstore.format.record_protocol import format_record, parse_record
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder

__all__ = ["every_copy_of", "no_threads", "pure_functions_remember"]

_T = TypeVar("_T")

_SIZE = 512

# They call each other.
_LEFT_ALONE = {
    "ckptstore.format.record",
    "ckptstore.format.record_protocol",
    "ckptstore.format.table",
    "ckptstore.format.table_builder",
}


class _Known(Generic[_T]):
    """What bytes mean."""

    def __init__(self, parse: Callable[[bytes, str], _T]) -> None:
        self._parse = parse
        self._known: dict[bytes, _T] = {}

    def learn(self, data: bytes, value: _T) -> _T:
        if len(self._known) >= _SIZE:
            self._known.clear()
        self._known[data] = value
        return value

    def __call__(self, data: bytes, source: str) -> _T:
        found = self._known.get(data)
        return self.learn(data, self._parse(data, source)) if found is None else found


_records: _Known[Record] = _Known(lambda data, source: parse_record(data, source=source))
_tables: _Known[dict[bytes, bytes]] = _Known(
    lambda data, source: dict(Table.from_bytes(data, source=source).items())
)


def _format_record(record: Record) -> bytes:
    data = format_record(record)
    _records.learn(data, record)
    return data


def _parse_record(data: bytes, *, source: str) -> Record:
    return _records(data, source)


def _parse_state(data: bytes, *, source: str) -> CheckpointState:
    state = _records(data, source).state
    assert state is not None
    return state


class _KnownTable:
    """Stands in for `Table`."""

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int, *, source: str) -> None:
        self._data = data = read(0, size_bytes)
        known = _tables(data, source)
        self.get = known.get
        self.items = known.items
        self._real = lambda: Table(read, size_bytes, source=source)

    def rows(self) -> _Rows:
        return _Rows(self._data, self._real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> _KnownTable:
        return cls(lambda start, size: data[start : start + size], len(data), source=source)


class _Rows:
    """The rows of a table, which are looked up once."""

    def __init__(self, data: bytes, real: Callable[[], Table]) -> None:
        self.data = data
        self._real = real

    def __iter__(self) -> Iterator[Any]:
        return iter(self._real().rows())


_indexes: dict[bytes, IndexCheck] = {}


def _index_rows(rows: _Rows, url: str) -> IndexCheck:
    found = _indexes.get(rows.data)
    if found is None:
        if len(_indexes) >= _SIZE:
            _indexes.clear()
        found = _indexes[rows.data] = IndexCheck(rows, url)
    return found


class _KnowingBuilder(TableBuilder):
    def __init__(self) -> None:
        super().__init__()
        self._added: dict[bytes, bytes] = {}

    def add(self, key: bytes, value: bytes) -> None:
        super().add(key, value)
        self._added[key] = value

    def extend(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        super().extend(keys, values)
        self._added.update(zip(keys, values, strict=True))

    def finish(self) -> bytes:
        data = super().finish()
        _tables.learn(data, self._added)
        return data


def _shards_of(table: _KnownTable, *, source: str) -> tuple[int, list[int]]:
    entries = [_entry(value) for key, value in table.items() if key]
    header = table.get(b"")
    num_shards = 0 if header is None else _header(header).num_shards
    return num_shards, sorted({entry.shard_id for entry in entries if not entry.slices})


_entry = functools.lru_cache(_SIZE)(functools.partial(decode_entry, source="", tensor=""))
_header = functools.lru_cache(_SIZE)(functools.partial(decode_header, source=""))


@contextmanager
def pure_functions_remember() -> Iterator[None]:
    """Let them, while the block runs."""
    build = functools.lru_cache(_SIZE)(build_index)
    substitutes: dict[Any, Any] = {
        function: functools.lru_cache(_SIZE)(function)
        for function in (decode_entry, decode_header, parse_file_name, split_step)
    }
    substitutes |= {
        format_record: _format_record,
        parse_record: _parse_record,
        parse_state: _parse_state,
        Table: _KnownTable,
        TableBuilder: _KnowingBuilder,
        IndexCheck: _index_rows,
        shards_of: _shards_of,
        build_index: lambda entries, count, **options: build(tuple(entries), count, **options),
    }
    with ExitStack() as stack:
        for module, attribute, value in _globals():
            if callable(value) and value in substitutes:
                stack.enter_context(mock.patch.object(module, attribute, substitutes[value]))
        yield


class _Free:
    """A lock without contention: lock, reentrant lock and condition in one."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass

    def acquire(self, *_: object, **__: object) -> bool:
        return True

    def release(self) -> None:
        pass

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        assert predicate(), "nothing else runs that could make it true"
        return True

    def notify_all(self) -> None:
        pass

    def notify(self, n: int = 1) -> None:
        pass

    def _is_owned(self) -> bool:
        return False


class _Flag:
    """An event without waiters."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


_FREE = _Free()

# All actors run in one thread, and none changes hands while it holds a lock. Making real ones, some fifty a
# save, took a fifth of the time; what waits on one of these fails.
_NO_THREADS = SimpleNamespace(
    Lock=lambda: _FREE,
    RLock=lambda: _FREE,
    Condition=lambda lock=None: _FREE,
    Event=_Flag,
    get_ident=threading.get_ident,
    main_thread=threading.main_thread,
    TIMEOUT_MAX=threading.TIMEOUT_MAX,
)


@contextmanager
def no_threads() -> Iterator[None]:
    """Let the code under test make locks that cost nothing, while the block runs."""
    with every_copy_of("threading", _NO_THREADS):
        yield


@contextmanager
def every_copy_of(name: str, substitute: Any) -> Iterator[None]:
    """Let `substitute` stand for the function `name` in every module that defines or imports it."""
    with ExitStack() as stack:
        for module, attribute, _ in _globals():
            if attribute == name:
                stack.enter_context(mock.patch.object(module, name, substitute))
        yield


def _globals() -> list[tuple[Any, str, Any]]:
    return [
        (module, attribute, value)
        for name, module in list(sys.modules.items())
        if name.startswith("ckptstore.") and name not in _LEFT_ALONE
        for attribute, value in list(vars(module).items())
        if _can_be_a_key(value)
    ]


def _can_be_a_key(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
