from __future__ import annotations

import numpy as np
import pytest

from ckptstore.format.entry import HEADER_KEY, BundleEntry, BundleHeader, encode_entry, encode_header
from ckptstore.format.table_builder import TableBuilder
from ckptstore.train.bundle_writer import BundleWriter
from tests.cli.tensorflow_golden import golden

SHARDED = """\
02_sharded_devices/sh  (3 data files)
TENSOR            DTYPE    SHAPE       SIZE  SHARDS
cell/psi_99       float32  [2, 5, 1]   40 B  0
delta/iota_92     int64    [3, 1]      24 B  0
dense/block/lstm  float32  []           4 B  1
dense_14          float64  [5, 2]      80 B  1
embed/cell        float64  [1, 3, 3]   72 B  1
kappa/beta/block  float64  [6, 2, 1]   96 B  0
kernel            float64  [5]         40 B  2
lstm_12           float64  [1]          8 B  2
zeta              int64    [4]         32 B  0
zeta_75           int64    [1, 6, 6]  288 B  2
10 tensors, 91 parameters, 684 B in all
"""

GRID = """\
03_partitioned/grid  (1 data file)
TENSOR             DTYPE      SHAPE          SIZE  SLICES
café/w             complex64  [4, 3, 2]     192 B       2
eps/lstm/chi       int32      [70, 130]  35.5 KiB       4
full_via_spec      complex64  [4, 3, 2]     192 B
full_via_spec2     complex64  [4, 3, 2]     192 B
kappa/pool/gru_63  float32    [9000]     35.2 KiB       2
5 tensors, 18,172 parameters, 71.3 KiB in all
"""

V1 = """\
05_v1_format/v1.ckpt-7  (V1 format)
TENSOR                DTYPE    SHAPE    SIZE
alpha/kappa/beta_11   int64    [2, 2]   32 B
beta                  bool     [4]       4 B
bias                  int16    [2]       4 B
chi/embed/phi_54      uint8    [6]       6 B
conv/upsilon/attn_23  float32  [0, 3]    0 B
head                  float32  [3, 4]   48 B
kappa/dense/eps       int32    [5]      20 B
kernel/embed/kernel   string   [3]     347 B
nu/xi/psi             float64  []        8 B
upsilon               int8     [3]       3 B
10 tensors, 40 parameters, 472 B in all
"""


@pytest.fixture(autouse=True)
def _in_fixtures(fixtures_dir, monkeypatch):
    monkeypatch.chdir(fixtures_dir)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("02_sharded_devices/sh", SHARDED), ("03_partitioned/grid", GRID), ("05_v1_format/v1.ckpt-7", V1)],
    ids=["sharded", "sliced", "v1"],
)
def test_table(run, prefix, expected):
    result = run("inspect", prefix)
    assert (result.code, result.out, result.err) == (0, expected, "")


def test_big_endian_is_mentioned(run):
    assert run("inspect", "14_crafted/be").out.startswith("14_crafted/be  (1 data file, big-endian)\n")


def test_excluded_tensors_do_not_count(run):
    lines = run("inspect", "02_sharded_devices/sh", "--count-exclude-pattern", "^zeta").out.splitlines()
    assert lines[-2:] == [
        "not counted: 2 tensors, 40 parameters match ^zeta",
        "8 tensors, 51 parameters, 684 B in all",
    ]


@pytest.mark.parametrize(
    ("file", "prefix"),
    [
        ("02_sharded_devices/sh.index", "02_sharded_devices/sh"),
        ("02_sharded_devices/sh.data-00001-of-00003", "02_sharded_devices/sh"),
        ("09_with_meta/ref.meta", "09_with_meta/ref"),
        ("05_v1_format/v1sh.ckpt-8-00001-of-00003", "05_v1_format/v1sh.ckpt-8-?????-of-00003"),
    ],
)
def test_a_file_stands_for_its_checkpoint(run, file, prefix):
    result = run("inspect", file)
    assert result.code == 0
    assert result.out == run("inspect", prefix).out
    assert result.err == f"ckptstore: {file} names a file of the checkpoint {prefix}\n"


@pytest.mark.parametrize("target", ["10_checkpoint_record/manager", "10_checkpoint_record/manager/"])
def test_a_directory_stands_for_its_latest_checkpoint(run, target):
    result = run("inspect", target)
    assert result.code == 0
    assert result.out.startswith("10_checkpoint_record/manager/ck-5  (1 data file)\n")
    assert result.err == f"ckptstore: the latest checkpoint in {target} is ck-5\n"


