"""Checks of the arguments of a Saver, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptstore.bundle.write.coverage import check_pieces
from ckptstore.bundle.write.plan import WriteItem, write_items
from ckptstore.directory.graph_keeper import is_graph_suffix
from ckptstore.directory.latest import record_location
from ckptstore.directory.retention import KeepNewest, Retention, SaverRetention
from ckptstore.directory.retention_rules import RetentionRule, RulesRetention, check_rules
from ckptstore.errors import TensorNotFoundError, UnsupportedError, UsageError
from ckptstore.format.dtypes import to_storage_array
from ckptstore.format.metagraph import SaverDef
from ckptstore.format.naming import numbered
from ckptstore.frameworks import foreign_value, instead_of
from ckptstore.storage.base import Location
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.registry import locate
from ckptstore.types import Options, PathText, as_pieces

__all__ = [
    "KEEP_HOURS",
    "MAX_TO_KEEP",
    "SECONDS_PER_HOUR",
    "V2",
    "GraphArguments",
    "SaveTarget",
    "SaverSettings",
    "VarList",
    "both_given",
    "check_list",
    "check_metrics",
    "check_supported",
    "check_var_list",
    "items_of",
    "step_number",
    "target_of",
]

VarList: TypeAlias = Sequence[str] | set[str] | frozenset[str] | Mapping[str, str]

V2 = 2
"""The version of the checkpoint format that is written."""

SECONDS_PER_HOUR = 3600.0


# They stand in the record, which each save writes twice.
_MOST_METRICS = 100
_LONGEST_METRIC = 200


class _DefaultInt(int):
    """A default that can be told from the same number given by a caller."""


class _DefaultFloat(float):
    """A default that can be told from the same number given by a caller."""


MAX_TO_KEEP = _DefaultInt(5)
"""TensorFlow's default."""

KEEP_HOURS = _DefaultFloat(10000.0)
"""TensorFlow's default."""


@dataclass(frozen=True, slots=True)
class SaverSettings:
    """The settings that a Saver shares with TensorFlow's ``SaverDef``.

    Attributes
    ----------
    max_to_keep : int
        0 keeps all.
    rules : tuple of RetentionRule or None
        In the place of `max_to_keep` and `keep_hours`.
    """

    max_to_keep: int
    keep_hours: float
    sharded: bool
    rules: tuple[RetentionRule, ...] | None = None

    @staticmethod
    def checked(
        saver_def: SaverDef | None, max_to_keep: Any, keep_hours: float, sharded: bool, rules: Any = None
    ) -> SaverSettings:
        """Return the settings of `saver_def`, or the others where it is None.

        Raises
        ------
        UsageError
            If `max_to_keep` is not a number of checkpoints, or `rules` are given beside other numbers.
        """
        if rules is not None:
            if max_to_keep is not MAX_TO_KEEP or keep_hours is not KEEP_HOURS:
                raise both_given()
            # TensorFlow knows no rules: a Saver that it makes of these settings deletes nothing.
            is_sharded = sharded if saver_def is None else saver_def.sharded
            return SaverSettings(0, float(KEEP_HOURS), is_sharded, check_rules(rules))
        if saver_def is not None:
            max_to_keep = saver_def.max_to_keep
            keep_hours = saver_def.keep_checkpoint_every_n_hours
            sharded = saver_def.sharded
        if max_to_keep is not None and not isinstance(max_to_keep, int | np.integer):
            raise UsageError("max_to_keep must be an integer or None", actual=repr(max_to_keep))
        if max_to_keep is not None and max_to_keep < 0:
            raise UsageError(
                "max_to_keep must not be negative: TensorFlow then deletes the checkpoint it just wrote",
                actual=max_to_keep,
                hint="Give 0 or None to keep everything.",
            )
        return SaverSettings(int(max_to_keep or 0), float(keep_hours), sharded)

    def retention(self, clock: Callable[[], float]) -> Retention:
        """Return the retention; its hours count from the present time of `clock`."""
        if self.rules is not None:
            return RulesRetention(self.rules)
        if not self.max_to_keep:
            return KeepNewest()
        return SaverRetention(self.max_to_keep, self.keep_hours * SECONDS_PER_HOUR, float(clock()))


