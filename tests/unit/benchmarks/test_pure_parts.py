"""The benchmarks' arithmetic: sets, ratios, verdicts, signatures, tables, pages and plots."""

from __future__ import annotations

import ast
import datetime
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from benchmarks import machine, page, table, view
from benchmarks.contenders.base import OPERATIONS
from benchmarks.contenders.registry import CONTENDERS, OURS
from benchmarks.parts import Part
from benchmarks.plot import plot, tick_step
from benchmarks.readme import readme_table, renew_readme
from benchmarks.rows import ROWS, SCENARIOS, unknown_names, work_of
from benchmarks.sets import Data, SetSpec, shapes_of
from benchmarks.sigv4 import canonical_query, signed_headers
from benchmarks.stats import fastest, ratios, spread, values_of, verdict

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20


# ------------------------------------------------------------------------------------------------------ sets


def test_the_large_set_has_121_tensors_and_the_size_asked_for():
    shapes = shapes_of(SetSpec("large", 1024 * MIB))
    size = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    assert len(shapes) == 121
    assert 0.99 < size / (1024 * MIB) <= 1
    assert list(shapes) == sorted(shapes)


def test_the_small_set_has_tensors_of_one_kibibyte():
    shapes = shapes_of(SetSpec("small", 20_000))
    assert len(shapes) == 20_000
    assert set(shapes.values()) == {(256,)}


def test_the_single_tensor_of_w_has_four_mebibytes():
    data = Data(SetSpec("large", 1024 * MIB))
    assert 4 * np.prod(data.shapes[data.single]) == 4 * MIB


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(SetSpec("large", 12 * MIB))


def test_each_tensor_of_the_source_is_the_expected_one(data):
    views = data.views(data.source(3))
    assert views.keys() == data.shapes.keys()
    for name, array in views.items():
        assert array.shape == data.shapes[name]
        assert np.array_equal(array, data.expected(name, 3)), name


def test_tensors_of_one_shape_differ(data):
    assert not np.array_equal(data.expected("layer00/out/w", 0), data.expected("layer01/out/w", 0))


def test_a_right_result_passes_and_another_rounds_does_not(data):
    views = data.views(data.source(3))
    data.check(views, 3)
    with pytest.raises(ValueError, match="wrong result"):
        data.check(views, 4)


def test_a_destination_never_passes_for_a_result(data):
    with pytest.raises(ValueError, match="wrong result"):
        data.check(data.views(data.destination()), 0)


def test_a_result_without_a_tensor_is_wrong(data):
    views = data.views(data.source(0))
    views.pop("embedding")
    with pytest.raises(ValueError, match="120 tensors instead of 121"):
        data.check(views, 0)


def test_a_flipped_bit_in_a_sample_is_noticed(data):
    flat = data.source(0)
    views = data.views(flat)
    views[data.samples[0]].view(np.uint32).flat[-1] ^= 1
    with pytest.raises(ValueError, match="differs"):
        data.check(views, 0)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_parts_of_all_ranks_are_the_whole_set_however_it_is_cut(axis):
    spec = SetSpec("sharded", 2 * MIB)
    whole = Part(spec)
    found = {name: np.zeros(shape, np.float32) for name, shape in whole.shapes.items()}
    for rank in range(4):
        part = Part(spec, rank, 4, axis)
        for name, box in part.views(part.source(3)).items():
            assert np.array_equal(box, part.expected(name, 3))
            start = part.start(name)
            found[name][tuple(slice(at, at + n) for at, n in zip(start, box.shape, strict=True))] = box
    assert len(found) == 24
    whole.check(found, 3, list(found))
    with pytest.raises(ValueError, match="differs"):
        whole.check(found, 4)


def test_a_rank_holds_a_quarter_of_what_is_sharded_and_all_that_is_replicated():
    part = Part(SetSpec("sharded", 256 * MIB), 1, 4)
    assert 0.99 * 256 * MIB < Data(part.spec).nbytes <= 256 * MIB
    assert part.start("layer00/w") == (part.shapes["layer00/w"][0], 0)
    assert part.columns.start("layer00/w") == (0, part.columns.shapes["layer00/w"][1])
    assert part.shapes["norm0"] == part.full_shapes["norm0"]
    assert part.nbytes == pytest.approx((7 / 8 / 4 + 1 / 8) * 256 * MIB, rel=0.01)


