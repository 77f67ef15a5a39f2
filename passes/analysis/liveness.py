"""Which elements of which tensors can influence an output of the model.

Need is pulled from the outputs to the inputs, one rule an operator:

    an input element is needed iff some needed and unknown output element reads it with a factor not known to be zero.

An output element that is known to be constant needs nothing: whoever cuts its inputs carries the constant on. So an
element that is not needed may still be read, but only where its value makes no difference, or on the way to a constant.
Operators without a rule, and nodes with subgraphs or without outputs, need all that they read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from passes import weights
from passes.analysis.arguments import Arguments, argument, is_standard, normalise
from passes.analysis.compact import Array, compress, reshape
from passes.analysis.moves import MOVES, any_along, find_move, narrow, widen
from passes.analysis.products import Factor, joined_labelled, joined_live, subscripts
from passes.analysis.scalars import BINARY, UNARY, VARIADIC
from passes.analysis.zeros import any_column, nonzero_blocks, outputs_first

if TYPE_CHECKING:
    from passes.analysis.constants import Known
    from passes.shapes import Sizes

__all__ = ["find_needed"]

# What a node needs of its inputs, by index: compact bool arrays. Inputs without an entry are needed whole.
Claims: TypeAlias = dict[int, Array]
Rule: TypeAlias = "Callable[[_Walk, ir.Node, Sequence[Array]], Claims]"


def find_needed(
    model: ir.Model, sizes: Sizes, constants: Mapping[ir.Value, Known]
) -> dict[ir.Value, Array]:
    """Find the elements of the main graph's tensors that some output of the model depends on.

    Args:
        model: the model, its nodes in topological order; read only.
        sizes: its concrete sizes, from `passes.shapes.measure`.
        constants: what is known of its tensors, from `passes.analysis.constants.find_constants`.

    Returns:
        a compact bool array for each graph input and node output with a known shape; True where needed. What has no
        entry is to be taken for needed.
    """
    walk = _Walk(model, sizes, constants)
    for value in model.graph.outputs:
        walk.claim_all(value)
    for node in reversed(model.graph):
        walk.visit(node)
    return walk.result(model.graph)


class _Walk:
    """Needs found so far, and what a rule may ask about a node."""

    def __init__(
        self, model: ir.Model, sizes: Sizes, constants: Mapping[ir.Value, Known]
    ) -> None:
        self.arguments = Arguments(model, sizes)
        self.opset = self.arguments.opset
        self.shape = sizes.shape
        self.constants = constants
        self._needed: dict[ir.Value, Array] = {}
        # Tensors without a known shape have no array; they are needed or not.
        self._shapeless: set[ir.Value] = set()

    def claim_all(self, value: ir.Value | None) -> None:
        if value is None or weights.is_constant(value):
            return
        if value not in self.shape:
            self._shapeless.add(value)
            return
        self.claim(value, np.ones((1,) * len(self.shape[value]), dtype=bool))

    def claim(self, value: ir.Value | None, needed: Array) -> None:
        if value is None or weights.is_constant(value):
            return
        for axis, symbolic in enumerate(self.arguments.symbolic(value)):
            if symbolic and needed.shape[axis] > 1:
                needed = any_along(needed, [axis])
        before = self._needed.get(value)
        self._needed[value] = compress(needed if before is None else before | needed)

    def wanted(self, output: ir.Value) -> Array:
        """What of a node's output, of known shape, the node has to provide."""
        needed = self._needed.get(output)
        if needed is None:
            return np.zeros((1,) * len(self.shape[output]), dtype=bool)
        known = self.constants.get(output)
        return needed if known is None else compress(needed & ~known.mask)

    def visit(self, node: ir.Node) -> None:
        captured, has_subgraph = _captured(node)
        if has_subgraph or not node.outputs:
            for value in (*node.inputs, *captured):
                self.claim_all(value)
            return
        if any(value in self._shapeless for value in node.outputs):
            claims: Claims = {}
        else:
            outputs = [value for value in node.outputs if value in self.shape]
            wanted = [self.wanted(value) for value in outputs]
            if not any(array.any() for array in wanted):
                return
            claims = self._claims(node, wanted) if len(outputs) == len(node.outputs) else {}
        for index, value in enumerate(node.inputs):
            if index in claims:
                self.claim(value, claims[index])
            else:
                self.claim_all(value)

    def _claims(self, node: ir.Node, wanted: Sequence[Array]) -> Claims:
        rule = RULES.get(node.op_type) if is_standard(node) else None
        known = all(value is None or value in self.shape for value in node.inputs)
        extra = node.op_type != "Split" and any(array.any() for array in wanted[1:])
        return {} if rule is None or extra or not known else rule(self, node, wanted)

    def factor(self, value: ir.Value) -> Factor:
        known = self.constants.get(value)
        return Factor.of(
            value, self.arguments, None if known is None else (known.mask, known.value)
        )

    def rank(self, value: ir.Value | None) -> int:
        return 0 if value is None else len(self.shape[value])

    def result(self, graph: ir.Graph) -> dict[ir.Value, Array]:
        values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
        return {
            value: self._needed.get(value, np.zeros((1,) * len(self.shape[value]), dtype=bool))
            for value in values
            if value in self.shape and not weights.is_constant(value)
        }


