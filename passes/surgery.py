"""Carries out edits: the one place where a plan becomes changes of a graph."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.analysis import operands
from passes.analysis.compact import Array
from passes.analysis.edits import (
    Accumulate,
    Edit,
    Merge,
    Patch,
    Select,
    SetAttribute,
    SetInput,
    SplitBySizes,
)
from passes.errors import UnsupportedGraph

__all__ = ["operate"]


def operate(
    model: ir.Model, edits: Iterable[Edit], shapes: Mapping[ir.Value, tuple[int, ...]]
) -> None:
    """Change `model` in place.

    Args:
        model: the model that the edits were made for.
        edits: what to change.
        shapes: the sizes that activations have afterwards; only axes that changed are written.
    """
    edits = list(edits)
    # before anything else, because nodes that are added take their shapes from those they follow
    for value, sizes in shapes.items():
        if value.shape is not None and len(value.shape) == len(sizes):
            value.shape = ir.Shape(
                [
                    size if isinstance(before, int) else before
                    for before, size in zip(value.shape, sizes, strict=True)
                ]
            )
    read = [value for value in model.graph.initializers.values() if value.uses()]
    # merges name channels by their old places, so they come before anything is cut
    for edit in edits:
        if isinstance(edit, Merge):
            merge(edit)
    select([edit for edit in edits if isinstance(edit, Select)])
    carry_out(edits)
    for value in read:
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del model.graph.initializers[value.name or ""]


def carry_out(edits: Iterable[Edit]) -> None:
    """Do whatever neither merges nor cuts weights."""
    for edit in edits:
        match edit:
            case Accumulate():
                accumulate(edit)
            case SetInput(node, index, array):
                replace(node, index, array)
            case Patch():
                patch(edit)
            case SetAttribute(node, name, int() as number):
                node.attributes[name] = ir.AttrInt64(name, number)
            case SetAttribute(node, name, tuple() as numbers):
                node.attributes[name] = ir.AttrInt64s(name, numbers)
            case SplitBySizes(node, sizes):
                split(node, sizes)
            case Merge() | Select():
                pass


def replace(node: ir.Node, index: int, array: Array) -> None:
    """Give one use of a constant new data; the tensor itself, if nobody else reads it."""
    value = node.inputs[index]
    if value is not None and is_own(value):
        weights.set_tensor(value, array)
    else:
        weights.copy_for(node, index, array)


def is_own(value: ir.Value) -> bool:
    """Whether a constant is an initializer with one reader."""
    return len(value.uses()) == 1 and value.is_initializer() and not value.is_graph_output()


def merge(edit: Merge) -> None:
    """Let one input channel take over others."""
    value = edit.node.inputs[edit.index]
    held = weights.tensor(value)
    if value is None or held is None:
        raise UnsupportedGraph(edit.node.name or "", "its weight is not a plain constant")
    if is_own(value):
        shape = tuple(held.shape.numpy())
        weights.set_derived(
            value, lambda array, rows: merged(array, edit)[rows], shape, in_slices=False
        )
    else:
        weights.copy_for(edit.node, edit.index, merged(held.numpy(), edit))


def merged(array: Array, edit: Merge) -> Array:
    """What a Merge makes of a weight."""
    new = array.copy()
    rows = [slice(None)] * new.ndim
    if edit.rows is not None:
        rows[edit.rows[0]] = slice(edit.rows[1], edit.rows[2])
    # a view: what is written to it is written to `new`
    moved = np.moveaxis(new[tuple(rows)], edit.axes, range(len(edit.axes)))
    taken = moved[edit.sources].astype(np.float64)
    moved[edit.sources] = 0
    if edit.into is not None:
        factors = edit.factors.reshape([-1] + [1] * (taken.ndim - 1))
        total = moved[edit.into].astype(np.float64) + (taken * factors).sum(0)
        moved[edit.into] = total.astype(new.dtype)
    return new


def take(array: Array, picks: tuple[Array | None, ...], rows: slice = slice(None)) -> Array:
    """Take elements by picks; see `Select`. Of the result only some rows of its first axis."""
    if all(pick is None or pick.ndim <= 1 for pick in picks):
        for axis, pick in enumerate(picks):
            if axis == 0:
                # Not np.take, which copies all of an array that lies at an odd place of a file.
                array = array[rows if pick is None else pick[rows]]
            elif pick is not None:
                array = np.take(array, pick, axis)
        return array
    places = grid(array.shape, picks)
    return array[tuple(one if len(one) == 1 else one[rows] for one in places)]


def taken_shape(shape: tuple[int, ...], picks: tuple[Array | None, ...]) -> tuple[int, ...]:
    """The shape of what `take` takes of an array."""
    if all(pick is None or pick.ndim <= 1 for pick in picks):
        pairs = zip(shape, picks, strict=True)
        return tuple(size if pick is None else len(pick) for size, pick in pairs)
    return np.broadcast_shapes(*(places.shape for places in grid(shape, picks)))


def grid(shape: tuple[int, ...], picks: tuple[Array | None, ...]) -> tuple[Array, ...]:
    """Picks as index arrays, one an axis, that broadcast against each other."""
    places = []
    for axis, pick in enumerate(picks):
        line = [1] * len(shape)
        line[axis] = -1
        if pick is None:
            places.append(np.arange(shape[axis]).reshape(line))
        elif pick.ndim == 1 and len(shape) > 1:
            places.append(pick.reshape(line))
        else:
            places.append(pick.reshape(pick.shape + (1,) * (len(shape) - pick.ndim)))
    return tuple(places)


def select(edits: list[Select]) -> None:
    """Cut constants; uses of one constant that are cut alike go on sharing it."""
    by_value: dict[ir.Value, list[Select]] = {}
    for edit in edits:
        value = edit.node.inputs[edit.index]
        if value is not None:
            by_value.setdefault(value, []).append(edit)
    for value, uses in by_value.items():
        node = operands.dequantizer(value)
        alike: dict[bytes, list[Select]] = {}
        for edit in uses:
            alike.setdefault(fingerprint(edit), []).append(edit)
        whole = (
            len(alike) == 1 and len(uses) == len(value.uses()) and not value.is_graph_output()
        )
        copies: dict[bytes, ir.Value] = {}
        for same in alike.values():
            if node is not None:
                select_quantized(node, same, whole=whole)
                continue
            held = weights.tensor(value)
            if held is None:
                raise UnsupportedGraph(value.name or "", "it is not constant")
            if whole and value.is_initializer():
                shape = taken_shape(tuple(held.shape.numpy()), same[0].picks)
                edit = same[0]

                def some(array: Array, rows: slice, edit: Select = edit) -> Array:
                    return cut(array, edit, 0, rows)

                weights.set_derived(value, some, shape)
                continue
            new = cut(held.numpy(), same[0], 0)
            # exporters share equal constants (all those zero biases); where the parts are equal, they still do
            content = new.tobytes()
            if content not in copies:
                copies[content] = weights.copy_for(same[0].node, same[0].index, new)
            for edit in same:
                edit.node.replace_input_with(edit.index, copies[content])


def cut(array: Array, edit: Select, zero: Array | int, rows: slice = slice(None)) -> Array:
    """The part of an array that a Select wants, with `zero` where it wants padding; only some rows of it."""
    new = np.ascontiguousarray(take(array, edit.picks, rows))
    if edit.zero is not None:
        is_zero = np.broadcast_to(edit.zero, taken_shape(array.shape, edit.picks))[rows]
        new = np.where(is_zero, np.asarray(zero, dtype=new.dtype), new)
    return new


def select_quantized(node: ir.Node, uses: list[Select], *, whole: bool) -> None:
    """Cut the data, scales and zero points behind a DequantizeLinear."""
    edit = uses[0]
    if not whole:
        copy = ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            list(node.attributes.values()),
            name=f"{node.name}_{edit.node.name}",
        )
        if edit.node.graph is not None:
            edit.node.prepend(copy)
        for use in uses:
            use.node.replace_input_with(use.index, copy.outputs[0])
        node = copy
    axis = operands.per_axis(node)
    parameters = [weights.constant(value) for value in node.inputs]
    data = parameters[0]
    if data is None:
        raise UnsupportedGraph(node.name or "", "its data is not constant")
    zero: Array | int = 0
    if len(parameters) > 2 and parameters[2] is not None:
        point = parameters[2]
        line = [-1 if other == axis else 1 for other in range(data.ndim)]
        zero = (
            point
            if axis is None
            else take(np.broadcast_to(point.reshape(line), data.shape), edit.picks)
        )
    replace(node, 0, cut(data, edit, zero))
    if axis is None:
        return
    for index in range(1, len(parameters)):
        old = parameters[index]
        if old is not None:
            line = [-1 if other == axis else 1 for other in range(data.ndim)]
            spread = take(np.broadcast_to(old.reshape(line), data.shape), edit.picks)
            first = tuple(slice(None) if other == axis else 0 for other in range(data.ndim))
            replace(node, index, np.ascontiguousarray(spread[first]))


def fingerprint(edit: Select) -> bytes:
    """Bytes that are equal for Selects that want the same."""
    parts = [
        b"-" if pick is None else str(pick.shape).encode() + pick.tobytes()
        for pick in edit.picks
    ]
    if edit.zero is not None:
        parts.append(str(edit.zero.shape).encode() + edit.zero.tobytes())
    return b"|".join(parts)


def accumulate(edit: Accumulate) -> None:
    """Add a constant to what a node computes, in its bias or by an Add behind it."""
    node, out = edit.node, edit.node.outputs[0]
    dtype = kind(node)
    if edit.into is None:
        if not added_behind(node, edit.amount):
            add_behind(node, edit.amount.astype(dtype))
        return
    vector = edit.amount.reshape(-1)
    bias = node.inputs[edit.into] if edit.into < len(node.inputs) else None
    if bias is None:
        if edit.into >= len(node.inputs):
            node.resize_inputs(edit.into + 1)
        fresh = weights.new_initializer(
            graph_of(node), f"{out.name}_bias", vector.astype(dtype)
        )
        node.replace_input_with(edit.into, fresh)
        return
    old = weights.constant(bias)
    if old is None:
        add_behind(node, edit.amount.astype(dtype))
        return
    replace(node, edit.into, (old.astype(np.float64) + vector).astype(old.dtype))


def added_behind(node: ir.Node, amount: Array) -> bool:
    """Put a vector along the last axis into the Add of a constant vector that follows a node, if one does."""
    out = node.outputs[0]
    readers = list(out.uses())
    if len(readers) != 1 or out.is_graph_output() or amount.size != amount.shape[-1]:
        return False
    adder = readers[0].node
    if adder.op_type != "Add" or adder.domain not in {"", "ai.onnx"}:
        return False
    index = 1 - readers[0].idx
    old = weights.constant(adder.inputs[index])
    if (
        old is None
        or old.size != amount.size
        or old.shape[-1:] != amount.shape[-1:]
        or old.ndim > amount.ndim
    ):
        return False
    replace(
        adder, index, (old.astype(np.float64) + amount.reshape(old.shape)).astype(old.dtype)
    )
    return True


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node stands in.

    Raises:
        UnsupportedGraph: it stands in none.
    """
    if not isinstance(node.graph, ir.Graph):
        raise UnsupportedGraph(node.name or node.op_type, "it is not part of a graph")
    return node.graph


