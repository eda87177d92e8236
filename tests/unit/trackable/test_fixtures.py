"""Object-based checkpoints that TensorFlow wrote: restored, and written again to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.format.dtypes import STRING
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY, decode
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint import Checkpoint, Optimizer
from tests.unit.directory.helpers import write_checkpoint


def empty_tree(prefix):
    """Return a tree of zeros like the one that a fixture was saved from, and the names of its variables."""
    reader = open_bundle(locate(prefix))
    nodes = decode(reader.read(OBJECT_GRAPH_KEY).item(), source=str(prefix))
    objects: list[Any] = []
    names: dict[str, str] = {}
    for node in nodes:
        local_names = [child.local_name for child in node.children]
        if node.attributes:
            attribute = node.attributes[0]
            stored = reader.stored(attribute.checkpoint_key)
            empty = np.zeros(stored.shape, stored.dtype.dtype)
            objects.append(np.full(stored.shape, b"", object) if stored.dtype == STRING else empty)
            names[attribute.checkpoint_key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")] = attribute.full_name
        elif node.slot_variables:
            objects.append(Optimizer({}, {}))
        elif local_names and local_names == [str(index) for index in range(len(local_names))]:
            objects.append([None] * len(local_names))
        else:
            objects.append({})
    paths = {node_id: path for path, node_id in _paths(nodes).items()}
    for node, value in zip(nodes, objects, strict=True):
        for child in node.children:
            holder: Any = value.values if isinstance(value, Optimizer) else value
            if child.node_id:
                key = int(child.local_name) if isinstance(holder, list) else child.local_name
                holder[key] = objects[child.node_id]
        for slot in node.slot_variables:
            by_path = value.slots.setdefault(slot.slot_name, {})
            by_path[paths[slot.variable_id]] = objects[slot.slot_id]
    return objects[0], names


def _paths(nodes):
    paths = {"": 0}
    for path, node_id in (pending := list(paths.items())):
        for child in nodes[node_id].children:
            if child.node_id not in paths.values():
                one = f"{path}/{child.local_name}" if path else child.local_name
                paths[one] = child.node_id
                pending.append((one, child.node_id))
    return paths


@pytest.mark.parametrize(("name", "positional"), [("obj", False), ("root", True), ("slots", False)])
def test_the_fixtures_are_restored_and_written_again_to_the_byte(fixtures_dir, tmp_path, name, positional):
    prefix = fixtures_dir / "04_object_based" / name
    tree, names = empty_tree(prefix)
    checkpoint = Checkpoint(tree) if positional else Checkpoint(**tree)
    checkpoint.read(prefix).assert_consumed()
    location = locate(tmp_path / name)
    write_checkpoint(location.parent, location.name, checkpoint.plan(with_counter=False, full_names=names))
    for ending in (".index", ".data-00000-of-00001"):
        written = (tmp_path / f"{name}{ending}").read_bytes()
        assert written == prefix.with_name(f"{name}{ending}").read_bytes()


def test_a_manager_checkpoint_is_written_again_to_the_byte(fixtures_dir, tmp_path):
    directory = fixtures_dir / "10_checkpoint_record" / "manager"
    checkpoint = Checkpoint(v=np.zeros((), np.float32), rho=np.zeros(3, np.float32))
    for number in (4, 5):
        checkpoint.restore(directory / f"ck-{number}").assert_consumed()
        assert int(checkpoint.save_counter) == number
        # One step back, because a save counts before it writes.
        checkpoint.save_counter -= 1
        assert checkpoint.save(tmp_path / "ck") == str(tmp_path / f"ck-{number}")
        for ending in (".index", ".data-00000-of-00001"):
            written = (tmp_path / f"ck-{number}{ending}").read_bytes()
            assert written == (directory / f"ck-{number}{ending}").read_bytes()


def test_tensors_stored_in_slices_are_restored(fixtures_dir):
    prefix = fixtures_dir / "04_object_based" / "maxshard"
    tree, _ = empty_tree(prefix)
    Checkpoint(**tree).read(prefix).assert_consumed()
    reader = ckptstore.load_checkpoint(prefix)
    for name, value in tree.items():
        expected = reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")
        assert np.array_equal(value, expected)
    assert np.any(tree["big"])


def test_a_saved_model_is_restored_by_its_directory(fixtures_dir):
    directory = fixtures_dir / "11_saved_model" / "sm"
    tree, _ = empty_tree(directory / "variables" / "variables")
    Checkpoint(tree).read(directory).assert_consumed()
    assert tree["table"]["x.y.z"].item() == b"str\0ing"
    status = Checkpoint(w=np.zeros((3, 3), np.float32)).read(directory)
    assert status.assert_existing_objects_matched() is status
    with pytest.raises(AssertionError, match=r"items/0/\.ATTRIBUTES/VARIABLE_VALUE"):
        status.assert_consumed()


def test_a_checkpoint_of_a_saver_is_matched_by_name(fixtures_dir):
    prefix = fixtures_dir / "10_checkpoint_record" / "saver" / "model.ckpt-00000268"
    checkpoint = Checkpoint(v=np.zeros(2, np.float32))
    checkpoint.restore(prefix).assert_consumed()
    assert np.any(checkpoint.v)
    assert int(checkpoint.save_counter) == 0
