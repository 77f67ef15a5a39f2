"""Compact arrays: per-element facts about a tensor, stored once along every axis on which they are uniform.

A compact array has the rank of the tensor it speaks of; each of its axes has the tensor's size or 1. Channel tags,
known constants and liveness all live in this form, so that a fact about 512 channels of a 1x512x112x112 tensor costs
512 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

__all__ = ["Array", "compress", "expand", "reshape", "varying_axes"]


def compress(array: Array) -> Array:
    """Shrink to size 1 every axis along which `array` is uniform."""
    for axis, size in enumerate(array.shape):
        if size > 1:
            first = array[(slice(None),) * axis + (slice(0, 1),)]
            if (array == first).all():
                array = first
    return array


def varying_axes(array: Array) -> tuple[int, ...]:
    """Axes on which a compact array is not uniform."""
    return tuple(axis for axis, size in enumerate(array.shape) if size != 1)


def expand(array: Array, shape: Sequence[int], axes: Sequence[int] | None = None) -> Array:
    """Give `axes` (default: all) of a compact array their full size in `shape`, as a view."""
    wanted = list(array.shape)
    for axis in range(len(shape)) if axes is None else axes:
        wanted[axis] = shape[axis]
    return np.broadcast_to(array, wanted)


def reshape(array: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """Reshape a compact array of a tensor of shape `before` to that of the same tensor in shape `after`.

    Only the axes that take part in a split or merge with a varying axis are expanded.
    """
    if math.prod(before) == 0:
        return compress(expand(array, before).reshape(tuple(after)))
    wide: list[int] = []
    out: list[int] = []
    for mine, theirs in blocks(before, after):
        if all(array.shape[axis] == 1 for axis in mine):
            wide += [1] * len(mine)
            out += [1] * len(theirs)
        else:
            wide += [before[axis] for axis in mine]
            out += [after[axis] for axis in theirs]
    return compress(np.broadcast_to(array, wide).reshape(out))


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of equal size into the smallest runs of axes with equal products.

    Returns:
        pairs (axes of `before`, axes of `after`), in order, covering all axes of both.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        mine, theirs, left, right = [], [], 1, 1
        if i < len(before):
            mine, left, i = [i], before[i], i + 1
        if j < len(after):
            theirs, right, j = [j], after[j], j + 1
        while left != right:
            if left < right:
                mine.append(i)
                left *= before[i]
                i += 1
            else:
                theirs.append(j)
                right *= after[j]
                j += 1
        pairs.append((mine, theirs))
    return pairs
