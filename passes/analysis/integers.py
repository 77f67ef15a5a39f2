"""Evaluating a node with numpy: the integer arithmetic that computes sizes, and what in it hangs on a free size.

Besides values, `taint` carries flags through the same nodes: one bool an element, True where the element depends on
a size that the model leaves open. It errs on the side of True: `min(height, 100)` is flagged although it may be 100
for every height that was tried.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from passes.analysis.compact import Array

__all__ = [
    "ELEMENTWISE",
    "MOVES",
    "RULES",
    "evaluate",
    "evaluated_size",
    "ints",
    "taint",
    "whole",
]

Inputs: TypeAlias = Sequence[Array | None]


def evaluate(node: ir.Node, inputs: Inputs) -> list[Array] | None:
    """The outputs of `node` on `inputs`; None if there is no rule for it, or it does not accept these inputs.

    An absent optional input is None in `inputs`.
    """
    if node.domain not in {"", "ai.onnx"} or node.op_type not in RULES:
        return None
    try:
        with np.errstate(all="ignore"):
            found = RULES[node.op_type](node, inputs)
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError, MemoryError):
        # The node would fail at run time too, or is used in a way that the rule does not know.
        return None
    outputs = found if isinstance(found, list) else [found]
    return [np.asarray(output) for output in outputs]


def taint(
    node: ir.Node, inputs: Inputs, flags: Sequence[Array | None], outputs: Sequence[Array]
) -> list[Array]:
    """Which elements of `outputs` depend on a flagged element of `inputs`.

    Args:
        node: a node that `evaluate` has evaluated.
        inputs: what it was evaluated on.
        flags: bool arrays of the shapes of `inputs`.
        outputs: what came out.

    Returns:
        bool arrays of the shapes of `outputs`.
    """
    if not any(flag is not None and flag.any() for flag in flags):
        return [np.zeros(output.shape, dtype=bool) for output in outputs]
    present = [flag for flag in flags if flag is not None]
    if node.op_type in ELEMENTWISE:
        joined = functools.reduce(np.logical_or, present)
        return [np.broadcast_to(joined, outputs[0].shape)]
    moved = MOVES.get(node.op_type, ())
    steering = [flag for index, flag in enumerate(flags) if moved and index not in moved]
    if moved and not any(flag is not None and flag.any() for flag in steering):
        mixed = [
            flag if index in moved else data
            for index, (data, flag) in enumerate(zip(inputs, flags, strict=True))
        ]
        found = evaluate(node, mixed)
        if found is not None:
            return found
    return [np.ones(output.shape, dtype=bool) for output in outputs]


def evaluated_size(node: ir.Node, inputs: Inputs) -> int:
    """Upper bound of the elements that `evaluate` would make, found without making them."""
    largest: tuple[int, ...]
    try:
        match node.op_type:
            case "Gather":
                data = given(inputs, 0)
                kept = data.size // max(data.shape[node.attributes.get_int("axis", 0)], 1)
                largest = (kept, given(inputs, 1).size)
            case "Expand":
                largest = np.broadcast_shapes(given(inputs, 0).shape, whole(inputs, 1))
            case "Tile":
                largest = (given(inputs, 0).size, *whole(inputs, 1))
            case "NonZero":
                largest = (given(inputs, 0).size, max(given(inputs, 0).ndim, 1))
            case "ConstantOfShape":
                largest = whole(inputs, 0)
            case "Range":
                start, limit, delta = (given(inputs, index).item() for index in range(3))
                largest = (max(0, math.ceil((limit - start) / delta)),)
            case name if name in ELEMENTWISE:
                largest = np.broadcast_shapes(
                    *(data.shape for data in inputs if data is not None)
                )
            case _:
                largest = (sum(data.size for data in inputs if data is not None),)
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError):
        return 0  # the evaluation fails in the same way, and makes nothing
    return math.prod(largest)


def given(inputs: Inputs, index: int) -> Array:
    """Input `index`, which must be there."""
    found = inputs[index] if index < len(inputs) else None
    if found is None:
        raise ValueError(index)
    return found


def whole(inputs: Inputs, index: int) -> tuple[int, ...]:
    """Input `index` as a tuple of integers."""
    return tuple(int(number) for number in given(inputs, index).flat)


def ints(node: ir.Node, inputs: Inputs, index: int, name: str) -> list[int] | None:
    """A list of integers that is an input in newer opsets and an attribute in older ones."""
    if index < len(inputs) and inputs[index] is not None:
        return list(whole(inputs, index))
    found = node.attributes.get_ints(name)
    return None if found is None else list(found)


def elementwise(function: Callable[..., Array]) -> Callable[[ir.Node, Inputs], Array]:
    """A rule for one or two inputs."""
    return lambda _, inputs: function(*(given(inputs, index) for index in range(len(inputs))))


def variadic(function: Callable[[Array, Array], Array]) -> Callable[[ir.Node, Inputs], Array]:
    """A rule for any number of inputs."""
    return lambda _, inputs: functools.reduce(
        function, (given(inputs, index) for index in range(len(inputs)))
    )


def divide(a: Array, b: Array) -> Array:
    """Integers are divided towards zero, unlike numpy's floor division."""
    if a.dtype.kind not in "iu":
        return np.asarray(a / b, dtype=a.dtype)
    if not np.all(b):
        raise ZeroDivisionError
    whole = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) == (b < 0), whole, -whole), dtype=a.dtype)


