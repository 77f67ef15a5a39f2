"""How large a model is: parameters, multiply-accumulates, nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.shapes import Sizes

__all__ = ["ModelSize", "count", "count_macs"]


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The size of one model; `macs` is None where no shape of any product is known."""

    parameters: int
    macs: int | None
    nodes: int


def count(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> ModelSize:
    """Size of a model.

    Args:
        model: the model; unchanged.
        input_shapes: static sizes of its inputs, by name, for the multiply-accumulates.
    """
    from passes.weights import parameter_count

    return ModelSize(parameter_count(model), count_macs(model, input_shapes), len(model.graph))


def count_macs(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul nodes of the main graph.

    Nodes whose shapes are not known are left out; None if that is so for all of them, or sizes cannot be measured.
    """
    import onnx_ir as ir

    from passes.errors import PassError
    from passes.shapes import measure

    fixed = model.clone()
    for value in fixed.graph.inputs:
        if value.name and value.name in input_shapes:
            value.shape = ir.Shape(input_shapes[value.name])
    try:
        sizes = measure(fixed)
    except PassError:
        return None
    counted = [_node_macs(node, sizes) for node in fixed.graph if node.op_type in PRODUCTS]
    known = [macs for macs in counted if macs is not None]
    return sum(known) if known or not counted else None


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
