"""Saves that died between index and record: what proves that a checkpoint is theirs.

A save says in the record what it is about to publish, and with which index. Only a checkpoint that the record
names so, with exactly that index, is taken over by the next run. Everything else that is found may have been
put there on purpose, and is kept.
"""

from __future__ import annotations

from collections.abc import Collection

from ckptstore.checksums import crc32c
from ckptstore.directory.catalog import fault_of
from ckptstore.errors import NotFoundError
from ckptstore.format.naming import index_name
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Intent, OwnerName, Record
from ckptstore.storage.base import Location

__all__ = ["Announcements", "is_set_back", "may_be_adopted", "was_published"]


# Of saves that may still be under way. Those of dead ones stay if nobody saves as their owner again, or if
# every process passes the same `run`: a record must not grow by them.
_MOST_OPEN = 64


class Announcements:
    """What one writer announces in the record.

    Parameters
    ----------
    run : str
        Of the writer.
    owned : collection of OwnerName
        Its owners, as they are when a method is called.

    Threads
    -------
    One thread.
    """

    def __init__(self, run: str, owned: Collection[OwnerName]) -> None:
        self._run = run
        self._owned = owned
        # All but the last one is settled when the next is announced.
        self._announced: set[Intent] = set()

    def announce(self, record: Record, intent: Intent, adopted: Collection[str]) -> tuple[Intent, ...]:
        """Return the announcements of `record` with `intent`, and without those that are settled.

        Parameters
        ----------
        adopted : collection of str
            Prefixes whose announcement is still the only proof.
        """
        proofs = {each for each in record.intents if each.owner in self._owned and each.prefix in adopted}
        open_ones = [each for each in record.intents if each not in proofs and self._is_open(each)]
        stay = proofs.union(open_ones[-_MOST_OPEN:])
        self._announced.add(intent)
        return (*(each for each in record.intents if each in stay), intent)

    def left_open(self, record: Record, window: Collection[str]) -> tuple[Intent, ...]:
        """Return what stays announced when the checkpoints of `window` are listed."""
        return tuple(each for each in record.intents if self._is_open(each) and each.prefix not in window)

    def _is_open(self, intent: Intent) -> bool:
        """Return whether another owner's save may still settle `intent`, or another Saver's."""
        is_ours = intent.owner in self._owned
        return not is_ours or (intent.run == self._run and intent not in self._announced)

    def settle(self, record: Record) -> None:
        """Forget what `record`, just written, does not announce any more."""
        self._announced.intersection_update(record.intents)


def is_set_back(state: CheckpointState) -> bool:
    """Return whether the latest was set by hand to an older entry of the list."""
    paths = state.all_model_checkpoint_paths
    return state.model_checkpoint_path in paths[:-1] and state.model_checkpoint_path != paths[-1]


def may_be_adopted(record: Record, intent: Intent, listed: Collection[str]) -> bool:
    """Return whether `record` leaves room for the checkpoint that `intent` announces.

    Not if it lists it, and not if the list was set back since to what came before it.

    Parameters
    ----------
    listed : collection of str
        The prefixes in the list, direct children of the directory.
    """
    if record.state is None or is_set_back(record.state) or "/" in intent.prefix:
        return False
    return intent.prefix not in listed and (not intent.after or intent.after in listed)


def was_published(directory: Location, intent: Intent) -> bool:
    """Return whether exactly the checkpoint that `intent` announces is there, and complete.

    Raises
    ------
    AccessError, TransientError
        If the storage cannot answer.
    """
    place = directory.child(intent.prefix)
    index = place.parent.child(index_name(place.name))
    try:
        data = index.storage.get(index.key).data
    except NotFoundError:
        return False
    return crc32c(data) == intent.index_crc32c and fault_of(place) is None
