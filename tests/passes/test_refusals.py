"""Every reason that a Skip can give is true: where it is given, cutting anyway breaks the function or the graph.

One row a reason. The reasons are read from the source, so that a new one needs a row here.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import passes
from passes import Skip, shapes
from passes.analysis import tags
from passes.analysis.channels import ChannelMap, find_channels
from passes.planners.dead_channels import weight_of
from tests import oracle
from tests.graphs import Graph, Layer
from tests.naive import cut, cut_everywhere, fold

if TYPE_CHECKING:
    import onnx_ir as ir

WIDTH = 8
DEAD = (1, 3, 4, 6)

Build: TypeAlias = Callable[[Graph, str], str]
Cut: TypeAlias = Callable[[Graph, onnx.ModelProto], onnx.ModelProto]


def first_conv(g: Graph) -> str:
    """Eight channels over a map of 6x6."""
    return g.conv(g.input("x", (1, 3, 6, 6)), WIDTH, 3, pads=[1] * 4)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A graph in which dead channels must stay, at least some.

    Attributes:
        reason: as in the source, `{}` for whatever is filled in.
        build: continues a graph after `first`; returns the output.
        dead: the dead channels of a layer.
        first: makes the input of `build`.
        layer: number of the layer that has the dead channels, among the graph's layers.
        width: its channels.
        clean: its biases are zero as well.
        sizes: other sizes that a cut corrects, and what becomes of them.
        cut: the naive cut; default: the dead channels go wherever a constant has an axis of `width`.
        unsettled: the plan is not asked, which would never try this: the channels of these layers are dropped, and
            the replay has to notice.
        unknown: the sizes of the input are not declared.
        told: inference finds all sizes. It does not, behind numbers that are only known at run time; a better one could.
        symbols: of the input `x`, where it is dynamic.
    """

    reason: str
    build: Build
    dead: tuple[int, ...] = DEAD
    first: Callable[[Graph], str] = first_conv
    layer: int = 0
    width: int = WIDTH
    clean: bool = True
    sizes: Mapping[int, int] = dataclasses.field(default_factory=dict)
    cut: Cut | None = None
    unsettled: Mapping[int, Sequence[int]] | None = None
    unknown: bool = False
    told: bool = False
    symbols: tuple[int | str, ...] = ()

    @property
    def pattern(self) -> str:
        """The reason as a regular expression."""
        return ".+".join(re.escape(part) for part in self.reason.split("{}"))


# ------------------------------------------------------------------ beginnings


def input_map(g: Graph) -> str:
    """No layer: the input itself, with eight channels."""
    return g.input("x", (1, WIDTH, 6, 6))


def single(g: Graph) -> str:
    """A map of one channel."""
    return g.conv(g.input("x", (1, 3, 6, 6)), 1, 3, pads=[1] * 4)


def tokens(g: Graph) -> str:
    """Six tokens of eight channels."""
    return g.dense(g.input("x", (1, 6, 4)), WIDTH)


def sixteen(g: Graph) -> str:
    """Sixteen channels, in two rows that are shuffled."""
    x = g.conv(g.input("x", (1, 3, 6, 6)), 16, 1)
    y = g.add("Reshape", [x, g.ints(0, 2, 8, 6, 6)])
    y = g.add("Transpose", [y], perm=[0, 2, 1, 3, 4])
    return g.add("Reshape", [y, g.ints(0, 16, 6, 6)])


# -------------------------------------------------------------------- little builders


def late(g: Graph, *values: int) -> str:
    """Integers that are only known at run time."""
    nothing = g.add("Mul", [g.add("ReduceMax", ["x"], keepdims=0), g.const(np.zeros(()))])
    back = g.add("Sub", [nothing, g.const(numbers(1000.0))])
    ahead = g.ints(*(value + 1000 for value in values))
    return g.add("Add", [ahead, g.add("Cast", [back], to=TensorProto.INT64)])


def op(name: str, *constants: Any, **attrs: Any) -> Build:
    """A node that reads the map first and constants after it; None is an absent input."""

    def build(g: Graph, x: str) -> str:
        rest = ["" if c is None else g.const(c) for c in constants]
        return g.add(name, [x, *rest], **attrs)

    return build


def chain(*builds: Build) -> Build:
    """One after the other."""

    def build(g: Graph, x: str) -> str:
        for one in builds:
            x = one(g, x)
        return x

    return build


def tail(g: Graph, x: str) -> str:
    """A last layer."""
    return g.conv(x, 4, 1) if len(g.shape(x)) > 2 else g.gemm(x, 4)


def then_tail(*builds: Build) -> Build:
    """A chain and a last layer."""
    return chain(*builds, tail)


def project(g: Graph, x: str) -> str:
    """A last layer over the last axis."""
    return g.dense(x, 4)


def with_live(name: str, channels: int = WIDTH, **attrs: Any) -> Build:
    """A node that reads the map and another conv of the graph's input."""
    return lambda g, x: g.add(name, [x, g.conv("x", channels, 3, pads=[1] * 4)], **attrs)


def with_input(name: str, *shape: int, **attrs: Any) -> Build:
    """A node that reads the map and an input of its own."""
    return lambda g, x: g.add(name, [x, g.input("other", shape)], **attrs)


last = op("Transpose", perm=[0, 2, 3, 1])
flat = chain(op("GlobalAveragePool"), op("Flatten"))


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.asarray(values, np.int64)


def uniform(*shape: int) -> np.ndarray:
    """Positive numbers that differ."""
    return np.random.default_rng(5).uniform(0.5, 1.5, shape)


def numbers(value: float) -> np.ndarray:
    """A zero-dimensional constant."""
    return np.full((), value)


# -------------------------------------------------------------------- cuts


def rows_of(layer: Layer, dropped: Sequence[int]) -> dict[str, dict[int, Sequence[int]]]:
    """The axes of a layer's own constants that hold its output channels."""
    found = {layer.weight: {layer.out_axis: dropped}}
    if layer.bias is not None:
        found[layer.bias] = {0: dropped}
    return found


