"""Output shapes of nodes, where ONNX's own inference stops because it does not see what a size was computed from.

Only ops whose sizes hang on the contents of inputs need a rule. The others (elementwise, MatMul, ...) save rounds:
what follows a settled Reshape is settled in the same sweep, without another run of the inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from passes.analysis import integers
from passes.analysis.compact import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Shape", "output_sizes"]

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Sequence[Shape | None]
Contents: TypeAlias = Sequence[Array | None]


def output_sizes(node: ir.Node, shapes: Shapes, data: Contents) -> list[Shape]:
    """Shapes of the outputs of `node`; empty if no rule finds them.

    Args:
        node: a node of the standard domain.
        shapes: the shape of each input, None where unknown or absent.
        data: the contents of each input, None where unknown.
    """
    rule = RULES.get(node.op_type)
    if rule is None or not shapes or shapes[0] is None:
        return []
    try:
        found = rule(node, shapes[0], shapes, data)
    except (ValueError, IndexError, ZeroDivisionError):
        return []  # they do not fit together
    return found if all(size >= 0 for shape in found for size in shape) else []


def all_known(shapes: Shapes) -> list[Shape]:
    """The shapes, if none is missing."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        raise ValueError(shapes)
    return known


def same(_node: ir.Node, first: Shape, _shapes: Shapes, _data: Contents) -> list[Shape]:
    """As the first input."""
    return [first]


def broadcast(_node: ir.Node, _first: Shape, shapes: Shapes, _data: Contents) -> list[Shape]:
    """All inputs with each other."""
    return [np.broadcast_shapes(*all_known(shapes))]


def view(node: ir.Node, first: Shape, _shapes: Shapes, data: Contents) -> list[Shape]:
    """Do to a view of no memory what the node does to the data."""
    stand_in = np.broadcast_to(np.zeros((), dtype=bool), first)
    found = integers.evaluate(node, [stand_in, *data[1:]])
    return [part.shape for part in found or ()]


def concat(node: ir.Node, first: Shape, shapes: Shapes, _data: Contents) -> list[Shape]:
    """The sum on one axis."""
    axis = node.attributes.get_int("axis", 0) % len(first)
    parts = all_known(shapes)
    if any(
        part[:axis] + part[axis + 1 :] != first[:axis] + first[axis + 1 :] for part in parts
    ):
        raise ValueError(parts)
    return [(*first[:axis], sum(part[axis] for part in parts), *first[axis + 1 :])]


def gather(node: ir.Node, first: Shape, shapes: Shapes, _data: Contents) -> list[Shape]:
    """The indices' shape in place of one axis."""
    axis = node.attributes.get_int("axis", 0) % len(first)
    return [first[:axis] + all_known(shapes)[1] + first[axis + 1 :]]


def matmul(_node: ir.Node, first: Shape, shapes: Shapes, _data: Contents) -> list[Shape]:
    """Leading axes broadcast; vectors take part as numpy has it."""
    second = all_known(shapes)[1]
    a, b = first if len(first) > 1 else (1, *first), second if len(second) > 1 else (*second, 1)
    if a[-1] != b[-2]:
        raise ValueError(shapes)
    rows, columns = a[-2:-1] if len(first) > 1 else (), b[-1:] if len(second) > 1 else ()
    return [np.broadcast_shapes(a[:-2], b[:-2]) + rows + columns]


def reduce_(node: ir.Node, first: Shape, shapes: Shapes, data: Contents) -> list[Shape]:
    """Axes as input or attribute; none means all, unless `noop_with_empty_axes`."""
    if len(data) > 1 and shapes[1] is not None and data[1] is None:
        return []
    axes = integers.ints(node, data, 1, "axes")
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return [first]
    gone = {axis % len(first) for axis in axes or range(len(first))}
    if node.attributes.get_int("keepdims", 1) == 1:
        return [tuple(1 if axis in gone else size for axis, size in enumerate(first))]
    return [tuple(size for axis, size in enumerate(first) if axis not in gone)]


def tile(_node: ir.Node, first: Shape, _shapes: Shapes, data: Contents) -> list[Shape]:
    """Times the repeats."""
    return [tuple(a * b for a, b in zip(first, integers.whole(data, 1), strict=True))]


def pad(node: ir.Node, first: Shape, _shapes: Shapes, data: Contents) -> list[Shape]:
    """All starts, then all ends; from opset 18 on for the given axes only."""
    pads = integers.ints(node, data, 1, "pads") or []
    given = integers.ints(node, data, 3, "axes") or range(len(first))
    sizes = list(first)
    for position, axis in enumerate(given):
        sizes[axis] += pads[position] + pads[position + len(given)]
    return [tuple(sizes)]


def resize(node: ir.Node, first: Shape, _shapes: Shapes, data: Contents) -> list[Shape]:
    """From sizes, or scales rounded down; Upsample and the first Resize have scales second."""
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return []
    axes = node.attributes.get_ints("axes") or range(len(first))
    scales = data[1] if len(data) == 2 else data[2]
    new: Sequence[int]
    if len(data) > 3 and data[3] is not None:
        new = integers.whole(data, 3)
    elif scales is not None and scales.size:
        pairs = zip(axes, scales.reshape(-1), strict=True)
        new = [math.floor(first[axis] * float(scale)) for axis, scale in pairs]
    else:
        return []
    sizes = list(first)
    for axis, size in zip(axes, new, strict=True):
        sizes[axis] = size
    return [tuple(sizes)]


def constant_of_shape(
    _node: ir.Node, _first: Shape, _shapes: Shapes, data: Contents
) -> list[Shape]:
    """What the input says."""
    return [integers.whole(data, 0)]


def range_(node: ir.Node, _first: Shape, _shapes: Shapes, data: Contents) -> list[Shape]:
    """The number of steps."""
    if any(item is None for item in data):
        return []
    return [(integers.evaluated_size(node, data),)]


def top_k(node: ir.Node, first: Shape, _shapes: Shapes, data: Contents) -> list[Shape]:
    """Values and indices alike."""
    sizes = list(first)
    sizes[node.attributes.get_int("axis", -1)] = integers.whole(data, 1)[0]
    return [tuple(sizes)] * 2


Rule: TypeAlias = "Callable[[ir.Node, Shape, Shapes, Contents], list[Shape]]"
RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(integers.ELEMENTWISE, broadcast),
    **dict.fromkeys(
        (
            *(
                "Clip",
                "Dropout",
                "Elu",
                "Erf",
                "Exp",
                "Gelu",
                "HardSigmoid",
                "HardSwish",
                "Log",
            ),
            *(
                "BatchNormalization",
                "InstanceNormalization",
                "LayerNormalization",
                "LogSoftmax",
            ),
            *("LeakyRelu", "PRelu", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh"),
        ),
        same,
    ),
    **dict.fromkeys(
        (
            *("Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
            *("Transpose", "Unsqueeze"),
        ),
        view,
    ),
    **dict.fromkeys(
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), reduce_
    ),
    "Cast": same,
    "GroupNormalization": same,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Gather": gather,
    "MatMul": matmul,
    "Pad": pad,
    "Range": range_,
    "Resize": resize,
    "Tile": tile,
    "TopK": top_k,
    "Upsample": resize,
}
"""Op type -> its output shapes, from the first input's shape, those of all, and contents."""
