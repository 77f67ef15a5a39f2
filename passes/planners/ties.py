"""Settles which channels can really go, when some want to: what ties them is met by letting more of them stay.

Channels only ever change from going to staying, so this ends; whatever stays against its wish has a reason.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from passes.analysis.channels import ChannelMap
from passes.analysis.compact import Array
from passes.analysis.tags import Pin
from passes.planners.shuffles import find_shuffles

__all__ = ["Settlement", "Ties", "even"]


class Ties:
    """What ties the classes of a model: made once, read by every settlement.

    Args:
        channels: the channel map.
    """

    def __init__(self, channels: ChannelMap) -> None:
        roots, tags = channels.roots, channels.trace.tags
        self.grids = [
            (roots[grid.tags], None if grid.partner is None else roots[grid.partner], grid)
            for grid in tags.grids
        ]
        self.covers = [
            (int(roots[cover.coarse]), np.unique(roots[cover.fine]), cover)
            for cover in tags.covers
        ]
        self.shuffles = list(find_shuffles(channels))
        self.tensors: dict[bytes, tuple[Array, str]] = {}
        for value, found in tags.of.items():
            classes = np.unique(roots[found])
            if classes[0] != 0:
                self.tensors.setdefault(classes.tobytes(), (classes, value.name or ""))


class Settlement:
    """Which classes stay.

    Args:
        ties: what ties the classes.
        stay: bool, shape `(tags,)`, by class: those that have to stay from the start.
        worth: float, shape `(tags,)`, by class: which ones to let stay first, where the ties leave a choice.
        bonds: (class, other class, reason): while the first stays, so does the other.

    Attributes:
        stay: bool, shape `(tags,)`, by class; grows.
        why: class -> why it stays although it wanted to go.
        had_empty: whether a tensor would have been empty.
    """

    def __init__(
        self,
        ties: Ties,
        stay: Array,
        worth: Array,
        bonds: Collection[tuple[int, int, Pin]] = (),
    ) -> None:
        self.ties = ties
        self.bonds = bonds
        self.stay = stay
        self.worth = worth
        self.why: dict[int, Pin] = {}
        self.had_empty = False

    def keep(self, classes: Array, pin: Pin) -> None:
        """Let classes stay."""
        for root in np.unique(classes):
            if not self.stay[root]:
                self.stay[root] = True
                self.why[int(root)] = pin

    def settle(self) -> None:
        """Let stay what the ties demand."""
        before = -1
        while before != (before := int(self.stay.sum())):
            for classes, name in self.ties.tensors.values():
                if not self.stay[classes].any():
                    self.had_empty = True
                    pin = Pin(
                        name,
                        f"every channel of '{name}' could go, and a tensor cannot be empty: one stays",
                        "remove the whole branch from the model",
                    )
                    self.keep(classes[[np.argmax(self.worth[classes])]], pin)
            for shuffle in self.ties.shuffles:
                reason = f"'{shuffle.subject}' reads shuffled channels, as many of every row as before it in each chunk"
                missing = shuffle.missing(self.stay, self.worth)
                self.keep(missing, Pin(shuffle.subject, reason, SURPLUS_ADVICE))
            for rows, partner, grid in self.ties.grids:
                self.settle_grid(
                    rows,
                    partner,
                    Pin(grid.subject, surplus(grid.subject, grid.what), SURPLUS_ADVICE),
                )
            for first, other, pin in self.bonds:
                if self.stay[first]:
                    self.keep(np.asarray([other]), pin)
            for coarse, fine, cover in self.ties.covers:
                lives = self.stay[fine].any()
                if lives and not self.stay[coarse]:
                    reason = f"'{cover.subject}' still uses part of what it stands for"
                    self.keep(
                        np.asarray([coarse]),
                        Pin(cover.subject, reason, "remove all of its channels"),
                    )
                elif self.stay[coarse] and not lives:
                    reason = f"'{cover.subject}' still needs one of them"
                    best = fine[[np.argmax(self.worth[fine])]]
                    self.keep(best, Pin(cover.subject, reason, "remove the whole head"))

    def settle_grid(self, rows: Array, partner: Array | None, pin: Pin) -> None:
        """Make the rows of a grid equally long, and let both sides have the same rows."""
        if partner is not None:
            one = self.stay[rows].reshape(rows.shape[0], -1).any(1)
            other = self.stay[partner].reshape(partner.shape[0], -1).any(1)
            self.keep(rows.reshape(rows.shape[0], -1)[other & ~one, :1], pin)
            self.keep(partner.reshape(partner.shape[0], -1)[one & ~other, :1], pin)
            self.settle_grid(partner, None, pin)
        if rows.ndim < 2:
            return
        wanted = even(self.stay[rows], self.worth[rows])
        self.keep(rows[wanted & ~self.stay[rows]], pin)


SURPLUS_ADVICE = "prune equally many channels in every one"


def surplus(subject: str, what: str) -> str:
    """The reason for a surplus channel."""
    return f"'{subject}' needs equally many channels in every {what}, and this one is surplus"


def even(mask: Array, worth: Array) -> Array:
    """A small regular superset of a bool array, found greedily: all rows that have any True have equally many.

    For more than two axes the rows are regular themselves, and so on.

    Args:
        mask: bool, shape `(rows, ..., columns)`.
        worth: float, the same shape: elements of the largest worth are added first.
    """
    mask = mask.copy()
    if mask.ndim == 1:
        return mask
    order = np.argsort(-worth, axis=-1, kind="stable")
    cells = np.any(mask, axis=-1)
    for index in zip(*np.nonzero(even(cells, worth.max(-1)) & ~cells), strict=True):
        mask[(*index, order[index][0])] = True
    counts = mask.sum(-1)
    most = counts.max(initial=0)
    for index in zip(*np.nonzero((counts > 0) & (counts < most)), strict=True):
        row, ranked = mask[index], order[index]
        row[ranked[~row[ranked]][: most - counts[index]]] = True
    return mask
