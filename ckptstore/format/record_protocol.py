"""The lines of the record that are ckptstore's: how `record_facts` are written and read.

TensorFlow ignores ``#`` comments in the record, but finds no checkpoint at all if there is an unknown
*field*; so ownership, fencing and unfinished deletes live in comments. What they mean is
`ckptstore.format.record_facts`, the four fields themselves are `ckptstore.format.record`.

Format
------
The header, then one fact per line::

    # ckptstore 1
    # owner "model" form="steps" epoch=7 run="5f0…" host="a" time=1795344521.8 write="9a…" highest_step=12000
    # pending "model-9000" version="…" shards="00000..01023-of-01024" suffix="meta"
    # superseded "model" shards="00000-of-48213 00002..00004-of-48213"
    # kept "model-100"
    # pin "model-5000"
    # note "model-12000" loss=0.12 "top 5"=0.93
    # counted "model-12000" keep=1
    # intent "model-12500" form="steps" run="5f0c…" index="8a2f01c3" after="model-12000"

Grammar; each line begins in column one, and spaces may follow at its end::

    header     = "# ckptstore " version
    owner      = "# owner " name [" form=" form] " epoch=" integer " run=" string " host=" string
                 " time=" seconds " write=" string [" highest_step=" integer] [" next_keep=" seconds]
                 [" last_preserved=" seconds] [" keep=" integer]
    pending    = "# pending " name " version=" string " shards=" shards [" suffix=" string]
    superseded = "# superseded " name " shards=" shards
    kept       = "# kept " name
    pin        = "# pin " name
    note       = "# note " name metrics
    counted    = "# counted " name " keep=" integer
    intent     = "# intent " name " form=" form " run=" string " index=" crc32c [" after=" string]
                 [" metrics=" a string of metrics] [" replaces=" crc32c]
    name       = string
    metrics    = any number of: " " metric "=" value
    metric     = letters, digits and "_./:@+-", or a string
    value      = a decimal number as Python writes it, "nan", "inf" or "-inf"
    form       = '"steps"' | '"exact"'
    crc32c     = a string of eight lower-case hexadecimal digits
    string     = a JSON string in ASCII, so that a line never breaks
    shards     = a string of words: number "-of-" count, or first ".." last "-of-" count
    integer    = up to 20 digits, "-" before a negative one
    seconds    = a number as Python's float() takes it, except NaN

A version has up to 9 digits; above 1 the record is refused. The name of an owner is a basename, or with the
form "exact" a prefix; all other names are prefixes of checkpoints. 0.1.0rc1 wrote no form, and took a name
for both. A suffix left out is "meta". Seconds count from 1970 on the writer's clock.

Numbers and counts of shards have 5 to 10 digits. A range holds every number from first to last, where first <
last < count. The ranges of one record hold at most 262 144 shards; what is more is listed by single names.

The pairs of a line may stand in any order, and pairs with other names are ignored; in a note every pair is a
metric. Other comments are ignored, and so are facts before the header. Of several owners of one name and
form, notes of one name, or metrics of one name in a line, the last one counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import cast, get_args

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.format.record import format_state, parse_state
from ckptstore.format.record_facts import (
    DEFAULT_SUFFIX,
    Counted,
    Fact,
    Form,
    Intent,
    Kept,
    Note,
    Owner,
    Pending,
    Pin,
    Record,
    ShardName,
    Superseded,
    record_of,
)

__all__ = [
    "FACT_BEGINNINGS",
    "RangeRoom",
    "format_record",
    "is_header",
    "parse_fact",
    "parse_record",
]

_VERSION = 1
_HEADER = re.compile(r"# ckptstore ([0-9]{1,9})\s*$")
# Possessive, because a plain repetition remembers 80 bytes for each escape of a hostile line.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_LINE = re.compile(
    r"# (owner|pending|superseded|kept|pin|counted|intent)"
    rf' ({_STRING})((?: [a-z_]+=(?:{_STRING}|[^\s"]++))*+)\s*$'
)
_PAIR = re.compile(rf' ([a-z_]+)=({_STRING}|[^\s"]++)')
_METRIC_NAME = re.compile(r"[A-Za-z0-9_./:@+-]+")
_METRIC = rf" (?:{_STRING}|{_METRIC_NAME.pattern}+)=-?[0-9a-z.+-]++"
_NOTE = re.compile(rf"# note ({_STRING})((?:{_METRIC})*+)\s*$")
_METRICS = re.compile(rf"(?:{_METRIC})*+")
_METRIC_PAIR = re.compile(rf" ({_STRING}|{_METRIC_NAME.pattern}+)=(-?[0-9a-z.+-]++)")
_METRIC_VALUE = re.compile(r"-?(?:[0-9]{1,400}(?:\.[0-9]{1,400})?(?:e[+-]?[0-9]{1,4})?|inf)|nan")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_CRC32C = re.compile(r"[0-9a-f]{8}")
_SHARDS = re.compile(r"([0-9]{5,10})(?:\.\.([0-9]{5,10}))?-of-([0-9]{5,10})$")

# In the ranges of one record: 256 checkpoints of 1024 shards. It bounds what a short text can make a reader
# allocate to some 25 MiB.
_MOST_IN_RANGES = 262_144

_KINDS = ("owner", "pending", "superseded", "kept", "pin", "note", "counted", "intent")
FACT_BEGINNINGS = tuple(f"# {kind} " for kind in _KINDS)


def format_record(record: Record) -> bytes:
    """Return the bytes of `record`: protocol comments first, then TensorFlow's text proto."""
    lines = [f"# ckptstore {_VERSION}"]
    for owner in record.owners.values():
        form = f" form={_quote(owner.form)}" if owner.form else ""
        line = (
            f"# owner {_quote(owner.basename)}{form} epoch={owner.epoch} run={_quote(owner.run)}"
            f" host={_quote(owner.host)} time={owner.time_s!r} write={_quote(owner.write_id)}"
        )
        if owner.highest_step is not None:
            line += f" highest_step={owner.highest_step}"
        if owner.next_keep_s is not None:
            line += f" next_keep={owner.next_keep_s!r}"
        if owner.last_preserved_s is not None:
            line += f" last_preserved={owner.last_preserved_s!r}"
        if owner.keep is not None:
            line += f" keep={owner.keep}"
        if owner.suffix != DEFAULT_SUFFIX:
            line += f" suffix={_quote(owner.suffix)}"
        lines.append(line)
    ranges = RangeRoom()
    lines += [
        f"# pending {_quote(pending.prefix)} version={_quote(pending.version)}"
        f" shards={_quote(_format_shards(pending.shards, ranges))} suffix={_quote(pending.suffix)}"
        for pending in record.pending
    ]
    lines += [
        f"# superseded {_quote(superseded.prefix)} shards={_quote(_format_shards(superseded.shards, ranges))}"
        for superseded in record.superseded
    ]
    lines += [f"# kept {_quote(prefix)}" for prefix in record.kept]
    lines += [f"# pin {_quote(prefix)}" for prefix in record.pins]
    lines += [
        f"# note {_quote(prefix)}{_format_metrics(metrics.items())}"
        for prefix, metrics in record.notes.items()
    ]
    lines += [f"# counted {_quote(prefix)} keep={keep}" for prefix, keep in record.counted.items()]
    for intent in record.intents:
        line = (
            f"# intent {_quote(intent.prefix)} form={_quote(intent.form)} run={_quote(intent.run)}"
            f' index="{intent.index_crc32c:08x}"'
        )
        if intent.after:
            line += f" after={_quote(intent.after)}"
        if intent.metrics:
            line += f" metrics={_quote(_format_metrics(intent.metrics))}"
        if intent.replaces_crc32c is not None:
            line += f' replaces="{intent.replaces_crc32c:08x}"'
        lines.append(line)
    comments = "\n".join(lines).encode() + b"\n"
    return comments + (format_state(record.state) if record.state is not None else b"")


