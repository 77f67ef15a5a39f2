"""How each weight of a model stands to a pattern of zeros, such as 2:4, along the axis that its layers sum over."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from passes import weights
from passes.analysis.patterns import Fit, is_readable, measure
from passes.analysis.reductions import TIDY, collect, find_products, refusals
from passes.base import Skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from passes.analysis.compact import Array
    from passes.analysis.patterns import Pattern
    from passes.analysis.reductions import Held, Product

__all__ = ["Candidate", "find_candidates", "unfit"]


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
        return self.held.tensor.numpy()

    def fit(self, pattern: Pattern) -> Fit | None:
        """How it stands to the pattern; None where it has no whole groups, or holds NaN or infinities."""
        size = self.held.shape[self.held.axis]
        array = self.array
        if size % pattern.group or not is_readable(array.dtype) or not weights.is_finite(array):
            return None
        return measure(array, self.held.axis, pattern, scale=self.held.scale)


def find_candidates(model: ir.Model, pattern: Pattern) -> Iterator[Candidate | Skip]:
    """Every weight of the model once, in graph order; and of nodes without one that can be followed, why.

    Args:
        model: the model; unchanged. Weights are not read here, so that NaN in them is not found.
        pattern: what is to be put into them.
    """
    for function in model.functions.values():
        reason = (
            "what the model's functions compute with is not looked at before they are inlined"
        )
        yield Skip(function.name, reason, TIDY)
    products = find_products(model)
    users = collect(products)
    refused = refusals(users)
    seen: set[ir.Value] = set()
    for product in products:
        if product.held is None:
            if product.refusal is not None:
                yield product.refusal
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
            return Skip(
                held.name,
                reason,
                f"make that a multiple of {pattern.group}; 'align-channels' adds zero channels",
            )
        if not is_readable(held.tensor.dtype.numpy()):
            reason = f"its elements are {held.tensor.dtype.name.lower()}, and sparse kernels read fp16, bf16, int8 and fp8"
            return Skip(held.name, reason, "store it as one of these")
    return None
