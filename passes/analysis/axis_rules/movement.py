"""Ops that move data without computing: a channel goes where its data goes, and constants that hold sizes follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis import compact
from passes.analysis.axis_rules.row import (
    Pins,
    attribute_int,
    attribute_ints,
    data,
    input_at,
    normalized,
)
from passes.analysis.compact import Array, varying_axes
from passes.analysis.edits import Patch, SetAttribute, SetInput, SplitBySizes
from passes.analysis.tags import Grid
from passes.analysis.walk import label

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.walk import Replay, Shape, Trace

__all__ = [
    "Concat",
    "DepthToSpace",
    "Expand",
    "Gather",
    "Pad",
    "Reshape",
    "ShapeOf",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Tile",
    "Transpose",
]

UNKNOWN_SIZES = Pins("the sizes that '{op}' works with are only known at run time")


class Transpose:
    """Axes are permuted."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Move the axes."""
        tags = t.get(data(node))
        t.set(node, node.outputs[0], tags.transpose(permutation(node, tags.ndim)))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Move the axes."""
        if r.is_changed(data(node)):
            tags = r.new(data(node))
            r.set(node, node.outputs[0], tags.transpose(permutation(node, tags.ndim)))


def permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The axes of a Transpose's input in the order of its output."""
    return attribute_ints(node, "perm") or tuple(reversed(range(rank)))


class Reshape:
    """Axes are split and merged: also Flatten, Squeeze and Unsqueeze.

    Where an axis of channels is split, the parts must stay equally long.
    """

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Split and merge, and write down the rows that a split makes."""
        value, out = data(node), node.outputs[0]
        # A target of fixed sizes fits some sizes of an open axis only, and not the one that stands in for them.
        fits = math.prod(t.shape(value)) == math.prod(t.shape(out))
        if not fits or (node.op_type == "Reshape" and len(node.inputs) < 2):
            UNKNOWN_SIZES.trace(node, t)
            return
        after = compact.reshape(t.get(value), t.shape(value), t.shape(out))
        t.set(node, out, after)
        keep_regular(node, t, after)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Split and merge what is left; an explicit shape gets the new sizes."""
        value, out = data(node), node.outputs[0]
        if not r.is_changed(value):
            return
        tags, shape, old_in, old_out = r.new(value), r.shape(value), r.old(value), r.old(out)
        target = list(r.old_shape(out))
        wide, moved = [1] * len(shape), [1] * len(target)
        for mine, theirs in compact.blocks(r.old_shape(value), r.old_shape(out)):
            if all(old_in.shape[axis] == 1 for axis in mine):
                continue
            *outer, inner = (axis for axis in theirs if old_out.shape[axis] > 1)
            for axis, count in zip(outer, alive(r, node, mine, theirs, outer), strict=True):
                target[axis] = count
            total = math.prod(shape[axis] for axis in mine)
            rest = math.prod(target[axis] for axis in theirs if axis != inner)
            r.require(
                node,
                rest and total % rest == 0,
                tags,
                "the parts of the reshaped axis would differ in length",
            )
            target[inner] = total // rest
            for axis in mine:
                wide[axis] = shape[axis]
            for axis in theirs:
                moved[axis] = target[axis]
        after = np.broadcast_to(tags, wide).reshape(moved)
        rows_intact(r, node, old_out, after)
        r.set(node, out, after)
        if node.op_type == "Reshape":
            self.resize(node, r)

    def resize(self, node: ir.Node, r: Replay) -> None:
        """Spell the new sizes out where the old ones were spelled out."""
        out = node.outputs[0]
        before, after = r.shape(data(node)), r.shape(out)
        numbers = r.trace.ints(node.inputs[1])
        if numbers is None:
            r.require(
                node,
                after in (before, r.old_shape(out)),
                r.new(out),
                "its sizes are not known",
            )
            return
        copies = not attribute_int(node, "allowzero", 0)
        asked = [
            before[axis] if number == 0 and copies else number
            for axis, number in enumerate(numbers)
        ]
        r.resize_input(
            node,
            1,
            {axis: size for axis, size in enumerate(after) if asked[axis] not in {-1, size}},
        )


