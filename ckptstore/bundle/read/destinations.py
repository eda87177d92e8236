"""Whether the arrays that a restore fills have memory of their own, each element and each tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError

__all__ = ["Destination", "check_destinations"]

# The exact test of two arrays is a search that can take for ever. Arrays that are laid out in a regular way
# take a few steps; others are refused.
_MOST_WORK = 10_000
_MOST_TESTS = 20_000

# Elements of an array with unusual strides that are compared one by one.
_MOST_ELEMENTS = 1 << 20


class Destination(NamedTuple):
    """An array that is to be filled.

    Attributes
    ----------
    name : str or callable
        Of the array, for messages; or what returns it.
    content : object
        Equal for tensors with the same bytes: these may share an array, as tied weights do.
    """

    name: str | Callable[[], str]
    array: npt.NDArray[Any]
    content: object


class _Span(NamedTuple):
    low: int
    high: int
    destination: Destination


def check_destinations(destinations: Sequence[Destination]) -> None:
    """Raise unless each array can hold what it gets.

    Raises
    ------
    UsageError
        If two elements of one array share memory, or two tensors that differ have an array, or a part of one,
        in common.
    """
    for destination in destinations:
        if _overlaps_itself(destination.array):
            raise UsageError(
                "elements of the array share memory, so it cannot hold a tensor",
                tensor=_name(destination),
                actual=f"shape {list(destination.array.shape)}, strides {list(destination.array.strides)}",
                hint="Give an array of its own: np.array(x) copies one.",
            )
    # Arrays that own their memory can only be the same.
    is_plain = all(destination.array.base is None for destination in destinations)
    if is_plain and len({id(destination.array) for destination in destinations}) == len(destinations):
        return
    for cluster in _clusters(_distinct(destinations)):
        if not _have_own_residues(cluster):
            _check_pairs(cluster)


def _overlaps_itself(array: npt.NDArray[Any]) -> bool:
    if array.flags.c_contiguous or array.flags.f_contiguous or not array.size:
        return False
    reach = array.itemsize
    dims = _dimensions(array)
    for stride, size in dims:
        if stride < reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    if dims[0][0] == 0 or array.size > _MOST_ELEMENTS:
        return True
    places = np.zeros(1, np.int64)
    for stride, size in dims:
        places = (places[:, None] + stride * np.arange(size)).ravel()
    places.sort()
    return bool((np.diff(places) < array.itemsize).any())


def _dimensions(array: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Return distance and number of the elements along each dimension that has several, nearest first."""
    return sorted(
        (abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True) if size > 1
    )


def _distinct(destinations: Sequence[Destination]) -> list[Destination]:
    """Return one of those with the very same memory; they get the same bytes, in the same order."""
    found: dict[object, Destination] = {}
    for destination in destinations:
        array = destination.array
        if array.size:
            place = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype)
            other = found.setdefault(place, destination)
            if other.content != destination.content:
                raise _shared(other, destination)
    return list(found.values())


def _clusters(destinations: Sequence[Destination]) -> Iterator[list[_Span]]:
    """Yield those whose memory lies in between, several at a time."""
    spans = sorted(
        (_Span(*np.lib.array_utils.byte_bounds(one.array), one) for one in destinations),
        key=lambda span: span[:2],
    )
    cluster: list[_Span] = []
    reached = 0
    for span in spans:
        if cluster and span.low >= reached:
            if len(cluster) > 1:
                yield cluster
            cluster = []
        reached = max(reached, span.high) if cluster else span.high
        cluster.append(span)
    if len(cluster) > 1:
        yield cluster


def _have_own_residues(cluster: Sequence[_Span]) -> bool:
    """Return whether the addresses prove that none overlap, as those of the columns of one matrix do.

    Each array consists of runs of bytes, at distances that are multiples of one number for all of them.
    Modulo that number each takes one interval.
    """
    runs = []
    common = 0
    for span in cluster:
        array = span.destination.array
        run = array.itemsize
        for stride, size in _dimensions(array):
            if stride == run:
                run *= size
            else:
                common = math.gcd(common, stride)
        runs.append((span.low, run))
    if not common:
        return False
    intervals = sorted((low % common, low % common + run) for low, run in runs)
    # The last one may reach round to the first.
    intervals.append((intervals[0][0] + common, 0))
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(intervals))


def _check_pairs(cluster: Sequence[_Span]) -> None:
    tests = 0
    begun: list[_Span] = []
    for span in cluster:
        begun = [other for other in begun if other.high > span.low]
        for other in begun:
            tests += 1
            if tests > _MOST_TESTS or _overlap(other.destination.array, span.destination.array):
                raise _shared(other.destination, span.destination)
        begun.append(span)


def _overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_MOST_WORK)  # type: ignore[arg-type]  # any number
    except np.exceptions.TooHardError:
        return True


def _shared(one: Destination, other: Destination) -> UsageError:
    return UsageError(
        "two tensors would be read into the same memory",
        tensor=_name(other),
        expected="an array of its own",
        actual=f"shares memory with {_name(one)!r}",
        hint="Give each an array of its own, or restore only one of the two.",
    )


def _name(destination: Destination) -> str:
    return destination.name() if callable(destination.name) else destination.name