def cut_rows(
    rows: Mapping[int, Sequence[int]],
    columns: Mapping[int, tuple[int, Sequence[int]]] | None = None,
    sizes: Mapping[int, int] | None = None,
) -> Cut:
    """Cut the rows of some layers, and columns (axis, indices) of others."""

    def carry_out(g: Graph, proto: onnx.ModelProto) -> onnx.ModelProto:
        axes: dict[str, dict[int, Sequence[int]]] = {}
        for layer, dropped in rows.items():
            axes |= rows_of(g.layers[layer], dropped)
        for layer, (axis, dropped) in (columns or {}).items():
            axes.setdefault(g.layers[layer].weight, {})[axis] = dropped
        return cut(proto, axes, sizes)

    return carry_out


def cut_and_fold(g: Graph, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Cut, and put the constants into the bias of the conv that reads them, borders or not."""
    reader = g.layers[1]
    constants = np.zeros(WIDTH, np.float32)
    constants[list(DEAD)] = g.constants[g.layers[0].bias or ""][list(DEAD)]
    weight = g.constants[reader.weight].astype(np.float32)
    if g.constants[reader.weight].dtype == np.int8:
        weight /= 256
    return cut_everywhere(fold(proto, weight, reader.bias or "", constants), WIDTH, DEAD)


# -------------------------------------------------------------------- graphs


def condition(g: Graph, x: str) -> str:
    """An If whose branches read the map."""

    def body(kind: str, out: str) -> onnx.GraphProto:
        node = helper.make_node(kind, [x, f"{out}_w"], [out])
        factor = helper.make_tensor(
            f"{out}_w", TensorProto.FLOAT, [WIDTH, 1, 1], uniform(WIDTH)
        )
        value = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        return helper.make_graph([node], out, [], [value], [factor])

    flag = g.add("Greater", [g.add("ReduceMax", ["x"], keepdims=0), g.const(numbers(0.0))])
    return g.add(
        "If",
        [flag],
        like=(x, g.shape(x)),
        then_branch=body("Mul", "yes"),
        else_branch=body("Sub", "no"),
    )


def half_tagged(g: Graph, x: str) -> str:
    """The map, and as many channels of an input behind it."""
    return g.add("Concat", [x, g.input("other", (1, WIDTH, 6, 6))], axis=1)


def stacked(g: Graph, x: str, *, rows: int = 2) -> str:
    """The channels in rows."""
    return g.add("Reshape", [x, g.ints(0, rows, -1, 6, 6)])


def unstacked(g: Graph, x: str) -> str:
    """The rows behind one another."""
    return g.add("Reshape", [x, g.ints(0, -1, 6, 6)])


def gated(gate: Build, name: str = "Mul") -> Build:
    """Two rows of channels, and a gate `(1, 2, 6, 6)` of which each has one."""

    def build(g: Graph, x: str) -> str:
        open_ = g.add("Unsqueeze", [gate(g, x), g.ints(-3)])
        return tail(g, unstacked(g, g.add(name, [stacked(g, x), open_])))

    return build


def conv_gate(g: Graph, x: str) -> str:
    """A gate of two channels, layer 1."""
    del x
    return g.conv("x", 2, 3, pads=[1] * 4)


def half_gate(g: Graph, x: str) -> str:
    """A gate of which the second channel is an input."""
    del x
    return g.add(
        "Concat", [g.conv("x", 1, 3, pads=[1] * 4), g.input("other", (1, 1, 6, 6))], axis=1
    )


def gate_over_half_tagged(g: Graph, x: str) -> str:
    """A gate of two channels over a row of channels and a row of an input."""
    row = g.conv("x", 4, 3, pads=[1] * 4)
    wide = g.add("Concat", [row, g.input("other", (1, 4, 6, 6))], axis=1)
    return tail(
        g, unstacked(g, g.add("Mul", [stacked(g, wide), g.add("Unsqueeze", [x, g.ints(2)])]))
    )


def gate_read_twice(g: Graph, x: str) -> str:
    """A gate whose channels are also read directly."""
    gate = conv_gate(g, x)
    rows = g.add("Mul", [stacked(g, x), g.add("Unsqueeze", [gate, g.ints(-3)])])
    return g.add("Add", [tail(g, unstacked(g, rows)), tail(g, gate)])


def padded_depthwise(g: Graph, x: str) -> str:
    return tail(g, g.add("Relu", [g.conv(x, WIDTH, 3, group=WIDTH, pads=[1] * 4)]))


def pattern_read_at_unknown_height(g: Graph, x: str) -> str:
    """A pattern over the width, which is known, read by a conv that pads the height, which is not."""
    y = g.add("Conv", [x, g.normal(WIDTH, 1, 1, 3)], group=WIDTH, pads=[0, 1, 0, 1])
    return g.conv(y, 4, 3, pads=[1] * 4)


def quantized_reader(**attrs: Any) -> Build:
    """A conv with integer weights."""

    def build(g: Graph, x: str) -> str:
        codes = g.const(g.rng.integers(-90, 90, (5, WIDTH, 3, 3)).astype(np.int8))
        scale, bias = g.const(numbers(1 / 256)), g.normal(5)
        g.layers.append(Layer(codes, 0, 1, 5, bias=bias))
        return g.add("Conv", [x, g.add("DequantizeLinear", [codes, scale]), bias], **attrs)

    return build


def scales_of_tokens(g: Graph, x: str) -> str:
    """A scale a token."""
    scale = g.const(uniform(6) / 20)
    y = g.add("QuantizeLinear", [x, scale, g.const(np.zeros(6, np.int8))], axis=1)
    return project(g, g.add("DequantizeLinear", [y, scale], axis=1))


def spatial_gate(g: Graph, x: str) -> str:
    gate = g.add("Sigmoid", [g.conv("x", 1, 3, pads=[1] * 4)])
    return tail(g, g.add("Mul", [x, gate]))


def one_over(g: Graph, x: str) -> str:
    """At most 5: a zero becomes infinite on the way, and then 5."""
    y = g.add("Reciprocal", [g.add("Abs", [x])])
    return tail(g, g.add("Min", [y, g.const(numbers(5.0))]))


def products(g: Graph, x: str) -> str:
    """How alike pixels are in two maps."""
    other = g.conv("x", WIDTH, 3, pads=[1] * 4)
    g.zero_rows(g.layers[-1], DEAD)
    left = g.add("Transpose", [g.add("Reshape", [x, g.ints(0, 0, 36)])], perm=[0, 2, 1])
    return g.add("MatMul", [left, g.add("Reshape", [other, g.ints(0, 0, 36)])])


def token_mixer(g: Graph, x: str) -> str:
    """Layer 1 mixes tokens, layer 2 reads channels."""
    y = g.dense(g.add("Transpose", [x], perm=[0, 2, 1]), 6)
    return g.dense(g.add("Transpose", [y], perm=[0, 2, 1]), 3)


def outer_sum(g: Graph, x: str) -> str:
    """Every channel plus every channel of another layer."""
    x = flat(g, x)
    other = flat(g, g.conv("x", 5, 3))
    both = g.add(
        "Add", [g.add("Unsqueeze", [x, g.ints(1)]), g.add("Unsqueeze", [other, g.ints(2)])]
    )
    return project(g, g.add("Relu", [both]))


def gemm_addend(g: Graph, x: str) -> str:
    """Channels along both axes of what a Gemm adds."""
    addend = g.add("Reshape", [flat(g, x), g.ints(4, 2)])
    w = g.normal(3, 2)
    return g.gemm(g.add("Gemm", [g.input("rows", (4, 3)), w, addend]), 3)


def table_lookup(g: Graph, x: str) -> str:
    """The map, rounded, looks numbers up."""
    codes = g.add("Clip", [g.add("Abs", [x]), g.const(numbers(0.0)), g.const(numbers(4.0))])
    table = g.const(uniform(5))
    return tail(g, g.add("Gather", [table, g.add("Cast", [codes], to=TensorProto.INT64)]))


def runtime_gather(g: Graph, x: str) -> str:
    index = g.input("index", (5,), np.int64)
    return tail(g, g.add("Gather", [x, index], axis=1))


def late_slice(g: Graph, x: str) -> str:
    y = g.add("Slice", [x, late(g, 1), g.ints(7), g.ints(1)], like=(x, (1, 6, 6, 6)))
    return tail(g, y)


def late_tile(g: Graph, x: str) -> str:
    return tail(g, g.add("Tile", [x, late(g, 1, 2, 1, 1)], like=(x, (1, 16, 6, 6))))


def late_pad(g: Graph, x: str) -> str:
    pads = late(g, 0, 0, 1, 1, 0, 2, 1, 1)
    return tail(g, g.add("Pad", [x, pads], like=(x, (1, 10, 8, 8))))


def late_reshape(g: Graph, x: str) -> str:
    return tail(g, g.add("Reshape", [x, late(g, 1, 2, 24, 6)], like=(x, (1, 2, 24, 6))))


def late_reduction(g: Graph, x: str) -> str:
    mean = g.add("ReduceMean", [x, late(g, 1)], like=(x, (1, 1, 6, 6)))
    return tail(g, g.add("Mul", [x, mean]))


def late_expand(g: Graph, x: str) -> str:
    y = g.add("GlobalAveragePool", [x])
    y = g.add("Expand", [y, late(g, 1, WIDTH, 6, 6)], like=(x, (1, WIDTH, 6, 6)))
    return tail(g, y)


def joined(g: Graph, x: str) -> str:
    """Tokens as maps, whose channels lie along their height and width, behind another map."""
    y = g.add("Reshape", [x, g.ints(1, 6, 2, 4)])
    other = g.conv(g.input("other", (1, 3, 2, 4)), 5, 1)
    return tail(g, g.add("Concat", [y, other], axis=1))


def pooled_with_places(g: Graph, x: str) -> str:
    """A MaxPool whose second result is read as well."""
    y, places = g.add("MaxPool", [x], n=2, kernel_shape=[2, 2], strides=[2, 2])
    scaled = g.add("Mul", [g.add("Cast", [places], to=1), g.const(numbers(0.01))])
    return tail(g, g.add("Add", [y, scaled]))


def shared_scale(g: Graph, x: str) -> str:
    """LayerNormalization with a scale that is computed."""
    scale = g.add("Reshape", [flat(g, x), g.ints(-1)])
    return g.add("LayerNormalization", [g.input("rows", (2, 5, WIDTH)), scale])


def trained_norm(g: Graph, x: str) -> str:
    scale = g.input("scale", (WIDTH,))
    constants = [g.const(uniform(WIDTH)) for _ in range(3)]
    return tail(g, g.add("BatchNormalization", [x, scale, *constants]))


def scales_at_run_time(g: Graph, x: str) -> str:
    scale = g.add("Add", [g.add("Abs", [g.input("scale", (WIDTH,))]), g.const(numbers(0.05))])
    zero = g.const(np.zeros(WIDTH, np.int8))
    y = g.add("QuantizeLinear", [x, scale, zero], axis=1)
    return tail(g, g.add("DequantizeLinear", [y, scale, zero], axis=1))


def several_axes(g: Graph, x: str) -> str:
    """Four channels, picked in a square."""
    y = g.add("Gather", [x, g.const(np.asarray([[0, 1], [7, 2]]))], axis=1)
    return tail(g, g.add("Reshape", [y, g.ints(1, 4, 6, 6)]))


def size_as_number(g: Graph, x: str) -> str:
    count = g.add("CastLike", [g.add("Size", [x]), x])
    return tail(g, g.add("Mul", [x, g.add("Div", [count, g.const(numbers(288.0))])]))


def normed_by_itself(g: Graph, x: str) -> str:
    return tail(g, g.add("Softmax", [x], axis=1))


def shuffle(g: Graph, x: str) -> str:
    y = g.add("Transpose", [stacked(g, x)], perm=[0, 2, 1, 3, 4])
    return tail(g, unstacked(g, y))


def shuffled_halves(g: Graph, x: str) -> str:
    """Two rows of channels, shuffled, and read in two halves by layers of their own."""
    y = unstacked(g, g.add("Transpose", [stacked(g, x)], perm=[0, 2, 1, 3, 4]))
    a, b = g.add("Split", [y, g.ints(4, 4)], n=2, axis=1)
    return g.add("Add", [g.conv(a, 4, 1), g.conv(b, 4, 1)])


def heads_apart(g: Graph, x: str) -> str:
    """Every head has a matrix of its own: layer 1, `(2, 4, 5)`."""
    y = g.add("Transpose", [g.add("Reshape", [x, g.ints(0, 6, 2, 4)])], perm=[0, 2, 1, 3])
    weight = g.normal(2, 4, 5)
    g.constants[weight][0, :, 0] = 0
    g.layers.append(Layer(weight, 2, 1, 5))
    y = g.add("Transpose", [g.add("MatMul", [y, weight])], perm=[0, 2, 1, 3])
    return project(g, g.add("Reshape", [y, g.ints(0, 6, 10)]))


def three_axes(g: Graph, x: str) -> str:
    """Layer 1 makes channels along three axes, `(8, 2, 3, 4)`."""
    weight = g.normal(WIDTH, 2, 3, 4)
    g.constants[weight][:, :, 0, 0] = 0
    g.layers.append(Layer(weight, 3, 0, 4))
    y = g.add("Einsum", [flat(g, x), weight], equation="nc,cdef->ndef")
    return g.gemm(g.add("Flatten", [y]), 4)


ASPECT = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "ceil",
    "keep_aspect_ratio_policy": "not_larger",
}

REFUSALS = (
    # ------------------------------------------------------------ the graph
    Refusal(
        "they reach the graph output '{}', whose size is the model's interface", op("Relu")
    ),
    Refusal("no rule says how '{}' treats channels", then_tail(op("ArgMax", axis=1), op("Cast", to=1))),
    Refusal("the subgraph of '{}' reads them", then_tail(condition)),
    Refusal("the sizes that '{}' works with are not known", late_reshape),
    Refusal(
        "its channels share an axis with a size that is only known at run time",
        chain(op("Reshape", ints(1, -1)), op("ReduceMean", ints(1))),
        symbols=(1, 3, "height", "width"),
    ),
    Refusal(
        "the sizes of what the layer works on are not known, or its weight is read in a way that no rule covers",
        then_tail(op("Softmax", axis=1)),
        unknown=True,
    ),
    Refusal(
        "they belong to data that comes in from outside, and cannot be cut",
        then_tail(lambda g, x: g.conv(x, WIDTH, 3, group=WIDTH)),
        first=input_map,
    ),
    # ------------------------------------------------------------ constants
    Refusal(
        "it carries the constants of {} dead channels into '{}', whose borders need a real channel",
        lambda g, x: g.conv(x, 4, 3, pads=[1] * 4),
        clean=False,
        cut=cut_and_fold,
    ),
    Refusal(
        "'{}' would need its constant, which its quantized numbers cannot hold",
        quantized_reader(pads=[1] * 4),
        clean=False,
        cut=cut_and_fold,
    ),
    Refusal(
        "'{}' would need its pattern over space, at sizes that are not static",
        pattern_read_at_unknown_height,
        clean=False,
        symbols=(1, 3, "height", 6),
    ),
    Refusal(
        "'{}' makes a pattern over space of its constant, at sizes that are not static",
        padded_depthwise,
        clean=False,
        symbols=(1, 3, "height", "width"),
    ),
    Refusal("'{}' combines its constant with data that varies", spatial_gate, clean=False),
    Refusal(
        "'{}' makes of its constant what is not a finite number, or what is not followed", one_over
    ),
    # ------------------------------------------------------------ ties
    Refusal(
        "it is tied to channels of '{}' that are in use", then_tail(with_live("Add"))
    ),
    Refusal(
        "it is tied to channels of '{}' that are in use",
        then_tail(op("DepthToSpace", blocksize=2)),
    ),
    Refusal(
        "every channel of '{}' could go, and a tensor cannot be empty: one stays",
        tail,
        tuple(range(WIDTH)),
        clean=False,
    ),
    Refusal(
        "'{}' needs equally many channels in every {}, and this one is surplus",
        then_tail(lambda g, x: g.conv(x, 6, 3, group=2)),
        (0, 1, 2, 5),
        cut=cut_rows({0: (0, 1, 2, 5)}, {1: (1, (1, 2))}),
    ),
    Refusal(
        "'{}' needs equally many channels in every {}, and this one is surplus",
        shuffle,
        (0, 1, 2, 5),
        cut=cut_rows({0: (0, 1, 2, 5)}, {1: (1, (0, 2, 3, 4))}),
    ),
    Refusal(
        "'{}' reads shuffled channels, as many of every row as before it in each chunk",
        lambda g, x: g.conv(x, 4, 1, group=2),
        (0, 1, 2, 3, 8, 9, 10, 11),
        first=sixteen,
        width=16,
        cut=cut_rows({0: (0, 1, 2, 3, 8, 9, 10, 11)}, {1: (1, (0, 1, 2, 3))}, {8: 4, 16: 8}),
    ),
    Refusal(
        "'{}' still uses part of what it stands for",
        gated(conv_gate, "Add"),
        (1,),
        layer=1,
        width=2,
        cut=cut_rows({1: (1,)}),
    ),
    Refusal(
        "'{}' still needs one of them",
        gate_read_twice,
        (4, 5, 6, 7),
        cut=cut_rows({0: (4, 5, 6, 7)}, {2: (1, (4, 5, 6, 7))}, {2: 1}),
    ),
    # ------------------------------------------------------------ elementwise
    Refusal(
        "'{}' combines them with data that has no removable channels",
        then_tail(with_input("Add", 1, WIDTH, 6, 6)),
    ),
    Refusal(
        "they lie along an axis that is not their own",
        then_tail(half_tagged, op("DepthToSpace", blocksize=2)),
    ),
    Refusal(
        "'{}' works along an axis on which they lie",
        then_tail(last, op("MaxPool", kernel_shape=[3, 3])),
    ),
    Refusal(
        "a single channel is broadcast against a constant",
        then_tail(op("Mul", uniform(WIDTH, 1, 1))),
        (0,),
        first=single,
        width=1,
        cut=cut_rows({0: (0,)}),
    ),
    Refusal("two axes of channels are multiplied out", outer_sum),
    Refusal(
        "a single channel is broadcast over others",
        then_tail(with_live("Add")),
        (0,),
        first=single,
        width=1,
        cut=cut_rows({0: (0,)}),
    ),
    Refusal(
        "they meet data that has no removable channels",
        gated(half_gate),
        (4, 5, 6, 7),
        cut=cut_rows({0: (4, 5, 6, 7)}, {2: (1, (4, 5, 6, 7))}, {2: 1}),
    ),
    Refusal(
        "it meets data that has no removable channels",
        gate_over_half_tagged,
        (1,),
        first=lambda g: g.conv(g.input("x", (1, 3, 6, 6)), 2, 3, pads=[1] * 4),
        width=2,
        cut=cut_rows({0: (1,)}),
    ),
    Refusal(
        "a single channel is broadcast",
        then_tail(lambda g, x: g.add("Add", [x, g.add("GlobalAveragePool", [g.conv("x", 1, 3)])])),
        (0,),
        first=single,
        width=1,
        cut=cut_rows({0: (0,)}),
    ),
    Refusal(
        "a single channel is broadcast",
        then_tail(op("GlobalAveragePool"), op("Expand", ints(1, 1, 6, 6))),
        (0,),
        first=single,
        width=1,
        cut=cut_rows({0: (0,)}),
    ),
    Refusal("'{}' has scales that are not constant, or in blocks", scales_at_run_time),
    Refusal("'{}' cannot follow: {}", several_axes),
    # ------------------------------------------------------------ layers
    Refusal(
        "'{}' has a weight that is not constant",
        lambda g, x: g.add("Conv", [x, g.input("weight", (4, WIDTH, 1, 1))]),
    ),
    Refusal("they are multiplied with one another and summed up", products, clean=False),
    Refusal(
        "'{}' has an equation of another form than a product of two operands",
        op("Einsum", equation="nchw->nhw"),
        clean=False,
    ),
    Refusal(
        "'{}' broadcasts a contracted axis",
        op("Einsum", uniform(1, 5), equation="nchw,cd->ndhw"),
        clean=False,
    ),
    Refusal(
        "a single channel is multiplied out",
        lambda g, x: g.dense(g.add("Tanh", [x]), 5),
        (0,),
        first=lambda g: g.dense(g.input("x", (1, 6, 4)), 1),
        width=1,
        clean=False,
        cut=cut_rows({0: (0,)}, {1: (0, (0,))}),
    ),
    Refusal(
        "'{}' already carries the channels of its input along another axis",
        token_mixer,
        (1, 4),
        first=tokens,
        layer=1,
        width=6,
        cut=cut_rows({1: (1, 4)}),
    ),
    Refusal(
        "they are added to data that has no removable channels",
        gemm_addend,
        (4, 5, 6, 7),
        sizes={4: 2},
    ),
    # ------------------------------------------------------------ along axes
    Refusal(
        "'{}' computes statistics over its channels, which change when one is removed",
        then_tail(op("Softmax", axis=1)),
    ),
    Refusal("'{}' runs along an axis", then_tail(op("CumSum", np.asarray(1)))),
    Refusal(
        "'{}' computes statistics over axes that it names",
        then_tail(op("MeanVarianceNormalization", axes=[0, 1, 2, 3], like=("x", (1, 8, 6, 6)))),
    ),
    Refusal(
        "it is normalised by itself", normed_by_itself, (0,), first=single, width=1, cut=cut_rows({0: (0,)}, {1: (1, (0,))})
    ),
    Refusal("they serve as parameters", shared_scale),
    Refusal("'{}' is in training mode, or its parameters are not constant", trained_norm),
    Refusal("'{}' gives positions that count its channels", pooled_with_places),
    Refusal(
        "they lie along an axis that is scaled",
        then_tail(last, op("Resize", None, np.asarray([1, 1, 1, 2], np.float32), mode="nearest")),
    ),
    Refusal(
        "a single channel is repeated",
        then_tail(op("Tile", ints(1, 5, 1, 1))),
        (0,),
        first=single,
        width=1,
        clean=False,
        cut=cut_rows({0: (0,)}, {1: (1, range(5))}),
    ),
    Refusal(
        "a single channel is repeated",
        then_tail(op("Resize", None, np.asarray([1, 4, 2, 2], np.float32), mode="nearest")),
        (0,),
        first=single,
        width=1,
        clean=False,
        cut=cut_rows({0: (0,)}, {1: (1, range(4))}),
    ),
    Refusal(
        "it keeps an aspect ratio over all axes",
        then_tail(
            op("Resize", None, np.asarray([1, 1, 4, 4], np.float32), mode="nearest"),
            op("Resize", None, None, ints(1, WIDTH, 23, 23), **ASPECT, like=("x", (1, 8, 23, 23))),
        ),
    ),
    Refusal("the axes that '{}' works on are only known at run time", late_reduction, told=True),
    Refusal(
        "it is reduced by itself",
        then_tail(op("ReduceMax", ints(1))),
        (0,),
        first=single,
        width=1,
        cut=cut_rows({0: (0,)}),
    ),
    Refusal("they are summed up with others", op("ReduceSum", ints(1)), clean=False),
    # ------------------------------------------------------------ movement
    Refusal("the sizes that '{}' works with are only known at run time", late_slice, told=True),
    Refusal("the sizes that '{}' works with are only known at run time", late_tile, told=True),
    Refusal("the sizes that '{}' works with are only known at run time", late_pad, told=True),
    Refusal(
        "'Concat' joins channels that lie along several axes",
        joined,
        first=tokens,
        sizes={2: 1},
    ),
    Refusal(
        "'{}' takes channels at a stride",
        then_tail(op("Slice", ints(0), ints(8), ints(1), ints(3))),
    ),
    Refusal("'{}' picks channels by indices that are only known at run time", runtime_gather),
    Refusal("they serve as indices", table_lookup),
    Refusal(
        "'{}' copies channels into a border",
        then_tail(op("Pad", ints(0, 1, 0, 0, 0, 2, 0, 0), mode="reflect")),
    ),
    Refusal(
        "a negative Pad cuts channels by their position",
        then_tail(op("Pad", ints(0, -1, 0, 0, 0, -2, 0, 0))),
    ),
    Refusal(
        "a single channel becomes several",
        then_tail(op("SpaceToDepth", blocksize=2)),
        (0,),
        first=single,
        width=1,
        clean=False,
        cut=cut_rows({0: (0,)}, {1: (1, range(4))}),
    ),
    Refusal(
        "'{}' counts them at run time", size_as_number, symbols=(1, 3, "height", "width")
    ),
    Refusal("it picks channels into several axes", several_axes, unsettled={0: DEAD}),
    # ------------------------------------------------------------ what the replay notices
    Refusal(
        "nothing would be left of it",
        project,
        tuple(range(WIDTH)),
        first=tokens,
        clean=False,
        unsettled={0: range(WIDTH)},
    ),
    Refusal(
        "its operands would no longer match",
        then_tail(with_live("Add")),
        unsettled={0: DEAD, 1: (0, 2, 5, 7)},
        cut=cut_rows({0: DEAD, 1: (0, 2, 5, 7)}, {2: (1, DEAD)}),
    ),
    Refusal(
        "its operands would no longer match",
        then_tail(last, with_input("Concat", 1, 6, 6, WIDTH, axis=1)),
        unsettled={0: DEAD},
    ),
    Refusal(
        "its operands would differ in length",
        then_tail(with_live("Add")),
        unsettled={0: DEAD},
        cut=cut_rows({0: DEAD}, {2: (1, DEAD)}),
    ),
    Refusal(
        "its operands would differ in length",
        products,
        unsettled={0: DEAD},
        cut=cut_rows({0: DEAD}),
    ),
    Refusal(
        "its groups would no longer match",
        then_tail(lambda g, x: g.conv(x, 6, 3, group=2)),
        (0, 1, 2, 3),
        unsettled={0: (0, 1, 2, 3), 1: (3, 4, 5)},
        cut=cut_rows({0: (0, 1, 2, 3), 1: (3, 4, 5)}, {2: (1, (3, 4, 5))}, {2: 1}),
    ),
    Refusal(
        "its groups would differ in size",
        then_tail(lambda g, x: g.conv(x, 6, 3, group=2)),
        (0, 1, 2, 5),
        unsettled={0: (0, 1, 2, 5)},
        cut=cut_rows({0: (0, 1, 2, 5)}, {1: (1, (1, 2))}),
    ),
    Refusal(
        "its rows would differ in length",
        heads_apart,
        (),
        first=tokens,
        unsettled={1: (0,)},
        cut=cut_rows({1: (0,)}, {2: (0, (0, 5))}, {10: 8}),
    ),
    Refusal(
        "its parts would differ",
        three_axes,
        (),
        unsettled={1: (0, 12)},
        cut=cut_rows({1: (0,)}, {2: (1, range(0, 24, 4))}),
    ),
    Refusal(
        "its parts would be interleaved",
        shuffled_halves,
        (0, 1, 6, 7),
        unsettled={0: (0, 1, 6, 7)},
        cut=cut_rows({0: (0, 1, 6, 7)}, {1: (1, (0, 2)), 2: (1, (1, 3))}, {4: 2, 8: 4}),
    ),
    Refusal(
        "the parts of the reshaped axis would differ in length",
        shuffle,
        (0, 1, 2),
        unsettled={0: (0, 1, 2)},
        sizes={4: 2},
    ),
    Refusal(
        "a row would mix channels of two rows",
        shuffle,
        (0, 1, 2, 5),
        unsettled={0: (0, 1, 2, 5)},
        cut=cut_rows({0: (0, 1, 2, 5)}, {1: (1, (0, 2, 3, 4))}),
    ),
    Refusal(
        "its range would fall apart",
        then_tail(op("Slice", ints(1), ints(4), ints(1))),
        (1, 2, 3),
        unsettled={0: (1, 2, 3)},
    ),
    Refusal("its range is only known at run time", late_slice, told=True, unsettled={0: DEAD}),
    Refusal("its repeats are only known at run time", late_tile, told=True, unsettled={0: DEAD}),
    Refusal("its sizes are only known at run time", late_pad, told=True, unsettled={0: DEAD}),
    Refusal("its sizes are not known", late_reshape, told=True, unsettled={0: DEAD}),
    Refusal("its sizes are only known at run time", late_expand, told=True, unsettled={0: DEAD}),
    Refusal(
        "the channel it picks would be gone",
        then_tail(op("Gather", np.asarray(3), axis=1), op("Unsqueeze", ints(1))),
        (3,),
        unsettled={0: (3,)},
    ),
    Refusal(
        "the channels left do not make whole pixels",
        then_tail(op("DepthToSpace", blocksize=2)),
        (1,),
        unsettled={0: (1,)},
    ),
)  # fmt: skip


LIMITS = (
    Refusal(
        "it spells out the size of the channel axis by name",
        then_tail(
            op("Resize", None, None, ints(WIDTH, 12, 12), mode="nearest", axes=[1, 2, 3])
        ),
    ),
    Refusal(
        "'{}' computes statistics over its channels, which change when one is removed",
        then_tail(op("LpNormalization", axis=1)),
    ),
    Refusal("'{}' runs along an axis", then_tail(op("CumSum", np.asarray(2)))),
    Refusal(
        "'{}' has an equation of another form than a product of two operands",
        lambda g, x: g.add("Einsum", [x, g.normal(WIDTH, 5)], equation="...c,cd->...d"),
        first=tokens,
    ),
    Refusal(
        "'{}' would need its constant, which its quantized numbers cannot hold",
        quantized_reader(),
        clean=False,
        cut=cut_and_fold,
    ),
    Refusal("'{}' cannot follow: {}", scales_of_tokens, first=tokens),
    Refusal(
        "its scales lie along another axis", scales_of_tokens, first=tokens, unsettled={0: DEAD}
    ),
    Refusal("they meet data that has no removable channels", gated(half_gate), (1, 6)),
)  # fmt: skip
"""Refusals without need: the cut would keep the function. They are limits, not facts; whoever lifts one takes its row
away."""


def names(rows: Sequence[Refusal]) -> list[str]:
    """A name a row, for the report of the tests."""
    return [
        f"{i}-{re.sub('[^a-z]+', '-', row.reason.lower()).strip('-')[:60]}"
        for i, row in enumerate(rows)
    ]


def make(row: Refusal) -> tuple[Graph, onnx.ModelProto]:
    """The model of a row."""
    g = Graph(seed=8)
    first = row.first(g)
    if row.symbols:
        g.inputs["x"] = row.symbols
    if row.layer == 0 and g.layers:
        g.zero_rows(g.layers[0], row.dead, clean=row.clean)
    y = row.build(g, first)
    if row.layer or row.first is input_map:
        g.zero_rows(g.layers[row.layer], row.dead, clean=row.clean)
    return g, g.model(y)


def without_sizes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs and outputs of unknown rank."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.ClearField("shape")
    return model


def skips(row: Refusal, g: Graph, proto: onnx.ModelProto) -> tuple[list[Skip], onnx.ModelProto]:
    """What the pass says about the layer, and what it leaves of the model."""
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    report = passes.RemoveChannels(carry="carrier")(model)
    subject = f"{g.layers[row.layer].weight}: channels"
    return [skip for skip in report.skips if skip.subject.startswith(subject)], oracle.to_proto(
        model
    )


def conflict(row: Refusal, g: Graph, proto: onnx.ModelProto) -> str:
    """What the replay says when channels are dropped of which no plan would drop all."""
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    channels = find_channels(model)
    drop = np.zeros(channels.trace.tags.count, dtype=bool)
    for layer, dropped in (row.unsettled or {}).items():
        drop[made_by(channels, g.layers[layer])[list(dropped)]] = True
    with pytest.raises(tags.Conflict) as caught:
        channels.replay(drop)
    return caught.value.reason


def made_by(channels: ChannelMap, layer: Layer) -> np.ndarray:
    """The tags of the channels that a layer makes."""
    return next(
        made.ravel()
        for node, made in channels.trace.sources.items()
        if weight_of(channels, node) == layer.weight
    )


def tell(g: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let inference find all sizes."""
    measure = shapes.measure

    def measured(model: ir.Model) -> shapes.Sizes:
        sizes = measure(model)
        for node in model.graph:
            for value in node.outputs:
                if value not in sizes.shape and value.name in g.types:
                    sizes.shape[value] = g.shape(value.name)
                    sizes.symbolic[value] = (False,) * len(g.shape(value.name))
        return sizes

    monkeypatch.setattr(shapes, "measure", measured)


def said_of(
    row: Refusal, monkeypatch: pytest.MonkeyPatch
) -> tuple[Graph, onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Check that the reason is given and the function kept; returns graph, model and inputs for the cut."""
    g, proto = make(row)
    inputs = oracle.make_inputs(proto, {"height": 6, "width": 6})
    if row.told:
        tell(g, monkeypatch)
    if row.unknown:
        proto = without_sizes(proto)
    if row.unsettled is None:
        said, rewritten = skips(row, g, proto)
        assert any(re.fullmatch(row.pattern, skip.reason) for skip in said), said
        oracle.assert_same_function(proto, rewritten, inputs)
    else:
        said_instead = conflict(row, g, proto)
        assert re.fullmatch(row.pattern, said_instead), said_instead
    return g, proto, inputs


def cut_anyway(row: Refusal, g: Graph, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the dead channels, whatever was said."""
    if row.cut is None:
        return cut_everywhere(proto, row.width, row.dead, row.sizes)
    return row.cut(g, proto)


@pytest.mark.parametrize("row", REFUSALS, ids=names(REFUSALS))
def test_what_a_reason_refuses_breaks_the_model(
    row: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    g, proto, inputs = said_of(row, monkeypatch)
    with pytest.raises(oracle.DifferenceError):
        oracle.assert_same_function(proto, cut_anyway(row, g, proto), inputs)


@pytest.mark.parametrize("row", LIMITS, ids=names(LIMITS))
def test_a_limit_is_no_more_than_that(row: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    g, proto, inputs = said_of(row, monkeypatch)
    oracle.assert_same_function(proto, cut_anyway(row, g, proto), inputs)


PLAIN = (
    Refusal("", then_tail(op("Relu"))),
    Refusal("", lambda g, x: g.conv(x, 4, 3), clean=False, cut=cut_and_fold),
    Refusal("", project, first=tokens),
    Refusal("", shuffle, (0, 3, 4, 7), cut=cut_rows({0: (0, 3, 4, 7)}, {1: (1, (0, 1, 6, 7))})),
    Refusal("", gated(conv_gate), (1, 6)),
)


@pytest.mark.parametrize("row", PLAIN)
def test_where_nothing_is_refused_the_same_cut_keeps_the_function(row: Refusal) -> None:
    g, proto = make(row)
    inputs = oracle.make_inputs(proto, {})
    assert not skips(row, g, proto)[0]
    oracle.assert_same_function(proto, cut_anyway(row, g, proto), inputs)


# -------------------------------------------------------------------- the reasons in the source

ELSEWHERE = {
    "you asked to keep them": "a wish, see test_a_wish_is_a_reason",
    "the subgraph of '{}' returns them": "ONNX forbids it, see test_a_subgraph_cannot_return_what_it_did_not_make",
    "a channel that the tensor did not have": "a bug of ours, see test_tags_come_from_somewhere",
    "a padded channel that the tensor did not have": "said to padded channels, which a removal has none of",
    "channels that were alike would differ": "said to padded channels",
    "its only channel cannot become several": "said to padded channels",
    "a table has no zero channels to pad with": "said to padded channels",
    "a constant has no zero channels to pad with": "said to padded channels",
    "its parameters serve channels in several orders": "said to channels in another order, see test_sparse_order",
    "it would work over other channels than before": "no graph leads there: what makes rows of channels notices first",
    "every channel is convolved into several": "keeps channels from being padded, not from being cut",
    "'{}' works on a tensor without elements": "nothing is computed there, so that a cut changes nothing either",
    "the plan does not list them": "a wish, see test_saved_plans",
    "the plan does not list channel {} of '{}', which they go together with": "a wish, see test_saved_plans",
    "the plan puts nothing behind channel {} of '{}', which goes together with it": "said to padded channels",
    "channels would meet that did not before": "said to channels in another order, see test_permute_channels",
    "its operands cover one another only in part": "no graph leads there: the result has the tags of one operand",
}
"""Reasons that no dead channel of a valid model gets, with where they belong."""

PLACES = {"Pin": 1, "Pins": 0, "require": 3, "Conflict": 2, "conflict": 2, "pin": 2}
"""Calls that give a reason, and the place of the argument."""


def sources() -> Iterator[pathlib.Path]:
    """The files that remove-channels is made of: what it imports of `passes`, and what that imports."""
    root = pathlib.Path(passes.__file__).parent
    wanted, seen = [root / "remove_channels.py"], set()
    while wanted:
        path = wanted.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        yield path
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.split(".")[0] == "passes":
                stem = root.joinpath(*module.split(".")[1:])
                wanted += [stem / f"{alias.name}.py" for alias in node.names]
                # `passes` itself imports every pass there is
                wanted += [stem.with_suffix(".py"), stem / "__init__.py"] * (stem != root)


def texts(expression: ast.expr, tree: ast.Module) -> Iterator[str]:
    """The texts that an expression can stand for, `{}` for what is filled in; none if it only passes one on."""
    match expression:
        case ast.Constant(value=str(text)):
            yield re.sub(r"\{\w+\}", "{}", text)
        case ast.JoinedStr(values=parts):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts
            )
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            yield from texts(template, tree)
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            for meant in meanings(name, tree):
                yield from texts(meant, tree)
        case ast.IfExp(body=one, orelse=other):
            yield from texts(one, tree)
            yield from texts(other, tree)
        case ast.Attribute():
            pass
        case _:
            pytest.fail(f"cannot read this reason: {ast.unparse(expression)}")


def meanings(name: str, tree: ast.Module) -> list[ast.expr]:
    """What is assigned to a name, or returned by a function of that name; nothing if it is a parameter."""
    found: list[ast.expr] = []
    parameter = name == "str"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            found.append(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name == name:
            returns = [one for one in ast.walk(node) if isinstance(one, ast.Return)]
            found += [one.value for one in returns if one.value is not None]
        parameter |= isinstance(node, ast.arg) and node.arg == name
    assert found or parameter, (
        f"'{name}' is a reason from another file, which cannot be read here"
    )
    return found


def reasons_in(path: pathlib.Path) -> Iterator[str]:
    """Every reason that a file can give."""
    tree = ast.parse(path.read_text())
    # `origins` gives its reasons to the replay as errors
    places = {**PLACES, "ValueError": 0} if path.name == "tags.py" else PLACES
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            place = places.get(name, len(node.args))
            named = [word.value for word in node.keywords if word.arg == "reason"]
            for argument in node.args[place : place + 1] + named * (name in places):
                yield from texts(argument, tree)
        elif isinstance(node, ast.arguments):
            defaults = zip(node.args[::-1], node.defaults[::-1], strict=False)
            for argument, default in defaults:
                if argument.arg == "reason":
                    yield from texts(default, tree)


def test_every_reason_has_a_row() -> None:
    given = {reason for path in sources() for reason in reasons_in(path)}
    tested = {row.reason for row in REFUSALS}
    proven = tested | {row.reason for row in LIMITS} | set(ELSEWHERE)
    assert given == proven, (given - proven, proven - given)
    assert not tested & set(ELSEWHERE)


def test_a_wish_is_a_reason() -> None:
    g, proto = make(PLAIN[0])
    model = oracle.from_proto(proto)
    report = passes.RemoveChannels(keep=(g.layers[0].weight,))(model)
    assert not report.modified
    assert [skip.reason for skip in report.skips] == ["you asked to keep them"]


def test_a_subgraph_cannot_return_what_it_did_not_make() -> None:
    def returning(g: Graph, x: str) -> str:
        value = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
        branch = helper.make_graph([], "branch", [], [value])
        flag = g.add("Greater", [g.add("ReduceMax", ["x"], keepdims=0), g.const(numbers(0.0))])
        return g.add("If", [flag], like=(x, g.shape(x)), then_branch=branch, else_branch=branch)

    with pytest.raises(onnx.checker.ValidationError, match="not an output of any node"):
        make(Refusal("", returning))


@pytest.mark.parametrize("new", [[3, 7], [3, 3], [-7]])
def test_tags_come_from_somewhere(new: list[int]) -> None:
    with pytest.raises(ValueError, match="channel that the tensor did not have"):
        tags.origins(np.asarray([3, 4, 5]), np.asarray(new))


def weigh_by_vector(g: Graph, x: str) -> str:
    return g.add("MatMul", [x, g.normal(WIDTH)])


def quantized_in_blocks(g: Graph, x: str) -> str:
    codes = g.const(g.rng.integers(-90, 90, (WIDTH, 5)).astype(np.int8))
    scales = g.const(uniform(2, 5) / 60)
    weight = g.add("DequantizeLinear", [codes, scales], axis=0, block_size=4)
    return g.add("MatMul", [x, weight])


@pytest.mark.parametrize("build", [weigh_by_vector, quantized_in_blocks])
def test_a_reason_is_given_in_place_of_an_error(build: Build) -> None:
    _, proto = make(Refusal("", build, first=tokens, clean=False))
    model = oracle.from_proto(proto)
    report = passes.RemoveChannels()(model)
    assert report.changes or report.skips
    oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))