# --------------------------------------------------------------------------------------------------- figures


def test_spread_is_median_lowest_and_highest():
    assert asdict(spread([5.0, 1.0, 3.0])) == {"median": 3.0, "low": 1.0, "high": 5.0}


def test_ratios_are_of_the_rounds_that_both_took_part_in():
    assert ratios({0: 2.0, 1: 3.0, 2: 8.0}, {1: 6.0, 2: 4.0, 3: 1.0}) == [0.5, 2.0]


def test_the_fastest_has_the_lowest_median_and_who_did_not_run_does_not_count():
    entries = {"a": {0: 1.0, 1: 9.0, 2: 9.0}, "b": {0: 5.0, 1: 5.0, 2: 5.0}, "c": {}}
    assert fastest(entries, ("a", "b", "c")) == "b"
    assert fastest(entries, ("c", "d")) is None


def test_cpu_time_is_per_gibibyte_of_the_set():
    assert values_of({0: {"cpu_s": 0.5}}, "cpu_per_gib", 256 * MIB) == {0: 2.0}


def _row(**targets):
    target = {"at_most": 1.25, "of": ["raw", "other"], "who": OURS, "measure": "seconds"} | targets

    def rounds(*seconds: float) -> dict[str, dict[str, float]]:
        return {
            str(n): {"seconds": s, "cpu_s": s / 2, "peak_bytes": int(s * MIB)} for n, s in enumerate(seconds)
        }

    return {
        "id": "row",
        "title": "W, somewhere, <save>",
        "scenario": "large-minio",
        "operation": "save",
        "store": "http",
        "measure": "seconds",
        "note": "",
        "set_bytes": 1024 * MIB,
        "reference": ["raw", "other"],
        "targets": [target],
        "entries": [
            {"contender": OURS, "rounds": rounds(2.0, 2.4, 2.2), "failure": ""},
            {"contender": "raw", "rounds": rounds(2.0, 2.0, 2.0), "failure": ""},
            {"contender": "other", "rounds": rounds(4.0, 4.0, 4.0), "failure": ""},
            {"contender": "broken", "rounds": {}, "failure": "OSError: no"},
        ],
    }


def test_a_target_is_compared_with_the_fastest_round_by_round():
    row = _row()
    found = verdict(row, row["targets"][0])
    assert found.reference == "raw"
    assert found.value is not None
    assert found.value.median == pytest.approx(1.1)
    assert found.is_met is True
    # The highest ratio is 1.2.
    assert verdict(row, row["targets"][0] | {"at_most": 1.15}).is_met is True
    assert verdict(row, row["targets"][0] | {"at_most": 1.05}).is_met is False


@pytest.mark.parametrize(("at_most", "is_met"), [(0.9, False), (1.15, True)])
def test_a_target_without_a_reference_is_the_value_itself(at_most, is_met):
    row = _row(at_most=at_most, of=[], measure="cpu_per_gib")
    assert verdict(row, row["targets"][0]).is_met is is_met


@pytest.mark.parametrize("targets", [{"who": "broken"}, {"of": ["broken"]}, {"of": ["absent"]}])
def test_a_target_cannot_be_told_when_somebody_did_not_run(targets):
    row = _row(**targets)
    assert verdict(row, row["targets"][0]).is_met is None


# ------------------------------------------------------------------------------------------------------ rows


def test_rows_name_known_contenders_scenarios_and_operations():
    assert unknown_names() == set()
    for name, row in ROWS.items():
        if name != "import":
            assert row.scenario in SCENARIOS
            assert row.operation in OPERATIONS


def test_targets_are_about_contenders_of_their_row():
    for name, row in ROWS.items():
        for target in row.targets:
            assert {target.who, *target.of} <= set(row.contenders), name


def test_everybody_who_is_registered_is_in_a_row_and_has_its_code():
    assert {who for row in ROWS.values() for who in row.contenders} == CONTENDERS.keys()
    for who, spec in CONTENDERS.items():
        module, _, name = spec.code.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, who


def test_labels_have_room_in_the_plots():
    assert [spec.label for spec in CONTENDERS.values() if len(spec.label) > 30] == []


def test_whoever_restores_saves_before():
    work = work_of(ROWS)
    for scenario, operations in work.items():
        names = list(operations)
        for operation in set(names) - {"save", "async_save", "import"}:
            assert names.index("save") < names.index(operation), scenario
            assert set(operations[operation]) <= set(operations["save"])