def parse_record(data: bytes, *, source: str) -> Record:
    """Return the record in `data`.

    Parameters
    ----------
    data : bytes
        The whole record.
    source : str
        URL for messages.

    Raises
    ------
    FormatError
        If TensorFlow's fields cannot be read, or one of our own lines cannot.
    UnsupportedError
        If a newer ckptstore wrote the protocol lines.
    """
    state = parse_state(data, source=source)
    facts: list[Fact] = []
    ranges = RangeRoom()
    ours = False
    for number, line in enumerate(data.decode().split("\n"), 1):
        ours = is_header(line, source=source) or ours
        if not ours or not line.startswith(FACT_BEGINNINGS):
            continue
        try:
            facts.append(parse_fact(line, ranges))
        except ValueError:
            raise FormatError(
                f"protocol line {number} of the record cannot be read",
                url=source,
                actual=repr(line[:120]),
                hint="Delete the comment lines, and the next save takes over anew; or run ckptstore repair.",
            ) from None
    return record_of(state, facts)


def is_header(line: str, *, source: str) -> bool:
    """Return whether `line` is the header of our lines.

    Raises
    ------
    UnsupportedError
        If they are those of a newer ckptstore.
    """
    header = _HEADER.match(line)
    if header is not None and int(header[1]) > _VERSION:
        raise UnsupportedError(
            "the record was written by a newer ckptstore",
            url=source,
            expected=f"protocol {_VERSION}",
            actual=f"protocol {header[1]}",
            hint="Update ckptstore on this host before saving here.",
        )
    return header is not None


class RangeRoom:
    """How many shards the ranges of one record may still hold."""

    def __init__(self) -> None:
        self._left = _MOST_IN_RANGES

    def take(self, shards: int) -> bool:
        """Return whether so many more fit; then they are taken."""
        fits = shards <= self._left
        self._left -= shards if fits else 0
        return fits


