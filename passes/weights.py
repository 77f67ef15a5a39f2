"""The only door to constants: reading them, replacing them, adding them, counting them.

Assigning `const_value` by hand leaves the value's shape stale, and the stale shape is what gets saved. Everything
that writes a constant therefore goes through `set_tensor`, `new_initializer` or `copy_for`, which keep the data, the
shape and the type together; nothing else in the project assigns `const_value`.

A weight may be far larger than there is memory. What lies in a file is mapped, not read, and what `set_derived` makes of
it is made when somebody asks, a weight at a time.
"""

from __future__ import annotations

import itertools
from typing import IO, TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from passes.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from passes.analysis.compact import Array

__all__ = [
    "constant",
    "copy_for",
    "fold",
    "free_name",
    "hold",
    "is_constant",
    "is_finite",
    "lift",
    "new_initializer",
    "parameter_count",
    "rehome",
    "rows",
    "set_derived",
    "set_tensor",
    "size_bytes",
    "tensor",
]

ELEMENTS_AT_ONCE = 1 << 18
"""Weights are looked through in slices of this many elements, which fit a cache."""

EXPONENTS = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}
"""The bits that are all set in a NaN or an infinity."""

LARGE_BYTES = 1 << 20
"""Weights from this size on are not kept in memory if they can be made again from a file."""

# What int64 and bool tensors of a graph hold is sizes, axes, indices and conditions, not learned numbers.
NOT_PARAMETERS = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING})


def tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a constant, unread; None if `value` is not constant (see `constant`)."""
    if value is None:
        return None
    if value.is_initializer():
        # An initializer that is listed as an input is a default that the caller may override.
        found = None if value.is_graph_input() else value.const_value
    else:
        node = value.producer()
        found = None if node is None else constant_tensor(node)
    return None if found is None or found.dtype == ir.DataType.STRING else found


def is_constant(value: ir.Value | None) -> bool:
    """Whether `constant` would return an array, found out without reading the data."""
    return tensor(value) is not None


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant, or None.

    Constant is an initializer that is not also a graph input, and the output of a Constant node in any of its
    numeric forms. bfloat16, float8 and 4-bit data come as ml_dtypes arrays. The array may be a read-only view of the
    model's file: copy before writing.
    """
    found = tensor(value)
    return None if found is None else found.numpy()


def rows(held: ir.TensorProtocol, part: slice) -> Array:
    """Some rows of a tensor; of one that is made when it is wanted, no more than these are made."""
    if isinstance(held, Derived) and held.in_slices:
        return held.part(held.held.numpy(), part)
    found: Array = held.numpy()[part]
    return found


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; true of types that have neither."""
    flat = array.reshape(-1)
    slices = [
        flat[start : start + ELEMENTS_AT_ONCE]
        for start in range(0, flat.size, ELEMENTS_AT_ONCE)
    ]
    exponent = EXPONENTS.get(array.dtype.name)
    if exponent is not None:
        # Types of 16 bits are looked at as bits, which is ten times as fast.
        return all(
            bool(((part.view(np.uint16) & exponent) != exponent).all()) for part in slices
        )
    if array.dtype.kind == "f":
        # A sum of squares is finite only where all is, and takes a third of the time.
        with np.errstate(all="ignore"):
            return all(
                bool(np.isfinite(np.dot(part, part)) or np.isfinite(part).all())
                for part in slices
            )
    try:
        return bool(np.isfinite(flat).all())
    except TypeError:
        return True


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor that a Constant node holds, unread; None for other nodes, strings and sparse values."""
    if (
        node.op_type != "Constant"
        or node.domain not in {"", "ai.onnx"}
        or len(node.attributes) != 1
    ):
        return None
    ((name, attribute),) = node.attributes.items()
    if attribute.is_ref():
        return None
    kinds = ir.AttributeType
    # The type counts as well: a file may hold anything under any name.
    match name, attribute.type:
        case "value", kinds.TENSOR:
            return attribute.as_tensor()
        case ("value_float", kinds.FLOAT) | ("value_floats", kinds.FLOATS):
            return ir.Tensor(np.asarray(attribute.value, dtype=np.float32))
        case ("value_int", kinds.INT) | ("value_ints", kinds.INTS):
            return ir.Tensor(np.asarray(attribute.value, dtype=np.int64))
        case _:
            return None