def test_rows_of_one_operation_share_what_is_measured():
    work = work_of({name: ROWS[name] for name in ("local-save", "memory-local-save")})
    saves = work["large-local"]["save"]
    assert len(saves) == len(set(saves))
    assert list(work) == ["large-local"]


# ------------------------------------------------------------------------------------------------- signature


def test_the_signature_is_the_one_that_botocore_makes():
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    class Unsigned(S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:
            return "UNSIGNED-PAYLOAD"

    query = {"partNumber": "3", "uploadId": "a/b+c=~"}
    path = "/bucket/a key/ä.data"
    url = "http://localhost:9000/bucket/a%20key/%C3%A4.data?" + canonical_query(query)
    request = AWSRequest("PUT", url, headers={})
    Unsigned(Credentials("key", "secret"), "s3", "us-east-1").add_auth(request)
    now = datetime.datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    ours = signed_headers(
        "PUT", "localhost:9000", path, query, key="key", secret="secret", region="us-east-1", now=now
    )
    assert ours["authorization"] == request.headers["Authorization"]


# ---------------------------------------------------------------------------------------------------- output


@pytest.fixture
def results():
    def described(label: str, kind: str) -> dict[str, object]:
        return {
            "label": label,
            "kind": kind,
            "versions": {"lib": "1.2"},
            "synced": True,
            "checksummed": kind == "ours",
            "atomic": False,
        }

    return {
        "date": "2026-01-01",
        "seconds": 12,
        "machine": {
            "cores": 2,
            "processor": "P",
            "memory_bytes": 24 * 2**30,
            "system": "Linux 6.1",
            "file_system": "ext4",
            "huge_pages": "always",
            "load_before": 0.1,
            "python": "3.11",
        },
        "settings": {
            "rounds": 3,
            "slow_rounds": 1,
            "seed": 5,
            "large_bytes": 1024 * MIB,
            "small_count": 20_000,
        },
        "contenders": {
            OURS: described("ckptstore", "ours"),
            "raw": described("raw & quick", "limit"),
            "other": described("other", "peer"),
            "broken": described("broken", "peer"),
        },
        "imports": {},
        "rows": [_row()],
    }


def test_lines_are_in_order_and_failures_come_last(results):
    lines = view.lines_of(results, results["rows"][0])
    assert [line.who for line in lines] == ["raw", OURS, "other", "broken"]
    assert [line.is_reference for line in lines] == [True, False, False, False]
    assert lines[1].ratio is not None
    assert lines[1].ratio.median == pytest.approx(1.1)
    assert lines[3].failure == "OSError: no"


def test_whether_it_is_synced_is_only_said_of_a_local_disk(results):
    row = results["rows"][0]
    assert view.lines_of(results, row)[1].marks == "-c."
    assert view.lines_of(results, row | {"store": "local"})[1].marks == "sc."


def test_the_table_names_failures_and_verdicts(results):
    out = StringIO()
    table.show(results, Console(file=out, width=140))
    text = out.getvalue()
    assert "FAILED" in text
    assert "broken, large-minio, save: OSError: no" in text
    assert "reached: ckptstore 1.10 (1.00 – 1.20) × raw & quick, target ≤ 1.25" in text


def test_the_page_has_a_plot_for_each_row_and_names_failures(results, tmp_path):
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "gone.svg").write_text("old")
    written = page.write_page(json.loads(json.dumps(results)), tmp_path)
    assert [path.name for path in written] == ["performance.md", "row.svg"]
    assert not (tmp_path / "performance" / "gone.svg").exists()
    text = written[0].read_text()
    assert "broken, large-minio, save: OSError: no" in text
    assert "| raw & quick ◂ | `-..` | 2.00 | 2.00 – 2.00 |  |  | 1.00 | 2 | 3 |" in text


def _group_of(results, scenario, title):
    """Return the results of a run of one group alone, which has one row."""
    rows = [_row() | {"scenario": scenario, "title": title}]
    return json.loads(json.dumps(results | {"rows": rows}))


