"""The best N:M mask of a weight: in each group the largest magnitudes stay.

Runs at every step of a training, so it is made of a few operations on all layers at once: see `Groups`.

Source: Zhou et al. (2021), equation 3, with groups along the input channels, which TensorRT reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploykit.finder.nm.pattern import Pattern, block_patterns

__all__ = ["Groups", "keep_in_blocks", "keep_in_rows"]

COMPARED = 8
"""Up to groups of so many, comparing all pairs is faster than sorting."""

AT_ONCE = 1 << 16
"""Blocks that are scored at once: more would take gigabytes of scores for a large layer."""


def keep_in_rows(sizes: Tensor, kept: int) -> Tensor:
    """The largest of each row; of equal ones the first.

    Args:
        sizes: float, shape `(rows, M)`: magnitudes.
        kept: N.

    Returns:
        bool, the same shape; True in N places of each row.
    """
    width = sizes.shape[1]
    if width > COMPARED:
        order = sizes.argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(sizes, dtype=torch.bool)
        return chosen.scatter_(1, order[:, :kept], value=True)
    columns = sizes.t().contiguous()
    # How many are before each one in the order of size.
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=sizes.device)
    for first in range(width):
        for second in range(first + 1, width):
            is_before = columns[first] >= columns[second]
            ranks[second] += is_before
            ranks[first] += ~is_before
    return (ranks < kept).t().contiguous()


def keep_in_blocks(sizes: Tensor, patterns: Tensor) -> Tensor:
    """The mask of each block that keeps the most magnitude, among all that have N in each row and column.

    Args:
        sizes: float, shape `(blocks, M * M)`: magnitudes.
        patterns: of their type, shape `(patterns, M * M)`, as `block_patterns` has them.

    Returns:
        bool, the same shape. Exact but for the rounding of sums of M * N magnitudes.
    """
    found = [patterns[(part @ patterns.t()).argmax(dim=1)] for part in sizes.split(AT_ONCE)]
    return torch.cat(found) > 0 if found else sizes > 0


class Groups:
    """Weights of several layers as rows of one matrix, and their masks.

    A row is a group of M consecutive input channels at one output and kernel position, or, of a transposable pattern, a block
    of M outputs by M input channels.

    Args:
        tensors: weights, shape `(outputs, inputs, *kernel)`, whose inputs are a multiple of M, and whose outputs are, of a
            transposable pattern; all of one type and on one device.
        pattern: N:M.
    """

    def __init__(self, tensors: Sequence[Tensor], pattern: Pattern) -> None:
        self._pattern = pattern
        self._shapes = [tuple(each.shape) for each in tensors]
        self.size = sum(each.numel() for each in tensors)
        self._patterns: Tensor | None = None
        if pattern.transposable:
            self._patterns = torch.from_numpy(block_patterns(pattern)).to(
                tensors[0].device, tensors[0].dtype
            )

    @torch.no_grad()
    def choose(self, tensors: Sequence[Tensor]) -> Tensor:
        """The best masks, as rows: bool, shape `(rows, M)` or `(blocks, M * M)`."""
        sizes = torch.cat([self._rows(each) for each in tensors]).abs()
        if self._patterns is None:
            return keep_in_rows(sizes, self._pattern.kept)
        return keep_in_blocks(sizes, self._patterns)

    def spread(self, rows: Tensor) -> list[Tensor]:
        """Rows in the shapes of the weights: views, with inputs last in memory, as `channels_last` has them."""
        width, size = rows.shape[1], self._pattern.group
        found, start = [], 0
        for outputs, inputs, *kernel in self._shapes:
            count = outputs * inputs * _product(kernel) // width
            part = rows[start : start + count]
            start += count
            if self._patterns is None:
                whole = part.reshape(outputs, *kernel, inputs)
            else:
                whole = (
                    part.reshape(outputs // size, _product(kernel), inputs // size, size, size)
                    .permute(0, 3, 1, 2, 4)
                    .reshape(outputs, *kernel, inputs)
                )
            found.append(whole.movedim(-1, 1))
        return found

    def _rows(self, tensor: Tensor) -> Tensor:
        # Of a weight in channels_last this is a view.
        whole = tensor.movedim(1, -1)
        size = self._pattern.group
        if self._patterns is None:
            return whole.reshape(-1, size)
        outputs, inputs, *kernel = tensor.shape
        blocks = whole.reshape(outputs // size, size, _product(kernel), inputs // size, size)
        return blocks.permute(0, 2, 3, 1, 4).reshape(-1, size * size)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
