"""Says which nodes of the user's model the layers of an engine do the work of, by their names.

A builder calls a layer after the nodes it came from, joined by " + " where several were fused into one. Layers that it puts
in to change formats carry the name of the tensor they serve. What names tell nothing of stays unmapped, and is said to be.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploykit.profile.layer_times import LayerProfile, LayerTime

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.runtimes import LayerSeconds

__all__ = ["EngineNode", "map_layers", "read_nodes"]

JOINED = re.compile(r" \+ | \|\| ")


@dataclasses.dataclass(frozen=True)
class EngineNode:
    """A node of the user's model.

    Attributes:
        name: its name, or that of its first result.
        op_type: its operator.
        weights: elements of the constants that it reads.
    """

    name: str
    op_type: str
    weights: int


def read_nodes(model: ir.Model) -> tuple[EngineNode, ...]:
    """The nodes of a model's main graph, in order."""
    return tuple(
        EngineNode(
            node.name or node.outputs[0].name or "",
            node.op_type,
            sum(
                value.const_value.size
                for value in node.inputs
                if value is not None and value.const_value is not None
            ),
        )
        for node in model.graph
    )


def map_layers(nodes: Sequence[EngineNode], found: LayerSeconds) -> LayerProfile:
    """Give each node the time of the layers that do its work.

    Where a layer does the work of several nodes, the one with the most weights gets its time and covers the others.

    Args:
        nodes: those of the user's model.
        found: the time of each layer that the runtime made of it.
    """
    known = {node.name: node for node in nodes}
    spent: dict[str, float] = {}
    ops: dict[str, list[str]] = {}
    covers: dict[str, list[str]] = {}
    unmapped_s = 0.0
    for layer, layer_s in found.seconds.items():
        members = [known[name] for name in JOINED.split(layer) if name in known]
        if not members:
            unmapped_s += layer_s
            continue
        main = max(members, key=lambda node: node.weights)
        spent[main.name] = spent.get(main.name, 0.0) + layer_s
        ops.setdefault(main.name, []).append(found.ran_as[layer])
        covers.setdefault(main.name, []).extend(
            node.name for node in members if node is not main
        )
    return LayerProfile(
        layers=tuple(
            LayerTime(
                node.name,
                node.op_type,
                spent[node.name],
                tuple(ops[node.name]),
                tuple(dict.fromkeys(covers[node.name])),
            )
            for node in nodes
            if node.name in spent
        ),
        total_s=sum(found.seconds.values()),
        whole_s=found.whole_s,
        unmapped_s=unmapped_s,
        runs=found.runs,
        clock="device",
    )
