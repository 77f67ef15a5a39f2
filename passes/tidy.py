"""Make a graph plain before it is analysed: what is a constant becomes an initializer, what does nothing goes.

Exact. Arithmetic on sizes that no open size of an input takes part in is folded to the number it gives now. That is
more than cleaning: a number such as a head's width, read off a tensor by a Shape node, would follow the tensor when
channels are cut from it later, and change the function.

A folded weight is never larger than what it replaces, apart from very small ones. Left alone: subgraphs of If, Loop
and Scan; everything between QuantizeLinear and DequantizeLinear, which runtimes recognise; strings and sparse constants.
"""

from __future__ import annotations

import math
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from passes import shapes, weights
from passes.analysis import integers
from passes.analysis.sizes import output_sizes
from passes.base import Change, Pass, PassReport
from passes.errors import PassError, UnsupportedGraph

__all__ = ["Tidy"]

FIRST_WITH_FREE_INITIALIZERS: Final = 4
"""Below this IR version every initializer has to be listed as an input; from it on, listing one makes it overridable."""
ALWAYS_SMALL_BYTES: Final = 1024
"""Results up to this size are folded even if nothing disappears for them."""
FOLDED: Final = frozenset(
    {
        *("Add", "Div", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub"),
        *(
            "Concat",
            "Flatten",
            "Identity",
            "Reshape",
            "Slice",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
        ),
        *("Cast", "ConstantOfShape"),
    }
)
"""Ops that are carried out on weights. Expand and Tile are not: they make more of what is there."""

BIASED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Ops whose third input is a bias."""


class Tidy(Pass):
    """Turn constants into initializers, fold what they determine, drop what does nothing."""

    name = "tidy"
    exact = True

    def call(self, model: ir.Model) -> PassReport:
        """Do the work; each kind of it is one Change, counted."""
        graph = model.graph
        before = interface(graph)
        steps = (
            ("initializers listed as inputs, as IR versions before 4 had to", unlist(model)),
            ("functions of the model, inlined", inline(model)),
            ("Constant nodes, turned into initializers", lift_constants(graph)),
            ("nodes that pass their input on", bypass(graph)),
            ("casts to a type that is known", settle_types(graph)),
            ("nodes that compute fixed sizes", fold_sizes(model)),
            ("nodes that compute weights from constants", fold_weights(graph)),
            ("unused nodes", drop_unused_nodes(graph)),
            ("unused initializers", drop_unused_initializers(graph)),
        )
        if before != interface(graph):
            msg = "Pass developer: tidy changed the names of the model's inputs or outputs"
            raise PassError(msg)
        subject = graph.name or "graph"
        changes = tuple(Change(subject, what, count, 0) for what, count in steps if count)
        return PassReport(self.name, self.exact, bool(changes), changes)


def interface(graph: ir.Graph) -> tuple[list[str | None], list[str | None]]:
    """Names that callers use: inputs that are no initializers, and outputs."""
    inputs = [value.name for value in graph.inputs if not value.is_initializer()]
    return inputs, [value.name for value in graph.outputs]


def unlist(model: ir.Model) -> int:
    """Make the initializers of an old model constants; returns how many were listed as inputs."""
    graph = model.graph
    if (model.ir_version or 0) >= FIRST_WITH_FREE_INITIALIZERS:
        return 0
    listed = [value for value in graph.inputs if value.is_initializer()]
    for value in listed:
        graph.inputs.remove(value)
    if listed:
        # In the old version the file would be invalid without that list.
        model.ir_version = FIRST_WITH_FREE_INITIALIZERS
    return len(listed)


def inline(model: ir.Model) -> int:
    """Put the bodies of the model's functions in the place of their calls; returns their number.

    Raises:
        UnsupportedGraph: one cannot be put there, for example because it is written for another opset.
    """
    count = len(model.functions)
    if count:
        try:
            InlinePass()(model)
        except ValueError as error:
            name = "::".join(next(iter(model.functions))[:2])
            reason = f"the model's functions cannot be inlined: {error}. Export it again without functions"
            raise UnsupportedGraph(name, reason) from error
    return count


def lift_constants(graph: ir.Graph) -> int:
    """Turn Constant nodes of the main graph into initializers; returns their number."""
    lifted = [
        node
        for node in graph
        if node.op_type == "Constant"
        and weights.is_constant(node.outputs[0])
        and not node.outputs[0].is_graph_output()
    ]
    for node in lifted:
        weights.lift(node, graph)
    return len(lifted)


def bypass(graph: ir.Graph) -> int:
    """Remove Identity nodes, and Dropout nodes that do nothing in inference; returns their number."""
    return sum(bypassed(node, graph) for node in list(graph) if passes_on(node, graph))


def passes_on(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether the first output is the first input, and nobody reads the others."""
    if node.domain not in shapes.STANDARD or not all(map(unread, node.outputs[1:])):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    version = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 0))
    if version < 7:
        return node.attributes.get_int("is_test", 0) == 1
    training = node.inputs[2] if len(node.inputs) > 2 else None
    switch = weights.constant(training)
    return training is None or (switch is not None and not switch.any())


