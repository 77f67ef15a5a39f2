"""What a network can lose: its groups of channels, and what each layer costs at any counts of them.

A layer has as many outputs as the groups that its channels are in keep of them, so its sizes are linear in the counts of the
groups; weights and multiply-accumulates are products of two such sizes. This answers in microseconds what cutting would cost
milliseconds; what is chosen is cut for real afterwards.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import ModelError, PassFailed, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.base import Skip
    from passes.planners.pruning import Group, Pruner, Pruning

__all__ = ["Layer", "Network", "Width"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Counts: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Width:
    """A number of channels, as a function of the counts of groups: `fixed + sum of parts[g] * counts[g]`.

    Attributes:
        fixed: channels that cannot go.
        parts: channels for each item that a group keeps, by the group's number.
        full: channels of the network as it is.
    """

    fixed: float
    parts: Mapping[int, float]
    full: float

    def at(self, counts: Sequence[int]) -> float:
        """The number at some counts."""
        return self.fixed + sum(part * counts[group] for group, part in self.parts.items())

    def share(self, counts: Sequence[int]) -> float:
        """The same as a share of all."""
        return self.at(counts) / self.full if self.full else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A node, and how its size follows from the counts.

    Attributes:
        name: of the node.
        weight: of its weight; empty for nodes that multiply by none.
        op_type: its operator.
        inputs: channels that it reads; for nodes without a weight the same as `outputs`.
        outputs: channels that it makes; for other nodes, elements of the result.
        is_depthwise: whether each output reads one input.
        weights: elements of its weight.
        macs: multiply-accumulates.
    """

    name: str
    weight: str
    op_type: str
    inputs: Width
    outputs: Width
    is_depthwise: bool = False
    weights: int = 0
    macs: int = 0

    def scale(self, counts: Sequence[int]) -> float:
        """Share of its weights, and of its multiply-accumulates, at some counts."""
        share = self.outputs.share(counts)
        return share if self.is_depthwise else share * self.inputs.share(counts)

    @property
    def groups(self) -> frozenset[int]:
        """The groups that its size depends on."""
        return frozenset({*self.inputs.parts, *self.outputs.parts})