def test_a_record_stands_for_the_checkpoint_that_it_names(run):
    result = run("inspect", "10_checkpoint_record/manager/checkpoint")
    assert result.out.startswith("10_checkpoint_record/manager/ck-5  ")


def test_the_current_directory_works(run, monkeypatch):
    monkeypatch.chdir("10_checkpoint_record/manager")
    for target in (".", "checkpoint"):
        result = run("inspect", target)
        assert (result.code, result.err) == (0, "ckptstore: the latest checkpoint in . is ck-5\n")


def test_a_directory_is_not_mistaken_for_a_prefix_beside_it(run, tmp_path, save, monkeypatch):
    save(tmp_path / "run")
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "inner-1")
    monkeypatch.chdir(tmp_path / "run")
    assert "inner-1  (1 data file)" in run("inspect", ".").out
    monkeypatch.chdir(tmp_path)
    assert run("inspect", "run").out.startswith("run  (1 data file)")
    assert run("inspect", "run/").out.startswith("run/inner-1  (1 data file)")


def test_names_and_values_are_those_of_the_tensorflow_tool(run):
    expected = golden("sharded")
    assert run("inspect", "02_sharded_devices/sh", "--all-tensor-names").out == expected["names"]
    assert run("inspect", "02_sharded_devices/sh", "--all-tensors").out == expected["values"]
    assert run("inspect", "02_sharded_devices/sh", "--tensor-name", "zeta").out == expected["tensor zeta"]


def test_variants_have_no_value_to_show(run):
    result = run("inspect", "07_all_dtypes/variant", "--all-tensors")
    assert (result.code, result.out) == (0, golden("variants")["values"])


def test_print_options(run, tmp_path, save):
    before = np.get_printoptions()
    prefix = save(tmp_path / "m", w=np.linspace(0, 1, 2000))
    short = run("inspect", prefix, "--tensor-name", "w").out
    options = ("--printoptions", "threshold=100000", "--printoptions", "precision=2")
    assert "..." in short
    long = run("inspect", prefix, "--tensor-name", "w", *options).out
    assert "..." not in long
    assert "1.00e+00]" in long
    assert np.get_printoptions() == before


def test_json(run):
    result = run("inspect", "03_partitioned/grid", "--json")
    found = result.json
    assert (result.code, result.err) == (0, "")
    assert found["schema"] == "ckptstore.inspect/1"
    assert found["prefix"] == "03_partitioned/grid"
    assert (found["format_version"], found["num_shards"], found["big_endian"]) == (2, 1, False)
    assert found["total"] == {"tensors": 5, "parameters": 18172, "size_bytes": 36400 + 36000 + 3 * 192}
    first = found["tensors"][0]
    assert (first["name"], first["dtype"], first["shape"]) == ("café/w", "complex64", [4, 3, 2])
    assert [piece["size_bytes"] for piece in first["pieces"]] == [48, 144]
    assert len(first["slices"]) == 2


def test_json_with_values(run, tmp_path, save):
    w = np.array([[1.5, np.nan]], np.float32)
    prefix = save(tmp_path / "m", s=[b"text", b"\xff"], w=w, n=np.int64(3))
    found = run("inspect", prefix, "--all-tensors", "--json").json
    assert {tensor["name"]: tensor["value"] for tensor in found["tensors"]} == {
        "n": 3,
        "s": ["text", {"base64": "/w=="}],
        "w": [[1.5, "NaN"]],
    }
    found = run("inspect", prefix, "--tensor-name", "n", "--json").json
    assert [tensor["name"] for tensor in found["tensors"]] == ["n"]
    assert found["total"]["tensors"] == 3


def test_json_keeps_notes_apart(run):
    result = run("inspect", "02_sharded_devices", "--json")
    assert result.json["prefix"] == "02_sharded_devices/sh"
    assert result.err_objects == [
        {"schema": "ckptstore.note/1", "message": "the latest checkpoint in 02_sharded_devices is sh"}
    ]


@pytest.fixture
def hostile(tmp_path):
    prefix = tmp_path / "m"
    with BundleWriter(prefix) as writer:
        writer.add("\x1b[2J\x1b]0;owned\x07", np.float32(1))
        writer.add("a\nok  m  1 tensor", np.float32(2))
        writer.add("w\u202egnp", np.float32(3))
        writer.add(b"\xff\xfe".decode("utf-8", "surrogateescape"), np.float32(4))
        writer.add("\x00odd", np.array([b"\x1b[31m", b"\n"], object))
    return prefix


