"""``python -m ckptstore.inspect_checkpoint`` in the place of TensorFlow's tool."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from ckptstore.cli.tensorflow_flags import main
from tests.cli.tensorflow_golden import golden

PREFIX = "02_sharded_devices/sh"


@pytest.fixture(autouse=True)
def _in_fixtures(fixtures_dir, monkeypatch):
    monkeypatch.chdir(fixtures_dir)


@pytest.mark.parametrize(
    ("flags", "title"),
    [
        ([], "index"),
        (["--all_tensor_names"], "names"),
        (["--all_tensor_names=true"], "names"),
        (["--all_tensor_names", "True"], "names"),
        (["--all_tensor_names=1"], "index"),
        (["--all_tensors=TRUE"], "values"),
        (["--all_tensors=false"], "index"),
        (["--all_tensors", "--tensor_name=zeta"], "values"),
        (["--tensor_name", "zeta"], "tensor zeta"),
        (["--tensor_name=zeta", "--all_tensors", "false"], "tensor zeta"),
        (["--count_exclude_pattern=a|e"], "excluded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_flags_mean_what_they_mean_in_tensorflow(capsys, flags, title):
    assert main([f"--file_name={PREFIX}", *flags]) == 0
    assert capsys.readouterr().out == golden("sharded")[title]


def test_print_options(capsys, tmp_path, save):
    before = np.get_printoptions()
    prefix = save(tmp_path / "m", w=np.linspace(0, 1, 2000))
    assert (
        main([f"--file_name={prefix}", "--tensor_name=w", "--printoptions", "threshold=9999", "precision=2"])
        == 0
    )
    assert "..." not in capsys.readouterr().out
    assert np.get_printoptions() == before


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "Usage: inspect_checkpoint --file_name=checkpoint_file_name"),
        (["--file_name=none"], 3, "there is no checkpoint with this prefix"),
        (["--file_name=01_single_shard/expected.json"], 4, "not an sstable"),
        ([f"--file_name={PREFIX}", "--count_exclude_pattern=["], 2, "not a regular expression"),
    ],
    ids=["no file", "missing", "corrupt", "pattern"],
)
def test_failures_have_exit_codes(capsys, flags, code, said):
    assert main(flags) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_a_missing_tensor_is_printed_as_in_tensorflow_and_has_an_exit_code(capsys):
    assert main([f"--file_name={PREFIX}", "--tensor_name=nope"]) == 3
    assert capsys.readouterr().out == "Tensor nope not found in checkpoint\n"


@pytest.mark.parametrize("flags", [["--nonsense"], ["--printoptions", "foo=1"], ["--printoptions", "foo"]])
def test_usage(capsys, flags):
    with pytest.raises(SystemExit) as ended:
        main([f"--file_name={PREFIX}", *flags])
    assert ended.value.code == 2


def test_it_runs_as_a_module(spawn, fixtures_dir):
    process = spawn(
        "-m", "ckptstore.inspect_checkpoint", f"--file_name={PREFIX}", "--tensor_name=nope",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=fixtures_dir,
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (3, b"Tensor nope not found in checkpoint\n", b"")
