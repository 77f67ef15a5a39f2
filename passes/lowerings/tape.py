"""Writes nodes into a graph: what a lowering emits, with names that are free and shapes that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from passes import weights

if TYPE_CHECKING:
    from passes.analysis.compact import Array

__all__ = ["Tape", "has_long_runs", "is_run"]

FIRST_WITH_SLICE_INPUTS = 10

LONG_RUN = 16
"""Elements of the last axis that a Slice has to take for a Concat of Slices to pay, on average: along that axis ONNX Runtime's Gather
copies one element at a time, its Slice a run at once. Along others Gather copies whole rows."""


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

        A few long runs of the last axis are taken by a Slice each, and a Concat.

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
        can_slice = self.graph.opset_imports.get("", 0) >= FIRST_WITH_SLICE_INPUTS
        is_last = value.shape is not None and axis == len(value.shape) - 1
        if can_slice and is_run(index):
            taken = self._slice(value, axis, index)
        elif can_slice and is_last and has_long_runs(index):
            taken = self.write(
                "Concat",
                [self._slice(value, axis, run) for run in _runs(index)],
                "parts",
                attributes=[ir.AttrInt64("axis", axis)],
                like=value,
                sizes={axis: int(index.size)},
            ).outputs[0]
        else:
            taken = self._gather(value, axis, index)
        self._gathers[key] = taken
        return taken

    def _slice(self, value: ir.Value, axis: int, run: Array) -> ir.Value:
        bounds = [
            self.constant(hint, np.asarray([number], dtype=np.int64))
            for hint, number in (
                ("from", int(run[0])),
                ("to", int(run[-1]) + 1),
                ("axis", axis),
            )
        ]
        return self.write(
            "Slice", [value, *bounds], "part", like=value, sizes={axis: int(run.size)}
        ).outputs[0]

    def _gather(self, value: ir.Value, axis: int, index: Array) -> ir.Value:
        places = self.constant("places", np.asarray(index, dtype=np.int64))
        return self.write(
            "Gather",
            [value, places],
            "gathered",
            attributes=[ir.AttrInt64("axis", axis)],
            like=value,
            sizes={axis: int(index.size)},
        ).outputs[0]

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


def has_long_runs(places: Array) -> bool:
    """Whether positions are in runs that are so long, on average, that a Slice for each is faster than a Gather of the last axis."""
    return bool(places.size >= LONG_RUN * len(_runs(places)))


def _runs(places: Array) -> list[Array]:
    """Positions in pieces that follow one another."""
    return np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
