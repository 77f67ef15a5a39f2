"""How large a model is: parameters, multiply-accumulates, nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.shapes import Sizes

__all__ = ["ModelSize", "count", "count_macs", "longest_sum"]


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The size of one model.

    Attributes:
        parameters: elements of its weights.
        macs: multiply-accumulates; None where the shapes of a product are not known.
        nodes: nodes of its main graph.
        constant_bytes: bytes of its constants, which are what is left of a file without its names and nodes.
    """

    parameters: int
    macs: int | None
    nodes: int
    constant_bytes: int = 0


def count(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> ModelSize:
    """Size of a model.

    Args:
        model: the model; unchanged.
        input_shapes: static sizes of its inputs, by name, for the multiply-accumulates.
    """
    from passes.weights import parameter_count

    return ModelSize(
        parameter_count(model),
        count_macs(model, input_shapes),
        len(model.graph),
        _constant_bytes(model),
    )


def count_macs(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul nodes of the main graph.

    None if the sizes of one of them are not known: a sum without it would be compared with one that has it.
    """
    fixed, sizes = _measure(model, input_shapes)
    if sizes is None:
        return None
    total = 0
    for node in fixed.graph:
        if node.op_type in PRODUCTS:
            macs = _node_macs(node, sizes)
            if macs is None:
                return None
            total += macs
    return total


def longest_sum(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The most numbers that one element of a product, a mean or a sum adds up, as far as sizes are known."""
    fixed, sizes = _measure(model, input_shapes)
    longest = 1
    if sizes is None:
        return longest
    for node in fixed.graph:
        first = None if not node.inputs or node.inputs[0] is None else node.inputs[0]
        read = None if first is None else sizes.shape.get(first)
        out = sizes.shape.get(node.outputs[0])
        if read is None or not out or 0 in out:
            continue
        if node.op_type in PRODUCTS:
            longest = max(longest, (_node_macs(node, sizes) or 0) // math.prod(out))
        elif node.op_type in MEANS:
            longest = max(longest, math.prod(read) // math.prod(out))
    return longest


def _constant_bytes(model: ir.Model) -> int:
    held = [value.const_value for value in model.graph.initializers.values()]
    for node in model.graph:
        if node.op_type == "Constant":
            value = node.attributes.get("value")
            held.append(None if value is None else value.as_tensor())
    return sum(tensor.nbytes for tensor in held if tensor is not None)


def _measure(
    model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ir.Model, Sizes | None]:
    """A copy with inputs of these sizes, and the sizes of its values; None if inference refuses it."""
    import onnx_ir as ir

    from passes.errors import PassError
    from passes.shapes import measure

    fixed = model.clone()
    for value in fixed.graph.inputs:
        if value.name and value.name in input_shapes:
            value.shape = ir.Shape(input_shapes[value.name])
    try:
        return fixed, measure(fixed)
    except PassError:
        return fixed, None


def _node_macs(node: ir.Node, sizes: Sizes) -> int | None:
    first, second = (
        None if value is None else sizes.shape.get(value) for value in node.inputs[:2]
    )
    out = sizes.shape.get(node.outputs[0])
    if first is None or second is None or out is None:
        return None
    if node.op_type == "Conv":
        # Each output element is a sum over the kernel and the input channels of its group.
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        # Each input element is spread over the kernel and the output channels of its group.
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transA")
        return math.prod(out) * first[0 if transposed and transposed.as_int() else 1]
    return math.prod(out) * first[-1]


PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