def both_given() -> UsageError:
    """Return the error of who gives rules beside ``max_to_keep`` or hours."""
    return UsageError(
        "retention is given beside max_to_keep or keep_checkpoint_every_n_hours",
        hint="These are two of the rules in other words: add Latest(n) or EveryHours(h) to the list.",
    )


def check_supported(*, builder: object, write_version: int, defer_build: bool, var_list: object) -> None:
    """Raise unless a Saver can do what these arguments of TensorFlow's ask for."""
    if builder is not None:
        raise UnsupportedError("a saver builder needs TensorFlow's graph", hint="Leave `builder` out.")
    if write_version != V2:
        raise UnsupportedError(
            "only V2 checkpoints are written",
            expected=V2,
            actual=write_version,
            hint="V1 checkpoints can be read.",
        )
    if defer_build and var_list is not None:
        raise UsageError(
            "If `var_list` is provided then build cannot be deferred",
            hint="Either set defer_build=False or var_list=None.",
        )


class SaveTarget(NamedTuple):
    """Where a save goes."""

    prefix: Location
    record: Location
    step: int | None


def target_of(
    save_path: PathText,
    global_step: Any,
    latest_filename: str | None,
    options: Options,
    *,
    pad_step_number: bool,
) -> SaveTarget:
    """Return where a save goes.

    Raises
    ------
    UsageError
        If path, step or record name are invalid, or do not go together.
    """
    base = locate(save_path, options)
    check_prefix_name(base)
    path, step = base.url, None
    if global_step is not None:
        step = step_number(global_step)
        path = numbered(path, step, pad_step_number)
    prefix = locate(path, options)
    check_prefix_name(prefix)
    record = record_location(prefix.parent, latest_filename)
    if record.name == prefix.name:
        raise UsageError(
            f"'latest_filename' collides with 'save_path': {record.name!r} and {path!r}",
            hint="Choose another name for one of them.",
        )
    return SaveTarget(prefix, record, step)


@dataclass(frozen=True, slots=True)
class GraphArguments:
    """How a save writes its graph; see `Saver.save` for what the arguments mean.

    Raises
    ------
    UsageError, UnsupportedError
        If the graph cannot be saved in this way.
    """

    suffix: str
    write: bool
    strip_default_attrs: bool
    save_debug_info: bool

    def __post_init__(self) -> None:
        if self.save_debug_info:
            raise UnsupportedError("there is no debug information to save without TensorFlow's graph")
        if not is_graph_suffix(self.suffix):
            raise UsageError(
                "the graph's suffix must be a short text without a slash that no other file has",
                actual=repr(self.suffix),
                hint="Leave 'meta_graph_suffix' out for 'meta'.",
            )


def items_of(
    values: Any, names: Mapping[str, str] | None, *, allow_empty: bool, all_pieces: bool = True
) -> list[WriteItem]:
    """Return the items to save, converted and checked, in the order in which they are written.

    Parameters
    ----------
    values : mapping
        Name → array-like, `Piece` or sequence of them.
    names : mapping or None
        Checkpoint name → name in `values`; None: all.
    allow_empty : bool
        Whether there may be nothing to save.
    all_pieces : bool
        Whether all pieces of each tensor are here, so that they must cover it.

    Raises
    ------
    UsageError, TensorNotFoundError
        As `Saver.save`.
    """
    if not isinstance(values, Mapping):
        raise UsageError(
            "save takes a mapping from name to array in the place of a session",
            actual=type(values).__name__,
            hint=instead_of(values),
        )
    if names is None:
        for name in values:
            if not isinstance(name, str):
                raise UsageError("a tensor's name must be text", expected="str", actual=repr(name))
        names = {name: name for name in sorted(values)}
    if not names and not allow_empty:
        raise UsageError("No variables to save", hint="Give at least one array, or set allow_empty=True.")
    pairs = list(_pairs(values, names))
    if all_pieces:
        check_pieces(
            (name, pieces) for name, value in pairs if (pieces := as_pieces(value, tensor=name)) is not None
        )
    return write_items(pairs)


