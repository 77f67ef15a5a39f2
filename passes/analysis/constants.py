"""Which elements of which tensors are the same number for every input of the model, and which number.

A channel whose weights are zero is not zero after a bias, a normalisation, a Sigmoid or a residual addition, but it is
still known. Knowledge is pushed from the constants to the outputs, one rule an operator:

    an output element is known iff every element it reads is known, or is multiplied by a known zero.

An element may be known and yet vary along the axes of space: a channel that is constant before a padded convolution is
a *map* after it. Maps are computed where the sizes of space are fixed. Along an axis whose size is a stand-in only
what is uniform counts as known. Operators without a rule know nothing.

A product with a known zero is taken for zero, as every pruning of channels does; where the other factor is infinite or
NaN the runtime would answer NaN. Numbers are computed in double precision and rounded to the tensor's own type after
every operator. What would overflow counts as unknown.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.analysis.arguments import (
    Arguments,
    argument,
    dequantize,
    is_standard,
    normalise,
    spread_scale,
)
from passes.analysis.compact import Array, compress, reshape
from passes.analysis.moves import MOVES, Pick, all_along, find_move, widen
from passes.analysis.products import Factor, contract, contract_labelled, subscripts
from passes.analysis.scalars import BINARY, UNARY, VARIADIC, round_to
from passes.analysis.windows import Axis, find_window, pool_map, slide
from passes.analysis.zeros import any_row, nonzero_blocks, outputs_first

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from passes.shapes import Sizes

__all__ = ["Known", "find_constants"]

# What is computed from weights alone and is larger than this is left to those who read it.
_FOLDED_LIMIT = 65_536


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of one tensor, as two compact arrays (see `passes.analysis.compact`).

    Attributes:
        mask: bool; True where the element is the same for every input.
        value: float64, or int64 for integers and bools; the element where `mask` is True, else 0. It broadcasts
            against `mask`, but may vary along other axes.
    """

    mask: Array
    value: Array


Fact: TypeAlias = tuple[Array, Array]
Rule: TypeAlias = "Callable[[_Finder, ir.Node], Sequence[Fact | None]]"


def find_constants(model: ir.Model, sizes: Sizes) -> dict[ir.Value, Known]:
    """Find the elements of the main graph's tensors that do not depend on the inputs.

    Args:
        model: the model, its nodes in topological order; read only.
        sizes: its concrete sizes, from `passes.shapes.measure`.

    Returns:
        what is known of each output of a node. Tensors of which nothing is known have no entry, nor have
        initializers, which are known by themselves.
    """
    finder = _Finder(model, sizes)
    for node in model.graph:
        finder.visit(node)
    return finder.found


