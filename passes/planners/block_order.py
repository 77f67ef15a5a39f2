"""Plans the order of channels in which dense blocks lie side by side, so that no operation has to bring them together.

Every layer with blocks has two wishes: that the rows of each block stand together among the channels that it writes, and that
their columns stand together among the channels that it reads; blocks that share inputs have such an order if they can be put
in a row so that only neighbours share some. A line of channels (those that
one tensor has, and all that are tied to it) has one order; the wishes that save most are met first, and further ones as far as
the order still leaves them room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.contraction import Weighted
from passes.base import Change, Skip
from passes.lowerings.tape import is_run
from passes.planners.lines import Line, Ordering, carry, find_lines

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.blocks import Blocks
    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.matrices import Layer

__all__ = ["plan_block_order"]


@dataclasses.dataclass(eq=False)
class _Wanted:
    """What layers want of a line.

    Attributes:
        line: the line.
        wishes: what they want.
    """

    line: Line
    wishes: list[_Wish] = dataclasses.field(default_factory=list)

    def urgency(self, labels: Mapping[ir.Node, Array]) -> tuple[int, int]:
        """What wishes are worth that continue those of other lines, and what all are worth.

        Args:
            labels: as of `_settle`.
        """
        going_on = sum(wish.worth for wish in self.wishes if wish.layer.node in labels)
        return going_on, sum(wish.worth for wish in self.wishes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Wish:
    """That the channels of each block of a layer stand together.

    Attributes:
        layer: the layer.
        labels: the block of each channel of the line.
        worth: elements that need not be copied then.
        is_ordered: whether the labels have to stand in their order, because blocks share channels.
    """

    layer: Layer
    labels: Array
    worth: int
    is_ordered: bool

    def is_met(self, order: Array) -> bool:
        """Whether an order gives what is wished for."""
        labels = self.labels[order]
        if self.is_ordered:
            return bool((np.diff(labels) >= 0).all())
        return int(np.count_nonzero(np.diff(labels))) == np.unique(labels).size - 1


def plan_block_order(channels: ChannelMap, found: Sequence[tuple[Layer, Blocks]]) -> Ordering:
    """Plan orders that make blocks contiguous.

    Args:
        channels: the channel map of the model.
        found: layers with their blocks.
    """
    lines, refused = find_lines(channels)
    wanted = [_Wanted(line) for line in lines if not line.frozen.any()]
    by_class = {int(root): each for each in wanted for root in each.line.classes}
    for layer, blocks in found:
        _add_wishes(channels, by_class, layer, blocks)
    labels: dict[ir.Node, Array] = {}
    orders: dict[Line, Array] = {}
    waiting = [each for each in wanted if each.wishes]
    while waiting:
        # Next to a line that is settled: the order of blocks goes on from there. Two lines that were settled far from one
        # another would each have an order of its own, and what lies between them could follow one only.
        next_one = max(waiting, key=lambda each: each.urgency(labels))
        waiting.remove(next_one)
        order = _settle(next_one, labels)
        if (order != np.arange(order.size)).any():
            orders[next_one.line] = order
    carried = carry(channels, orders)
    plan = carried.plan(
        {
            each.line: "blocks of "
            + ", ".join(dict.fromkeys(f"'{wish.layer.name}'" for wish in each.wishes))
            + " stand together"
            for each in wanted
        }
    )
    changes = [
        Change(name, "channels, in another order", len(order), len(order))
        for name, order in plan.orders.items()
    ]
    skips = list(carried.skips)
    skips += [
        Skip(
            layer.name, f"its outputs stay in their order: {refused[node].reason}", "keep them"
        )
        for layer, blocks in found
        for node in [layer.node]
        if node in refused and len(blocks.parts) > 1
    ]
    return Ordering(plan, carried.replay, tuple(changes), tuple(skips))


def _add_wishes(
    channels: ChannelMap, by_class: Mapping[int, _Wanted], layer: Layer, blocks: Blocks
) -> None:
    """Write the wishes of a layer to the lines that it reads and writes."""
    noted = channels.trace.notes.get(layer.node)
    if noted is None or len(blocks.parts) < 2:
        return
    incoming, outgoing = (
        (noted.incoming, noted.outgoing) if isinstance(noted, Weighted) else noted
    )
    if outgoing is None:
        return
    sizes = channels.sizes.shape
    rows = np.full(blocks.shape[0], -1, dtype=np.int64)
    for index, part in enumerate(blocks.parts):
        rows[part.rows] = index
    columns, is_ordered = _column_labels(blocks)
    for tags, labels, value, strict in (
        (outgoing, rows, layer.node.outputs[0], False),
        (incoming, columns, layer.data, is_ordered),
    ):
        if labels is None or tags.size != labels.size:
            continue
        classes = channels.roots[tags.ravel()]
        wanted = by_class.get(int(classes[0]))
        if wanted is None or wanted.line.classes.size != classes.size:
            continue
        place = {int(root): at for at, root in enumerate(wanted.line.classes)}
        if any(int(root) not in place for root in classes):
            continue
        mine = np.empty(classes.size, dtype=np.int64)
        mine[[place[int(root)] for root in classes]] = labels
        worth = int(np.prod(sizes.get(value, (1,)), dtype=np.int64))
        wanted.wishes.append(_Wish(layer, mine, worth, strict))


def _column_labels(blocks: Blocks) -> tuple[Array | None, bool]:
    """A label for each column such that blocks stand together if labels do, and whether they have to be in order.

    Columns that no block reads stand behind the others. Columns that blocks share which are no neighbours stand with the first of
    them, and the other block has to gather. None where most blocks would have to.
    """
    count = len(blocks.parts)
    member = np.zeros((count, blocks.shape[1]), dtype=bool)
    for index, part in enumerate(blocks.parts):
        member[index, part.columns] = True
    depth = member.sum(axis=0)
    if depth.max() <= 1:
        return np.where(depth > 0, member.argmax(axis=0), count), False
    shared = member.astype(np.int64) @ member.T.astype(np.int64)
    np.fill_diagonal(shared, 0)
    place = np.empty(count, dtype=np.int64)
    place[_row_of_blocks(shared)] = np.arange(count)
    places = np.where(member, place[:, None], -1)
    last = places.max(axis=0)
    first = np.where(member, place[:, None], count).min(axis=0)
    # Twice the mean place of the blocks that read a column: 0, 1, 2, ... where neighbours share some.
    middle = np.where(last - first == depth - 1, first + last, 2 * first)
    labels = np.unique(middle, return_inverse=True)[1].reshape(-1)
    order = np.argsort(labels, kind="stable")
    together = [is_run(np.flatnonzero(line[order])) for line in member]
    return (labels, True) if 2 * sum(together) > count else (None, True)


def _row_of_blocks(shared: Array) -> Array:
    """Blocks in a row, each beside the one it shares most with.

    Args:
        shared: how many columns each two blocks share, shape `(blocks, blocks)`.
    """
    left = set(range(len(shared)))
    row: list[int] = []
    while left:
        if row and shared[row[-1], list(left)].max() > 0:
            last = row[-1]
            following = max(left, key=lambda index: (int(shared[last, index]), -index))
        else:
            # An end of a row shares with few.
            following = min(
                left, key=lambda index: (int(np.count_nonzero(shared[index])), index)
            )
        row.append(following)
        left.remove(following)
    return np.asarray(row)


def _settle(wanted: _Wanted, labels: dict[ir.Node, Array]) -> Array:
    """An order of a line that meets as many wishes as it can, the most worthy first.

    Args:
        wanted: the line, and the wishes.
        labels: for each layer, the order of its blocks, where one of its sides has it settled; grows.
    """
    size = wanted.line.classes.size
    order = np.arange(size)
    met: list[tuple[_Wish, Array]] = []
    # Those whose order is given go first, so that the others take it over.
    for wish in sorted(
        wanted.wishes, key=lambda wish: (wish.layer.node not in labels, -wish.worth)
    ):
        coded = wish.labels
        if not wish.is_ordered:
            coded = _coded(wish, labels.get(wish.layer.node), order)
        for at in range(len(met), -1, -1):
            trial = [*met[:at], (wish, coded), *met[at:]]
            # The last key of lexsort counts most; places as they are break ties.
            keys = [key for _, key in reversed(trial)]
            found = np.lexsort((np.arange(size), *keys))
            if all(each.is_met(found) for each, _ in trial):
                met, order = trial, found
                break
    # Not before all are met: one that counts more may still turn around what others left open.
    for wish, _ in met:
        if not wish.is_ordered:
            labels.setdefault(wish.layer.node, _sequence(wish.labels[order]))
    return order


def _coded(wish: _Wish, sequence: Array | None, order: Array) -> Array:
    """The labels of a wish as numbers in the order in which its blocks are to stand."""
    if sequence is None:
        sequence = _sequence(wish.labels[order])
    rank = {int(label): at for at, label in enumerate(sequence)}
    last = len(rank)
    return np.asarray([rank.get(int(label), last) for label in wish.labels])


def _sequence(labels: Array) -> Array:
    """Each label once, in the order of its first place."""
    found, first = np.unique(labels, return_index=True)
    ordered: Array = found[np.argsort(first)]
    return ordered