def set_tensor(value: ir.Value, array: Array) -> None:
    """Replace an initializer's data by `array`, of any shape and dtype, for all of its uses.

    Raises:
        PassError: `value` is not an initializer, or it is also a graph input, whose shape is the model's interface.
    """
    check_replaceable(value)
    fill(value, array)


def check_replaceable(value: ir.Value) -> None:
    """Raise a PassError unless `value` is an initializer whose data nobody but the model decides."""
    if not value.is_initializer() or value.is_graph_input():
        msg = f"cannot replace the data of '{value.name}': it is not a constant initializer. Run 'tidy' first."
        raise PassError(msg)


def set_derived(
    value: ir.Value,
    derive: Callable[[Array, slice], Array],
    shape: tuple[int, ...],
    *,
    in_slices: bool = True,
    dtype: ir.DataType | None = None,
) -> None:
    """Replace an initializer's data by what `derive` makes of it, for all of its uses.

    Where the data is large and lies in a file, nothing is read now. The new data is made when it is wanted, each time,
    and written in slices, so that the results of cutting a model of gigabytes are never in memory together.

    Args:
        value: the initializer.
        derive: makes, of the old data and a slice of the first axis of the new data, that part of the new data; called later,
            perhaps more than once.
        shape: of all of the new data.
        in_slices: whether a part costs less than the whole.
        dtype: of the new data; None is that of the old.

    Raises:
        PassError: as `set_tensor`.
    """
    check_replaceable(value)
    held = value.const_value
    if held is None:
        msg = f"Pass developer: '{value.name}' has no data to derive other data from"
        raise PassError(msg)
    is_in_file = isinstance(held, ir.ExternalTensor | ir.LazyTensor)
    if is_in_file and held.nbytes >= LARGE_BYTES:
        made = Derived(held, derive, shape, in_slices=in_slices, name=value.name, dtype=dtype)
        hold(value, made)
    else:
        fill(value, derive(held.numpy(), slice(None)))


