"""Matrix products of operands of which some elements are known."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.moves import any_along

if TYPE_CHECKING:
    from collections.abc import Sequence

    from passes.analysis.compact import Array

__all__ = ["Factor", "contract", "joined"]


@dataclasses.dataclass(frozen=True)
class Factor:
    """One operand of a matrix product.

    Attributes:
        mask: compact bool; True where the element is known.
        value: compact; the element where it is known, else 0. In its own type, to spare copies of weights.
        symbolic: which axes have a size that is a stand-in.
        shape: the full shape.
    """

    mask: Array
    value: Array
    symbolic: Sequence[bool]
    shape: Sequence[int]

    @classmethod
    def constant(cls, array: Array, symbolic: Sequence[bool]) -> Factor:
        """Make an operand of a constant array."""
        return cls(np.ones((1,) * array.ndim, dtype=bool), array, symbolic, array.shape)

    @property
    def is_constant(self) -> bool:
        """Whether all is known, element by element."""
        return self.value.shape == tuple(self.shape) and bool(self.mask.all())

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known."""
        return not self.mask.any()

    def transposed(self) -> Factor:
        """Swap the last two axes."""
        return Factor(
            self.mask.swapaxes(-1, -2),
            self.value.swapaxes(-1, -2),
            [*self.symbolic[:-2], self.symbolic[-1], self.symbolic[-2]],
            [*self.shape[:-2], self.shape[-1], self.shape[-2]],
        )

    def reshaped(self, shape: tuple[int, int]) -> Factor:
        """View a vector as a matrix of one row (1, -1) or one column (-1, 1)."""
        place = shape.index(-1)
        flags, sizes = [False, False], [1, 1]
        flags[place], sizes[place] = self.symbolic[0], self.shape[0]
        return Factor(self.mask.reshape(shape), self.value.reshape(shape), flags, sizes)


def joined(left: Array, right: Array) -> Array:
    """Multiply compact bool matrices: "or" over the inner axis of "and".

    Args:
        left: shape `(..., rows, inner)`, each axis full or 1.
        right: shape `(..., inner, columns)`, each axis full or 1.

    Returns:
        compact bool, shape `(..., rows, columns)`.
    """
    if left.shape[-1] == 1:
        right = any_along(right, [-2])
    elif right.shape[-2] == 1:
        left = any_along(left, [-1])
    if left.shape[-1] == 1:
        found: Array = left & right
        return found
    product: Array = left.astype(np.float32) @ right.astype(np.float32)
    return product > 0


def contract(a: Factor, b: Factor) -> tuple[Array, Array] | None:
    """Multiply two matrices: which elements of the product are known, and their values.

    Returns:
        compact arrays (mask, value), shape `(..., rows, columns)`; None if nothing is known.
    """
    a_unknown, b_unknown = ~a.mask, ~b.mask
    if a.is_unknown and b.is_unknown:
        return None
    a_live = a.mask & (a.value != 0) if not a.is_unknown else np.zeros_like(a.mask)
    b_live = b.mask & (b.value != 0) if not b.is_unknown else np.zeros_like(b.mask)
    bad = joined(a_unknown, b_unknown | b_live) | joined(a_live, b_unknown)
    if bad.all():
        return None
    adding = joined(a_live, b_live) & ~bad
    if (a.symbolic[-1] or b.symbolic[-2]) and adding.any():
        # How many terms there are depends on a size that is not known.
        bad, adding = bad | adding, np.zeros_like(adding)
    if not adding.any():
        return ~bad, np.zeros((1,) * bad.ndim)
    return ~bad, _product(a, b, adding)


def _product(a: Factor, b: Factor, adding: Array) -> Array:
    """Multiply the known elements, converting only the rows and columns of the result that are asked for."""
    left, right = a.value, b.value
    inner = a.shape[-1]
    others = tuple(range(adding.ndim - 1))
    columns = np.flatnonzero(adding.any(axis=others)) if right.shape[-1] > 1 else np.arange(1)
    right = right[..., columns].astype(np.float64)
    row_axes = (*others[:-1], adding.ndim - 1)
    rows = np.flatnonzero(adding.any(axis=row_axes)) if left.shape[-2] > 1 else np.arange(1)
    left = left[..., rows, :].astype(np.float64)
    if left.shape[-1] == 1 and right.shape[-2] == 1:
        part = left * right * inner
    elif left.shape[-1] == 1:
        part = left * right.sum(axis=-2, keepdims=True)
    elif right.shape[-2] == 1:
        part = left.sum(axis=-1, keepdims=True) * right
    else:
        part = left @ right
    whole = np.zeros((*part.shape[:-2], a.value.shape[-2], b.value.shape[-1]))
    whole[..., rows[:, None], columns] = part
    return whole
