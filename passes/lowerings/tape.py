"""Writes nodes into a graph: what a lowering emits, with names that are free and shapes that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from passes import weights

if TYPE_CHECKING:
    from passes.analysis.compact import Array

__all__ = ["Tape", "is_run"]

FIRST_WITH_SLICE_INPUTS = 10


class Tape:
    """A place in a graph where nodes are written.

    Args:
        graph: the graph.
        label: what names begin with.
        kind: type of the elements of all that is written.
        before: the node that what is written comes in front of; None: at the end.
        gathers: gathers that are there already, by what they take: one serves all who need it.
    """

    def __init__(
        self,
        graph: ir.Graph,
        label: str,
        kind: ir.DataType,
        before: ir.Node | None = None,
        gathers: dict[tuple[ir.Value, int, bytes], ir.Value] | None = None,
    ) -> None:
        self.graph = graph
        self.label = label
        self.kind = kind
        self._before = before
        self._gathers = {} if gathers is None else gathers
        self._values = weights.value_names(graph)
        self._nodes = {node.name for node in graph}

    def constant(self, hint: str, array: Array) -> ir.Value:
        """A new initializer."""
        value = weights.new_initializer(
            self.graph, f"{self.label}_{hint}", np.ascontiguousarray(array)
        )
        self._values.add(value.name)
        return value

    def write(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        hint: str,
        *,
        attributes: Sequence[ir.Attr] = (),
        like: ir.Value,
        sizes: dict[int, int] | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """Write a node.

        Args:
            op_type: of the standard domain.
            inputs: what it reads.
            hint: what it is called. Nothing: it does what the layer did, and has its name.
            attributes: of the node.
            like: a value whose sizes its outputs have, but for `sizes`.
            sizes: sizes of its outputs, by axis.
            outputs: how many it has.
        """
        name = self._free(f"{self.label}_{hint}" if hint else self.label)
        made = [
            ir.Value(name=name if outputs == 1 else self._free(f"{name}_{index}"))
            for index in range(outputs)
        ]
        for value in made:
            value.type = ir.TensorType(self.kind)
            if like.shape is not None:
                value.shape = ir.Shape(
                    [(sizes or {}).get(axis, size) for axis, size in enumerate(like.shape)]
                )
        node = ir.Node("", op_type, inputs, attributes, outputs=made, name=name)
        self._nodes.add(name)
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, [node])
        return node

    def pick(self, value: ir.Value, axis: int, index: Array, size: int) -> ir.Value:
        """Take elements along an axis: nothing where that is all of them in order, else a Slice or a Gather.

        Args:
            value: what is taken from.
            axis: from 0.
            index: positions, with repetitions perhaps.
            size: of the axis.
        """
        if index.size == size and (index == np.arange(size)).all():
            return value
        key = (value, axis, np.asarray(index, dtype=np.int64).tobytes())
        if key in self._gathers:
            return self._gathers[key]
        if is_run(index) and self.graph.opset_imports.get("", 0) >= FIRST_WITH_SLICE_INPUTS:
            bounds = [
                self.constant(hint, np.asarray([number], dtype=np.int64))
                for hint, number in (
                    ("from", int(index[0])),
                    ("to", int(index[-1]) + 1),
                    ("axis", axis),
                )
            ]
            node = self.write(
                "Slice", [value, *bounds], "part", like=value, sizes={axis: int(index.size)}
            )
        else:
            places = self.constant("places", np.asarray(index, dtype=np.int64))
            node = self.write(
                "Gather",
                [value, places],
                "gathered",
                attributes=[ir.AttrInt64("axis", axis)],
                like=value,
                sizes={axis: int(index.size)},
            )
        self._gathers[key] = node.outputs[0]
        return node.outputs[0]

    def _free(self, name: str) -> str:
        """A name that neither a value nor a node has."""
        number, free = 0, name
        while free in self._values or free in self._nodes:
            number += 1
            free = f"{name}_{number}"
        self._values.add(free)
        return free


def is_run(places: Array) -> bool:
    """Whether positions follow one another, so that a Slice can take them."""
    return bool((np.diff(places) == 1).all())
