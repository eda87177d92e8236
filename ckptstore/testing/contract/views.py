"""`SupportsViews`: objects as memory."""

from __future__ import annotations

from typing import ClassVar

import pytest

from ckptstore.errors import NotFoundError
from ckptstore.storage.abilities import SupportsViews
from ckptstore.storage.base import Location
from ckptstore.testing.contract.base import CONTENT, AbilityContract, replace_object

__all__ = ["ViewContract"]


class ViewContract(AbilityContract):
    """Views: the bytes of one version, for as long as somebody holds them."""

    ability: ClassVar[type] = SupportsViews

    @staticmethod
    def _view(location: Location, version: str) -> memoryview:
        storage = location.storage
        assert isinstance(storage, SupportsViews)
        view = storage.view(location.key, version=version)
        if view is None:
            pytest.skip("the file system of the test cannot map files")
        return view

    def test_a_view_shows_the_bytes_and_is_read_only(self, source: Location) -> None:
        view = self._view(source, source.storage.head(source.key).version)
        assert view.nbytes == len(CONTENT)
        assert view == CONTENT
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1

    def test_a_view_of_an_empty_object_is_empty(self, directory: Location) -> None:
        location = directory.child("empty")
        self.put_raw(location, b"")
        view = self._view(location, location.storage.head(location.key).version)
        assert view.nbytes == 0

    @pytest.mark.parametrize("what", ["replaced", "deleted"])
    def test_a_view_keeps_its_bytes_and_no_other_version_is_shown(self, source: Location, what: str) -> None:
        storage = source.storage
        version = storage.head(source.key).version
        view = self._view(source, version)
        part = view[1000:2000]
        del view
        if what == "replaced":
            replace_object(source, b"other" * 1000)
        else:
            storage.delete_many([source.key])
        assert part == CONTENT[1000:2000]
        with pytest.raises(NotFoundError):
            self._view(source, version)
