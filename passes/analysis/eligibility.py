"""Which layers sparse kernels could take, and why they would not take the others: the rules of a target, layer by layer.

What cannot be is told apart from what is not there yet (the weight does not obey) and from what a runtime may still leave: it
times its kernels and takes the faster one. No rule here says that a layer will be faster.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from passes.analysis.fits import Candidate, find_candidates, fit
from passes.analysis.patterns import Pattern
from passes.analysis.walk import label

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from passes.analysis.patterns import Fit
    from passes.analysis.reductions import Product
    from passes.base import Skip
    from passes.targets import SparseRules, Target

__all__ = ["Eligibility", "Remark", "Verdict", "find_eligibility"]

Verdict: TypeAlias = Literal["eligible", "doubtful", "not yet", "no"]
"""Nothing speaks against it; it may not be picked; it does not obey the pattern; it cannot be."""

PRECISIONS: Final = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "DOUBLE": "fp64",
    "INT8": "int8",
    "UINT8": "uint8",
    "FLOAT8E4M3FN": "fp8",
    "FLOAT8E5M2": "fp8",
}
"""Types by the names that people use for them."""

ACTIVATIONS: Final = frozenset({"Clip", "LeakyRelu", "Relu"})
"""What stands between a layer and the QuantizeLinear behind it without being in the way."""


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something that speaks against sparse kernels in a layer.

    Attributes:
        verdict: what it makes of the layer.
        reason: why, in words that fit every layer that it holds of.
        advice: what to do.
    """

    verdict: Verdict
    reason: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Eligibility:
    """What sparse kernels could make of a layer.

    Attributes:
        node: the layer.
        op_type: its operator.
        weight: name of the stored weight; None if there is none.
        shape: of the stored weight; empty if there is none.
        axis: the axis of that along which groups lie; None if there is none.
        outputs: output channels.
        inputs: channels that each output reads.
        precision: what it computes in ("fp16"); empty if that is not known.
        share: share of groups that obey, 0 to 1; None where there are no groups to look at.
        kept: share of the magnitude that the best mask would keep, 0 to 1; likewise.
        verdict: the worst of the remarks'.
        remarks: what speaks against it, the worst first.
    """

    node: str
    op_type: str
    weight: str | None
    shape: tuple[int, ...]
    axis: int | None
    outputs: int
    inputs: int
    precision: str
    share: float | None
    kept: float | None
    verdict: Verdict
    remarks: tuple[Remark, ...]


def find_eligibility(
    model: ir.Model, target: Target, pattern: Pattern | None = None
) -> tuple[Eligibility, ...]:
    """Judge every layer of a model that multiplies, in graph order.

    Args:
        model: the model; unchanged.
        target: whose rules.
        pattern: N:M; None: what the target wants, or 2:4.
    """
    wanted = pattern or Pattern.parse(target.sparse.pattern if target.sparse else "2:4")
    found = []
    for each in find_candidates(model, wanted):
        products = each.products if isinstance(each, Candidate) else (each,)
        refusal = each.refusal
        fits: dict[int, Fit | None] = {}
        for product in products:
            held = product.held
            if held is not None and held.axis not in fits:
                fits[held.axis] = fit(held, wanted)
            known = None if held is None else fits[held.axis]
            remarks = tuple(
                sorted(
                    _remarks(product, refusal, known, target, wanted),
                    key=lambda remark: WORST_FIRST.index(remark.verdict),
                )
            )
            found.append(
                Eligibility(
                    node=label(product.node),
                    op_type=product.node.op_type,
                    weight=None if held is None else held.name,
                    shape=() if held is None else held.shape,
                    axis=None if held is None else held.axis,
                    outputs=0 if held is None else product.outputs,
                    inputs=product.inputs,
                    precision=precision_text(product),
                    share=None if known is None else known.share,
                    kept=None if known is None else known.kept,
                    verdict=remarks[0].verdict if remarks else "eligible",
                    remarks=remarks,
                )
            )
    return tuple(found)


def precision_text(product: Product) -> str:
    """What a layer computes in, as people call it; empty if it is not known."""
    found = product.precision
    return "" if found is None else PRECISIONS.get(found.name, found.name.lower())