def kind(node: ir.Node) -> np.dtype[np.generic]:
    """The numpy dtype that a node computes in."""
    for value in (*node.outputs, *node.inputs):
        if value is not None and value.dtype is not None and value.dtype.is_floating_point():
            return np.dtype(value.dtype.numpy())
    return np.dtype(np.float32)


def add_behind(node: ir.Node, amount: Array) -> None:
    """Put an Add of a constant behind a node; who read the node now reads the sum."""
    graph, out = graph_of(node), node.outputs[0]
    constant = weights.new_initializer(graph, f"{out.name}_constant", amount)
    label = untaken(f"{node.name or out.name}_constant", {other.name for other in graph})
    adder = ir.node("Add", [out, constant], name=label)
    total = adder.outputs[0]
    total.type, total.shape = out.type, out.shape.copy() if out.shape is not None else None
    name, taken = out.name, weights.value_names(graph)
    ir.convenience.replace_all_uses_with(out, total, replace_graph_outputs=True)
    adder.replace_input_with(0, out)
    if total.is_graph_output():
        out.name, total.name = untaken(f"{name}_before_constant", taken), name
    else:
        total.name = untaken(f"{name}_with_constant", taken)
    graph.insert_after(node, [adder])


def untaken(name: str, taken: Collection[str | None]) -> str:
    """A name, with a number added where it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)


def patch(edit: Patch) -> None:
    """Overwrite elements of a vector that is computed at run time."""
    node = edit.node
    graph = graph_of(node)
    value = node.outputs[0] if edit.index is None else node.inputs[edit.index]
    if value is None:
        return
    kind = np.int64 if value.dtype is None else value.dtype.numpy()
    # a choice between two vectors, because inference understands that, and no scattering
    mask, numbers = np.zeros(edit.length, dtype=bool), np.zeros(edit.length, dtype=kind)
    mask[list(edit.positions)], numbers[list(edit.positions)] = True, edit.values
    constants = [
        weights.new_initializer(graph, f"{value.name}_is_set", mask),
        weights.new_initializer(graph, f"{value.name}_set", numbers),
    ]
    writer = ir.node("Where", [*constants, value])
    written = writer.outputs[0]
    # a second pass may patch what a first one has patched
    label = f"{value.name}_resized_for_{node.name or node.outputs[0].name}"
    taken = weights.value_names(graph) | {other.name for other in graph}
    writer.name = written.name = untaken(label, taken)
    written.type, written.shape = value.type, value.shape
    if edit.index is None:
        ir.convenience.replace_all_uses_with(value, written)
        writer.replace_input_with(2, value)
        graph.insert_after(node, [writer])
    else:
        node.replace_input_with(edit.index, written)
        graph.insert_before(node, [writer])


def split(node: ir.Node, sizes: tuple[int, ...]) -> None:
    """Say the part sizes of a Split."""
    graph = graph_of(node)
    if graph.opset_imports.get("", 13) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.attributes.pop("num_outputs", None)
    array = np.asarray(sizes, dtype=np.int64)
    if len(node.inputs) > 1 and weights.is_constant(node.inputs[1]):
        replace(node, 1, array)
        return
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    node.replace_input_with(
        1, weights.new_initializer(graph, f"{node.outputs[0].name}_sizes", array)
    )
