"""Puts many things into few groups of given sizes so that they gain the most: a transportation problem, solved exactly.

Each group has a price, and every thing goes where gain less price is largest. Prices are set so that one group after the
other has its size, in a few sweeps; whatever these leave in surplus moves on along the cheapest chains of exchanges. An
assignment to the best price is optimal for the sizes that it has, and cheapest chains keep it so.

Source: R. Ahuja, T. Magnanti, J. Orlin, "Network Flows", 1993, chapter 9 (successive shortest paths).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deploykit.ticket import Array, Ints

__all__ = ["assign"]

SWEEPS = 8
JITTER = 1e-9
"""Added to gains, as a share of the largest: things that gain alike everywhere would otherwise all go to one group."""
SLACK = 1e-12
"""Costs that differ by less than this share of the largest gain are equal."""


def assign(gains: Array, sizes: Ints) -> Ints:
    """Put things into groups.

    Args:
        gains: what each thing gains in each group, shape `(things, groups)`.
        sizes: things in each group, shape `(groups,)`; they add up to all things.

    Returns:
        the group of each thing, shape `(things,)`. The sum of gains is the largest there is, up to a share of 1e-9.
    """
    things, groups = gains.shape
    if groups == 1:
        return np.zeros(things, dtype=np.int64)
    scale = JITTER * float(np.abs(gains).max(initial=0.0))
    gains = gains + (scale or 1.0) * np.random.default_rng(0).random(gains.shape)
    prices = np.zeros(groups)
    for _ in range(SWEEPS):
        for group in range(groups):
            prices[group] = _price(gains, prices, group, int(sizes[group]))
        labels: Ints = np.argmax(gains - prices, axis=1)
        if (np.bincount(labels, minlength=groups) == sizes).all():
            return labels
    return _exchanged(gains, labels, sizes)


def _price(gains: Array, prices: Array, group: int, size: int) -> float:
    """The price at which a group has its size, the other prices being what they are."""
    others = gains - prices
    others[:, group] = -np.inf
    margin = gains[:, group] - others.max(axis=1)
    if size in {0, margin.size}:
        return float(margin.max() + 1 if size == 0 else margin.min() - 1)
    ranked = np.partition(margin, [margin.size - size - 1, margin.size - size])
    return float(ranked[margin.size - size - 1] + ranked[margin.size - size]) / 2


def _exchanged(gains: Array, labels: Ints, sizes: Ints) -> Ints:
    """Bring groups to their sizes along the cheapest chains: one thing of a moves to b, one of b to c, and so on."""
    groups = sizes.size
    labels = labels.copy()
    cost, mover = np.full((groups, groups), np.inf), np.zeros((groups, groups), dtype=np.int64)

    def look(group: int) -> None:
        there = np.flatnonzero(labels == group)
        cost[group] = np.inf
        if there.size:
            loss = gains[there, group][:, None] - gains[there]
            first = loss.argmin(axis=0)
            cost[group], mover[group] = loss[first, np.arange(groups)], there[first]

    for group in range(groups):
        look(group)
    surplus = np.bincount(labels, minlength=groups) - sizes
    slack = SLACK * float(np.abs(gains).max())
    while (surplus > 0).any():
        chain = _cheapest(cost, surplus, slack)
        movers = [int(mover[a, b]) for a, b in itertools.pairwise(chain)]
        labels[movers] = chain[1:]
        surplus[chain[0]] -= 1
        surplus[chain[-1]] += 1
        for group in chain:
            look(group)
    return labels


def _cheapest(cost: Array, surplus: Ints, slack: float) -> list[int]:
    """The cheapest chain from a group with too many to one with too few."""
    groups = surplus.size
    far = np.where(surplus > 0, 0.0, np.inf)
    before = np.full(groups, -1)
    for _ in range(groups - 1):
        through = far[:, None] + cost
        nearer = through.min(axis=0)
        better = nearer < far - slack
        if not better.any():
            break
        before[better] = through.argmin(axis=0)[better]
        far = np.where(better, nearer, far)
    end = int(np.argmin(np.where(surplus < 0, far, np.inf)))
    chain = [end]
    while before[chain[-1]] >= 0:
        chain.append(int(before[chain[-1]]))
    return chain[::-1]
