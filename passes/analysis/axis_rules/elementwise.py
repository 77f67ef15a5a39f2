"""Ops that compute element by element, with numpy broadcasting: operands share the channels of their common axes.

An axis on which an operand has size 1 ties nothing. An operand that has one element a group of channels (a gate an
attention head, say) lives as long as one channel of its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.row import Pins, attribute_int, data, normalized
from passes.analysis.compact import Array, varying_axes
from passes.analysis.tags import Cover
from passes.analysis.walk import label

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.walk import Replay, Shape, Trace

__all__ = ["Elementwise", "Quantize", "combine"]


class Elementwise:
    """Any number of operands, broadcast against one another.

    Args:
        operands: how many leading inputs carry data (None: all); the others are scalars or types.
    """

    def __init__(self, operands: int | None = None) -> None:
        self.operands = operands

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Tie the operands' channels; constants take what comes."""
        out = node.outputs[0]
        rank = len(t.shape(out))
        tags: Array | None = None
        shape: Shape = ()
        for value in self.values(node):
            if t.is_weight(value):
                continue
            mine, real = aligned(t.get(value), rank), padded(t.shape(value), rank)
            if tags is None:
                tags, shape = mine, real
            else:
                tags = combine(node, t, (tags, shape), (mine, real))
                shape = tuple(np.broadcast_shapes(shape, real))
        if tags is None:
            tags = np.zeros((1,) * rank, dtype=np.int64)
        elif not varying_axes(tags) and shape != t.shape(out):
            t.pin(tags, node, "a single channel is broadcast against a constant")
            tags = np.zeros_like(tags)
        for result in node.outputs:
            t.set(node, result, tags)
        for index in self.constants(node, t):
            operand_tags(node, t, index, t.get(out))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Operands must still match; constants are cut to what arrives."""
        active = [value for value in self.values(node) if not r.trace.is_weight(value)]
        if not any(r.is_changed(value) for value in active):
            return
        out = node.outputs[0]
        rank, old = len(r.old_shape(out)), r.old(out)
        tags = None
        for value in active:
            before = aligned(r.old(value), rank)
            if tags is None and before.shape == old.shape and (before == old).all():
                tags = aligned(r.new(value), rank)
        r.require(node, tags is not None, old, "its operands cover one another only in part")
        if tags is None:
            return
        for value in active:
            mine, before = aligned(r.new(value), rank), aligned(r.old(value), rank)
            if varying_axes(before) == varying_axes(old):
                r.require(
                    node, mine.shape == tags.shape, mine, "its operands would differ in length"
                )
                r.agree(node, mine, tags)
            else:
                for axis in varying_axes(before):
                    r.require(
                        node,
                        mine.shape[axis] == tags.shape[axis],
                        mine,
                        "its operands would differ in length",
                    )
                r.meet(node, (before, old), (mine, tags))
        for result in node.outputs:
            r.set(node, result, tags)
        for index in self.constants(node, r.trace):
            cut_operand(node, r, index, tags)

    def values(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that carry data."""
        return [value for value in node.inputs[: self.operands] if value is not None]

    def constants(self, node: ir.Node, t: Trace) -> list[int]:
        """Which inputs carry constant data."""
        data_inputs = enumerate(node.inputs[: self.operands])
        return [index for index, value in data_inputs if t.is_weight(value)]


def padded(shape: Shape, rank: int) -> Shape:
    """A shape with axes of size 1 put in front, as broadcasting does."""
    return (1,) * (rank - len(shape)) + shape


def aligned(tags: Array, rank: int) -> Array:
    """A compact array with axes put in front, as broadcasting does."""
    return tags.reshape(padded(tags.shape, rank))


def operand_tags(
    node: ir.Node, t: Trace, index: int, tags: Array, old: Array | None = None
) -> Array:
    """The channels that a constant operand's elements belong to, given those of the result.

    Args:
        node: the node.
        t: the first walk.
        index: which operand.
        tags: of the result, before or after a plan.
        old: of the result before the plan, where `tags` is after it.
    """
    real = padded(t.shape(data(node, index)), tags.ndim)
    varying = varying_axes(tags if old is None else old)
    gone = tuple(axis for axis in varying if real[axis] == 1)
    if not gone:
        return tags
    if len(gone) == len(varying):
        return np.zeros((1,) * tags.ndim, dtype=np.int64)
    return t.tags.coarsen((node, index), tags, gone, label(node))


