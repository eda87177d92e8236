"""Every byte of small checkpoints flipped in turn: an error, or a byte that the format leaves unread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.format.block import FOOTER_SIZE_BYTES, decode_handle
from ckptstore.storage.registry import locate
from tests.hostile.entry_points import content_of_meta, quiet, read_everything, typed

MASKS = (0x01, 0x80, 0xFF)


@dataclass(frozen=True)
class Bundle:
    """A good bundle on disk.

    Attributes
    ----------
    prefix : str
    places : dict
        Data file → for each of its bytes the tensor that owns it.
    masks : sequence of int
        What to flip of a byte.
    """

    prefix: str
    places: dict[Path, list[str]]
    masks: Sequence[int]

    @property
    def index(self) -> Path:
        return Path(self.prefix + ".index")


def _copied(directory: Path, source: Path) -> str:
    for path in source.parent.glob(f"{source.name}*"):
        (directory / path.name).write_bytes(path.read_bytes())
    return str(directory / source.name)


def plain(directory: Path, fixtures: Path) -> str:
    return _copied(directory, fixtures / "01_single_shard" / "model.ckpt-44652")


def sliced(directory: Path, fixtures: Path) -> str:
    whole = np.arange(20, dtype=np.float32).reshape(5, 4)
    with ck.BundleWriter(directory / "part") as writer:
        writer.add("after", np.array([1, 2], np.int16))
        writer.add_slice("w", (5, 4), "0,2:-", whole[:2])
        writer.add_slice("w", (5, 4), "2,3:0,1", whole[2:, :1])
        writer.add_slice("w", (5, 4), "2,3:1,3", whole[2:, 1:])
        writer.add("scalar", np.float64(2.5))
    return str(directory / "part")


def strings(directory: Path, fixtures: Path) -> str:
    with ck.BundleWriter(directory / "text") as writer:
        writer.add("naïve/世界", np.array([["häßlich", ""], ["\0", "x" * 130]], object))
        writer.add("😀", "scalar")
        writer.add("empty", np.array([], object))
        writer.add("bytes", np.array([b"\xff\xfe", b"\x80"], object))
    return str(directory / "text")


def sharded(directory: Path, fixtures: Path) -> str:
    return _copied(directory, fixtures / "03_partitioned" / "xdev")


def variants(directory: Path, fixtures: Path) -> str:
    return _copied(directory, fixtures / "07_all_dtypes" / "variant")


BUNDLES: dict[str, Callable[[Path, Path], str]] = {
    make.__name__: make for make in (plain, sliced, strings, sharded, variants)
}
THOROUGHLY = ("plain", "sliced", "strings")


@pytest.fixture(params=BUNDLES)
def bundle(request: pytest.FixtureRequest, tmp_path: Path, fixtures_dir: Path) -> Bundle:
    prefix = BUNDLES[request.param](tmp_path, fixtures_dir)
    places: dict[Path, list[str]] = {}
    reader = ck.open_checkpoint(prefix)._reader
    for name in reader.names():
        for entry in reader.stored(name).entries:
            shard = Path(f"{prefix}.data-{entry.shard_id:05d}-of-{reader.header.num_shards:05d}")
            owners = places.setdefault(shard, [""] * shard.stat().st_size)
            owners[entry.offset : entry.offset + entry.size_bytes] = [name] * entry.size_bytes
    return Bundle(prefix, places, MASKS if request.param in THOROUGHLY else MASKS[:1])


def flips(path: Path, masks: Sequence[int] = MASKS) -> Iterator[tuple[int, int]]:
    """Yield every byte's place and a mask, with the byte flipped in the file meanwhile."""
    good = path.read_bytes()
    try:
        for at in range(len(good)):
            for mask in masks:
                path.write_bytes(good[:at] + bytes((good[at] ^ mask,)) + good[at + 1 :])
                yield at, mask
    finally:
        path.write_bytes(good)


def unread_bytes(index: bytes) -> set[int]:
    """Return the places that the format leaves unread: between the handles of the footer and its magic."""
    start = len(index) - FOOTER_SIZE_BYTES
    footer = index[start:]
    _, at = decode_handle(footer, 0, source="")
    _, at = decode_handle(footer, at, source="")
    return set(range(start + at, len(index) - 8))


