"""Finds the nodes of a user's model again in what a runtime made of it.

A runtime renames, fuses, folds and inserts. What survives of a name is a part of it: a fused node is called after one
of its parts, a convolution in a blocked layout after the tensor that it made before. So each node and each of its
results gets a *tag* for a name first, which is recognised wherever the runtime puts it. A node of the runtime then
stands for the tagged node whose result it makes, and for all between that and the results of other nodes: its *cone*.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

__all__ = ["INSERTED", "Match", "Nodes", "match", "tag"]

INSERTED = frozenset(
    {
        *("ReorderInput", "ReorderOutput", "Transpose", "Cast", "MemcpyToHost"),
        *("MemcpyFromHost", "Reshape", "Identity", "Squeeze", "Unsqueeze"),
    }
)
"""What runtimes put in by themselves, to hand data from one kernel to the next."""

PRODUCTS = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "ConvInteger", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "LSTM", "GRU", "RNN", "Attention", "DeformConv"),
    }
)
"""Operators that do the work where they are fused with others."""

NORMALIZATIONS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"}
)
"""Of what is left, these; some become convolutions of their own."""

SUMS = frozenset({"Add", "Sum"})


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of a tagged model, by the number in their tag.

    Attributes:
        names: what the user calls each: its name, or where it has none, that of its first result.
        op_types: the operator of each.
        inputs: for each, the numbers of the nodes that it reads from; constants left out.
        weights: for each, the elements of its largest constant.
        mark: what tags begin with.
    """

    names: tuple[str, ...]
    op_types: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...]
    mark: str

    def tags(self, text: str | None) -> list[tuple[str, int]]:
        """Tags in a name: ("node" or "result", number)."""
        found = re.findall(re.escape(self.mark) + r"([nr])(\d+)\.", text or "")
        return [("node" if kind == "n" else "result", int(number)) for kind, number in found]


@dataclasses.dataclass(frozen=True)
class Match:
    """What a node of the runtime stands for.

    Attributes:
        node: number of the user's node that its time belongs to; None if none was found.
        covers: numbers of the other nodes that it does the work of.
        inserted: whether the runtime put it in, and `node` is the one that it serves.
    """

    node: int | None
    covers: tuple[int, ...] = ()
    inserted: bool = False


def tag(model: ir.Model) -> Nodes:
    """Rename the nodes of a model's main graph and their results, its outputs among them, to tags.

    Args:
        model: the model; changed.

    Returns:
        what the tags stand for.
    """
    graph = model.graph
    taken = [name for node in graph.all_nodes() for name in _names(node)]
    taken += [str(value.name) for value in (*graph.inputs, *graph.initializers.values())]
    mark = "tag."
    while any(mark in name for name in taken):
        mark = "_" + mark
    number = {node: index for index, node in enumerate(graph)}
    names = tuple(node.name or _first_result(node) for node in number)
    is_constant = _constant_nodes(number)
    weights = tuple(
        max(
            (
                value.const_value.size
                for value in node.inputs
                if value is not None and value.const_value is not None
            ),
            default=0,
        )
        for node in number
    )
    inputs = tuple(
        tuple(
            dict.fromkeys(
                number[maker]
                for value in node.inputs
                if value is not None
                and (maker := value.producer()) in number
                and maker is not None
                and not is_constant[number[maker]]
            )
        )
        for node in number
    )
    # Renamed through the values, so that subgraphs that read them go on doing so.
    for node, index in number.items():
        node.name = f"{mark}n{index}."
        for position, value in enumerate(node.outputs):
            if value.name:
                value.name = f"{mark}r{index}.{position}"
    return Nodes(names, tuple(node.op_type for node in number), inputs, weights, mark)


def match(nodes: Nodes, optimized: ir.Model) -> list[Match]:
    """Say for each node of the runtime's main graph, in order, what it stands for.

    Args:
        nodes: the tagged nodes.
        optimized: what the runtime made of the tagged model.
    """
    own = list(optimized.graph)
    results = [_result(nodes, node) for node in own]
    may_be_inserted = [
        node.op_type in INSERTED and (result is None or nodes.op_types[result] != node.op_type)
        for node, result in zip(own, results, strict=True)
    ]
    claimed = {
        result
        for result, inserted in zip(results, may_be_inserted, strict=True)
        if result is not None and not inserted
    }
    for index, node in enumerate(own):
        result = results[index]
        if result is not None and not may_be_inserted[index]:
            results[index] = _with_epilogue(nodes, node, result, claimed)
    # What hands on a result that nobody else makes is what became of the nodes that made it.
    is_inserted = [
        maybe and (result is None or result in claimed)
        for maybe, result in zip(may_be_inserted, results, strict=True)
    ]
    claimed |= {result for result in results if result is not None}
    matches: list[Match | None] = [None] * len(own)
    owner: dict[int, int] = {}
    for index, node in enumerate(own):
        result = results[index]
        if result is None or is_inserted[index]:
            continue
        cone = _cone(nodes, result, claimed)
        main = _main(nodes, cone, node.op_type)
        matches[index] = Match(main, tuple(part for part in cone if part != main))
        for part in cone:
            owner.setdefault(part, main)
    # What has no tag, and what was inserted, serves those that read it, or else those that it reads.
    readers, makers = _neighbours(own)
    for index, known in enumerate(matches):
        if known is not None:
            continue
        result = results[index]
        served = owner.get(result) if result is not None else None
        if served is None:
            served = _nearest(index, readers, matches)
        if served is None:
            served = _nearest(index, makers, matches)
        matches[index] = Match(served, inserted=True)
    return [found if found is not None else Match(None) for found in matches]


