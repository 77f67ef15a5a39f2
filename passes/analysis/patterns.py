"""N:M patterns on arrays: of each aligned M elements along an axis at most N are not zero.

Groups are aligned to the start of the axis. TensorRT reads 2:4 along the axis that is summed over. Everything goes slice by
slice through a processor's cache, and compares the bits of the numbers without their sign, which have the order of the
magnitudes in every type of floats and are compared as fast in fp16 and bf16 as in fp32.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from passes.analysis.compact import Array

__all__ = [
    "TWO_OF_FOUR",
    "Fit",
    "Pattern",
    "best_mask",
    "is_readable",
    "measure",
    "obeys",
    "selected",
    "sparsify",
]

ELEMENTS_AT_ONCE: Final = 1 << 17
"""Arrays are gone through in slices of about this many elements, which stay in a processor's cache."""

WIDEST: Final = 64
"""The longest group: selecting goes through it as often as elements stay."""

FLOATS: Final[Mapping[str, np.dtype[Any]]] = {
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.uint32),
    "float64": np.dtype(np.uint64),
}
"""Types of floats, and of their bits."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Of each `group` elements along an axis at most `kept` are not zero.

    Attributes:
        kept: N, at least 1 and less than M.
        group: M.

    Raises:
        ValueError: there is no such pattern.
    """

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.group <= WIDEST:
            msg = f"'{self}' is no pattern: of M elements, at most {WIDEST}, N stay, fewer than M. TensorRT reads 2:4"
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern that `2:4` names.

        Raises:
            ValueError: the text names none.
        """
        found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text.strip())
        if found is None:
            msg = f"'{text}' is no pattern: it is N:M, M up to {WIDEST}, such as 2:4"
            raise ValueError(msg)
        return cls(int(found[1]), int(found[2]))


TWO_OF_FOUR: Final = Pattern(2, 4)
"""The pattern that NVIDIA's sparse tensor cores read."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """How an array stands to a pattern.

    Attributes:
        groups: how many groups there are.
        obeying: how many of them obey.
        kept: share of the sum of magnitudes that the best mask keeps, 0 to 1; 1 of an array of zeros.
    """

    groups: int
    obeying: int
    kept: float

    @property
    def share(self) -> float:
        """Share of the groups that obey, 0 to 1."""
        return self.obeying / self.groups if self.groups else 1.0


def is_readable(dtype: np.dtype[np.generic]) -> bool:
    """Whether arrays of this type can be looked at here: fp16, bf16, fp32, fp64, int8 and uint8."""
    return dtype.name in FLOATS or dtype in {np.dtype(np.int8), np.dtype(np.uint8)}


def best_mask(array: Array, axis: int, pattern: Pattern) -> Array:
    """The mask that keeps the most magnitude of every group; of equal ones, those that come first.

    Args:
        array: fp16, bf16, fp32, fp64, int8 or uint8, without NaN.
        axis: the axis along which groups lie; its size is a multiple of the group.
        pattern: N:M.

    Returns:
        bool, shape of `array`; True keeps, exactly N of every M.

    Raises:
        ValueError: the axis is no multiple of the group.
    """
    out = np.empty(array.shape, dtype=np.bool_)
    for part, goal in zip(
        slices(array, axis, pattern), slices(out, axis, pattern), strict=True
    ):
        goal[...] = ~dropped(magnitudes(aligned(part)), pattern)
    return out


def sparsify(array: Array, axis: int, pattern: Pattern, *, scale: Array | None = None) -> Array:
    """The array with all but the largest N of every M set to zero: `array` times `best_mask`.

    Args:
        array: as for `best_mask`; unchanged.
        axis: likewise.
        pattern: N:M.
        scale: what the elements are multiplied with before they are compared, of a shape that broadcasts to `array`.

    Raises:
        ValueError: likewise.
    """
    real = None if scale is None else scaled(array, scale)
    if real is not None:
        return np.where(best_mask(real, axis, pattern), array, np.zeros((), array.dtype))
    out = np.empty(array.shape, dtype=array.dtype)
    for part, goal in zip(
        slices(array, axis, pattern), slices(out, axis, pattern), strict=True
    ):
        held = aligned(part)
        keep = ~dropped(magnitudes(held), pattern)
        # Bits times 0 or 1: no branch that a processor could guess wrong, and +0 for what goes, of negative numbers too.
        bits = held.view(FLOATS.get(held.dtype.name, held.dtype))
        goal[...] = (bits * keep).view(held.dtype)
    return out


def measure(array: Array, axis: int, pattern: Pattern, *, scale: Array | None = None) -> Fit:
    """How many groups obey, and what share of the magnitude the best mask would keep.

    Args:
        array: as for `sparsify`.
        axis: likewise.
        pattern: N:M.
        scale: likewise.

    Raises:
        ValueError: likewise.
    """
    held = array if scale is None else scaled(array, scale)
    groups = array.size // pattern.group
    obeying, total, lost = 0, 0.0, 0.0
    for part in slices(held, axis, pattern):
        bits = magnitudes(aligned(part))
        rest, smallest = small_ones(bits, pattern)
        obeying += int(np.count_nonzero(rest == 0))
        total += added(bits, held.dtype)
        lost += added(smallest, held.dtype)
    return Fit(groups, obeying, 1 - lost / total if total and obeying < groups else 1.0)


def obeys(array: Array, axis: int, pattern: Pattern) -> bool:
    """Whether every group obeys; stops at the first slice where one does not.

    Raises:
        ValueError: as `best_mask`.
    """
    return all(
        bool(((aligned(part) != 0).sum(axis=0, dtype=np.uint8) <= pattern.kept).all())
        for part in slices(array, axis, pattern)
    )


def scaled(array: Array, scale: Array) -> Array:
    """What stored integers stand for."""
    out: Array = array.astype(np.float32) * scale.astype(np.float32)
    return out


def slices(array: Array, axis: int, pattern: Pattern) -> Iterator[Array]:
    """Views of an array, shape `(M, rows, groups, rest)`, that lie together in memory.

    Raises:
        ValueError: the axis is no multiple of the group.
    """
    size = array.shape[axis]
    if size % pattern.group:
        msg = f"an axis of {size} has no whole groups of {pattern.group}"
        raise ValueError(msg)
    axis %= array.ndim
    rows, rest = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
    # An array that lies in memory in another order is copied; one to be written to has been made just now, and does not.
    split = np.ascontiguousarray(array).reshape(
        rows, size // pattern.group, pattern.group, rest
    )
    rows_at_once = max(1, ELEMENTS_AT_ONCE // max(1, size * rest))
    # Where one row is larger than a slice, it is cut between groups.
    groups_at_once = max(1, ELEMENTS_AT_ONCE // max(1, pattern.group * rest))
    for row in range(0, rows, rows_at_once):
        for group in range(0, size // pattern.group, groups_at_once):
            part = split[row : row + rows_at_once, group : group + groups_at_once]
            yield part.transpose(2, 0, 1, 3)


def aligned(part: Array) -> Array:
    """A slice with the elements of groups apart from each other, as whole rows of memory."""
    return np.ascontiguousarray(part)


def magnitudes(array: Array) -> Array:
    """Unsigned integers in the order of the magnitudes; zero for zeros."""
    bits = FLOATS.get(array.dtype.name)
    if bits is None:
        # The magnitude of -128 is no int8.
        wide: Array = np.abs(array.astype(np.int16)).view(np.uint16)
        return wide
    found: Array = array.view(bits) & bits.type((1 << (8 * bits.itemsize - 1)) - 1)
    return found


def added(bits: Array, dtype: np.dtype[np.generic]) -> float:
    """The sum of magnitudes that came of `magnitudes`."""
    if dtype.name not in FLOATS:
        return float(bits.sum(dtype=np.int64))
    if dtype.name == "bfloat16":
        # It is the upper half of an fp32 number.
        return float((bits.astype(np.uint32) << 16).view(np.float32).sum())
    numbers = bits.view(dtype)
    return float(numbers.sum(dtype=np.float64))


def largest(bits: Array, pattern: Pattern) -> Array:
    """The N-th largest of every group, shape `bits.shape[1:]`: from it on, elements stay."""
    if pattern.kept <= pattern.group // 2:
        return selected(bits, pattern.kept, np.maximum, np.minimum)[-1]
    return selected(bits, pattern.group - pattern.kept + 1, np.minimum, np.maximum)[-1]


def small_ones(bits: Array, pattern: Pattern) -> tuple[Array, Array]:
    """The largest of those elements of every group that the best mask drops, and all of these, in a first axis."""
    smallest = selected(bits, pattern.group - pattern.kept, np.minimum, np.maximum)
    return smallest[-1], np.stack(smallest)


def selected(bits: Array, count: int, first: np.ufunc, second: np.ufunc) -> list[Array]:
    """The `count` first elements of every group in an order, one after the other.

    A bubble that rises through the rest: whole rows are compared at once, and nothing is sorted that is not asked for.

    Args:
        bits: shape `(M, ...)`.
        count: how many.
        first: `np.maximum` for the largest, `np.minimum` for the smallest.
        second: the other one.
    """
    rest = list(bits)
    found = []
    for _ in range(count):
        best, others = rest[0], []
        for other in rest[1:]:
            others.append(second(best, other))
            best = first(best, other)
        found.append(best)
        rest = others
    return found


def dropped(bits: Array, pattern: Pattern) -> Array:
    """Bool, shape of `bits`: what the best mask drops, M - N of every group."""
    limit = largest(bits, pattern)
    drop: Array = bits < limit
    if np.count_nonzero(drop) == (pattern.group - pattern.kept) * limit.size:
        return drop
    # Where several elements are as large as the last one that stays, those that come first do.
    tied = drop.sum(axis=0, dtype=np.uint8) < pattern.group - pattern.kept
    part, at = bits[:, tied], limit[tied]
    equal, more = part == at, part > at
    room = pattern.kept - more.sum(axis=0, dtype=np.uint8)
    drop[:, tied] = ~(more | (equal & (equal.cumsum(axis=0, dtype=np.uint8) <= room)))
    return drop