def test_a_group_that_was_measured_alone_takes_its_place_on_the_page(results, tmp_path, monkeypatch):
    monkeypatch.setattr(
        page, "_GROUPS", (("On MinIO", ("large-minio",)), ("Ranks", ("r",)), ("Last", ("l",)))
    )
    monkeypatch.setattr(page, "ROWS", {"row": SimpleNamespace(scenario="r")})
    last = _row() | {"id": "last", "scenario": "l", "title": "T: last"}
    page.write_page(results | {"rows": [_row(), last]}, tmp_path)
    before = (tmp_path / "performance.md").read_text()
    group = _group_of(results, "r", "T: four ranks") | {"date": "2026-02-02"}
    for _ in range(2):
        # Once more: it is replaced.
        page.add_to_page(group, tmp_path)
        text = (tmp_path / "performance.md").read_text()
        added = [line for line in text.splitlines() if line not in before.splitlines()]
        assert added[0].startswith("| T: four ranks | reached: ckptstore 1.10")
        assert "## Ranks" in added
        assert any("Measured by themselves, on 2026-02-02: 2 cores" in line for line in added)
        headings = [line for line in text.splitlines() if line.startswith("## ")]
        assert headings[-4:] == ["## On MinIO", "## Ranks", "## Last", "## Versions"]
        assert set(before.splitlines()) <= set(text.splitlines())
        assert text.count("### T: four ranks") == text.count("| T: four ranks |") == 1


def test_a_group_without_all_its_rows_does_not_take_the_place_of_one(results, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_GROUPS", (("Ranks", ("r",)),))
    rows = {name: SimpleNamespace(scenario="r") for name in ("row", "another")}
    monkeypatch.setattr(page, "ROWS", rows)
    with pytest.raises(ValueError, match="Ranks: the run has no another"):
        page.add_to_page(_group_of(results, "r", "T"), tmp_path)


def test_the_readme_shows_the_figures_of_the_page_and_what_was_missed():
    page = """\
| W, local, durable save | reached: ckptstore 0.90 (0.80 – 1.00) × limit, target ≤ 1.10 |
| K, local, save | **MISSED: ckptstore 1.30 (1.20 – 1.40) × safetensors, target ≤ 1.20** |

### K, local, save

| | marks | median ms | min – max |
|---|---|---:|---:|
| safetensors ◂ | `...` | 78.2 | 75.2 – 106.4 |
| **ckptstore** | `sca` | 1,079.6 | 75.3 – 82.4 |

### W, local, durable save

| | marks | median s | min – max |
|---|---|---:|---:|
| TensorFlow | `.c.` | **failed** | |
"""
    assert readme_table(page).splitlines() == [
        "| what | ckptstore | others |",
        "|---|---|---|",
        "| K: save to disk | 1,079.6 ms | safetensors 78.2 |",
        "",
        "1 of 2 targets were reached. Missed:",
        "",
        "* K, local, save: ckptstore 1.30 (1.20 – 1.40) × safetensors, target ≤ 1.20",
    ]
    readme = "before\n<!-- performance: x -->\nold\n<!-- end of performance -->\nafter\n"
    assert renew_readme(page, readme) == readme.replace("old\n", readme_table(page))
    with pytest.raises(ValueError, match="0 places"):
        renew_readme(page, "no marks")


def test_a_plot_is_well_formed_and_drawn_to_scale(results):
    row = results["rows"][0]
    lines = view.lines_of(results, row)
    tree = ElementTree.fromstring(plot(row["title"], "s", 2, lines))
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(box.get("width", 0)) for box in tree.iter(space + "rect") if box.get("height") == "15"]
    assert bars == [pytest.approx(bars[0] * factor, abs=0.2) for factor in (1, 1.1, 2)]
    texts = [text.text for text in tree.iter(space + "text")]
    assert "W, somewhere, <save>" in texts
    assert "Failed or did not run: broken" in texts


@pytest.mark.parametrize(
    ("highest", "step"), [(1.0, 0.1), (0.9, 0.1), (7.0, 1.0), (19.0, 2.0), (906.0, 100.0), (0.013, 0.002)]
)
def test_ticks_stand_at_round_values(highest, step):
    assert tick_step(highest) == step


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = f"/dev/a / ext4 rw 0 0\n/dev/b {tmp_path} xfs rw 0 0\ntmpfs {tmp_path}x tmpfs rw 0 0\n"
    assert machine.file_system(tmp_path / "below", mounts) == "xfs"
    assert machine.file_system(tmp_path / "below", "\n".join(reversed(mounts.splitlines()))) == "xfs"
    assert machine.file_system(Path("/"), mounts) == "ext4"
