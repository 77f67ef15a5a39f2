"""Which counts take the least time and leave enough: a search over a table of costs.

The counts of all groups are to leave a share of the weights (or multiply-accumulates) at least, and to take the least time
beyond that. With a price on what is left, time - price * left is brought down group by group (coordinate descent) until no
group gains by another count; the price is bisected until just enough is left. What a price cannot reach, because the best
counts jump there, is filled by exchanging steps between groups. Several starts; nothing is random.

Source: H. Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources", Operations
Research 11 (3), 1963. Tables of layer latencies for this purpose: T.-J. Yang et al., "NetAdapt", ECCV 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from deploykit.errors import ModelError

__all__ = ["Problem", "Term", "allocate", "uniform"]

Counts: TypeAlias = tuple[int, ...]
Function: TypeAlias = Callable[[Sequence[int]], float]

BISECTIONS = 24
SWEEPS = 20
"""Rounds of coordinate descent at one price: it settles in a handful."""

POLISHED = 6
"""How many of the best counts that prices find are improved by exchanges."""

NEAR = 3
"""Steps by which groups exchange channels in the end."""


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """A part of the sums that depends on a few groups only.

    Attributes:
        groups: numbers of the groups.
        seconds: its time, at the counts of all groups.
        amount: what it leaves of the budget's weights or multiply-accumulates.
    """

    groups: tuple[int, ...]
    seconds: Function
    amount: Function


class Problem:
    """Sums of terms over choices.

    Args:
        choices: the counts that each group may have, ascending; the last one is all of them.
        terms: what adds up.
        fixed_s: seconds that no count changes.
        fixed: amount that no count changes.

    Attributes:
        beside: of each group, those that share a term with it.
    """

    def __init__(
        self,
        choices: Sequence[Sequence[int]],
        terms: Sequence[Term],
        *,
        fixed_s: float = 0.0,
        fixed: float = 0.0,
    ) -> None:
        self.choices = tuple(tuple(each) for each in choices)
        self.terms = tuple(terms)
        self.fixed_s = fixed_s
        self.fixed = fixed
        self._known: list[dict[Counts, tuple[float, float]]] = [{} for _ in terms]
        self._of: list[list[int]] = [[] for _ in choices]
        for number, term in enumerate(terms):
            for group in term.groups:
                self._of[group].append(number)
        self.beside = tuple(
            {other for number in mine for other in self.terms[number].groups}
            for mine in self._of
        )

    @property
    def full(self) -> Counts:
        """All channels."""
        return tuple(each[-1] for each in self.choices)

    @property
    def floor(self) -> Counts:
        """The fewest channels."""
        return tuple(each[0] for each in self.choices)

    def _term(self, number: int, counts: Sequence[int]) -> tuple[float, float]:
        term = self.terms[number]
        key = tuple(counts[group] for group in term.groups)
        found = self._known[number].get(key)
        if found is None:
            found = (term.seconds(counts), term.amount(counts))
            self._known[number][key] = found
        return found

    def sums(self, counts: Sequence[int], group: int | None = None) -> tuple[float, float]:
        """Seconds and amount, of all terms or those that depend on a group."""
        numbers = range(len(self.terms)) if group is None else self._of[group]
        seconds, amount = (self.fixed_s, self.fixed) if group is None else (0.0, 0.0)
        for number in numbers:
            more_s, more = self._term(number, counts)
            seconds, amount = seconds + more_s, amount + more
        return seconds, amount


def allocate(problem: Problem, least: float) -> Counts:
    """The counts that take the least time and leave an amount.

    Args:
        problem: the sums.
        least: the amount that has to be left.

    Raises:
        ModelError: even all channels leave less.
    """
    _, most = problem.sums(problem.full)
    if most < least * (1 - 1e-12):
        msg = f"the budget asks for {least:,.0f} to be left, and the model has {most:,.0f}. Ask for less."
        raise ModelError(msg)
    if problem.sums(problem.floor)[1] >= least:
        starts: list[Counts] = [problem.floor]
    else:
        starts = [problem.full, problem.floor, uniform(problem, least)]
    found: dict[Counts, float] = {}
    for start in starts:
        for counts in _priced(problem, start, least):
            found[counts] = problem.sums(counts)[0]
    found.setdefault(problem.full, problem.sums(problem.full)[0])
    best = sorted(found, key=lambda counts: (found[counts], counts))[:POLISHED]
    if starts[-1] not in best and problem.sums(starts[-1])[1] >= least:
        best.append(starts[-1])
    polished = [_kicked(problem, _polish(problem, counts, least), least) for counts in best]
    return min(polished, key=lambda counts: (problem.sums(counts)[0], counts))


def uniform(problem: Problem, least: float) -> Counts:
    """The same share of every group, as small as leaves an amount; of counts that are choices, the nearest.

    What rounding leaves over the amount is taken from one group after the other, a step each.
    """
    best = problem.full
    amount = problem.sums(best)[1]
    for step in range(1, 1001):
        counts = tuple(
            min(choices, key=lambda count: (abs(count - step / 1000 * choices[-1]), -count))
            for choices in problem.choices
        )
        left = problem.sums(counts)[1]
        if least <= left < amount:
            best, amount = counts, left
    for group, choices in enumerate(problem.choices):
        at = choices.index(best[group])
        fewer = _set(best, ((group, choices[max(0, at - 1)]),))
        if problem.sums(fewer)[1] >= least:
            best = fewer
    return best


def _priced(problem: Problem, start: Counts, least: float) -> Iterator[Counts]:
    """Counts that leave enough, at prices around the one at which just enough is left."""
    seconds, amount = problem.sums(problem.full)
    scale = seconds / amount if amount else 0.0
    low, high = -12.0, 12.0  # of the price's logarithm, relative to what the whole network pays
    counts = start
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        price = scale * 2.0**middle
        counts = min(
            (_descend(problem, each, price) for each in dict.fromkeys((start, counts))),
            key=lambda each: _priced_sum(problem, each, price),
        )
        if problem.sums(counts)[1] >= least:
            yield counts
            high = middle
        else:
            low = middle


def _priced_sum(problem: Problem, counts: Counts, price: float) -> float:
    seconds, amount = problem.sums(counts)
    return seconds - price * amount


def _descend(problem: Problem, counts: Counts, price: float) -> Counts:
    """Better counts for one group after the other, until none has any."""
    now = list(counts)
    for _ in range(SWEEPS):
        is_settled = True
        for group, choices in enumerate(problem.choices):
            before = now[group]

            def worth(count: int, group: int = group) -> float:
                now[group] = count
                seconds, amount = problem.sums(now, group)
                return seconds - price * amount

            kept = worth(before)
            best = min(choices, key=worth)
            now[group] = best if worth(best) < kept - 1e-15 else before
            is_settled = is_settled and now[group] == before
        if is_settled:
            break
    return tuple(now)


def _polish(problem: Problem, counts: Counts, least: float) -> Counts:
    """Counts of which no group can give, and no two can exchange, some steps with a gain."""
    now = counts
    while True:
        better = _exchanged(problem, now, least)
        if better is None:
            return now
        now = better


def _kicked(problem: Problem, counts: Counts, least: float) -> Counts:
    """Counts that no single group improves by going elsewhere, the others making up for it step by step."""
    best = counts
    while True:
        seconds = problem.sums(best)[0]
        for group, count, _, _ in list(_moves(problem, best)):
            tried = _settled(problem, _set(best, ((group, count),)), group, least)
            if tried is not None and problem.sums(tried)[0] < seconds * (1 - 1e-9):
                best = _polish(problem, tried, least)
                break
        else:
            return best


def _settled(problem: Problem, counts: Counts, but: int, least: float) -> Counts | None:
    """Counts that leave enough and little more, by the steps of other groups that cost or gain the most for what they give."""
    now = counts
    while True:
        _, amount = problem.sums(now)
        steps = [move for move in _moves(problem, now, 1) if move[0] != but]
        if amount < least:
            up = [move for move in steps if move[3] > 0]
            if not up:
                return None
            group, count, _, _ = min(up, key=lambda move: (move[2] / move[3], move[0]))
        else:
            down = [move for move in steps if move[2] < 0 and amount + move[3] >= least]
            if not down:
                return now
            group, count, _, _ = min(
                down, key=lambda move: (move[2] / max(-move[3], 1e-12), move[0])
            )
        now = _set(now, ((group, count),))


def _exchanged(problem: Problem, counts: Counts, least: float) -> Counts | None:
    """The best change of one group or two by a few steps each; None if none gains."""
    seconds, amount = problem.sums(counts)
    moves = list(_moves(problem, counts))
    best: Counts | None = None
    best_s = seconds * (1 - 1e-9)
    for group, count, gain_s, more in moves:
        if gain_s < 0 and amount + more >= least and seconds + gain_s < best_s:
            best, best_s = _set(counts, ((group, count),)), seconds + gain_s
    for one, fewer, gain_s, loss in moves:
        if gain_s >= 0:
            continue
        for other, count, cost_s, more in moves:
            # A group that shares a term with the first is looked at in full below: its move was costed without the other.
            if other == one or amount + loss + more < least * 0.98:
                continue
            if not gain_s + cost_s < abs(gain_s) * 0.5:
                continue
            changed = _set(counts, ((one, fewer), (other, count)))
            if other in problem.beside[one]:
                new_s, new = problem.sums(changed)
            else:
                new_s, new = seconds + gain_s + cost_s, amount + loss + more
            if new >= least and new_s < best_s:
                best, best_s = changed, new_s
    return best


def _moves(
    problem: Problem, counts: Counts, near: int = NEAR
) -> Iterator[tuple[int, int, float, float]]:
    """Changes of one group by a few steps: its number, its new count, and the change of time and amount."""
    now = list(counts)
    for group, choices in enumerate(problem.choices):
        at = choices.index(counts[group])
        old_s, old = problem.sums(now, group)
        for index in range(max(0, at - near), min(len(choices), at + near + 1)):
            if index == at:
                continue
            now[group] = choices[index]
            new_s, new = problem.sums(now, group)
            yield group, choices[index], new_s - old_s, new - old
        now[group] = counts[group]


def _set(counts: Counts, changes: Sequence[tuple[int, int]]) -> Counts:
    changed = list(counts)
    for group, count in changes:
        changed[group] = count
    return tuple(changed)
