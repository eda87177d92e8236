"""The trees of many ranks as one: each may hold keys that the others do not have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ckptstore.errors import UsageError
from ckptstore.tree.document import serialize
from ckptstore.tree.habit import Habit, Path, shown
from ckptstore.tree.skeleton import MAPPINGS, ArrayNode, Fields, members

__all__ = ["merge"]


def merge(skeletons: Sequence[tuple[str, Any]], habit: Habit) -> Any:
    """Return a skeleton with what any of them has.

    Mappings are united. Everything else must be the same wherever two of them have it: which of two values
    would come back is nobody's to choose.

    Parameters
    ----------
    skeletons : sequence of (str, object)
        Each with what to call its rank in messages; one at least.

    Raises
    ------
    UsageError
        If two of them differ in a place. ``tensor`` is its name.
    """
    (whose, merged), *others = skeletons
    for other_whose, other in others:
        merged = _Merge(habit, whose, other_whose).of(merged, other, ())
    return merged


class _Merge:
    def __init__(self, habit: Habit, whose: str, other_whose: str) -> None:
        self._habit = habit
        self._whose = (whose, other_whose)

    def of(self, one: Any, other: Any, path: Path) -> Any:
        if type(one) is type(other) and type(one) in (*MAPPINGS, Fields):
            made = type(one)()
            for key in dict.fromkeys([*one, *other]):
                if key in one and key in other:
                    made[key] = self.of(one[key], other[key], (*path, key))
                else:
                    made[key] = one[key] if key in one else other[key]
            return made
        if type(one) is type(other) and type(one) in (list, tuple) and len(one) == len(other):
            both = zip(one, other, strict=True)
            return type(one)(self.of(*pair, (*path, index)) for index, pair in enumerate(both))
        if self._text(one) != self._text(other):
            raise self._differ(one, other, path)
        return one

    def _text(self, skeleton: Any) -> bytes:
        # As the document has it: NaN is like itself there, and 1 is not like 1.0.
        return serialize(skeleton, self._habit)

    def _differ(self, one: Any, other: Any, path: Path) -> UsageError:
        shown_values = [
            f"{_described(value)} on {whose}" for value, whose in zip((one, other), self._whose, strict=True)
        ]
        return UsageError(
            f"the ranks have different values at {shown(path)}",
            tensor=self._habit.name_of(path) or None,
            expected="the same on every rank that has the key",
            actual=", ".join(shown_values),
            hint="Put what belongs to one rank under a key with its number.",
        )


def _described(value: Any) -> str:
    if isinstance(value, ArrayNode):
        return f"the tensor {value.name!r}"
    inside = members(value)
    if inside is not None:
        return f"a {type(value).__name__} of {len(inside)}"
    return json.dumps(repr(value)[:80])[1:-1]