class Network:
    """A model and its groups of channels.

    Args:
        model: the model; unchanged.
        input_shapes: static sizes of its inputs, by name.
        keep: names of nodes and tensors whose channels stay.

    Raises:
        PassFailed: it cannot be analysed.
    """

    def __init__(
        self,
        model: ir.Model,
        input_shapes: Mapping[str, tuple[int, ...]],
        *,
        keep: tuple[str, ...] = (),
    ) -> None:
        from passes.analysis.channels import check_names, find_channels
        from passes.analysis.fixed_sizes import fixed_sizes
        from passes.errors import PassError
        from passes.planners.pruning import Pruner, Rules
        from passes.tidy import Tidy

        self.model = model.clone()
        try:
            Tidy()(self.model)
            check_names(self.model, keep)
            channels = find_channels(self.model, keep=keep)
            shapes = fixed_sizes(self.model, channels.sizes, input_shapes)
            self.pruner: Pruner = Pruner(channels, Rules(scope="layer", multiple=1), shapes)
        except PassError as error:
            raise PassFailed("prune-channels", str(error)) from error

    @property
    def groups(self) -> list[Group]:
        """What channels are counted in."""
        return self.pruner.groups

    @property
    def full(self) -> Counts:
        """The counts of the network as it is."""
        return tuple(group.size for group in self.groups)

    @functools.cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """Of each group, the names of the weights and of the nodes that make its channels."""
        from passes.planners.counts import group_of_classes
        from passes.planners.dead_channels import weight_of

        channels = self.pruner.channels
        inside = group_of_classes(channels, self.groups)
        found: list[dict[str, None]] = [{} for _ in self.groups]
        for node, made in channels.trace.sources.items():
            for index in np.unique(inside[channels.roots[made.ravel()]]):
                if index >= 0:
                    found[index] |= {weight_of(channels, node): None, node.name or "": None}
        return tuple(tuple(name for name in each if name) for each in found)

    def least(self, index: int) -> int:
        """The fewest items that a group can keep."""
        group = self.groups[index]
        return max(1, int(self.pruner.held_items(group).sum(1).max(initial=0)))

    def cut(self, counts: Sequence[int]) -> tuple[ir.Model, Pruning]:
        """The network at some counts, and what was cut.

        Raises:
            PassFailed: a node cannot follow.
        """
        from passes import InferShapes, PruneChannels
        from passes.errors import PassError

        made = self.model.clone()
        try:
            wanted = tuple(float(count) for count in counts)
            pruning = self.pruner.finish(self.pruner.realise(wanted, tuple(counts)))
            if pruning.plan:
                PruneChannels(plan=pruning.plan)(made)
                InferShapes()(made)
        except PassError as error:
            raise PassFailed("prune-channels", str(error)) from error
        return made, pruning

    def counts_of(self, keep: Mapping[str, int]) -> Counts:
        """Counts of the groups, from output channels to keep by weight.

        Raises:
            UsageError: they are not of this model, or contradict each other.
        """
        from passes.errors import PassError
        from passes.planners.counts import counts_of_groups

        try:
            return counts_of_groups(self.pruner.channels, self.groups, keep, self.pruner.held)
        except PassError as error:
            raise UsageError(str(error)) from error

    def by_weight(self, counts: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Output channels that each weight keeps, and those it has; of weights that can lose some."""
        return {
            layer.weight: (round(layer.outputs.at(counts)), round(layer.outputs.full))
            for layer in self.layers
            if layer.weight and layer.outputs.parts and not layer.is_depthwise
        }

    def stuck(self) -> tuple[Skip, ...]:
        """What cannot lose channels, and why."""
        return self.pruner.finish(self.pruner.realise(self._floats(), self.full)).skips

    def _floats(self) -> tuple[float, ...]:
        return tuple(float(size) for size in self.full)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every node, products with their weights and multiply-accumulates.

        Raises:
            ModelError: the sizes of a product are not known.
        """
        macs = self.pruner.macs_by_node(None)
        if macs is None:
            msg = "the sizes of some products are not known: give the sizes of the inputs with --shape."
            raise ModelError(msg)
        return tuple(self._find_layers(macs))

    def _find_layers(self, macs: Mapping[ir.Node, int]) -> Iterator[Layer]:
        from passes.analysis.axis_rules.contraction import Weighted
        from passes.analysis.axis_rules.convolution import CONVOLUTIONS, is_depthwise
        from passes.planners.counts import group_of_classes
        from passes.planners.dead_channels import weight_of

        channels = self.pruner.channels
        inside = group_of_classes(channels, self.groups)

        def width(tags: Array) -> Width:
            return self._width(inside[channels.roots[tags.ravel()]])

        for node in channels.model.graph:
            noted = channels.trace.notes.get(node)
            count = macs.get(node, 0)
            if node.op_type in CONVOLUTIONS and isinstance(noted, tuple):
                alone = is_depthwise(node, noted[0].size, noted[1].size)
                sides = (width(noted[0]), width(noted[1]))
                name = weight_of(channels, node)
                yield Layer(
                    _name(node),
                    name,
                    node.op_type,
                    *sides,
                    alone,
                    self._weights(node, 1),
                    count,
                )
            elif isinstance(noted, Weighted):
                fixed = np.zeros(1, dtype=np.int64)
                incoming = noted.incoming if noted.incoming.size else fixed
                outgoing = fixed if noted.outgoing is None else noted.outgoing
                yield Layer(
                    _name(node),
                    weight_of(channels, node),
                    node.op_type,
                    width(incoming),
                    width(outgoing),
                    weights=self._weights(node, noted.weight),
                    macs=count,
                )
            elif node.outputs:
                both = width(_without_copies(channels.trace.get(node.outputs[0])))
                yield Layer(_name(node), "", node.op_type, both, both, macs=count)

    def _width(self, indices: Array) -> Width:
        """Channels of which the groups are known, -1 for those that are in none."""
        found, times = np.unique(indices, return_counts=True)
        parts = {
            int(group): float(number) / self.groups[group].size
            for group, number in zip(found, times, strict=True)
            if group >= 0
        }
        fixed = float(times[found < 0].sum())
        return Width(fixed, parts, float(indices.size))

    def _weights(self, node: ir.Node, index: int) -> int:
        from passes.analysis import operands
        from passes.analysis.axis_rules.row import input_at

        value = input_at(node, index)
        dequantizer = operands.dequantizer(value)
        value = value if dequantizer is None else dequantizer.inputs[0]
        shape = None if value is None else self.pruner.channels.sizes.shape.get(value)
        return 0 if shape is None else math.prod(shape)

    def total(self, what: str, counts: Sequence[int]) -> float:
        """Weights (of convolutions and products), or multiply-accumulates, at some counts.

        Args:
            what: "weights" or "macs".
            counts: items that each group keeps.
        """
        return sum(
            (layer.weights if what == "weights" else layer.macs) * layer.scale(counts)
            for layer in self.layers
        )


def _name(node: ir.Node) -> str:
    """What profiles call a node: by its name, or where it has none, by its first result."""
    return node.name or node.outputs[0].name or ""


def _without_copies(tags: Array) -> Array:
    """Tags without the axes along which they are one and the same array."""
    return tags[tuple(slice(0, 1) if step == 0 else slice(None) for step in tags.strides)]
