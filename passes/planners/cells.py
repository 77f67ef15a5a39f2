"""Cells: channels that appear in exactly the same tensors, and in the same group of each grouped convolution.

Every tensor is made of whole cells. With every cell a multiple of some number, every tensor is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array

__all__ = ["find_cells", "grid_rows"]


def find_cells(channels: ChannelMap, members: Array) -> list[Array]:
    """Classes of channels that stand in the same tensors and groups.

    Args:
        channels: the channel map.
        members: bool, shape `(tags,)`, by class: those to look at.

    Returns:
        the classes of each cell, ascending.
    """
    roots, trace = channels.roots, channels.trace
    rows = [
        row
        for grid in trace.tags.grids
        for side in (grid.tags, grid.partner)
        if side is not None
        for row in grid_rows(side)
    ]
    count = len(trace.tags.of) + len(rows)
    seeds = np.random.default_rng(0).integers(1, 2**63 - 1, size=count, dtype=np.int64)
    marks = np.zeros(roots.size, dtype=np.int64)
    # a class's mark is the exclusive or of the numbers of all sets it is in: equal marks, equal sets
    for seed, tags in zip(seeds, [*trace.tags.of.values(), *rows], strict=True):
        marks[np.unique(roots[tags])] ^= seed
    cells: dict[int, list[int]] = {}
    classes = np.unique(roots)
    for root in classes[members[classes]]:
        if root != 0:
            cells.setdefault(int(marks[root]), []).append(int(root))
    return [np.asarray(cell) for cell in cells.values()]


def grid_rows(side: Array) -> Iterator[Array]:
    """The rows of one side of a grid; none where it has but one."""
    if side.ndim > 1:
        yield from side.reshape(-1, side.shape[-1])
