"""Which bytes of which data files entries claim, and whether the files have them: one check for every reader.

Calls
-----
A restore calls `check_claims` before it takes memory. Verification goes through `claims_by_shard` and reports
everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.shard_files import ShardFiles
from ckptstore.errors import FormatError
from ckptstore.format.entry_columns import Integers

__all__ = ["ShardClaims", "check_claims", "claims_by_shard"]


class ShardClaims(NamedTuple):
    """What tensors and slices claim of one data file.

    Attributes
    ----------
    rows : ndarray of int64
        Positions of the claims among all, ascending by offset.
    offsets, sizes_bytes : ndarray of int64
        One for each row.
    """

    shard_id: int
    rows: Integers
    offsets: Integers
    sizes_bytes: Integers

    def only(self, kept: npt.NDArray[np.bool_]) -> ShardClaims:
        """Return some of the claims."""
        return ShardClaims(self.shard_id, self.rows[kept], self.offsets[kept], self.sizes_bytes[kept])

    @property
    def ends(self) -> Integers:
        """Where each claim ends."""
        return self.offsets + self.sizes_bytes

    @property
    def total_bytes(self) -> int:
        """The sum of all; it may have more than 63 bits."""
        sizes_bytes = self.sizes_bytes
        is_small = len(sizes_bytes) * int(sizes_bytes.max(initial=0)) < 1 << 63
        return int(sizes_bytes.sum()) if is_small else sum(sizes_bytes.tolist())

    def outside(self, size_bytes: int) -> npt.NDArray[np.bool_]:
        """Return which claims a file of `size_bytes` does not hold."""
        return (self.ends > size_bytes) & (self.sizes_bytes > 0)

    def overclaim(self, size_bytes: int) -> FormatError | None:
        """Return an error if the claims are more bytes than the file has: they must not fill the memory."""
        total = self.total_bytes
        if total <= size_bytes:
            return None
        return FormatError(
            "several tensors or slices claim the same bytes of a data file",
            expected=f"at most {size_bytes} bytes",
            actual=f"{total} bytes",
        )


def claims_by_shard(
    shard_ids: Sequence[int] | Integers,
    offsets: Sequence[int] | Integers,
    sizes_bytes: Sequence[int] | Integers,
    *,
    with_empty: bool = False,
) -> Iterator[ShardClaims]:
    """Yield the claims of each data file, ascending by its number; of no bytes only on demand."""
    shards, starts, sizes = (np.asarray(column, np.int64) for column in (shard_ids, offsets, sizes_bytes))
    follows = (shards[1:] > shards[:-1]) | ((shards[1:] == shards[:-1]) & (starts[1:] >= starts[:-1]))
    # Tensors mostly lie in the order of their names.
    order = np.arange(len(shards)) if follows.all() else np.lexsort((starts, shards))
    if not with_empty:
        order = order[sizes[order] > 0]
    if len(order):
        for rows in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            yield ShardClaims(int(shards[rows[0]]), rows, starts[rows], sizes[rows])


def check_claims(
    shards: ShardFiles,
    names: Sequence[str],
    shard_ids: Sequence[int],
    offsets: Sequence[int],
    sizes_bytes: Sequence[int],
) -> None:
    """Raise unless the data files are there and hold what tensors and slices claim.

    Parameters
    ----------
    names : sequence of str
        The tensor of each claim; the first one with an error is named.
    shard_ids, offsets, sizes_bytes : sequence of int
        The claims. Each comes once: what is read twice may be claimed once.

    Raises
    ------
    IncompleteBundleError, NotFoundError
        As `ShardFile.size_bytes`.
    TruncatedFileError
        If a data file ends before a claim does.
    FormatError
        If all claims together are more bytes of a data file than it has.
    """
    claims = list(claims_by_shard(shard_ids, offsets, sizes_bytes))
    wanted = [(claim.shard_id, names[claim.rows.min()]) for claim in claims]
    shards.request_sizes(wanted)
    of_files = [shards[shard_id].size_bytes(name) for shard_id, name in wanted]
    end = len(names)
    outside = [
        int(claim.rows[claim.outside(size)].min(initial=end))
        for claim, size in zip(claims, of_files, strict=True)
    ]
    row = min(outside, default=end)
    if row < end:
        shards[shard_ids[row]].check_inside(offsets[row], sizes_bytes[row], names[row])
    for claim, size in zip(claims, of_files, strict=True):
        error = claim.overclaim(size)
        if error is not None:
            error.url, error.tensor = shards[claim.shard_id].url, names[claim.rows.max()]
            error.hint = "No writer of checkpoints makes such files."
            raise error
