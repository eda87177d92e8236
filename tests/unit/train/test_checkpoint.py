"""``Checkpoint``: trees in, TensorFlow's object-based checkpoints out, and back."""

from __future__ import annotations

import collections
import copy
import pickle
import uuid
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import ckptstore
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.errors import (
    ChecksumError,
    CkptStoreWarning,
    NotFoundError,
    UsageError,
)
from ckptstore.format.object_graph import (
    OBJECT_GRAPH_KEY,
)
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint import Checkpoint, Optimizer


@pytest.fixture
def url():
    return f"memory://test_object_checkpoint/{uuid.uuid4().hex}/ckpt"


def zeros_like(value, memo):
    """Return a copy of a tree with other values; what was one object stays one."""
    if isinstance(value, np.ndarray):
        if id(value) not in memo:
            empty = np.empty_like(value)
            empty[...] = b"" if value.dtype == object else 0
            memo[id(value)] = empty
        return memo[id(value)]
    if isinstance(value, dict):
        return {key: zeros_like(one, memo) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(zeros_like(one, memo) for one in value)
    return value if value is None else type(value)()


def equal(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


SHARED = [np.arange(3, dtype=np.float32), np.array([b"a\0", b""], object), np.array(True)]
ARRAYS = st.one_of(
    st.sampled_from(SHARED),
    st.builds(
        lambda dtype, shape: np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape),
        st.sampled_from(["f4", "f8", "i1", "u8", "c8", "f2", ">i4"]),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
    ),
)
PLAIN = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.binary(max_size=5),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(["a.b", "x/y", ".S"])
TREES = st.recursive(
    ARRAYS | PLAIN | st.none(),
    lambda inner: (
        st.dictionaries(NAMES, inner, max_size=4)
        | st.lists(inner, max_size=3)
        | st.tuples(ARRAYS, st.dictionaries(NAMES, inner, max_size=2))
    ),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, TREES.filter(lambda value: value is not None), max_size=4))
def test_any_tree_comes_back(tree):
    tree.pop("save_counter", None)
    url = f"memory://test_object_checkpoint/{uuid.uuid4().hex}"
    tree.pop("root", None)
    Checkpoint(**tree).write(url)
    again = zeros_like(tree, {})
    checkpoint = Checkpoint(**again)
    checkpoint.read(url).assert_consumed()
    assert equal(tree, {name: getattr(checkpoint, "_tree")[name] for name in tree})  # noqa: B009
    flat = Checkpoint(zeros_like(tree, {}))
    flat.read(url).assert_existing_objects_matched()
    assert equal(tree, flat.root)


def test_arrays_are_filled_in_place_whatever_their_memory(url):
    Checkpoint(a=np.arange(6.0).reshape(2, 3), s=np.array(["é", "b"]), n=np.array(7)).write(url)
    transposed = np.zeros((3, 2)).T
    foreign = np.zeros((2, 3), ">f8")
    text = np.zeros(2, "U3")
    scalar = np.zeros((), int)
    for array in (transposed, foreign, np.zeros((4, 6))[::2, ::2]):
        Checkpoint(a=array, s=text, n=scalar).read(url).assert_consumed()
        assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert text.tolist() == ["é", "b"]
    assert scalar == 7


def test_numbers_and_text_are_replaced_where_they_stand(url):
    def tree(number, text):
        return {"d": {"n": number, "l": [text, number]}, "step": number, "rate": float(number)}

    Checkpoint(**tree(5, "five")).write(url)
    found = tree(0, "")
    shared = found["d"]
    checkpoint = Checkpoint(**found, again=shared)
    checkpoint.read(url).assert_consumed()
    assert shared == {"n": 5, "l": ["five", 5]}
    assert (checkpoint.step, checkpoint.rate) == (5, 5.0)
    assert type(checkpoint.step) is int


def test_python_numbers_are_saved_as_numpy_takes_them(url):
    Checkpoint(i=5, f=1.5, b=True, s="text", y=b"\xff").write(url)
    dtypes = ckptstore.load_checkpoint(url).get_variable_to_dtype_map()
    found = {name[0]: dtype.name for name, dtype in dtypes.items() if name != OBJECT_GRAPH_KEY}
    assert found == {"i": "int64", "f": "float64", "b": "bool", "s": "string", "y": "string"}


