"""The names of a checkpoint's files, and the parser that reads them back.

Format
------
    PREFIX.index                        the index
    PREFIX.data-00000-of-00001          shard 0 of 1, five digits or more
    PREFIX.meta                         the graph; the suffix is the caller's choice
    PREFIX.part-00000-of-00003          prefix of a part of the bundle PREFIX, until the parts are merged
    PREFIX-00000-of-00003               a shard of a V1 checkpoint (the unsharded file is PREFIX itself)
    SAVE_PATH-1000, SAVE_PATH-00001000  prefix of a step, plain or padded to eight places
    .ckptstore-ranks~…                  no file of a checkpoint: messages between ranks

Mirrors TensorFlow `tensorflow/core/util/tensor_bundle/naming.cc` and `tensorflow/python/training/saver.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MESSAGE_PREFIX",
    "ParsedName",
    "Series",
    "data_name",
    "index_name",
    "meta_name",
    "numbered",
    "output_of_part",
    "parse_file_name",
    "parse_v1_pattern",
    "part_name",
    "series_of",
    "split_step",
    "step_in",
    "v1_shard_name",
]

# TensorFlow has nothing of that name, and no checkpoint begins with a dot and "~" behind a word.
MESSAGE_PREFIX = ".ckptstore-ranks~"
"""How the names begin of the objects through which the ranks of a job talk, where they have nothing else."""

# Five digits, or more without leading zeros: exactly what %05d gives.
_SHARD = r"([0-9]{5}|[1-9][0-9]{5,9})"
_DATA = re.compile(rf"(.*)\.data-{_SHARD}-of-{_SHARD}", re.DOTALL)
_V1_SHARD = re.compile(rf"(.+)(?<!\.data)-{_SHARD}-of-{_SHARD}", re.DOTALL)
# TensorFlow's name on S3; elsewhere its parts are in a directory: "PREFIX_temp/part-00000-of-00003".
_PART = re.compile(rf"(.+)\.part-{_SHARD}-of-{_SHARD}", re.DOTALL)
_V1_PATTERN = re.compile(r"(.+)-\?{5}-of-([0-9]{5})", re.DOTALL)
# Not greedy, so that "model--1" is step -1 of "model" and not step 1 of "model-". Twenty places hold every
# int64 and its sign.
_STEP = re.compile(r"(.+?)-(-?[0-9]{1,20})", re.DOTALL)

# Of a file on any storage; the patterns below take quadratic time.
_LONGEST_NAME = 1024

# How other programs put a step, an epoch or a metric into a name.
_LABEL = r"(?<![a-z])(?:{})[=_:.-]?([0-9]{{1,20}})(?![0-9]|\.[0-9])"
_EPOCH = re.compile(_LABEL.format("epochs?|ep|e"), re.IGNORECASE)
_LABELLED_STEP = re.compile(_LABEL.format("global_?steps?|steps?|iter(?:ation)?s?|updates?"), re.IGNORECASE)
_DECIMAL = r"[0-9]+(?:\.[0-9]+(?:e[+-]?[0-9]+)?|e[+-]?[0-9]+)"
_BARE_STEP = re.compile(
    rf"(?:(?<=[-_.])(?<![0-9]\.)|^)([0-9]{{1,20}})(?=(?:[-_.]+[a-z_]*=?-?{_DECIMAL})?(?:\.[a-z]\w*)*$)",
    re.IGNORECASE,
)
_NUMBER = rf"(?:{_DECIMAL}|[0-9]+)"
_METRIC_WORD = r"(?:loss|err(?:or)?|acc(?:uracy)?|auc|f1|iou|bleu|wer|ppl|mse|mae|reward|score|metric)"
_METRIC = re.compile(rf"({_METRIC_WORD})[=_:.-]*{_NUMBER}", re.IGNORECASE)
_DECIMAL_AT_END = re.compile(rf"{_DECIMAL}$", re.IGNORECASE)
_METRIC_BEHIND = re.compile(rf"[-_.]*{_DECIMAL}", re.IGNORECASE)


def index_name(prefix: str) -> str:
    """Return the name of the index of `prefix`."""
    return f"{prefix}.index"


def data_name(prefix: str, shard: int, num_shards: int) -> str:
    """Return the name of data file `shard` (from 0) of `num_shards`."""
    return f"{prefix}.data-{shard:05d}-of-{num_shards:05d}"


def meta_name(prefix: str, suffix: str = "meta") -> str:
    """Return the name of the graph file of `prefix`."""
    return f"{prefix}.{suffix}"


def v1_shard_name(prefix: str, shard: int, num_shards: int) -> str:
    """Return the name of a shard of a V1 checkpoint."""
    return f"{prefix}-{shard:05d}-of-{num_shards:05d}"


def part_name(prefix: str, number: int, count: int) -> str:
    """Return the prefix of part `number` (from 0) of `count` of the bundle `prefix`."""
    return f"{prefix}.part-{number:05d}-of-{count:05d}"


def output_of_part(prefix_basename: str) -> str | None:
    """Return the prefix into which a part is to be merged, None if this is no prefix of a part."""
    match = _PART.fullmatch(prefix_basename)
    return None if match is None or int(match[2]) >= int(match[3]) else match[1]


@dataclass(frozen=True, slots=True)
class ParsedName:
    """A file name, taken apart.

    Attributes
    ----------
    kind : {"index", "data", "meta", "v1-shard"}
    prefix : str
        Without directory.
    shard, num_shards : int
        0 and 0 where the kind has none.
    """

    kind: Literal["index", "data", "meta", "v1-shard"]
    prefix: str
    shard: int = 0
    num_shards: int = 0


def parse_file_name(basename: str) -> ParsedName | None:
    """Return the parts of a file's name, or None if no checkpoint file has such a name.

    Parameters
    ----------
    basename : str
        Without directory. A graph file is only known by the usual suffix ``meta``. ``.index`` and the like
        have an empty prefix: TensorFlow's ``saver.save(sess, "dir/")`` writes them.
    """
    if "/" in basename:
        return None
    for kind, ending in (("index", ".index"), ("meta", ".meta")):
        if basename.endswith(ending):
            return ParsedName("index" if kind == "index" else "meta", basename[: -len(ending)])
    match = _DATA.fullmatch(basename)
    if match is not None:
        return _shard_name("data", match)
    match = _V1_SHARD.fullmatch(basename)
    return None if match is None else _shard_name("v1-shard", match)


def _shard_name(kind: Literal["data", "v1-shard"], match: re.Match[str]) -> ParsedName | None:
    shard, num_shards = int(match[2]), int(match[3])
    return ParsedName(kind, match[1], shard, num_shards) if shard < num_shards else None


def parse_v1_pattern(name: str) -> tuple[str, int] | None:
    """Return prefix and count of TensorFlow's text for a sharded V1 checkpoint, ``PREFIX-?????-of-00003``.

    It means exactly that many files; nothing is globbed.
    """
    match = _V1_PATTERN.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def numbered(save_path: str, step: int, pad: bool = False) -> str:
    """Return the prefix of a step: ``save_path-12``, or padded ``save_path-00000012``."""
    return f"{save_path}-{step:08d}" if pad else f"{save_path}-{step:d}"


def split_step(prefix_basename: str) -> tuple[str, int | None]:
    """Return the basename that owns a prefix, and its step (None if it has none)."""
    match = _STEP.fullmatch(prefix_basename)
    return (prefix_basename, None) if match is None else (match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class Series:
    """The prefixes that differ from each other only in their step, and the place of one among them.

    Attributes
    ----------
    name : str
        What is the same in all of them.
    place : tuple of int
        Epoch and step, or one of both; empty if the prefix has neither.
    """

    name: str
    place: tuple[int, ...]


def series_of(prefix_basename: str) -> Series:
    """Return the step in a prefix, whoever chose the name, and what is the same in its neighbours.

    ``model-100`` and ``model-00000100`` as `split_step`; ``model.ckpt-100.h5`` with an extension behind the
    step; ``epoch=3-step=1200``; ``weights.05-0.32`` with a metric behind an epoch. For the order of
    checkpoints that no record lists: who owns one is never decided by this.
    """
    if len(prefix_basename) > _LONGEST_NAME:
        return Series(prefix_basename, ())
    text, step = split_step(prefix_basename)
    has_two_dashes = prefix_basename.startswith("--", len(text))
    if step is not None and _DECIMAL_AT_END.search(prefix_basename):
        # The exponent of a metric: "loss=1e-05".
        text, step = prefix_basename, None
    epoch = _EPOCH.search(text)
    other = None
    if step is None:
        other = _LABELLED_STEP.search(text)
        if other is None and epoch is None:
            other = _BARE_STEP.search(text)
    spans = [match.span(1) for match in (epoch, other) if match is not None]
    place = [int(text[start:stop]) for start, stop in spans]
    behind = max((stop for _, stop in spans), default=len(text))
    text = text[:behind] + _METRIC_BEHIND.sub("#", _METRIC.sub(r"\1#", text[behind:]))
    for start, stop in sorted(spans, reverse=True):
        text = f"{text[:start]}#{text[stop:]}"
    if step is not None and has_two_dashes:
        # Far more people save "model-" with steps than steps below 0.
        text, step = f"{text}-", abs(step)
    if step is not None:
        place.append(step)
    return Series(_METRIC.sub(r"\1#", text) if place else text, tuple(place))


def step_in(name: str) -> int | None:
    """Return the step in the name of a prefix; or of a shard, or of all shards, of a V1 checkpoint."""
    pattern, shard = parse_v1_pattern(name), parse_file_name(name)
    if pattern is not None:
        name, _ = pattern
    elif shard is not None and shard.kind == "v1-shard":
        name = shard.prefix
    return split_step(name)[1]
