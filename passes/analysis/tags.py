"""The ledger of channel tags: which element of which tensor belongs to which channel, and what ties channels together.

Every channel that a weight makes gets an integer tag of its own. Tags travel through the graph as compact arrays
(`passes.analysis.compact`), moved by the operation that the node applies to data; tag 0 stands for elements that belong
to no channel and can never be cut. While they travel, four kinds of ties are written down here and solved later, all at
once:

- *unions*: elements that must be cut, padded or kept together (operands of an Add);
- *covers*: a coarse channel (an attention head) lives exactly as long as one of its fine channels (its dimensions) does;
- *grids*: rows of channels that must stay equally long (conv groups, heads, shuffles, the parts of a reshape);
- *pins*: channels that must stay as they are, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from passes.analysis.compact import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Conflict", "Cover", "Grid", "Pin", "Tags", "origins"]


class Conflict(Exception):
    """A plan cannot be carried through a node. No error of the user's: the planner answers it by keeping channels.

    Args:
        tags: the channels concerned.
        subject: name of the node.
        reason: why it cannot be done.
    """

    def __init__(self, tags: Array, subject: str, reason: str) -> None:
        super().__init__(f"'{subject}': {reason}")
        self.tags = np.unique(np.abs(tags))
        self.subject = subject
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Pin:
    """Why some channels have to stay.

    Attributes:
        subject: name of the node or value that pins them.
        reason: why, in words.
        advice: what the user can do.
        is_movable: whether they may change places with one another all the same: it is how many there are that counts.
    """

    subject: str
    reason: str
    advice: str
    is_movable: bool = False


@dataclasses.dataclass(frozen=True)
class Cover:
    """The channel `coarse` exists exactly as long as one of the channels `fine` does."""

    coarse: int
    fine: Array
    subject: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows of channels, shape `(rows, ..., columns)`: rows that survive must keep equally many channels.

    Attributes:
        tags: the channels.
        partner: channels in as many rows (the other side of a grouped convolution), or None: a row survives on both
            sides or on none.
        subject: name of the node that wants it.
        what: what the rows are ("group", "part", ...).
    """

    tags: Array
    partner: Array | None
    subject: str
    what: str