class Foreign:
    """A framework's variable: it can be read, but nobody knows how to fill it."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(3, np.float32)


READ_ONLY = np.ones(3)
READ_ONLY.flags.writeable = False
WHOLE = np.ones(9)
Pair = collections.namedtuple("Pair", "p q")


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ((5, 6), "t/0", "0-d array"),
        ([{"x": (np.ones(1), "text")}], "t/0/x/1", "0-d array"),
        (Pair(np.ones(1), 2.0), "t/q", "0-d array"),
        (MappingProxyType({"n": np.int64(5)}), "t/n", "0-d array"),
        (Optimizer(MappingProxyType({"n": 5})), "t/n", "0-d array"),
        ([np.ones(1), READ_ONLY], "t/1", "read-only"),
        ([Foreign()], "t/0", "neither an array nor a number"),
        ({"all": WHOLE, "part": WHOLE[:3]}, "t/all", "the same memory"),
        ([as_strided(WHOLE, (9, 9), (0, 8))], "t/0", "share memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_restored_is_not_saved(url, value, path, message):
    for write in (Checkpoint(t=value).write, Checkpoint(t=value).save):
        with pytest.raises(UsageError, match=message) as info:
            write(url)
        assert info.value.tensor == path
    assert ckptstore.latest_checkpoint(url.rpartition("/")[0]) is None


def test_a_number_in_a_tuple_cannot_be_restored_and_nothing_changes(url):
    Checkpoint(t=[5, 6], w=np.ones(1)).write(url)
    weights = np.zeros(1)
    with pytest.raises(UsageError, match="0-d array") as info:
        Checkpoint(t=(0, 0), w=weights).read(url)
    assert info.value.tensor == "t/0"
    assert weights == 0


def test_two_names_of_one_array_are_restored(url):
    tied = np.arange(3.0)
    Checkpoint(a=tied, b=tied[:]).write(url)
    into = np.zeros(3)
    Checkpoint(a=into, b=into[:]).read(url).assert_consumed()
    assert into.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("w", np.zeros(3)),
        ("w", np.zeros(2, np.float32)),
        ("w", np.zeros((2, 1))),
        ("w", np.zeros((), np.float64)),
        ("n", 1.5),
        ("n", "text"),
        ("n", np.int32(1)),
        ("s", 5),
        ("s", np.zeros((), "S1")),
        ("s", "not text there"),
    ],
)
def test_a_value_that_does_not_fit_changes_nothing(url, name, wrong):
    Checkpoint(a=np.ones(2), w=np.ones(2), n=5, s=b"\xff\xff", z=np.ones(2)).write(url)
    tree: dict[str, Any] = {"a": np.zeros(2), "w": np.zeros(2), "n": 0, "s": b"", "z": np.zeros(2)}
    checkpoint = Checkpoint(**{**tree, name: wrong})
    with pytest.raises(UsageError) as info:
        checkpoint.restore(url)
    assert info.value.tensor == name
    assert not np.any(tree["a"])
    assert not np.any(tree["z"])
    assert checkpoint.n in (0, wrong)
    # Nor is there a counter now that there was not before.
    assert "save_counter" not in repr(checkpoint)


def test_a_read_only_array_is_refused(url):
    Checkpoint(w=np.ones(2)).write(url)
    array = np.zeros(2)
    array.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        Checkpoint(w=array).read(url)


def test_what_is_damaged_is_found(tmp_path):
    Checkpoint(w=np.ones(2)).write(tmp_path / "model")
    data = tmp_path / "model.data-00000-of-00001"
    damaged = bytearray(data.read_bytes())
    damaged[3] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(ChecksumError):
        Checkpoint(w=np.zeros(2)).read(tmp_path / "model")


def test_a_tree_that_grew_or_shrank_is_restored_in_part(url):
    Checkpoint(old=np.ones(1), both=np.ones(1)).write(url)
    new = np.full(1, 7.0)
    both = np.zeros(1)
    with pytest.warns(CkptStoreWarning, match=r"new of the tree .*; old/.ATTRIBUTES/VARIABLE_VALUE of"):
        Checkpoint(new=new, both=both).read(url)
    assert (new, both) == (7.0, 1.0)
    status = Checkpoint(new=new, both=both).read(url).expect_partial()
    assert (status.unmatched, status.unused) == (("new",), ("old/.ATTRIBUTES/VARIABLE_VALUE",))


def test_one_array_fills_two_that_were_tied(url):
    weights = np.ones(1)
    Checkpoint(encoder={"w": weights}, decoder=[weights]).write(url)
    untied: dict[str, Any] = {"encoder": {"w": np.zeros(1)}, "decoder": [np.zeros(1)]}
    Checkpoint(**untied).read(url).assert_consumed()
    assert untied["encoder"]["w"] == untied["decoder"][0] == 1


def test_no_checkpoint_there(url):
    with pytest.raises(NotFoundError) as info:
        Checkpoint(w=np.zeros(1)).restore(url)
    assert info.value.url == url


def test_restoring_none_restores_nothing():
    checkpoint = Checkpoint(w=np.ones(1))
    for status in (checkpoint.read(None), checkpoint.restore(None)):
        assert status.expect_partial() is status
        with pytest.raises(AssertionError, match="nothing is being restored"):
            status.assert_consumed()
    assert checkpoint.w == 1


def test_save_counts_and_is_the_latest(url):
    checkpoint = Checkpoint(w=np.ones(1))
    directory = url.rpartition("/")[0]
    assert checkpoint.save(url) == f"{url}-1"
    assert checkpoint.save(url) == f"{url}-2"
    assert ckptstore.latest_checkpoint(directory) == f"{url}-2"
    assert ckptstore.checkpoint_exists(f"{url}-1")
    assert int(checkpoint.save_counter) == 2
    again = Checkpoint(w=np.zeros(1))
    again.restore(ckptstore.latest_checkpoint(directory)).assert_consumed()
    assert again.save(url) == f"{url}-3"


def test_the_counter_is_an_array_that_can_be_set(url):
    checkpoint = Checkpoint(w=np.ones(1))
    counter = checkpoint.save_counter
    assert (counter.shape, counter.dtype, int(counter)) == ((), np.int64, 0)
    checkpoint.save_counter = 41
    assert checkpoint.save(url) == f"{url}-42"
    checkpoint.save_counter += 1
    assert checkpoint.save_counter is counter
    assert int(counter) == 43
    for wrong in (1.5, "x", np.ones(1, int)):
        with pytest.raises(UsageError):
            checkpoint.save_counter = wrong


def names_in(url):
    return {name.partition("/")[0] for name in ckptstore.load_checkpoint(url).get_variable_to_shape_map()}


def test_write_has_a_counter_only_after_one_was_made(url):
    # As measured on TensorFlow: save and restore make it, read does not.
    checkpoint = Checkpoint(w=np.ones(1))
    checkpoint.write(url)
    assert names_in(url) == {"w", OBJECT_GRAPH_KEY}
    checkpoint.read(url).assert_consumed()
    checkpoint.write(url)
    assert names_in(url) == {"w", OBJECT_GRAPH_KEY}
    with pytest.raises(AssertionError, match=r"what write\(\) wrote is for read\(\)"):
        checkpoint.restore(url).assert_consumed()
    checkpoint.write(url)
    assert names_in(url) == {"w", "save_counter", OBJECT_GRAPH_KEY}


def test_write_keeps_no_record(url):
    directory = url.rpartition("/")[0]
    assert Checkpoint(w=np.ones(1)).write(url) == url
    assert ckptstore.get_checkpoint_state(directory) is None


def test_the_number_of_a_failed_save_is_not_used_again(url):
    checkpoint = Checkpoint(w=[np.ones(1)])
    checkpoint.w.append(object())
    with pytest.raises(UsageError) as info:
        checkpoint.save(url)
    assert info.value.tensor == "w/1"
    checkpoint.w.pop()
    assert checkpoint.save(url) == f"{url}-2"


def children(checkpoint):
    items = checkpoint.plan(with_counter=True).shards[0].items
    return [item.name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") for item in items[:-1]]


def test_keyword_arguments_are_ordered_by_name_and_later_ones_follow():
    checkpoint = Checkpoint(b=1, a=2, Z=3)
    assert children(checkpoint) == ["Z", "a", "b", "save_counter"]
    checkpoint.A = 4
    checkpoint.b = 5
    assert children(checkpoint) == ["Z", "a", "b", "save_counter", "A"]
    assert checkpoint.b == 5
    del checkpoint.a
    assert children(checkpoint) == ["Z", "b", "save_counter", "A"]
    assert repr(checkpoint) == "Checkpoint(Z, b, save_counter, A)"


def test_the_members_of_a_root_are_children_of_the_root():
    root = {"z": np.ones(1), "d": {"q": 1}}
    checkpoint = Checkpoint(root, step=5, alpha={"k": root["z"]})
    assert children(checkpoint) == ["z", "step", "save_counter", "d/q"]
    assert checkpoint.root is root


def test_a_child_must_not_hide_another_one():
    with pytest.raises(UsageError, match="already has a child 'w'"):
        Checkpoint({"w": np.ones(1)}, w=np.ones(1)).plan(with_counter=False)
    with pytest.raises(UsageError, match="cannot be called 'save_counter'"):
        Checkpoint(save_counter=np.ones(1))


@pytest.mark.parametrize("value", [None, object(), {1}])
def test_a_child_that_cannot_be_saved_is_refused_at_once(value):
    with pytest.raises(UsageError, match="a checkpoint cannot hold this"):
        Checkpoint(w=value)
    checkpoint = Checkpoint()
    with pytest.raises(UsageError, match="a checkpoint cannot hold this"):
        checkpoint.w = value


def test_children_may_have_the_names_of_methods(url):
    Checkpoint(save=np.ones(1), self=np.ones(1), _tree=np.ones(1)).write(url)
    assert names_in(url) == {"save", "self", "_tree", OBJECT_GRAPH_KEY}
    checkpoint = Checkpoint()
    with pytest.raises(UsageError, match="name of the method 'save'"):
        checkpoint.save = np.ones(1)  # type: ignore[assignment, method-assign]


def test_an_unknown_child_is_an_attribute_error():
    checkpoint = Checkpoint(w=1)
    with pytest.raises(AttributeError, match="no child 'v'"):
        _ = checkpoint.v
    with pytest.raises(AttributeError, match="no child 'v'"):
        del checkpoint.v
    assert not hasattr(checkpoint, "v")


def test_a_checkpoint_can_be_copied():
    checkpoint = Checkpoint(w=np.ones(1))
    for other in (copy.deepcopy(checkpoint), pickle.loads(pickle.dumps(checkpoint))):
        assert other.w == 1
        assert other.w is not checkpoint.w


def test_slots_come_back(url):
    def tree(number):
        net = {"w": np.full(2, number), "b": [np.full(1, number)]}
        slots = {name: {"net/b/0": np.full(1, number), "net/w": np.full(2, number)} for name in ("v", "m")}
        return net, Optimizer({"beta2_power": number, "beta1_power": number}, slots)

    net, adam = tree(3.0)
    Checkpoint(net=net, optimizer=adam).write(url)
    assert list(open_bundle(locate(url)).names()) == [
        OBJECT_GRAPH_KEY,
        "net/b/0/.ATTRIBUTES/VARIABLE_VALUE",
        *(f"net/b/0/.OPTIMIZER_SLOT/optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in "mv"),
        "net/w/.ATTRIBUTES/VARIABLE_VALUE",
        *(f"net/w/.OPTIMIZER_SLOT/optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in "mv"),
        "optimizer/beta1_power/.ATTRIBUTES/VARIABLE_VALUE",
        "optimizer/beta2_power/.ATTRIBUTES/VARIABLE_VALUE",
    ]
    net, adam = tree(0.0)
    Checkpoint(net=net, optimizer=adam).read(url).assert_consumed()
    assert adam.values == {"beta1_power": 3.0, "beta2_power": 3.0}
    assert adam.slots["m"]["net/w"].tolist() == [3, 3]
    assert adam.slots["v"]["net/b/0"].tolist() == [3]
    # Without slots in the tree they are left over.
    status = Checkpoint(net=net, optimizer=Optimizer(adam.values)).read(url)
    assert len(status.assert_existing_objects_matched().unused) == 4


def test_an_optimizer_with_nothing_is_an_object_without_values(url):
    pair = collections.namedtuple("pair", "net opt")
    checkpoint = Checkpoint(t=pair({"w": np.ones(1)}, Optimizer()))
    checkpoint.write(url)
    checkpoint.read(url).assert_consumed()
    assert repr(checkpoint.t.opt) == "Optimizer(values=[], slots=[])"


def test_a_restore_tells_its_progress_and_keeps_to_a_budget(tmp_path):
    tree = {"w": np.arange(1000.0)}
    prefix = Checkpoint(**tree).write(tmp_path / "m")
    events: list[Any] = []
    into = {"w": np.zeros(1000)}
    Checkpoint(**into).read(prefix, memory_budget=1 << 20, progress=events.append).assert_consumed()
    np.testing.assert_array_equal(into["w"], tree["w"])
    assert (events[-1].kind, events[-1].done_bytes, events[-1].is_over) == ("restore", 8000, True)
    with pytest.raises(UsageError, match="memory_budget"):
        Checkpoint(**into).restore(prefix, memory_budget=0)
