"""State dicts of torch, saved and loaded in one process: values, types, and what is refused where."""

from __future__ import annotations

import collections
import copy
import io
import random
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import ckptstore as ck
import ckptstore.torch
from tests.engines.page import block

DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "bool", "complex32", "complex64", "complex128"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *(
        "float8_e5m2",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ),
)


def url() -> str:
    return f"memory://torch/{uuid.uuid4().hex}/model"


def bits(tensor: torch.Tensor) -> bytes:
    return (
        tensor.detach()
        .resolve_conj()
        .resolve_neg()
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


def tensor_of(name: str) -> torch.Tensor:
    dtype = getattr(torch, name)
    return (
        torch.arange(1, 1 + 6 * dtype.itemsize, dtype=torch.uint8)
        .view(dtype if name != "bool" else torch.bool)
        .reshape(2, 3)
    )


def assert_equal(found: Any, expected: Any, place: str = "root") -> None:
    """Compare trees, types included."""
    assert type(found) is type(expected), f"{place}: {type(found)} and not {type(expected)}"
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), place
        assert found.requires_grad == expected.requires_grad, place
        assert bits(found) == bits(expected), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_equal(found[key], value, f"{place}[{key!r}]")
    elif type(expected) in (list, tuple):
        assert len(found) == len(expected), place
        for index, value in enumerate(expected):
            assert_equal(found[index], value, f"{place}[{index}]")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, place
        np.testing.assert_array_equal(found, expected)
    else:
        assert repr(found) == repr(expected), place