def alive(
    r: Replay, node: ir.Node, mine: list[int], theirs: list[int], outer: list[int]
) -> list[int]:
    """How many indices are left on the `outer` axes of a reshaped block."""
    if not outer:
        return []
    value, out = data(node), node.outputs[0]
    before, shape = r.old_shape(value), r.shape(value)
    old = np.broadcast_to(block_of(r.old(value), mine), [before[axis] for axis in mine])
    new = np.broadcast_to(block_of(r.new(value), mine), [shape[axis] for axis in mine])
    sizes = [r.old_shape(out)[axis] for axis in theirs]
    where = np.unravel_index(r.origins(node, old.ravel(), new.ravel()), sizes)
    return [np.unique(where[theirs.index(axis)]).size for axis in outer]


def block_of(tags: Array, axes: list[int]) -> Array:
    """The part of a compact array along `axes`, at the first index of the others."""
    index = tuple(slice(None) if axis in axes else 0 for axis in range(tags.ndim))
    return tags[index]


def rows_intact(r: Replay, node: ir.Node, old: Array, new: Array) -> None:
    """Check that no row of a reshaped tensor mixes channels of two old rows."""
    axes = varying_axes(old)
    if len(axes) < 2:
        return
    index = tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(new.ndim))
    where = np.unravel_index(r.origins(node, old, new[index]), old.shape)
    for axis in axes[:-1]:
        others = tuple(other for other in range(new.ndim) if other > axis)
        spread = where[axis].max(axis=others) != where[axis].min(axis=others)
        r.require(node, not spread.any(), new, "a row would mix channels of two rows")


def keep_regular(node: ir.Node, t: Trace, tags: Array) -> None:
    """Where channels lie along several axes, rows must stay equally long."""
    if len(varying_axes(tags)) > 1:
        rows = tags.reshape([size for size in tags.shape if size > 1])
        t.tags.grids.append(Grid(rows, None, label(node), "part"))


class Concat:
    """Channels of several tensors stand behind one another; or the tensors themselves do, along an axis that is not theirs.

    Of the latter, constants (a class token in front of patches) take what channels the others have.
    """

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Concatenate."""
        values = [value for value in node.inputs if value is not None]
        shapes = [t.shape(value) for value in values]
        tags = self.completed(node, t, [t.get(value) for value in values])
        self.tie(node, t, tags, shapes)
        t.set(node, node.outputs[0], concatenate(node, tags, shapes))

    def tie(self, node: ir.Node, t: Trace, tags: list[Array], shapes: list[Shape]) -> None:
        """Tie what lies along other axes than the one that grows: there the operands must match."""
        axis = normalized(attribute_int(node, "axis", 1), len(shapes[0]))
        others = sorted({other for array in tags for other in varying_axes(array)} - {axis})
        if not others:
            return
        if all(array.shape[axis] == 1 for array in tags):
            for array in tags[1:]:
                t.unite(node, tags[0], array)
            return
        if len(others) > 1:
            for array in tags:
                t.pin(array, node, "'Concat' joins channels that lie along several axes")
            return
        rows = [
            np.moveaxis(compact.expand(array, shape, [axis, others[0]]), others[0], 0)
            for array, shape in zip(tags, shapes, strict=True)
        ]
        sides = [row.reshape(row.shape[0], -1) for row in rows]
        for side in sides[1:]:
            t.tags.grids.append(Grid(sides[0], side, label(node), "part"))

    def completed(self, node: ir.Node, t: Trace, tags: list[Array]) -> list[Array]:
        """The tags of the operands, before or after a plan, with those that constants take."""
        axis = normalized(attribute_int(node, "axis", 1), tags[0].ndim)
        live = [
            array
            for value, array in zip(node.inputs, tags, strict=True)
            if not t.is_weight(value)
        ]
        if not live or any(array.shape[axis] > 1 for array in live):
            return tags
        if any(varying_axes(array) != varying_axes(live[0]) for array in live):
            return tags
        return [
            live[0] if t.is_weight(value) else array
            for value, array in zip(node.inputs, tags, strict=True)
        ]

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Concatenate."""
        values = [value for value in node.inputs if value is not None]
        if not any(r.is_changed(value) for value in values):
            return
        shapes = [r.shape(value) for value in values]
        axis = normalized(attribute_int(node, "axis", 1), len(shapes[0]))
        before = self.completed(node, r.trace, [r.old(value) for value in values])
        tags = self.completed(node, r.trace, [r.new(value) for value in values])
        takes = [
            index
            for index, value in enumerate(values)
            if r.trace.is_weight(value) and varying_axes(before[index])
        ]
        everything = np.concatenate([array.ravel() for array in tags])
        for other in range(len(shapes[0])):
            if other == axis:
                continue
            places = {
                tuple(along(r, node, value, other))
                for index, value in enumerate(values)
                if index not in takes
            }
            r.require(node, len(places) == 1, everything, "its operands would no longer match")
        for index in takes:
            r.select(node, index, before[index], tags[index], shapes[index])
        r.set(node, node.outputs[0], concatenate(node, tags, shapes))


