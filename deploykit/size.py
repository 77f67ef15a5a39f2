"""How large a model is: parameters, multiply-accumulates, nodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["LongestSums", "ModelSize", "count", "longest_sums"]


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


@dataclasses.dataclass(frozen=True)
class LongestSums:
    """The most numbers that one element of a tensor adds up, as far as sizes are known: of products, and of means."""

    products: int = 1
    means: int = 1


def longest_sums(model: ir.Model, input_shapes: Mapping[str, tuple[int, ...]]) -> LongestSums:
    """The longest sums of a model.

    Args:
        model: the model; unchanged.
        input_shapes: static sizes of its inputs, by name.
    """
    from passes.analysis.macs import PRODUCTS, node_macs, sized

    fixed, sizes = sized(model, input_shapes)
    products = means = 1
    for node in fixed.graph if sizes is not None else ():
        first = None if not node.inputs or node.inputs[0] is None else node.inputs[0]
        read = None if first is None or sizes is None else sizes.shape.get(first)
        out = None if sizes is None else sizes.shape.get(node.outputs[0])
        if sizes is None or read is None or not out or 0 in out:
            continue
        if node.op_type in PRODUCTS:
            macs = node_macs(node, sizes.shape.get) or 0
            products = max(products, macs // math.prod(out))
        elif node.op_type in MEANS:
            means = max(means, math.prod(read) // math.prod(out))
    return LongestSums(products, means)


def _constant_bytes(model: ir.Model) -> int:
    held = [value.const_value for value in model.graph.initializers.values()]
    for node in model.graph:
        if node.op_type == "Constant":
            value = node.attributes.get("value")
            held.append(None if value is None else value.as_tensor())
    return sum(tensor.nbytes for tensor in held if tensor is not None)


MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
