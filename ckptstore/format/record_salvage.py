"""What can still be read of a damaged record, line by line; the strict reader is `record_protocol`.

A fact counts only if its line is whole: ``highest_step=120``, cut off from ``highest_step=12000``, would be
read without an error. `format_record` and TensorFlow end every line, so a last line without an end was cut
off, or written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckptstore.errors import FormatError
from ckptstore.format.record import CheckpointState, parse_state
from ckptstore.format.record_facts import Fact, Owner, Record, record_of
from ckptstore.format.record_protocol import FACT_BEGINNINGS, RangeRoom, is_header, parse_fact

__all__ = ["Salvage", "salvage_record"]

_PROTECTING = ("# kept ", "# pin ")


@dataclass(frozen=True, slots=True)
class Salvage:
    """What is left of a record.

    Attributes
    ----------
    record : Record
        ``state`` is None if TensorFlow's fields cannot be read. Of several owners of one name it has the
        one with the highest epoch.
    lost : tuple of str
        Protocol lines that cannot be read.
    """

    record: Record
    lost: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """Listed checkpoints that no saver owns: all of them, if a line that protected one is lost."""
        state = self.record.state
        if state is None or not any(line.startswith(_PROTECTING) for line in self.lost):
            return self.record.kept
        listed = (*state.all_model_checkpoint_paths, state.model_checkpoint_path)
        return tuple(dict.fromkeys((*self.record.kept, *listed)))


def salvage_record(data: bytes, *, source: str) -> Salvage:
    """Return what can be read of `data`.

    Parameters
    ----------
    data : bytes
        The whole file; any bytes.
    source : str
        URL for messages.

    Raises
    ------
    UnsupportedError
        If a newer ckptstore wrote the protocol lines.
    """
    facts: list[Fact] = []
    ranges = RangeRoom()
    lost: list[str] = []
    *whole, cut = data.split(b"\n")
    for line in whole:
        text = line.decode("utf-8", "backslashreplace")
        is_header(text, source=source)
        if text.startswith(FACT_BEGINNINGS):
            try:
                facts.append(parse_fact(line.decode("utf-8"), ranges))
            except ValueError:
                lost.append(text)
    if cut.startswith(b"#"):
        text = cut.decode("utf-8", "backslashreplace")
        owner = _owner_of_cut_line(text)
        if owner is not None:
            facts.append(owner)
        elif not _says_nothing(text):
            lost.append(text)
    # The last one counts: where two copies of a record were joined, the newer owner.
    facts.sort(key=lambda fact: fact.epoch if isinstance(fact, Owner) else 0)
    return Salvage(record_of(_state_of(data, cut, source=source), facts), tuple(lost))


def _owner_of_cut_line(line: str) -> Owner | None:
    """Return the owner line without the numbers at its end, which may be cut off."""
    try:
        fact = parse_fact(line)
    except ValueError:
        return None
    if not isinstance(fact, Owner):
        return None
    return replace(fact, highest_step=None, next_keep_s=None, last_preserved_s=None)


def _says_nothing(line: str) -> bool:
    """Return whether a line that was cut off cannot have been one of ours."""
    return not any(line.startswith(known) or known.startswith(line) for known in FACT_BEGINNINGS)


def _state_of(data: bytes, cut: bytes, *, source: str) -> CheckpointState | None:
    try:
        state = parse_state(data, source=source)
    except FormatError:
        return None
    if cut and not cut.startswith(b"#") and not cut.rstrip().endswith(b'"'):
        # A number, and perhaps only its beginning.
        return replace(state, all_model_checkpoint_timestamps=(), last_preserved_timestamp=0.0)
    return state