def test_every_byte_of_the_index_is_checked_but_the_padding_of_its_footer(bundle: Bundle) -> None:
    good = read_everything(bundle.prefix)
    assert not good.errors
    padding = unread_bytes(bundle.index.read_bytes())
    assert 30 <= len(padding) <= 36
    unnoticed = []
    for at, mask in flips(bundle.index, bundle.masks):
        outcomes = read_everything(bundle.prefix)
        if outcomes.same_content(good):
            unnoticed.append((at, mask))
            continue
        assert outcomes.errors, (at, mask)
        assert all(isinstance(error, ck.CorruptError) for error in outcomes.errors), (at, mask)
        assert all(error.url == str(bundle.index) for error in outcomes.errors), (at, mask)
        assert outcomes.report is not None
        assert [fault.file for fault in outcomes.report.faults], (at, mask)
    assert unnoticed == [(at, mask) for at in sorted(padding) for mask in bundle.masks]


def test_every_byte_of_the_data_is_checked(bundle: Bundle) -> None:
    names = list(ck.open_checkpoint(bundle.prefix))
    noticed = 0
    for path, owners in bundle.places.items():
        assert "" not in owners
        for at, mask in flips(path, bundle.masks):
            owner = owners[at]
            with quiet():
                report = verify_bundle(locate(bundle.prefix))
                assert [fault.tensor.split(" (slice")[0] for fault in report.faults] == [owner], (at, mask)  # type: ignore[union-attr]
                fault = report.faults[0]
                assert fault.file == str(path)
                assert fault.byte_range is not None
                assert fault.byte_range.start <= at < fault.byte_range.stop
                reader = ck.load_checkpoint(bundle.prefix)
                error = typed(reader.get_tensor, owner).error
                assert isinstance(error, (ck.ChecksumError, ck.FormatError)), (at, mask)
                assert (error.tensor, error.url) == (owner, str(path))
                assert error.offset is not None
                values: dict[str, object] = {}
                restored = typed(ck.Saver().restore, values, bundle.prefix)
                assert type(restored.error) is type(error)
                assert not values
                other = names[(names.index(owner) + 1) % len(names)]
                if other != owner:
                    assert typed(reader.get_tensor, other).error is None
            noticed += 1
    assert noticed == len(bundle.masks) * sum(map(len, bundle.places.values()))


def test_index_cut_anywhere_is_refused(bundle: Bundle) -> None:
    good = bundle.index.read_bytes()
    for length in range(len(good)):
        bundle.index.write_bytes(good[:length])
        with quiet():
            for read in (ck.load_checkpoint, ck.open_checkpoint, ck.list_variables):
                error = typed(read, bundle.prefix).error
                assert isinstance(error, ck.CorruptError), length
                assert error.url == str(bundle.index)
            assert not verify_bundle(locate(bundle.prefix), quick=True).ok
            assert not verify_bundle(locate(bundle.prefix)).ok


def test_data_cut_anywhere_loses_only_what_lay_behind(bundle: Bundle) -> None:
    names = list(ck.open_checkpoint(bundle.prefix))
    for path, owners in bundle.places.items():
        good = path.read_bytes()
        for length in range(len(good)):
            path.write_bytes(good[:length])
            lost = set(owners[length:])
            with quiet():
                assert not verify_bundle(locate(bundle.prefix), quick=True).ok
                reader = ck.load_checkpoint(bundle.prefix)
                for name in names:
                    error = typed(reader.get_tensor, name).error
                    assert (type(error) is ck.TruncatedFileError) == (name in lost), (length, name)
                    assert error is None or (error.url, error.tensor) == (str(path), name)
                values: dict[str, object] = {}
                restored = typed(ck.Saver().restore, values, bundle.prefix)
                assert isinstance(restored.error, ck.TruncatedFileError)
                assert not values
        path.write_bytes(good)


@pytest.mark.parametrize("more", [b"\0", b"\0" * 48, b"garbage" * 100, b"\n"])
def test_garbage_behind_the_index_is_refused_and_behind_the_data_is_not_read(
    more: bytes, bundle: Bundle
) -> None:
    good = read_everything(bundle.prefix)
    for path in bundle.places:
        path.write_bytes(path.read_bytes() + more)
    assert read_everything(bundle.prefix).same_content(good)
    bundle.index.write_bytes(bundle.index.read_bytes() + more)
    for read in (ck.load_checkpoint, ck.open_checkpoint):
        assert isinstance(typed(read, bundle.prefix).error, ck.CorruptError)


