"""Layers with dense blocks: what they are, what `group-blocks` made of them, and small pictures of their weights.

Blocks are those of the model that `group-blocks` is given, which is what exact removal leaves: dead channels are no part of
them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from deploykit.candidates import run_steps
from deploykit.report.records import BlockLayer, BlockOutline, Layer, PassRecord, Skip
from deploykit.ticket_layers import draw

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.candidates import Step
    from passes.analysis.blocks import Blocks
    from passes.analysis.matrices import Layer as Matrix
    from passes.planners.block_finding import GivenBlocks

__all__ = ["find_block_layers", "inspect_blocks", "order_columns"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LOWERING: Final = "group-blocks"
"""The pass that computes layers in other forms."""
ABOUT_BLOCKS: Final = ("permute-channels", LOWERING)
"""Passes that put blocks elsewhere, or lower them."""

MOST_LAYERS = 6
"""Layers with a picture."""
ROWS, COLUMNS = 96, 96
"""A larger picture shows means of its cells."""
MOST_OUTLINES = 48
"""Rectangles that a picture outlines; more would hide what they are drawn around."""
FAINTEST = 0.25
"""How dark the smallest weight is drawn that is not zero: a zero is seen as one."""


def inspect_blocks(
    source: ir.Model,
    steps: Sequence[Step],
    layers: Sequence[Layer],
    passes: Sequence[PassRecord],
    *,
    result: ir.Model,
    given: Mapping[str, GivenBlocks] | None = None,
) -> tuple[tuple[BlockLayer, ...], tuple[Skip, ...]]:
    """Look for blocks in the layers that have zeros; layers without are not read.

    Args:
        source: the model that the steps were carried out on; unchanged.
        steps: what was done.
        layers: all layers of `source`, with their shares of zeros.
        passes: what the steps reported.
        result: the model that they made; unchanged.
        given: blocks that are known, by initializer of `source`.

    Returns:
        layers with blocks, without pictures, and why other sparse layers have none.
    """
    from passes.planners.block_finding import SPARSE, find_all_blocks

    sparse = {layer.weight for layer in layers if _most_zeros(layer) >= SPARSE}
    # The order of channels says nothing of the sizes of blocks, so that the result will do where it still has them.
    is_lowered = any(layer.form is not None for layer in layers)
    model = _before_blocks(source, steps) if is_lowered else result
    found = find_all_blocks(model, given, among=sparse)
    outcomes = _outcomes(layers, passes)
    # A weight that several layers share is told once.
    blocked = {matrix.name: (matrix, blocks) for matrix, blocks in found.found}
    skips = {skip.subject: Skip(skip.subject, skip.reason, skip.advice) for skip in found.skips}
    return (
        tuple(
            _described(matrix, blocks, outcomes.get(name))
            for name, (matrix, blocks) in blocked.items()
        ),
        tuple(skip for name, skip in skips.items() if name not in blocked),
    )


def find_block_layers(
    source: ir.Model,
    steps: Sequence[Step],
    layers: Sequence[Layer],
    passes: Sequence[PassRecord],
    *,
    given: Mapping[str, GivenBlocks] | None = None,
) -> tuple[BlockLayer, ...]:
    """The layers in which `group-blocks` found blocks, with pictures of those of which most is spared.

    Args:
        source: the original; unchanged.
        steps: how the form that is reported was made of it.
        layers: all layers of `source`, and what became of them.
        passes: what was reported, by `group-blocks` too if it took part in a form that was rejected.
        given: blocks that are known, by initializer of `source`.

    Returns:
        the layers in graph order; none if `group-blocks` took no part, or found no blocks.
    """
    from passes.planners.block_finding import find_all_blocks

    outcomes = _outcomes(layers, passes)
    if not outcomes:
        return ()
    found = find_all_blocks(_before_blocks(source, steps), given, among=outcomes).found
    blocked = {matrix.name: (matrix, blocks) for matrix, blocks in found}
    drawn = sorted(blocked, key=lambda name: -_spared(*blocked[name]))[:MOST_LAYERS]
    return tuple(
        _described(matrix, blocks, outcomes[name], is_drawn=name in drawn)
        for name, (matrix, blocks) in blocked.items()
    )


def _most_zeros(layer: Layer) -> float:
    """The largest share of zeros that a layer can have once dead channels are gone."""
    before = math.prod(layer.shape_before)
    left = before if layer.shape_after is None else math.prod(layer.shape_after)
    return layer.zeros * before / max(1, min(left, before))


def _outcomes(
    layers: Sequence[Layer], passes: Sequence[PassRecord]
) -> dict[str, tuple[str, str]]:
    """The form and the reason of each weight that `group-blocks` spoke of, those that have no blocks among them."""
    from passes.lowerings import DENSE

    forms = {layer.weight: layer.form for layer in layers}
    found = {}
    for record in passes:
        if record.name != LOWERING:
            continue
        for skip in record.skipped:
            found[skip.subject] = DENSE, skip.reason
        for change in record.changes:
            # The sizes of the blocks come before the reason in both texts, and are told anyway.
            form = (forms.get(change.subject) or "").partition(",")[0]
            found[change.subject] = form, change.what.partition(": ")[2]
    return found


def _before_blocks(source: ir.Model, steps: Sequence[Step]) -> ir.Model:
    """The model as the first pass about blocks was given it."""
    model = source.clone()
    first = next((at for at, step in enumerate(steps) if step.name in ABOUT_BLOCKS), len(steps))
    run_steps(model, steps[:first])
    return model


def _spared(matrix: Matrix, blocks: Blocks) -> int:
    """Weights that need not be computed with."""
    return matrix.array.size - sum(part.area for part in blocks.parts) * math.prod(
        matrix.kernel
    )


def _described(
    matrix: Matrix,
    blocks: Blocks,
    outcome: tuple[str, str] | None,
    *,
    is_drawn: bool = False,
) -> BlockLayer:
    form, reason = outcome or ("", "")
    text, used = str(blocks), [stop - first for first, stop in matrix.window]
    if matrix.is_cropped:
        text += f", {_sizes(used)} of the {_sizes(matrix.kernel)} kernel"
    layer = BlockLayer(
        weight=matrix.name,
        node=matrix.node.name or "",
        op_type=matrix.node.op_type,
        outputs=matrix.rows,
        inputs=matrix.columns,
        kernel=matrix.kernel,
        blocks=tuple((part.rows.size, part.columns.size) for part in blocks.parts),
        share=blocks.area * math.prod(used) / math.prod(matrix.kernel),
        text=text,
        form=form,
        # Blocks and share are told beside it.
        reason=reason.replace(f", with blocks of {blocks} ({blocks.area:.0%} of it)", ""),
    )
    if not is_drawn:
        return layer
    columns = order_columns(blocks)
    darkness = _darkness(matrix)
    return dataclasses.replace(
        layer,
        picture=draw(darkness, ROWS, COLUMNS),
        picture_ordered=draw(darkness[np.ix_(blocks.order, columns)], ROWS, COLUMNS),
        outlines=tuple(_outlines(blocks, columns)),
    )


def _sizes(kernel: Sequence[int]) -> str:
    return "x".join(map(str, kernel))


def _darkness(matrix: Matrix) -> Array:
    """How dark each weight of the matrix is drawn, 0 to 1: mean magnitudes of kernels."""
    held = np.abs(matrix.take(np.arange(matrix.rows), np.arange(matrix.columns)))
    means = held.reshape(matrix.rows, matrix.columns, -1).mean(axis=2, dtype=np.float64)
    used = means > 0
    # A few large weights would leave all others pale.
    scale = float(np.percentile(means[used], 95)) if used.any() else 1.0
    found: Array = np.where(used, FAINTEST + (1 - FAINTEST) * np.minimum(means / scale, 1), 0.0)
    return found


def order_columns(blocks: Blocks) -> Array:
    """The columns in an order in which those of each block lie in few runs: in one, where blocks share none.

    Columns that the same blocks read stand together, and these sets stand as in a Gray code, in which neighbours differ in
    little. Columns that no block reads come last.
    """
    read = np.zeros((len(blocks.parts), blocks.shape[1]), dtype=bool)
    for at, part in enumerate(blocks.parts):
        read[at, part.columns] = True
    places = np.bitwise_xor.accumulate(read, axis=0)
    # The last key counts most; columns that are alike keep their order.
    order: Array = np.lexsort(~places[::-1])
    return order


def _outlines(blocks: Blocks, columns: Array) -> list[BlockOutline]:
    """Where blocks lie once rows and columns are in order; nothing if they lie in too many pieces to be seen."""
    place = np.argsort(columns)
    found, top = [], 0
    for part in blocks.parts:
        at = np.sort(place[part.columns])
        breaks = np.flatnonzero(np.diff(at) > 1)
        starts, stops = at[np.append(0, breaks + 1)], at[np.append(breaks, at.size - 1)] + 1
        found += [
            BlockOutline(top, int(start), part.rows.size, int(stop - start))
            for start, stop in zip(starts, stops, strict=True)
        ]
        top += part.rows.size
    return found if len(found) <= MOST_OUTLINES else []