def _remarks(
    product: Product,
    refusal: Skip | None,
    known: Fit | None,
    target: Target,
    pattern: Pattern,
) -> Iterator[Remark]:
    """What speaks against a layer."""
    rules = target.sparse
    if rules is None:
        yield Remark("no", *NO_KERNELS.get(target.runtime, UNKNOWN_KERNELS))
    elif rules.pattern != str(pattern):
        yield Remark(
            "no",
            f"sparse kernels read {rules.pattern}, not {pattern}",
            f"take {rules.pattern} if it is to be faster",
        )
    if refusal is not None:
        yield Remark("no", refusal.reason, refusal.advice)
        return
    if known is None:
        yield Remark(
            "no", "its weight holds NaN or infinities, or nothing at all", "repair the weight"
        )
        return
    if known.obeying < known.groups:
        yield Remark(
            "not yet",
            f"its weight does not obey {pattern} in all of its groups, as each of them has to",
            "train it with the pattern ('deploykit find'), or force it: --passes +sparse-2-4 --set "
            "sparse-2-4.force=magnitude, which changes the outputs",
        )
    if rules is not None:
        yield from _rule_remarks(product, rules)


def _rule_remarks(product: Product, rules: SparseRules) -> Iterator[Remark]:
    """What the rules of a target say against a layer whose weight can obey."""
    precision = precision_text(product)
    listed = ", ".join(rules.precisions)
    if not precision:
        yield Remark(
            "doubtful",
            "what it computes in is not known",
            f"type the model: {listed} have sparse kernels",
        )
    elif precision not in rules.precisions:
        yield Remark(
            "no",
            f"it computes in {precision}, and sparse kernels in {listed}: a strongly typed network is not lowered",
            "type the model: --passes +set-precision --set set-precision.dtype=fp16",
        )
    elif product.is_convolution and precision in rules.product_only:
        yield Remark(
            "doubtful",
            f"sparse kernels in {precision} are known for matrix products only",
            "take fp16 or int8 for convolutions",
        )
    outputs = product.outputs // product.groups
    if min(outputs, product.inputs) < rules.wins_from:
        yield Remark(
            "doubtful",
            f"sparse kernels win from about {rules.wins_from} channels on, in and out (of each group); it has fewer",
            "expect the dense kernel; removing whole channels makes it faster",
        )
    if outputs % rules.row_multiple:
        yield Remark(
            "doubtful",
            f"its outputs are no multiple of {rules.row_multiple}, as the vendor's pruners want",
            "'align-channels' adds zero channels",
        )
    if product.inputs % rules.column_multiple:
        yield Remark(
            "doubtful",
            f"its inputs are no multiple of {rules.column_multiple}, as the vendor's pruners want",
            "'align-channels' adds zero channels",
        )
    if product.node.op_type == "Conv" and not rules.picks_1x1 and set(product.kernel) == {1}:
        yield Remark(
            "doubtful",
            "for 1x1 convolutions sparse kernels are rarely taken",
            "measure it; nothing can be changed in the model",
        )
    if precision in {"int8", "fp8"} and not _is_requantized(product.node):
        yield Remark(
            "doubtful",
            "its output is not quantized, and sparse kernels of quantized layers were seen taken where it is",
            "quantize what it computes, too",
        )
    if product.index == 0:
        yield Remark(
            "doubtful",
            "its weight is on the left of the product, where no documentation speaks of sparse kernels",
            "write it with the weight on the right",
        )
    held = product.held
    if not product.is_convolution and held is not None and math.prod(held.seen[:-2]) > 1:
        yield Remark(
            "doubtful",
            "it multiplies by a stack of matrices, and sparse kernels are documented for one",
            "measure it",
        )


def _is_requantized(node: ir.Node) -> bool:
    """Whether all that is made of a node's output is quantized first, an activation in between aside."""
    output = node.outputs[0]
    if output.is_graph_output():
        return False
    users = [use.node for use in output.uses()]
    return bool(users) and all(
        user.op_type == "QuantizeLinear"
        or (user.op_type in ACTIVATIONS and _is_requantized(user))
        for user in users
    )


WORST_FIRST: Final[tuple[Verdict, ...]] = ("no", "not yet", "doubtful", "eligible")
NO_KERNELS: Final = {
    "onnxruntime": (
        "ONNX Runtime has no sparse kernels: zeros inside of a weight make nothing faster there",
        "2:4 is for TensorRT (--target tensorrt); here, remove whole channels or make blocks",
    )
}
UNKNOWN_KERNELS: Final = (
    "nothing is known of sparse kernels of this target",
    "name the runtime with --target, such as tensorrt",
)
