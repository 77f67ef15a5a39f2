"""Which nodes of a model compute in 16 bits, and which stay in fp32, and why.

A node stays in fp32 if
1. it was asked to stay;
2. its operator takes no such type in the model's opset, or its types have several parts (Cast, If, Loop, custom operators);
3. it is between QuantizeLinear and DequantizeLinear, or beside them: runtimes look for fp32 there, and compute in int8;
4. a constant of it is beyond what fp16 can hold, or vanishes in it (an epsilon of 1e-12 would);
5. what it reads may be beyond: it came from such a node by arithmetic alone, until a Softmax or the like bounds it;
6. it computes with indices or sizes: what comes from large integers has more digits than 16 bits hold.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.analysis.walk import label
from passes.base import Skip
from passes.float_types import FIXED_INPUTS, FIXED_OUTPUTS, takes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Typing", "plan_typing", "typed_inputs", "typed_outputs"]

STANDARD: Final = frozenset({"", "ai.onnx"})
QUANTIZERS: Final = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
SILENT: Final = QUANTIZERS | {"Cast", "CastLike"}
"""Operators that are left alone as a matter of course: types are what they are about."""
INTEGERS: Final = frozenset(
    {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64}
)
"""Types that hold numbers which 16-bit floats do not."""

BOUNDING: Final = frozenset(
    {
        *(
            "Softmax",
            "LogSoftmax",
            "Sigmoid",
            "HardSigmoid",
            "Tanh",
            "Erf",
            "Softsign",
            "Sin",
            "Cos",
        ),
        *(
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "ArgMax",
            "ArgMin",
            "TopK",
        ),
        *(
            "BatchNormalization",
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
        ),
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "RMSNormalization"),
    }
)
"""Operators behind which large numbers are no longer expected: they bound or normalize, or start a sum anew."""

BESIDE: Final = frozenset(
    {
        *(
            "Add",
            "AveragePool",
            "Clip",
            "Concat",
            "Flatten",
            "GlobalAveragePool",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
        ),
        *(
            "MaxPool",
            "Mul",
            "Pad",
            "Relu",
            "Reshape",
            "Resize",
            "Sigmoid",
            "Slice",
            "Split",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
        ),
    }
)
"""Operators that runtimes fuse with a quantized layer, or carry out in int8, when a QuantizeLinear follows."""

LARGEST: Final = 65504.0
"""The largest finite number of fp16."""


@dataclasses.dataclass(frozen=True, eq=False)
class Typing:
    """What becomes of the nodes of the main graph.

    Attributes:
        typed: those that compute in 16 bits, in graph order.
        skips: why the others do not, where they compute with floats at all.
    """

    typed: dict[ir.Node, None]
    skips: tuple[Skip, ...]


def plan_typing(model: ir.Model, kind: ir.DataType, keep: Collection[str] = ()) -> Typing:
    """Decide for every node of the main graph that computes in fp32.

    Args:
        model: the model, with types of all values that inference finds; unchanged.
        kind: FLOAT16 or BFLOAT16.
        keep: names of nodes and tensors that stay in fp32: a tensor names the node that makes it, and those that read it
            if it is a constant.
    """
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 1))
    beside = quantized(model.graph)
    typed: dict[ir.Node, None] = {}
    skips: list[Skip] = []
    wide: dict[ir.Value, str] = {}
    large: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type == "Constant" or not computes(node):
            continue
        found = (
            kept(node, keep)
            or unsupported(node, kind, opset)
            or beside.get(node)
            or out_of_range(node, kind)
            or too_wide(node, wide)
            or too_exact(node, large)
        )
        if found is None:
            typed[node] = None
            continue
        if found.reason:
            skips.append(found)
        spread(node, found, wide, large)
    return Typing(typed, tuple(skips))


def computes(node: ir.Node) -> bool:
    """Whether a node reads or makes fp32 numbers, or may in its bodies."""
    values = (*node.inputs, *node.outputs)
    is_float = any(value is not None and value.dtype == ir.DataType.FLOAT for value in values)
    return is_float or has_subgraphs(node)


def typed_inputs(node: ir.Node) -> Iterator[int]:
    """The inputs of a node that become 16 bits wide with it."""
    fixed = FIXED_INPUTS.get(node.op_type, ())
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.FLOAT and index not in fixed:
            yield index


def typed_outputs(node: ir.Node) -> Iterator[ir.Value]:
    """The outputs of a node that become 16 bits wide with it."""
    fixed = FIXED_OUTPUTS.get(node.op_type, ())
    for index, value in enumerate(node.outputs):
        if value.dtype == ir.DataType.FLOAT and index not in fixed:
            yield value


def kept(node: ir.Node, keep: Collection[str]) -> Skip | None:
    """Whether a node was asked to stay."""
    names = {node.name, *(value.name for value in node.outputs)}
    names |= {
        value.name for value in node.inputs if weights.is_constant(value) and value is not None
    }
    if not names.intersection(keep):
        return None
    return Skip(label(node), "you asked to keep it in fp32", "drop it from 'keep'")


def unsupported(node: ir.Node, kind: ir.DataType, opset: int) -> Skip | None:
    """Whether an operator takes no such type; without a reason where that is as it should be."""
    name, word = label(node), kind.name.lower()
    values = [
        value for value in (*node.inputs, *node.outputs) if value is not None and value.name
    ]
    reason, advice = "", ""
    if node.domain not in STANDARD:
        reason = f"{node.domain}.{node.op_type} is no operator of ONNX: its types are not known"
        advice = "type it by hand"
    elif node.op_type in SILENT:
        pass
    elif has_subgraphs(node):
        reason = f"the bodies of {node.op_type} stay in fp32"
        advice = "export the model without control flow"
    elif (since := takes(node.op_type, kind, opset)) == 0:
        if all(value.dtype is not None for value in values):
            return None
        reason = "the types of what it reads or makes are not known"
        advice = "run 'infer-shapes' first, or type it by hand"
    elif not any(
        value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs
    ):
        pass  # It makes numbers in a type that an attribute says; who wants another one casts them.
    elif since is None:
        reason = f"{node.op_type} takes no {word}"
        advice = "nothing can be done"
    else:
        reason = f"{node.op_type} takes no {word} in opset {opset}, but from opset {since} on"
        advice = f"export the model with opset {since} or newer"
    return Skip(name, reason, advice)


def has_subgraphs(node: ir.Node) -> bool:
    """Whether a node has bodies, as If and Loop do."""
    kinds = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
    return any(attribute.type in kinds for attribute in node.attributes.values())


def quantized(graph: ir.Graph) -> dict[ir.Node, Skip]:
    """Nodes that read what a DequantizeLinear makes, or whose results are all quantized."""
    found: dict[ir.Node, Skip] = {}
    for node in graph:
        if node.op_type in QUANTIZERS or node.op_type == "Cast":
            continue
        makers = (value.producer() for value in node.inputs if value is not None)
        if any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers):
            reason = "it is a quantized layer, which computes in int8 with fp32 around it"
            found[node] = Skip(label(node), reason, "nothing has to be done")
    for node in reversed(graph):
        if node in found or node.op_type not in BESIDE:
            continue
        users = [use.node for value in node.outputs for use in value.uses()]
        is_output = any(value.is_graph_output() for value in node.outputs)
        if (
            users
            and not is_output
            and all(user.op_type == "QuantizeLinear" or user in found for user in users)
        ):
            reason = "its results are quantized: it is part of the layers that compute in int8"
            found[node] = Skip(label(node), reason, "nothing has to be done")
    return found


def out_of_range(node: ir.Node, kind: ir.DataType) -> Skip | None:
    """Whether a constant of a node is more, or less, than fp16 can hold."""
    if kind != ir.DataType.FLOAT16:
        return None  # bfloat16 has the range of fp32
    for index in typed_inputs(node):
        value = node.inputs[index]
        array = weights.constant(value)
        if value is None or array is None or not array.size:
            continue
        largest = largest_finite(array)
        if largest > LARGEST:
            reason = (
                f"its constant '{value.name}' reaches {largest:.3g}, and fp16 ends at 65504"
            )
            return Skip(label(node), reason, "take bf16, or a smaller number")
        if largest > 0 and float(np.float16(largest)) == 0.0:
            reason = f"its constant '{value.name}' is at most {largest:.3g}, which is 0 in fp16"
            return Skip(label(node), reason, "take bf16, or a larger number")
    return None


def largest_finite(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """The largest magnitude that is no infinity or NaN; 0 if there is none."""
    with np.errstate(invalid="ignore"):
        found = max(float(array.max()), -float(array.min()))
    if np.isfinite(found):
        return found
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0


def too_wide(node: ir.Node, wide: dict[ir.Value, str]) -> Skip | None:
    """Whether what a node reads may be beyond fp16."""
    for index in typed_inputs(node):
        value = node.inputs[index]
        if value in wide:
            reason = f"what it reads may be beyond fp16: it comes from '{wide[value]}'"
            return Skip(label(node), reason, "take bf16, or a smaller number there")
    return None


def too_exact(node: ir.Node, large: set[ir.Value]) -> Skip | None:
    """Whether all that a node reads comes from large integers."""
    values = [
        node.inputs[index]
        for index in typed_inputs(node)
        if not weights.is_constant(node.inputs[index])
    ]
    if not values or not all(value in large for value in values):
        return None
    reason = "it computes with what were integers, which have more digits than 16 bits hold"
    return Skip(label(node), reason, "nothing has to be done")


def spread(node: ir.Node, found: Skip, wide: dict[ir.Value, str], large: set[ir.Value]) -> None:
    """Follow numbers that may be beyond fp16, and those that were integers, past a node that stays in fp32."""
    outputs = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    if node.op_type == "Cast":
        source = node.inputs[0]
        if source is not None and source.dtype in INTEGERS:
            large.update(outputs)
        elif source in wide:
            wide.update(dict.fromkeys(outputs, wide[source]))
        elif source in large:
            large.update(outputs)
        return
    if node.op_type in BOUNDING:
        return
    if node.op_type == "ConstantOfShape":
        filling = node.attributes.get("value")
        if filling is not None and largest_finite(filling.as_tensor().numpy()) > LARGEST:
            wide.update(dict.fromkeys(outputs, label(node)))
        return
    origin = next((wide[value] for value in node.inputs if value in wide), None)
    if "fp16 ends at" in found.reason:
        origin = label(node)
    if origin is not None:
        wide.update(dict.fromkeys(outputs, origin))
    elif "were integers" in found.reason:
        large.update(outputs)
