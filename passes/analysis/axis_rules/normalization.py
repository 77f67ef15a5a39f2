"""Normalisations, pooling, reductions: ops that compute along some axes and leave channels on the others alone.

Statistics, sums and choices that run over the channels themselves change when one of them goes, even a constant one:
those channels are pinned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.row import (
    Pins,
    attribute_int,
    attribute_ints,
    channels_of,
    data,
    input_at,
    normalized,
    spread,
)
from passes.analysis.compact import Array, varying_axes
from passes.analysis.edits import Select, SetAttribute
from passes.analysis.tags import Pin
from passes.analysis.walk import label

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from passes.analysis.walk import Replay, Trace

__all__ = ["Along", "BatchNormalization", "GroupStatistics", "Pooling", "Reduce", "Resize"]

OVER_CHANNELS = "'{op}' computes statistics over its channels, which change when one is removed"
OVER_CHANNELS_ADVICE = "keep them, or use a normalisation that treats every channel by itself"
SUMMED = "they are summed up with others"


def last_axis(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The axis of an op such as Softmax."""
    opset = node.graph.opset_imports.get("", 13) if node.graph is not None else 13
    if node.op_type in {"Softmax", "LogSoftmax"} and opset < 13:
        # it used to take its input for a matrix, with rows from this axis on
        return tuple(range(normalized(attribute_int(node, "axis", 1), rank), rank))
    return (normalized(attribute_int(node, "axis", -1), rank),)


