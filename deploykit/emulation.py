"""Runs bfloat16 where there are no kernels for it: every node computes in fp32, and what it makes is rounded to bfloat16.

That is what tensor cores do, which sum up in fp32; the order of sums aside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import one_file

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NOTE", "write_emulated"]

NOTE = (
    "ONNX Runtime does not compute in bfloat16 on a CPU: outputs were found in fp32, with what every node makes rounded to "
    "bfloat16"
)


def write_emulated(path: Path, folder: Path) -> Path | None:
    """Write a model that computes in fp32 what another computes in bfloat16.

    Args:
        path: file of the model.
        folder: an empty folder.

    Returns:
        file of the new model, whose inputs and outputs are fp32 where the other's are bfloat16; None if nothing in the other
        is.
    """
    import onnx_ir as ir

    from passes import shapes

    model = one_file.load(path)
    shapes.infer(model)
    if not emulate(model):
        return None
    written = folder / "emulated.onnx"
    # Weights lie beside it: in fp32 they may be more than one file can hold.
    ir.save(model, written, external_data="emulated.data")
    return written


def emulate(model: ir.Model) -> int:
    """Replace bfloat16 by fp32 that is rounded, in place; returns how many values and constants were."""
    import onnx_ir as ir

    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        values = [*graph.inputs, *graph.initializers.values()]
        count += sum(widen(value) for value in dict.fromkeys(values))
        for node in list(graph):
            if (
                node.op_type == "Cast"
                and node.attributes["to"].as_int() == ir.DataType.BFLOAT16
            ):
                made = node.outputs[0]
                made.type = ir.TensorType(ir.DataType.BFLOAT16)
                count += 1
                round_behind(graph, node, made, is_narrow=True)
                continue
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    count += widen_attribute(node, attribute)
            for made in node.outputs:
                if made.dtype == ir.DataType.BFLOAT16:
                    made.type = ir.TensorType(ir.DataType.FLOAT)
                    count += 1
                    round_behind(graph, node, made, is_narrow=False)
    return count


def widen(value: ir.Value) -> int:
    """Give an input or a constant fp32; returns 1 if it was bfloat16."""
    import onnx_ir as ir

    from passes import weights

    if value.dtype != ir.DataType.BFLOAT16:
        return 0
    held = value.const_value
    if held is None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    else:
        weights.hold(value, ir.Tensor(held.numpy().astype("float32"), name=value.name))
    return 1


def widen_attribute(node: ir.Node, attribute: ir.Attr) -> int:
    """Give a tensor in an attribute, as of a Constant, fp32; returns 1 if it was bfloat16."""
    import onnx_ir as ir

    held = attribute.as_tensor()
    if held.dtype != ir.DataType.BFLOAT16:
        return 0
    tensor = ir.Tensor(held.numpy().astype("float32"), name=held.name)
    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
    return 1


def round_behind(graph: ir.Graph, node: ir.Node, made: ir.Value, *, is_narrow: bool) -> None:
    """Round what a node makes for all who read it; to fp32 only if it is bfloat16 already."""
    import onnx_ir as ir

    readers = [(use.node, use.idx) for use in made.uses()]
    last, steps = made, [] if is_narrow else [ir.DataType.BFLOAT16]
    after = node
    for kind in (*steps, ir.DataType.FLOAT):
        cast = ir.node(
            "Cast", [last], {"to": kind.value}, name=f"{made.name}_in_{kind.name.lower()}"
        )
        last = cast.outputs[0]
        last.name = f"{made.name}_in_{kind.name.lower()}"
        last.type = ir.TensorType(kind)
        last.shape = made.shape
        graph.insert_after(after, cast)
        after = cast
    for reader, at in readers:
        reader.replace_input_with(at, last)
    if made.is_graph_output():
        name = made.name
        made.name = f"{name}_unrounded"
        last.name = name
        for at, output in enumerate(graph.outputs):
            if output is made:
                graph.outputs[at] = last
