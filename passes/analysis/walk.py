"""The two walks over a graph that all axis rules share.

`Trace` sends tags through the graph as it is, and writes down what ties them. `Replay` sends the tags that a plan
leaves (and the padded ones it adds) through the same rules again, at the sizes that result, and writes down the edits
that turn the one graph into the other. Because the surviving tags are moved by the very operations the graph applies to
data, a weight learns from the tags that arrive at it which of its columns to keep, and in which order: no rule ever
computes an offset twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from passes import weights
from passes.analysis import operands
from passes.analysis.compact import Array, compress, varying_axes
from passes.analysis.edits import Edit, Patch, Select, SetInput
from passes.analysis.tags import Conflict, Pin, Tags, origins

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.shapes import Sizes

__all__ = ["Replay", "Shape", "Trace", "label"]

Shape = tuple[int, ...]


def label(node: ir.Node) -> str:
    """The name under which the user knows a node."""
    return node.name or f"{node.op_type} that makes {node.outputs[0].name}"


class Trace:
    """The first walk: tags through the graph as it is.

    Attributes:
        sizes: static sizes of the graph.
        tags: the ledger that the rules write to.
        notes: what a rule wants to remember for the replay, by node.
        sources: the nodes that make channels, with the axes of their first output these lie on.
        blocked: the nodes whose weights could make channels, but may not, with the reason.
        weight_uses: how each constant is read, by role, with the channels along its axes.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.tags = Tags()
        self.notes: dict[ir.Node, Any] = {}
        self.sources: dict[ir.Node, Array] = {}
        self.blocked: dict[ir.Node, Pin] = {}
        self.weight_uses: dict[ir.Value, list[tuple[object, tuple[Array, ...], ir.Node]]] = {}

    def known(self, value: ir.Value | None) -> bool:
        """Whether the value's sizes are known, so that rules can reason about it."""
        return value is not None and value in self.sizes.shape

    def shape(self, value: ir.Value) -> Shape:
        """Sizes of a value, stand-ins included."""
        return self.sizes.shape[value]

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether the value is a constant, itself or seen through a DequantizeLinear."""
        return operands.is_constant(value)

    def ints(self, value: ir.Value | None) -> Array | None:
        """The numbers of an integer (or Resize scale) input, if they are known."""
        if value is None:
            return None
        found = self.sizes.integers.get(value)
        return weights.constant(value) if found is None else found

    def get(self, value: ir.Value) -> Array:
        """Tags of an activation; a constant or an input of the graph has none."""
        found = self.tags.of.get(value)
        rank = len(self.sizes.shape.get(value, ()))
        return np.zeros((1,) * rank, dtype=np.int64) if found is None else found

    def set(self, node: ir.Node, value: ir.Value, tags: Array) -> None:
        """Write down the tags of a value that `node` makes."""
        tags = compress(tags)
        symbolic = self.sizes.symbolic.get(value, ())
        if any(axis < len(symbolic) and symbolic[axis] for axis in varying_axes(tags)):
            self.pin(
                tags,
                node,
                "its channels share an axis with a size that is only known at run time",
                "fix the size of the dynamic axes, if the model always runs at one size",
            )
        self.tags.of[value] = tags

    def pin(
        self,
        tags: Array,
        node: ir.Node,
        reason: str,
        advice: str = "",
        *,
        is_movable: bool = False,
    ) -> None:
        """Keep channels as they are, because of `node`; those that are movable may still change places."""
        self.tags.pin(tags, Pin(label(node), reason, advice or "keep them", is_movable))

    def unite(self, node: ir.Node, one: Array, other: Array) -> None:
        """Tie channels that `node` brings together."""
        self.tags.unite(
            one,
            other,
            Pin(
                label(node),
                f"'{label(node)}' combines them with data that has no removable channels",
                "keep them",
            ),
        )

    def unite_along(self, node: ir.Node, tags: Array, axes: tuple[int, ...]) -> Array:
        """Tie channels that lie along `axes`, which `node` treats alike."""
        return self.tags.unite_along(
            tags,
            axes,
            Pin(label(node), "they lie along an axis that is not their own", "keep them"),
        )

    def along(self, node: ir.Node, tags: Array, axis: int) -> Array:
        """Tags along `axis`, of a node that treats each of its indices by itself and works over all other axes.

        Channels that lie along another axis could only go together with their whole row of `axis`.
        """
        others = tuple(other for other in varying_axes(tags) if other != axis)
        if others:
            pin = Pin(
                label(node),
                f"'{label(node)}' works along an axis on which they lie",
                "keep them",
            )
            if tags.shape[axis] == 1:
                self.tags.pin(tags, pin)
            else:
                self.tags.stiffen(tags, pin)
            tags = self.unite_along(node, tags, others)
        return tags

    def tie_weight(
        self, node: ir.Node, value: ir.Value, role: object, tags: tuple[Array, ...]
    ) -> None:
        """Tie the channels of all uses of one weight that read it the same way, so that one copy serves them."""
        uses = self.weight_uses.setdefault(value, [])
        for known, others, _ in uses:
            if known == role and all(
                a.shape == b.shape for a, b in zip(tags, others, strict=True)
            ):
                for one, other in zip(tags, others, strict=True):
                    self.unite(node, one, other)
                return
        uses.append((role, tags, node))


class Replay:
    """The second walk: what a plan leaves of the tags, through the same graph.

    Args:
        trace: the first walk.
        drop: bool, shape `(tags,)`: tags that go.
        pads: how many zero channels to put behind a tag, by tag.
        roots: the class of every tag.
        ranks: where a class goes among those that are put in another order; others stay where they are.
    """

    def __init__(
        self,
        trace: Trace,
        drop: Array,
        pads: Mapping[int, int],
        roots: Array,
        ranks: Mapping[int, int] | None = None,
    ) -> None:
        self.trace = trace
        self.drop = drop
        self.ranks = np.full(drop.size, -1, dtype=np.int64) if ranks else None
        if self.ranks is not None:
            self.ranks[list(ranks or {})] = list((ranks or {}).values())
        self.pads = np.zeros(drop.size, dtype=np.int64)
        for tag, count in pads.items():
            self.pads[tag] = count
        self.tags: dict[ir.Value, Array] = {}
        self.shapes: dict[ir.Value, Shape] = {}
        self.edits: list[Edit] = []
        self.roots = roots

    def old(self, value: ir.Value) -> Array:
        """Tags of a value before the plan."""
        return self.trace.get(value)

    def new(self, value: ir.Value) -> Array:
        """Tags of a value after the plan: padded channels are negative."""
        return self.tags.get(value, self.trace.get(value))

    def old_shape(self, value: ir.Value) -> Shape:
        """Sizes of a value before the plan."""
        return self.trace.shape(value)

    def shape(self, value: ir.Value) -> Shape:
        """Sizes of a value after the plan."""
        return self.shapes.get(value) or self.trace.shape(value)

    def is_changed(self, value: ir.Value | None) -> bool:
        """Whether the plan changes the value."""
        return value in self.tags

    def set(self, node: ir.Node, value: ir.Value, tags: Array) -> None:
        """Write down the tags that a value of `node` has after the plan.

        Every axis on which the tags varied before the plan has its new size in `tags`; the value's sizes follow.
        """
        old, before = self.old(value), self.old_shape(value)
        shape = list(before)
        for axis in range(old.ndim):
            if old.shape[axis] > 1:
                shape[axis] = tags.shape[axis]
            elif tags.shape[axis] > 1:
                first = tags[(slice(None),) * axis + (slice(0, 1),)]
                self.require(
                    node, (tags == first).all(), tags, "channels that were alike would differ"
                )
                tags = first
        self.require(node, 0 not in shape or 0 in before, old, "nothing would be left of it")
        if tags.shape != old.shape or (tags != old).any():
            self.tags[value] = tags
            self.shapes[value] = tuple(shape)

    def survivors(self, tags: Array) -> Array:
        """What the plan leaves of a 1-D array of tags, in its order, padded channels put in."""
        kept = tags[~self.drop[tags]]
        if self.ranks is not None:
            rank = self.ranks[self.roots[kept]]
            moved = np.flatnonzero(rank >= 0)
            kept[moved] = kept[moved[np.argsort(rank[moved], kind="stable")]]
        copies = self.pads[kept]
        if not copies.any():
            return kept
        out = np.repeat(kept, copies + 1)
        starts = np.cumsum(copies + 1) - copies - 1
        padded = np.ones(out.size, dtype=bool)
        padded[starts] = False
        out[padded] *= -1
        return out

    def origins(self, node: ir.Node, old: Array, new: Array) -> Array:
        """Flat indices into `old` of the elements of `new`."""
        try:
            return origins(old, new)
        except ValueError as error:
            raise self.conflict(node, new, str(error)) from error

    def require(self, node: ir.Node, condition: object, tags: Array, reason: str) -> None:
        """Give up on the plan for `tags` where a rule cannot carry it through `node`."""
        if not condition:
            raise self.conflict(node, tags, reason)

    def conflict(self, node: ir.Node, tags: Array, reason: str) -> Conflict:
        """A Conflict over `tags` and all channels that meet in `node`: those that are gone, too."""
        met = [self.old(value) for value in (*node.inputs, *node.outputs) if value is not None]
        return Conflict(
            np.concatenate([array.ravel() for array in (tags, *met)]), label(node), reason
        )

    def agree(self, node: ir.Node, one: Array, other: Array) -> None:
        """Check that two broadcastable arrays hold the same channels in the same places."""
        one, other = np.broadcast_arrays(one, other)
        real = (one != 0) & (other != 0)
        same = (self.roots[np.abs(one)] == self.roots[np.abs(other)]) & (
            (one < 0) == (other < 0)
        )
        self.require(node, same[real].all(), one, "its operands would no longer match")

    def meet(
        self, node: ir.Node, before: tuple[Array, Array], after: tuple[Array, Array]
    ) -> None:
        """Check that what meets in a node is what met there before the plan.

        Channels that are tied one to one agree already. A channel that stands for several (of a gate with one element a head)
        could meet those of another one if either were put in another order.

        Args:
            node: the node.
            before: two broadcastable arrays of tags before the plan.
            after: the same after it.
        """
        pairs = []
        for one, other in (np.broadcast_arrays(*pair) for pair in (before, after)):
            # By tag, not by class: channels of one class are in order among themselves, too.
            met = (one > 0) & (other > 0)
            pairs.append(np.unique(one[met] * self.roots.size + other[met]))
        self.require(
            node,
            np.isin(pairs[1], pairs[0]).all(),
            after[0],
            "channels would meet that did not before",
        )

    def resize_input(self, node: ir.Node, index: int, sizes: Mapping[int, int]) -> None:
        """Let a 1-D size input hold new numbers at some positions."""
        value = node.inputs[index]
        known = weights.constant(value)
        if not sizes:
            return
        if known is None:
            self.edit(
                Patch(node, index, tuple(sizes), tuple(sizes.values()), self.length(value))
            )
        else:
            array = known.copy()
            array[list(sizes)] = list(sizes.values())
            self.edit(SetInput(node, index, array))

    def length(self, vector: ir.Value | None) -> int:
        """How many elements a 1-D vector has."""
        return 0 if vector is None else self.old_shape(vector)[0]

    def edit(self, edit: Edit) -> None:
        """Write down a change."""
        self.edits.append(edit)

    def select(self, node: ir.Node, index: int, old: Array, new: Array, real: Shape) -> None:
        """Cut a constant operand whose element `i` belongs to channel `old[i]` to the channels `new`.

        Args:
            node: the node that reads it.
            index: which of its inputs.
            old: compact tags of the operand before the plan, of the operand's rank.
            new: the same after the plan; every axis on which `old` varies has its new size.
            real: shape of the operand before the plan.
        """
        if old.shape == new.shape and (old == new).all():
            return
        varying = [
            axis for axis in range(old.ndim) if old.shape[axis] > 1 or new.shape[axis] > 1
        ]
        where = np.unravel_index(self.origins(node, old, new), old.shape)
        picks: list[Array | None] = []
        for axis in range(old.ndim):
            if axis in varying and real[axis] > 1:
                picks.append(np.ascontiguousarray(where[axis]))
            else:
                picks.append(None)
        if len(varying) == 1:
            axis = varying[0]
            picks[axis] = where[axis].ravel()
        self.edit(Select(node, index, tuple(picks)))