def _names(node: ir.Node) -> list[str]:
    return [node.name or "", *(value.name or "" for value in node.outputs)]


def _first_result(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), node.op_type)


def _constant_nodes(number: Mapping[ir.Node, int]) -> list[bool]:
    """Which nodes compute the same whatever the inputs are: runtimes fold them."""
    is_constant: list[bool] = []

    def is_known(value: ir.Value) -> bool:
        maker = value.producer()
        if maker is None:
            return value.const_value is not None
        # Nodes of the graphs around this one, and those that come later in it, are not looked at.
        return (
            number.get(maker, len(is_constant)) < len(is_constant)
            and is_constant[number[maker]]
        )

    for node in number:
        read = [value for value in node.inputs if value is not None]
        folds = bool(read) and all(is_known(value) for value in read)
        is_constant.append(node.op_type == "Constant" or folds)
    return is_constant


def _result(nodes: Nodes, node: ir.Node) -> int | None:
    """Number of the user's node whose result a node of the runtime makes, as far as names tell."""
    for value in node.outputs:
        for _, number in nodes.tags(value.name):
            return number
    found = nodes.tags(node.name)
    results = [number for kind, number in found if kind == "result"]
    # Of several nodes in one name the last one in the graph makes the result.
    return max(results or [number for _, number in found], default=None)


def _with_epilogue(nodes: Nodes, node: ir.Node, result: int, claimed: set[int]) -> int:
    """The result of a convolution that does a sum and an activation after it, although it is called after neither."""
    if not node.op_type.endswith("Conv"):
        return result
    activation = node.attributes.get("activation")
    wanted = [SUMS] if len(node.inputs) > 3 and node.inputs[3] is not None else []
    if activation is not None:
        wanted.append(frozenset({activation.as_string()}))
    cone = {nodes.op_types[part] for part in _cone(nodes, result, claimed)}
    for kinds in wanted:
        if cone & kinds:
            continue
        following = [
            number
            for number, read in enumerate(nodes.inputs)
            if result in read and number not in claimed and nodes.op_types[number] in kinds
        ]
        if not following:
            break
        claimed.discard(result)
        result = following[0]
        claimed.add(result)
    return result


def _cone(nodes: Nodes, result: int, claimed: Iterable[int]) -> list[int]:
    """A node and all before it whose results nobody else makes."""
    found = [result]
    queue = deque(found)
    while queue:
        for number in nodes.inputs[queue.popleft()]:
            if number not in claimed and number not in found:
                found.append(number)
                queue.append(number)
    return found


def _main(nodes: Nodes, cone: Sequence[int], op_type: str) -> int:
    """The node of a cone that does the work: the product with the most weights, or what the runtime calls it."""
    products = [number for number in cone if nodes.op_types[number] in PRODUCTS]
    if products:
        return max(products, key=lambda number: (nodes.weights[number], -number))
    for kinds in ({op_type}, NORMALIZATIONS):
        for number in cone:
            if nodes.op_types[number] in kinds:
                return number
    return cone[0]


def _neighbours(own: Sequence[ir.Node]) -> tuple[list[list[int]], list[list[int]]]:
    """For each node, the numbers of those that read from it, and of those that it reads from."""
    number = {node: index for index, node in enumerate(own)}
    readers: list[list[int]] = [[] for _ in own]
    makers: list[list[int]] = [[] for _ in own]
    for node, index in number.items():
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker in number:
                makers[index].append(number[maker])
                readers[number[maker]].append(index)
    return readers, makers


def _nearest(
    start: int, edges: Sequence[Sequence[int]], matches: Sequence[Match | None]
) -> int | None:
    """The user's node of the nearest node that has one."""
    seen = {start}
    queue = deque([start])
    while queue:
        for index in edges[queue.popleft()]:
            found = matches[index]
            if found is not None and not found.inserted and found.node is not None:
                return found.node
            if index not in seen:
                seen.add(index)
                queue.append(index)
    return None
