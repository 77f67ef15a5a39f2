"""Gives a model other names and another, equally valid, order of nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import random


def disguise(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A copy in which every value and node is renamed and the nodes are shuffled topologically."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    names: dict[str, str] = {}

    def new(name: str) -> str:
        # A random prefix also changes the alphabetical order.
        return names.setdefault(name, f"{rng.randrange(10**6)}_{len(names)}") if name else name

    def rename(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
            value.name = new(value.name)
        for node in graph.node:
            node.name = new(node.name)
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    rename(attribute.g)

    rename(model.graph)
    waiting, made = list(model.graph.node), {v.name for v in model.graph.input}
    made |= {t.name for t in model.graph.initializer} | {""}
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if reads(node) <= made]
        node = rng.choice(ready)
        waiting.remove(node)
        made |= set(node.output)
        ordered.append(node)
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, captures of its subgraphs included."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            body = attribute.g
            inner = {name for n in body.node for name in reads(n)} | {
                v.name for v in body.output
            }
            own = {name for n in body.node for name in n.output}
            own |= {t.name for t in body.initializer} | {v.name for v in body.input}
            found |= inner - own
    return found