def _pairs(values: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for stored_name, name in names.items():
        if name not in values:
            raise TensorNotFoundError.among("the values to save have no such array", name, values, "arrays")
        yield stored_name, values[name]


def check_var_list(var_list: object) -> dict[str, str] | None:
    """Return checkpoint name → name in the values, in the order in which TensorFlow writes them: sorted."""
    if var_list is None:
        return None
    if isinstance(var_list, Mapping):
        pairs = list(var_list.items())
    elif isinstance(var_list, list | tuple | set | frozenset):
        pairs = [(name, name) for name in var_list]
    else:
        raise UsageError(f"Variables to save should be passed in a dict or a list. Got {var_list!r}")
    for stored_name, name in pairs:
        if not isinstance(stored_name, str) or not isinstance(name, str):
            raise UsageError(
                "Name is not a string",
                actual=repr(name if isinstance(stored_name, str) else stored_name),
                hint="A Saver takes the names of tensors, and their values with each save.",
            )
    twice = sorted(name for name, count in Counter(name for _, name in pairs).items() if count > 1)
    if twice and isinstance(var_list, Mapping):
        raise UsageError(f"The same saveable will be restored with two names: {twice[0]}")
    if twice:
        raise UsageError(f"At least two variables have the same name: {twice[0]}")
    return dict(sorted(pairs))


def step_number(global_step: Any) -> int:
    """Return the step as an integer."""
    # A number too large for 64 bits becomes an object array, or is refused by numpy.
    if foreign_value(global_step) is not None:
        array, _ = to_storage_array(global_step, tensor="global_step")
    else:
        array = np.asarray(int(global_step) if isinstance(global_step, bool) else global_step)
    if array.ndim == 0 and array.dtype.kind in "iu":
        return int(array)
    raise UsageError(
        "global_step must be an integer of 64 bits or a 0-d integer array",
        actual=f"{type(global_step).__name__} {global_step!r}",
    )


def check_list(value: object, kind: type = list) -> None:
    """Raise `UsageError` unless this is of `kind`, a list where TensorFlow wants one; a text is none."""
    if not isinstance(value, kind) or isinstance(value, str | bytes):
        raise UsageError("a list of checkpoints is needed", expected="list", actual=type(value).__name__)


def check_metrics(metrics: object) -> dict[str, float]:
    """Return the metrics of a save as floats; those that are not finite are taken as they are.

    Raises
    ------
    UsageError
        If they are not a mapping from names to numbers, or too many.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise UsageError("metrics must be a mapping from name to number", actual=type(metrics).__name__)
    if len(metrics) > _MOST_METRICS:
        raise UsageError(
            "too many metrics for one checkpoint",
            expected=f"at most {_MOST_METRICS}",
            actual=len(metrics),
            hint="The record holds them: give those by which checkpoints are chosen.",
        )
    return {_metric_name(name): _metric_value(name, value) for name, value in metrics.items()}


def _metric_name(name: object) -> str:
    if isinstance(name, str) and 0 < len(name) <= _LONGEST_METRIC:
        return name
    raise UsageError(
        "the name of a metric must be text",
        expected=f"1 to {_LONGEST_METRIC} characters",
        actual=repr(name)[:_LONGEST_METRIC],
    )


def _metric_value(name: object, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes) and np.ndim(value) == 0:
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(
        f"the metric {name!r} must be a number", expected="a float", actual=repr(value)[:_LONGEST_METRIC]
    )
