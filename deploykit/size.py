"""How large a model is: parameters, multiply-accumulates, nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ModelSize", "count", "longest_sum"]


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
    from passes.analysis.macs import count_macs
    from passes.weights import parameter_count

    return ModelSize(
        parameter_count(model),
        count_macs(model, input_shapes),
        len(model.graph),
        _constant_bytes(model),
    )


def longest_sum(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The most numbers that one element of a product, a mean or a sum adds up, as far as sizes are known."""
    from passes.analysis.macs import PRODUCTS, node_macs, sized

    fixed, sizes = sized(model, input_shapes)
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
            longest = max(longest, (node_macs(node, sizes.shape.get) or 0) // math.prod(out))
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


MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
