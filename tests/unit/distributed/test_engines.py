"""Which engine a job has, and what each is asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import ckptstore as ck
from ckptstore.distributed.coordinator import SingleCoordinator


def test_a_program_of_one_process_talks_to_itself():
    for one in (ck.coordinator(), ck.coordinator("single")):
        assert isinstance(one, SingleCoordinator)


def test_an_unknown_engine_is_refused_with_a_proposal():
    with pytest.raises(ck.UsageError, match=r"engine 'torhc' is not known.*Did you mean 'torch'"):
        ck.coordinator("torhc")


@pytest.mark.parametrize(
    ("engine", "options", "names"),
    [
        ("single", {"rank": 0}, "rank"),
        ("mpi", {"rank": 0, "size": 2}, "rank, size"),
        ("store", {"comm": 1}, "comm"),
        ("ray", {"url": "x"}, "url"),
    ],
)
def test_an_option_of_another_engine_is_refused(engine, options, names):
    with pytest.raises(ck.UsageError, match=f"engine '{engine}' takes no {names}"):
        ck.coordinator(engine, **options)


@pytest.mark.parametrize(
    ("engine", "package"), [("torch", "torch"), ("jax", "jax"), ("ray", "ray"), ("mpi", "mpi4py")]
)
def test_an_engine_that_is_not_installed_is_named_with_what_to_install(monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ck.UnsupportedError, match=f"pip install .*{package}"):
        ck.coordinator(engine)


def test_mpi_counts_once_the_program_uses_it_with_several_processes(monkeypatch):
    world = SimpleNamespace(Get_size=lambda: 4)
    fake = SimpleNamespace(Is_initialized=lambda: True, COMM_WORLD=world)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", fake)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ck.UnsupportedError, match="mpi4py"):
        ck.coordinator()
    world.Get_size = lambda: 1
    assert isinstance(ck.coordinator(), SingleCoordinator)


@pytest.mark.parametrize("missing", ["rank", "size", "attempt"])
def test_what_no_launcher_has_set_is_named(monkeypatch, tmp_path, missing):
    for variable in ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    given = {"rank": 0, "size": 2, "attempt": "a"} | {missing: None}
    with pytest.raises(ck.UsageError, match=rf"no launcher has set the {missing} .*Pass {missing}="):
        ck.coordinator("store", url=tmp_path, **given)


def test_the_store_needs_a_place_and_a_rank_that_is_one():
    with pytest.raises(ck.UsageError, match="needs a directory"):
        ck.coordinator("store", rank=0, size=1, attempt="a")
    with pytest.raises(ck.UsageError, match="rank 2 of 2"):
        ck.coordinator("store", url="memory://x", rank=2, size=2, attempt="a")
