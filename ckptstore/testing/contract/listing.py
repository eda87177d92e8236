"""`list`: exact prefix, direct children, finished objects."""

from __future__ import annotations

import unicodedata

from ckptstore.storage.base import Location
from ckptstore.testing.contract.base import ContractBase, committed

__all__ = ["ListContract"]


def _names(directory: Location, start: str = "") -> list[str]:
    found = [info.key for info in directory.storage.list(f"{directory.key}/{start}")]
    assert all(key.startswith(f"{directory.key}/") for key in found)
    return [key[len(directory.key) + 1 :] for key in found]


class ListContract(ContractBase):
    """Listing: what begins with the prefix, to the letter."""

    def test_a_directory_that_is_not_there_has_no_objects(self, directory: Location) -> None:
        assert _names(directory) == []
        assert _names(directory, "model") == []

    def test_names_come_in_order(self, directory: Location) -> None:
        for name in ("b", "a.2", "a", "a-10", "a-1", "Z"):
            self.put_raw(directory.child(name), b"x")
        assert _names(directory) == ["Z", "a", "a-1", "a-10", "a.2", "b"]

    def test_a_prefix_is_taken_to_the_letter(self, directory: Location) -> None:
        for name in ("m-1", "m-1.index", "m-10.index", "m-2.index", "n"):
            self.put_raw(directory.child(name), b"x")
        assert _names(directory, "m-1") == ["m-1", "m-1.index", "m-10.index"]
        assert _names(directory, "m-1.") == ["m-1.index"]
        assert _names(directory, "m-3") == []

    def test_only_direct_children_are_listed(self, directory: Location) -> None:
        self.put_raw(directory.child("model"), b"x")
        self.put_raw(directory.child("model-dir").child("inner"), b"x")
        assert _names(directory) == ["model"]
        assert _names(directory, "model-dir") == []
        assert _names(directory.child("model-dir")) == ["inner"]

    def test_names_that_begin_with_a_dot_are_listed(self, directory: Location) -> None:
        # Of the checkpoint with an empty basename.
        for name in (".index", "x.index"):
            self.put_raw(directory.child(name), b"x")
        assert _names(directory, ".") == [".index"]
        directory.storage.delete_many([directory.child(".index").key])

    def test_a_neighbour_directory_is_not_listed(self, directory: Location) -> None:
        self.put_raw(directory.child("run").child("model"), b"x")
        self.put_raw(directory.child("run2").child("model"), b"x")
        assert _names(directory.child("run")) == ["model"]

    def test_odd_names_are_kept_and_found(self, directory: Location) -> None:
        names = [
            "m[1]",
            "m*",
            "m?",
            "m 1",
            "m%20",
            "m+",
            "m#1",
            "m&=;,@'\"",
            "m\\1",
            "m~",
            "日本",
            "🎈",
            "-m",
            ".m",
        ]
        for name in names:
            self.put_raw(directory.child(name), name.encode())
        assert _names(directory) == sorted(names)
        for name in names:
            assert _names(directory, name) == [name]
            location = directory.child(name)
            assert location.storage.get(location.key).data == name.encode()

    def test_two_spellings_of_a_letter_are_two_names(self, directory: Location) -> None:
        composed = unicodedata.normalize("NFC", "modèle")
        decomposed = unicodedata.normalize("NFD", "modèle")
        committed(directory.storage.put_new(directory.child(composed).key, b"composed"))
        committed(directory.storage.put_new(directory.child(decomposed).key, b"decomposed"))
        assert _names(directory) == sorted([composed, decomposed])
        assert self.get_raw(directory.child(composed)) == b"composed"
        assert self.get_raw(directory.child(decomposed)) == b"decomposed"

    def test_a_listing_says_what_head_says(self, directory: Location) -> None:
        for name in ("a", "b"):
            self.put_raw(directory.child(name), name.encode() * 7)
        for info in directory.storage.list(f"{directory.key}/"):
            head = directory.storage.head(info.key)
            assert (info.size_bytes, info.version) == (7, head.version)
            assert abs(info.mtime_s - head.mtime_s) < 1.0

    def test_a_listing_follows_every_change(self, directory: Location) -> None:
        location = directory.child("model.index")
        version = committed(location.storage.put_new(location.key, b"one"))
        assert [info.version for info in location.storage.list(location.key)] == [version]
        version = committed(location.storage.put_if(location.key, b"three", version))
        assert [(info.version, info.size_bytes) for info in location.storage.list(location.key)] == [
            (version, 5)
        ]
        assert location.storage.delete_if(location.key, version)
        assert list(location.storage.list(location.key)) == []

    def test_nothing_is_listed_but_what_was_put(self, directory: Location) -> None:
        # Locks and unfinished uploads are the storage's own business.
        location = directory.child("checkpoint")
        version = committed(location.storage.put_new(location.key, b"one"))
        committed(location.storage.put_if(location.key, b"two", version))
        with location.storage.upload(directory.child("model.data-00000-of-00001").key) as upload:
            upload.write(b"under way")
            assert _names(directory) == ["checkpoint"]
            assert _names(directory, "model") == []
        assert _names(directory) == ["checkpoint"]
