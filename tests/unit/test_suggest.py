"""Close names for error messages: found, few, and at once however many names there are."""

from __future__ import annotations

import time

import pytest

from ckptstore.errors import TensorNotFoundError
from ckptstore.suggest import close_names, did_you_mean, did_you_mean_or_known

MANY = [f"net/block_{n // 10}/layer_{n}/kernel" for n in range(100_000)]


def test_the_closest_names_come_first_and_are_at_most_three():
    known = ["kernel", "kernel_1", "kernal", "kennel", "bias"]
    assert close_names("kernell", known)[0] == "kernel"
    assert len(close_names("kernell", known)) == 3
    assert close_names("kernell", known, limit=1) == ["kernel"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("net/block_77/layer_777/kernle", "net/block_77/layer_777/kernel"),
        ("met/block_77/layer_777/kernel", "net/block_77/layer_777/kernel"),
        ("Net/Block_77/Layer_777/Kernel", "net/block_77/layer_777/kernel"),
        ("block_77/layer_777/kernel", "net/block_77/layer_777/kernel"),
    ],
)
def test_one_mistake_is_found_among_100_000_names_at_once(wanted, expected):
    started_s = time.process_time()
    assert expected in close_names(wanted, MANY)
    assert time.process_time() - started_s < 10


def test_names_of_a_megabyte_are_not_compared():
    started_s = time.process_time()
    assert close_names("a" * 1_000_000, ["a" * 1_000_000, "a"]) == []
    assert close_names("aa", ["a" * 1_000_000, "a"]) == ["a"]
    assert time.process_time() - started_s < 10


def test_the_question_is_asked_only_where_a_name_is_close():
    assert did_you_mean("biass", ["bias", "kernel"], suffix=":0") == "Did you mean 'bias:0'?"
    assert did_you_mean("x", ["bias", "kernel"]) is None
    assert did_you_mean(3, ["3"]) is None


def test_without_a_close_name_few_are_listed_and_many_counted():
    assert did_you_mean_or_known("biass", ["bias"], "tensors") == "Did you mean 'bias'?"
    assert did_you_mean_or_known("x", [], "tensors") == "There are no tensors."
    assert did_you_mean_or_known("x", ["b", "a"], "tensors") == "Known tensors: 'a', 'b'."
    many = [f"tensor_{n}" for n in range(11)]
    assert did_you_mean_or_known("x", many, "tensors") == "There are 11 tensors."
    assert did_you_mean_or_known("x", many, "tensors", listed_by="ls()") == (
        "There are 11 tensors; ls() lists them."
    )


def test_the_name_of_a_graphs_tensor_leads_to_the_variable():
    error = TensorNotFoundError.among("not found", "w:0", ["w", "w:01", "v"], "tensors", url="u")
    assert error.hint == "Did you mean 'w'?"
    assert (error.tensor, error.url) == ("w:0", "u")
    assert TensorNotFoundError.among("not found", 7, ["w"], "tensors").tensor == "7"
