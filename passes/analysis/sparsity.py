"""Zeros of each weight: how many, whole channels of them, and whether they obey the 2:4 pattern.

2:4 means: of each aligned four elements along the reduction axis (the input channels) at most two are not zero.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from passes import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from passes.analysis.compact import Array

__all__ = ["WeightSize", "WeightSparsity", "weight_sizes", "weight_sparsity"]

ELEMENTS_AT_ONCE = 1 << 20
"""Weights are gone through in slices of about this many elements, which stay in a processor's cache."""


@dataclasses.dataclass(frozen=True)
class WeightSize:
    """What is known of a weight without reading it.

    Attributes:
        name: of the weight.
        node: name of the node that uses it; of the first, if there are several.
        op_type: that node's operator.
        shape: of the weight.
        outputs: number of output channels, over all groups.
        inputs: number of input channels that an output channel reads (those of its group).
    """

    name: str
    node: str
    op_type: str
    shape: tuple[int, ...]
    outputs: int
    inputs: int


@dataclasses.dataclass(frozen=True)
class WeightSparsity(WeightSize):
    """The zeros of one weight.

    Attributes:
        zeros: share of elements that are zero, 0 to 1.
        zero_outputs: output channels whose weights are all zero.
        zero_inputs: input channels, over all groups, whose weights are all zero.
        obeys_2_4: whether there are fours along the input channels, no rest, and none has more than two non-zeros.
        kept_2_4: the share of the sum of magnitudes that the two largest of each four hold, 0 to 1: what forcing
            the pattern would keep. 1 if the weight obeys it; None if the input channels are no multiple of 4, or if
            nobody asked.
    """

    zeros: float
    zero_outputs: int
    zero_inputs: int
    obeys_2_4: bool
    kept_2_4: float | None = None


def weight_sizes(model: ir.Model) -> tuple[WeightSize, ...]:
    """The sizes of what `weight_sparsity` looks at, without reading it."""
    return tuple(
        sized(node, index, value.name or "", tuple(held.shape.numpy()))
        for value, (node, index, held) in operands(model).items()
    )


def weight_sparsity(model: ir.Model, *, magnitudes: bool = False) -> tuple[WeightSparsity, ...]:
    """The zeros of every constant weight of a Conv, ConvTranspose, Gemm or MatMul of the main graph, in graph order.

    A weight that is quantized is looked at before its DequantizeLinear, where that has a zero point of 0.

    Args:
        model: the model; unchanged.
        magnitudes: whether to find `kept_2_4`, which takes far longer than all the rest.
    """
    return tuple(
        measured(node, index, value.name or "", held.numpy(), magnitudes=magnitudes)
        for value, (node, index, held) in operands(model).items()
    )


def operands(model: ir.Model) -> dict[ir.Value, tuple[ir.Node, int, ir.TensorProtocol]]:
    """Weights that have elements, each with the first node that reads it, as which input, and its data, unread."""
    found: dict[ir.Value, tuple[ir.Node, int, ir.TensorProtocol]] = {}
    for node in model.graph:
        for value, index in constant_operands(node):
            held = weights.tensor(value)
            if value not in found and held is not None and held.size:
                found[value] = node, index, held
    return found


