"""How the constant of a dead channel is carried on when the channel goes.

A dead channel that is zero adds nothing. One that is a constant c adds W[:, i] * c to whoever reads it: uniformly, where
no window is cut off at a border (an unpadded convolution, a matrix product), and then it goes into the bias; otherwise as
a pattern over space. Such a pattern has two exact forms. A *carrier*: one of the dead channels stays, and takes over the
others' weights times c_i / c_k. A *bias map*: an Add of the pattern behind the reader, where its sizes are static.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from passes.analysis import operands
from passes.analysis.axis_rules.contraction import Weighted
from passes.analysis.axis_rules.convolution import CONVOLUTIONS, is_depthwise
from passes.analysis.axis_rules.row import attribute_int, data, input_at
from passes.analysis.edits import Accumulate, Merge
from passes.analysis.tags import Pin
from passes.analysis.walk import label
from passes.analysis.windows import Axis, find_window, slide

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.walk import Replay

__all__ = ["Carry", "Carrying", "Reader", "carrier_pin", "readers"]

Carry: TypeAlias = Literal["carrier", "bias-map"]

SMALLEST_SHARE = 0.05
"""A channel that stays anyway serves as carrier if its constant is at least this share of the largest: smaller ones
would blow up rounding errors."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A node that reads channels through a weight, or one group of it.

    Attributes:
        node: the node.
        weight: index of the weight among its inputs.
        axes: axes of the weight along which the channels lie.
        classes: class of each channel, shape of those axes.
        indices: multi-index of each channel of the reader in the weight, one array an axis, of `classes`' size.
        constants: float64, compact, the channel axes first: what each channel is worth where `mask` holds.
        mask: bool, shape of `classes`: the channel is a nonzero constant.
        rows: (axis, start, stop): the rows of the weight that belong to the group, or None.
        made: class of each channel that the reader makes, or None if it makes none of its own.
        reads: bool, shape `(made, channels)`: which of them reads which channel; one row of True if `made` is None.
    """

    node: ir.Node
    weight: int
    axes: tuple[int, ...]
    classes: Array
    indices: tuple[Array, ...]
    constants: Array
    mask: Array
    rows: tuple[int, int, int] | None
    made: Array | None
    reads: Array

    def missed(self, stay: Array) -> Array:
        """The constants that go and that something that stays would miss: bool, shape of `classes`.

        An output that is constant itself, but has to stay, still computes its constant from them.
        """
        gone: Array = self.mask & ~stay[self.classes]
        if not gone.any():
            return gone
        readers = self.reads if self.made is None else self.reads[stay[self.made]]
        missed: Array = gone & readers.any(0)
        return missed

    @property
    def numbers(self) -> Array:
        """What each channel is worth at the first place of its pattern, shape of `classes`."""
        return self.constants.reshape(self.mask.size, -1)[:, 0]

    @property
    def uniform(self) -> bool:
        """Whether every constant is the same all over its tensor."""
        return all(size == 1 for size in self.constants.shape[1:])

    @property
    def exact(self) -> bool:
        """Whether the weight is a plain constant, which can take over the work of others."""
        return operands.dequantizer(self.node.inputs[self.weight]) is None


def readers(channels: ChannelMap) -> Iterator[Reader]:
    """The nodes that read nonzero constants through a weight."""
    trace, found = channels.trace, channels.values
    for node, noted in trace.notes.items():
        if isinstance(noted, Weighted):
            if data(node, 1 - noted.weight) in found.constants:
                yield from contraction_readers(channels, node, noted)
        elif node.op_type in CONVOLUTIONS and data(node) in found.constants:
            yield from convolution_readers(channels, node, noted)


def convolution_readers(
    channels: ChannelMap, node: ir.Node, noted: tuple[Array, Array]
) -> Iterator[Reader]:
    """One reader a group."""
    incoming, outgoing = noted
    if is_depthwise(node, incoming.size, outgoing.size):
        return
    known = channels.values.constants[data(node)]
    shape = channels.sizes.shape[data(node)]
    others = (0, *range(2, len(shape)))
    some = np.any(known.mask & (known.value != 0), axis=others)
    every = np.all(known.mask, axis=others)
    mask = np.broadcast_to(some & every, (shape[1],))
    table = operands.read(node.inputs[1])
    if not mask.any() or table is None:
        return
    numbers = np.where(known.mask, known.value, 0.0)[0]
    constants = np.broadcast_to(numbers, (shape[1], *numbers.shape[1:]))
    groups = attribute_int(node, "group", 1)
    size, made = incoming.size // groups, outgoing.size // groups
    transposed = node.op_type == "ConvTranspose"
    for group in range(groups):
        mine = slice(group * size, (group + 1) * size)
        if not mask[mine].any():
            continue
        start = group * size if transposed else 0
        rows = slice(group * made, (group + 1) * made)
        part = table[mine].swapaxes(0, 1) if transposed else table[rows]
        yield Reader(
            node,
            1,
            (0,) if transposed else (1,),
            channels.roots[incoming[mine]],
            (np.arange(start, start + size),),
            constants[mine],
            mask[mine],
            None if transposed or groups == 1 else (0, group * made, (group + 1) * made),
            channels.roots[outgoing[rows]],
            np.any(part.reshape(made, size, -1), axis=-1),
        )


def contraction_readers(
    channels: ChannelMap, node: ir.Node, noted: Weighted
) -> Iterator[Reader]:
    """One reader, over batch and contracted letters."""
    known = channels.values.constants[data(node, 1 - noted.weight)]
    names, axes = noted.names, noted.names.operands[1 - noted.weight]
    mine = names.operands[noted.weight]
    table = operands.read(node.inputs[noted.weight])
    lines = noted.batch + noted.contracted
    if table is None or not lines:
        return
    order = [axes.index(c) for c in lines]
    rest = tuple(axis for axis in range(len(axes)) if axis not in order)
    every = np.all(known.mask, axis=rest, keepdims=True)
    some = np.any(known.mask & (known.value != 0), axis=rest, keepdims=True)
    shape = noted.incoming.shape
    both = (every & some).transpose(order + list(rest))
    mask = np.broadcast_to(both.reshape(both.shape[: len(order)]), shape)
    if not mask.any():
        return
    numbers = np.where(known.mask, known.value, 0.0).transpose(order + list(rest))
    constants = np.broadcast_to(numbers, shape + numbers.shape[len(order) :])
    where = np.unravel_index(np.arange(mask.size), shape)
    free = [mine.index(c) for c in names.free(noted.weight)]
    reads, made = np.ones((1, mask.size), dtype=bool), None
    if noted.outgoing is not None and not noted.batch:
        place = [mine.index(c) for c in lines]
        other = [axis for axis in range(table.ndim) if axis not in free and axis not in place]
        ordered = table.transpose([*free, *place, *other])
        reads = np.any(ordered.reshape(noted.outgoing.size, mask.size, -1), axis=-1)
        made = channels.roots[noted.outgoing].ravel()
    yield Reader(
        node,
        noted.weight,
        tuple(mine.index(c) for c in lines),
        channels.roots[noted.incoming].ravel(),
        where,
        constants.reshape(mask.size, *constants.shape[len(order) :]),
        mask.ravel(),
        None,
        made,
        reads,
    )


def absorb_uniform(channels: ChannelMap, reader: Reader, dropped: Array) -> Array | None:
    """What the dropped channels of a reader add to the node's output; None if it depends on a size not known.

    Args:
        channels: the channel map.
        reader: the reader.
        dropped: bool, shape of the reader's classes.

    Returns:
        float64, compact, of the rank of the node's output before any channel is cut; channels (and batch letters) of
        the output in full.
    """
    node = reader.node
    table = operands.read(node.inputs[reader.weight])
    if table is None:
        return None
    if node.op_type in CONVOLUTIONS:
        return convolved(channels, reader, table, dropped)
    return contracted(channels, reader, table, dropped)


def convolved(
    channels: ChannelMap, reader: Reader, table: Array, dropped: Array
) -> Array | None:
    """The sums that a convolution makes of constant channels, `(1, outputs, *space)`."""
    node = reader.node
    value, out = data(node), node.outputs[0]
    sizes = channels.sizes
    index = reader.indices[0][dropped]
    if node.op_type == "ConvTranspose":
        kernel = table[index].swapaxes(0, 1)
        groups = attribute_int(node, "group", 1)
        made = kernel.shape[0]
        first = int(reader.indices[0][0]) // (sizes.shape[value][1] // groups) * made
    else:
        rows = slice(None) if reader.rows is None else slice(reader.rows[1], reader.rows[2])
        kernel = table[rows][:, index]
        made = kernel.shape[0]
        first = 0 if reader.rows is None else reader.rows[1]
    sums = slide(
        kernel.astype(np.float64), reader.constants[dropped][None], window_of(channels, node)
    )
    if sums is None or any(
        size > 1 and free
        for size, free in zip(sums.shape[1:], unsure_space(channels, node), strict=True)
    ):
        return None
    whole = np.zeros((1, sizes.shape[out][1], *sums.shape[1:]))
    whole[0, first : first + made] = sums
    return whole


def unsure_space(channels: ChannelMap, node: ir.Node) -> list[bool]:
    """Which axes of space have a size that is only known at run time, before a convolution or after it."""
    symbolic = channels.sizes.symbolic
    pairs = zip(symbolic[data(node)][2:], symbolic[node.outputs[0]][2:], strict=True)
    return [before or after for before, after in pairs]


def window_of(channels: ChannelMap, node: ir.Node) -> tuple[Axis, ...]:
    """The window of a convolution."""
    shape = channels.sizes.shape
    kernel, before, after = (
        shape[value][2:] for value in (data(node, 1), data(node), node.outputs[0])
    )
    return find_window(node, kernel, before, after, unsure_space(channels, node))


def contracted(
    channels: ChannelMap, reader: Reader, table: Array, dropped: Array
) -> Array | None:
    """The sums that a matrix product makes of constant channels, compact over the output's axes."""
    node, noted = reader.node, channels.trace.notes[reader.node]
    names, weight = noted.names, noted.weight
    axes, mine = names.operands[1 - weight], names.operands[weight]
    lines = noted.batch + noted.contracted
    rest = "".join(c for c in axes if c not in lines)
    numbers = np.where(
        dropped.reshape([-1] + [1] * (reader.constants.ndim - 1)), reader.constants, 0.0
    )
    values = numbers.reshape(noted.incoming.shape + reader.constants.shape[1:])
    terms = f"{lines}{rest},{mine}->{names.result}"
    sizes = dict(zip(mine, table.shape, strict=True))
    full = [
        sizes[c] if c in sizes and c not in lines else size
        for c, size in zip(lines + rest, values.shape, strict=True)
    ]
    result: Array = np.einsum(terms, np.broadcast_to(values, full), table.astype(np.float64))
    if node.op_type == "Gemm":
        alpha = node.attributes.get("alpha")
        result = result * (1.0 if alpha is None else alpha.as_float())
    return result


