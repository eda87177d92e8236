"""One save of many ranks, as each of the others sees it: it writes its part, and hears how the save ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from ckptstore.directory.published_index import read_published_index
from ckptstore.directory.save_request import CheckpointSink, RunningSave, SaveRequest
from ckptstore.directory.shard_set import ShardSet
from ckptstore.distributed.manifests import decode_deal
from ckptstore.distributed.messages import unpack_error
from ckptstore.distributed.rounds import Member, Message, grace_s
from ckptstore.errors import CkptStoreError, CoordinatorLostError, CorruptError
from ckptstore.format.record_facts import ShardName
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.rank_task.base import RankTask
from ckptstore.saving.rank_task.part_message import encode_part, report_name
from ckptstore.saving.rank_task.report_message import decode_report
from ckptstore.saving.ranks import Plan, Ranks
from ckptstore.storage.retry import pause
from ckptstore.storage.scope import Scope

__all__ = ["MemberTask"]

_LOG = logging.getLogger("ckptstore")

# How long one look into the storage of a rank that has lost the chief may take, and the pauses between them.
_ASK_S: Final = 20.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0


class MemberTask(RankTask):
    """The save as every other rank sees it; parameters as `RankTask`."""

    def __init__(
        self,
        request: SaveRequest,
        sink: CheckpointSink,
        options: SaveOptions,
        ranks: Ranks,
        record: str | None,
    ) -> None:
        super().__init__(request, sink, options, ranks, record)
        self._has_greeted = False
        # What the chief waits for; two messages while it is not known whether the first was handed over.
        self._owed: tuple[str, ...] = ("hello",)

    @cached_property
    def _member(self) -> Member:
        # When it is needed: an earlier save may find that this rank has missed some.
        ranks = self._ranks
        return Member(ranks.coordinator, self._name, self._limit_s, ranks.stall_s, self._check)

    def _agree_on_parts(self) -> None:
        if self._knows_its_part():
            # The hello is sent when the save runs: whoever waits for the copy does not wait for a message.
            assert self._ranks.plan is not None
            self._settle_part(self._ranks.plan)
            return
        self._greet(staged=False)
        while self._plan is None:
            self._take(self._first_word(staged=False))

    def _greet(self, *, staged: bool) -> None:
        if not self._has_greeted:
            self._has_greeted = True
            hello = self._hello(staged=staged)
            self._owed = ("hello", "done-0")
            self._member.greet(hello)
            self._owed = ("done-0",)

    def _first_word(self, *, staged: bool) -> Message:
        """Return the first word of the save that this one is for the others."""
        while True:
            word = self._word()
            missing = word.head.get("missing")
            if not (isinstance(missing, list) and self._rank in missing and self._is_other_save(word.head)):
                return word
            self._pass_over(self._member)
            del self._member
            self._has_greeted = False
            self._greet(staged=staged)

    def _word(self) -> Message:
        word = self._member.hear()
        if word is None:
            # It is told all the same: it may come later.
            raise self._member.chief_missing("hello")
        return word

    def _take(self, word: Message, *, staged: bool = False) -> None:
        """Take over a plan; raise what made the save fail."""
        kind = word.head.get("kind")
        if kind == "plan":
            plan = Plan(str(word.head.get("name")), decode_deal(word.blob))
            known = self._plan
            try:
                if staged and known and known.deal.shares[self._rank] != plan.deal.shares[self._rank]:
                    raise CorruptError("the chief orders another part than was staged", url=self.url)
                self._settle_part(plan, look_at_arrays=not staged)
            except IndexError as error:
                raise CorruptError(
                    "the chief deals out what this rank does not hold", url=self.url
                ) from error
        elif kind == "failed":
            raise self._failure(word)
        elif kind != "order" or self._plan is None:
            raise CorruptError("the chief said something else than was due", url=self.url, actual=repr(kind))

    def _failure(self, word: Message) -> CkptStoreError:
        self._is_told = True
        told = word.head.get("error")
        rank = word.head.get("rank")
        # What a rank says of itself names it already; what the chief found concerns all.
        error = unpack_error(told if isinstance(told, dict) else {}, "")
        error.add_note(f"This ended the save on all ranks; the chief was told by rank {rank}.")
        return error

    def _save(self, running: RunningSave) -> None:
        try:
            self._follow(running)
        except BaseException as error:
            self._tell(error)
            raise

    def _follow(self, running: RunningSave) -> None:
        self._greet(staged=running.stage is not None)
        word = self._first_word(staged=running.stage is not None)
        while word.head.get("kind") == "plan":
            self._take(word, staged=running.stage is not None)
            word = self._word()
        if self._plan is None and self._ranks.plan is not None:
            self._settle_part(self._ranks.plan, look_at_arrays=running.stage is None)
        prefix = self._request.prefix
        while True:
            self._take(word)
            if self._plan is None or word.head.get("plan") != self._plan.name:
                raise CorruptError("the chief ordered a plan that this rank does not have", url=self.url)
            order, count = word.head.get("order"), word.head.get("count")
            like = word.head.get("like")
            if not isinstance(order, int) or not isinstance(count, int) or not isinstance(like, str):
                raise CorruptError("the chief gave an order without numbers", url=self.url)
            self._owed = (f"done-{order}",)
            with ShardSet(
                prefix.parent,
                prefix.name,
                transfer=running.transfer,
                stage=running.stage,
                canonical_count=self._plan.deal.shard_count,
            ) as files:
                word = self._write(running, files, order, count, like)
                kind = word.head.get("kind")
                if kind == "order":
                    files.may_be_published = False
                    files.start_again()
                    continue
                if kind == "failed":
                    files.may_be_published = word.head.get("keep") is not False
                    raise self._failure(word)
                if kind != "committed":
                    raise CorruptError("the chief said neither yes nor no", url=self.url, actual=repr(kind))
            break
        self._is_told = True
        self.report = decode_report(word.head.get("report"))

    def _write(self, running: RunningSave, files: ShardSet, order: int, count: int, like: str) -> Message:
        """Write this rank's part, report it, and return what the chief says then."""
        assert self._plan is not None
        number = self._plan.deal.numbers[self._rank]
        plan = self._request.plan
        begun_s = time.monotonic()
        heard: list[Message | None] = []
        is_written = threading.Event()
        is_done = threading.Event()

        def progress() -> float:
            return running.transfer.done_bytes / max(plan.size_bytes, 1)

        def listen() -> None:
            try:
                word = self._member.listen(progress, is_written)
                heard.append(word)
                if word is not None and not is_written.is_set():
                    # It can only be a failure: what is still to be written is of no use.
                    running.transfer.cancel()
            finally:
                is_done.set()

        threading.Thread(target=listen, name="ckptstore-ranks", daemon=True).start()
        try:
            running.transfer.restart(plan.size_bytes)
            is_new = number is None or files.write(plan, count, [number])
            if is_new:
                running.before_commit()
            report = self._done(files, begun_s, order, like) if is_new else Message({"taken": True})
            # From here on the chief may publish: an index may name the file, whatever happens.
            files.may_be_published = is_new
            self._report(order, report)
            self._owed = ()
            is_written.set()
            is_done.wait()
        except CkptStoreError as error:
            is_written.set()
            if not heard:
                self._tell(error)
            # The chief says what ended the save: the same on all ranks.
            is_done.wait(self._member.left_s + grace_s(0.0))
            word = heard[0] if heard else None
            if word and word.head.get("kind") == "failed" and word.head.get("rank") != self._rank:
                raise self._failure(word) from error
            self._is_told = True
            raise
        except BaseException:
            self._member.is_stopped = True
            raise
        return heard[0] or self._ask_the_store(files, number, count)

    def _done(self, files: ShardSet, begun_s: float, order: int, like: str) -> Message:
        own = next(iter(files.reports()), None)
        head: dict[str, Any] = {
            "bytes": self._request.plan.size_bytes,
            "staged_s": self._staged_s,
            "written_s": time.monotonic() - begun_s,
        }
        blob = b""
        if self._crcs is not None:
            head["crcs"] = len(self._crcs)
            blob = self._crcs.astype("<u4").tobytes()
        if own is not None:
            assert isinstance(own.index, bytes)
            part = self._ranks.reporter.part(own.index, name=report_name(self._name, order), like=like)
            more, data = encode_part(part, like)
            head |= {"version": own.version, **more}
            blob += data
        return Message(head, blob)

    def _report(self, order: int, report: Message) -> None:
        try:
            self._member.report(order, report)
        except CkptStoreError as error:
            # It may have arrived.
            _LOG.warning("the chief was perhaps not told that this rank is ready: %s", error)

    def _ask_the_store(self, files: ShardSet, number: int | None, count: int) -> Message:
        """Find out without the chief how the save ended; an index may name the file, now or later.

        The chief may still be at work, and only the mailbox be gone: asks as long as the chief has time, and
        once at least.
        """
        self._is_told = True
        prefix, pause_s = self._request.prefix, _FIRST_PAUSE_S
        while True:
            left_s, failure = self._member.left_s, None
            shards: Sequence[ShardName] = ()
            try:
                # Its own scope: a rank that stood still asks when the time of the save is over.
                with Scope(_ASK_S, what="cannot find out how the save ended", url=self.url):
                    published = read_published_index(prefix.parent, prefix.name)
                shards = () if published is None else published.shards
            except CkptStoreError as error:
                failure = error
            # Nobody else can have made a file of this number and count.
            if (number, count) in shards or (number is None and any(count == each for _, each in shards)):
                return Message({"kind": "committed"})
            if left_s <= 0.0:
                raise CoordinatorLostError(
                    "the chief is gone, and it is not known whether the save was published", url=self.url
                ) from failure
            pause(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _tell(self, error: BaseException) -> None:
        # Once it has reported, its word is given.
        if not self._is_told and self._owed:
            self._is_told = True
            self._member.fail(self._owed, self._seen(error))

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self._ranks.forget_ended(self._member)
        else:
            self._ranks.plan = None
            # What comes after the chief has dropped the messages would stay.
            self._ranks.ended(self._member)
