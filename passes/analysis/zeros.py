"""Where a weight is zero: per row, and per block of taps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from passes.analysis.compact import Array

__all__ = ["any_column", "any_row", "nonzero_blocks"]


def any_row(weight: Array) -> Array:
    """Tell which entries of the first axis are not all zero: bool, shape `(rows,)`."""
    flat = weight.reshape(len(weight), -1)
    found: Array = (flat != 0).any(axis=1)
    return found


def nonzero_blocks(weight: Array) -> Array:
    """Tell which pairs of the first two axes are not all zero: bool, shape `(rows, columns)`."""
    blocks = weight.reshape(*weight.shape[:2], -1)
    # Reducing over the few taps of a kernel is slow; nearly every block is settled by its middle tap.
    found: Array = blocks[:, :, blocks.shape[2] // 2] != 0
    if blocks.shape[2] > 1:
        left = np.nonzero(~found)
        found[left] = (blocks[left] != 0).any(axis=1)
    return found


def any_column(weight: Array) -> Array:
    """Tell which entries of the second axis are not all zero: bool, shape `(columns,)`."""
    blocks = weight.reshape(*weight.shape[:2], -1)
    if not len(blocks):
        return np.zeros(blocks.shape[1], dtype=bool)
    # One row settles nearly every column.
    found: Array = (blocks[0] != 0).any(axis=1)
    left = np.flatnonzero(~found)
    if len(left):
        found[left] = (blocks[:, left] != 0).any(axis=(0, 2))
    return found
