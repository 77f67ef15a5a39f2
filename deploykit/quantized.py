"""Says which quantized layers the channel passes cannot look into, so that silence about them is not read as density."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.base import Skip

__all__ = ["unread_layers"]


def unread_layers(model: ir.Model) -> tuple[Skip, ...]:
    """One skip for each operator that computes with 8-bit weights and that no axis rule describes."""
    from onnx_ir import DataType

    from passes.analysis.axis_rules import ROWS
    from passes.base import Skip
    from passes.weights import constant

    bytes_types = {DataType.INT8, DataType.UINT8}
    found: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type in ROWS and node.domain in {"", "ai.onnx"}:
            continue
        for value in node.inputs:
            if value is None or value.dtype not in bytes_types:
                continue
            weight = constant(value)
            if weight is not None and weight.ndim > 1:
                found[node.op_type] += 1
                break
    return tuple(
        Skip(
            f"{count} {name} {'nodes' if count > 1 else 'node'}",
            f"{name} has no rule: their channels stay"
            if count > 1
            else f"{name} has no rule: its channels stay",
            "remove channels before quantizing",
        )
        for name, count in found.items()
    )