class _Finder:
    """Facts found so far, and what a rule may ask about the inputs of a node."""

    def __init__(self, model: ir.Model, sizes: Sizes) -> None:
        self.arguments = Arguments(model, sizes)
        self.opset = self.arguments.opset
        self.shape = sizes.shape
        self.found: dict[ir.Value, Known] = {}
        self._types: dict[ir.Value, ir.DataType] = {}

    def visit(self, node: ir.Node) -> None:
        for output in node.outputs:
            self._types[output] = output.dtype or self._result_type(node)
        rule = RULES.get(node.op_type) if is_standard(node) else None
        shapes = [self.shape.get(output) for output in node.outputs]
        if rule is None or shapes[0] is None or math.prod(shapes[0]) == 0:
            return
        if any(value is not None and value not in self.shape for value in node.inputs):
            return
        large = math.prod(shapes[0]) > _FOLDED_LIMIT and node.op_type != "ConstantOfShape"
        if large and all(value is None or weights.is_constant(value) for value in node.inputs):
            return
        with np.errstate(all="ignore"):
            for output, fact in zip(node.outputs, rule(self, node), strict=False):
                if fact is not None and output in self.shape:
                    self._keep(output, *fact)

    def known(self, value: ir.Value | None) -> Known | None:
        """What is known of an input; constants are read on demand."""
        if value is None:
            return None
        fact = self.found.get(value)
        if fact is None:
            array = self.arguments.constant(value)
            if array is not None:
                kind = np.float64 if self.type_of(value).is_floating_point() else np.int64
                fact = Known(np.ones((1,) * array.ndim, dtype=bool), array.astype(kind))
        return fact

    def decides(self, value: ir.Value, number: int) -> bool:
        """Whether any element of an input is known to be `number`."""
        array = weights.constant(value)
        if array is not None:
            return bool((array == number).any())
        fact = self.found.get(value)
        return fact is not None and bool((fact.mask & (fact.value == number)).any())

    def known_or_nothing(self, value: ir.Value) -> Known:
        """What is known of an input with a known shape, in a form that can be computed with."""
        ones = (1,) * len(self.shape[value])
        return self.known(value) or Known(np.zeros(ones, dtype=bool), np.zeros(ones))

    def rank(self, value: ir.Value | None) -> int:
        return 0 if value is None else len(self.shape[value])

    def type_of(self, value: ir.Value | None) -> ir.DataType:
        if value is None:
            return ir.DataType.FLOAT
        return value.dtype or self._types.get(value, ir.DataType.FLOAT)

    def symbolic(self, value: ir.Value | None) -> tuple[bool, ...]:
        return () if value is None else self.arguments.symbolic(value)

    def _result_type(self, node: ir.Node) -> ir.DataType:
        """Type of a node's first output, for models that do not declare it."""
        stated = _stated_type(node)
        if stated is not None:
            return stated
        index = _TYPE_GIVERS.get(node.op_type, 0)
        if node.op_type == "QuantizeLinear" and argument(node, index) is None:
            return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
        return self.type_of(argument(node, index))

    def _keep(self, output: ir.Value, mask: Array, value: Array) -> None:
        """Bring a fact into its final form, and forget what does not hold at every size."""
        if not mask.any():
            return
        dtype = self.type_of(output)
        if not dtype.is_floating_point() and value.dtype.kind == "f":
            low, high = _integer_range(dtype)
            mask = mask & np.isfinite(value) & (value > low - 1) & (value < high + 1)
            value = np.where(mask, value, 0)
        value = round_to(value, dtype)
        if value.dtype.kind == "f":
            finite = np.isfinite(value)
            if not finite.all():
                mask, value = mask & finite, np.where(finite, value, 0.0)
        for axis, symbolic in enumerate(self.symbolic(output)):
            if symbolic and mask.shape[axis] > 1:
                mask = all_along(mask, [axis])
            if symbolic and value.shape[axis] > 1:
                first = value[(slice(None),) * axis + (slice(0, 1),)]
                mask = mask & all_along(value == first, [axis])
                value = first
        if not mask.all():
            value = np.where(mask, value, 0)
        mask = compress(mask)
        if mask.any():
            self.found[output] = Known(mask, compress(value))


_TRUTHS = frozenset(
    {
        "And",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Not",
        "Or",
        "Xor",
    }
)


_TYPE_GIVERS: Final = {
    "CastLike": 1,
    "Conv": 1,
    "ConvTranspose": 1,
    "DequantizeLinear": 1,
    "QuantizeLinear": 2,
    "Where": 1,
}
"""Which input has the type of the first output, where it is not the first."""


def _stated_type(node: ir.Node) -> ir.DataType | None:
    """Type of a node's first output, where the op, its attributes or its subgraphs say it; else None."""
    name = node.op_type
    if name in _TRUTHS:
        return ir.DataType.BOOL
    if name in {"Shape", "Size"}:
        return ir.DataType.INT64
    if name == "Cast":
        return ir.DataType(node.attributes.get_int("to", 1))
    if name == "ConstantOfShape":
        tensor = node.attributes.get_tensor("value")
        return ir.DataType.FLOAT if tensor is None else tensor.dtype
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            # the condition of an If says nothing of what its branches give
            inner = attribute.as_graph().outputs
            return inner[0].dtype or ir.DataType.FLOAT if inner else ir.DataType.FLOAT
    return None


def _integer_range(dtype: ir.DataType) -> tuple[float, float]:
    """Smallest and largest number of an integer type."""
    if dtype == ir.DataType.BOOL:
        return -math.inf, math.inf
    bits = int(dtype.bitwidth)
    if dtype.name.startswith("U"):
        return 0, 2.0**bits - 1
    return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1


def _uniform(array: Array, axes: Sequence[int]) -> Array:
    """Tell which elements do not vary along `axes`, of which the result keeps one position."""
    same: Array = np.ones((1,) * array.ndim, dtype=bool)
    for axis in axes:
        if array.shape[axis] > 1:
            first = array[(slice(None),) * axis + (slice(0, 1),)]
            same = same & all_along(array == first, axes)
    return same


