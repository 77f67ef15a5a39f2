"""Finds the layers of a model that have dense blocks, and says why the other sparse ones have none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from passes.analysis.blocks import Blocks, find_blocks, fit_blocks, whole_block
from passes.analysis.matrices import Layer, read_layers
from passes.analysis.patterns import Pattern, obeys
from passes.base import Skip

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.compact import Array

__all__ = ["BlockedLayers", "GivenBlock", "GivenBlocks", "find_all_blocks"]

SPARSE = 0.1
"""Share of zeros from which on a layer is looked at: with fewer, blocks would cover nearly all of it."""
SPARSE_GROUPS = 0.9
"""Share of a grouped convolution's weights that blocks may cover."""
FINE: Final = Pattern.parse("2:4")
"""The pattern of which rows of a small weight look alike by chance; its zeros are for sparse kernels, and no order may break it."""
FINE_FILLED: Final = 0.75
"""Share of blocks that is not zero, from which on a weight that obeys it has blocks all the same, of every other input say.
Blocks around zeros that are scattered are little more than half full."""
FINE_ROWS: Final = 4
"""Rows that such blocks have on average, at least: around a single row there is always a full one."""


class GivenBlock(Protocol):
    """A block that is known: rows and columns of the matrix (outputs, inputs * kernel)."""

    @property
    def rows(self) -> Array:
        """Outputs."""
        ...

    @property
    def columns(self) -> Array:
        """Columns."""
        ...


class GivenBlocks(Protocol):
    """The known blocks of an initializer."""

    @property
    def blocks(self) -> Sequence[GivenBlock]:
        """The blocks."""
        ...


@dataclasses.dataclass(frozen=True)
class BlockedLayers:
    """What was found.

    Attributes:
        found: layers with their blocks.
        skips: sparse layers without blocks, and why.
    """

    found: tuple[tuple[Layer, Blocks], ...]
    skips: tuple[Skip, ...]


def find_all_blocks(
    model: ir.Model,
    given: Mapping[str, GivenBlocks] | None = None,
    *,
    among: Container[str] | None = None,
) -> BlockedLayers:
    """Look for blocks in every layer.

    Args:
        model: the model; not changed.
        given: blocks that are known, by initializer. They are taken where the weight still has its shape and is zero outside
            of them; elsewhere its zeros say what its blocks are.
        among: names of the weights to look at; all by default. What is not among them is not read.
    """
    found, skips = [], []
    for layer in read_layers(model):
        if among is not None and layer.name not in among:
            continue
        held = layer.array
        zeros = 1.0 - np.count_nonzero(held) / held.size
        if zeros < SPARSE:
            continue
        blocks = _known(layer, (given or {}).get(layer.name)) or find_blocks(layer.support)
        if isinstance(blocks, Blocks) and layer.groups > 1:
            # What is zero because of the groups saves nothing more.
            blocks = _within_groups(layer, blocks)
        if isinstance(blocks, Blocks):
            blocks = _unless_fine(layer, blocks)
        if not isinstance(blocks, Blocks) and layer.groups == 1 and layer.is_cropped:
            # All filters have the same shape, which is smaller than the kernel.
            blocks = whole_block(layer.rows, layer.columns)
        if isinstance(blocks, Blocks):
            if len(blocks.parts) > 1 or blocks.area < 1.0 or layer.is_cropped:
                found.append((layer, blocks))
        else:
            skips.append(
                Skip(
                    layer.name,
                    f"{zeros:.0%} of it is zero, and it has no dense blocks of whole input channels: {blocks}",
                    "make blocks with the structure 'regroup' and channel-aligned columns, or cut channels",
                )
            )
    return BlockedLayers(tuple(found), tuple(skips))


def _known(layer: Layer, given: GivenBlocks | None) -> Blocks | None:
    if given is None:
        return None
    kernel = math.prod(layer.kernel)
    parts = [
        (np.asarray(block.rows), np.unique(np.asarray(block.columns) // kernel))
        for block in given.blocks
    ]
    fits = all(
        rows.size and columns.size and rows.max() < layer.rows and columns.max() < layer.columns
        for rows, columns in parts
    )
    if not fits or layer.groups > 1:
        return None
    blocks = fit_blocks(parts, layer.support, (layer.rows, layer.columns))
    return blocks if isinstance(blocks, Blocks) else None


def _within_groups(layer: Layer, blocks: Blocks) -> Blocks | str:
    """Blocks of a convolution with groups, if they are less than its groups."""
    if blocks.area * layer.groups > SPARSE_GROUPS:
        return "what is zero in it is zero because of its groups"
    return blocks


def _unless_fine(layer: Layer, blocks: Blocks) -> Blocks | str:
    """Blocks of a weight, if they are more than what zeros that obey 2:4 look like."""
    held = layer.array
    # By input channels, as blocks are found: a kernel may be smaller than the space that it has.
    inside = sum(part.area for part in blocks.parts)
    filled = np.count_nonzero(layer.support) / max(inside, 1)
    is_dense = filled >= FINE_FILLED and layer.rows >= FINE_ROWS * len(blocks.parts)
    if is_dense or held.shape[1] % FINE.group or not obeys(held, 1, FINE):
        return blocks
    if filled >= FINE_FILLED:
        return f"its zeros obey {FINE}, which is for sparse kernels; blocks would be a few rows each"
    return f"its zeros obey {FINE}, which is for sparse kernels; blocks would be {1 - filled:.0%} zeros"