def parse_fact(line: str, ranges: RangeRoom | None = None) -> Fact:
    """Return the content of one protocol line.

    Parameters
    ----------
    line : str
    ranges : RangeRoom, optional
        Of the record that has the line.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    try:
        if line.startswith("# note "):
            return _parse_note(line)
        kind, name, values = _parse_line(line)
        if kind == "owner":
            return Owner(
                name,
                _integer(values["epoch"]),
                values["run"],
                values["host"],
                _time(values["time"]),
                values["write"],
                _integer(values["highest_step"]) if "highest_step" in values else None,
                _time(values["next_keep"]) if "next_keep" in values else None,
                _time(values["last_preserved"]) if "last_preserved" in values else None,
                _form(values.get("form", "")),
                _integer(values["keep"]) if "keep" in values else None,
                values.get("suffix", DEFAULT_SUFFIX),
            )
        if kind == "kept":
            return Kept(name)
        if kind == "pin":
            return Pin(name)
        if kind == "counted":
            return Counted(name, _integer(values["keep"]))
        if kind == "intent":
            form, crc32c = _form(values["form"]), _crc32c(values["index"])
            metrics = _parse_metrics(values.get("metrics", ""))
            replaces = _crc32c(values["replaces"]) if "replaces" in values else None
            return Intent(name, form, values["run"], crc32c, values.get("after", ""), metrics, replaces)
        shards = _parse_shards(values["shards"], ranges or RangeRoom())
        if kind == "pending":
            return Pending(name, values["version"], shards, values.get("suffix", DEFAULT_SUFFIX))
        return Superseded(name, shards)
    except (KeyError, RecursionError) as error:
        raise ValueError(line) from error


def _quote(text: str) -> str:
    # ASCII only: a lone surrogate (a file name that is not UTF-8) must not make the record unwritable.
    return json.dumps(text)


def _unquote(text: str) -> str:
    value = json.loads(text)
    if not isinstance(value, str):
        raise ValueError(text)
    return value


def _parse_line(line: str) -> tuple[str, str, dict[str, str]]:
    match = _LINE.match(line)
    if match is None:
        raise ValueError(line)
    values = {key: _unquote(text) if text.startswith('"') else text for key, text in _PAIR.findall(match[3])}
    return match[1], _unquote(match[2]), values


def _parse_note(line: str) -> Note:
    match = _NOTE.match(line)
    if match is None:
        raise ValueError(line)
    return Note(_unquote(match[1]), _parse_metrics(match[2]))


def _parse_metrics(text: str) -> tuple[tuple[str, float], ...]:
    if _METRICS.fullmatch(text) is None:
        raise ValueError(text)
    metrics = {}
    for name, value in _METRIC_PAIR.findall(text):
        if _METRIC_VALUE.fullmatch(value) is None:
            raise ValueError(value)
        metrics[_unquote(name) if name.startswith('"') else name] = float(value)
    return tuple(metrics.items())


def _format_metrics(metrics: Iterable[tuple[str, float]]) -> str:
    return "".join(
        f" {name if _METRIC_NAME.fullmatch(name) else _quote(name)}={value!r}" for name, value in metrics
    )


def _form(text: str) -> Form:
    if text not in get_args(Form):
        raise ValueError(text)
    return cast("Form", text)


def _crc32c(text: str) -> int:
    if _CRC32C.fullmatch(text) is None:
        raise ValueError(text)
    return int(text, 16)


def _integer(text: str) -> int:
    # Python reads and writes 4300 digits at most: one more than that would make the record unwritable.
    if _INTEGER.fullmatch(text) is None:
        raise ValueError(text)
    return int(text)


def _time(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        # Whatever it is compared with is neither earlier nor later: retention would preserve nothing.
        raise ValueError(text)
    return value


def _format_shards(shards: Sequence[ShardName], ranges: RangeRoom) -> str:
    may_join = ranges.take(len(shards))
    runs: list[tuple[int, int, int]] = []
    for number, count in shards:
        if may_join and runs and (number - 1, count) == runs[-1][1:] and number < count:
            runs[-1] = (runs[-1][0], number, count)
        else:
            runs.append((number, number, count))
    return " ".join(
        f"{first:05d}-of-{count:05d}" if first == last else f"{first:05d}..{last:05d}-of-{count:05d}"
        for first, last, count in runs
    )


def _parse_shards(text: str, ranges: RangeRoom) -> tuple[ShardName, ...]:
    result: list[ShardName] = []
    for word in text.split():
        match = _SHARDS.match(word)
        if match is None:
            raise ValueError(word)
        first, count = int(match[1]), int(match[3])
        if match[2] is None:
            result.append((first, count))
            continue
        stop = int(match[2]) + 1
        # Before the range is spelled out.
        if not first + 1 < stop <= count or not ranges.take(stop - first):
            raise ValueError(word)
        result.extend((number, count) for number in range(first, stop))
    return tuple(result)
