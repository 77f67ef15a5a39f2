"""Block-sparse products with a matrix as several small ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from passes.analysis.axis_rules.row import attribute_int

if TYPE_CHECKING:
    from passes.analysis.compact import Array
    from passes.lowerings.tape import Tape
    from passes.lowerings.task import BlockedLayer

__all__ = [
    "emit_product_of_rows",
    "emit_products",
    "emit_smaller_product",
    "refuse_product_of_rows",
    "refuse_products",
    "refuse_smaller_product",
]


def _refuse(task: BlockedLayer) -> str | None:
    if task.layer.kind != "linear":
        return "it is no product with a matrix"
    if task.rank < 2:
        return "it reads a vector"
    if task.has_other_addend:
        return "it adds something else than a constant along its outputs"
    return None


def refuse_smaller_product(task: BlockedLayer) -> str | None:
    """One block: a product with a smaller matrix."""
    return _refuse(task) or ("it has several blocks" if len(task.parts) > 1 else None)


def emit_smaller_product(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """Read the inputs of the block only."""
    (part,) = task.parts
    picked = tape.pick(data, task.axis, part.columns, task.layer.columns)
    return _multiply(task, tape, picked, part.rows, part.columns)


def refuse_products(task: BlockedLayer) -> str | None:
    """Several blocks: a part of the input for each, a product, and a Concat."""
    return _refuse(task) or ("it has one block" if len(task.parts) == 1 else None)


def emit_products(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """A product for each block, and a Concat."""
    made = []
    for part in task.parts:
        picked = tape.pick(data, task.axis, part.columns, task.layer.columns)
        made.append(_multiply(task, tape, picked, part.rows, part.columns))
    joined = tape.write(
        "Concat",
        made,
        "joined",
        attributes=[ir.AttrInt64("axis", task.axis)],
        like=made[0],
        sizes={task.axis: task.layer.rows},
    ).outputs[0]
    places = task.restore([part.rows for part in task.parts])
    if places is None:
        return joined
    return tape.pick(joined, task.axis, places, task.layer.rows)


def refuse_product_of_rows(task: BlockedLayer) -> str | None:
    """The same on the transpose, where taking inputs and putting outputs in order copies whole rows."""
    reason = refuse_products(task)
    if reason is None and task.rank > 3:
        return "it reads a tensor of more than three axes"
    return reason


def emit_product_of_rows(task: BlockedLayer, tape: Tape, data: ir.Value) -> ir.Value:
    """Transpose, take rows, multiply from the left, join, transpose."""
    axis = task.axis - 1
    turned = _turn(task, tape, data, "turned")
    made, order = [], [part.rows for part in task.parts]
    for part in task.parts:
        picked = tape.pick(turned, axis, part.columns, task.layer.columns)
        weight = tape.constant("block_weight", task.take(part.rows, part.columns))
        product = tape.write(
            "MatMul", [weight, picked], "block", like=picked, sizes={axis: int(part.rows.size)}
        ).outputs[0]
        made.append(product)
    joined = tape.write(
        "Concat",
        made,
        "joined",
        attributes=[ir.AttrInt64("axis", axis)],
        like=made[0],
        sizes={axis: task.layer.rows},
    ).outputs[0]
    places = task.restore(order)
    if places is not None:
        joined = tape.pick(joined, axis, places, task.layer.rows)
    back = _turn(task, tape, joined, "turned_back")
    if task.bias is None:
        return back
    bias = tape.constant("bias", task.bias)
    return tape.write("Add", [back, bias], "with_bias", like=back).outputs[0]


def _turn(task: BlockedLayer, tape: Tape, value: ir.Value, hint: str) -> ir.Value:
    """Swap the last two axes."""
    order = [*range(task.rank - 2), task.rank - 1, task.rank - 2]
    node = tape.write(
        "Transpose",
        [value],
        hint,
        attributes=[ir.AttrInt64s("perm", order)],
        like=value,
    )
    out = node.outputs[0]
    if out.shape is not None:
        out.shape = ir.Shape([out.shape[axis] for axis in order])
    return out


def _multiply(
    task: BlockedLayer, tape: Tape, data: ir.Value, rows: Array, columns: Array
) -> ir.Value:
    """The product with a part of the matrix, with the bias of its rows."""
    node = task.layer.node
    block = task.take(rows, columns)
    out = node.outputs[0]
    sizes = {task.axis: int(rows.size)}
    if node.op_type == "MatMul":
        weight = tape.constant("block_weight", block.T)
        return tape.write("MatMul", [data, weight], "block", like=out, sizes=sizes).outputs[0]
    turned = attribute_int(node, "transB", 0)
    inputs = [data, tape.constant("block_weight", block if turned else block.T)]
    bias = task.bias_of(rows)
    if bias is not None:
        inputs.append(tape.constant("block_bias", bias))
    return tape.write(
        "Gemm",
        inputs,
        "block",
        attributes=[ir.AttrInt64("transB", turned)],
        like=out,
        sizes=sizes,
    ).outputs[0]
