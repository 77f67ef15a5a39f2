"""How each weight of a model stands to a pattern of zeros, such as 2:4, along the axis that its layers sum over."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final

from passes import weights
from passes.analysis.patterns import Fit, is_readable, measure, obeys
from passes.analysis.reductions import collect, find_products, refusals
from passes.base import Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from passes.analysis.compact import Array
    from passes.analysis.patterns import Pattern
    from passes.analysis.reductions import Held, Product

__all__ = ["Candidate", "find_candidates", "fit", "is_obeyed", "unfit"]

ELEMENTS_AT_ONCE: Final = 1 << 18
"""Weights that may be made when they are wanted are looked at in slices of about this many elements."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A weight, and who reads it.

    Attributes:
        products: the layers that multiply by it, the first one first; at least one.
        refusal: why no pattern can be put into it; None if one can.
    """

    products: tuple[Product, ...]
    refusal: Skip | None

    @property
    def held(self) -> Held:
        """Where its numbers are."""
        found = self.products[0].held
        assert found is not None, "candidates are made of weights that were found"  # noqa: S101
        return found

    @property
    def name(self) -> str:
        """Its name."""
        return self.held.name

    @property
    def array(self) -> Array:
        """Its numbers as they are stored."""
        found: Array = self.held.tensor.numpy()
        return found


def fit(held: Held, pattern: Pattern) -> Fit | None:
    """How a weight stands to a pattern; None where it has no whole groups, or holds NaN or infinities.

    Args:
        held: the weight; it is read.
        pattern: N:M.
    """
    array = held.tensor.numpy()
    if held.shape[held.axis] % pattern.group or not array.size:
        return None
    if not is_readable(array.dtype) or not weights.is_finite(array):
        return None
    return measure(array, held.axis, pattern, scale=held.scale)


def is_obeyed(held: Held, pattern: Pattern) -> bool:
    """Whether a weight obeys a pattern; it is read no further than to the first rows that do not.

    Raises:
        ValueError: it has no whole groups.
    """
    tensor, shape = held.tensor, held.shape
    step = max(1, ELEMENTS_AT_ONCE // max(1, math.prod(shape[1:])))
    if held.axis == 0:
        step = -(-step // pattern.group) * pattern.group
    return all(
        obeys(weights.rows(tensor, slice(start, start + step)), held.axis, pattern)
        for start in range(0, shape[0], step)
    )


def find_candidates(model: ir.Model, pattern: Pattern) -> Iterator[Candidate | Product]:
    """Every weight of the model once, in graph order; and the products without one that can be followed.

    Args:
        model: the model; unchanged. Weights are not read here, so that NaN in them is not found. What functions of the
            model compute is not looked at before they are inlined, as `tidy` does.
        pattern: what is to be put into them.
    """
    products = find_products(model)
    users = collect(products)
    refused = refusals(users)
    seen: set[ir.Value] = set()
    for product in products:
        if product.held is None:
            yield product
        elif product.held.value not in seen:
            seen.add(product.held.value)
            together = users[product.held.value]
            yield Candidate(
                together, refused.get(product.held.value) or unfit(together, pattern)
            )


def unfit(products: tuple[Product, ...], pattern: Pattern) -> Skip | None:
    """Why a weight cannot have a pattern, as its shape and type say; None if it can."""
    for product in products:
        held = product.held
        if held is None:
            continue
        if product.node.op_type == "ConvTranspose":
            reason = "a transposed convolution has no sparse kernels that are documented"
            return Skip(
                held.name, reason, "nothing can be done; a Resize and a Conv in its place could"
            )
        if product.inputs == 1 and product.groups > 1:
            reason = "it is depthwise: each output reads a single channel, and there is nothing to choose among"
            return Skip(held.name, reason, "nothing can be done; such layers do little work")
        if product.inputs % pattern.group:
            of_each = " in each group" if product.groups > 1 else ""
            reason = f"it reads {product.inputs} channels{of_each}, no multiple of {pattern.group}: there are no whole groups"
            advice = (
                f"have the layer before it make a multiple of {pattern.group} ('align-channels' adds zero channels); nothing can "
                "be done where it reads the model's input"
            )
            return Skip(held.name, reason, advice)
        if not is_readable(held.tensor.dtype.numpy()):
            reason = f"its elements are {held.tensor.dtype.name.lower()}, and sparse kernels read fp16, bf16, int8 and fp8"
            return Skip(held.name, reason, "store it as one of these")
    return None
