"""The channel map of a model: what its channels are, what ties them, and what a plan for them does to the graph."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from passes import shapes
from passes.analysis.axis_rules import row_of
from passes.analysis.axis_rules.row import Pins
from passes.analysis.compact import Array
from passes.analysis.constants import Known, find_constants
from passes.analysis.liveness import find_needed
from passes.analysis.tags import Pin
from passes.analysis.walk import Replay, Trace, label
from passes.errors import PlanMismatch

if TYPE_CHECKING:
    from passes.shapes import Sizes

__all__ = ["ChannelMap", "Values", "check_names", "find_channels"]

EMPTY = Pins("'{op}' works on a tensor without elements")
UNKNOWN = Pins("the sizes that '{op}' works with are not known")


@dataclasses.dataclass(frozen=True)
class Values:
    """What is known of the values of a graph.

    Attributes:
        constants: the elements that do not depend on the input, by value.
        needed: the elements that can reach an output, by value.
    """

    constants: Mapping[ir.Value, Known]
    needed: Mapping[ir.Value, Array]


class ChannelMap:
    """Channels, and what ties them. Read only; made by `find_channels`.

    Attributes:
        model: the model it speaks of.
        sizes: its static sizes.
        trace: the walk that found the tags.
        roots: int, shape `(tags,)`: the class of each tag; classes are cut, padded and kept as one.
        pinned: class -> why it has to stay.
        fixed: class -> why it has to stay where it is among others.
        rigid: class -> why it cannot be padded.
    """

    def __init__(self, model: ir.Model, sizes: Sizes, trace: Trace) -> None:
        self.model = model
        self.sizes = sizes
        self.trace = trace
        self.roots = trace.tags.roots()
        self.pinned = self._by_class(trace.tags.pins)
        self.fixed = self._by_class(
            [(tags, pin) for tags, pin in trace.tags.pins if not pin.is_movable]
        )
        self.rigid = self._by_class(trace.tags.rigid)

    def _by_class(self, entries: list[tuple[Array, Pin]]) -> dict[int, Pin]:
        found: dict[int, Pin] = {}
        for tags, pin in entries:
            for root in np.unique(self.roots[tags]):
                found.setdefault(int(root), pin)
        return found

    @functools.cached_property
    def values(self) -> Values:
        """Which elements are constant, and which are read."""
        constants = find_constants(self.model, self.sizes)
        return Values(constants, find_needed(self.model, self.sizes, constants))

    def replay(
        self,
        drop: Array,
        pads: Mapping[int, int] | None = None,
        ranks: Mapping[int, int] | None = None,
    ) -> Replay:
        """Carry a plan through the graph.

        Args:
            drop: bool, shape `(tags,)`: tags that go.
            pads: how many zero channels to put behind a tag, by tag.
            ranks: where a class goes among those that are put in another order.

        Raises:
            Conflict: a node cannot follow.
        """
        r = Replay(self.trace, drop, pads or {}, self.roots, ranks)
        for node in self.model.graph:
            row_of(node).replay(node, r)
        return r


def find_channels(model: ir.Model, *, keep: Collection[str] = ()) -> ChannelMap:
    """Find the channels of a model.

    Args:
        model: the model; not changed.
        keep: names of nodes and tensors whose channels are to stay.
    """
    sizes = shapes.measure(model)
    t = Trace(sizes)
    for node in model.graph:
        visit(node, t)
        captured(node, t)
        wanted(node, t, keep)
    for value in model.graph.outputs:
        pin = Pin(
            value.name or "",
            f"they reach the graph output '{value.name}', whose size is the model's interface",
            "keep them, or remove that output",
        )
        t.tags.pin(t.get(value), pin)
    return ChannelMap(model, sizes, t)


def check_names(model: ir.Model, names: Collection[str]) -> None:
    """Check that there are nodes or tensors of these names.

    Raises:
        PlanMismatch: there is none of one of them.
    """
    known = {
        value.name
        for node in model.graph
        for value in (*node.inputs, *node.outputs)
        if value is not None
    }
    known |= {node.name for node in model.graph}
    for name in names:
        if name not in known:
            msg = f"cannot keep '{name}': the model has no node or tensor of that name. See 'deploykit inspect'."
            raise PlanMismatch(msg)


def wanted(node: ir.Node, t: Trace, keep: Collection[str]) -> None:
    """Pin the channels that the user named: by a node, by a tensor, or by the weight that makes them."""
    pin = Pin(label(node), "you asked to keep them", "drop --keep to let them go")
    for value in node.outputs:
        if t.known(value) and (node.name in keep or value.name in keep):
            t.tags.pin(t.get(value), pin)
    if node in t.sources and any(
        value is not None and value.name in keep for value in node.inputs
    ):
        t.tags.pin(t.sources[node], pin)


def visit(node: ir.Node, t: Trace) -> None:
    """Let the row of a node write down what it ties."""
    inputs = [value for value in node.inputs if value is not None]
    known = all(t.known(value) for value in (*inputs, *node.outputs[:1]))
    row = row_of(node) if known else UNKNOWN
    live = [value for value in inputs if not t.is_weight(value)]
    if any(0 in t.shape(value) for value in (*live, *node.outputs[:1]) if t.known(value)):
        row = EMPTY
    row.trace(node, t)


def captured(node: ir.Node, t: Trace) -> None:
    """Pin what the subgraphs of a node read from outside."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            for inner in graph.all_nodes():
                for value in inner.inputs:
                    if value is not None and value in t.tags.of:
                        t.pin(t.get(value), node, f"the subgraph of '{label(node)}' reads them")
            for value in graph.outputs:
                if value in t.tags.of:
                    t.pin(t.get(value), node, f"the subgraph of '{label(node)}' returns them")
