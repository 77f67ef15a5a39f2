"""A layer by itself, in each of its forms, as small models that can be timed against each other."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.lowerings import DENSE, find_lowering, fitting
from passes.lowerings.tape import Tape, has_long_runs, is_run

if TYPE_CHECKING:
    from passes.analysis.compact import Array
    from passes.lowerings.task import BlockedLayer
    from passes.targets import Target

__all__ = ["Case"]

OPSET = 13
INPUT, OUTPUT = "data", "result"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A layer whose form is to be chosen.

    Attributes:
        task: the layer and its blocks.
        shape: of what it reads.
        target: what the model is made for.
    """

    task: BlockedLayer
    shape: tuple[int, ...]
    target: Target

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The forms, the layer as it is first, then the simplest."""
        return (DENSE, *(each.name for each in fitting(self.task)))

    @functools.cached_property
    def key(self) -> str:
        """Equal for layers whose forms take the same time: sizes, attributes and the sizes and places of blocks count."""
        task = self.task
        attributes = sorted(str(each) for each in task.layer.node.attributes.values())
        parts = sorted(
            (
                *(part.rows.size, is_run(part.rows), has_long_runs(part.rows)),
                *(part.columns.size, is_run(part.columns), has_long_runs(part.columns)),
            )
            for part in task.parts
        )
        text = repr(
            (
                task.layer.node.op_type,
                str(task.layer.array.dtype),
                task.layer.array.shape,
                self.shape,
                attributes,
                parts,
                self.names,
                task.window,
                task.bias is not None,
                self.target.name,
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def build(self, name: str) -> ir.Model:
        """The layer in one of its forms, as a model with the input `data`.

        A convolution stands between two poolings that change nothing: its neighbours in a network work in the layout that
        the runtime prefers, and what leaves that layout pays for it.

        Args:
            name: one of `names`.
        """
        task = self.task
        layer = task.layer
        source = ir.Value(
            name=INPUT,
            type=ir.TensorType(layer.dtype),
            shape=ir.Shape(self.shape),
        )
        graph = ir.Graph(
            [source], [], nodes=[], opset_imports={"": OPSET}, name=f"{name}_alone"
        )
        tape = Tape(graph, "layer", layer.dtype)
        is_conv = layer.kind == "conv"
        data = _still(tape, source, len(layer.kernel), "before") if is_conv else source
        if name == DENSE:
            inputs: list[ir.Value | None] = [data, tape.constant("weight", layer.stored)]
            for value in layer.node.inputs[2:]:
                held = weights.constant(value)
                inputs.append(None if held is None else tape.constant("addend", held))
            node = tape.write(
                layer.node.op_type,
                inputs,
                "dense",
                attributes=list(layer.node.attributes.values()),
                like=source,
            )
            node.outputs[0].shape = None
            made = node.outputs[0]
        else:
            made = find_lowering(name).emit(task, tape, data)
        if is_conv:
            made = _still(tape, made, len(layer.kernel), "after")
        made.shape = ir.Shape([None] * task.rank)
        made.name = OUTPUT
        graph.outputs.append(made)
        return ir.Model(graph, ir_version=8)

    def feeds(self) -> dict[str, Array]:
        """An input of it."""
        dice = np.random.default_rng(0)
        return {INPUT: dice.standard_normal(self.shape).astype(self.task.layer.array.dtype)}


def _still(tape: Tape, value: ir.Value, rank: int, hint: str) -> ir.Value:
    """A pooling over single elements."""
    return tape.write(
        "MaxPool",
        [value],
        hint,
        attributes=[ir.AttrInt64s("kernel_shape", [1] * rank)],
        like=value,
    ).outputs[0]