def test_every_byte_of_a_v1_file_is_checked_but_the_padding_of_its_footer(
    tmp_path: Path, fixtures_dir: Path
) -> None:
    prefix = Path(_copied(tmp_path, fixtures_dir / "05_v1_format" / "v1slices"))
    good = read_everything(str(prefix))
    assert not good.errors
    unnoticed = []
    for at, mask in flips(prefix):
        outcomes = read_everything(str(prefix))
        if outcomes.same_content(good):
            unnoticed.append((at, mask))
        else:
            # Nothing reads the metaindex block but the proof of the file.
            assert outcomes.report is not None
            assert outcomes.report.faults, (at, mask)
        assert all(isinstance(error, ck.CorruptError) for error in outcomes.errors), (at, mask)
    assert unnoticed == [(at, mask) for at in sorted(unread_bytes(prefix.read_bytes())) for mask in MASKS]


def test_flipped_meta_is_a_graph_or_a_typed_error(tmp_path: Path) -> None:
    # Nothing in a .meta is checked by the format: what is left to ask for is that no question breaks.
    ck.Saver().save({"w": np.ones((2, 3), np.float32), "text": np.array(["a"])}, tmp_path / "model")
    good = (tmp_path / "model.meta").read_bytes()
    base = content_of_meta(good)
    refused = changed = 0
    with quiet():
        for at in range(len(good)):
            mask = MASKS[at % len(MASKS)]
            damaged = good[:at] + bytes((good[at] ^ mask,)) + good[at + 1 :]
            outcome = typed(content_of_meta, damaged)
            assert outcome.error is None or isinstance(outcome.error, ck.FormatError)
            refused += outcome.error is not None
            changed += outcome.error is None and outcome.content != base
    assert refused > len(good) // 4
    assert changed > len(good) // 4


def test_meta_cut_anywhere_is_a_graph_or_a_typed_error(tmp_path: Path) -> None:
    ck.Saver().save({"w": np.ones((2, 3), np.float32)}, tmp_path / "model")
    good = (tmp_path / "model.meta").read_bytes()
    with quiet():
        for length in range(len(good)):
            outcome = typed(content_of_meta, good[:length])
            assert outcome.error is None or isinstance(outcome.error, ck.FormatError)


def _records(directory: Path) -> Path:
    saver = ck.Saver(max_to_keep=2, run="before", clock=lambda: 1000.0)
    for step in (1, 2, 3):
        saver.save({"w": np.arange(3)}, directory / "model", step, write_meta_graph=step == 1)
    saver.save({"w": np.arange(3)}, directory / "model", 3)
    return directory / "checkpoint"


def test_flipped_or_cut_record_never_names_what_cannot_be_restored(tmp_path: Path) -> None:
    record = _records(tmp_path)
    good = record.read_bytes()
    assert b"# superseded" in good
    named = {None: 0, "model-2": 0, "model-3": 0}
    cuts = (good[:length] for length in range(len(good)))
    damaged = (record.read_bytes() for _ in flips(record))
    for data in (*damaged, *cuts):
        record.write_bytes(data)
        with quiet():
            for recover in (True, False):
                outcome = typed(ck.latest_checkpoint, tmp_path, recover=recover)
                assert outcome.error is None or (isinstance(outcome.error, ck.CorruptError) and not recover)
                found = outcome.content
                if found is not None:
                    assert list(ck.load_checkpoint(found).get_tensor("w")) == [0, 1, 2]
                named[found and Path(found).name] += 1
                assert found is not None or not recover
    assert named["model-3"] > named["model-2"]
    assert named[None] > len(good)


def test_save_after_a_flipped_or_cut_record_loses_no_checkpoint(tmp_path: Path) -> None:
    record = _records(tmp_path)
    good = record.read_bytes()
    before = {path.name for path in tmp_path.iterdir()}
    fenced = 0
    for at in range(len(good)):
        if at % 3 == 2:
            record.write_bytes(good[:at])
        else:
            mask = MASKS[at % 2]
            record.write_bytes(good[:at] + bytes((good[at] ^ mask,)) + good[at + 1 :])
        saver = ck.Saver(max_to_keep=9, run="after", clock=lambda: 2000.0)
        with quiet():
            outcome = typed(saver.save, {"w": np.arange(3)}, tmp_path / "model", 4)
        if outcome.error is not None:
            fenced += 1
            assert isinstance(outcome.error, (ck.UnsupportedError, ck.FormatError)), outcome.error
            continue
        assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-4")
        for step in (2, 3, 4):
            assert verify_bundle(locate(tmp_path / f"model-{step}")).ok, (at, step)
        for path in list(tmp_path.iterdir()):
            # What the superseded line named may go; what this save wrote goes now.
            if path.name.startswith("model-4.") or path.name not in before:
                path.unlink()
    assert fenced < len(good) // 10
