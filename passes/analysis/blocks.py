"""Finds dense blocks in a weight: rows that read the same inputs.

A weight is seen as a matrix of outputs by inputs (whole channels: an input counts as read if any of its kernel's weights is
not zero). Rows with the same support are one block. Where supports differ by a few zeros that came by chance, blocks are
merged as long as that adds little area; what is dense among sparse rows is a block of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from passes.analysis.compact import Array

__all__ = ["Blocks", "Part", "find_blocks", "fit_blocks", "whole_block"]

MOST_PARTS: Final = 32
"""Blocks in a layer; more make so many small operations that nothing is won."""
FEWEST_ROWS: Final = 4
"""Rows of a block; smaller ones go into others, if they are no block of the whole matrix."""
MOST_SUPPORTS: Final = 512
"""Different supports up to which blocks are looked for; beyond, the zeros are scattered."""
FREE: Final = 0.03
"""Share of what is not zero that merging may add without another reason: zeros that came by chance. To join two of 32 blocks of
one size that share half of their columns costs more."""
WORTH: Final = 0.9
"""Blocks that cover more of the matrix than this are not told."""
FILLED: Final = 0.5
"""Share of what lies in blocks that is not zero, at least; with less, zeros are scattered and blocks are none of the weight's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A dense block.

    Attributes:
        rows: outputs, ascending.
        columns: inputs that they read, ascending.
    """

    rows: Array
    columns: Array

    @property
    def area(self) -> int:
        """Elements of the matrix."""
        return self.rows.size * self.columns.size


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The dense blocks of a matrix; outside of them it is zero.

    Attributes:
        parts: the blocks; together they have every row once.
        shape: rows and columns of the matrix.
    """

    parts: tuple[Part, ...]
    shape: tuple[int, int]

    @property
    def area(self) -> float:
        """Share of the matrix that lies in blocks."""
        return sum(part.area for part in self.parts) / (self.shape[0] * self.shape[1])

    @property
    def order(self) -> Array:
        """All rows, block by block."""
        return np.concatenate([part.rows for part in self.parts])

    def __str__(self) -> str:
        sizes = sorted(
            ((part.rows.size, part.columns.size) for part in self.parts), reverse=True
        )
        alike = {size: sizes.count(size) for size in dict.fromkeys(sizes)}
        said = [
            f"{count} of {rows}x{columns}" if count > 1 else f"{rows}x{columns}"
            for (rows, columns), count in list(alike.items())[:4]
        ]
        more = ", ..." if len(alike) > 4 else ""
        return f"{', '.join(said)}{more} in {self.shape[0]}x{self.shape[1]}"


def find_blocks(support: Array) -> Blocks | str:
    """Find the blocks of a matrix.

    Args:
        support: bool, shape `(rows, columns)`: where a weight is not zero.

    Returns:
        the blocks, or why there are none, in words.
    """
    rows, columns = support.shape
    if support.all():
        return "it has no zeros that whole input channels share"
    packed = np.packbits(support, axis=1)
    # Equal rows are found as bytes: `np.unique` along an axis takes ten times as long.
    keys = [row.tobytes() for row in packed]
    places = {key: at for at, key in enumerate(sorted(set(keys)))}
    member = np.asarray([places[key] for key in keys])
    supports = support[np.unique(member, return_index=True)[1]]
    is_empty = ~supports.any(axis=1)
    if is_empty.all():
        return "all of it is zero"
    if len(supports) > MOST_SUPPORTS:
        return f"its zeros are scattered: {len(supports)} of {rows} rows read different inputs"
    groups = [np.flatnonzero(member == index) for index in np.flatnonzero(~is_empty)]
    groups, held = _merge(groups, supports[~is_empty], int(support.sum()))
    empty = np.flatnonzero(np.isin(member, np.flatnonzero(is_empty)))
    filled = support.sum() / sum(
        group.size * int(read.sum()) for group, read in zip(groups, held, strict=True)
    )
    if filled < FILLED:
        return f"its zeros are scattered: of the smallest blocks that hold the rest, {1 - filled:.0%} would be zeros"
    groups = _spread(groups, empty)
    return _checked(groups, held, (rows, columns))


