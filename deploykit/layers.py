"""What became of each weight: its channels before and after, and its zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploykit.report.records import Count, Layer

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.sparsity import WeightSize, WeightSparsity

__all__ = ["compare"]


def compare(
    before: ir.Model, after: ir.Model, forms: Mapping[str, str] | None = None
) -> tuple[Layer, ...]:
    """Compare the weights of two forms of a model, by name.

    Args:
        before: the original; unchanged.
        after: what was made of it; its weights are not read.
        forms: how weights are computed that are no longer there as they were, by name.

    Returns:
        a row for each weight of a Conv, ConvTranspose, Gemm or MatMul of the original, in graph order.
    """
    from passes.analysis.sparsity import weight_sizes, weight_sparsity
    from passes.tidy import Tidy

    plain = before.clone()
    # Weights that are made by nodes (Constant, Transpose) get the names they have after tidying.
    Tidy()(plain)
    left = {found.name: found for found in weight_sizes(after)}
    return tuple(
        _row(found, left.get(found.name), (forms or {}).get(found.name))
        for found in weight_sparsity(plain)
    )


def _row(found: WeightSparsity, left: WeightSize | None, form: str | None) -> Layer:
    return Layer(
        weight=found.name,
        node=found.node,
        op_type=found.op_type,
        shape_before=tuple(found.shape),
        shape_after=None if left is None else tuple(left.shape),
        outputs=Count(found.outputs, None if left is None else left.outputs),
        inputs=Count(found.inputs, None if left is None else left.inputs),
        zeros=found.zeros,
        zero_outputs=found.zero_outputs,
        zero_inputs=found.zero_inputs,
        obeys_2_4=found.obeys_2_4,
        form=form,
    )
