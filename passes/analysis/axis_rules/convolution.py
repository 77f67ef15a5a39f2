"""Conv and ConvTranspose of any rank, grouped and depthwise: they consume the channels of axis 1 and make new ones.

The weight of a Conv is `(O, I/g, ...)`, that of a ConvTranspose `(I, O/g, ...)`: one side lies along axis 0 in full,
the other along axis 1, anew in every group. Groups that survive keep equally many channels on both sides. In a
depthwise convolution with one output a channel, both sides are the same channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.row import (
    Pins,
    attribute_int,
    channels_of,
    data,
    input_at,
    spread,
)
from passes.analysis.compact import Array
from passes.analysis.edits import Select, SetAttribute
from passes.analysis.tags import Grid, Pin
from passes.analysis.walk import label

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.walk import Replay, Trace

__all__ = ["CONVOLUTIONS", "Convolution", "is_depthwise"]

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def is_depthwise(node: ir.Node, channels: int, outputs: int) -> bool:
    """Whether every input channel makes exactly one output channel."""
    return 1 < attribute_int(node, "group", 1) == channels == outputs


class Convolution:
    """Conv and ConvTranspose.

    Args:
        transposed: whether the weight's axis 0 holds the inputs.
    """

    def __init__(self, *, transposed: bool) -> None:
        self.transposed = transposed

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Make the output's channels."""
        value, weight, out = data(node), data(node, 1), node.outputs[0]
        bias = input_at(node, 2)
        if not t.is_weight(weight) or (bias is not None and not t.is_weight(bias)):
            Pins("'{op}' has a weight that is not constant").trace(node, t)
            return
        channels, outputs = t.shape(value)[1], t.shape(out)[1]
        groups = attribute_int(node, "group", 1)
        incoming = np.broadcast_to(channels_of(t.along(node, t.get(value), 1)), (channels,))
        depthwise = is_depthwise(node, channels, outputs)
        outgoing = incoming if depthwise else t.tags.fresh((outputs,))
        if groups > 1 and not depthwise:
            rows = incoming.reshape(groups, -1)
            t.tags.grids.append(Grid(rows, outgoing.reshape(groups, -1), label(node), "group"))
            if groups == channels:
                pin = Pin(label(node), "every channel is convolved into several", "keep them")
                t.tags.stiffen(np.concatenate([incoming, outgoing]), pin)
        t.notes[node] = (incoming, outgoing)
        made = spread(outgoing, len(t.shape(out)))
        t.sources[node] = made
        t.tie_weight(node, weight, (node.op_type, groups), (incoming, outgoing))
        t.set(node, out, made)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut rows and columns to what a plan leaves."""
        noted = r.trace.notes.get(node)
        if noted is None:
            return
        value, out = data(node), node.outputs[0]
        incoming, outgoing = noted
        depthwise = is_depthwise(node, incoming.size, outgoing.size)
        arriving = incoming
        if r.is_changed(value):
            arriving = np.broadcast_to(channels_of(r.new(value)), (r.shape(value)[1],))
        leaving = arriving if depthwise else r.survivors(outgoing)
        if same(arriving, incoming) and same(leaving, outgoing):
            return
        came, went = r.origins(node, incoming, arriving), r.origins(node, outgoing, leaving)
        groups = attribute_int(node, "group", 1)
        if depthwise:
            left = arriving.size
            picks: tuple[Array | None, Array | None] = (came, None)
            zero = (arriving < 0).reshape(-1, 1) if (arriving < 0).any() else None
        else:
            left, picks, zero = self.grouped(
                node, r, (incoming, outgoing), (arriving, leaving), (came, went)
            )
        rank = len(r.old_shape(value))
        if zero is not None:
            zero = zero.reshape(zero.shape + (1,) * (rank - 2))
        r.edit(Select(node, 1, (*picks, *(None,) * (rank - 2)), zero))
        if input_at(node, 2) is not None:
            r.edit(Select(node, 2, (went,), leaving < 0 if (leaving < 0).any() else None))
        if left != groups:
            r.edit(SetAttribute(node, "group", left))
        r.set(node, out, spread(leaving, rank))

    def grouped(
        self,
        node: ir.Node,
        r: Replay,
        old: tuple[Array, Array],
        new: tuple[Array, Array],
        places: tuple[Array, Array],
    ) -> tuple[int, tuple[Array | None, Array | None], Array | None]:
        """The number of groups left, the picks of axes 0 and 1, and which elements are padding."""
        groups = attribute_int(node, "group", 1)
        members = [before.size // groups for before in old]
        alive = [place // size for place, size in zip(places, members, strict=True)]
        kept = [list(dict.fromkeys(int(group) for group in side)) for side in alive]
        everything = np.concatenate([np.abs(side) for side in new])
        r.require(
            node, kept[0] == kept[1] and kept[0], everything, "its groups would no longer match"
        )
        left = len(kept[0])
        for side in alive:
            regular = (
                side.size % left == 0
                and (side.reshape(left, -1) == np.asarray(kept[0])[:, None]).all()
            )
            r.require(node, regular, everything, "its groups would differ in size")
        # `outer` is the side along axis 0, `inner` the side that starts anew in every group
        outer, inner = (0, 1) if self.transposed else (1, 0)
        rows = places[outer]
        if left == 1 and groups == 1:
            columns: Array = places[inner]
        else:
            within = (places[inner] % members[inner]).reshape(left, -1)
            columns = np.repeat(within, rows.size // left, axis=0)
            rows = rows.reshape(-1, 1)
        zero = None
        if (new[0] < 0).any() or (new[1] < 0).any():
            per_group = (new[inner] < 0).reshape(left, -1)
            zero = (new[outer] < 0).reshape(-1, 1) | np.repeat(
                per_group, new[outer].size // left, axis=0
            )
        return left, (rows, columns), zero


def same(one: Array, other: Array) -> bool:
    """Whether two 1-D arrays are equal."""
    return one.shape == other.shape and bool((one == other).all())
