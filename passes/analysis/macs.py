"""Multiply-accumulates: how many products a model sums up, of Conv, ConvTranspose, Gemm and MatMul nodes.

Elementwise work, pooling and normalisation are not counted, as the literature has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import onnx_ir as ir

from passes.errors import PassError
from passes.shapes import measure
from passes.weights import is_constant

if TYPE_CHECKING:
    from passes.shapes import Sizes

__all__ = ["PRODUCTS", "ShapeOf", "count_macs", "node_macs", "sized"]

ShapeOf: TypeAlias = Callable[[ir.Value], tuple[int, ...] | None]

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def count_macs(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates of the main graph.

    None if the sizes of one of its products are not known: a sum without it would be compared with one that has it.

    Args:
        model: the model; unchanged.
        input_shapes: static sizes of its inputs, by name.
    """
    fixed, sizes = sized(model, input_shapes)
    if sizes is None:
        return None
    total = 0
    for node in fixed.graph:
        if node.op_type in PRODUCTS:
            macs = node_macs(node, sizes.shape.get)
            if macs is None:
                return None
            total += macs
    return total


def sized(
    model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ir.Model, Sizes | None]:
    """A copy with inputs of these sizes, and the sizes of its values; None if inference refuses it."""
    fixed = model.clone()
    for value in fixed.graph.inputs:
        if value.name and value.name in input_shapes:
            value.shape = ir.Shape(input_shapes[value.name])
    try:
        return fixed, measure(fixed)
    except PassError:
        return fixed, None


def node_macs(node: ir.Node, shape_of: ShapeOf, groups: int | None = None) -> int | None:
    """Multiply-accumulates of one node of `PRODUCTS`; None if its sizes are not known.

    Args:
        node: the node.
        shape_of: sizes of a value, or None. Of the weight of a convolution only the kernel is looked at, of a constant
            factor of a MatMul nothing: the answer is right for activations that lost channels.
        groups: of a convolution, where they differ from what its attribute says.
    """
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    one, other = node.inputs[0], node.inputs[1]
    first, second, out = shape_of(one), shape_of(other), shape_of(node.outputs[0])
    if first is None or second is None or out is None:
        return None
    if node.op_type == "Gemm":
        length = first[0 if node.attributes.get_int("transA", 0) else 1]
    elif node.op_type == "MatMul":
        length = first[-1]
        if is_constant(one) and not is_constant(other):
            length = second[-2 if len(second) > 1 else -1]
    else:
        left = groups or node.attributes.get_int("group", 1) or 1
        if node.op_type == "ConvTranspose":
            # Each element of the input is spread over the kernel and the output channels of its group.
            return math.prod(first) * (out[1] // left) * math.prod(second[2:])
        # Each element of the output is a sum over the kernel and the input channels of its group.
        length = (first[1] // left) * math.prod(second[2:])
    return math.prod(out) * length