class Derived(ir.LazyTensor):
    """A tensor that is made of another one whenever it is wanted; see `set_derived`."""

    def __init__(
        self,
        held: ir.TensorProtocol,
        derive: Callable[[Array, slice], Array],
        shape: tuple[int, ...],
        *,
        in_slices: bool,
        name: str | None,
        dtype: ir.DataType | None = None,
    ) -> None:
        super().__init__(self.whole, dtype or held.dtype, ir.Shape(shape), name=name)
        self.held = held
        self.derive = derive
        self.in_slices = in_slices and held.dtype.bitwidth >= 8

    def whole(self) -> ir.TensorProtocol:
        """All of it, as a tensor in memory."""
        return ir.Tensor(self.part(self.held.numpy(), slice(None)), name=self.name)

    def part(self, array: Array, rows: slice) -> Array:
        """Some rows of it, which have to be as many as the shape says."""
        shape = self.shape.numpy()
        new = self.derive(array, rows)
        expected = (len(range(*rows.indices(shape[0]))), *shape[1:])
        if new.shape != expected:
            msg = f"Pass developer: '{self.name}' was to get the shape {expected}, not {new.shape}"
            raise PassError(msg)
        return new

    def tofile(self, file: IO[bytes]) -> None:
        """Write it, a slice at a time: what is freed and taken again costs no new pages of memory."""
        if not self.in_slices:
            super().tofile(file)
            return
        array = self.held.numpy()
        count = self.shape.numpy()[0]
        step = max(1, LARGE_BYTES * count // self.nbytes)
        for start in range(0, count, step):
            part = self.part(array, slice(start, start + step))
            file.write(np.ascontiguousarray(part).view(np.uint8).data)


def new_initializer(graph: ir.Graph, hint: str, array: Array) -> ir.Value:
    """Register a fresh initializer in `graph`, the main graph of a model.

    Its name is `hint`, with a number added where that is taken by a value of the graph or of one of its subgraphs.
    """
    value = ir.Value(name=free_name(graph, hint))
    fill(value, array)
    graph.register_initializer(value)
    return value


def lift(node: ir.Node, graph: ir.Graph) -> ir.Value:
    """Turn a numeric Constant node into an initializer of `graph`, and remove the node.

    The data is shared, not read. The name stays, where no value of `graph` outside of the node has it.

    Args:
        node: a Constant node of `graph` or of a subgraph in it; its output is not an output of its graph.
        graph: the main graph.

    Raises:
        PassError: the node is no such node.
    """
    found, old, owner = constant_tensor(node), node.outputs[0], node.graph
    if found is None or owner is None or old.is_graph_output():
        msg = f"Pass developer: '{node.name}' ({node.op_type}) cannot become an initializer"
        raise PassError(msg)
    name = old.name or "constant"
    if owner is not graph:
        name = free_name(graph, name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(found.shape.numpy()),
        type=ir.TensorType(found.dtype),
        const_value=found,
    )
    old.replace_all_uses_with(value)
    owner.remove(node, safe=True)
    graph.register_initializer(value)
    return value


def fold(node: ir.Node, arrays: Sequence[Array]) -> None:
    """Put initializers, of the same names, in the place of a node's used outputs, and remove the node.

    Args:
        node: a node of a main graph; none of its outputs is an output of the graph.
        arrays: what it computes, one array an output.

    Raises:
        PassError: the node cannot be replaced.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph) or any(
        value.is_graph_output() for value in node.outputs
    ):
        msg = f"Pass developer: '{node.name}' ({node.op_type}) cannot become an initializer"
        raise PassError(msg)
    kept = []
    for old, array in zip(node.outputs, arrays, strict=True):
        if old.uses():
            value = ir.Value(name=old.name)
            fill(value, np.ascontiguousarray(array).reshape(array.shape))
            old.replace_all_uses_with(value)
            kept.append(value)
    graph.remove(node, safe=True)
    for value in kept:
        graph.register_initializer(value)


def rehome(value: ir.Value, graph: ir.Graph) -> None:
    """Move an initializer of a subgraph, which is no input of it, to the main graph, under a free name."""
    owner, name = value.graph, value.name or "constant"
    if owner is None or not value.is_initializer() or value.is_graph_input():
        msg = f"Pass developer: '{name}' is not an initializer of a subgraph"
        raise PassError(msg)
    owner.initializers.pop(name)
    value.name = free_name(graph, name)
    graph.register_initializer(value)


def copy_for(node: ir.Node, input_index: int, array: Array) -> ir.Value:
    """Give one input of `node` its own initializer, holding `array`, and leave other uses of the old value alone.

    Raises:
        PassError: the node is in no graph, or has no such input.
    """
    old = node.inputs[input_index] if input_index < len(node.inputs) else None
    if old is None or node.graph is None:
        msg = f"Pass developer: '{node.name}' has no input {input_index} to give a copy of"
        raise PassError(msg)
    graph = node.graph.graph if isinstance(node.graph, ir.Function) else node.graph
    value = new_initializer(graph, old.name or "constant", array)
    node.replace_input_with(input_index, value)
    return value


def parameter_count(model: ir.Model) -> int:
    """Number of elements of all constants except int64 and bool ones (sizes, axes, conditions), in all graphs."""
    return sum(found.size for found in all_tensors(model) if found.dtype not in NOT_PARAMETERS)


def size_bytes(model: ir.Model) -> int:
    """Bytes of all constants in all graphs; the graph itself is not counted."""
    return sum(found.nbytes for found in all_tensors(model))


def fill(value: ir.Value, array: Array) -> None:
    """Set data, shape and type of `value` together; the guard against stale shapes."""
    hold(value, ir.Tensor(array, name=value.name))


def hold(value: ir.Value, new: ir.TensorProtocol) -> None:
    """Let `value` hold a tensor of any kind, unread, and have its shape and type."""
    value.const_value = new
    value.shape = ir.Shape(new.shape.numpy())
    # Not `value.dtype = ...`: that writes into a type object which a clone of the model may share.
    value.type = ir.TensorType(new.dtype)


def free_name(graph: ir.Graph, hint: str) -> str:
    """`hint`, with a number added if a value of the graph or of one of its subgraphs has that name."""
    taken = value_names(graph)
    names = itertools.chain([hint], (f"{hint}_{number}" for number in itertools.count(1)))
    return next(name for name in names if name and name not in taken)


def value_names(graph: ir.Graph) -> set[str | None]:
    """Names of all values of a graph and of its subgraphs."""
    names: set[str | None] = {value.name for value in graph.inputs}
    names.update(graph.initializers)
    for node in graph:
        names.update([value.name for value in node.outputs])
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                names |= value_names(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                names.update(*map(value_names, attribute.as_graphs()))
    return names


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every constant tensor of the model's graphs, subgraphs and functions, unread, overridable ones included."""
    roots = (model.graph, *(function.graph for function in model.functions.values()))
    for graph in itertools.chain(roots, *(root.subgraphs() for root in roots)):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            found = constant_tensor(node)
            if found is not None:
                yield found