def cut_operand(node: ir.Node, r: Replay, index: int, new: Array) -> None:
    """Cut a constant operand to the channels that a plan leaves of the result.

    Args:
        node: the node.
        r: the second walk.
        index: which operand.
        new: tags of the result after the plan.
    """
    old, real = r.old(node.outputs[0]), r.old_shape(data(node, index))
    before = operand_tags(node, r.trace, index, old)
    after = operand_tags(node, r.trace, index, new, old)
    r.meet(node, (before, old), (after, new))
    # the operand may lack leading axes, on which its tags are uniform
    skip = old.ndim - len(real)
    r.select(
        node,
        index,
        before.reshape(before.shape[skip:]),
        after.reshape(after.shape[skip:]),
        real,
    )


def combine(
    node: ir.Node, t: Trace, one: tuple[Array, Shape], other: tuple[Array, Shape]
) -> Array:
    """Tie two broadcast operands, each given as compact tags and real sizes of equal rank; returns the result's tags."""
    if len(varying_axes(one[0])) > len(varying_axes(other[0])):
        one, other = other, one
    (small, small_shape), (large, _) = one, other
    inner, outer = set(varying_axes(small)), set(varying_axes(large))
    if not inner and not outer:
        return combine_single(node, t, one, other)
    more = sorted(outer - inner)
    if inner == outer or (inner < outer and all(small_shape[axis] > 1 for axis in more)):
        t.unite(node, small, large)
        return small if inner == outer else large
    if not inner <= outer or any(small_shape[axis] > 1 for axis in more):
        for tags in (small, large):
            t.pin(
                tags,
                node,
                "two axes of channels are multiplied out",
                "keep the channels of one of them",
            )
        return large
    if not inner:
        t.pin(small, node, "a single channel is broadcast over others")
        return large
    order = sorted(inner) + [axis for axis in range(large.ndim) if axis not in inner]
    rows = large.transpose(order).reshape(small.size, -1)
    for tag, row in zip(small.ravel(), rows, strict=True):
        if tag == 0 or not row.all():
            t.pin(row, node, "they meet data that has no removable channels")
            t.pin(np.asarray([tag]), node, "it meets data that has no removable channels")
        else:
            t.tags.covers.append(Cover(int(tag), np.unique(row), label(node)))
    return large


def combine_single(
    node: ir.Node, t: Trace, one: tuple[Array, Shape], other: tuple[Array, Shape]
) -> Array:
    """Tie two operands that each belong to one channel, or none."""
    (first, first_shape), (second, second_shape) = one, other
    if first.max() == second.max() == 0:
        return first
    if first_shape == second_shape:
        t.unite(node, first, second)
        return first if first.any() else second
    t.pin(first, node, "a single channel is broadcast")
    t.pin(second, node, "a single channel is broadcast")
    return np.zeros_like(first)


class Quantize:
    """QuantizeLinear and DequantizeLinear: a scale a tensor, or one an element of an axis."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags on."""
        for parameter in node.inputs[1:]:
            if parameter is not None and (
                not t.is_weight(parameter) or len(t.shape(parameter)) > 1
            ):
                Pins("'{op}' has scales that are not constant, or in blocks").trace(node, t)
                return
        t.set(node, node.outputs[0], t.get(data(node)))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut the scales of a channel axis."""
        value = data(node)
        if not r.is_changed(value):
            return
        old, new = r.old(value), r.new(value)
        axis = normalized(attribute_int(node, "axis", 1), old.ndim)
        index_of = tuple(slice(None) if other == axis else 0 for other in range(old.ndim))
        alone = all(old.shape[other] == 1 for other in range(old.ndim) if other != axis)
        for index, parameter in enumerate(node.inputs[1:], start=1):
            if parameter is not None and np.prod(r.old_shape(parameter)) > 1:
                r.require(node, alone, old, "its scales lie along another axis")
                r.select(node, index, old[index_of], new[index_of], r.old_shape(parameter))
        r.set(node, node.outputs[0], new)
