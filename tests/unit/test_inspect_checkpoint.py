from __future__ import annotations

import numpy as np
import pytest

from ckptstore import inspect_checkpoint
from ckptstore.errors import ChecksumError, FormatError, NotFoundError, UsageError
from ckptstore.train.bundle_writer import BundleWriter
from tests.cli.tensorflow_golden import CASES, calls_for, golden

TITLES = [(name, title) for name, case in CASES.items() for title, _ in calls_for(case)]


def test_the_golden_text_is_the_documented_one():
    # By hand: names sorted, TensorFlow's type names, shapes as Python lists, then the total.
    assert golden("variants")["values"] == (
        "tensor: list (variant) []\n"
        "<not convertible to a numpy dtype>\n"
        "tensor: lists (variant) [2]\n"
        "<not convertible to a numpy dtype>\n"
        "tensor: plain (float32) []\n"
        "1.5\n"
        "# Total number of params: 4\n"
    )
    assert golden("only-empty")["index"] == "theta (DT_FLOAT) [0,327]\n\n# Total number of params: 0\n"


@pytest.mark.parametrize(("name", "title"), TITLES, ids=[f"{name}: {title}" for name, title in TITLES])
def test_prints_what_the_tensorflow_tool_prints(name, title, fixtures_dir, monkeypatch, capsys):
    monkeypatch.chdir(fixtures_dir)
    case = CASES[name]
    inspect_checkpoint.print_tensors_in_checkpoint_file(case.prefix, *dict(calls_for(case))[title])
    printed, expected = capsys.readouterr().out, golden(name)[title]
    if name.startswith("v1") and title in ("index", "excluded"):
        # TensorFlow lists the tensors of a V1 file in the order of a hash table.
        assert sorted(printed.splitlines()) == sorted(expected.splitlines())
    else:
        assert printed == expected


def test_v1_tensors_that_tensorflow_refuses_are_printed(fixtures_dir, capsys):
    prefix = fixtures_dir / "05_v1_format" / "v1slices"
    inspect_checkpoint.print_tensors_in_checkpoint_file(prefix, "p", False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tensor: p (float32) [6, 5]"
    assert len(printed) == 8
    assert printed[-1] == "# Total number of params: 42"


def test_positional_and_keyword_arguments_as_in_tensorflow(tmp_path, capsys):
    with BundleWriter(tmp_path / "m") as writer:
        writer.add("w", np.array([1, 2], np.float32))
    inspect_checkpoint.print_tensors_in_checkpoint_file(
        file_name=str(tmp_path / "m"),
        tensor_name=None,
        all_tensors=False,
        all_tensor_names=False,
        count_exclude_pattern="",
    )
    assert capsys.readouterr().out == "w (DT_FLOAT) [2]\n\n# Total number of params: 2\n"


def test_a_directory_stands_for_its_latest_checkpoint(fixtures_dir, capsys):
    inspect_checkpoint.print_tensors_in_checkpoint_file(
        fixtures_dir / "10_checkpoint_record" / "manager", "", False, True
    )
    assert capsys.readouterr().out.startswith("tensor: ")


def test_a_missing_checkpoint_is_raised_and_not_printed(tmp_path, capsys):
    with pytest.raises(NotFoundError):
        inspect_checkpoint.print_tensors_in_checkpoint_file(tmp_path / "none", "", False)
    assert capsys.readouterr().out == ""


def test_damage_is_raised(tmp_path):
    with BundleWriter(tmp_path / "m") as writer:
        writer.add("w", np.array([1, 2], np.float32))
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(b"\xff" + data.read_bytes()[1:])
    with pytest.raises(ChecksumError):
        inspect_checkpoint.print_tensors_in_checkpoint_file(tmp_path / "m", "w", False)
    (tmp_path / "m.index").write_bytes(b"x" * 100)
    with pytest.raises(FormatError):
        inspect_checkpoint.print_tensors_in_checkpoint_file(tmp_path / "m", "", False)


def test_a_bad_pattern_is_raised_before_anything_is_printed(tmp_path, capsys):
    with BundleWriter(tmp_path / "m") as writer:
        writer.add("w", np.array([1, 2], np.float32))
    with pytest.raises(UsageError, match="regular expression"):
        inspect_checkpoint.print_tensors_in_checkpoint_file(tmp_path / "m", "", False, False, "[")
    assert capsys.readouterr().out == ""


def test_a_name_that_is_not_utf8_does_not_end_the_report(tmp_path, capsys):
    name = b"w\xff".decode("utf-8", "surrogateescape")
    with BundleWriter(tmp_path / "m") as writer:
        writer.add(name, np.float32(1))
    inspect_checkpoint.print_tensors_in_checkpoint_file(tmp_path / "m", "", True)
    assert capsys.readouterr().out.splitlines()[0] == "tensor: w\\xff (float32) []"
    inspect_checkpoint.print_tensors_in_checkpoint_file(tmp_path / "m", name, False)
    assert capsys.readouterr().out.splitlines()[0] == "tensor: w\\xff (float32) []"


def test_storage_options_reach_the_backend(tmp_path):
    with pytest.raises(UsageError, match="unknown storage option"):
        inspect_checkpoint.print_tensors_in_checkpoint_file(
            tmp_path / "m", "", False, storage_options={"a": 1}
        )


def test_memory_urls_work(capsys):
    with BundleWriter("memory://inspect-test/m") as writer:
        writer.add("w", np.array([1, 2], np.float32))
    inspect_checkpoint.print_tensors_in_checkpoint_file("memory://inspect-test/m", "w", False)
    assert capsys.readouterr().out == "tensor: w (float32) [2]\n[1. 2.]\n# Total number of params: 2\n"
