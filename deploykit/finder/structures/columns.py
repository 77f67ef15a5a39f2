"""Which columns a group of rows keeps as a dense block.

Three rules:

- *area* (`choose_columns`): for blocks of a given area in all, those that keep the most;
- *ratio* (`ratio_columns`): the rule of the paper's code as it was meant: the fewest columns that are more than 1.5 times as
  many as the weights which the row that loses most has outside of them;
- *count* (`count_columns`): algorithm 3 as printed: every column with at least t2 weights in the group.

A column is an element of a row, or a whole input channel with all positions of the kernel.

Source: T. Chen et al., "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022, algorithm 3, and
the code that was released with it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from deploykit.finder.structures.transport import assign

if TYPE_CHECKING:
    from deploykit.ticket import Array, Bools, Ints

__all__ = ["Budget", "Form", "choose_columns", "count_columns", "ratio_columns"]

Form: TypeAlias = Literal["free", "equal", "disjoint"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the columns of all blocks may take.

    Attributes:
        area: rows times columns, of all blocks together.
        multiple: the number of columns of a block is a multiple of this, or all columns.
        least: the fewest columns of a block.
        form: "free": each block takes what pays most; "equal": all take equally many; "disjoint": all take equally many,
            and every column is in one block, so that the area follows from the number of blocks.
    """

    area: float
    multiple: int = 1
    least: int = 1
    form: Form = "free"

    def counts(self, columns: int) -> Ints:
        """The numbers of columns that a block may have, ascending, of so many that there are."""
        first = -(-max(self.least, 1) // self.multiple) * self.multiple
        steps = np.arange(min(first, columns), columns, self.multiple)
        return np.append(steps, columns)

    def nearest(self, wanted: float, columns: int) -> int:
        """The allowed number that is nearest; the larger of two."""
        counts = self.counts(columns)[::-1]
        return int(counts[np.argmin(np.abs(counts - wanted))])


def choose_columns(gains: Array, sizes: Ints, budget: Budget) -> Bools:
    """The columns of each block that keep the most.

    Args:
        gains: what each block would keep by each column, shape `(blocks, columns)`.
        sizes: rows of each block, shape `(blocks,)`.
        budget: how many there may be.

    Returns:
        bool, shape `(blocks, columns)`. The area is the allowed one that is nearest to the budget's; it is less where there
        is nothing more to keep. A block that pays least may get nothing.
    """
    chosen = np.zeros(gains.shape, dtype=np.bool_)
    blocks, columns = gains.shape
    if budget.form == "disjoint":
        chosen[assign(gains.T, _shares(columns, blocks)), np.arange(columns)] = True
        return chosen
    order = np.argsort(-gains, axis=1, kind="stable")
    if budget.form == "equal":
        count = budget.nearest(budget.area / sizes.sum(), columns)
        np.put_along_axis(chosen, order[:, :count], True, axis=1)
        return chosen
    ends = budget.counts(columns)
    sums = np.cumsum(np.take_along_axis(gains, order, axis=1), axis=1)[:, ends - 1]
    steps = np.diff(ends, prepend=0)
    # the columns of a block fall in gain, so its steps do, and the best steps of all blocks are a best choice
    worth = np.diff(sums, axis=1, prepend=0) / (steps * sizes[:, None])
    area = (steps * sizes[:, None]).ravel()
    block = np.repeat(np.arange(blocks), ends.size)
    best = np.lexsort((block, -worth.ravel()))
    best = best[worth.ravel()[best] > 0]
    taken = best[(np.cumsum(area[best]) - area[best] / 2) <= budget.area]
    if not taken.size:
        taken = best[:1]
    counts = np.bincount(block[taken], weights=np.tile(steps, blocks)[taken], minlength=blocks)
    for index, count in enumerate(counts.astype(int)):
        chosen[index, order[index, :count]] = True
    return chosen


def _shares(total: int, parts: int) -> Ints:
    """A number in parts as equal as can be, the larger ones first."""
    return np.asarray([total // parts + (part < total % parts) for part in range(parts)])


def ratio_columns(counts: Ints, kernel: int, ratio: float, budget: Budget) -> Ints:
    """The fewest columns, the fullest first, that have more than `ratio` times the weights that the worst row loses.

    Args:
        counts: weights of each row in each column, shape `(rows, columns)`.
        kernel: elements of a column.
        ratio: 1.5 in the paper's code.
        budget: what the number of columns is rounded to, and the fewest.

    Returns:
        the columns, ascending.
    """
    order = np.argsort(-counts.sum(0), kind="stable")
    ordered = counts[:, order]
    lost = (ordered.sum(1, keepdims=True) - np.cumsum(ordered, axis=1)).max(0)
    enough = np.arange(1, order.size + 1) * kernel > ratio * lost
    return np.sort(order[: budget.nearest(int(np.argmax(enough)) + 1, order.size)])


def count_columns(counts: Ints, kernel: int, least: float, budget: Budget) -> Ints:
    """The columns with at least `least` weights in the group, a whole column of all rows counting as that many rows.

    Args:
        counts: weights of each row in each column, shape `(rows, columns)`.
        kernel: elements of a column.
        least: t2.
        budget: what the number of columns is rounded down to, the fullest staying.

    Returns:
        the columns, ascending; none if there are fewer than the budget's least.
    """
    full = counts.sum(0) / kernel
    order = np.argsort(-full, kind="stable")
    there = int(np.count_nonzero(full >= least))
    allowed = budget.counts(order.size)
    allowed = allowed[allowed <= there]
    return np.sort(order[: int(allowed[-1]) if allowed.size else 0])