def concatenate(node: ir.Node, tags: list[Array], shapes: list[Shape]) -> Array:
    """Concatenate compact arrays."""
    axis = normalized(attribute_int(node, "axis", 1), len(shapes[0]))
    wide = {other for array in tags for other in varying_axes(array)} | {axis}
    return np.concatenate(
        [
            compact.expand(array, shape, sorted(wide))
            for array, shape in zip(tags, shapes, strict=True)
        ],
        axis,
    )


class Split:
    """A tensor is cut into parts along an axis."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Slice the tags."""
        if not all(t.known(out) for out in node.outputs):
            UNKNOWN_SIZES.trace(node, t)
            return
        tags = t.get(data(node))
        axis = normalized(attribute_int(node, "axis", 0), tags.ndim)
        stops = accumulate(t.shape(out)[axis] for out in node.outputs)
        for out, stop in zip(node.outputs, stops, strict=True):
            t.set(node, out, sliced(tags, axis, stop - t.shape(out)[axis], stop))
            keep_regular(node, t, t.get(out))
        if varying_axes(tags) == (axis,):
            t.tags.parts.append(([t.get(out).ravel() for out in node.outputs], label(node)))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Slice what is left, at the places where it came from."""
        value = data(node)
        if not r.is_changed(value):
            return
        old, new = r.old(value), r.new(value)
        axis = normalized(attribute_int(node, "axis", 0), new.ndim)
        if old.shape[axis] == 1:
            for out in node.outputs:
                r.set(node, out, new)
            return
        stops = list(accumulate(r.old_shape(out)[axis] for out in node.outputs))
        part = np.searchsorted(np.asarray(stops), along(r, node, value, axis), side="right")
        sizes = [int(np.sum(part == index)) for index in range(len(stops))]
        r.require(node, (np.diff(part) >= 0).all(), new, "its parts would be interleaved")
        for out, stop, size in zip(node.outputs, accumulate(sizes), sizes, strict=True):
            r.set(node, out, sliced(new, axis, stop - size, stop))
        r.edit(SplitBySizes(node, tuple(sizes)))


def sliced(tags: Array, axis: int, start: int, stop: int) -> Array:
    """A range of a compact array along an axis."""
    if tags.shape[axis] == 1:
        return tags
    return tags[(slice(None),) * axis + (slice(start, stop),)]


def along(r: Replay, node: ir.Node, value: ir.Value, axis: int) -> Array:
    """Where the indices of a value along `axis` came from, shape `(new size,)`.

    Taken from the first row that is left; that the other rows kept as many is for their grid to see to.
    """
    old, new = r.old(value), r.new(value)
    if old.shape[axis] == 1:
        return np.arange(r.old_shape(value)[axis])
    where = np.unravel_index(r.origins(node, old, new), old.shape)[axis]
    first: Array = np.moveaxis(where, axis, -1).reshape(-1, new.shape[axis])[0]
    return first


class Slice:
    """A range along axes; on an axis of channels the step must be 1."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Slice the tags."""
        tags, out = t.get(data(node)), node.outputs[0]
        ranges = slices(node, t.ints, tags.ndim)
        if ranges is None:
            UNKNOWN_SIZES.trace(node, t)
            return
        for axis, (start, stop, step) in ranges.items():
            if tags.shape[axis] > 1:
                if step != 1:
                    Pins("'{op}' takes channels at a stride").trace(node, t)
                    return
                tags = sliced(tags, axis, *slice(start, stop).indices(tags.shape[axis])[:2])
        t.set(node, out, tags)
        keep_regular(node, t, t.get(out))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Slice what is left; starts and ends move along."""
        value, out = data(node), node.outputs[0]
        if not r.is_changed(value):
            return
        old, new = r.old(value), r.new(value)
        ranges = slices(node, r.trace.ints, new.ndim)
        r.require(node, ranges is not None, new, "its range is only known at run time")
        starts: dict[int, int] = {}
        stops: dict[int, int] = {}
        for position, (axis, (start, stop, _)) in enumerate((ranges or {}).items()):
            if old.shape[axis] == 1:
                continue
            low, high, _ = slice(start, stop).indices(old.shape[axis])
            came = along(r, node, value, axis)
            inside = (came >= low) & (came < high)
            first, size = int(np.argmax(inside)), int(inside.sum())
            r.require(
                node,
                size and inside[first : first + size].all(),
                new,
                "its range would fall apart",
            )
            new = sliced(new, axis, first, first + size)
            old = sliced(old, axis, low, high)
            starts[position], stops[position] = first, first + size
        r.set(node, out, new)
        if len(node.inputs) > 1:
            r.resize_input(node, 1, starts)
            r.resize_input(node, 2, stops)
        elif starts:
            for name, numbers in (("starts", starts), ("ends", stops)):
                whole = list(attribute_ints(node, name) or ())
                for position, number in numbers.items():
                    whole[position] = number
                r.edit(SetAttribute(node, name, tuple(whole)))


def slices(
    node: ir.Node, ints: Callable[[ir.Value | None], Array | None], rank: int
) -> dict[int, tuple[int, int, int]] | None:
    """Ranges of a Slice, axis -> (start, stop, step), in the order of its inputs; None if they are not known."""
    if len(node.inputs) > 1:
        given = [ints(input_at(node, index)) for index in range(1, 5)]
        starts, stops, axes, steps = (
            [int(n) for n in array] if array is not None else None for array in given
        )
        absent = [input_at(node, index) is None for index in range(1, 5)]
        if (
            starts is None
            or stops is None
            or (axes is None and not absent[2])
            or (steps is None and not absent[3])
        ):
            return None
    else:
        starts = list(attribute_ints(node, "starts") or ())
        stops = list(attribute_ints(node, "ends") or ())
        found, steps = attribute_ints(node, "axes"), None
        axes = None if found is None else list(found)
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    return {
        normalized(axis, rank): (start, stop, step)
        for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)
    }


class Gather:
    """Elements along an axis by index; from a constant table, the table's other axes are channels."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Pick tags by index; a table of constants makes new ones."""
        value, indices, out = data(node), data(node, 1), node.outputs[0]
        axis = normalized(attribute_int(node, "axis", 0), len(t.shape(value)))
        if makes_channels(node, t):
            rank = len(t.shape(indices))
            tags = t.tags.fresh((t.shape(value)[1],)).reshape([1] * rank + [-1])
            t.sources[node] = tags
            t.tie_weight(node, value, "by axis", (tags.ravel(),))
            t.set(node, out, tags)
            return
        tags, picked = t.get(value), t.ints(indices)
        if tags.shape[axis] > 1 and picked is None:
            Pins("'{op}' picks channels by indices that are only known at run time").trace(
                node, t
            )
            return
        t.pin(t.get(indices), node, "they serve as indices")
        picked = picked if tags.shape[axis] > 1 else None
        t.set(node, out, gathered(tags, axis, picked, len(t.shape(indices))))
        keep_regular(node, t, t.get(out))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Find the picked channels where they now stand."""
        value, indices, out = data(node), data(node, 1), node.outputs[0]
        if node in r.trace.sources:
            old = r.trace.sources[node].ravel()
            new = r.survivors(old)
            r.require(node, (new >= 0).all(), old, "a table has no zero channels to pad with")
            r.select(node, 0, old.reshape(1, -1), new.reshape(1, -1), r.old_shape(value))
            r.set(node, out, new.reshape([1] * (len(r.old_shape(out)) - 1) + [-1]))
            return
        if not r.is_changed(value):
            return
        old, new = r.old(value), r.new(value)
        axis = normalized(attribute_int(node, "axis", 0), new.ndim)
        rank = len(r.old_shape(indices))
        picked = r.trace.ints(indices)
        if old.shape[axis] == 1 or picked is None:
            r.set(node, out, gathered(new, axis, None, rank))
            return
        came = along(r, node, value, axis)
        size = old.shape[axis]
        flat = [int(index) % size for index in picked.ravel()]
        places = [np.flatnonzero(came == index) for index in flat]
        where = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        r.require(node, rank <= 1, new, "it picks channels into several axes")
        r.require(node, rank == 1 or where.size == 1, new, "the channel it picks would be gone")
        numbers = where.reshape(() if rank == 0 else (-1,)).astype(picked.dtype)
        r.set(node, out, gathered(new, axis, numbers, rank))
        if numbers.shape != picked.shape or (numbers != picked % size).any():
            r.edit(SetInput(node, 1, numbers))


def makes_channels(node: ir.Node, t: Trace) -> bool:
    """Whether a Gather looks rows of a constant 2-D table up, whose other axis becomes channels."""
    value, rank = data(node), len(t.shape(data(node)))
    # Integers that are picked by known indices are sizes.
    is_table = value.dtype is not None and value.dtype.is_floating_point()
    return (
        t.is_weight(value)
        and (is_table or t.ints(data(node, 1)) is None)
        and rank == 2
        and normalized(attribute_int(node, "axis", 0), rank) == 0
    )


def gathered(tags: Array, axis: int, picked: Array | None, rank: int) -> Array:
    """`np.take` on a compact array; `picked` is None where the array is uniform, for indices of rank `rank`."""
    if picked is not None:
        return np.take(tags, picked, axis)
    return tags.reshape(tags.shape[:axis] + (1,) * rank + tags.shape[axis + 1 :])


class Pad:
    """Elements are put around; along an axis of channels they belong to no channel."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Put untagged elements around."""
        tags = t.get(data(node))
        amounts = pad_amounts(node, t, tags.ndim)
        if amounts is None:
            UNKNOWN_SIZES.trace(node, t)
            return
        axes = varying_axes(tags)
        if not_constant(node) and any(any(amounts[axis]) for axis in axes):
            Pins("'{op}' copies channels into a border").trace(node, t)
            return
        if any(min(amounts[axis]) < 0 for axis in axes):
            t.pin(tags, node, "a negative Pad cuts channels by their position")
        t.set(node, node.outputs[0], padded(tags, amounts, axes))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Put untagged elements around what is left."""
        value, new = data(node), r.new(data(node))
        if r.is_changed(value):
            amounts = pad_amounts(node, r.trace, new.ndim)
            r.require(node, amounts is not None, new, "its sizes are only known at run time")
            after = padded(new, amounts or [], varying_axes(r.old(value)))
            r.set(node, node.outputs[0], after)


def not_constant(node: ir.Node) -> bool:
    """Whether a Pad repeats data instead of putting a constant."""
    mode = node.attributes.get("mode")
    return mode is not None and mode.as_string() != "constant"


def pad_amounts(node: ir.Node, t: Trace, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) by axis, or None if not known."""
    numbers = attribute_ints(node, "pads")
    if numbers is None:
        given = t.ints(input_at(node, 1))
        if given is None:
            return None
        numbers = tuple(int(number) for number in given)
    axes_input = input_at(node, 3)
    axes = list(range(rank))
    if axes_input is not None:
        given = t.ints(axes_input)
        if given is None:
            return None
        axes = [normalized(int(axis), rank) for axis in given]
    amounts = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        amounts[axis] = (numbers[position], numbers[position + len(axes)])
    return amounts


