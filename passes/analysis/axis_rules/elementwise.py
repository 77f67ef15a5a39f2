"""Ops that compute element by element, with numpy broadcasting: operands share the channels of their common axes.

An axis on which an operand has size 1 ties nothing. An operand that has one element a group of channels (a gate an
attention head, say) lives as long as one channel of its group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.row import Pins
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
        if not t.known(out) or not all(t.known(value) for value in self.values(node)):
            Pins("the sizes that '{op}' works with are not known").trace(node, t)
            return
        rank, target = len(t.shape(out)), t.shape(out)
        tags: Array | None = None
        shape: Shape = ()
        for value in self.values(node):
            if t.is_weight(value):
                continue
            mine, real = (
                aligned(t.get(value), rank),
                (1,) * (rank - len(t.shape(value))) + t.shape(value),
            )
            if tags is None:
                tags, shape = mine, real
            else:
                tags = combine(node, t, (tags, shape), (mine, real))
                shape = tuple(np.broadcast_shapes(shape, real))
        if tags is None:
            tags = np.zeros((1,) * rank, dtype=np.int64)
        elif not varying_axes(tags) and shape != target:
            t.pin(tags, node, "a single channel is broadcast against a constant")
            tags = np.zeros_like(tags)
        for result in node.outputs:
            t.set(node, result, tags)
        for index, value in enumerate(node.inputs):
            if value in self.values(node) and t.is_weight(value):
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
        for result in node.outputs:
            r.set(node, result, tags)
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.values(node) and r.trace.is_weight(value):
                before = operand_tags(node, r.trace, index, old)
                after = operand_tags(node, r.trace, index, tags, old)
                skip = rank - len(r.old_shape(value))
                r.select(
                    node, index, lowered(before, skip), lowered(after, skip), r.old_shape(value)
                )

    def values(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that carry data."""
        return [value for value in node.inputs[: self.operands] if value is not None]


def aligned(tags: Array, rank: int) -> Array:
    """A compact array with axes put in front, as broadcasting does."""
    return tags.reshape((1,) * (rank - tags.ndim) + tags.shape)


def lowered(tags: Array, skip: int) -> Array:
    """A compact array without its first `skip` axes, on which it is uniform."""
    return tags.reshape(tags.shape[skip:]) if skip else tags


def operand_tags(
    node: ir.Node, t: Trace, index: int, tags: Array, old: Array | None = None
) -> Array:
    """The channels that a constant operand's elements belong to, given those of the result.

    Args:
        node: the node; index: which operand.
        t: the first walk.
        tags: of the result, before or after a plan.
        old: of the result before the plan, where `tags` is after it.
    """
    value = node.inputs[index]
    real = t.shape(value) if value is not None else ()
    real = (1,) * (tags.ndim - len(real)) + real
    varying = varying_axes(tags if old is None else old)
    gone = tuple(axis for axis in varying if real[axis] == 1)
    if not gone:
        return tags
    if len(gone) == len(varying):
        return np.zeros((1,) * tags.ndim, dtype=np.int64)
    return t.tags.coarsen((node, index), tags, gone, label(node))


def combine(
    node: ir.Node, t: Trace, one: tuple[Array, Shape], other: tuple[Array, Shape]
) -> Array:
    """Tie two broadcast operands, each given as compact tags and real sizes of equal rank; returns the result's tags."""
    if len(varying_axes(one[0])) > len(varying_axes(other[0])):
        one, other = other, one
    (small, small_shape), (large, large_shape) = one, other
    inner, outer = set(varying_axes(small)), set(varying_axes(large))
    if not inner and not outer:
        return combine_single(node, t, one, other)
    more = sorted(outer - inner)
    if inner == outer or (inner < outer and all(small_shape[axis] > 1 for axis in more)):
        t.unite(node, small, large)
        return small if inner == outer else large
    if not inner <= outer or any(small_shape[axis] > 1 for axis in more):
        t.pin(
            small,
            node,
            "two axes of channels are multiplied out",
            "keep the channels of one of them",
        )
        t.pin(
            large,
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
        value, out = node.inputs[0], node.outputs[0]
        if value is None or not t.known(out) or not t.known(value):
            Pins("the sizes that '{op}' works with are not known").trace(node, t)
            return
        tags = t.get(value)
        for parameter in node.inputs[1:]:
            if parameter is not None and (
                not t.is_weight(parameter) or len(t.shape(parameter)) > 1
            ):
                Pins("'{op}' has scales that are not constant, or in blocks").trace(node, t)
                return
        t.set(node, out, tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut the scales of a channel axis."""
        value, out = node.inputs[0], node.outputs[0]
        if value is None or not r.is_changed(value):
            return
        old, new = r.old(value), r.new(value)
        attribute = node.attributes.get("axis")
        axis = 1 if attribute is None else attribute.as_int()
        axis = axis + old.ndim if axis < 0 else axis
        for index, parameter in enumerate(node.inputs[1:], start=1):
            if parameter is not None and np.prod(r.old_shape(parameter)) > 1:
                line = [other for other in range(old.ndim) if other != axis]
                index_of = tuple(
                    slice(None) if other == axis else 0 for other in range(old.ndim)
                )
                r.require(
                    node,
                    all(old.shape[other] == 1 for other in line),
                    old,
                    "its scales lie along another axis",
                )
                r.select(node, index, old[index_of], new[index_of], r.old_shape(parameter))
        r.set(node, out, new)