class Tags:
    """The ledger. Built by one walk over the graph, then asked."""

    def __init__(self) -> None:
        self.count = 1
        self.of: dict[ir.Value, Array] = {}
        self.unions: list[tuple[Array, Array]] = []
        self.covers: list[Cover] = []
        self.grids: list[Grid] = []
        self.parts: list[tuple[list[Array], str]] = []
        self.pins: list[tuple[Array, Pin]] = []
        self.rigid: list[tuple[Array, Pin]] = []
        self.zero_only: dict[ir.Value, list[tuple[Pin, object]]] = {}
        self.coarse_of: dict[tuple[object, int], int] = {}

    def fresh(self, shape: tuple[int, ...]) -> Array:
        """New tags, in order."""
        size = int(np.prod(shape))
        tags = np.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        return tags

    def unite(self, one: Array, other: Array, pin: Pin) -> None:
        """Tie channels one to one; where one side is no channel, the other is pinned for the reason `pin`."""
        one, other = np.broadcast_arrays(one, other)
        one, other = one.ravel(), other.ravel()
        different = one != other
        one, other = one[different], other[different]
        if not one.size:
            return
        fixed = (one == 0) | (other == 0)
        if fixed.any():
            self.pin(np.maximum(one, other)[fixed], pin)
        if not fixed.all():
            self.unions.append((one[~fixed], other[~fixed]))

    def unite_along(self, tags: Array, axes: Iterable[int], pin: Pin) -> Array:
        """Tie all channels that lie along `axes` to one another; returns the array with size 1 there."""
        for axis in axes:
            if tags.shape[axis] > 1:
                first = tags[(slice(None),) * axis + (slice(0, 1),)]
                self.unite(tags, first, pin)
                tags = first
        return tags

    def pin(self, tags: Array, pin: Pin) -> None:
        """Keep channels as they are."""
        tags = np.unique(tags)
        if tags.any():
            self.pins.append((tags[tags > 0], pin))

    def stiffen(self, tags: Array, pin: Pin) -> None:
        """Let channels be cut, but never padded."""
        tags = np.unique(tags)
        if tags.any():
            self.rigid.append((tags[tags > 0], pin))

    def demand_zero(self, value: ir.Value, pin: Pin, key: object) -> None:
        """Say that the channels of `value` are summed up with one another: only zeros are not missed in the sum.

        Args:
            value: the value.
            pin: why a channel that is not zero stays.
            key: as in `coarsen`, of the sums: a sum that goes as a whole asks for nothing.
        """
        self.zero_only.setdefault(value, []).append((pin, key))

    def coarsen(self, key: object, tags: Array, axes: tuple[int, ...], subject: str) -> Array:
        """Coarse channels for the slices of `tags` along `axes`: size 1 there, one channel (or 0) a slice.

        The first call for a `key` makes them and their covers; later calls, on arrays that lost channels, find them.
        """
        axes = tuple(axis for axis in axes if axis < tags.ndim)
        order = [axis for axis in range(tags.ndim) if axis not in axes] + list(axes)
        outer = [1 if axis in axes else size for axis, size in enumerate(tags.shape)]
        rows = np.abs(tags.transpose(order).reshape(int(np.prod(outer)), -1))
        out = np.zeros(rows.shape[0], dtype=np.int64)
        for index, row in enumerate(rows):
            if not row.all():
                continue
            known = self.coarse_of.get((key, int(row[0])))
            if known is None:
                known = int(self.fresh(()))
                fine = np.unique(row)
                self.covers.append(Cover(known, fine, subject))
                for tag in fine:
                    self.coarse_of[(key, int(tag))] = known
            out[index] = known
        return out.reshape(outer)

    def roots(self) -> Array:
        """The class of every tag, shape `(count,)`: tags that are tied by unions share a number; tag 0 has class 0."""
        if not self.unions:
            return np.arange(self.count)
        one = np.concatenate([pair[0] for pair in self.unions])
        other = np.concatenate([pair[1] for pair in self.unions])
        links = coo_array(
            (np.ones(one.size, dtype=bool), (one, other)), shape=(self.count, self.count)
        )
        _, labels = connected_components(links, directed=False)
        first = np.full(int(labels.max()) + 1, self.count)
        np.minimum.at(first, labels, np.arange(self.count))
        classes: Array = first[labels]
        return classes


def origins(old: Array, new: Array) -> Array:
    """Where each element of `new` came from.

    Args:
        old: tags, any shape.
        new: tags of the same tensor after a plan, any shape; a padded channel is the negative of the tag it follows.

    Returns:
        flat indices into `old`, of `new`'s shape: the n-th occurrence of a tag stays its n-th occurrence, and a padded
        channel points where the channel before it points.

    Raises:
        ValueError: `new` holds a tag more often than `old`, or one that `old` does not have.
    """
    before, after = old.ravel(), new.ravel()
    real = after >= 0
    order = np.argsort(before, kind="stable")
    ordered = before[order]
    wanted = after[real]
    place = np.argsort(wanted, kind="stable")
    ranked = wanted[place]
    starts = np.searchsorted(ranked, ranked)
    slots = np.searchsorted(ordered, ranked) + (np.arange(ranked.size) - starts)
    if ranked.size and (
        slots.max() >= ordered.size
        or (ordered[np.minimum(slots, ordered.size - 1)] != ranked).any()
    ):
        msg = "a channel that the tensor did not have"
        raise ValueError(msg)
    found = np.empty(wanted.size, dtype=np.int64)
    found[place] = order[slots]
    out = np.empty(after.size, dtype=np.int64)
    out[real] = found
    if not real.all():
        holder = np.maximum.accumulate(np.where(real, np.arange(after.size), -1))
        mine = holder[~real]
        if (mine < 0).any() or (after[mine] != -after[~real]).any():
            # the channel a padded one follows need not be its neighbour once tensors were interleaved
            last = {int(tag): index for index, tag in enumerate(before)}
            try:
                out[~real] = [last[int(-tag)] for tag in after[~real]]
            except KeyError as error:
                msg = "a padded channel that the tensor did not have"
                raise ValueError(msg) from error
        else:
            out[~real] = out[mine]
    return out.reshape(new.shape)