def back(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a load into nothing makes of a saved state."""
    prefix = ckptstore.torch.save(state, url())
    found: dict[str, Any] = dict.fromkeys(state)
    ckptstore.torch.load(found, prefix)
    return found


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", DTYPES)
def test_a_type_is_filled_and_made_anew_and_served(name: str) -> None:
    value = tensor_of(name)
    prefix = ckptstore.torch.save({"x": value}, url())
    into = {
        "x": torch.zeros(2, 3, dtype=torch.uint8)
        .view(torch.uint8)
        .repeat(1, value.element_size())
        .view(value.dtype)
    }
    memory = into["x"].data_ptr()
    assert ckptstore.torch.load(into, prefix).restored["x"] is into["x"]
    assert into["x"].data_ptr() == memory
    assert_equal(into["x"], value)
    assert_equal(back({"x": value})["x"], value)
    assert_equal(ckptstore.torch.read_state_dict(prefix, ["x"])["x"], value)


def strided() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "transposed": base.t(),
        "every second": base[::2, 1::2],
        "expanded": torch.ones(3, 1).expand(3, 5),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "conjugated": torch.tensor([1 + 2j, 3j]).conj(),
        "negated": torch.tensor([1 + 2j, 3j]).conj().imag,
        "bfloat16": base.to(torch.bfloat16).t(),
        "with a gradient": torch.ones(2, requires_grad=True) * 2,
        "inference": _inference(),
        "big": torch.randn(700, 300).t(),
    }


def _inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


@pytest.mark.parametrize("key", strided())
def test_any_memory_is_saved_and_filled(key: str) -> None:
    value = strided()[key]
    prefix = ckptstore.torch.save({"x": value}, url())
    assert bits(ckptstore.torch.read_state_dict(prefix)["x"]) == bits(value)
    target = copy.deepcopy(value.detach()) if key != "expanded" else value.clone()
    with torch.no_grad(), torch.inference_mode(key == "inference"):
        target.fill_(7)
    ckptstore.torch.load({"x": target}, prefix)
    assert bits(target) == bits(value)


def test_an_expanded_tensor_is_not_filled() -> None:
    prefix = ckptstore.torch.save({"x": torch.ones(3, 5)}, url())
    with pytest.raises(ck.UsageError, match="share memory") as caught:
        ckptstore.torch.load({"x": torch.zeros(3, 1).expand(3, 5)}, prefix)
    assert caught.value.tensor == "x"


def test_numpy_sees_the_memory_itself() -> None:
    state = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": {"c": torch.nn.Parameter(torch.zeros(4))}}
    found = ckptstore.torch.pieces(state)
    found["a"][:] = 5
    found["b.c"][:] = 6
    assert state["a"].tolist() == [5.0] * 3
    assert state["b"]["c"].tolist() == [6.0] * 4


def test_what_is_a_copy_cannot_be_restored_into() -> None:
    prefix = ckptstore.torch.save({"x": torch.ones(2, dtype=torch.complex64)}, url())
    into = ckptstore.torch.pieces({"x": torch.zeros(2, dtype=torch.complex64).conj()})
    with pytest.raises(ck.UsageError, match="x"), ck.open_checkpoint(prefix) as opened:
        opened.restore(into=into)


def test_pieces_refuse_what_is_no_tensor() -> None:
    with pytest.raises(ck.UsageError, match="no tensor") as caught:
        ckptstore.torch.pieces({"a": torch.ones(1), "b": {"lr": 0.1}})
    assert caught.value.tensor == "b.lr"


def _model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def _stepped(make: Callable[[Any], torch.optim.Optimizer], seed: int = 0) -> Any:
    model = _model(seed)
    optimizer = make(model.parameters())

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(torch.ones(8, 4)).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return optimizer


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "LBFGS": lambda p: torch.optim.LBFGS(p, history_size=3),
    "Adafactor": torch.optim.Adafactor,
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 100),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.LinearLR(o)], [5]
    ),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 2]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*OPTIMIZERS, *SCHEDULERS])
def test_state_of_an_optimizer_or_a_scheduler(name: str) -> None:
    if name in OPTIMIZERS:
        state = _stepped(OPTIMIZERS[name]).state_dict()
    else:
        state = SCHEDULERS[name](_stepped(OPTIMIZERS["SGD"])).state_dict()
    assert_equal(back({"state": state})["state"], state)


class _Extra(torch.nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def _loader_state(workers: int) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(list(range(100)), batch_size=4, num_workers=workers, shuffle=True)
    next(iter(loader))
    return loader.state_dict()


OTHERS: dict[str, Callable[[], Any]] = {
    "GradScaler": lambda: torch.amp.GradScaler("cpu").state_dict(),
    "AveragedModel": lambda: dict(torch.optim.swa_utils.AveragedModel(_model(0)).state_dict()),
    "random": lambda: {"torch": torch.get_rng_state(), "python": random.getstate()},
    "numpy": lambda: {"new": np.random.default_rng(1).bit_generator.state, "old": np.random.get_state()},
    "torchdata": lambda: _loader_state(0),
    "torchdata with a worker": lambda: _loader_state(1),
    "extra state": lambda: dict(_Extra({"a": 1, "scale": torch.ones(2)}).state_dict()),
    "plain values": lambda: {
        **{"none": None, "keys": {0: 1, (1, "a"): 2}, "set": {1, 2}, "big": 2**70, "bytes": b"\0\xff"},
        **{"type": torch.bfloat16, "device": torch.device("cuda:1"), "size": torch.Size([2, 3])},
        **{"ordered": collections.OrderedDict(b=1, a=2), "counter": collections.Counter({3: 2})},
        **{
            "nan": float("nan"),
            "scalar": np.float32(3),
            "array": np.arange(3),
            "nested": [1, (torch.ones(2),)],
        },
        **{"frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False)},
        **{"parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))},
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_real_states_hold(name: str) -> None:
    state = OTHERS[name]()
    assert_equal(back({"state": state})["state"], state)


class _Runs:
    """What a pickle would run."""

    ran = 0

    def __reduce__(self) -> Any:
        _Runs.ran += 1
        return (print, ("ran",))


class _Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls) -> _Wrapper:
        return torch.Tensor._make_wrapper_subclass(cls, (2,))  # noqa: SLF001

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("it has no values")


def _quantized() -> Any:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


REFUSED: dict[str, Callable[[], Any]] = {
    "an object that runs code": _Runs,
    "a stream": io.BytesIO,
    "a function": lambda: print,
    "a class of torch": torch.nn.ReLU,
    "a tensor of meta": lambda: torch.ones(2, device="meta"),
    "a sparse tensor": lambda: torch.eye(2).to_sparse(),
    "a quantized tensor": _quantized,
    "a tensor that is more than its memory": _Wrapper,
    "a parameter without values": torch.nn.UninitializedParameter,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_stored_is_refused_with_its_place(what: str) -> None:
    prefix = url()
    with pytest.raises(ck.UsageError) as caught:
        ckptstore.torch.save({"a": torch.ones(1), "b": {0: [None, REFUSED[what]()]}}, prefix)
    assert caught.value.tensor == "b.0.1"
    assert _Runs.ran == 0
    assert ck.latest_checkpoint(prefix.rpartition("/")[0]) is None


def test_a_subclass_that_is_plain_memory_is_a_tensor() -> None:
    class Named(torch.Tensor):
        pass

    value = torch.arange(3.0).as_subclass(Named)
    prefix = ckptstore.torch.save({"x": value}, url())
    target = torch.zeros(3).as_subclass(Named)
    ckptstore.torch.load({"x": target}, prefix)
    assert target.tolist() == [0.0, 1.0, 2.0]


def test_a_job_that_is_resumed_goes_on_as_if_it_had_not_ended() -> None:
    def job(seed: int) -> tuple[dict[str, Any], Callable[[], None]]:
        model = _model(seed)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, 10)
        state = {"model": model, "optimizer": optimizer, "schedule": schedule, "step": 0}

        def step() -> None:
            optimizer.zero_grad()
            (model(torch.rand(8, 4)) ** 2).mean().backward()
            optimizer.step()
            schedule.step()
            state["step"] += 1

        return state, step

    torch.manual_seed(5)
    state, step = job(0)
    for _ in range(3):
        step()
    prefix = ckptstore.torch.save({**state, "rng": torch.get_rng_state()}, url())
    for _ in range(2):
        step()
    other, other_step = job(1)
    other["rng"] = None
    report = ckptstore.torch.load(other, prefix)
    assert (report.missing, report.unexpected) == ((), ())
    torch.set_rng_state(other.pop("rng"))
    for _ in range(2):
        other_step()
    assert other["step"] == 5
    for key in ("model", "optimizer", "schedule"):
        assert_equal(other[key].state_dict(), state[key].state_dict())


def test_tied_tensors_are_stored_once_and_have_all_their_names() -> None:
    model = _model(0)
    prefix = ckptstore.torch.save(model.state_dict(), url())
    assert "2.weight" not in ck.open_checkpoint(prefix)
    served = ckptstore.torch.read_state_dict(prefix)
    assert served["2.weight"] is served["0.weight"]
    assert ckptstore.torch.read_state_dict(prefix, ["2.weight"])["2.weight"].equal(model[2].weight)
    tied, untied = _model(1), _model(2)
    untied[2].weight = torch.nn.Parameter(torch.zeros(4, 4))
    for other in (tied, untied):
        ckptstore.torch.load(other.state_dict(), prefix)
        assert other[0].weight.equal(model[0].weight)
        assert other[2].weight.equal(model[0].weight)


def test_a_tied_tensor_that_the_checkpoint_names_once_is_not_missing() -> None:
    model = _model(0)
    values = {name: value.numpy() for name, value in model.state_dict().items() if name != "2.weight"}
    prefix = str(ck.Saver().save(values, url()))
    other = _model(1)
    assert ckptstore.torch.load(other.state_dict(), prefix).missing == ()
    assert other[2].weight.equal(model[0].weight)


def test_two_tensors_do_not_go_into_one_memory() -> None:
    prefix = ckptstore.torch.save({"a": torch.ones(2), "b": torch.zeros(2)}, url())
    tied = torch.full((2,), 7.0)
    with pytest.raises(ck.UsageError, match="same memory"):
        ckptstore.torch.load({"a": tied, "b": tied}, prefix)
    assert tied.tolist() == [7.0, 7.0]


def test_a_state_that_grew_or_lost_a_key() -> None:
    prefix = ckptstore.torch.save({"a": torch.ones(2), "n": 1, "old": torch.ones(3)}, url())
    state = {"a": torch.zeros(2), "n": 0, "new": torch.full((1,), 7.0), "more": 5}
    with pytest.raises(ck.TensorNotFoundError, match="2 are missing") as caught:
        ckptstore.torch.load(state, prefix)
    assert caught.value.tensor == "new"
    assert (state["a"].tolist(), state["n"]) == ([0.0, 0.0], 0)
    with pytest.raises(ck.UsageError, match="lacks") as unexpected:
        ckptstore.torch.load(state, prefix, missing="ignore", unexpected="raise")
    assert unexpected.value.tensor == "old"
    report = ckptstore.torch.load(state, prefix, missing="ignore")
    assert (report.missing, report.unexpected) == (("new", "['more']"), ("old",))
    assert (state["a"].tolist(), state["n"], state["new"].tolist(), state["more"]) == (
        [1.0, 1.0],
        1,
        [7.0],
        5,
    )


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(2, 1)])
def test_another_shape_or_type_changes_nothing(value: torch.Tensor) -> None:
    prefix = ckptstore.torch.save({"a": torch.ones(2), "x": torch.ones(2)}, url())
    state = {"a": torch.zeros(2), "x": value}
    with pytest.raises(ck.UsageError, match="another") as caught:
        ckptstore.torch.load(state, prefix)
    assert caught.value.tensor == "x"
    assert state["a"].tolist() == [0.0, 0.0]


def test_bytes_are_no_float8_without_saying_so() -> None:
    prefix = ckptstore.torch.save({"x": torch.ones(2).to(torch.float8_e8m0fnu)}, url())
    with pytest.raises(ck.UsageError, match="another type"):
        ckptstore.torch.load({"x": torch.zeros(2, dtype=torch.uint8)}, prefix)


def test_autograd_sees_that_a_tensor_was_filled() -> None:
    prefix = ckptstore.torch.save({"w": torch.ones(2)}, url())
    weight = torch.nn.Parameter(torch.zeros(2))
    loss = (weight * weight).sum()
    ckptstore.torch.load({"w": weight}, prefix)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_plain_saver_names_the_tensor_and_the_adapter() -> None:
    for value in (
        torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        torch.ones(2).to(torch.float8_e5m2),
    ):
        with pytest.raises(ck.UsageError, match=r"ckptstore\.torch\.save") as caught:
            ck.Saver().save({"w": value}, url())
        assert caught.value.tensor == "w"


@pytest.mark.parametrize("value", [torch.nn.Linear(1, 1), [torch.ones(1)], None])
def test_a_state_dict_is_a_mapping(value: Any) -> None:
    with pytest.raises(ck.UsageError, match="mapping"):
        ckptstore.torch.save(value, url())


def test_saves_of_a_path_are_kept_to_the_newest_five_and_continue() -> None:
    path = url()
    for step in range(7):
        prefix = ckptstore.torch.save({"x": torch.full((2,), float(step))}, path, step)
    handle = ckptstore.torch.save_async({"x": torch.full((2,), 7.0)}, path, 7)
    assert handle.result() == f"{path}-7" != prefix
    directory = path.rpartition("/")[0]
    state = ck.get_checkpoint_state(directory)
    assert state is not None
    assert [one.rpartition("-")[2] for one in state.all_model_checkpoint_paths] == ["3", "4", "5", "6", "7"]


def test_a_background_save_holds_what_was_there(tmp_path: Any) -> None:
    value = torch.ones(1000)
    with ck.Saver() as saver:
        handle = ckptstore.torch.save_async({"x": value, "n": [1]}, f"{tmp_path}/model", saver=saver)
        value.zero_()
        found: dict[str, Any] = {"x": None, "n": None}
        ckptstore.torch.load(found, str(handle.result()))
    assert (found["x"].sum().item(), found["n"]) == (1000.0, [1])


def test_no_checkpoint_is_an_error_and_not_a_fresh_start() -> None:
    with pytest.raises(ck.UsageError, match="None"):
        ckptstore.torch.load({"x": torch.ones(1)}, None)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_program_is_loaded_by_name() -> None:
    prefix = str(ck.Saver().save({"net.w": np.ones((2, 2), np.float32), "n": np.array(3)}, url()))
    state: dict[str, Any] = {"net": {"w": torch.zeros(2, 2)}, "n": None}
    ckptstore.torch.load(state, prefix)
    assert state["net"]["w"].sum().item() == 4.0
    assert state["n"].item() == 3


def test_the_lines_of_the_page_save_and_resume() -> None:
    directory = url().rpartition("/")[0]

    def run(last: int) -> dict[str, Any]:
        model = _model(last)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        scene = {
            "ckptstore": ck,
            "model": model,
            "optimizer": optimizer,
            "directory": directory,
            "last": last,
        }
        scene["steps"] = steps = []
        scene["train_step"] = lambda *_: steps.append(model[0].weight.detach().clone())
        exec(block("resume", "frameworks/torch"), scene)
        return scene

    first = run(200)
    ckptstore.torch.save(
        {"step": 200, **{key: first[key] for key in ("model", "optimizer")}}, f"{directory}/model", 200
    )
    second = run(250)
    assert len(second["steps"]) == 50
    assert second["steps"][0].equal(first["model"][0].weight)


def test_an_object_below_the_first_level_is_not_replaced_by_a_dictionary() -> None:
    model = torch.nn.Linear(2, 2)
    prefix = ckptstore.torch.save({"models": {"a": model.state_dict()}}, url())
    state = {"models": {"a": torch.nn.Linear(2, 2)}}
    with pytest.raises(ck.UsageError, match=r"\['models'\]\['a'\]") as caught:
        ckptstore.torch.load(state, prefix)
    assert caught.value.tensor == "models.a"
    assert isinstance(state["models"]["a"], torch.nn.Linear)


def test_tensors_beside_arrays_of_numpy_are_served() -> None:
    state = {"w": torch.ones(2), "rng": np.arange(3), "best": np.float32(0.5)}
    prefix = ckptstore.torch.save(state, url())
    served = ckptstore.torch.read_state_dict(prefix)
    assert {name: value.tolist() for name, value in served.items()} == {
        "w": [1.0, 1.0],
        "rng": [0, 1, 2],
        "best": 0.5,
    }
    target = torch.zeros(3, dtype=torch.int64)
    ckptstore.torch.load({"rng": target}, prefix)
    assert target.tolist() == [0, 1, 2]


def _after_a_step_of(*names: str) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for name in names:
        parameter = model.get_parameter(name)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def test_an_optimizer_with_a_part_of_its_state_gets_the_rest() -> None:
    _, saved = _after_a_step_of("weight", "bias")
    prefix = ckptstore.torch.save({"optimizer": saved}, url())
    _, other = _after_a_step_of("bias")
    report = ckptstore.torch.load({"optimizer": other}, prefix)
    assert report.unexpected == ()
    found, expected = other.state_dict()["state"], saved.state_dict()["state"]
    assert sorted(found) == [0, 1]
    for index, values in expected.items():
        assert_equal(found[index], values)


def test_an_optimizer_with_other_groups_is_refused_before_the_model_changes() -> None:
    model, optimizer = _after_a_step_of("weight", "bias")
    prefix = ckptstore.torch.save({"model": model, "optimizer": optimizer}, url())
    other = torch.nn.Linear(2, 2)
    before = other.weight.detach().clone()
    groups = [{"params": [other.weight]}, {"params": [other.bias]}]
    with pytest.raises(ck.UsageError, match="groups"):
        ckptstore.torch.load({"model": other, "optimizer": torch.optim.AdamW(groups)}, prefix)
    assert other.weight.equal(before)