def _first(array: Array, axes: Sequence[int]) -> Array:
    """The first position along `axes`, which stay as axes of size 1."""
    return array[
        tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(array.ndim))
    ]


def _space(rank: int) -> tuple[int, ...]:
    return tuple(range(2, rank))


def _channels(array: Array, rank: int) -> Array:
    """Put numbers, one a channel, into the shape that broadcasts against a tensor of `rank` axes."""
    return array.astype(np.float64).reshape((1, -1) + (1,) * (rank - 2))


# --- Elementwise ------------------------------------------------------------------------------------------------


def _unary(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    known = find.known(node.inputs[0])
    return [] if known is None else [(known.mask, UNARY[node.op_type](known.value, node))]


def _clip(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    known = find.known(node.inputs[0])
    if known is None:
        return []
    value = UNARY["Clip"](known.value, node) if find.opset < 11 else known.value
    for index, limit in ((1, np.maximum), (2, np.minimum)):
        bound = argument(node, index)
        if bound is not None:
            array = find.arguments.constant(bound)
            if array is None:
                return []
            value = limit(value, array.astype(value.dtype).reshape(()))
    return [(known.mask, value)]


def _binary(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    left, right = node.inputs
    if left is None or right is None or not _broadcasts(find, node):
        return []
    absorbing = _ABSORBING.get(node.op_type)
    rank = find.rank(node.outputs[0])
    both = all(weights.is_constant(value) or value in find.found for value in (left, right))
    # One operand can still decide alone, by what it absorbs.
    if not both and not (
        absorbing is not None
        and (find.decides(left, absorbing) or find.decides(right, absorbing))
    ):
        return []
    a, b = find.known_or_nothing(left), find.known_or_nothing(right)
    a_mask, a_value, b_mask, b_value = (
        widen(x, rank) for x in (a.mask, a.value, b.mask, b.value)
    )
    mask = a_mask & b_mask
    if absorbing is not None:
        mask = mask | (a_mask & (a_value == absorbing)) | (b_mask & (b_value == absorbing))
    if not mask.any():
        return []
    return [(mask, BINARY[node.op_type](a_value, b_value, node))]


# The operand that decides the result alone; unknown operands stand as 0, which gives that result.
_ABSORBING: Mapping[str, int] = {"And": 0, "Mul": 0, "Or": 1}


def _broadcasts(find: _Finder, node: ir.Node) -> bool:
    """Whether the node broadcasts as numpy does; before operator set 7 it aligned axes by an attribute."""
    shapes = {find.shape[value] for value in node.inputs if value is not None}
    return find.opset >= 7 or len(shapes) == 1


def _variadic(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    facts = [find.known(value) for value in node.inputs if value is not None]
    if any(fact is None for fact in facts) or not _broadcasts(find, node):
        return []
    rank = find.rank(node.outputs[0])
    function = VARIADIC[node.op_type]
    mask: Array = np.ones((1,) * rank, dtype=bool)
    value: Array | None = None
    for fact in facts:
        if fact is not None:
            mask = mask & widen(fact.mask, rank)
            wide = widen(fact.value, rank)
            value = wide if value is None else function(value, wide)
    if value is None:
        return []
    return [(mask, value / len(facts) if node.op_type == "Mean" else value)]


def _where(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    condition, yes, no = node.inputs
    if condition is None or yes is None or no is None:
        return []
    if find.known(condition) is None and (find.known(yes) is None or find.known(no) is None):
        return []
    rank = find.rank(node.outputs[0])
    c, a, b = (find.known_or_nothing(value) for value in (condition, yes, no))
    c_mask, a_mask, b_mask = (widen(fact.mask, rank) for fact in (c, a, b))
    c_value, a_value, b_value = (widen(fact.value, rank) for fact in (c, a, b))
    chosen = c_mask & np.where(c_value != 0, a_mask, b_mask)
    same = a_mask & b_mask & (a_value == b_value)
    return [(chosen | same, np.where(c_mask & (c_value == 0), b_value, a_value))]


def _dropout(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    training = argument(node, 2)
    if training is not None:
        array = find.arguments.constant(training)
        if array is None or array.any():
            return []
    known = find.known(node.inputs[0])
    return [] if known is None else [(known.mask, known.value)]


def _quantize(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    known = find.known(node.inputs[0])
    scale, zero = (
        find.arguments.constant(node.inputs[1]),
        find.arguments.constant(argument(node, 2)),
    )
    dtype = find.type_of(node.outputs[0])
    blocks = node.attributes.get_int("block_size", 0) != 0
    if known is None or scale is None or blocks or dtype.is_floating_point():
        return []
    if argument(node, 2) is not None and zero is None:
        return []
    axis = node.attributes.get_int("axis", 1)
    step = spread_scale(scale, known.value, axis=axis, block=0).astype(np.float32)
    value = np.rint(known.value.astype(np.float32) / step).astype(np.float64)
    if zero is not None:
        value = value + spread_scale(zero, known.value, axis=axis, block=0).astype(np.float64)
    return [(known.mask, np.clip(value, *_integer_range(dtype)))]


def _dequantize(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    known = find.known(node.inputs[0])
    scale, zero = (
        find.arguments.constant(node.inputs[1]),
        find.arguments.constant(argument(node, 2)),
    )
    if known is None or scale is None or node.attributes.get_int("block_size", 0) != 0:
        return []
    if argument(node, 2) is not None and zero is None:
        return []
    axis = node.attributes.get_int("axis", 1)
    value = dequantize(known.value, scale, zero, axis=axis, block=0)
    return [(known.mask, value.astype(np.float64))]


# --- Movement ---------------------------------------------------------------------------------------------------


def _move(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    data = [value for value in sources if value is not None]
    fill: float = 0
    if node.op_type == "Pad":
        fill = node.attributes.get_float("value", 0.0)
        given = argument(node, 2)
        if given is not None:
            array = find.arguments.constant(given)
            if array is None:
                return []
            fill = float(array.reshape(()))
    elif all(find.known(value) is None for value in data):
        return []
    move = find_move(node, find.arguments)
    if move is None:
        return []
    facts = [find.known_or_nothing(value) for value in data]
    masks = move.forward([fact.mask for fact in facts], fill=True)
    values = move.forward([fact.value for fact in facts], fill=fill)
    return list(zip(masks, values, strict=True))


def _gather(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    data, chosen = node.inputs
    if data is None or chosen is None:
        return []
    if find.arguments.constant(chosen) is not None:
        return _move(find, node)
    # Whatever is chosen, it is one of the entries along the axis: known where these are all the same.
    axis = normalise(node.attributes.get_int("axis", 0), find.rank(data))
    table = weights.constant(data)
    if table is not None:
        if table.shape[axis] > 1 and not (table.take([0], axis) == table.take([1], axis)).any():
            return []
        mask = _uniform(table, (axis,))
        value = table.take([0], axis).astype(np.float64)
    else:
        known = find.known(data)
        if known is None:
            return []
        mask = all_along(known.mask, [axis]) & _uniform(known.value, (axis,))
        value = _first(known.value, (axis,))
    ones = (1,) * find.rank(chosen)
    mask, value = (
        x.reshape(x.shape[:axis] + ones + x.shape[axis + 1 :]) for x in (mask, value)
    )
    return [(mask, value)]


def _constant_of_shape(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    tensor = node.attributes.get_tensor("value")
    number = 0.0 if tensor is None else float(tensor.numpy().reshape(()))
    ones = (1,) * find.rank(node.outputs[0])
    return [(np.ones(ones, dtype=bool), np.full(ones, number))]


def _resize(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    known = find.known(source)
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if source is None or known is None or mode == "tf_crop_and_resize":
        return []
    before, after = find.shape[source], find.shape[node.outputs[0]]
    unsure = [
        one or two
        for one, two in zip(find.symbolic(source), find.symbolic(node.outputs[0]), strict=True)
    ]
    resized = [
        axis for axis in range(len(before)) if before[axis] != after[axis] or unsure[axis]
    ]
    indices = {
        axis: np.repeat(np.arange(before[axis]), after[axis] // before[axis])
        for axis in resized
        if not unsure[axis] and after[axis] % before[axis] == 0
    }
    if len(indices) == len(resized) and _repeats(node, mode):
        pick = Pick(before, indices)
        return [
            (pick.forward([known.mask], fill=False)[0], pick.forward([known.value], fill=0)[0])
        ]
    # Interpolation between equal numbers gives that number.
    mask = all_along(known.mask, resized) & _uniform(known.value, resized)
    return [(mask, _first(known.value, resized))]


def _repeats(node: ir.Node, mode: str) -> bool:
    """Whether a resize by a whole factor repeats each element that many times."""
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    return node.op_type == "Upsample" or (mode, rounding) in {
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("asymmetric", "floor"),
    }


# --- Sums of products -------------------------------------------------------------------------------------------


def _conv(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source, kernel = node.inputs[0], find.arguments.constant(node.inputs[1])
    bias_input = argument(node, 2)
    bias = find.arguments.constant(bias_input)
    if source is None or kernel is None or (bias_input is not None and bias is None):
        return []
    groups = node.attributes.get_int("group", 1)
    kernel = outputs_first(node, kernel)
    rows, columns = kernel.shape[:2]
    rank = kernel.ndim
    offset = np.zeros(rows) if bias is None else bias.astype(np.float64)
    known = find.known_or_nothing(source)
    certain = all_along(known.mask & _uniform(known.value, (0,)), (0, *_space(rank)))
    certain = np.broadcast_to(certain.ravel(), groups * columns)
    out: Array = offset.reshape((1, -1) + (1,) * (rank - 2))
    if not certain.any():
        return [(~any_row(kernel).reshape(out.shape), out)]
    group = np.repeat(np.arange(groups), rows // groups)
    reads = nonzero_blocks(kernel)
    fine: Array = ~(reads & ~certain.reshape(groups, columns)[group]).any(axis=1)
    values = np.broadcast_to(known.value[0], (groups * columns, *known.value.shape[2:]))
    nonzero: Array = (values != 0).any(axis=tuple(range(1, values.ndim)))
    active = reads & (nonzero.reshape(groups, columns)[group])
    needed = np.flatnonzero(fine & active.any(axis=1))
    if len(needed):
        window = _window(find, node, kernel.shape[2:])
        sums = _slide_groups(kernel, values, needed, active=active, group=group, window=window)
        if sums is None:
            fine[needed] = False
        else:
            out = np.broadcast_to(out, (1, rows, *sums.shape[1:])).copy()
            out[0, needed] += sums
    return [(fine.reshape((1, -1) + (1,) * (rank - 2)), out)]


def _slide_groups(
    kernel: Array,
    values: Array,
    rows: Array,
    *,
    active: Array,
    group: Array,
    window: Sequence[Axis],
) -> Array | None:
    """Convolve the known inputs of some output channels.

    Args:
        kernel: shape `(outputs, inputs of a group, *taps)`.
        values: compact, shape `(inputs, *spatial)`.
        rows: the output channels wanted.
        active: bool, shape `(outputs, inputs of a group)`; which inputs add anything to which output.
        group: the group of each output channel.
        window: the geometry.

    Returns:
        compact, shape `(len(rows), *out)`; None if the sums depend on an unknown size.
    """
    columns = kernel.shape[1]
    if group[-1] == 0:
        used = np.flatnonzero(active[rows].any(axis=0))
        return slide(kernel[np.ix_(rows, used)].astype(np.float64), values[used][None], window)
    width = values[0].size
    if columns == 1 or width == 1:
        read = values[group[rows][:, None] * columns + np.arange(columns)]
        return slide(kernel[rows].astype(np.float64), read, window)
    pieces = []
    for number in np.unique(group[rows]):
        mine = rows[group[rows] == number]
        used = np.flatnonzero(active[mine].any(axis=0))
        weight = kernel[np.ix_(mine, used)].astype(np.float64)
        piece = slide(weight, values[number * columns + used][None], window)
        if piece is None:
            return None
        pieces.append(piece)
    return np.concatenate(pieces)


def _window(find: _Finder, node: ir.Node, kernel: Sequence[int]) -> tuple[Axis, ...]:
    source, target = node.inputs[0], node.outputs[0]
    unsure = [a or b for a, b in zip(find.symbolic(source), find.symbolic(target), strict=True)]
    before = () if source is None else find.shape[source]
    return find_window(node, kernel, before[2:], find.shape[target][2:], unsure[2:])


def _factor(find: _Finder, value: ir.Value) -> Factor:
    known = find.found.get(value)
    return Factor.of(
        value, find.arguments, None if known is None else (known.mask, known.value)
    )


def _matmul(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    left, right = node.inputs
    if left is None or right is None:
        return []
    a, b = _factor(find, left), _factor(find, right)
    row, column = len(a.shape) == 1, len(b.shape) == 1
    fact = contract(a.reshaped((1, -1)) if row else a, b.reshaped((-1, 1)) if column else b)
    if fact is None:
        fact = np.zeros((1,) * max(a.mask.ndim, b.mask.ndim, 2), dtype=bool), np.zeros(())
    mask, value = fact
    if not column and not b.is_constant and _sums_to_one(find, left):
        # Weights that sum to one leave alone what is the same in every row.
        inner = len(b.shape) - 2
        same = all_along(b.mask, [inner]) & _uniform(b.value, (inner,))
        value = np.where(mask, value, widen(_first(b.value, (inner,)), mask.ndim))
        mask = mask | widen(same, mask.ndim)
    drop = (-2,) * row + (-1,) * column
    value = widen(value, mask.ndim)
    return [(np.squeeze(mask, drop), np.squeeze(value, drop))] if mask.any() else []


def _sums_to_one(find: _Finder, value: ir.Value) -> bool:
    """Whether the last axis of a tensor holds the weights that a Softmax made."""
    node = value.producer()
    while (
        node is not None
        and is_standard(node)
        and node.op_type in {"Identity", "Dropout", "Cast"}
    ):
        source = node.inputs[0]
        if source is None or (node.op_type == "Dropout" and argument(node, 2) is not None):
            return False
        if not find.type_of(node.outputs[0]).is_floating_point():
            return False
        node = source.producer()
    if node is None or node.op_type != "Softmax" or not is_standard(node):
        return False
    rank = find.rank(value)
    axis = node.attributes.get_int("axis", -1 if find.opset >= 13 else 1)
    return normalise(axis, rank) == rank - 1


def _gemm(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    left, right = node.inputs[:2]
    if left is None or right is None:
        return []
    a, b = _factor(find, left), _factor(find, right)
    a = a.transposed() if node.attributes.get_int("transA", 0) else a
    b = b.transposed() if node.attributes.get_int("transB", 0) else b
    fact = contract(a, b)
    if fact is None:
        return []
    mask, value = fact[0], fact[1] * node.attributes.get_float("alpha", 1.0)
    added, scale = argument(node, 2), node.attributes.get_float("beta", 1.0)
    if added is not None and scale != 0:
        known = find.known(added)
        if known is None:
            return []
        mask = mask & widen(known.mask, 2)
        value = value + scale * widen(known.value, 2)
    return [(mask, value)]


def _einsum(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    factors = [_factor(find, value) for value in node.inputs if value is not None]
    labels = subscripts(node)
    if labels is None or len(factors) != 2:
        return []
    return [contract_labelled(factors[0], factors[1], labels)]


# --- Normalisations ---------------------------------------------------------------------------------------------


def _batch_norm(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    arrays = [find.arguments.constant(value) for value in node.inputs[1:5]]
    training = node.attributes.get_int("training_mode", 0) or not node.attributes.get_int(
        "spatial", 1
    )
    if (
        source is None
        or training
        or (find.opset < 7 and not node.attributes.get_int("is_test", 0))
    ):
        return []
    rank = find.rank(source)
    if any(array is None for array in arrays):
        return []
    scale, bias, mean, variance = (
        _channels(array, rank) for array in arrays if array is not None
    )
    if find.known(source) is None and (scale != 0).all():
        return []
    known = find.known_or_nothing(source)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return [(known.mask | (scale == 0), known.value * factor + (bias - mean * factor))]


def _standardise(
    value: Array, axes: Sequence[int], epsilon: float, *, centred: bool = True
) -> Array:
    """Subtract the mean and divide by the deviation; a uniform axis, kept once, changes neither."""
    axes = tuple(axes)
    centre = value - value.mean(axis=axes, keepdims=True) if centred else value
    result: Array = centre / np.sqrt((centre * centre).mean(axis=axes, keepdims=True) + epsilon)
    return result


def _instance_norm(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    scale, bias = (find.arguments.constant(value) for value in node.inputs[1:3])
    if source is None or scale is None or bias is None:
        return []
    if find.known(source) is None and scale.all():
        return []
    known = find.known_or_nothing(source)
    rank = find.rank(source)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    wide = _channels(scale, rank)
    mask = all_along(known.mask, _space(rank)) | (wide == 0)
    return [
        (mask, _standardise(known.value, _space(rank), epsilon) * wide + _channels(bias, rank))
    ]


def _group_norm(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    scale, bias = (find.arguments.constant(value) for value in node.inputs[1:3])
    groups = node.attributes.get_int("num_groups", 1)
    if source is None or scale is None or bias is None:
        return []
    if find.known(source) is None and scale.all():
        return []
    known = find.known_or_nothing(source)
    shape = find.shape[source]
    # Before operator set 21 there was one scale a group.
    scale, bias = (np.repeat(x, shape[1] // x.size) for x in (scale, bias))
    wide, split = len(shape) + 1, (shape[0], groups, shape[1] // groups, *shape[2:])
    axes = range(2, wide)
    mask = all_along(reshape(known.mask, shape, split), axes)
    value = reshape(known.value, shape, split)
    value = _standardise(value, axes, node.attributes.get_float("epsilon", 1e-5))
    mask, value = reshape(mask, split, shape), reshape(value, split, shape)
    factor = _channels(scale, len(shape))
    return [(mask | (factor == 0), value * factor + _channels(bias, len(shape)))]


def _layer_norm(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    scale = find.arguments.constant(node.inputs[1])
    bias = find.arguments.constant(argument(node, 2))
    if source is None or scale is None or (argument(node, 2) is not None and bias is None):
        return []
    if find.known(source) is None and scale.all():
        return []
    known = find.known_or_nothing(source)
    rank = find.rank(source)
    axes = range(normalise(node.attributes.get_int("axis", -1), rank), rank)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    value = _standardise(
        known.value, axes, epsilon, centred=node.op_type == "LayerNormalization"
    )
    value = value * widen(scale.astype(np.float64), rank)
    if bias is not None:
        value = value + widen(bias.astype(np.float64), rank)
    mask = all_along(known.mask, axes) | widen(scale == 0, rank)
    return [(mask, value)]


def _lrn(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    known = find.known(source)
    if source is None or known is None:
        return []
    size = node.attributes.get_int("size", 1)
    channels = find.shape[source][1]
    mask = np.broadcast_to(known.mask, (known.mask.shape[0], channels, *known.mask.shape[2:]))
    value = np.broadcast_to(
        known.value, (known.value.shape[0], channels, *known.value.shape[2:])
    )
    whole = np.ones_like(mask)
    squares = np.zeros_like(value)
    # A window that is cut off at either end counts its absent channels as zeros.
    for step in range(max(-((size - 1) // 2), 1 - channels), min(size // 2, channels - 1) + 1):
        low, high = max(0, -step), min(channels, channels - step)
        if high > low:
            whole[:, low:high] &= mask[:, low + step : high + step]
            squares[:, low:high] += value[:, low + step : high + step] ** 2
    scale = node.attributes.get_float("alpha", 1e-4) / size
    divisor = (
        node.attributes.get_float("bias", 1.0) + scale * squares
    ) ** node.attributes.get_float("beta", 0.75)
    return [(mask & (whole | (value == 0)), value / divisor)]


def _softmax(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    known = find.known(source)
    if source is None or known is None:
        return []
    shape = find.shape[source]
    axis = normalise(node.attributes.get_int("axis", -1 if find.opset >= 13 else 1), len(shape))
    # Before operator set 13 all axes from the given one on were one.
    axes = (axis,) if find.opset >= 13 else tuple(range(axis, len(shape)))
    if any(find.symbolic(source)[axis] for axis in axes):
        return []
    mask = all_along(known.mask, axes)
    wide = [
        shape[axis] if axis in axes else size for axis, size in enumerate(known.value.shape)
    ]
    if not mask.any():
        return []
    value = np.broadcast_to(known.value, wide)
    value = value - value.max(axis=axes, keepdims=True)
    total = np.exp(value).sum(axis=axes, keepdims=True)
    return [
        (mask, value - np.log(total) if node.op_type == "LogSoftmax" else np.exp(value) / total)
    ]


# --- Pools and reductions ---------------------------------------------------------------------------------------


def _pool(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    known = find.known(node.inputs[0])
    if known is None:
        return []
    space = _space(known.value.ndim)
    mask = all_along(known.mask, space)
    if not mask.any():
        return []
    zero = mask & ~np.asarray(known.value.any(axis=space, keepdims=True))
    counted = (
        node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad", 0) == 1
    )
    hanging = node.attributes.get_int("ceil_mode", 0) == 1
    if node.op_type == "LpPool" or (hanging and counted):
        # The result depends on how many numbers a window holds, and where windows hang over the end runtimes disagree
        # on that; zeros stay zeros.
        return [(zero, np.zeros((1,) * mask.ndim))]
    uniform = all(known.value.shape[axis] == 1 for axis in space)
    window = _window(find, node, node.attributes.get_ints("kernel_shape", []))
    if uniform and (not counted or all(axis.flat for axis in window)):
        return [(mask, known.value)]
    if node.op_type == "MaxPool":
        value = pool_map(known.value, window)
    else:
        value = _average(known.value, window, counted=counted)
    if value is None:
        same = zero if counted else mask & _uniform(known.value, space)
        return [(same, _first(known.value, space))]
    return [(mask, value)]


def _average(value: Array, window: Sequence[Axis], *, counted: bool) -> Array | None:
    """Average over windows, each channel of each batch for itself; padding counts if `counted`."""
    batch, channels, *space = value.shape
    rows = batch * channels
    kernel = [axis.kernel for axis in window]
    sums = slide(np.ones((rows, 1, *kernel)), value.reshape(rows, 1, *space), window)
    if sums is None:
        return None
    result = sums.reshape(batch, channels, *sums.shape[1:])
    for at, axis in enumerate(window, start=2):
        whole = counted or (value.shape[at] == 1 and axis.flat)
        count = np.full(1, axis.kernel) if whole else axis.coverage().sum(axis=1)
        result = result / count.reshape([-1 if a == at else 1 for a in range(result.ndim)])
    return result


def _reduce(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    known = find.known(source)
    if source is None or known is None:
        return []
    rank = find.rank(source)
    keep = bool(node.attributes.get_int("keepdims", 1))
    axes = find.arguments.setting(node, 1, "axes")
    if axes is None and argument(node, 1) is not None:
        return []
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return []
        axes = list(range(rank))
    return [
        _reduced(
            find,
            source,
            known,
            node.op_type,
            [normalise(axis, rank) for axis in axes],
            keep=keep,
        )
    ]


def _global_pool(find: _Finder, node: ir.Node) -> Sequence[Fact | None]:
    source = node.inputs[0]
    known = find.known(source)
    if source is None or known is None:
        return []
    name = _GLOBAL[node.op_type]
    if name == "ReduceL2" and node.attributes.get_int("p", 2) != 2:
        return []
    return [_reduced(find, source, known, name, _space(find.rank(source)), keep=True)]


_GLOBAL = {
    "GlobalAveragePool": "ReduceMean",
    "GlobalLpPool": "ReduceL2",
    "GlobalMaxPool": "ReduceMax",
}

_EXTREMES: Mapping[str, Callable[..., Array]] = {
    "ReduceMax": np.max,
    "ReduceMean": np.mean,
    "ReduceMin": np.min,
}
_BEFORE: Mapping[str, Callable[[Array], Array]] = {
    "ReduceL1": np.abs,
    "ReduceL2": np.square,
    "ReduceLogSumExp": np.exp,
    "ReduceSumSquare": np.square,
}
_AFTER: Mapping[str, Callable[[Array], Array]] = {
    "ReduceL2": np.sqrt,
    "ReduceLogSum": np.log,
    "ReduceLogSumExp": np.log,
}


def _reduced(
    find: _Finder, source: ir.Value, known: Known, name: str, axes: Sequence[int], *, keep: bool
) -> Fact | None:
    """Reduce a compact array over axes of the tensor it stands for."""
    axes = tuple(axes)
    mask = all_along(known.mask, axes)
    value = known.value
    alike = [axis for axis in axes if value.shape[axis] == 1]
    count = math.prod(find.shape[source][axis] for axis in alike)
    unsure = any(find.symbolic(source)[axis] for axis in alike)
    value = _BEFORE[name](value) if name in _BEFORE else value
    if name in _EXTREMES:
        value = _EXTREMES[name](value, axis=axes, keepdims=True)
    elif name == "ReduceProd":
        value = value.prod(axis=axes, keepdims=True)
        mask = mask & np.isin(value, (0, 1)) if unsure else mask
        value = value**count
    else:
        value = value.sum(axis=axes, keepdims=True)
        mask = mask & (value == 0) if unsure else mask
        value = value * count
    value = _AFTER[name](value) if name in _AFTER else value
    return (mask, value) if keep else (mask.squeeze(axes), value.squeeze(axes))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(VARIADIC, _variadic),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(_GLOBAL, _global_pool),
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ),
        _reduce,
    ),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "DequantizeLinear": _dequantize,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "QuantizeLinear": _quantize,
    "RMSNormalization": _layer_norm,
    "Resize": _resize,
    "Softmax": _softmax,
    "Upsample": _resize,
    "Where": _where,
}