def constant_operands(node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    """Weights that the node reads, each with the input it comes in by."""
    if node.domain not in {"", "ai.onnx"}:
        return
    match node.op_type:
        case "Conv" | "ConvTranspose":
            places: tuple[int, ...] = (1,)
        case "Gemm" | "MatMul":
            places = (0, 1)
        case _:
            return
    for index in places:
        value = stored(node.inputs[index])
        held = weights.tensor(value)
        if value is not None and held is not None and len(held.shape) >= 2:
            yield value, index


def stored(value: ir.Value | None) -> ir.Value | None:
    """The constant behind a value: itself, or what a DequantizeLinear with zero points of 0 makes it from."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return value
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    points = weights.constant(zero_point)
    if zero_point is not None and (points is None or points.any()):
        return None  # zeros are not stored as zeros, or nobody knows
    return node.inputs[0]


def sized(node: ir.Node, index: int, name: str, shape: tuple[int, ...]) -> WeightSize:
    """Count channels."""
    # A view of a single number has every shape, and takes no memory.
    groups, outputs, inputs, _ = as_matrix(node, index, np.broadcast_to(False, shape)).shape
    outputs *= groups if is_convolution(node) else 1
    return WeightSize(name, node.name or "", node.op_type, shape, outputs, inputs)


def measured(
    node: ir.Node, index: int, name: str, array: Array, *, magnitudes: bool
) -> WeightSparsity:
    """Count zeros."""
    matrix = as_matrix(node, index, array)
    groups, outputs, inputs, _ = matrix.shape
    nonzero, sums, largest = 0, 0.0, 0.0
    row_is_used = np.zeros((groups, outputs), dtype=bool)
    column_is_used = np.zeros((groups, inputs), dtype=bool)
    fours = inputs % 4 == 0
    obeys = fours
    for group in range(groups):
        for rows, columns in slices(matrix[group]):
            part = matrix[group, rows, columns]
            used = part != 0
            nonzero += int(np.count_nonzero(used))
            row_is_used[group, rows] |= used.any(axis=(1, 2))
            column_is_used[group, columns] |= used.any(axis=(0, 2))
            if not fours:
                continue
            split = len(part), part.shape[1] // 4, 4, part.shape[2]
            obeys = obeys and bool((used.reshape(split).sum(axis=2, dtype=np.int8) <= 2).all())
            if magnitudes:
                magnitude = np.abs(part.astype(np.float32)).reshape(split)
                sums += float(magnitude.sum(dtype=np.float64))
                magnitude.partition(2, axis=2)
                largest += float(magnitude[:, :, 2:].sum(dtype=np.float64))
    kept = None
    if fours and magnitudes:
        kept = 1.0 if obeys or sums == 0 else largest / sums
    return WeightSparsity(
        **dataclasses.asdict(sized(node, index, name, array.shape)),
        zeros=1 - nonzero / array.size,
        zero_outputs=dead(row_is_used, merge=not is_convolution(node)),
        zero_inputs=dead(column_is_used, merge=not is_convolution(node)),
        obeys_2_4=obeys,
        kept_2_4=kept,
    )


def slices(matrix: Array) -> Iterator[tuple[slice, slice]]:
    """Parts of a (outputs, inputs, rest) array that lie together in memory, with whole fours of inputs."""
    outputs, inputs, _ = matrix.shape
    # Inputs go first where those of one output are apart from each other.
    if abs(matrix.strides[1]) > abs(matrix.strides[0]):
        step = max(1, ELEMENTS_AT_ONCE // max(1, matrix[:, :4].size)) * 4
        for start in range(0, inputs, step):
            yield slice(None), slice(start, start + step)
    else:
        step = max(1, ELEMENTS_AT_ONCE // max(1, matrix[:1].size))
        for start in range(0, outputs, step):
            yield slice(start, start + step), slice(None)


def as_matrix(node: ir.Node, index: int, array: Array) -> Array:
    """The weight as (group, output, input, rest), a view where numpy can make one.

    The rest is the kernel of a Conv. The leading axes of a MatMul's weight are taken as groups.
    """
    if is_convolution(node):
        groups = node.attributes.get_int("group", 1)
        kernel = math.prod(array.shape[2:])
        if node.op_type == "Conv":
            return array.reshape(groups, array.shape[0] // groups, array.shape[1], kernel)
        split = array.reshape(groups, array.shape[0] // groups, array.shape[1], kernel)
        return split.swapaxes(1, 2)
    matrix = array.reshape(-1, *array.shape[-2:])[..., np.newaxis]
    transposed = node.attributes.get_int("transB" if index == 1 else "transA", 0) != 0
    # B is (input, output) and A is (output, input), unless transposed.
    return matrix.swapaxes(1, 2) if (index == 1) != transposed else matrix


def is_convolution(node: ir.Node) -> bool:
    """Whether its groups are groups of channels, rather than matrices of their own."""
    return node.op_type in {"Conv", "ConvTranspose"}


def dead(is_used: Array, *, merge: bool) -> int:
    """Channels that are never used; those of stacked matrices must be unused in all."""
    return int(np.count_nonzero(~(is_used.any(axis=0) if merge else is_used)))
