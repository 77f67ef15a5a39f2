"""Layers as matrices: the weights of Conv, Gemm and MatMul, rows first, whatever form they are stored in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.analysis.axis_rules.convolution import is_depthwise
from passes.analysis.axis_rules.row import attribute_int, attribute_ints
from passes.analysis.compact import Array
from passes.analysis.walk import label

__all__ = ["Kind", "Layer", "read_layers"]

Kind: TypeAlias = Literal["conv", "linear"]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer with a constant weight.

    Attributes:
        node: the Conv, Gemm or MatMul.
        kind: "conv", or "linear" for products with a matrix.
        data: what it reads.
        weight: the constant.
        columns: how many inputs the matrix has, all groups together.
    """

    node: ir.Node
    kind: Kind
    data: ir.Value
    weight: ir.Value
    columns: int

    @property
    def name(self) -> str:
        """Name of the weight, by which reports and plans call the layer."""
        return self.weight.name or label(self.node)

    @property
    def groups(self) -> int:
        """Of a convolution; 1 for a product."""
        return attribute_int(self.node, "group", 1) if self.kind == "conv" else 1

    @property
    def stored(self) -> Array:
        """The weight as the node reads it."""
        held = weights.constant(self.weight)
        assert held is not None, "a layer is only made where there is one"  # noqa: S101
        return held

    @functools.cached_property
    def array(self) -> Array:
        """The weight, shape `(rows, columns / groups, *kernel)`."""
        held = self.stored
        if self.kind == "conv" or (
            self.node.op_type == "Gemm" and attribute_int(self.node, "transB", 0)
        ):
            return held
        return held.T

    @property
    def dtype(self) -> ir.DataType:
        """Type of the weight's elements, and of what the layer computes."""
        return ir.DataType.from_numpy(self.array.dtype)

    @property
    def rows(self) -> int:
        """How many outputs the matrix has."""
        return int(self.array.shape[0])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution; empty for a product."""
        return tuple(int(size) for size in self.array.shape[2:])

    @functools.cached_property
    def window(self) -> tuple[tuple[int, int], ...]:
        """The part of the kernel that is not zero in all filters, as (first, stop) for each axis of space.

        All of it where the padding is not said in numbers, or where there would be none left to take it from.
        """
        whole = tuple((0, size) for size in self.kernel)
        if not whole or not self.says_pads:
            return whole
        held = self.array != 0
        found = []
        for axis, size in enumerate(self.kernel):
            others = tuple(other for other in range(held.ndim) if other != axis + 2)
            used = np.flatnonzero(held.any(axis=others))
            first, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, size)
            dilation, before, after = self.spacing(axis)
            if before < first * dilation:
                first = 0
            if after < (size - stop) * dilation:
                stop = size
            found.append((first, stop))
        return tuple(found)

    @property
    def is_cropped(self) -> bool:
        """Whether the window is less than the kernel."""
        return self.window != tuple((0, size) for size in self.kernel)

    @property
    def says_pads(self) -> bool:
        """Whether the padding of a convolution is said in numbers."""
        auto = self.node.attributes.get("auto_pad")
        return auto is None or auto.as_string() == "NOTSET"

    def spacing(self, axis: int) -> tuple[int, int, int]:
        """Dilation, and padding before and after, along an axis of space."""
        rank = len(self.kernel)
        pads = attribute_ints(self.node, "pads") or (0,) * (2 * rank)
        dilations = attribute_ints(self.node, "dilations") or (1,) * rank
        return dilations[axis], pads[axis], pads[rank + axis]

    @functools.cached_property
    def support(self) -> Array:
        """Bool, shape `(rows, columns)`: which inputs an output reads."""
        held = self.array != 0
        read: Array = held.any(axis=tuple(range(2, held.ndim))) if held.ndim > 2 else held
        if self.groups == 1:
            return read
        wide = np.zeros((self.rows, self.columns), dtype=bool)
        size, per_group = read.shape[1], self.rows // self.groups
        for group in range(self.groups):
            lines = slice(group * per_group, (group + 1) * per_group)
            wide[lines, group * size : (group + 1) * size] = read[lines]
        return wide

    def take(self, rows: Array, columns: Array) -> Array:
        """A part of the matrix, shape `(len(rows), len(columns), *kernel)`; zero where a row does not read a column.

        Args:
            rows: positions of outputs; -1 gives a row of zeros.
            columns: positions of inputs; -1 gives a column of zeros.
        """
        size = self.array.shape[1]
        per_group = self.rows // self.groups
        first = (rows // per_group * size)[:, None] if self.groups > 1 else 0
        within = columns[None, :] - first
        is_there = (
            (within >= 0) & (within < size) & (rows >= 0)[:, None] & (columns >= 0)[None, :]
        )
        found = self.array[rows[:, None], np.where(is_there, within, 0)]
        return np.where(
            is_there.reshape(is_there.shape + (1,) * len(self.kernel)),
            found,
            np.zeros((), dtype=found.dtype),
        )


def read_layers(model: ir.Model) -> Iterator[Layer]:
    """The layers of the main graph whose weights can be read as matrices.

    Left out: depthwise convolutions, whose matrix has one input a row; weights that are not constant, not floats, or
    quantized; a product whose constant is not a matrix on the right.
    """
    for node in model.graph:
        if node.domain not in {"", "ai.onnx"} or len(node.inputs) < 2:
            continue
        data, weight = node.inputs[:2]
        held = weights.tensor(weight)
        if data is None or weight is None or held is None or weights.is_constant(data):
            continue
        if not held.dtype.is_floating_point():
            continue
        shape = tuple(int(size) for size in held.shape.numpy())
        if node.op_type == "Conv" and len(shape) > 2:
            groups = attribute_int(node, "group", 1)
            if not is_depthwise(node, shape[1] * groups, shape[0]) and min(shape) > 0:
                yield Layer(node, "conv", data, weight, shape[1] * groups)
        elif node.op_type in {"Gemm", "MatMul"} and len(shape) == 2 and min(shape) > 0:
            if node.op_type == "Gemm" and attribute_int(node, "transA", 0):
                continue
            side = 1 if node.op_type == "Gemm" and attribute_int(node, "transB", 0) else 0
            yield Layer(node, "linear", data, weight, shape[side])
