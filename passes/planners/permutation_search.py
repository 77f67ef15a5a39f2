"""The order of channels that keeps the most magnitude under an N:M pattern.

Of every group of M channels an output keeps its N largest weights. One channel is taken out of every group, and all of them are put
back at once where they add most: what group g is worth with channel x is, summed over the outputs, the N - 1 largest of the rest
plus max(N-th largest of the rest, x); and as max(a, b) = (a + b + |a - b|) / 2, the worths of all groups with all channels are one
matrix of L1 distances, and the best way to put channels back a linear assignment. A round never loses. To get out of what no
round improves, the worths are disturbed at first, less and less (annealing); the best order of all is returned.

Where there are many channels the distances are most of the time. There, rounds that are disturbed anyway read magnitudes in steps of
1/63 of the largest but a few, which adds up in small integers, three to four times as fast; the last rounds are exact.

Sources: the objective is that of Pool and Yu, "Channel permutations for N:M sparsity" (NeurIPS 2021); assignment of one channel a
group at a time, and the distances, are this project's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from passes.analysis.patterns import selected

if TYPE_CHECKING:
    import numpy.typing as npt

    from passes.analysis.patterns import Pattern

__all__ = ["Found", "kept", "search_order", "seconds_of_round"]

Floats: TypeAlias = "npt.NDArray[np.float64]"
Ints: TypeAlias = "npt.NDArray[np.int64]"

DISTANCES_PER_SECOND: Final = 1.7e9
"""Differences that cdist adds up, of one thread of an AMD EPYC with AVX2: what a budget in seconds is counted by."""

STEPS_PER_SECOND: Final = 4.5e9
"""The same of differences of small integers, the assignment included."""

MANY_GROUPS: Final = 256
"""From here on, adding up small integers is faster than cdist; below, calls cost more than what they do."""

SOME_GROUPS: Final = 48
"""From here on, an assignment takes longer than to prepare it."""

ROUND: Final = 1.4e-4
"""Seconds that a round of the smallest matrix takes."""

ROWS_AT_ONCE: Final = 16_384
"""Of matrices with more rows, a round reads as many, drawn anew each time."""

MOST_ROUNDS: Final = 50
"""Rounds a group that are made at most, and as many more: small matrices gain nothing by more."""

HEAT: Final = 0.06
"""The first rounds are disturbed by so much of the magnitude of a row times the root of the rows: found best of 0.02 to 0.2."""

EXACT_ROUNDS: Final = 0.15
"""Share of the budget for exact rounds after rounds in steps."""

LEVELS: Final = 63
"""Steps, so that `FEW_ROWS` of them add up to 8 bits at most, and `MANY_ROWS` to 16."""

FEW_ROWS: Final = 4
MANY_ROWS: Final = 1024

CLIPPED: Final = 0.001
"""Share of magnitudes above the last step. Few weights are far larger than the others and would leave no steps for these."""

CACHED: Final = 200_000
"""Small integers that are worked on at a time, so that they stay in a processor's cache."""

FORBIDDEN: Final = -1e30
"""The worth of a channel in a place that it may not take."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The result of a search.

    Attributes:
        order: int, shape `(channels,)`: for each place the channel that stands there.
        before: magnitude that the pattern keeps in the order given.
        after: in the order found; never less.
        rounds: how many were made.
    """

    order: Ints
    before: float
    after: float
    rounds: int


def kept(columns: npt.NDArray[Any], pattern: Pattern) -> float:
    """Magnitude that the pattern keeps of a matrix.

    Args:
        columns: magnitudes, shape `(channels, rows)`; the channels are a multiple of the group.
        pattern: N:M.
    """
    return float(
        _worth(columns, np.arange(len(columns)).reshape(-1, pattern.group), pattern).sum()
    )