@pytest.mark.parametrize("flags", [(), ("--all-tensors",), ("--all-tensor-names",)])
def test_hostile_names_and_values_do_not_reach_the_terminal(run, hostile, flags):
    result = run("inspect", hostile, *flags)
    assert result.code == 0
    assert all(line.isprintable() for line in result.out.splitlines())
    assert "\\x1b[2J\\x1b]0;owned\\x07" in result.out
    assert "a\\nok  m" in result.out
    assert "\\u202egnp" in result.out
    assert "\\xff\\xfe" in result.out


def test_hostile_names_are_exact_in_json(run, hostile):
    result = run("inspect", hostile, "--json")
    assert result.out.isascii()
    names = {tensor["name"] for tensor in result.json["tensors"]}
    assert {"\x1b[2J\x1b]0;owned\x07", "w\u202egnp", "\udcff\udcfe"} <= names


def test_a_hostile_file_name_does_not_reach_the_terminal(run, tmp_path, save):
    directory = tmp_path / "run"
    save(directory / "m-1")
    (directory / "m-1.index").rename(directory / "m\x1b[31m-1.index")
    (directory / "m-1.data-00000-of-00001").rename(directory / "m\x1b[31m-1.data-00000-of-00001")
    for result in (run("inspect", directory), run("ls", directory), run("verify", directory)):
        assert result.code == 0
        assert "\x1b" not in result.out + result.err
        assert "m\\x1b[31m-1" in result.out


@pytest.fixture
def half_damaged(tmp_path, save):
    """A checkpoint whose entry for `bad` contradicts itself; that for `w` is sound."""
    prefix = save(tmp_path / "m")
    index = TableBuilder()
    index.add(HEADER_KEY, encode_header(BundleHeader(1)))
    index.add(b"bad", encode_entry(BundleEntry(1, (3,), size_bytes=8)))
    index.add(b"w", encode_entry(BundleEntry(1, (2,), size_bytes=8, masked_crc32c=0x35E53C59)))
    (tmp_path / "m.index").write_bytes(index.finish())
    return prefix


@pytest.mark.parametrize("flags", [(), ("--all-tensors",), ("--all-tensor-names",)])
def test_a_damaged_entry_does_not_hide_the_others(run, half_damaged, flags):
    result = run("inspect", half_damaged, *flags)
    assert result.code == 4
    assert "damaged: bad: " in result.out
    assert "float32" in result.out
    problem = run("inspect", half_damaged, "--json", *flags).json["tensors"][0]["problem"]
    assert (problem["code"], problem["tensor"]) == ("format", "bad")


def test_a_sound_tensor_of_a_damaged_checkpoint_is_shown(run, half_damaged):
    result = run("inspect", half_damaged, "--tensor-name", "w")
    assert (result.code, result.out.splitlines()[1]) == (0, "[1. 2.]")
    assert run("inspect", half_damaged, "--tensor-name", "bad").code == 4


def test_damaged_bytes_do_not_hide_the_other_values(run, tmp_path, save):
    prefix = save(tmp_path / "m", a=np.array([1, 2], np.float32), b=np.array([3, 4], np.float32))
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(b"\xff" + data.read_bytes()[1:])
    result = run("inspect", prefix, "--all-tensors")
    assert result.code == 4
    lines = result.out.splitlines()
    assert lines[0] == "tensor: a (float32) [2]"
    assert lines[1].startswith("damaged: the checksum of bytes 0 to 8 does not match [tensor 'a'")
    assert lines[2:4] == ["tensor: b (float32) [2]", "[3. 4.]"]
    first, second = run("inspect", prefix, "--all-tensors", "--json").json["tensors"]
    assert (first["problem"]["code"], "value" in first) == ("checksum", False)
    assert second["value"] == [3.0, 4.0]


def test_a_missing_shard_does_not_hide_the_index(run, tmp_path, save):
    prefix = save(tmp_path / "m")
    (tmp_path / "m.data-00000-of-00001").unlink()
    assert run("inspect", prefix).code == 0
    result = run("inspect", prefix, "--tensor-name", "w")
    assert (result.code, result.out) == (4, "")
    assert "m.data-00000-of-00001" in result.err
