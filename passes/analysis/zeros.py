"""Where a weight is zero: per row, and per block of taps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.compact import Array

__all__ = ["any_column", "any_row", "nonzero_blocks", "outputs_first"]


def outputs_first(node: ir.Node, kernel: Array) -> Array:
    """View the kernel of a Conv or ConvTranspose in the shape `(outputs, inputs of a group, *taps)`."""
    if node.op_type != "ConvTranspose":
        return kernel
    groups = node.attributes.get_int("group", 1)
    split = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
    return split.reshape(-1, *split.shape[2:])


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


def any_column(weight: Array, rows: Array) -> Array:
    """Tell which entries of the second axis are not all zero in `rows`: bool, shape `(columns,)`."""
    blocks = weight.reshape(*weight.shape[:2], -1)
    if not len(rows):
        return np.zeros(blocks.shape[1], dtype=bool)
    # One row settles nearly every column.
    found: Array = (blocks[rows[0]] != 0).any(axis=1)
    left = np.flatnonzero(~found)
    if len(left):
        found[left] = (blocks[np.ix_(rows, left)] != 0).any(axis=(0, 2))
    return found