def search_order(
    columns: npt.NDArray[Any],
    pattern: Pattern,
    *,
    seconds: float = 1.0,
    seed: int = 0,
    parts: Ints | None = None,
    tell: Callable[[float], None] | None = None,
) -> Found:
    """Search for the order of channels that keeps the most magnitude.

    The budget is counted in operations, not by the clock: the same seed finds the same order on every machine.

    Args:
        columns: magnitudes, not negative, shape `(channels, rows)`; the channels are a multiple of the group.
        pattern: N:M.
        seconds: how long to search, on a machine like that of `DISTANCES_PER_SECOND`; at least two rounds are made.
        seed: of what is random.
        parts: int, shape `(channels,)`: channels only change places with those of the same number; None: with all.
        tell: called from time to time with the share of the search that is done.
    """
    channels, rows = columns.shape
    search = _Search(columns, pattern, np.random.default_rng(seed), parts)
    before = search.total
    groups = channels // pattern.group
    if groups < 2 or not before:
        return Found(np.arange(channels), before, before, 0)
    coarse, exact = (
        seconds_of_round(columns, pattern),
        _seconds(groups, rows, DISTANCES_PER_SECOND),
    )
    rough = int(seconds * (1 - EXACT_ROUNDS) / coarse) if groups >= MANY_GROUPS else 0
    most = MOST_ROUNDS * (groups + 1)
    rough = min(rough, most)
    fine = min(max(2, int((seconds - rough * coarse) / exact)), most)
    heat = HEAT * float(columns.mean()) * np.sqrt(min(rows, ROWS_AT_ONCE))
    total = rough + fine
    for number in range(total):
        # The last rounds are not disturbed: what it finds, no round improves, or few.
        warmth = max(0.0, 1 - number / (0.85 * total))
        search.round(heat * warmth, is_coarse=number < rough)
        if tell is not None and number % 16 == 0:
            tell(number / total)
    return Found(search.best.ravel(), before, search.best_total, total)


def seconds_of_round(columns: npt.NDArray[Any], pattern: Pattern) -> float:
    """How long most rounds of `search_order` take, on the machine that it counts by.

    Args:
        columns: as for `search_order`.
        pattern: N:M.
    """
    groups = len(columns) // pattern.group
    rate = STEPS_PER_SECOND if groups >= MANY_GROUPS else DISTANCES_PER_SECOND
    return _seconds(groups, columns.shape[1], rate)


def _seconds(groups: int, rows: int, rate: float) -> float:
    """The seconds of a round at a rate."""
    return ROUND + groups * groups * min(rows, ROWS_AT_ONCE) / rate


