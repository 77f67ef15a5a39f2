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
    input_at,
    normalized,
)
from passes.analysis.compact import Array, varying_axes
from passes.analysis.tags import Pin
from passes.analysis.walk import label

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from passes.analysis.walk import Replay, Trace

__all__ = ["Along", "BatchNormalization", "GroupStatistics", "Pooling", "Reduce", "Resize"]

OVER_CHANNELS = "'{op}' computes statistics over its channels, which change when one is removed"
OVER_CHANNELS_ADVICE = "keep them, or use a normalisation that treats every channel by itself"


def last_axis(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The axis of an op such as Softmax."""
    axis = normalized(attribute_int(node, "axis", -1), rank)
    opset = node.graph.opset_imports.get("", 13) if node.graph is not None else 13
    coerced = node.op_type in {"Softmax", "LogSoftmax", "Hardmax"} and opset < 13
    if coerced:
        axis = normalized(attribute_int(node, "axis", 1), rank)
        return tuple(range(axis, rank))
    return (axis,)


def trailing_axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The axes of a LayerNormalization."""
    return tuple(range(normalized(attribute_int(node, "axis", -1), rank), rank))


def channel_axis(node: ir.Node, rank: int) -> tuple[int, ...]:
    """Axis 1, whatever the op."""
    del node
    return (1,) if rank > 1 else (0,)


class Along:
    """Ops that work along axes on which channels may not lie; the result has the shape of the input.

    Args:
        axes: which axes these are.
    """

    def __init__(self, axes: Callable[[ir.Node, int], tuple[int, ...]]) -> None:
        self.axes = axes

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pin channels that lie along the axes; pass others on."""
        value, out = node.inputs[0], node.outputs[0]
        if not t.known(value) or not t.known(out):
            Pins("the sizes that '{op}' works with are not known").trace(node, t)
            return
        tags = t.get(value)
        along = self.axes(node, tags.ndim)
        if any(tags.shape[axis] > 1 for axis in along):
            t.pin(tags, node, OVER_CHANNELS.format(op=node.op_type), OVER_CHANNELS_ADVICE)
        elif not varying_axes(tags) and any(t.shape(value)[axis] == 1 for axis in along):
            t.pin(tags, node, "it is normalised by itself")
        for other in node.inputs[1:]:
            if other is not None and t.known(other) and not t.is_weight(other):
                t.pin(t.get(other), node, "they serve as parameters")
        t.set(node, out, tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Pass the tags on."""
        if r.is_changed(node.inputs[0]):
            r.set(node, node.outputs[0], r.new(node.inputs[0]))


class GroupStatistics:
    """GroupNormalization: statistics over groups of channels; with one channel a group it is an instance norm."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pin the channels."""
        value = node.inputs[0]
        if t.known(value) and t.known(node.outputs[0]):
            tags = t.along(node, t.get(value), 1)
            t.pin(tags, node, OVER_CHANNELS.format(op=node.op_type), OVER_CHANNELS_ADVICE)
            t.set(node, node.outputs[0], tags)
        else:
            Pins().trace(node, t)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Nothing that reaches it has changed."""


class BatchNormalization:
    """Every channel by itself, with constants a channel: also InstanceNormalization."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags of axis 1 on."""
        value, out = node.inputs[0], node.outputs[0]
        parameters = node.inputs[1:]
        training = attribute_int(node, "training_mode", 0) or (
            node.op_type == "BatchNormalization"
            and sum(1 for one in node.outputs if one.uses()) > 1
        )
        if not t.known(value) or training or not all(t.is_weight(one) for one in parameters):
            Pins("'{op}' is in training mode, or its parameters are not constant").trace(
                node, t
            )
            return
        tags = t.along(node, t.get(value), 1)
        t.set(node, out, tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut the constants."""
        value, out = node.inputs[0], node.outputs[0]
        if not r.is_changed(value):
            return
        old, new = r.old(out).ravel(), channels_of(r.new(value))
        for index in range(1, len(node.inputs)):
            r.select(node, index, old, new, old.shape)
        r.set(node, out, new.reshape([1, -1] + [1] * (len(r.old_shape(out)) - 2)))


def channels_of(tags: Array) -> Array:
    """The tags along axis 1, at the first index of the others."""
    return tags[(0, slice(None)) + (0,) * (tags.ndim - 2)]


class Pooling:
    """Windows over space: every channel by itself. Also global pooling."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags of axis 1 on."""
        value, out = node.inputs[0], node.outputs[0]
        if not t.known(value) or not t.known(out):
            Pins("the sizes that '{op}' works with are not known").trace(node, t)
            return
        if len(node.outputs) > 1 and node.outputs[1].uses():
            Pins("'{op}' gives positions that count its channels").trace(node, t)
            return
        tags = t.along(node, t.get(value), 1)
        t.set(node, out, tags)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Pass the tags on."""
        if r.is_changed(node.inputs[0]):
            new = channels_of(r.new(node.inputs[0]))
            r.set(
                node,
                node.outputs[0],
                new.reshape([1, -1] + [1] * (len(r.old_shape(node.outputs[0])) - 2)),
            )


class Resize:
    """Space is scaled; sizes that spell out the channels follow."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pass the tags on, if the channel axis keeps its size."""
        value, out = node.inputs[0], node.outputs[0]
        if value is None or not t.known(value) or not t.known(out):
            Pins("the sizes that '{op}' works with are not known").trace(node, t)
            return
        tags = t.get(value)
        scaled = tuple(
            a
            for a, (x, y) in enumerate(zip(t.shape(value), t.shape(out), strict=True))
            if x != y
        )
        if any(tags.shape[axis] > 1 for axis in scaled):
            t.pin(tags, node, "they lie along an axis that is scaled")
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
        value, out = node.inputs[0], node.outputs[0]
        if value is None or not r.is_changed(value):
            return
        tags = r.new(value)
        r.set(node, out, tags)
        sizes = input_at(node, 3)
        if sizes is not None and any(r.old_shape(sizes)) and "axes" not in node.attributes:
            old, new = r.old_shape(out), r.shape(out)
            r.resize_input(node, 3, {a: new[a] for a in range(len(new)) if old[a] != new[a]})


class Reduce:
    """Axes are summed up. Over channels only a sum allows it, and only of channels that are zero."""

    SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"})

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Drop the axes; pin channels that lie along them."""
        value, out = node.inputs[0], node.outputs[0]
        axes = None if not t.known(value) else reduced(node, t, len(t.shape(value)))
        if axes is None or not t.known(out):
            Pins("the axes that '{op}' works on are only known at run time").trace(node, t)
            return
        tags = t.get(value)
        inside = [axis for axis in axes if tags.shape[axis] > 1]
        single = not varying_axes(tags) and any(t.shape(value)[axis] == 1 for axis in axes)
        if single and tags.any():
            t.pin(tags, node, "it is reduced by itself")
        if inside and node.op_type in self.SUMS:
            pin = Pin(
                label(node), "they are summed up with others", "make them zero, not constant"
            )
            t.tags.demand_zero(value, pin, (node, "sum"))
            t.tags.stiffen(
                tags, Pin(label(node), "they are summed up with others", "keep them")
            )
            rest = [axis for axis in varying_axes(tags) if axis not in inside]
            tags = (
                t.tags.coarsen((node, "sum"), tags, tuple(inside), label(node))
                if rest
                else np.zeros((1,) * tags.ndim, dtype=np.int64)
            )
        elif inside:
            t.pin(tags, node, OVER_CHANNELS.format(op=node.op_type), OVER_CHANNELS_ADVICE)
            tags = np.zeros((1,) * tags.ndim, dtype=np.int64)
        t.notes[node] = inside
        t.set(node, out, lowered(node, tags, axes, len(t.shape(out))))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Drop the axes."""
        value, out = node.inputs[0], node.outputs[0]
        if not r.is_changed(value):
            return
        tags = r.new(value)
        axes = reduced(node, r.trace, tags.ndim) or ()
        inside = tuple(r.trace.notes[node])
        if inside:
            rest = [axis for axis in varying_axes(r.old(value)) if axis not in inside]
            tags = (
                r.trace.tags.coarsen((node, "sum"), tags, inside, label(node))
                if rest
                else np.zeros((1,) * tags.ndim, dtype=np.int64)
            )
        r.set(node, out, lowered(node, tags, axes, len(r.old_shape(out))))


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


def lowered(node: ir.Node, tags: Array, axes: tuple[int, ...], rank: int) -> Array:
    """Without the reduced axes, unless the op keeps them."""
    del node
    if tags.ndim == rank:
        return tags
    return tags.reshape([size for axis, size in enumerate(tags.shape) if axis not in axes])
