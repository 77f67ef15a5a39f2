"""Balanced co-clustering: groups of rows and the columns of each, so that the blocks keep as much magnitude as can be.

For given columns of the blocks, which rows belong to which block is a transportation problem; for given rows, which columns
pay is a choice by gain (`columns.choose_columns`). Both are solved exactly, in turns, until nothing improves: k-means with
sizes, whose centres are sets of columns. It starts from the singular vectors of the scaled table (spectral co-clustering)
and from random groups; the best is then shaken: some rows change places, and the turns are taken again.

Source: the spectral start is I. Dhillon, "Co-clustering documents and words using bipartite spectral graph partitioning", KDD
2001, with groups of given sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse.linalg import svds

from deploykit.finder.structures.columns import choose_columns
from deploykit.finder.structures.transport import assign

if TYPE_CHECKING:
    from deploykit.finder.structures.columns import Budget
    from deploykit.ticket import Array, Bools, Ints

__all__ = ["Clusters", "cluster", "improve", "sized", "spectral_groups"]

TURNS = 50
ENOUGH = 1e-6
"""An improvement smaller than this share is none."""
RANDOM_STARTS = 2
SHAKES = 12
CHEAP = 1_000_000
MOST_EFFORT = 5
"""A table of fewer elements than CHEAP gets more starts and shakes in proportion, but at most this many times."""
SHAKEN = 0.1
"""Share of the rows that change places when a result is shaken."""
CENTRES = 20
SMOOTHING = 0.1
"""Added to each degree, as a share of the mean one: rows and columns with next to nothing do not count for much."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of rows, and the columns of each.

    Attributes:
        labels: the group of each row, shape `(rows,)`.
        columns: bool, shape `(groups, columns)`.
        kept: what of the table's sum is inside the blocks.
    """

    labels: Ints
    columns: Bools
    kept: float


def cluster(table: Array, sizes: Ints, budget: Budget, *, seed: int = 0) -> Clusters:
    """Find groups of rows of given sizes, and columns for each, that keep much of a table.

    Args:
        table: magnitudes, not negative, shape `(rows, columns)`.
        sizes: rows of each group, which add up to all rows.
        budget: how many columns the groups may have.
        seed: of all that is random.
    """
    dice = np.random.default_rng(seed)
    effort = min(max(CHEAP // table.size, 1), MOST_EFFORT)
    best = max(
        (
            improve(table, labels, sizes, budget)
            for labels in _starts(table, sizes, dice, RANDOM_STARTS * effort)
        ),
        key=lambda found: found.kept,
    )
    if len(sizes) == 1:
        return best
    for _ in range(SHAKES * effort):
        labels = best.labels.copy()
        moved = dice.permutation(labels.size)[: max(2, int(SHAKEN * labels.size))]
        labels[moved] = labels[dice.permutation(moved)]
        found = improve(table, labels, sizes, budget)
        best = max(best, found, key=lambda one: one.kept)
    return best


def _starts(table: Array, sizes: Ints, dice: np.random.Generator, count: int) -> Iterator[Ints]:
    groups = np.repeat(np.arange(sizes.size), sizes)
    if sizes.size > 1 and min(table.shape) > sizes.size:
        yield spectral_groups(table, sizes, dice)
    for _ in range(count if sizes.size > 1 else 1):
        yield dice.permutation(groups)


def improve(table: Array, labels: Ints, sizes: Ints, budget: Budget) -> Clusters:
    """Choose columns for the rows and rows for the columns, in turns, until nothing improves.

    Args:
        table: magnitudes, shape `(rows, columns)`.
        labels: the group of each row, to begin with; groups need not have their sizes yet.
        sizes: rows of each group.
        budget: how many columns the groups may have.
    """
    best = sized(table, labels, sizes, budget)
    for _ in range(TURNS):
        labels = _moved(table, best.columns, sizes)
        found = _with_columns(table, labels, sizes, budget)
        if found.kept <= best.kept * (1 + ENOUGH):
            break
        best = found
    return best


def sized(table: Array, labels: Ints, sizes: Ints, budget: Budget) -> Clusters:
    """Groups of rows with the columns that suit them; groups of other sizes are brought to theirs first.

    Arguments as of `improve`.
    """
    if (np.bincount(labels, minlength=sizes.size) != sizes).any():
        labels = _moved(table, _with_columns(table, labels, sizes, budget).columns, sizes)
    return _with_columns(table, labels, sizes, budget)


def _with_columns(table: Array, labels: Ints, sizes: Ints, budget: Budget) -> Clusters:
    member = (labels == np.arange(sizes.size)[:, None]).astype(table.dtype)
    gains = member @ table
    columns = choose_columns(gains, sizes, budget)
    return Clusters(labels, columns, float(gains[columns].sum()))


def _moved(table: Array, columns: Bools, sizes: Ints) -> Ints:
    return assign(table @ columns.T.astype(table.dtype), sizes)


def spectral_groups(table: Array, sizes: Ints, dice: np.random.Generator) -> Ints:
    """Groups of rows that are near to one another in the leading singular vectors of the scaled table."""
    wide = np.log1p(table / (table[table > 0].mean() if table.any() else 1.0))
    rows, columns = wide.sum(1), wide.sum(0)
    rows, columns = rows + SMOOTHING * rows.mean(), columns + SMOOTHING * columns.mean()
    scaled = wide / np.sqrt(rows)[:, None] / np.sqrt(columns) if wide.any() else wide
    start = dice.random(min(table.shape))
    vectors = svds(scaled, k=sizes.size, v0=start)[0]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1)
    centres = vectors[dice.permutation(len(vectors))[: sizes.size]]
    labels = assign(vectors @ centres.T, sizes)
    for _ in range(CENTRES):
        centres = np.stack([vectors[labels == group].mean(0) for group in range(sizes.size)])
        # the nearest centre: half its squared length counts against it
        near = vectors @ centres.T - np.square(centres).sum(1) / 2
        before, labels = labels, assign(near, sizes)
        if (before == labels).all():
            break
    return labels