class _Search:
    """Groups of channels, and rounds that change them.

    Attributes:
        groups: int, shape `(groups, M)`: which channels each holds.
        total: what they are worth.
        best: the best groups so far.
        best_total: what those are worth.
    """

    def __init__(
        self,
        columns: npt.NDArray[Any],
        pattern: Pattern,
        dice: np.random.Generator,
        parts: Ints | None,
    ) -> None:
        self.columns = np.ascontiguousarray(columns)
        self.pattern = pattern
        self.dice = dice
        self.parts = None if parts is None or (parts == parts[0]).all() else parts
        self.groups: Ints = np.arange(len(columns)).reshape(-1, pattern.group)
        self.worths = _worth(columns, self.groups, pattern)
        self.total = float(self.worths.sum())
        self.best: Ints = self.groups.copy()
        self.best_total = self.total
        self._steps: npt.NDArray[np.uint8] | None = None
        self._step = 1.0

    def round(self, heat: float, *, is_coarse: bool) -> None:
        """Take one channel out of every group, and put all of them back.

        Args:
            heat: by how much worths are disturbed.
            is_coarse: whether to read magnitudes in steps.
        """
        count, size = self.groups.shape
        which: Ints = self.dice.integers(0, size, (count,))
        every: Ints = np.arange(count)
        others: Ints = (which[:, None] + np.arange(1, size)) % size
        staying, free = self.groups[every[:, None], others], self.groups[every, which]
        worth = (self._in_steps if is_coarse else self._exactly)(staying, free)
        if heat:
            worth = worth + heat * self.dice.standard_normal(worth.shape, dtype=np.float32)
        if count >= SOME_GROUPS:
            # Neither changes which assignment is best; the solver starts next to it, and is several times as fast.
            worth = worth - worth.mean(axis=0)
            worth -= worth.mean(axis=1, keepdims=True)
        if self.parts is not None:
            part = self.parts[free]
            worth[part[:, None] != part] = FORBIDDEN
        group, channel = linear_sum_assignment(worth, maximize=True)
        moved = group[group != channel]
        if not moved.size:
            return
        changed = self.groups[moved]
        changed[np.arange(moved.size), which[moved]] = free[channel[moved]]
        worths = _worth(self.columns, changed, self.pattern)
        gained = float(worths.sum() - self.worths[moved].sum())
        if not heat and gained < 0:
            # The worths were read in steps, or of some of the rows.
            return
        self.groups[moved], self.worths[moved] = changed, worths
        self.total += gained
        if self.total > self.best_total:
            self.best, self.best_total = self.groups.copy(), self.total

    def _exactly(self, staying: Ints, free: Ints) -> Floats:
        """Worth of every group with every free channel, up to what is the same for all channels or all groups."""
        columns = self.columns
        if columns.shape[1] > ROWS_AT_ONCE:
            columns = columns[:, self.dice.integers(0, columns.shape[1], ROWS_AT_ONCE)]
        limit = _largest(columns[staying], self.pattern.kept)[-1]
        arriving = columns[free]
        distance: Floats = cdist(limit, arriving, "cityblock")
        total: Floats = 0.5 * (distance + arriving.sum(axis=1, dtype=np.float64))
        return total

    def _in_steps(self, staying: Ints, free: Ints) -> Floats:
        """The same, of magnitudes rounded to steps: the sum over the rows of the larger of the two."""
        if self._steps is None:
            few = self.columns.ravel()[:: max(1, self.columns.size // 1_000_000)]
            self._step = float(np.quantile(few, 1 - CLIPPED)) / LEVELS or 1.0
            steps = np.minimum(self.columns / self._step + 0.5, LEVELS)
            self._steps = np.ascontiguousarray(steps.astype(np.uint8))
        steps = self._steps
        if steps.shape[1] > ROWS_AT_ONCE:
            steps = steps[:, self.dice.integers(0, steps.shape[1], ROWS_AT_ONCE)]
        limit = np.ascontiguousarray(_largest(steps[staying], self.pattern.kept)[-1].T)
        return self._step * _sums_of_larger(limit, np.ascontiguousarray(steps[free].T))


def _worth(columns: npt.NDArray[Any], groups: Ints, pattern: Pattern) -> Floats:
    """Magnitude that each group keeps, shape `(groups,)`."""
    worth = np.empty(len(groups))
    at_once = max(1, 4_000_000 // max(1, pattern.group * columns.shape[1]))
    for start in range(0, len(groups), at_once):
        held = columns[groups[start : start + at_once]]
        largest = _largest(held, pattern.kept)
        worth[start : start + at_once] = sum(
            each.sum(axis=1, dtype=np.float64) for each in largest
        )
    return worth


def _largest(held: npt.NDArray[Any], count: int) -> list[npt.NDArray[Any]]:
    """The largest members of each row of each group, the largest first, each of shape `(groups, rows)`.

    Args:
        held: shape `(groups, members, rows)`.
        count: how many, no more than there are members.
    """
    return selected(held.swapaxes(0, 1), count, np.maximum, np.minimum)


def _sums_of_larger(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> Floats:
    """Sum over rows of the larger of two numbers, of each column of one array with each of another.

    Args:
        one: up to `LEVELS`, shape `(rows, n)`.
        other: likewise.

    Returns:
        float64, shape `(n, n)`.
    """
    rows, size = one.shape
    total = np.zeros((size, size))
    at_once = max(1, min(size, CACHED // size))
    for start in range(0, size, at_once):
        part = one[:, start : start + at_once, None]
        larger = np.empty((part.shape[1], size), dtype=np.uint8)
        few, many = np.empty_like(larger), np.zeros(larger.shape, dtype=np.uint16)
        for first in range(0, rows, FEW_ROWS):
            if first % MANY_ROWS == 0:
                total[start : start + at_once] += many
                many[...] = 0
            np.maximum(part[first], other[first], out=few)
            for row in range(first + 1, min(first + FEW_ROWS, rows)):
                np.maximum(part[row], other[row], out=larger)
                np.add(few, larger, out=few)
            np.add(many, few, out=many)
        total[start : start + at_once] += many
    return total
