"""What a lowering is given: a layer, its blocks, and what the target likes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from passes import weights

if TYPE_CHECKING:
    from passes.analysis.blocks import Blocks, Part
    from passes.analysis.compact import Array
    from passes.analysis.matrices import Layer

__all__ = ["BlockedLayer"]

MOST_GROUPS = 64
"""Groups that unequal blocks may be cut into to be equal."""
MOST_PADDED = 2.0
"""How many times the rows of a layer rows with padding may be."""


@dataclasses.dataclass(frozen=True, eq=False)
class BlockedLayer:
    """A layer and its blocks.

    Attributes:
        layer: the layer.
        blocks: of its matrix.
        multiple: what the target wants channels of each group to be a multiple of.
        rank: of what it reads.
    """

    layer: Layer
    blocks: Blocks
    multiple: int
    rank: int

    @property
    def axis(self) -> int:
        """The axis of channels."""
        return 1 if self.layer.kind == "conv" else self.rank - 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """The blocks."""
        return self.blocks.parts

    @functools.cached_property
    def bias(self) -> Array | None:
        """Of a Conv or Gemm with a constant bias along its outputs, shape `(rows,)`, scaled as Gemm says."""
        inputs = self.layer.node.inputs
        value = inputs[2] if len(inputs) > 2 else None
        held = weights.constant(value)
        if held is None:
            return None
        beta = self._factor("beta")
        vector = np.broadcast_to(held.reshape(-1), (self.layer.rows,))
        return vector if beta == 1.0 else (vector * beta).astype(held.dtype)

    @property
    def has_other_addend(self) -> bool:
        """Whether it adds something else than a constant vector along its outputs."""
        inputs = self.layer.node.inputs
        value = inputs[2] if len(inputs) > 2 else None
        if value is None:
            return False
        held = weights.tensor(value)
        if held is None:
            return True
        shape = tuple(int(size) for size in held.shape.numpy())
        return math.prod(shape) not in {1, self.layer.rows} or (
            math.prod(shape) > 1 and shape[-1] != self.layer.rows
        )

    def _factor(self, name: str) -> float:
        found = self.layer.node.attributes.get(name)
        return 1.0 if found is None else float(found.as_float())

    def take(self, rows: Array, columns: Array) -> Array:
        """A part of the matrix; see `Layer.take`. Scaled as Gemm says, and cut to the kernel's used part."""
        found = self.layer.take(rows, columns)
        alpha = self._factor("alpha") if self.layer.node.op_type == "Gemm" else 1.0
        if alpha != 1.0:
            found = (found * alpha).astype(found.dtype)
        index = (slice(None), slice(None), *(slice(first, stop) for first, stop in self.window))
        return found[index]

    def bias_of(self, rows: Array) -> Array | None:
        """The bias of some rows; 0 for -1."""
        if self.bias is None:
            return None
        found: Array = np.where(rows >= 0, self.bias[rows], np.zeros((), dtype=self.bias.dtype))
        return found

    @property
    def window(self) -> tuple[tuple[int, int], ...]:
        """The part of the kernel that is computed; see `Layer.window`."""
        return self.layer.window

    def convolution(self, groups: int) -> list[ir.Attr]:
        """The attributes of a Conv in the place of the layer's."""
        node = self.layer.node
        kept = [
            attribute
            for name, attribute in node.attributes.items()
            if name not in {"group", "kernel_shape", "pads"}
        ]
        made: list[Any] = [
            ir.AttrInt64("group", groups),
            ir.AttrInt64s("kernel_shape", [stop - first for first, stop in self.window]),
        ]
        if self.layer.says_pads:
            before, after = [], []
            for axis, (first, stop) in enumerate(self.window):
                dilation, start, end = self.layer.spacing(axis)
                before.append(start - first * dilation)
                after.append(end - (self.layer.kernel[axis] - stop) * dilation)
            made.append(ir.AttrInt64s("pads", before + after))
        return [*kept, *made]

    @functools.cached_property
    def even(self) -> tuple[tuple[Array, Array], ...] | None:
        """The blocks as (rows, columns) with equally many of each, -1 where there is nothing; None if they differ too much.

        Blocks with different numbers of rows are cut into pieces of their common divisor.
        """
        counts = [part.rows.size for part in self.parts]
        piece = math.gcd(*counts)
        if piece != max(counts) and (
            piece % self.multiple or self.layer.rows // piece > MOST_GROUPS
        ):
            return None
        return tuple(
            (part.rows[at : at + piece], columns)
            for part, columns in zip(self.parts, self._wide_columns(), strict=True)
            for at in range(0, part.rows.size, piece)
        )

    @functools.cached_property
    def diagonal(self) -> tuple[tuple[Array, Array], ...] | None:
        """Equal blocks in the order of their columns, if those are all columns, side by side; else None."""
        if self.even is None:
            return None
        found = tuple(sorted(self.even, key=lambda pair: int(pair[1][0])))
        columns = np.concatenate([columns for _, columns in found])
        is_all = np.array_equal(columns, np.arange(self.layer.columns))
        return found if is_all else None

    @property
    def is_gathered_for_rows(self) -> bool:
        """Whether rows are in order if blocks stand in the order of their rows, and not in that of their columns."""
        by_rows, by_columns = (
            None if parts is None else self.restore(rows for rows, _ in parts)
            for parts in (self.even, self.diagonal)
        )
        return by_rows is None and by_columns is not None

    @functools.cached_property
    def padded(self) -> tuple[tuple[Array, Array], ...] | None:
        """The same with rows of zeros put in up to a multiple; None if that is as they are, or would double the work."""
        counts = [part.rows.size for part in self.parts]
        height = -(-max(counts) // self.multiple) * self.multiple
        if min(counts) == height or height * len(counts) > MOST_PADDED * self.layer.rows:
            return None
        made = []
        for part, columns in zip(self.parts, self._wide_columns(), strict=True):
            rows = np.full(height, -1, dtype=np.int64)
            rows[: part.rows.size] = part.rows
            made.append((rows, columns))
        return tuple(made)

    def _wide_columns(self) -> list[Array]:
        """The columns of each block, with -1 up to what the widest has, in a multiple.

        Groups that are a multiple run in the runtime's own layout, and zeros cost less than leaving it.
        """
        width = max(part.columns.size for part in self.parts)
        width = -(-width // self.multiple) * self.multiple
        made = []
        for part in self.parts:
            columns = np.full(width, -1, dtype=np.int64)
            columns[: part.columns.size] = part.columns
            made.append(columns)
        return made

    @staticmethod
    def real(columns: Array) -> Array:
        """Columns to read: where there is none, any will do, as its weights are zero."""
        first = columns[0]
        return np.where(columns >= 0, columns, max(int(first), 0))

    def restore(self, rows: Iterable[Array]) -> Array | None:
        """Where each row of the layer lies among rows that were computed in another order; None if they are in order."""
        order = np.concatenate(list(rows))
        kept = np.flatnonzero(order >= 0)
        if order.size == self.layer.rows and (order == np.arange(order.size)).all():
            return None
        place = np.empty(self.layer.rows, dtype=np.int64)
        place[order[kept]] = kept
        return place
