"""NaN and infinity among the constants of a model, which no zero cancels.

All reasoning about dead channels rests on zero times anything being zero. A NaN in a weight, and an infinity that is
multiplied, reaches whatever reads it, through zeros too; a pooling may even make finite numbers of it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from passes import weights
from passes.base import Skip

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["find_blemish"]

MULTIPLIES = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "PRelu",
        "RMSNormalization",
    }
)
"""Operators that multiply their constants; others (a mask that is added, a bound) may hold infinities."""


def find_blemish(model: ir.Model) -> Skip | None:
    """The first constant with a NaN in it, or an infinity that is multiplied; as a Skip for the whole model.

    Args:
        model: the model; every constant of floats in it is read.
    """
    seen: set[ir.Value] = set()
    for node in model.graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            if value is None or value in seen:
                continue
            seen.add(value)
            array = weights.constant(value)
            if array is None or weights.is_finite(array):
                continue
            readers = {use.node.op_type for use in value.uses()}
            is_nan = bool(np.isnan(array).any())
            if is_nan or readers & MULTIPLIES:
                what = "NaN" if is_nan else "an infinity"
                return Skip(
                    value.name or "",
                    f"'{value.name}' holds {what}, which no zero cancels: whatever it meets depends on it",
                    "repair the weight; training may have diverged",
                )
    return None
