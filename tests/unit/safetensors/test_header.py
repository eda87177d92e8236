"""Headers of safetensors: what is written is read, and what nobody vouches for gives a typed error."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.safetensors import from_safetensors, to_safetensors
from ckptstore.safetensors.header import FileTensor, build_header, parse_header
from ckptstore.storage.registry import locate

_numbers = itertools.count(1)


def file_of(header: bytes | dict[str, Any], data: bytes = b"", size: int | None = None) -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    place = locate(f"memory://hostile-{next(_numbers)}/model.safetensors")
    start = (len(text) if size is None else size).to_bytes(8, "little")
    place.storage.put_new(place.key, start + text + data)
    return place.url


def entry(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_is_built_is_parsed():
    tensors = [FileTensor("w/ä", "F32", (2, 3), 0, 24), FileTensor("none", "BF16", (0, 9), 24, 24)]
    built = build_header(tensors, {"format": "pt"}, url="x")
    assert len(built) % 8 == 0
    assert int.from_bytes(built[:8], "little") == len(built) - 8
    assert parse_header(built[8:], 24, url="x") == tensors


DATA = b"\1" * 8
HOSTILE: dict[str, tuple[Any, dict[str, Any]]] = {
    "a header longer than any": (b"{}", {"size": 1 << 62}),
    "a header longer than the file": (b"{}", {"size": 99}),
    "no JSON": (b"\xff\xfe", {}),
    "no object": (b"[]", {}),
    "nothing": (b"", {}),
    "a number that is none": (b'{"a": NaN}', {}),
    "a number without end": (b'{"a": ' + b"9" * 9999 + b"}", {}),
    "a key twice": (b'{"a": 1, "a": 2}', {}),
    "deep": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", {}),
    "a tensor that is no object": ({"a": 7}, {}),
    "a field too many": ({"a": entry() | {"more": 1}}, {"data": DATA}),
    "a field too few": ({"a": {"dtype": "U8"}}, {"data": DATA}),
    "an unknown type": ({"a": entry("F1024")}, {"data": DATA}),
    "a type that is no text": ({"a": entry() | {"dtype": [1]}}, {"data": DATA}),
    "a negative size": ({"a": entry(shape=[-4])}, {"data": DATA}),
    "a truth value as size": ({"a": entry(shape=[True])}, {"data": DATA}),
    "a fraction as size": ({"a": entry(shape=[4.0])}, {"data": DATA}),
    "many dimensions": ({"a": entry(shape=[1 << 62] * 5000)}, {"data": DATA}),
    "more elements than there are": ({"a": entry(shape=[1 << 62, 1 << 62])}, {"data": DATA}),
    "one offset": ({"a": entry(offsets=[4])}, {"data": DATA[:4]}),
    "offsets in the wrong order": ({"a": entry(offsets=[4, 0])}, {"data": DATA[:4]}),
    "another size than type and shape say": ({"a": entry("F32")}, {"data": DATA[:4]}),
    "half a byte": ({"a": entry("F4", [1], [0, 1])}, {"data": DATA[:1]}),
    "overlap": ({"a": entry(), "b": entry(offsets=[2, 6])}, {"data": DATA[:6]}),
    "a hole": ({"a": entry(), "b": entry(offsets=[5, 9])}, {"data": DATA + b"\0"}),
    "a hole at the beginning": ({"a": entry(offsets=[4, 8])}, {"data": DATA}),
    "bytes behind the last": ({"a": entry()}, {"data": DATA}),
    "bytes that are not there": ({"a": entry()}, {"data": DATA[:3]}),
    "metadata that are no texts": ({"__metadata__": {"a": 1}, "b": entry()}, {"data": DATA[:4]}),
    "a truth value of two": ({"a": entry("BOOL")}, {"data": b"\0\1\2\0"}),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_a_hostile_file_gives_a_typed_error_and_no_checkpoint(case: str):
    header, more = HOSTILE[case]
    url = file_of(header, more.get("data", b""), more.get("size"))
    with pytest.raises(ck.CorruptError) as caught:
        from_safetensors(url, f"memory://hostile-{next(_numbers)}/model")
    assert caught.value.url == url
    assert not ck.checkpoint_exists(f"memory://hostile-{next(_numbers) - 1}/model")


@pytest.mark.parametrize("size_bytes", range(8))
def test_a_file_without_a_header(size_bytes: int):
    place = locate(f"memory://short-{next(_numbers)}/a.safetensors")
    place.storage.put_new(place.key, b"\0" * size_bytes)
    with pytest.raises(ck.TruncatedFileError):
        from_safetensors(place.url, f"memory://short-{next(_numbers)}/model")


@pytest.mark.parametrize("name", ["", "_CHECKPOINTABLE_OBJECT_GRAPH", "_CKPTSTORE_TREE"])
def test_a_name_that_a_checkpoint_cannot_have(name: str):
    url = file_of({name: entry()}, DATA[:4])
    with pytest.raises(ck.UsageError):
        from_safetensors(url, f"memory://names-{next(_numbers)}/model", names=[name])
    to = f"memory://names-{next(_numbers)}/model"
    from_safetensors(url, to, names=[name], rename={name: "w"})
    np.testing.assert_array_equal(ck.load_variable(to, "w"), np.ones(4, np.uint8))


@pytest.mark.parametrize(
    "weights",
    [None, {}, {"a": 7}, {"a": "../model.safetensors"}, {"a": "a\\b.safetensors"}, {"a": "model.index"}],
)
def test_an_index_that_names_something_else(weights: Any):
    place = locate(f"memory://index-{next(_numbers)}/model.safetensors.index.json")
    place.storage.put_new(place.key, json.dumps({"weight_map": weights}).encode())
    with pytest.raises(ck.FormatError) as caught:
        from_safetensors(place.url, f"memory://index-{next(_numbers)}/model")
    assert caught.value.url == place.url


def indexed(*names: str) -> str:
    """Return the index of a file that holds one tensor, a, which says that it holds `names`."""
    file = locate(file_of({"a": entry()}, DATA[:4]))
    index = locate(f"{file.parent.url}/model.safetensors.index.json")
    index.storage.put_new(index.key, json.dumps({"weight_map": dict.fromkeys(names, file.name)}).encode())
    return index.url


@pytest.mark.parametrize("options", [{"rename": {"w": "\ud800"}}, {"metadata": {"a": "\ud800"}}])
def test_half_a_surrogate_pair_is_refused_before_anything_is_written(options: Any):
    prefix = ck.Saver().save({"w": np.ones(3)}, f"memory://surrogate/{next(_numbers)}/model")
    assert prefix is not None
    target = f"{prefix}.safetensors"
    with pytest.raises(ck.UsageError, match="surrogate"):
        to_safetensors(prefix, target, **options)
    with pytest.raises(ck.NotFoundError):
        from_safetensors(target, f"{prefix}-again")


def test_an_index_that_promises_more_than_its_file_has():
    with pytest.raises(ck.TensorNotFoundError, match="'b'"):
        from_safetensors(indexed("a", "b"), "memory://index-more/model")
    with pytest.raises(ck.FormatError, match="does not name"):
        from_safetensors(
            indexed_two(),
            "memory://index-less/model",
        )
    assert from_safetensors(indexed("a"), "memory://index-same/model") == "memory://index-same/model"
    assert list(ck.open_checkpoint("memory://index-same/model")) == ["a"]


def indexed_two() -> str:
    file = locate(file_of({"a": entry(), "b": entry(offsets=[4, 8])}, DATA))
    index = locate(f"{file.parent.url}/model.safetensors.index.json")
    index.storage.put_new(index.key, json.dumps({"weight_map": {"a": file.name}}).encode())
    return index.url