def bypassed(node: ir.Node, graph: ir.Graph) -> bool:
    """Let the readers of a node's output read its input; False if the interface or a subgraph forbids it."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or captured(result, graph):
        return False
    if result.is_graph_output():
        # The source can only take the output's name where its own is nobody's business.
        bound = source.is_graph_input() or source.is_initializer() or source.is_graph_output()
        if bound or captured(source, graph) or result.graph is not graph:
            return False
        # What the model declares of its outputs is its interface, and holds for the source.
        source.type = result.type or source.type
        source.shape = source.shape if result.shape is None else result.shape
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        source.name = result.name
        return True
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def captured(value: ir.Value, graph: ir.Graph) -> bool:
    """Whether a subgraph reads the value."""
    return any(node.graph is not graph for node in value.consumers())


def settle_types(graph: ir.Graph) -> int:
    """Turn every CastLike to a type that is known into a Cast; returns their number."""
    count = 0
    for node in list(graph):
        like = node.inputs[1] if node.op_type == "CastLike" else None
        if like is None or like.dtype is None or node.domain not in shapes.STANDARD:
            continue
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", like.dtype)
        node.resize_inputs(1)
        node.outputs[0].dtype = like.dtype
        count += 1
    return count


def fold_sizes(model: ir.Model) -> int:
    """Fold arithmetic on sizes that are the same whatever the inputs' open sizes; returns the number of nodes."""
    if not any(
        node.op_type in {"Shape", "Size"} or constant_inputs(node) for node in model.graph
    ):
        return 0
    sizes = shapes.measure(model)
    folded = [
        node
        for node in model.graph
        if not any(value.is_graph_output() for value in node.outputs)
        and all(
            value in sizes.integers and not sizes.integers_symbolic[value].any()
            for value in node.outputs
        )
        and not weights.is_constant(node.outputs[0])
    ]
    # Backwards: what only folded nodes read has no readers any more when its turn comes.
    for node in reversed(folded):
        weights.fold(node, [sizes.integers[value] for value in node.outputs])
    return len(folded)


def constant_inputs(node: ir.Node) -> bool:
    """Whether all inputs are constants."""
    return all(value is None or weights.is_constant(value) for value in node.inputs)


def fold_weights(graph: ir.Graph) -> int:
    """Carry out what is done to constants alone, where that costs no space; returns the number of nodes."""
    count = 0
    for node in list(graph):
        if not foldable(node):
            continue
        size = result_bytes(node)
        small = size <= ALWAYS_SMALL_BYTES or is_bias(node)
        if small or (node.op_type in FOLDED and size <= freed_bytes(node)):
            found = integers.evaluate(node, [weights.constant(value) for value in node.inputs])
            if found is not None:
                weights.fold(node, found)
                count += 1
    return count


def foldable(node: ir.Node) -> bool:
    """Whether the node computes, from constants alone, what may take its place."""
    return (
        node.domain in shapes.STANDARD
        and node.op_type in integers.RULES
        and constant_inputs(node)
        and all(
            is_plain(held.dtype) for value in node.inputs if (held := weights.tensor(value))
        )
        and (node.op_type != "Cast" or is_plain(cast_target(node)))
        and not any(value.is_graph_output() for value in node.outputs)
    )


def is_plain(dtype: ir.DataType) -> bool:
    """Whether numpy computes with it as a runtime does: not the floats and integers of a few bits."""
    if dtype == ir.DataType.STRING:
        return False
    return dtype.bitwidth >= (16 if dtype.is_floating_point() else 8)


def cast_target(node: ir.Node) -> ir.DataType:
    """The type that a Cast node converts to."""
    return ir.DataType(node.attributes.get_int("to", 0))


def is_bias(node: ir.Node) -> bool:
    """Whether the node makes nothing but biases, each of which is small beside its layer's weight."""
    uses = node.outputs[0].uses()
    return bool(uses) and all(
        use.idx == 2 and use.node.op_type in BIASED and use.node.domain in shapes.STANDARD
        for use in uses
    )


def result_bytes(node: ir.Node) -> float:
    """Bytes that the node makes; infinite if no rule tells."""
    held = [weights.tensor(value) for value in node.inputs]
    sizes = [None if item is None else tuple(item.shape.numpy()) for item in held]
    # Only what holds sizes and axes is read here.
    data = [
        item.numpy() if item is not None and item.dtype == ir.DataType.INT64 else None
        for item in held
    ]
    found = output_sizes(node, sizes, data)
    if not found or held[0] is None:
        return math.inf
    dtype = held[0].dtype
    if node.op_type == "Cast":
        dtype = cast_target(node)
    elif node.op_type == "ConstantOfShape":
        value = node.attributes.get_tensor("value")
        dtype = ir.DataType.FLOAT if value is None else value.dtype
    return math.prod(found[0]) * dtype.itemsize


def freed_bytes(node: ir.Node) -> int:
    """Bytes of the constants that only this node reads."""
    only = {
        value
        for value in node.inputs
        if value is not None and not value.is_graph_output() and value.consumers() == (node,)
    }
    return sum(held.nbytes for value in only if (held := weights.tensor(value)) is not None)


def drop_unused_nodes(graph: ir.Graph) -> int:
    """Remove nodes that nobody reads; returns their number."""
    count = 0
    for node in reversed(list(graph)):
        if all(unread(value) for value in node.outputs):
            graph.remove(node, safe=True)
            count += 1
    return count


def drop_unused_initializers(graph: ir.Graph) -> int:
    """Remove initializers that nobody reads and that are no inputs; returns their number."""
    unused = [
        name
        for name, value in graph.initializers.items()
        if unread(value) and not value.is_graph_input()
    ]
    for name in unused:
        graph.initializers.pop(name)
    return len(unused)


def unread(value: ir.Value) -> bool:
    """Whether neither a node nor the caller of any graph gets the value."""
    return not value.uses() and not value.is_graph_output()