def _captured(node: ir.Node) -> tuple[list[ir.Value], bool]:
    """Values that a node's subgraphs read from outside of themselves, and whether there are any subgraphs."""
    graphs = _subgraphs(node)
    found: list[ir.Value | None] = []
    pending = list(graphs)
    while pending:
        graph = pending.pop()
        # A body may also return a value of the outer graph as it is.
        found.extend(graph.outputs)
        for inner in graph:
            found.extend(inner.inputs)
            pending.extend(_subgraphs(inner))
    captured = [value for value in found if value is not None and value.graph is node.graph]
    return captured, bool(graphs)


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


# --- Elementwise and movement -----------------------------------------------------------------------------------


def _same(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    """The first input, element by element."""
    del walk, node
    return {0: wanted[0]}


def _cast_like(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    return {0: wanted[0], 1: np.zeros((1,) * walk.rank(node.inputs[1]), dtype=bool)}


def _nothing(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    """Only the shape of the input matters."""
    del wanted
    return {0: np.zeros((1,) * walk.rank(node.inputs[0]), dtype=bool)}


def _elementwise(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    shapes = [() if value is None else walk.shape[value] for value in node.inputs]
    if walk.opset < 7 and len(set(shapes)) > 1:
        return {}
    return {index: narrow(wanted[0], shape) for index, shape in enumerate(shapes)}


def _where(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    claims = _elementwise(walk, node, wanted)
    condition, yes, no = node.inputs
    if condition is None or yes is None or no is None:
        return {}
    factor = walk.factor(condition)
    rank = wanted[0].ndim
    mask, value = widen(factor.mask, rank), widen(factor.value, rank)
    claims[1] = narrow(wanted[0] & ~(mask & (value == 0)), walk.shape[yes])
    claims[2] = narrow(wanted[0] & ~(mask & (value != 0)), walk.shape[no])
    return claims


def _move(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    move = find_move(node, walk.arguments)
    return {} if move is None else dict(enumerate(move.backward(wanted)))


def _gather(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    data, chosen = node.inputs
    if walk.arguments.constant(chosen) is not None:
        return _move(walk, node, wanted)
    axis, picked = (
        normalise(node.attributes.get_int("axis", 0), walk.rank(data)),
        walk.rank(chosen),
    )
    array = any_along(wanted[0], range(axis, axis + picked))
    return {0: array.reshape((*array.shape[:axis], 1, *array.shape[axis + picked :]))}


def _resize(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    source, target = node.inputs[0], node.outputs[0]
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if source is None or mode == "tf_crop_and_resize":
        return {}
    before, after = walk.shape[source], walk.shape[target]
    unsure = np.logical_or(walk.arguments.symbolic(source), walk.arguments.symbolic(target))
    return {
        0: any_along(
            wanted[0],
            [axis for axis, size in enumerate(before) if size != after[axis] or unsure[axis]],
        )
    }


# --- Sums of products -------------------------------------------------------------------------------------------


def _conv(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    kernel = walk.arguments.constant(node.inputs[1])
    if kernel is None:
        return {}
    kernel = outputs_first(node, kernel)
    outputs, columns = kernel.shape[:2]
    rank = kernel.ndim
    needed = any_along(wanted[0], (0, *range(2, rank))).ravel()
    rows = np.flatnonzero(np.broadcast_to(needed, outputs))
    groups = node.attributes.get_int("group", 1)
    if groups == 1:
        read = any_column(kernel, rows)
    else:
        blocks = np.zeros((outputs, columns), dtype=bool)
        blocks[rows] = nonzero_blocks(kernel[rows])
        read = blocks.reshape(groups, -1, columns).any(axis=1).ravel()
    return {0: read.reshape((1, -1) + (1,) * (rank - 2))}


def _matmul(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    left, right = node.inputs
    if left is None or right is None:
        return {}
    out = wanted[0]
    if walk.rank(right) == 1:
        out = out[..., None]
    if walk.rank(left) == 1:
        out = out[..., None, :]
    claims: Claims = {}
    if walk.arguments.constant(left) is None:
        other = walk.factor(right)
        other = other.reshaped((-1, 1)) if walk.rank(right) == 1 else other
        claim = joined_live(out, other.transposed())
        claim = claim.squeeze(-2) if walk.rank(left) == 1 else claim
        claims[0] = narrow(claim, walk.shape[left])
    if walk.arguments.constant(right) is None:
        other = walk.factor(left)
        other = other.reshaped((1, -1)) if walk.rank(left) == 1 else other
        claim = joined_live(out.swapaxes(-1, -2), other).swapaxes(-1, -2)
        claim = claim.squeeze(-1) if walk.rank(right) == 1 else claim
        claims[1] = narrow(claim, walk.shape[right])
    return claims


def _gemm(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    left, right = node.inputs[:2]
    if left is None or right is None:
        return {}
    claims: Claims = {}
    flip_left = node.attributes.get_int("transA", 0) != 0
    flip_right = node.attributes.get_int("transB", 0) != 0
    if walk.arguments.constant(left) is None:
        other = walk.factor(right)
        claim = joined_live(wanted[0], other if flip_right else other.transposed())
        claims[0] = claim.T if flip_left else claim
    if walk.arguments.constant(right) is None:
        other = walk.factor(left)
        claim = joined_live(wanted[0].T, other.transposed() if flip_left else other).T
        claims[1] = claim.T if flip_right else claim
    added = argument(node, 2)
    if added is not None:
        claims[2] = narrow(wanted[0], walk.shape[added])
    return claims


def _einsum(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    labels = subscripts(node)
    factors = [walk.factor(value) for value in node.inputs if value is not None]
    if labels is None or len(factors) != 2:
        return {}
    sides = ((labels.left, labels.right, factors[1]), (labels.right, labels.left, factors[0]))
    return {
        index: joined_labelled([(labels.out, wanted[0]), (theirs, other.live)], mine)
        for index, (mine, theirs, other) in enumerate(sides)
    }


# --- Statistics over axes ---------------------------------------------------------------------------------------


def _space(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    """Each channel by itself, over all of space."""
    return {0: any_along(wanted[0], range(2, walk.rank(node.inputs[0])))}


def _group_norm(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    shape = walk.shape[node.outputs[0]]
    groups = node.attributes.get_int("num_groups", 1)
    split = (shape[0], groups, shape[1] // groups, *shape[2:])
    spread = reshape(wanted[0], shape, split)
    return {0: reshape(any_along(spread, range(2, len(split))), split, shape)}


def _layer_norm(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    rank = walk.rank(node.inputs[0])
    axis = normalise(node.attributes.get_int("axis", -1), rank)
    return {0: any_along(wanted[0], range(axis, rank))}


def _lrn(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    del walk, node
    return {0: any_along(wanted[0], [1])}


def _softmax(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    rank = walk.rank(node.inputs[0])
    axis = normalise(node.attributes.get_int("axis", -1 if walk.opset >= 13 else 1), rank)
    # Before operator set 13 all axes from the given one on were one.
    return {0: any_along(wanted[0], [axis] if walk.opset >= 13 else range(axis, rank))}


def _reduce(walk: _Walk, node: ir.Node, wanted: Sequence[Array]) -> Claims:
    rank = walk.rank(node.inputs[0])
    axes = walk.arguments.setting(node, 1, "axes")
    if axes is None and argument(node, 1) is not None:
        return {}
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return {0: wanted[0]}
    reduced = {normalise(axis, rank) for axis in axes or range(rank)}
    if node.attributes.get_int("keepdims", 1) == 1:
        return {0: wanted[0]}
    kept = iter(wanted[0].shape)
    return {
        0: wanted[0].reshape([1 if axis in reduced else next(kept) for axis in range(rank)])
    }


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(BINARY, _elementwise),
    **dict.fromkeys(VARIADIC, _elementwise),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(
        (
            "AveragePool",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "InstanceNormalization",
            "LpPool",
            "MaxPool",
        ),
        _space,
    ),
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
    "BatchNormalization": _same,
    "CastLike": _cast_like,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "DequantizeLinear": _same,
    "Dropout": _same,
    "Einsum": _einsum,
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "QuantizeLinear": _same,
    "RMSNormalization": _layer_norm,
    "Resize": _resize,
    "Shape": _nothing,
    "Size": _nothing,
    "Softmax": _softmax,
    "Upsample": _resize,
    "Where": _where,
}