def into_bias(node: ir.Node, amount: Array) -> tuple[int | None, float]:
    """Which bias input can hold an amount over the output's axes, and by what the amount must be divided."""
    if node.op_type in CONVOLUTIONS and all(size == 1 for size in amount.shape[2:]):
        return 2, 1.0
    if node.op_type == "Gemm" and amount.shape[0] == 1:
        bias = input_at(node, 2)
        beta = node.attributes.get("beta")
        factor = 1.0 if beta is None else beta.as_float()
        if bias is None or (
            bias.shape is not None
            and len(bias.shape) == 1
            and factor != 0
            and bias.shape[0] != 1
        ):
            return 2, factor if factor != 0 else 1.0
    return None, 1.0


def carrier_pin(reader: str, count: int) -> Pin:
    """Why a carrier stays that stands for `count` channels beside itself."""
    return Pin(
        reader,
        f"it carries the constants of {count} dead channels into '{reader}', whose borders need a real channel",
        "nothing to do: one channel serves all; carry='bias-map' is the other exact form",
    )


class Carrying:
    """Decides, for a growing set of channels that stay, how the constants of the others are carried on.

    Args:
        channels: the channel map.
        carry: which of the two forms to prefer where both are there.

    Attributes:
        readers: the nodes that read constants.
        uneven: the convolutions whose outputs do not all read the same taps.
        worth: float, shape `(tags,)`, by class: how good a carrier it makes, at most 1.
    """

    def __init__(self, channels: ChannelMap, carry: Carry) -> None:
        self.channels = channels
        self.carry = carry
        self.readers = list(readers(channels))
        self.uneven = {
            reader.node
            for reader in self.readers
            if reader.node.op_type in CONVOLUTIONS
            and not all(axis.flat for axis in window_of(channels, reader.node))
        }
        self.worth = np.zeros(channels.roots.size)
        for reader in self.readers:
            sizes = np.where(reader.mask, np.abs(reader.numbers), 0.0)
            np.maximum.at(self.worth, reader.classes, sizes / max(sizes.max(), 1e-300))

    def wanted(self, stay: Array) -> tuple[Array, Pin] | None:
        """One more class that has to stay so that every constant can be carried on, with the reason; None if none has."""
        best: list[tuple[Reader, Array]] = []
        for reader in self.readers:
            gone = reader.missed(stay)
            if not gone.any() or self.foldable(reader):
                continue
            if not reader.exact:
                reason = f"'{label(reader.node)}' would need its constant, which its quantized numbers cannot hold"
                return reader.classes[gone], Pin(
                    label(reader.node), reason, "quantize after removing channels"
                )
            if self.mapped(reader, gone) or self.carrier(reader, stay, gone) is not None:
                continue
            if not reader.uniform:
                reason = f"'{label(reader.node)}' would need its pattern over space, at sizes that are not static"
                return reader.classes[gone], Pin(
                    label(reader.node), reason, "export the model at a fixed input size"
                )
            best.append((reader, gone))
        if not best:
            return None
        score: dict[int, list[float]] = {}
        for reader, gone in best:
            sizes = np.abs(reader.numbers)
            largest = sizes[gone].max()
            for index in np.flatnonzero(gone):
                entry = score.setdefault(int(reader.classes[index]), [0.0, 0.0])
                entry[0] += bool(sizes[index] >= SMALLEST_SHARE * largest)
                entry[1] += sizes[index] / largest
        chosen = max(score, key=lambda root: (*score[root], -root))
        reader = next(reader for reader, gone in best if chosen in reader.classes[gone])
        return np.asarray([chosen]), carrier_pin(label(reader.node), 1)

    def foldable(self, reader: Reader) -> bool:
        """Whether what the channels add is the same all over the output, so that a bias holds it."""
        return reader.exact and reader.uniform and reader.node not in self.uneven

    def mapped(self, reader: Reader, gone: Array) -> bool:
        """Whether a bias map carries the constants."""
        if self.carry == "carrier" and reader.uniform:
            return False
        return absorb_uniform(self.channels, reader, gone) is not None

    def carrier(self, reader: Reader, stay: Array, gone: Array) -> int | None:
        """Position of a dead channel of the reader that stays and can take over those that go."""
        if not reader.uniform:
            return None
        sizes = np.abs(reader.numbers)
        there = reader.mask & stay[reader.classes]
        able = there & (sizes >= SMALLEST_SHARE * sizes[gone].max())
        return int(np.argmax(np.where(able, sizes, -1.0))) if able.any() else None

    def edits(
        self, stay: Array, r: Replay
    ) -> tuple[list[Merge], list[Accumulate], dict[int, tuple[str, int]]]:
        """Everything that has to be changed so that the channels that go are not missed.

        Returns:
            merges (at the old sizes), amounts to add (at the new sizes), and by class of carrier the name of the
            reader and the number of channels it stands for.
        """
        merges: list[Merge] = []
        amounts: dict[ir.Node, Array] = {}
        carriers: dict[int, tuple[str, int]] = {}
        for reader in self.readers:
            gone = reader.missed(stay)
            if not gone.any():
                continue
            sources = tuple(index[gone] for index in reader.indices)
            if not self.foldable(reader) and not self.mapped(reader, gone):
                place = self.carrier(reader, stay, gone)
                if place is None:
                    continue
                into = tuple(int(index[place]) for index in reader.indices)
                merges.append(
                    Merge(
                        reader.node,
                        reader.weight,
                        reader.axes,
                        into,
                        sources,
                        reader.numbers[gone] / reader.numbers[place],
                        reader.rows,
                    )
                )
                root = int(reader.classes[place])
                name, count = carriers.get(root, (label(reader.node), 0))
                carriers[root] = (name, max(count, int(gone.sum())))
                continue
            amount = absorb_uniform(self.channels, reader, gone)
            if amount is None or not amount.any():
                continue
            so_far = amounts.get(reader.node)
            amounts[reader.node] = amount if so_far is None else so_far + amount
        added = [
            add
            for node, amount in amounts.items()
            if (add := self.accumulate(node, amount, r)) is not None
        ]
        return merges, added, carriers

    def accumulate(self, node: ir.Node, amount: Array, r: Replay) -> Accumulate | None:
        """Cut an amount to the channels that are left of the node's output."""
        out = node.outputs[0]
        old, new = r.old(out), r.new(out)
        axes = [axis for axis in range(old.ndim) if old.shape[axis] > 1]
        if axes and (old.shape != new.shape or (old != new).any()):
            sizes = [
                self.channels.sizes.shape[out][axis] if axis in axes else amount.shape[axis]
                for axis in range(amount.ndim)
            ]
            amount = np.broadcast_to(amount, sizes)
            where = np.unravel_index(r.origins(node, old, new), old.shape)
            index = tuple(
                where[axis]
                if axis in axes
                else np.arange(amount.shape[axis]).reshape(
                    [-1 if other == axis else 1 for other in range(amount.ndim)]
                )
                for axis in range(amount.ndim)
            )
            amount = np.where(new < 0, 0.0, amount[index])
        amount = shrunk(amount, {*axes, 1 if node.op_type in CONVOLUTIONS else old.ndim - 1})
        into, factor = into_bias(node, amount)
        return Accumulate(node, amount / factor, into) if amount.any() else None


def shrunk(amount: Array, axes: set[int]) -> Array:
    """Shrink uniform axes other than `axes` to size 1."""
    for axis, size in enumerate(amount.shape):
        if axis not in axes and size > 1:
            first = amount[(slice(None),) * axis + (slice(0, 1),)]
            if (amount == first).all():
                amount = first
    return amount