def modulo(node: ir.Node, inputs: Inputs) -> Array:
    """The sign follows the divisor, or with `fmod` the dividend."""
    a, b = given(inputs, 0), given(inputs, 1)
    if a.dtype.kind in "iu" and not np.all(b):
        raise ZeroDivisionError
    found: Array = np.fmod(a, b) if node.attributes.get_int("fmod", 0) else np.mod(a, b)
    return found


def cast(node: ir.Node, inputs: Inputs) -> Array:
    """To the numpy form of the target type."""
    return given(inputs, 0).astype(ir.DataType(node.attributes.get_int("to", 0)).numpy())


def gather(node: ir.Node, inputs: Inputs) -> Array:
    """Negative indices count from the end."""
    axis = node.attributes.get_int("axis", 0)
    return np.take(given(inputs, 0), given(inputs, 1), axis=axis)


def gather_elements(node: ir.Node, inputs: Inputs) -> Array:
    """Negative indices count from the end."""
    data, axis = given(inputs, 0), node.attributes.get_int("axis", 0)
    indices = given(inputs, 1)
    return np.take_along_axis(
        data, np.where(indices < 0, indices + data.shape[axis], indices), axis
    )


def slice_(node: ir.Node, inputs: Inputs) -> Array:
    """Both forms: attributes up to opset 9, inputs from 10 on."""
    data = given(inputs, 0)
    starts, ends = ints(node, inputs, 1, "starts"), ints(node, inputs, 2, "ends")
    if starts is None or ends is None:
        raise ValueError(node.name)
    axes = ints(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = ints(node, inputs, 4, "steps") or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return data[tuple(cut)]


def concat(node: ir.Node, inputs: Inputs) -> Array:
    """Along `axis`."""
    parts = [given(inputs, index) for index in range(len(inputs))]
    return np.concatenate(parts, axis=node.attributes.get_int("axis", 0))


def split(node: ir.Node, inputs: Inputs) -> list[Array]:
    """By sizes, or into equal parts of which the last may be smaller."""
    data, axis = given(inputs, 0), node.attributes.get_int("axis", 0)
    sizes, count = ints(node, inputs, 1, "split"), len(node.outputs)
    if sizes is None:
        step = math.ceil(data.shape[axis] / count)
        sizes = [step] * count
    return list(np.split(data, np.cumsum(sizes)[:-1], axis=axis))


def squeeze(node: ir.Node, inputs: Inputs) -> Array:
    """All axes of size 1, or the given ones."""
    axes = ints(node, inputs, 1, "axes")
    return np.squeeze(given(inputs, 0), None if axes is None else tuple(axes))


def unsqueeze(node: ir.Node, inputs: Inputs) -> Array:
    """Axes count in the result."""
    return np.expand_dims(given(inputs, 0), tuple(ints(node, inputs, 1, "axes") or ()))


def reshape(node: ir.Node, inputs: Inputs) -> Array:
    """0 keeps a size unless `allowzero`; -1 is what remains."""
    data = given(inputs, 0)
    sizes = list(whole(inputs, 1))
    if not node.attributes.get_int("allowzero", 0):
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return data.reshape(sizes)


def flatten(node: ir.Node, inputs: Inputs) -> Array:
    """To two axes."""
    data, axis = given(inputs, 0), node.attributes.get_int("axis", 1)
    first = math.prod(data.shape[: axis % (data.ndim or 1) if axis < 0 else axis])
    return data.reshape(first, data.size // first if first else 0)


def transpose(node: ir.Node, inputs: Inputs) -> Array:
    """Reversed axes if there is no `perm`."""
    return np.transpose(given(inputs, 0), node.attributes.get_ints("perm"))


def expand(_: ir.Node, inputs: Inputs) -> Array:
    """Both ways: a size of 1 in the target keeps the data's size."""
    data = given(inputs, 0)
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, whole(inputs, 1)))


