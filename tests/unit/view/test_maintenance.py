"""What gc, repair and doctor show, where it is long or hostile."""

from __future__ import annotations

from ckptstore.directory.garbage import Garbage, GarbageFile, GarbageReport
from ckptstore.directory.repair import RepairItem, RepairReport
from ckptstore.errors import AccessError, FormatError, NotFoundError
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Record
from ckptstore.storage.finding import Finding, failed
from ckptstore.storage.values import ObjectInfo
from ckptstore.view.diagnosis_report import DiagnosisFacts, diagnosis_lines, diagnosis_table
from ckptstore.view.garbage_report import collection_lines, collection_object, garbage_table
from ckptstore.view.repair_report import repair_lines, repair_object, repair_table
from ckptstore.view.text_table import table_lines


def garbage_file(name: str, size: int = 10, age_s: float = 100.0) -> GarbageFile:
    return GarbageFile(name, ObjectInfo(f"/d/{name}", size, "v", 1000.0 - age_s), "unpublished")


def garbage(*names: str, **fields: object) -> Garbage:
    return Garbage("d", 1000.0, 3600.0, tuple(map(garbage_file, names)), **fields)  # type: ignore[arg-type]


def texts(lines: object) -> list[str]:
    return [line for line, _ in lines]  # type: ignore[attr-defined]


class TestGarbage:
    def test_names_are_escaped(self) -> None:
        found = garbage("\x1b[31m.data", graphs=("\x07.meta",), in_use=("\x1b",))
        shown = texts(table_lines(garbage_table(found)))
        shown += texts(collection_lines(GarbageReport(found, (), 0), dry_run=True))
        assert "\\x1b[31m.data" in shown[1]
        assert not any(char in line for line in shown for char in "\x1b\x07")

    def test_long_lists_are_cut(self) -> None:
        found = garbage(graphs=tuple(f"{n}.meta" for n in range(50)))
        lines = texts(collection_lines(GarbageReport(found, (), 0), dry_run=False))
        assert len(lines) == 22
        assert lines[-2:] == ["and 30 more; --json lists all", "nothing to remove in d"]
        assert len(collection_object(GarbageReport(found, (), 0), dry_run=False)["graphs"]) == 50

    def test_everything_at_once(self) -> None:
        found = garbage(
            "a.data",
            "b.data",
            young=(garbage_file("c.data", 2048),),
            in_use=("live",),
            pending=("p.data", "p.meta"),
            unreadable=(("torn", AccessError("cannot read", url="d/torn.index")),),
        )
        report = GarbageReport(found, (found.files[0],), 2, AccessError("no"))
        assert texts(collection_lines(report, dry_run=False)) == [
            "kept: torn: cannot read [d/torn.index]",
            "kept: live: its writer is running",
            "marked for deletion in the record; the next save removes: 2 files",
            "kept, because younger than 1 h: 1 file, 2.0 KiB",
            "removed 1 file, 10 B, dropped 2 unfinished uploads",
            "1 file could not be removed",
        ]

    def test_a_clock_that_lags_behind(self) -> None:
        found = Garbage("d", 1000.0, 0.0, (garbage_file("a", age_s=-50),))
        assert "in future" in texts(table_lines(garbage_table(found)))[1]


def repair_report(*items: RepairItem, **fields: object) -> RepairReport:
    settings: dict[str, object] = {
        "url": "d",
        "record_url": "d/checkpoint",
        "fault": None,
        "was_missing": False,
        "lost": (),
        "items": items,
        "latest_before": "m-2",
        "repaired": Record(CheckpointState("m-1", ("m-1",))),
        "is_changed": True,
        **fields,
    }
    return RepairReport(**settings)  # type: ignore[arg-type]


class TestRepair:
    def test_everything_at_once(self) -> None:
        report = repair_report(
            RepairItem("m-1", "d/m-1", "stays"),
            RepairItem("m-2", "d/m-2", "dropped", fault=NotFoundError("gone", url="d/m-2.index")),
            RepairItem("/x/m-3", "/x/m-3", "stays", is_elsewhere=True),
            fault=FormatError("line 2 cannot be read", hint="Look."),
            lost=("# owner x", "# kept y"),
            is_written=True,
        )
        assert texts(table_lines(repair_table(report))) == [
            "   CHECKPOINT  RECORD   KEPT",
            "*  m-1         stays    -",
            "   m-2         dropped  -",
            "   /x/m-3      stays    -",
        ]
        assert texts(repair_lines(report, dry_run=False)) == [
            "dropped: m-2: gone [d/m-2.index]",
            "not checked, because outside of d: 1 checkpoint",
            "record: line 2 cannot be read. Look.",
            "2 lines of the record that ckptstore wrote cannot be read",
            "* latest: m-1 (the record named m-2)",
            "wrote d/checkpoint: 2 checkpoints",
        ]

    def test_what_another_repair_did_first(self) -> None:
        report = repair_report(RepairItem("m-1", "d/m-1", "stays"), latest_before="m-1", is_changed=False)
        assert texts(repair_lines(report, dry_run=False))[-1] == "the record is in order; nothing to repair"

    def test_long_lists_are_cut(self) -> None:
        items = [RepairItem(f"m-{n}", "u", "dropped", fault=NotFoundError("gone")) for n in range(30)]
        report = repair_report(RepairItem("m-1", "d/m-1", "stays"), *items)
        lines = texts(repair_lines(report, dry_run=True))
        assert lines[20] == "and 10 more; --json lists all"
        assert len(repair_object(report, dry_run=True)["checkpoints"]) == 31


class TestDiagnosis:
    FACTS = DiagnosisFacts(
        "s3://b/run",
        "s3",
        [
            Finding("list", "degraded", "cannot list \x1b[2J", hint="Allow it."),
            Finding("read", "ok", "the whole and a range of it", hint="not told"),
            failed("write", AccessError("denied", url="s3://b/run/x", hint="Ask.")),
        ],
    )

    def test_lines(self) -> None:
        assert texts(diagnosis_lines(self.FACTS)) == ["list: Allow it.", "s3://b/run: not usable: write"]

    def test_found_is_folded_between_words(self) -> None:
        lines = texts(table_lines(diagnosis_table(self.FACTS), 36))
        assert lines == [
            "CHECK  RESULT    FOUND",
            "list   degraded  cannot list \\x1b[2J",
            "read   ok        the whole and a",
            "                   range of it",
            "write  failed    denied",
            "                   [s3://b/run/x].",
            "                   Ask.",
        ]
