"""Look again and again for the newest checkpoint: one conditional request while nothing changes."""

from __future__ import annotations

from typing import NamedTuple

from ckptstore.directory.catalog import quick_check
from ckptstore.directory.latest import check_is_directory, look_for_latest, record_location
from ckptstore.directory.paths import resolve
from ckptstore.directory.record_update import RecordSnapshot, read_state, read_state_unless
from ckptstore.errors import CorruptError, NotFoundError, TruncatedFileError, UsageError, abridged
from ckptstore.format.naming import index_name, step_in
from ckptstore.storage.base import Location
from ckptstore.types import ByteRange

__all__ = ["Follower", "Published", "published_at"]

_FIRST_BYTE = ByteRange(0, 1)

# Now and then a look asks for the index as well: a program that saves under one name again and again may
# write the very same record each time.
_LOOKS_PER_INDEX = 10

# How often one look reads the record again because the checkpoint that it named was gone.
_MOST_READS = 6


class Published(NamedTuple):
    """A complete checkpoint; `version` is that of its index."""

    place: Location
    version: str

    @property
    def step(self) -> int | None:
        """The step in its name."""
        return step_in(self.place.name)


class Follower:
    """Follows the record of one directory, wherever it leads: also back to an older checkpoint.

    Parameters
    ----------
    directory : Location
    latest_filename : str, optional
        Of the record.

    Attributes
    ----------
    latest : Published or None
        What the last look that found one returned.
    listings : int
        How often the directory was listed.

    Threads
    -------
    One at a time.
    """

    def __init__(self, directory: Location, latest_filename: str | None = None) -> None:
        self.latest: Published | None = None
        self.listings = 0
        self._directory = directory
        self._record = record_location(directory, latest_filename)
        # Of the record that `latest` came from: another one is looked at.
        self._version: str | None = None
        self._unchanged = 0

    def changed_record(self) -> RecordSnapshot | None:
        """Return the record, None while nothing has changed: one request, in every tenth look two.

        Raises
        ------
        AccessError, TransientError, UsageError
            From the storage.
        """
        if self._version is None:
            return read_state(self._record)
        changed = read_state_unless(self._record, self._version)
        self._unchanged = 0 if changed is not None else (self._unchanged + 1) % _LOOKS_PER_INDEX
        if changed is None and not self._unchanged and self._has_another_index():
            return read_state(self._record)
        return changed

    def _has_another_index(self) -> bool:
        """Whether the index of `latest` is another one than was seen, or gone."""
        if self.latest is None:
            return False
        storage, key = self.latest.place.storage, self.latest.place.suffixed(index_name("")).key
        try:
            return storage.get_unless(key, self.latest.version, _FIRST_BYTE) is not None
        except (NotFoundError, TruncatedFileError, UsageError):
            return True

    def look(self, snapshot: RecordSnapshot, *, may_list: bool) -> Published | None:
        """Return the newest complete checkpoint, None if it is `latest`, or if there is none yet.

        Parameters
        ----------
        snapshot : RecordSnapshot
            From `changed_record`.
        may_list : bool
            Whether the directory may be listed where the record is missing or leads nowhere.

        Raises
        ------
        CorruptError
            If the record is missing although it was there, cannot be read, or names nothing that can be
            restored. `latest` stays.
        AccessError, TransientError, UsageError
            From the storage.
        """
        for _ in range(_MOST_READS):
            found = self._named_by(snapshot)
            if found is not None:
                self._version = snapshot.version
                return self._taken(found)
            if snapshot.record.state is None:
                break
            now = read_state(self._record)
            if now.version == snapshot.version:
                break
            # Retention was faster.
            snapshot = now
        return self._without_record(snapshot, may_list)

    def _named_by(self, snapshot: RecordSnapshot) -> Published | None:
        state = snapshot.record.state
        if snapshot.fault is not None or state is None:
            return None
        for place in resolve(self._directory, state.model_checkpoint_path):
            latest = self.latest
            if latest is not None and place.key == latest.place.key and not self._has_another_index():
                return latest
            found = published_at(place)
            if found is not None:
                return found
        return None

    def _without_record(self, snapshot: RecordSnapshot, may_list: bool) -> Published | None:
        """Look for something newer by a listing, and never for something older."""
        if may_list:
            self.listings += 1
            place, _ = look_for_latest(self._directory, self._record.name)
            found = None if place is None else published_at(place)
            if found is not None and self._is_newer(found):
                return self._taken(found)
            if place is None and self.latest is None:
                check_is_directory(self._directory)
        if snapshot.version is None and self._version is None:
            # There never was one. Somebody may be copying the checkpoints, and write it last.
            return None
        raise self._trouble(snapshot)

    def _is_newer(self, found: Published) -> bool:
        if self.latest is None:
            return True
        return found.step is not None and self.latest.step is not None and found.step > self.latest.step

    def _taken(self, found: Published) -> Published | None:
        if found == self.latest:
            return None
        self.latest = found
        return found

    def _trouble(self, snapshot: RecordSnapshot) -> CorruptError:
        state = snapshot.record.state
        if snapshot.fault is not None:
            return snapshot.fault
        if state is None:
            what = "the record is not there any more"
        else:
            what = f"the record names {abridged(state.model_checkpoint_path)!r}, which cannot be restored"
        return CorruptError(
            what,
            url=self._record.url,
            hint="A checkpoint that is being copied needs time. `ckptstore verify` shows what is wrong.",
        )


def published_at(place: Location) -> Published | None:
    """Return the checkpoint at `place` if it can be restored: index readable, every data file long enough."""
    fault, version = quick_check(place)
    return Published(place, version) if fault is None and version else None