def padded(tags: Array, amounts: list[tuple[int, int]], axes: tuple[int, ...]) -> Array:
    """Pad a compact array with tag 0 along `axes`, those on which it varied before any plan."""
    inside = [
        (max(low, 0), max(high, 0)) if axis in axes else (0, 0)
        for axis, (low, high) in enumerate(amounts)
    ]
    out: Array = np.pad(tags, inside)
    for axis in axes:
        low, high = amounts[axis]
        stop = out.shape[axis] - max(-high, 0)
        out = out[(slice(None),) * axis + (slice(max(-low, 0), stop),)]
    return out


class Expand:
    """Size-1 axes are repeated. A constant line of numbers (a class token, once an example) makes channels."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Line the axes up at the right."""
        value, out = data(node), node.outputs[0]
        tags, before, after = t.get(value), t.shape(value), t.shape(out)
        lead = len(after) - len(before)
        if is_line(value, t):
            tags = t.tags.fresh((max(before),)).reshape(
                [-1 if size > 1 else 1 for size in before]
            )
            t.sources[node] = tags.reshape((1,) * lead + tags.shape)
            t.tie_weight(node, value, before, (tags.ravel(),))
        if not varying_axes(tags) and any(
            a != b for a, b in zip(before, after[lead:], strict=True)
        ):
            t.pin(tags, node, "a single channel is broadcast")
        t.set(node, out, tags.reshape((1,) * lead + tags.shape))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Sizes that were spelled out follow."""
        value, out = data(node), node.outputs[0]
        made = r.trace.sources.get(node)
        if made is None and not r.is_changed(value):
            return
        tags = r.new(value)
        if made is not None:
            before = r.old_shape(value)
            old, new = made.ravel(), r.survivors(made.ravel())
            r.require(
                node, (new >= 0).all(), old, "a constant has no zero channels to pad with"
            )
            if new.size == old.size and (new == old).all():
                return
            form = [-1 if size > 1 else 1 for size in before]
            tags = new.reshape(form)
            r.select(node, 0, old.reshape(form), tags, before)
        lead = len(r.old_shape(out)) - tags.ndim
        r.set(node, out, tags.reshape((1,) * lead + tags.shape))
        numbers = r.trace.ints(node.inputs[1])
        if numbers is None:
            r.require(node, False, tags, "its sizes are only known at run time")
            return
        skip = len(r.old_shape(out)) - numbers.size
        r.resize_input(
            node,
            1,
            {
                axis - skip: size
                for axis, size in enumerate(r.shape(out))
                if axis >= skip and size != r.old_shape(out)[axis] and numbers[axis - skip] != 1
            },
        )


def is_line(value: ir.Value, t: Trace) -> bool:
    """Whether a value is a constant of floats with more than one number along a single axis."""
    shape = t.shape(value)
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    return is_float and t.is_weight(value) and sum(size > 1 for size in shape) == 1


class Tile:
    """Axes are repeated a number of times."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Repeat the tags."""
        repeats = t.ints(node.inputs[1]) if len(node.inputs) == 2 else None
        if repeats is None:
            UNKNOWN_SIZES.trace(node, t)
            return
        tags = t.get(data(node))
        if not varying_axes(tags) and any(int(number) != 1 for number in repeats):
            t.pin(tags, node, "a single channel is repeated")
        t.set(node, node.outputs[0], tiled(tags, repeats, varying_axes(tags)))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Repeat what is left."""
        value, new = data(node), r.new(data(node))
        if r.is_changed(value):
            repeats = r.trace.ints(node.inputs[1])
            r.require(node, repeats is not None, new, "its repeats are only known at run time")
            after = tiled(new, np.asarray(repeats), varying_axes(r.old(value)))
            r.set(node, node.outputs[0], after)


def tiled(tags: Array, repeats: Array, axes: tuple[int, ...]) -> Array:
    """Repeat a compact array along `axes`, those on which it varied before any plan."""
    return np.tile(tags, [int(n) if axis in axes else 1 for axis, n in enumerate(repeats)])


class DepthToSpace:
    """Every `blocksize`² channels become the pixels of one."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Tie the channels that become one; the first stands for all."""
        out = node.outputs[0]
        block = attribute_int(node, "blocksize", 1) ** 2
        tags = t.along(node, t.get(data(node)), 1)
        if tags.shape[1] == 1:
            t.set(node, out, tags)
            return
        grid = pixel_grid(node, tags, block)
        t.set(node, out, t.unite_along(node, grid, (0,)).reshape(1, -1, 1, 1))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Check that whole pixels are left."""
        value, out = data(node), node.outputs[0]
        if not r.is_changed(value):
            return
        block = attribute_int(node, "blocksize", 1) ** 2
        tags = r.new(value)
        r.require(
            node, tags.shape[1] % block == 0, tags, "the channels left do not make whole pixels"
        )
        grid = pixel_grid(node, tags, block)
        r.agree(node, grid, grid[:1])
        r.set(node, out, grid[0].reshape(1, -1, 1, 1))


def pixel_grid(node: ir.Node, tags: Array, block: int) -> Array:
    """Channels by (pixel, output channel)."""
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() == "CRD":
        return tags.reshape(-1, block).T
    return tags.reshape(block, -1)


class SpaceToDepth:
    """The pixels of a channel become `blocksize`² channels."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Repeat the tags."""
        block = attribute_int(node, "blocksize", 1) ** 2
        tags = t.along(node, t.get(data(node)), 1)
        if t.shape(data(node))[1] == 1:
            t.pin(tags, node, "a single channel becomes several")
        copies = block if tags.shape[1] > 1 else 1
        t.set(node, node.outputs[0], np.tile(tags, (1, copies, 1, 1)))

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Repeat what is left."""
        if r.is_changed(data(node)):
            block = attribute_int(node, "blocksize", 1) ** 2
            r.set(node, node.outputs[0], np.tile(r.new(data(node)), (1, block, 1, 1)))


class ShapeOf:
    """Shape: numbers that are read off a tensor stay what they were; Size cannot be mended so."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Size pins; Shape lets channels go."""
        if node.op_type == "Size":
            Pins("'{op}' counts them at run time").trace(node, t)

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Put the old numbers back where a cut axis is read."""
        value = data(node)
        if not r.is_changed(value):
            return
        before, after = r.old_shape(value), r.shape(value)
        start = normalized(attribute_int(node, "start", 0), len(before))
        stop = normalized(attribute_int(node, "end", len(before)), len(before))
        positions = tuple(
            axis - start
            for axis in range(start, min(stop, len(before)))
            if before[axis] != after[axis]
        )
        if positions:
            numbers = tuple(before[position + start] for position in positions)
            r.edit(Patch(node, None, positions, numbers, r.length(node.outputs[0])))
