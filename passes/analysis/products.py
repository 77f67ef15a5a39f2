"""Matrix products of operands of which some elements are known."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.moves import any_along, widen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from passes.analysis.arguments import Arguments
    from passes.analysis.compact import Array

__all__ = [
    "Factor",
    "Labels",
    "contract",
    "contract_labelled",
    "joined",
    "joined_labelled",
    "joined_live",
    "subscripts",
]

ELEMENTS_AT_ONCE = 1 << 20
"""Large weights are gone through in slices of about this many elements, which stay in a processor's cache."""


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
    def of(
        cls, value: ir.Value, arguments: Arguments, known: tuple[Array, Array] | None
    ) -> Factor:
        """Describe an input of a product.

        Args:
            value: the input, of known shape.
            arguments: where constants are read.
            known: mask and value of what is known of it, if it is not constant.
        """
        symbolic, shape = arguments.symbolic(value), arguments.shape[value]
        array = arguments.constant(value)
        if array is not None:
            return cls(np.ones((1,) * array.ndim, dtype=bool), array, symbolic, shape)
        if known is None:
            ones = (1,) * len(shape)
            known = np.zeros(ones, dtype=bool), np.zeros(ones)
        return cls(known[0], known[1], symbolic, shape)

    @property
    def live(self) -> Array:
        """Which elements are not known to be zero: compact, bool."""
        # Of weights all is known; to spread a single True over them would take 20 times as long as comparing them.
        found: Array = self.value != 0 if self.mask.all() else ~(self.mask & (self.value == 0))
        return found

    @property
    def is_constant(self) -> bool:
        """Whether all is known, element by element."""
        return self.value.shape == tuple(self.shape) and bool(self.mask.all())

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known."""
        return not self.mask.any()

    def rows(self, part: slice) -> Factor:
        """Some of the rows, the last axis but one."""
        index = (..., part, slice(None))
        return Factor(
            self.mask if self.mask.shape[-2] == 1 else self.mask[index],
            self.value if self.value.shape[-2] == 1 else self.value[index],
            self.symbolic,
            self.shape,
        )

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
    # a vector on one side, which is the rule, needs no product of whole matrices
    rank = max(left.ndim, right.ndim)
    if left.size == left.shape[-1]:
        picked = right[..., np.flatnonzero(left), :].any(axis=-2, keepdims=True)
        return widen(np.asarray(picked), rank)
    if right.size == right.shape[-2]:
        picked = left[..., np.flatnonzero(right)].any(axis=-1, keepdims=True)
        return widen(np.asarray(picked), rank)
    product: Array = left.astype(np.float32) @ right.astype(np.float32)
    return product > 0


def joined_live(left: Array, right: Factor) -> Array:
    """`joined(left, right.live)`, without an array of the size of a large weight.

    Args:
        left: compact bool, shape `(..., rows, inner)`.
        right: a factor of shape `(..., inner, columns)`.

    Returns:
        compact bool, shape `(..., rows, columns)`.
    """
    inner = max(right.mask.shape[-2], right.value.shape[-2])
    if right.value.size <= ELEMENTS_AT_ONCE or inner == 1:
        return joined(left, right.live)
    step = max(1, ELEMENTS_AT_ONCE * inner // right.value.size)
    found = np.zeros((1,) * right.value.ndim, dtype=bool)
    for start in range(0, inner, step):
        part = slice(start, start + step)
        some = left if left.shape[-1] == 1 else left[..., part]
        found = found | joined(some, right.rows(part).live)
        if found.all():
            break
    return found


def contract(a: Factor, b: Factor) -> tuple[Array, Array] | None:
    """Multiply two matrices: which elements of the product are known, and their values.

    Returns:
        compact arrays (mask, value), shape `(..., rows, columns)`; None if nothing is known.
    """
    if a.is_unknown and b.is_unknown:
        return None
    # Unknown meets what may not be zero, from either side.
    bad = joined_live(~a.mask, b)
    if not b.mask.all():
        bad = bad | joined_live(~b.mask.swapaxes(-1, -2), a.transposed()).swapaxes(-1, -2)
    if bad.all():
        return None
    if a.is_unknown or b.is_unknown:
        return ~bad, np.zeros((1,) * bad.ndim)
    adding = joined(a.mask & (a.value != 0), b.mask & (b.value != 0)) & ~bad
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


@dataclasses.dataclass(frozen=True)
class Labels:
    """Axis labels of an Einsum of two operands."""

    left: str
    right: str
    out: str


def subscripts(node: ir.Node) -> Labels | None:
    """Read the equation of an Einsum; None unless it is a plain product of two tensors."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms, arrow, out = equation.partition("->")
    left, comma, right = terms.partition(",")
    plain = all(len(set(term)) == len(term) for term in (left, right, out))
    if not (arrow and comma and plain) or "." in equation or "," in right:
        return None
    return Labels(left, right, out)


def joined_labelled(terms: Sequence[tuple[str, Array]], out: str) -> Array:
    """Multiply compact bool arrays by an Einsum of "or" and "and".

    Args:
        terms: axis labels and array of each operand; each axis full or 1.
        out: axis labels of the result; what no operand has gets size 1.
    """
    found: Array = (
        _einsum([(labels, array.astype(np.float32)) for labels, array in terms], out) > 0
    )
    return found


def _einsum(terms: Sequence[tuple[str, Array]], out: str) -> Array:
    sizes: dict[str, int] = {}
    for labels, array in terms:
        for label, size in zip(labels, array.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    equation = ",".join(labels for labels, _ in terms)
    wide = [
        np.broadcast_to(array, [sizes[label] for label in labels]) for labels, array in terms
    ]
    present = "".join(label for label in out if label in sizes)
    result: Array = np.einsum(f"{equation}->{present}", *wide, optimize=True)
    return result.reshape([sizes.get(label, 1) for label in out])


def contract_labelled(a: Factor, b: Factor, labels: Labels) -> tuple[Array, Array] | None:
    """Multiply two tensors by an Einsum, as `contract` does two matrices."""
    if a.is_unknown and b.is_unknown:
        return None

    def join(left: Array, right: Array) -> Array:
        return joined_labelled([(labels.left, left), (labels.right, right)], labels.out)

    a_live, b_live = a.mask & (a.value != 0), b.mask & (b.value != 0)
    bad = join(~a.mask, ~b.mask | b_live) | join(a_live, ~b.mask)
    adding = join(a_live, b_live) & ~bad
    count = 1
    full: dict[str, tuple[int, bool, bool]] = {}
    for names, factor in ((labels.left, a), (labels.right, b)):
        for at, label in enumerate(names):
            size, symbolic, alike = full.get(label, (1, False, True))
            full[label] = (
                max(size, factor.shape[at]),
                symbolic or factor.symbolic[at],
                alike and factor.value.shape[at] == 1,
            )
    for label, (size, symbolic, alike) in full.items():
        if label not in labels.out:
            # How many terms there are may depend on a size that is not known.
            bad = bad | adding if symbolic else bad
            count *= size if alike else 1
    if bad.all():
        return None
    values = [
        (labels.left, a.value.astype(np.float64)),
        (labels.right, b.value.astype(np.float64)),
    ]
    return ~bad, _einsum(values, labels.out) * count