def constant_of_shape(node: ir.Node, inputs: Inputs) -> Array:
    """float32 zeros if no value is given."""
    value = node.attributes.get_tensor("value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return np.full(
        [int(size) for size in given(inputs, 0).flat], fill.reshape(-1)[0], fill.dtype
    )


def range_(_: ir.Node, inputs: Inputs) -> Array:
    """`limit` is not reached."""
    start, limit, delta = (given(inputs, index).item() for index in range(3))
    found: Array = np.arange(start, limit, delta, dtype=given(inputs, 0).dtype)
    return found


def reduce_(function: Callable[..., Array]) -> Callable[[ir.Node, Inputs], Array]:
    """Axes as input or attribute; none means all, unless `noop_with_empty_axes`."""

    def rule(node: ir.Node, inputs: Inputs) -> Array:
        data, axes = given(inputs, 0), ints(node, inputs, 1, "axes")
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return data
        keep = node.attributes.get_int("keepdims", 1) == 1
        found = function(data, axis=tuple(axes) if axes else None, keepdims=keep)
        return np.asarray(found, dtype=data.dtype)

    return rule


ELEMENTWISE: Mapping[str, Callable[[ir.Node, Inputs], Array]] = {
    "Abs": elementwise(np.abs),
    "Add": elementwise(np.add),
    "And": elementwise(np.logical_and),
    "Cast": cast,
    "Ceil": elementwise(np.ceil),
    "Div": elementwise(divide),
    "Equal": elementwise(np.equal),
    "Floor": elementwise(np.floor),
    "Greater": elementwise(np.greater),
    "GreaterOrEqual": elementwise(np.greater_equal),
    "Less": elementwise(np.less),
    "LessOrEqual": elementwise(np.less_equal),
    "Max": variadic(np.maximum),
    "Min": variadic(np.minimum),
    "Mod": modulo,
    "Mul": elementwise(np.multiply),
    "Neg": elementwise(np.negative),
    "Not": elementwise(np.logical_not),
    "Or": elementwise(np.logical_or),
    "Pow": elementwise(lambda a, b: np.asarray(np.power(a, b), dtype=a.dtype)),
    "Reciprocal": elementwise(lambda a: np.asarray(1 / a, dtype=a.dtype)),
    "Round": elementwise(np.round),
    "Sign": elementwise(np.sign),
    "Sqrt": elementwise(np.sqrt),
    "Sub": elementwise(np.subtract),
    "Where": elementwise(np.where),
    "Xor": elementwise(np.logical_xor),
}
"""Ops that treat each element by itself, with broadcasting."""

SHAPERS: Mapping[str, Callable[[ir.Node, Inputs], Array | list[Array]]] = {
    "Concat": concat,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "Identity": elementwise(lambda a: a),
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": elementwise(np.tile),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""Ops that move elements and compute nothing."""

MOVES: Mapping[str, tuple[int, ...] | range] = {
    op_type: range(2**31) if op_type == "Concat" else (0,) for op_type in SHAPERS
}
"""Which inputs of those hold the elements that move; the others steer."""

RULES: Mapping[str, Callable[[ir.Node, Inputs], Array | list[Array]]] = {
    **ELEMENTWISE,
    **SHAPERS,
    "ConstantOfShape": constant_of_shape,
    "NonZero": elementwise(lambda a: np.asarray(np.nonzero(np.atleast_1d(a)), dtype=np.int64)),
    "Range": range_,
    "ReduceMax": reduce_(np.max),
    "ReduceMin": reduce_(np.min),
    "ReduceProd": reduce_(np.prod),
    "ReduceSum": reduce_(np.sum),
}
