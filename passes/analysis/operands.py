"""Constants as a node sees them: plain, or behind a DequantizeLinear whose inputs are all constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes import weights
from passes.analysis.compact import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["dequantizer", "is_constant", "per_axis", "read"]


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of constants that makes a value, or None.

    One in blocks, which share a scale along the axis that is cut, is not followed: its result counts as data.
    """
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in {"", "ai.onnx"}:
        return None
    blocks = node.attributes.get("block_size")
    if blocks is not None and blocks.as_int():
        return None
    constant = all(weights.is_constant(one) for one in node.inputs if one is not None)
    return node if constant else None


def is_constant(value: ir.Value | None) -> bool:
    """Whether a node that reads `value` reads a constant."""
    return weights.is_constant(value) or dequantizer(value) is not None


def per_axis(node: ir.Node) -> int | None:
    """The axis along which a Quantize- or DequantizeLinear has a scale an element, or None if it has one scale."""
    scale = weights.tensor(node.inputs[1])
    if scale is None or len(scale.shape) == 0 or scale.size == 1:
        return None
    data = node.inputs[0]
    rank = len(data.shape) if data is not None and data.shape is not None else None
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None else attribute.as_int()
    return axis if axis >= 0 or rank is None else axis + rank


def read(value: ir.Value | None) -> Array | None:
    """The numbers that a node reads from a constant, dequantized; None if `value` is not constant."""
    node = dequantizer(value)
    if node is None:
        return weights.constant(value)
    data, scale = weights.constant(node.inputs[0]), weights.constant(node.inputs[1])
    zero = weights.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if data is None or scale is None:
        return None
    axis = per_axis(node)
    if axis is not None:
        shape = [-1 if index == axis else 1 for index in range(data.ndim)]
        scale = scale.reshape(shape)
        zero = None if zero is None else zero.reshape(shape)
    numbers = data.astype(np.float32)
    if zero is not None:
        numbers = numbers - zero.astype(np.float32)
    out: Array = (numbers * scale.astype(np.float32)).astype(scale.dtype)
    return out