def fit_blocks(
    given: Sequence[tuple[Array, Array]], support: Array, shape: tuple[int, int]
) -> Blocks | str:
    """Take blocks that are known, of a ticket say.

    Args:
        given: rows and columns of each.
        support: bool, `shape`: where the weight is not zero; all of it has to lie in the blocks.
        shape: rows and columns of the matrix.

    Returns:
        the blocks, or why they do not hold, in words.
    """
    covered = np.zeros(shape, dtype=bool)
    for rows, columns in given:
        covered[np.ix_(rows, columns)] = True
    if (support & ~covered).any():
        return "weights outside of its blocks are not zero"
    return find_blocks(covered)


def _merge(
    groups: list[Array], supports: Array, filled: int
) -> tuple[list[Array], list[Array]]:
    """Join groups of rows, the cheapest pair first, until there are few enough of enough rows.

    Args:
        groups: rows that read the same columns.
        supports: bool, shape `(groups, columns)`: which ones.
        filled: how many elements of the matrix are not zero.
    """
    groups = list(groups)
    held = supports.astype(np.float32)
    lengths = np.asarray([group.size for group in groups], dtype=np.float64)
    # Columns that each pair shares, and what both cost more than now if they had the columns of both.
    shared = (held @ held.T).astype(np.float64)
    widths = shared.diagonal().copy()
    added = lengths[None, :] * (widths[:, None] - shared)
    added += added.T
    np.fill_diagonal(added, np.inf)
    left = np.ones(len(groups), dtype=bool)
    budget = FREE * filled
    least = min(FEWEST_ROWS, max(1, int(lengths.sum()) // 2))
    for count in range(len(groups), 1, -1):
        must = count > MOST_PARTS
        lines = np.flatnonzero(left & (lengths < least))
        if must or not lines.size:
            one, other = divmod(int(np.argmin(added)), len(groups))
        else:
            must = True
            at, other = divmod(int(np.argmin(added[lines])), len(groups))
            one = int(lines[at])
        cost = float(added[one, other])
        if not must:
            if cost > budget:
                break
            budget -= cost
        groups[one] = np.concatenate([groups[one], groups[other]])
        lengths[one] += lengths[other]
        np.maximum(held[one], held[other], out=held[one])
        left[other] = False
        common = (held @ held[one]).astype(np.float64)
        widths[one] = common[one]
        line = lengths * (widths[one] - common) + lengths[one] * (widths - common)
        line[~left] = line[one] = np.inf
        added[one] = added[:, one] = line
        added[other] = added[:, other] = np.inf
    kept = np.flatnonzero(left)
    return [groups[at] for at in kept], [held[at] > 0 for at in kept]


def _spread(groups: list[Array], empty: Array) -> list[Array]:
    """Give rows without weights to the smallest groups: they are computed there, as zeros."""
    groups = list(groups)
    for row in empty:
        smallest = min(range(len(groups)), key=lambda index: groups[index].size)
        groups[smallest] = np.append(groups[smallest], row)
    return groups


def _checked(
    groups: Sequence[Array], held: Sequence[Array], shape: tuple[int, int]
) -> Blocks | str:
    parts = sorted(
        (
            Part(np.sort(group), np.flatnonzero(support))
            for group, support in zip(groups, held, strict=True)
        ),
        key=lambda part: int(part.rows[0]),
    )
    blocks = Blocks(tuple(parts), shape)
    if blocks.area > WORTH:
        return f"what lies in blocks is {blocks.area:.0%} of it"
    return blocks


def whole_block(rows: int, columns: int) -> Blocks:
    """All of a matrix as one block."""
    return Blocks((Part(np.arange(rows), np.arange(columns)),), (rows, columns))
