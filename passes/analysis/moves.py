"""Operators that only move elements, as functions on compact arrays, forwards and backwards.

Forwards carries any fact about the elements of the inputs to the elements of the outputs. Backwards carries a claim
("is needed") about the elements of the outputs to the input elements they are copies of.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from passes.analysis.arguments import argument, normalise
from passes.analysis.compact import reshape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from passes.analysis.arguments import Arguments
    from passes.analysis.compact import Array

__all__ = ["MOVES", "Move", "all_along", "any_along", "find_move", "narrow", "widen"]


class Move(Protocol):
    """What a node does to the elements of its data inputs."""

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """Carry compact arrays of the data inputs to the outputs; new elements (of Pad) get `fill`."""
        ...

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """Carry compact bool arrays of the outputs to the data inputs; copies are joined by "or"."""
        ...


def widen(array: Array, rank: int) -> Array:
    """Put axes of size 1 in front, as broadcasting does."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def all_along(array: Array, axes: Sequence[int]) -> Array:
    """Join a compact bool array by "and" along `axes`, which stay as axes of size 1."""
    found: Array = np.asarray(array.all(axis=tuple(axes), keepdims=True))
    return found


def any_along(array: Array, axes: Sequence[int]) -> Array:
    """Join a compact bool array by "or" along `axes`, which stay as axes of size 1."""
    found: Array = np.asarray(array.any(axis=tuple(axes), keepdims=True))
    return found


def narrow(array: Array, shape: Sequence[int]) -> Array:
    """Undo broadcasting from `shape`: join by "or" what came from the same element.

    Args:
        array: compact, bool, of the broadcast tensor.
        shape: shape of the tensor that was broadcast.
    """
    full = (1,) * (array.ndim - len(shape)) + tuple(shape)
    shared = [axis for axis, size in enumerate(full) if size == 1 and array.shape[axis] > 1]
    joined = any_along(array, shared) if shared else array
    return joined.reshape(joined.shape[len(full) - len(shape) :])


@dataclasses.dataclass(frozen=True)
class Rearrange:
    """Reshape, then transpose, then reshape: covers Reshape, Transpose, DepthToSpace and their kin."""

    before: Sequence[int]
    split: Sequence[int]
    order: Sequence[int]
    after: Sequence[int]

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """See `Move`."""
        del fill
        turned = [self.split[axis] for axis in self.order]
        return [
            reshape(
                reshape(inputs[0], self.before, self.split).transpose(self.order),
                turned,
                self.after,
            )
        ]

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """See `Move`."""
        turned = [self.split[axis] for axis in self.order]
        back = reshape(outputs[0], self.after, turned).transpose(np.argsort(self.order))
        return [reshape(back, self.split, self.before)]


@dataclasses.dataclass(frozen=True)
class Join:
    """Concat along `axis` of inputs with `sizes` elements there."""

    axis: int
    sizes: Sequence[int]

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """See `Move`."""
        del fill
        return [_join(inputs, self.axis, self.sizes)]

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """See `Move`."""
        return _part(outputs[0], self.axis, self.sizes)


@dataclasses.dataclass(frozen=True)
class Part:
    """Split along `axis` into outputs with `sizes` elements there."""

    axis: int
    sizes: Sequence[int]

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """See `Move`."""
        del fill
        return _part(inputs[0], self.axis, self.sizes)

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """See `Move`."""
        return [_join(outputs, self.axis, self.sizes)]


def _at(axis: int, index: Array) -> tuple[Any, ...]:
    """Index one axis of an array."""
    return (*(slice(None),) * axis, index)


