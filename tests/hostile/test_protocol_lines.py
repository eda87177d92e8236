"""Protocol lines that a stranger wrote into the record: a save deletes nothing for them but its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.registry import locate
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import quiet, typed
from tests.hostile.foreign_files import OWNER, VALUES, build, check_only_ours_is_gone, protocol, save_steps
from tests.hostile.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def version_of(path: Path) -> str:
    """Return what a local storage calls the version of a file."""
    return locate(path).storage.head(str(path)).version


def pending(root: Path, prefix: str, *, index: str | None = None, suffix: str = "meta") -> str:
    """Return a pending line for `prefix`, with the version of the index that is really there."""
    path = root / "run" / f"{prefix}.index" if index is None else root / index
    version = version_of(path) if path.exists() else "1:1:1:1"
    name, suffix = json.dumps(prefix), json.dumps(suffix)
    return f'pending {name} version="{version}" shards="00000-of-00001" suffix={suffix}'


def superseded(prefix: str, *shards: str) -> str:
    return f'superseded {json.dumps(prefix)} shards="{" ".join(shards) or "00000-of-00001"}"'


DELETES: dict[str, Callable[[Path], list[str]]] = {
    "pending in the parent": lambda root: [
        pending(root, "../elsewhere/model-90", index="elsewhere/model-90.index")
    ],
    "pending at an absolute path": lambda root: [
        pending(root, f"{root}/elsewhere/model-90", index="elsewhere/model-90.index")
    ],
    "pending below a directory of its own name": lambda root: [
        pending(root, "model-5./../../elsewhere/model-90", index="elsewhere/model-90.index")
    ],
    "pending in a directory below": lambda root: [
        pending(root, "sub/model-70", index="run/sub/model-70.index")
    ],
    "pending of another owner": lambda root: [
        pending(root, name) for name in ("model.ckpt-12", "modeling-7", "other")
    ],
    "pending of no checkpoint": lambda root: [
        pending(root, name) for name in ("", ".", "..", "/", "*", "model-*")
    ],
    "pending with a suffix that climbs": lambda root: [
        pending(root, "model-5", suffix=suffix)
        for suffix in ("/../../elsewhere/victim", "/../notes.txt", "/../../x.index", "./../notes.txt")
    ],
    "pending without index and a suffix that climbs": lambda root: [
        pending(root, "model", suffix="ckpt-12.index"),
        pending(root, "model", suffix="ckpt-12.data-00000-of-00001"),
        pending(root, "model", suffix="ckpt-12.meta"),
        pending(root, "model-99", suffix=""),
    ],
    "pending with the suffix of another file": lambda root: [
        pending(root, "model-3", suffix="h5"),
        pending(root, "model-5", suffix="json"),
    ],
    "pending with a NUL": lambda root: [pending(root, "model-5", suffix="\0"), pending(root, "model-5\0")],
    "pending with the version of another file": lambda root: [
        pending(root, "model-5", index="elsewhere/model-90.index")
    ],
    "superseded elsewhere": lambda root: [
        superseded(name)
        for name in (
            "../elsewhere/model-90",
            f"{root}/elsewhere/model-90",
            "sub/model-70",
            "model.ckpt-12",
            "other",
        )
    ],
    "superseded data that an index names": lambda root: [superseded("model-5"), superseded("model-3")],
    "superseded data that a checkpoint not listed names": lambda root: [superseded("model-4")],
    "superseded under every count": lambda root: [
        superseded(f"model-{step}", *(f"00000-of-{count:05d}" for count in range(1, 100_000)))
        for step in (6, 7)
    ],
    "shards with numbers without end": lambda root: [superseded("model-5", "9999999999-of-9999999999")],
    "ranges of shards, one of which an index names": lambda root: [
        superseded("model-5", "00000..00001-of-00002")
    ],
    "a range of shards without end": lambda root: [superseded("model-5", "00000..9999999998-of-9999999999")],
    "a range of every shard there can be": lambda root: [superseded("model-100", "00000..99998-of-99999")],
    "ranges of shards beyond all bounds": lambda root: [
        superseded(f"model-{number}", "00000..99998-of-99999") for number in range(100, 20_100)
    ],
    "twenty thousand pending lines": lambda root: [
        f'pending "model-{number}" version="1" shards="00000-of-00001"' for number in range(100, 20_100)
    ],
    "twenty thousand superseded lines": lambda root: [superseded(f"model-{n}") for n in range(100, 20_100)],
    "twenty thousand owners": lambda root: [
        f'owner "other{number}" epoch=1 run="r" host="h" time=1 write="0"' for number in range(20_000)
    ],
    "pins of what is not ours": lambda root: [
        f"pin {json.dumps(name)}"
        for name in (
            "../elsewhere/model-90",
            f"{root}/elsewhere/model-90",
            "",
            ".",
            "*",
            "model-*",
            "model-9\0",
        )
    ],
    "twenty thousand pins, and as many deletes of these": lambda root: [
        *(f'pin "model-{number}"' for number in range(100, 20_100)),
        *(f'pending "model-{n}" version="1" shards="00000-of-00001"' for n in range(100, 20_100)),
    ],
    "a pin that is to be deleted": lambda root: ['pin "other"', pending(root, "other")],
    "notes of what is not ours": lambda root: [
        f"note {json.dumps(name)} loss=nan"
        for name in ("../elsewhere/model-90", "other", "", "*", "model-5\0")
    ],
    "twenty thousand notes": lambda root: [
        f'note "model-{number}" loss=1e308 loss=-inf' for number in range(100, 20_100)
    ],
    "a note of a hundred thousand metrics": lambda root: [
        'note "model-5"' + "".join(f" m{number}=1" for number in range(100_000))
    ],
    "a note with a name of a million escapes": lambda root: [
        'note "model-5" "' + "\\u0000" * 1_000_000 + '"=1'
    ],
    "owner in a far future": lambda root: [
        'owner "model" epoch=5 run="r" host="h" time=1e300 write="0" highest_step=100 next_keep=inf'
    ],
    "owner outside of time": lambda root: [
        'owner "model" epoch=5 run="r" host="h" time=-inf write="0" next_keep=-inf'
    ],
    "owner whose time is not a number": lambda root: [
        'owner "model" epoch=5 run="r" host="h" time=nan write="0" next_keep=nan last_preserved=nan'
    ],
    "owner with numbers of a thousand digits": lambda root: [
        f'owner "model" epoch={"9" * 4300} run="r" host="h" time=1 write="0" highest_step={"9" * 4300}'
    ],
    "owner with negative numbers": lambda root: [
        f'owner "model" epoch=-{"9" * 4299} run="r" host="h" time=-1 write="0" highest_step=-{"9" * 4299}'
    ],
}


@pytest.mark.parametrize("name", DELETES)
def test_protocol_lines_of_a_stranger_delete_nothing_but_our_own(
    name: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = build(tmp_path)
    lines = [] if name.startswith("owner") else [OWNER.replace("highest_step=5", "highest_step=100")]
    (directory / "checkpoint").write_bytes(protocol(*lines, *DELETES[name](tmp_path)))
    before = tree_of(tmp_path)
    ran = sandbox.run(save_steps, str(directory), 6, 7, 8)
    failed = [type(outcome.error) for outcome in ran.value]
    if name == "superseded under every count":
        assert failed == [ck.ConflictError, ck.ConflictError, type(None)]
    else:
        assert failed == [type(None)] * 3, ran.value
    check_only_ours_is_gone(tmp_path, before)
    for index in directory.glob("*.index"):
        report = verify_bundle(locate(index.with_suffix("")))
        assert report.ok, report
    assert ck.latest_checkpoint(directory) == str(directory / "model-8")
    assert (directory / "checkpoint").stat().st_size < 20 << 20


def test_a_pending_line_deletes_only_graphs_whose_suffix_the_owner_has(tmp_path: Path) -> None:
    directory = build(tmp_path)
    line = pending(tmp_path, "model-3", suffix="h5")
    (directory / "checkpoint").write_bytes(protocol(OWNER, line, paths=("model-5",)))
    ck.Saver(run="after", max_to_keep=5).save(VALUES, directory / "model", 6)
    assert not (directory / "model-3.index").exists()
    assert (directory / "model-3.h5").read_bytes() == b"mine"
    assert line not in (directory / "checkpoint").read_text()


def test_a_pending_line_for_what_is_listed_does_nothing(tmp_path: Path) -> None:
    directory = build(tmp_path)
    lines = [pending(tmp_path, "model-3"), pending(tmp_path, "model-5")]
    (directory / "checkpoint").write_bytes(protocol(OWNER, *lines))
    ck.Saver(run="after", max_to_keep=5).save(VALUES, directory / "model", 6)
    for step in (3, 5, 6):
        assert verify_bundle(locate(directory / f"model-{step}")).ok
    assert "# pending" not in (directory / "checkpoint").read_text()


@pytest.mark.parametrize("suffix", ["graph", "meta"])
def test_the_graph_of_a_save_that_was_killed_before_it_deleted_goes(suffix: str, tmp_path: Path) -> None:
    saver = ck.Saver(run="before", max_to_keep=1)
    for step in (1, 2):
        saver.save(VALUES, tmp_path / "model", step, meta_graph_suffix=suffix)
    # As before the deletes of the last save.
    ck.Saver(run="other").save(VALUES, tmp_path / "model", 1, write_state=False, meta_graph_suffix=suffix)
    record = tmp_path / "checkpoint"
    text = record.read_text()
    version = version_of(tmp_path / "model-1.index")
    line = f'# pending "model-1" version="{version}" shards="00000-of-00001" suffix="{suffix}"\n'
    header, _, rest = text.partition("\n")
    record.write_text(f"{header}\n{line}{rest}")
    ck.Saver(run="after", max_to_keep=1).save(VALUES, tmp_path / "model", 3, meta_graph_suffix=suffix)
    assert not list(tmp_path.glob("model-1.*"))


@pytest.mark.parametrize("time_s", ["1e300", "-1e300", "inf", "-inf", "253402300800"])
def test_fence_by_a_stranger_with_an_impossible_time_is_still_a_fence(time_s: str, tmp_path: Path) -> None:
    saver = ck.Saver(run="mine", clock=lambda: 1000.0)
    saver.save(VALUES, tmp_path / "model", 1)
    line = f'owner "model" epoch=9 run="\\u001b[2Jx" host="h" time={time_s} write="0"'
    (tmp_path / "checkpoint").write_bytes(protocol(line, latest="model-1", paths=("model-1",)))
    outcome = typed(saver.save, VALUES, tmp_path / "model", 2)
    assert isinstance(outcome.error, ck.FencedError)
    assert not list(tmp_path.glob("model-2*"))


def test_stranger_in_the_record_cannot_make_a_window_of_ours_out_of_links(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = build(tmp_path)
    for kind in ("index", "data-00000-of-00001", "meta"):
        (directory / f"model-2.{kind}").symlink_to(tmp_path / "elsewhere" / f"model-90.{kind}")
    (directory / "model-1").symlink_to(tmp_path / "elsewhere")
    (directory / "checkpoint").write_bytes(
        protocol(OWNER, paths=("model-1", "model-1/model-90", "model-2", "model-3", "model-5"))
    )
    before = tree_of(tmp_path)
    saved = sandbox.run(save_steps, str(directory), 6, 7, 8).value
    assert [outcome.error for outcome in saved] == [None] * 3
    after = tree_of(tmp_path)
    gone = {name for name in before if name not in after}
    # The links themselves may go; what they lead to stays.
    assert {name for name in gone if not name.startswith(("run/model-3.", "run/model-5."))} <= {
        "run/model-2.index",
        "run/model-2.data-00000-of-00001",
        "run/model-2.meta",
    }
    assert {name: after[name] for name in before if name.startswith("elsewhere")} == {
        name: what for name, what in before.items() if name.startswith("elsewhere")
    }


LINES_OF_NOTES = {
    "best of all": ['note "model-3" loss=-1e308', 'note "model-5" loss=-inf'],
    "no number": ['note "model-3" loss=nan', 'note "model-5" loss=-nan'],
    "not one of ours": ['note "other" loss=-5', 'note "../elsewhere/model-90" loss=-6'],
    "cut off": ['note "model-3" loss=', 'note "model-5'],
    "two of one": ['note "model-3" loss=5', 'note "model-3" loss=-5 loss=7'],
    "intent with metrics that are none": [
        'intent "model-6" form="steps" run="r" index="00000001" metrics="loss"'
    ],
}


@pytest.mark.parametrize("name", LINES_OF_NOTES)
def test_notes_of_a_stranger_choose_among_ours_only(name: str, tmp_path: Path) -> None:
    directory = build(tmp_path)
    (directory / "checkpoint").write_bytes(protocol(OWNER, *LINES_OF_NOTES[name]))
    before = tree_of(tmp_path)
    saver = ck.Saver(retention=[ck.Best(1, "loss")], run="after", clock=lambda: 2000.0)
    with quiet():
        for step in (6, 7, 8):
            saver.save(VALUES, directory / "model", step, metrics={"loss": float(step)})
    check_only_ours_is_gone(tmp_path, before)
    left = {path.stem for path in directory.glob("model-[35678].index")}
    if name == "best of all":
        # What is not finite is never the best.
        assert left == {"model-3", "model-8"}
    elif name == "two of one":
        assert left == {"model-6", "model-8"}
    assert "model-8" in left
    assert ck.latest_checkpoint(directory) == str(directory / "model-8")
