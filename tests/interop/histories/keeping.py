"""What ckptstore does around a save of TensorFlow: who owns what, what is counted, what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.interop.histories import rules as r
from tests.interop.histories.ledger import Ledger, Line, Owner, Writer, owner_of_listed
from tests.interop.histories.rules import Rules, Window
from tests.interop.histories.view import FILE, Listed, files_of, read_listed, write_listed

__all__ = ["Keeping"]


class Keeping:
    """One save: `refuses`, `acquire` and `window` before TensorFlow's, `finish` after it.

    Parameters
    ----------
    record : str
        Name of the record.
    """

    def __init__(
        self,
        rules: Rules,
        directory: Path,
        record: str,
        ledger: Ledger,
        writer: Writer,
        prefix: str,
        owner: Owner,
    ) -> None:
        self.rules = rules
        self.directory = directory
        self.record = record
        self.ledger = ledger
        self.writer = writer
        self.prefix = prefix
        self.owner = owner
        self.before = read_listed(directory, record)
        self.old = files_of(directory)[0]
        self.old_bytes = {
            path.name: path.read_bytes() for path in directory.iterdir() if FILE.fullmatch(path.name)
        }
        self.judged: list[str] = []
        self._is_anew = False
        self._left_open: set[str] = set()

    def refuses(self, *, fresh_start: bool) -> bool:
        """Return whether the save raises `CorruptError`."""
        if self.owner in self.writer.owned or self._has_saved_beside():
            return False
        facts = (self.owner, self.before, self.directory)
        answer = self.rules.apply(r.nothing_can_be_restored, self.prefix, *facts)
        self._is_anew = answer != self.prefix
        return self._is_anew and not fresh_start

    def _has_saved_beside(self) -> bool:
        def basename(each: Owner) -> str:
            return each.basename if each.form == "steps" else r.step_of(each.basename)[0]

        return basename(self.owner) in {basename(each) for each in self.writer.has_saved & self.writer.owned}

    def acquire(self, named: list[str], now_s: float) -> None:
        """Become the owner of what is saved, and of what the user told the Saver to count."""
        self._acquire(self.owner, now_s, is_anew=self._is_anew)
        for name in (self.prefix, *named):
            exact = Owner(name, "exact")
            if exact in self.ledger.owners:
                self._acquire(exact, now_s)
            elif name != self.prefix:
                self._acquire(owner_of_listed(name), now_s)

    def _acquire(self, owner: Owner, now_s: float, *, is_anew: bool = False) -> None:
        writer = self.writer
        if owner in writer.owned:
            return
        writer.acquire(self.ledger, owner)
        if owner.form == "steps" and self.before is not None:
            self.ledger.owners.setdefault(owner, Line(writer.run, writer.keep))
        for name in () if self.before is None else self.before.names:
            if not writer.owns(self.ledger, name) or owner not in (
                owner_of_listed(name),
                Owner(name, "exact"),
            ):
                continue
            if is_anew or name not in self.old or not self.old[name].index:
                writer.gone.add(name)
            elif not self.old[name].data:
                writer.torn.add(name)
            else:
                writer.unknown.add(name)
        for name, item in self.old.items():
            if item.index and owner in (owner_of_listed(name), Owner(name, "exact")):
                # Never in the future.
                mtime_s = (self.directory / f"{name}.index").stat().st_mtime
                writer.mtimes[name] = min(mtime_s, now_s)

    def window(self, window: Window, now_s: float, stay_for_good: Callable[[Window], list[str]]) -> Window:
        """Return what is counted before the save.

        Parameters
        ----------
        stay_for_good : callable
            Of the oldest ones, which leave, those that keep_checkpoint_every_n_hours preserves.
        """
        facts = (self.before, self.ledger, self.writer, now_s)
        window = self.rules.apply(r.the_list_goes_on, window, *facts)
        window = self.rules.apply(r.what_the_user_wrote_counts, window, *facts)
        window = self.rules.apply(r.savers_share_a_list, window, *facts)
        window = self.rules.apply(r.what_was_gone_back_to_is_the_newest, window, self.before)
        return self.rules.apply(
            r.what_is_gone_takes_no_place, window, self.writer, self.prefix, self.directory, stay_for_good
        )

    def begin(self, window: Window) -> None:
        """Note what the save starts from."""
        ledger, writer = self.ledger, self.writer
        self.judged = [name for name, _ in window]
        listed = self.before.names if self.before is not None else ()
        ledger.deleted = {name for name in ledger.deleted if not self._deletes(name)}
        self._left_open = {
            name
            for name in ledger.replaced
            if not writer.owns(ledger, name) and (name in listed or not self._deletes(name))
        }

    def _deletes(self, name: str) -> bool:
        """Return whether this Saver deletes what an earlier save left to do."""
        return self.writer.owns(self.ledger, name) or Owner(name, "exact") in self.ledger.owners

    def finish(self, window: Window, listed: Listed, clocks: dict[str, float | None]) -> None:
        """Change what TensorFlow has written.

        Parameters
        ----------
        window : list
            What it counts now.
        listed : Listed
            Its record, with the entries of `window`.
        clocks : dict
            Field of the owner's line → its new value.
        """
        rules = self.rules
        without_index = self._bytes_of(self.old_bytes, lambda name: not self.old[name].index)
        present = self._bytes_of(self._read(), lambda name: name in self.old and not self.old[name].index)
        for name, data in rules.apply(r.files_without_an_index_stay, present, without_index).items():
            (self.directory / name).write_bytes(data)
        self._note(window, clocks)
        listed = rules.apply(
            r.both_lists, listed, self.before, self.ledger, self.writer, {self.prefix, *self.judged}
        )
        listed = rules.apply(r.relative_paths, listed)
        write_listed(self.directory, self.record, listed)
        left = self.writer.saved - {name for name, _ in window}
        outside = self._bytes_of(self.old_bytes, lambda name: name in left & self.ledger.outside)
        present = {name: data for name, data in self._read().items() if name in outside}
        for name, data in rules.apply(r.what_was_saved_outside_stays, present, outside).items():
            if name not in present:
                (self.directory / name).write_bytes(data)
        self.writer.saved -= left
        self._keep_graph([name for name, _ in window])
        self._drop_lines(listed)

    def _read(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}

    def _bytes_of(self, files: dict[str, bytes], is_wanted: Callable[[str], bool]) -> dict[str, bytes]:
        matches = [(name, data, FILE.fullmatch(name)) for name, data in files.items()]
        return {name: data for name, data, match in matches if match and is_wanted(match[1])}

    def _note(self, window: Window, clocks: dict[str, float | None]) -> None:
        ledger, writer = self.ledger, self.writer
        line = ledger.owners.setdefault(self.owner, Line(writer.run, writer.keep))
        line.clocks.update(clocks)
        for each in writer.owned:
            if each.form == "exact":
                ledger.owners.setdefault(each, Line(writer.run, writer.keep))
        writer.has_saved.add(self.owner)
        writer.saved.add(self.prefix)
        writer.mtimes[self.prefix] = window[-1][1]
        writer.user_wrote = ledger.user_wrote
        for names in (writer.gone, writer.torn, writer.unknown):
            names.discard(self.prefix)
        ledger.saved_in[self.prefix] = writer.run
        for name, _ in window:
            each = owner_of_listed(name)
            ledger.counted.pop(name, None)
            if each in writer.owned and each in ledger.owners and ledger.owners[each].keep != writer.keep:
                ledger.counted[name] = writer.keep

    def _keep_graph(self, window: list[str]) -> None:
        files = files_of(self.directory)[0]
        left = [
            name for name in self.judged if name in self.old and self.old[name].index and name not in files
        ]
        lost = {name: self.old_bytes[f"{name}.meta"] for name in left if f"{name}.meta" in self.old_bytes}
        graphs = {name: (self.directory / f"{name}.meta").read_bytes() for name in files if files[name].graph}
        for name, data in self.rules.apply(r.the_last_graph_stays, graphs, lost, window).items():
            (self.directory / f"{name}.meta").write_bytes(data)

    def _drop_lines(self, listed: Listed) -> None:
        ledger, writer = self.ledger, self.writer
        files = files_of(self.directory)[0]
        replaced = {self.prefix} if self.prefix in self.old and self.old[self.prefix].index else set()
        ledger.deleted |= {name for name, item in self.old.items() if item.index and name not in files}
        ledger.replaced |= replaced
        ledger.drop_idle(listed.names)
        ledger.replaced = self._left_open | replaced
        writer.owned = {each for each in writer.owned if each.form == "steps" or each in ledger.owners}
