"""What the analyses of values may read of a node: concrete sizes, constant inputs and normalised axes.

Constants are read when a rule asks for them and never kept: a model of a gigabyte stays memory-mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes import weights

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.compact import Array
    from passes.shapes import Sizes

__all__ = ["Arguments", "argument", "dequantize", "is_standard", "normalise", "spread_scale"]


def is_standard(node: ir.Node) -> bool:
    """Whether the node's operator is one of the ONNX standard itself."""
    return node.domain in {"", "ai.onnx"}


def normalise(axis: int, rank: int) -> int:
    """Give the non-negative form of an axis."""
    return axis + rank if axis < 0 else axis


def argument(node: ir.Node, index: int) -> ir.Value | None:
    """Give an input of a node, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


class Arguments:
    """Sizes and constants of one model, as the rules of an analysis need them.

    Args:
        model: the model; read only.
        sizes: its concrete sizes, from `passes.shapes.measure`.
    """

    def __init__(self, model: ir.Model, sizes: Sizes) -> None:
        self.sizes = sizes
        self.shape = sizes.shape
        self.opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))

    def symbolic(self, value: ir.Value | None) -> tuple[bool, ...]:
        """Tell which axes of a value with a known shape have a size that is a stand-in."""
        if value is None:
            return ()
        known = self.sizes.symbolic.get(value)
        return (False,) * len(self.shape[value]) if known is None else known

    def constant(self, value: ir.Value | None) -> Array | None:
        """Read a constant input: an initializer, a dequantized initializer, or fixed shape arithmetic."""
        if value is None:
            return None
        array = weights.constant(value)
        if array is not None:
            return array
        node = value.producer()
        if node is not None and node.op_type == "DequantizeLinear" and is_standard(node):
            return _dequantized(node)
        integers = self.sizes.integers.get(value)
        symbolic = self.sizes.integers_symbolic.get(value)
        if integers is None or symbolic is None or np.any(symbolic):
            return None
        return integers

    def integers(self, value: ir.Value | None) -> list[int] | None:
        """Read a small integer input (axes, sizes, pads); None if it is absent or not constant."""
        array = self.constant(value)
        return None if array is None else [int(number) for number in np.ravel(array)]

    def setting(self, node: ir.Node, index: int, attribute: str) -> list[int] | None:
        """Read integers that old operator sets keep in an attribute and new ones in an input."""
        if attribute in node.attributes:
            return list(node.attributes[attribute].as_ints())
        return self.integers(argument(node, index))


def _dequantized(node: ir.Node) -> Array | None:
    stored, scale = weights.constant(node.inputs[0]), weights.constant(node.inputs[1])
    zero_input = argument(node, 2)
    zero = weights.constant(zero_input)
    if stored is None or scale is None or (zero_input is not None and zero is None):
        return None
    return dequantize(
        stored,
        scale,
        zero,
        axis=node.attributes.get_int("axis", 1),
        block=node.attributes.get_int("block_size", 0),
    )


def dequantize(
    stored: Array, scale: Array, zero: Array | None, *, axis: int, block: int
) -> Array:
    """Compute what DequantizeLinear computes, in single precision.

    Args:
        stored: the quantized numbers, or a compact array of them.
        scale: one scale, or one a channel of `axis`, or one a block of `axis`.
        zero: zero points, in the shape of `scale`; None is zero.
        axis: the axis of the channels or blocks; may be negative.
        block: how many numbers along `axis` share a scale; 0 if there are no blocks.
    """
    step = spread_scale(scale, stored, axis=axis, block=block).astype(np.float32)
    result: Array = stored.astype(np.float32)
    if zero is not None:
        result = result - spread_scale(zero, stored, axis=axis, block=block).astype(np.float32)
    return result * step


def spread_scale(scale: Array, like: Array, *, axis: int, block: int) -> Array:
    """Bring a scale or zero point into a shape that broadcasts against the tensor it belongs to."""
    if scale.size == 1:
        return scale.reshape((1,) * like.ndim)
    axis = normalise(axis, like.ndim)
    if block:
        return np.repeat(scale, block, axis=axis)[
            (slice(None),) * axis + (slice(like.shape[axis]),)
        ]
    return scale.reshape([scale.size if at == axis else 1 for at in range(like.ndim)])