def trailing_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The axes of a LayerNormalization."""
    return tuple(range(normalized(attribute_int(node, "axis", -1), rank), rank))


def channel_axis(node: ir.Node, rank: int) -> tuple[int, ...]:
    """Axis 1, whatever the op."""
    del node
    return (1,) if rank > 1 else (0,)


class Along:
    """Ops that work along axes, of which no channel may be missing; the result has the shape of the input.

    Args:
        axes: which axes these are.
        is_symmetric: whether channels along them may change places: no one is treated as a neighbour of another. Parameters follow.
    """

    def __init__(
        self, axes: Callable[[ir.Node, int], tuple[int, ...]], *, is_symmetric: bool = True
    ) -> None:
        self.axes = axes
        self.is_symmetric = is_symmetric

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pin channels that lie along the axes; pass others on."""
        value = data(node)
        tags = t.get(value)
        along = self.axes(node, tags.ndim)
        if any(tags.shape[axis] > 1 for axis in along):
            t.pin(
                tags,
                node,
                OVER_CHANNELS.format(op=node.op_type),
                OVER_CHANNELS_ADVICE,
                is_movable=self.is_symmetric,
            )
        elif not varying_axes(tags) and any(t.shape(value)[axis] == 1 for axis in along):
            t.pin(tags, node, "it is normalised by itself")
        for other in node.inputs[1:]:
            if other is not None and not t.is_weight(other):
                t.pin(t.get(other), node, "they serve as parameters")
        t.set(node, node.outputs[0], tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Pass the tags on; parameters are put in the order of the channels that they belong to."""
        value = data(node)
        if not r.is_changed(value):
            return
        old, new = r.old(value), r.new(value)
        along = self.axes(node, old.ndim)
        moving = tuple(axis for axis in along if old.shape[axis] > 1)
        if moving:
            same_members(node, r, moving)
            self.follow(node, r, moving)
        r.set(node, node.outputs[0], new)

    def follow(self, node: ir.Node, r: Replay, moving: tuple[int, ...]) -> None:
        """Put parameters in the order that channels take on the axes that are `moving`."""
        old, new = r.old(data(node)), r.new(data(node))
        came = np.unravel_index(r.origins(node, old, new), old.shape)
        for index in range(1, len(node.inputs)):
            value = node.inputs[index]
            if value is None:
                continue
            # A parameter may lack leading axes, or have size 1 on some.
            real = r.old_shape(value)
            picks: list[Array | None] = [None] * len(real)
            for axis in moving:
                at = axis - old.ndim + len(real)
                if at < 0 or real[at] == 1:
                    continue
                lines = np.moveaxis(came[axis], axis, 0).reshape(new.shape[axis], -1)
                r.require(
                    node,
                    (lines == lines[:, :1]).all(),
                    new,
                    "its parameters serve channels in several orders",
                )
                picks[at] = np.ascontiguousarray(lines[:, 0])
            if any(pick is not None for pick in picks):
                r.edit(Select(node, index, tuple(picks)))


def same_members(node: ir.Node, r: Replay, axes: tuple[int, ...]) -> None:
    """Require that each row along `axes` of what a node reads has the channels that it had, in whatever order."""
    rows = [_members(array, axes) for array in (r.old(data(node)), r.new(data(node)))]
    r.require(
        node,
        rows[0].shape == rows[1].shape and (rows[0] == rows[1]).all(),
        r.new(data(node)),
        "it would work over other channels than before",
    )


def _members(tags: Array, axes: tuple[int, ...]) -> Array:
    """The tags of each row along `axes`, sorted, shape `(rows, members)`."""
    others = [axis for axis in range(tags.ndim) if axis not in axes]
    count = int(np.prod([tags.shape[axis] for axis in others], dtype=np.int64))
    members: Array = np.sort(tags.transpose([*others, *axes]).reshape(count, -1), axis=1)
    return members


class BatchNormalization:
    """Every channel by itself, with constants a channel: also InstanceNormalization."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags of axis 1 on."""
        training = attribute_int(node, "training_mode", 0) or (
            node.op_type == "BatchNormalization"
            and sum(1 for one in node.outputs if one.uses()) > 1
        )
        if training or not all(t.is_weight(one) for one in node.inputs[1:]):
            Pins("'{op}' is in training mode, or its parameters are not constant").trace(
                node, t
            )
            return
        t.set(node, node.outputs[0], t.along(node, t.get(data(node)), 1))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut the constants."""
        value, out = data(node), node.outputs[0]
        if not r.is_changed(value):
            return
        old, new = r.old(out).ravel(), channels_of(r.new(value))
        for index in range(1, len(node.inputs)):
            r.select(node, index, old, new, old.shape)
        r.set(node, out, spread(new, len(r.old_shape(out))))


class GroupStatistics(BatchNormalization):
    """GroupNormalization: statistics over groups of channels; with one channel a group it is an instance norm."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pin the channels, unless every one is a group of its own."""
        value = data(node)
        if attribute_int(node, "num_groups", 1) == t.shape(value)[1] > 1:
            super().trace(node, t)
            return
        tags = t.along(node, t.get(value), 1)
        t.pin(tags, node, OVER_CHANNELS.format(op=node.op_type), OVER_CHANNELS_ADVICE)
        t.set(node, node.outputs[0], tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut the constants, and say how many groups are left."""
        super().replay(node, r)
        out = node.outputs[0]
        if r.is_changed(out):
            r.edit(SetAttribute(node, "num_groups", r.shape(out)[1]))


class Pooling:
    """Windows over space: every channel by itself. Also global pooling."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags of axis 1 on."""
        if len(node.outputs) > 1 and node.outputs[1].uses():
            Pins("'{op}' gives positions that count its channels").trace(node, t)
            return
        t.set(node, node.outputs[0], t.along(node, t.get(data(node)), 1))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Pass the tags on."""
        value, out = data(node), node.outputs[0]
        if r.is_changed(value):
            r.set(node, out, spread(channels_of(r.new(value)), len(r.old_shape(out))))


class Resize:
    """Space is scaled; sizes that spell out the channels follow."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags on, if the channel axis keeps its size."""
        value, out = data(node), node.outputs[0]
        tags = t.get(value)
        scaled = tuple(
            axis
            for axis, (before, after) in enumerate(
                zip(t.shape(value), t.shape(out), strict=True)
            )
            if before != after
        )
        if any(tags.shape[axis] > 1 for axis in scaled):
            t.pin(tags, node, "they lie along an axis that is scaled")
            tags = np.zeros((1,) * tags.ndim, dtype=np.int64)
        if not varying_axes(tags) and any(t.shape(value)[axis] == 1 for axis in scaled):
            t.pin(tags, node, "a single channel is repeated")
        sizes = input_at(node, 3)
        spelled = sizes is not None and any(t.shape(sizes))
        if spelled and "axes" in node.attributes and varying_axes(tags):
            named = {normalized(axis, tags.ndim) for axis in attribute_ints(node, "axes") or ()}
            if named & set(varying_axes(tags)):
                t.pin(tags, node, "it spells out the size of the channel axis by name")
        policy = node.attributes.get("keep_aspect_ratio_policy")
        if policy is not None and policy.as_string() != "stretch":
            t.pin(tags, node, "it keeps an aspect ratio over all axes")
        t.set(node, out, tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Sizes that were spelled out follow."""
        value, out = data(node), node.outputs[0]
        if not r.is_changed(value):
            return
        r.set(node, out, r.new(value))
        sizes = input_at(node, 3)
        if sizes is not None and any(r.old_shape(sizes)) and "axes" not in node.attributes:
            old, new = r.old_shape(out), r.shape(out)
            r.resize_input(node, 3, {a: new[a] for a in range(len(new)) if old[a] != new[a]})


class Reduce:
    """Axes are summed up. Over channels only a sum allows it, and only of channels that are zero."""

    SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"})

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Drop the axes; pin channels that lie along them."""
        value, out = data(node), node.outputs[0]
        axes = reduced(node, t, len(t.shape(value)))
        if axes is None:
            Pins("the axes that '{op}' works on are only known at run time").trace(node, t)
            return
        tags = t.get(value)
        inside = [axis for axis in axes if tags.shape[axis] > 1]
        single = not varying_axes(tags) and any(t.shape(value)[axis] == 1 for axis in axes)
        if single and tags.any():
            t.pin(tags, node, "it is reduced by itself")
        if inside and node.op_type in self.SUMS:
            pin = Pin(label(node), SUMMED, "make them zero, not constant")
            t.tags.demand_zero(value, pin, (node, "sum"))
            t.tags.stiffen(tags, Pin(label(node), SUMMED, "keep them"))
            tags = summed(node, t, tags, tags, inside)
        elif inside:
            t.pin(
                tags,
                node,
                OVER_CHANNELS.format(op=node.op_type),
                OVER_CHANNELS_ADVICE,
                is_movable=True,
            )
            tags = np.zeros((1,) * tags.ndim, dtype=np.int64)
        t.notes[node] = inside
        t.set(node, out, without(tags, axes, len(t.shape(out))))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Drop the axes."""
        value, out = data(node), node.outputs[0]
        if not r.is_changed(value):
            return
        tags = r.new(value)
        axes = reduced(node, r.trace, tags.ndim) or ()
        inside = r.trace.notes[node]
        if inside and node.op_type not in self.SUMS:
            same_members(node, r, tuple(inside))
            return
        if inside:
            old, moved = r.old(value), tags
            tags = summed(node, r.trace, moved, old, inside)
            r.meet(node, (summed(node, r.trace, old, old, inside), old), (tags, moved))
        r.set(node, out, without(tags, axes, len(r.old_shape(out))))


def summed(node: ir.Node, t: Trace, tags: Array, old: Array, axes: list[int]) -> Array:
    """Tags of a sum: one coarse channel a slice along `axes`, or none where the input varies along no other axis.

    Args:
        node: the node that sums up.
        t: the first walk.
        tags: of its input, before or after a plan.
        old: of its input before the plan.
        axes: the axes of channels that are summed up.
    """
    if all(axis in axes for axis in varying_axes(old)):
        return np.zeros((1,) * tags.ndim, dtype=np.int64)
    return t.tags.coarsen((node, "sum"), tags, tuple(axes), label(node))


def reduced(node: ir.Node, t: Trace, rank: int) -> tuple[int, ...] | None:
    """The axes a reduction works on; None if they are not known."""
    given = input_at(node, 1)
    if given is not None:
        numbers = t.ints(given)
        if numbers is None:
            return None
        axes = tuple(int(axis) for axis in numbers)
    else:
        axes = attribute_ints(node, "axes") or ()
    if not axes:
        return () if attribute_int(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(normalized(axis, rank) for axis in axes))


def without(tags: Array, axes: tuple[int, ...], rank: int) -> Array:
    """A compact array without the reduced axes, unless the op keeps them in its result of `rank` axes."""
    if tags.ndim == rank:
        return tags
    return tags.reshape([size for axis, size in enumerate(tags.shape) if axis not in axes])