@dataclasses.dataclass(frozen=True)
class Pick:
    """Take, along some axes, the elements at given indices; index -1 is a new element.

    Covers Slice, Gather by constants, Pad, Tile and nearest-neighbour Resize.

    Attributes:
        before: shape of the input.
        indices: int64 indices into the input, by axis; other axes are left alone.
        after: shape of the output, if the picked axis is then folded (Gather); else None.
        folded: the picked axis that `after` replaces by several or none.
    """

    before: Sequence[int]
    indices: Mapping[int, Array]
    after: Sequence[int] | None = None
    folded: int = 0

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """See `Move`."""
        array = inputs[0]
        for axis, index in self.indices.items():
            new = index < 0
            if array.shape[axis] == 1 and not new.any():
                continue
            source = np.where(new, 0, index) if array.shape[axis] > 1 else np.zeros_like(index)
            array = array[_at(axis, source)]
            array[_at(axis, new)] = fill
        if self.after is not None:
            array = reshape(array, self._picked(), self.after)
        return [array]

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """See `Move`."""
        array = outputs[0]
        if self.after is not None:
            array = reshape(array, self.after, self._picked())
        for axis, index in self.indices.items():
            shape = list(array.shape)
            shape[axis] = self.before[axis]
            back = np.zeros(shape, dtype=bool)
            kept = np.flatnonzero(index >= 0)
            if array.shape[axis] == 1:
                back[_at(axis, index[kept])] = array
            elif len(np.unique(index[kept])) == len(kept):
                back[_at(axis, index[kept])] = array[_at(axis, kept)]
            else:
                np.logical_or.at(back, _at(axis, index[kept]), array[_at(axis, kept)])
            array = back
        return [array]

    def _picked(self) -> list[int]:
        return [
            len(self.indices[axis]) if axis in self.indices else size
            for axis, size in enumerate(self.before)
        ]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Broadcast to a larger shape: Expand."""

    before: Sequence[int]
    after: Sequence[int]

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """See `Move`."""
        del fill
        return [widen(inputs[0], len(self.after))]

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """See `Move`."""
        return [narrow(outputs[0], self.before)]


def _join(arrays: Sequence[Array], axis: int, sizes: Sequence[int]) -> Array:
    """Concatenate compact arrays, each expanded where any of them varies."""
    wide = [max(array.shape[at] for array in arrays) for at in range(arrays[0].ndim)]
    pieces = []
    for array, size in zip(arrays, sizes, strict=True):
        wide[axis] = size
        pieces.append(np.broadcast_to(array, wide))
    return np.concatenate(pieces, axis=axis)


def _part(array: Array, axis: int, sizes: Sequence[int]) -> list[Array]:
    if array.shape[axis] == 1:
        return [array] * len(sizes)
    ends = list(itertools.accumulate(sizes))
    return [
        array[(slice(None),) * axis + (slice(end - size, end),)]
        for end, size in zip(ends, sizes, strict=True)
    ]


def find_move(node: ir.Node, arguments: Arguments) -> Move | None:
    """Resolve a moving operator.

    Args:
        node: a node whose `op_type` is in `MOVES`, and whose data inputs and outputs have known shapes.
        arguments: where its constants come from.

    Returns:
        the move; None if it depends on something that is not constant.
    """
    return MOVES[node.op_type](node, arguments)


def _shapes(node: ir.Node, arguments: Arguments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    value = node.inputs[0]
    assert value is not None, "the first input of a moving operator is never left out"  # noqa: S101
    return arguments.shape[value], arguments.shape[node.outputs[0]]


def _reshape(node: ir.Node, arguments: Arguments) -> Move | None:
    before, after = _shapes(node, arguments)
    if math.prod(before) != math.prod(after):
        return None
    return Rearrange(before, after, range(len(after)), after)


def _transpose(node: ir.Node, arguments: Arguments) -> Move:
    before, after = _shapes(node, arguments)
    order = node.attributes.get_ints("perm", list(range(len(before)))[::-1])
    return Rearrange(before, before, order, after)


def _depth_to_space(node: ir.Node, arguments: Arguments) -> Move:
    before, after = _shapes(node, arguments)
    batch, channels, *space = before
    block = node.attributes.get_int("blocksize", 1)
    depth = channels // block ** len(space)
    blocks = [block] * len(space)
    rank = len(space)
    if node.attributes.get_string("mode", "DCR") == "CRD":
        split = [batch, depth, *blocks, *space]
        pairs = [(2 + rank + axis, 2 + axis) for axis in range(rank)]
        order = [0, 1, *itertools.chain(*pairs)]
    else:
        split = [batch, *blocks, depth, *space]
        pairs = [(2 + rank + axis, 1 + axis) for axis in range(rank)]
        order = [0, 1 + rank, *itertools.chain(*pairs)]
    return Rearrange(before, split, order, after)


def _space_to_depth(node: ir.Node, arguments: Arguments) -> Move:
    before, after = _shapes(node, arguments)
    batch, channels, *space = before
    block = node.attributes.get_int("blocksize", 1)
    rank = len(space)
    split = [batch, channels, *itertools.chain(*((size // block, block) for size in space))]
    order = [
        0,
        *(3 + 2 * axis for axis in range(rank)),
        1,
        *(2 + 2 * axis for axis in range(rank)),
    ]
    return Rearrange(before, split, order, after)


def _concat(node: ir.Node, arguments: Arguments) -> Move | None:
    after = arguments.shape[node.outputs[0]]
    axis = normalise(node.attributes.get_int("axis", 1), len(after))
    sizes = [arguments.shape[value][axis] for value in node.inputs if value in arguments.shape]
    return Join(axis, sizes) if len(sizes) == len(node.inputs) else None


def _split(node: ir.Node, arguments: Arguments) -> Move | None:
    before, _ = _shapes(node, arguments)
    axis = normalise(node.attributes.get_int("axis", 0), len(before))
    sizes = [arguments.shape[value][axis] for value in node.outputs if value in arguments.shape]
    return Part(axis, sizes) if len(sizes) == len(node.outputs) else None


def _slice(node: ir.Node, arguments: Arguments) -> Move | None:
    before, after = _shapes(node, arguments)
    starts = arguments.setting(node, 1, "starts")
    ends = arguments.setting(node, 2, "ends")
    axes = arguments.setting(node, 3, "axes")
    steps = arguments.setting(node, 4, "steps")
    if axes is None:
        if argument(node, 3) is not None or starts is None:
            return None
        axes = list(range(len(starts)))
    axes = [normalise(axis, len(before)) for axis in axes]
    if starts is None or ends is None or (steps is None and argument(node, 4) is not None):
        return None
    indices = {}
    for axis, start, end, step in zip(
        axes, starts, ends, steps or [1] * len(axes), strict=True
    ):
        # A negative step runs past the front: Python writes that as None, ONNX as a large negative number.
        stop = None if step < 0 and end < -before[axis] else end
        indices[axis] = np.arange(before[axis])[start:stop:step]
        if len(indices[axis]) != after[axis]:
            return None
    return Pick(before, indices)


def _gather(node: ir.Node, arguments: Arguments) -> Move | None:
    before, after = _shapes(node, arguments)
    axis = normalise(node.attributes.get_int("axis", 0), len(before))
    chosen = arguments.constant(argument(node, 1))
    if chosen is None:
        return None
    index = np.ravel(chosen).astype(np.int64)
    return Pick(before, {axis: np.where(index < 0, index + before[axis], index)}, after, axis)


def _pad(node: ir.Node, arguments: Arguments) -> Move | None:
    before, after = _shapes(node, arguments)
    pads = arguments.setting(node, 1, "paddings" if arguments.opset < 2 else "pads")
    chosen = arguments.integers(argument(node, 3))
    if pads is None or (chosen is None and argument(node, 3) is not None):
        return None
    axes = (
        range(len(before))
        if chosen is None
        else [normalise(axis, len(before)) for axis in chosen]
    )
    mode = node.attributes.get_string("mode", "constant")
    indices = {}
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if begin == end == 0:
            continue
        size = before[axis]
        position = np.arange(-begin, size + end)
        if mode == "constant":
            position = np.where((position < 0) | (position >= size), -1, position)
        elif mode == "edge":
            position = np.clip(position, 0, size - 1)
        elif mode == "wrap":
            position = position % size
        elif mode == "reflect" and size > 1:
            folded = position % (2 * size - 2)
            position = np.minimum(folded, 2 * size - 2 - folded)
        else:
            return None
        if len(position) != after[axis]:
            return None
        indices[axis] = position
    return Pick(before, indices)


def _tile(node: ir.Node, arguments: Arguments) -> Move:
    before, after = _shapes(node, arguments)
    indices = {
        axis: np.tile(np.arange(size), after[axis] // size)
        for axis, size in enumerate(before)
        if after[axis] != size and size > 1
    }
    # An axis of size 1 is repeated by leaving it compact.
    return (
        Chain(Pick(before, indices), Spread(before, after))
        if indices
        else Spread(before, after)
    )


@dataclasses.dataclass(frozen=True)
class Chain:
    """One move of a single input after another."""

    first: Move
    second: Move

    def forward(self, inputs: Sequence[Array], fill: float | bool) -> list[Array]:
        """See `Move`."""
        return self.second.forward(self.first.forward(inputs, fill), fill)

    def backward(self, outputs: Sequence[Array]) -> list[Array]:
        """See `Move`."""
        return self.first.backward(self.second.backward(outputs))


def _expand(node: ir.Node, arguments: Arguments) -> Move:
    return Spread(*_shapes(node, arguments))


def _identity(node: ir.Node, arguments: Arguments) -> Move:
    before, after = _shapes(node, arguments)
    return Spread(before, after)


MOVES: Mapping[str, Callable[[ir.Node, Arguments], Move | None]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
