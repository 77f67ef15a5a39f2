"""Block-sparse convolutions as grouped, split or smaller ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from passes.analysis.compact import Array
    from passes.lowerings.tape import Tape
    from passes.lowerings.task import BlockedLayer

__all__ = [
    "emit_gathered",
    "emit_grouped",
    "emit_padded",
    "emit_smaller",
    "emit_split",
    "refuse_gathered",
    "refuse_grouped",
    "refuse_padded",
    "refuse_smaller",
    "refuse_split",
]


def _refuse(task: BlockedLayer) -> str | None:
    if task.layer.kind != "conv":
        return "it is no convolution"
    return "its bias is not a constant" if task.has_other_addend else None


def refuse_smaller(task: BlockedLayer) -> str | None:
    """One block, or filters that are zero in the same places: a smaller convolution."""
    if (reason := _refuse(task)) is not None:
        return reason
    if task.layer.groups > 1:
        return "it has groups"
    if len(task.parts) > 1:
        return "its rows read different channels"
    return None


def emit_smaller(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """Read the channels of the block only."""
    (part,) = task.parts
    picked = tape.pick(data, 1, part.columns, task.layer.columns)
    return _convolve(task, tape, picked, [(part.rows, part.columns)])


def refuse_grouped(task: BlockedLayer) -> str | None:
    """Blocks that lie along the diagonal: a grouped convolution of what the layer reads anyway."""
    if (reason := _refuse(task)) is not None:
        return reason
    if task.even is None:
        return "its blocks are of different sizes"
    if len(task.even) <= task.layer.groups:
        return "it has as many groups already"
    return None if task.diagonal is not None else "its blocks do not lie side by side"


def emit_grouped(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """A Conv with a group for each block."""
    assert task.diagonal is not None, "refused otherwise"  # noqa: S101
    made = _convolve(task, tape, data, task.diagonal)
    return _restored(task, tape, made, [rows for rows, _ in task.diagonal])


def refuse_gathered(task: BlockedLayer) -> str | None:
    """Blocks of equal size that read any channels: a Gather that repeats those that several read, and a grouped Conv."""
    if (reason := _refuse(task)) is not None:
        return reason
    if len(task.parts) == 1:
        return "it has one block"
    if task.even is None:
        return "its blocks are of different sizes"
    if task.diagonal is not None and not task.is_gathered_for_rows:
        return "it needs no Gather"
    return None


def emit_gathered(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """One Gather, and a Conv with a group for each block."""
    assert task.even is not None, "refused otherwise"  # noqa: S101
    return _gather(task, tape, data, task.even)


def refuse_padded(task: BlockedLayer) -> str | None:
    """Blocks of any size, with rows and columns of zeros put in until they are equal: a grouped Conv between two Gathers."""
    reason = refuse_split(task)
    if reason is None and task.padded is None:
        return "its blocks need no padding, or too much"
    return reason


def emit_padded(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """One Gather, a Conv with a group for each block, and a Gather of the rows that are real."""
    assert task.padded is not None, "refused otherwise"  # noqa: S101
    return _gather(task, tape, data, task.padded)


def refuse_split(task: BlockedLayer) -> str | None:
    """Blocks of any size: a Conv for each, and a Concat."""
    return _refuse(task) or ("it has one block" if len(task.parts) == 1 else None)


def emit_split(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """A Conv for each block, and a Concat."""
    made = []
    for part in task.parts:
        picked = tape.pick(data, 1, part.columns, task.layer.columns)
        made.append(_convolve(task, tape, picked, [(part.rows, part.columns)], "block"))
    node = tape.write(
        "Concat",
        made,
        "joined",
        attributes=[ir.AttrInt64("axis", 1)],
        like=made[0],
        sizes={1: task.layer.rows},
    )
    return _restored(task, tape, node.outputs[0], [part.rows for part in task.parts])


def _gather(
    task: BlockedLayer, tape: Tape, data: ir.Value, parts: tuple[tuple[Array, Array], ...]
) -> ir.Value:
    """A Gather of what each part reads, a Conv with a group for each, and the rows in order."""
    places = np.concatenate([task.real(columns) for _, columns in parts])
    picked = tape.pick(data, 1, places, task.layer.columns)
    made = _convolve(task, tape, picked, parts)
    return _restored(task, tape, made, [rows for rows, _ in parts])


def _convolve(
    task: BlockedLayer,
    tape: Tape,
    data: ir.Value,
    parts: list[tuple[Array, Array]] | tuple[tuple[Array, Array], ...],
    hint: str = "",
) -> ir.Value:
    """A Conv with a group for each part."""
    weight = np.concatenate([task.take(rows, columns) for rows, columns in parts])
    order = np.concatenate([rows for rows, _ in parts])
    inputs: list[ir.Value | None] = [data, tape.constant(f"{hint or 'blocks'}_weight", weight)]
    bias = task.bias_of(order)
    if bias is not None:
        inputs.append(tape.constant(f"{hint or 'blocks'}_bias", bias))
    node = tape.write(
        "Conv",
        inputs,
        hint,
        attributes=task.convolution(len(parts)),
        like=task.layer.node.outputs[0],
        sizes={1: int(order.size)},
    )
    return node.outputs[0]


def _restored(task: BlockedLayer, tape: Tape, made: ir.Value, rows: list[Array]) -> ir.Value:
    """Put the rows in the order that readers expect."""
    places = task.restore(rows)
    if places is None:
        return made
    count = int(sum(part.size for part in rows))
    return tape.pick(made, 1, places, count)
