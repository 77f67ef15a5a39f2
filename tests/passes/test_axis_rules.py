"""One row an operator: conv -> OPERATOR -> conv with dead channels. How many go, and does the function stay?

A row says how many of the dead channels must go at least when they are exactly zero (`clean`), and when a bias leaves
them at a constant (`constant`). What stays is explained by a Skip. For an operator that pins, the cut is also done
without asking, on every constant: it must break the function or the graph, or the pin would be idle.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import passes
from passes.analysis import axis_rules
from tests import oracle
from tests.graphs import Graph
from tests.naive import cut_everywhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes.base import PassReport

WIDTH = 8
DEAD = (1, 3, 4, 6)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is expected of one operator.

    Attributes:
        name: of the row.
        build: adds the operator to a graph that ends in a map `(2, 8, 6, 6)`; returns its result.
        clean: the least number of channels of `first` that go when they are zero.
        constant: the same when they have a bias; default: `clean`.
        padded: the same when what follows pads; default: one less, the carrier.
        dead: the dead channels.
        rank: number of spatial axes.
        pin: text in the reason of the Skip of an operator that pins.
        breaks: cutting anyway, everywhere, breaks something.
        opset: of the default domain.
        runs: False if ONNX Runtime lacks the operator.
    """

    name: str
    build: Callable[[Graph, str], str]
    clean: int = len(DEAD)
    constant: int | None = None
    padded: int | None = None
    dead: tuple[int, ...] = DEAD
    rank: int = 2
    pin: str = ""
    breaks: bool = False
    opset: int = 21
    runs: bool = True


# ------------------------------------------------------------------ little builders


def op(name: str, *constants: Any, **attrs: Any) -> Callable[[Graph, str], str]:
    """A node that reads the map first and constants after it; None is an absent input."""

    def build(g: Graph, x: str) -> str:
        rest = ["" if c is None else g.const(c) for c in constants]
        return g.add(name, [x, *rest], **attrs)

    return build


def swapped(name: str, constant: Any) -> Callable[[Graph, str], str]:
    """A node whose first operand is a constant."""
    return lambda g, x: g.add(name, [g.const(constant), x])


def chain(*builds: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    """One after the other."""

    def build(g: Graph, x: str) -> str:
        for one in builds:
            x = one(g, x)
        return x

    return build


def layer(*, dead: tuple[int, ...] = (), **options: Any) -> Callable[[Graph, str], str]:
    """A Conv, with dead rows of its own."""

    def build(g: Graph, x: str) -> str:
        y = g.conv(
            x,
            options.get("channels", WIDTH),
            **{k: v for k, v in options.items() if k != "channels"},
        )
        g.zero_rows(g.layers[-1], dead, clean=True)
        return y

    return build


def with_other(
    name: str, dead: tuple[int, ...] = DEAD, *, positive: bool = False, **attrs: Any
) -> Callable[[Graph, str], str]:
    """A node that reads the map and a second conv of the graph's input."""

    def build(g: Graph, x: str) -> str:
        other = layer(dead=dead, kernel=3, pads=[1] * 2 * (len(g.shape(x)) - 2))(g, "x")
        if positive:
            other = g.add("Exp", [other])
        return g.add(name, [x, other], **attrs)

    return build


def uniform(*shape: int) -> np.ndarray:
    """Positive numbers that differ."""
    return np.random.default_rng(5).uniform(0.5, 1.5, shape)


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.asarray(values, np.int64)


def vectors(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of a normalisation."""
    return uniform(n), np.linspace(-0.5, 0.6, n)


def scalar(value: float) -> np.ndarray:
    """A zero-dimensional constant."""
    return np.full((), value)


def last(build: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    """Done with the channels on the last axis."""
    return chain(op("Transpose", perm=[0, 2, 3, 1]), build, op("Transpose", perm=[0, 3, 1, 2]))


def flat(build: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    """Done on the rows that global pooling leaves."""
    return chain(op("GlobalAveragePool"), op("Flatten"), build)


def matmul_left(g: Graph, x: str) -> str:
    y = g.add("Reshape", [x, g.ints(0, 0, 36)])
    return g.add("MatMul", [g.normal(5, WIDTH), y])


def matmul_batched(g: Graph, x: str) -> str:
    y = g.add("Transpose", [x], perm=[0, 2, 3, 1])
    return g.add("MatMul", [y, g.normal(1, 6, WIDTH, 5)])


def matmul_activations(g: Graph, x: str) -> str:
    other = layer(dead=DEAD, kernel=3, pads=[1] * 4)(g, "x")
    left = g.add("Transpose", [g.add("Reshape", [x, g.ints(0, WIDTH, 36)])], perm=[0, 2, 1])
    scores = g.add("MatMul", [left, g.add("Reshape", [other, g.ints(0, WIDTH, 36)])])
    return g.add("Softmax", [scores], axis=-1)


def shuffle(g: Graph, x: str) -> str:
    y = g.add("Reshape", [x, g.ints(0, 2, 4, 6, 6)])
    return g.add("Reshape", [g.add("Transpose", [y], perm=[0, 2, 1, 3, 4]), g.ints(0, 8, 6, 6)])


def shuffle_by_shape(g: Graph, x: str) -> str:
    sizes = g.add("Shape", [x])
    n, c, rest = (
        g.add("Slice", [sizes, g.ints(a), g.ints(b)]) for a, b in ((0, 1), (1, 2), (2, 4))
    )
    half = g.add("Div", [c, g.ints(2)])
    wide = g.add("Concat", [n, g.ints(2), half, rest], axis=0)
    y = g.add("Reshape", [x, wide], like=(x, (2, 2, 4, 6, 6)))
    y = g.add("Transpose", [y], perm=[0, 2, 1, 3, 4])
    return g.add("Reshape", [y, g.add("Concat", [n, c, rest], axis=0)], like=(x, (2, 8, 6, 6)))


def shape_as_number(g: Graph, x: str) -> str:
    c = g.add("Gather", [g.add("Shape", [x]), g.const(np.asarray(1))])
    return g.add("Div", [x, g.add("CastLike", [c, x])])


def excite(g: Graph, x: str) -> str:
    y = g.add("Relu", [g.conv(g.add("GlobalAveragePool", [x]), 3)])
    return g.add("Mul", [x, g.add("Sigmoid", [g.conv(y, WIDTH)])])


def gate(g: Graph, x: str) -> str:
    return g.add("Mul", [x, g.add("Sigmoid", [g.conv("x", 1, 3, pads=[1] * 4)])])


def where(g: Graph, x: str) -> str:
    other = layer(dead=DEAD, kernel=3, pads=[1] * 4)(g, "x")
    return g.add("Where", [g.add("Less", [x, g.const(scalar(0.2))]), x, other])


def split_equal(g: Graph, x: str) -> str:
    a, b = g.add("Split", [x], n=2, axis=1, num_outputs=2)
    return g.add("Concat", [g.add("Relu", [b]), a], axis=1)


def split_unequal(g: Graph, x: str) -> str:
    a, b = g.add("Split", [x, g.ints(3, 5)], n=2, axis=1)
    return g.add("Concat", [g.add("Relu", [b]), a], axis=1)


def split_gate(g: Graph, x: str) -> str:
    a, b = g.add("Split", [x, g.ints(4, 4)], n=2, axis=1)
    return g.add("Mul", [a, g.add("Sigmoid", [b])])


def expand(g: Graph, x: str) -> str:
    mean = g.add("GlobalAveragePool", [x])
    return g.add("Expand", [mean, g.ints(2, WIDTH, 6, 6)])


def cast_like(g: Graph, x: str) -> str:
    return g.add("CastLike", [g.add("Cast", [x], to=TensorProto.DOUBLE), "x"])


def tied(g: Graph, x: str) -> str:
    y = g.conv(x, WIDTH, 3)
    weight = g.layers[-1]
    g.zero_rows(weight, DEAD, clean=True)
    y = g.conv(g.add("Relu", [y]), WIDTH, 3, weight=weight.weight)
    g.zero_rows(g.layers[-1], DEAD, clean=True)
    return y


def stored(storage: Any) -> Callable[[Graph, str], str]:
    def build(g: Graph, x: str) -> str:
        y = g.conv(x, 5, 3)
        name = g.layers[-1].bias if storage == "fill" else g.layers[-1].weight
        g.storage[name] = storage
        if storage == "fill":
            g.constants[name][:] = 0.3
        return y

    return build


def dequantized_weight(axis: int) -> Callable[[Graph, str], str]:
    def build(g: Graph, x: str) -> str:
        codes = g.const(g.rng.integers(-90, 90, (5, WIDTH, 1, 1)).astype(np.int8))
        scale = g.const(uniform((5, WIDTH)[axis]) / 60)
        return g.add("Conv", [x, g.add("DequantizeLinear", [codes, scale], axis=axis)])

    return build


def quantized(*, per_channel: bool) -> Callable[[Graph, str], str]:
    def build(g: Graph, x: str) -> str:
        scale = g.const(uniform(WIDTH) / 20 if per_channel else scalar(0.05))
        zero = g.const(np.zeros(WIDTH if per_channel else (), np.int8))
        attrs = {"axis": 1} if per_channel else {}
        y = g.add("QuantizeLinear", [x, scale, zero], **attrs)
        return g.add("DequantizeLinear", [y, scale, zero], **attrs)

    return build


def recurrent(name: str, gates: int) -> Callable[[Graph, str], str]:
    def build(g: Graph, x: str) -> str:
        steps = g.add(
            "Transpose", [g.add("Reshape", [x, g.ints(0, WIDTH, 36)])], perm=[2, 0, 1]
        )
        weights = [
            g.normal(1, gates * 4, WIDTH, scale=0.4),
            g.normal(1, gates * 4, 4, scale=0.4),
        ]
        y = g.add(name, [steps, *weights], hidden_size=4)
        return g.add("Transpose", [g.add("Squeeze", [y, g.ints(1)])], perm=[1, 2, 0])

    return build


def subgraph_weight(name: str) -> TensorProto:
    """A per-channel constant that lives inside a subgraph."""
    return helper.make_tensor(name, TensorProto.FLOAT, [WIDTH, 1, 1], uniform(WIDTH))


def beside(build: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    """Added to the map itself, for operators whose result hardly depends on it."""
    return lambda g, x: g.add("Add", [x, build(g, x)])


def logical(name: str) -> Callable[[Graph, str], str]:
    def build(g: Graph, x: str) -> str:
        low, high = (
            g.add("Less", [x, g.const(scalar(0.4))]),
            g.add("Greater", [x, g.const(scalar(-0.3))]),
        )
        mask = g.add(name, [low] if name == "Not" else [low, high])
        return g.add("Where", [mask, x, g.const(scalar(0.1))])

    return build


def comparison(name: str) -> Callable[[Graph, str], str]:
    return lambda g, x: g.add(
        "Where", [g.add(name, [x, g.const(scalar(0.2))]), g.add("Neg", [x]), x]
    )


def bitwise(name: str, dtype: Any, to: int, **attrs: Any) -> Callable[[Graph, str], str]:
    def build(g: Graph, x: str) -> str:
        codes = g.add("Cast", [g.add("Mul", [g.add("Abs", [x]), g.const(scalar(6.0))])], to=to)
        inputs = [codes] if name == "BitwiseNot" else [codes, g.const(np.asarray(1, dtype))]
        return g.add("Cast", [g.add(name, inputs, **attrs)], to=TensorProto.FLOAT)

    return build


def size_as_number(g: Graph, x: str) -> str:
    count = g.add("CastLike", [g.add("Size", [x]), x])
    return g.add("Mul", [x, g.add("Div", [count, g.const(scalar(576.0))])])


def condition(g: Graph, x: str) -> str:
    def body(kind: str, out: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        node, factor = (
            helper.make_node(kind, [x, f"{out}_w"], [out]),
            subgraph_weight(f"{out}_w"),
        )
        return helper.make_graph([node], out, [], [value], [factor])

    flag = g.add("Greater", [g.add("ReduceMax", ["x"], keepdims=0), g.const(scalar(0.0))])
    return g.add(
        "If",
        [flag],
        like=(x, g.shape(x)),
        then_branch=body("Mul", "yes"),
        else_branch=body("Sub", "no"),
    )


def loop(g: Graph, x: str) -> str:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Mul", ["state_in", "factor"], ["state_out"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go_in", TensorProto.BOOL, []),
            info("state_in", TensorProto.FLOAT, [None] * 4),
        ],
        [
            info("go_out", TensorProto.BOOL, []),
            info("state_out", TensorProto.FLOAT, [None] * 4),
        ],
        [subgraph_weight("factor")],
    )
    trips, go = g.const(np.asarray(2, np.int64)), g.const(np.asarray(True))
    return g.add("Loop", [trips, go, x], like=(x, g.shape(x)), body=body)


def scan(g: Graph, x: str) -> str:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Mul", ["row", "factor"], ["out"])],
        "body",
        [info("row", TensorProto.FLOAT, [None] * 3)],
        [info("out", TensorProto.FLOAT, [None] * 3)],
        [subgraph_weight("factor")],
    )
    return g.add("Scan", [x], like=(x, g.shape(x)), body=body, num_scan_inputs=1)


def custom(g: Graph, x: str) -> str:
    g.domains["example.custom"] = 1
    return g.add("Blur", [x], domain="example.custom", like=(x, g.shape(x)))


def captured_weight(g: Graph, x: str) -> str:
    """The weight of `first` is also read inside a subgraph."""
    info = helper.make_tensor_value_info
    weight, source = g.layers[0].weight, "x"

    def body(out: str, sign: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Conv", [source, weight], [f"{out}_c"], pads=[1] * 4),
            helper.make_node(sign, [f"{out}_c"], [out]),
        ]
        return helper.make_graph(nodes, out, [], [info(out, TensorProto.FLOAT, None)])

    flag = g.add("Greater", [g.add("ReduceMax", ["x"], keepdims=0), g.const(scalar(0.0))])
    y = g.add(
        "If",
        [flag],
        like=(x, g.shape(x)),
        then_branch=body("a", "Relu"),
        else_branch=body("b", "Neg"),
    )
    return g.add("Add", [x, y])


UNARY = [
    "Relu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "Softsign",
    "Erf",
    "Mish",
    "Exp",
    "Neg",
    "Abs",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "ThresholdedRelu",
    "Sin",
    "Cos",
    "Atan",
    "Sinh",
    "Asinh",
    "LeakyRelu",
    "Gelu",
    "Identity",
    "Dropout",
    "Cosh",
]
BINARY = ["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"]
POOLS = {"kernel_shape": [3, 3], "strides": [2, 2]}
RESIZE = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
FLOAT_SCALES = np.asarray([1, 1, 2, 2], np.float32)
BN = (*vectors(WIDTH), np.linspace(-0.3, 0.3, WIDTH), uniform(WIDTH))

ROWS = (
    # -------------------------------------------------------- layers
    Row("conv", layer(channels=5, kernel=3)),
    Row("conv-padded", layer(channels=5, kernel=3, pads=[1] * 4, strides=[2, 2]), constant=3),
    Row("conv-auto-pad", layer(channels=5, kernel=3, auto_pad="SAME_UPPER"), constant=3),
    Row("conv-1d", layer(channels=5, kernel=3), rank=1),
    Row("conv-3d", layer(channels=5, kernel=3), rank=3),
    Row("conv-grouped", layer(channels=6, kernel=3, group=2)),
    Row("conv-grouped-padded", layer(channels=6, kernel=3, group=2, pads=[1] * 4), constant=2),
    Row("conv-depthwise", layer(kernel=3, group=WIDTH)),
    Row("conv-depthwise-multiplier", layer(channels=16, kernel=3, group=WIDTH)),
    Row("conv-depthwise-padded", layer(kernel=3, group=WIDTH, pads=[1] * 4), constant=0),
    Row("conv-transpose", lambda g, x: g.conv_transpose(x, 5, 2, strides=[2, 2]), constant=3),
    Row("conv-transpose-grouped", lambda g, x: g.conv_transpose(x, 6, 3, group=2), constant=2),
    Row("gemm", flat(lambda g, x: g.gemm(x, 5))),
    Row("gemm-transposed", flat(lambda g, x: g.gemm(g.add("Transpose", [x], perm=[1, 0]), 5, transA=1))),
    Row("gemm-scaled", flat(lambda g, x: g.gemm(x, 5, trans_b=False, alpha=0.7, beta=1.4))),
    Row("matmul", last(lambda g, x: g.dense(x, 5))),
    Row("matmul-batched", matmul_batched),
    Row("matmul-left-constant", matmul_left),
    Row("matmul-activations", matmul_activations, constant=0),
    Row("einsum", lambda g, x: g.add("Einsum", [x, g.normal(WIDTH, 5)], equation="nchw,cd->ndhw")),
    Row("tied", tied, constant=0),
    Row("weight-in-constant-node", stored("constant")),
    Row("bias-by-constant-of-shape", stored("fill")),
    Row("weight-dequantized-rows", dequantized_weight(0), constant=0),
    Row("weight-dequantized-columns", dequantized_weight(1), constant=0),
    Row("quantized", quantized(per_channel=False), constant=0),
    Row("quantized-per-channel", quantized(per_channel=True), constant=0),
    # ------------------------------------------------ normalisations
    Row("batch-norm", op("BatchNormalization", *BN)),
    Row("instance-norm", op("InstanceNormalization", *vectors(WIDTH))),
    Row("group-norm-of-one", op("GroupNormalization", *vectors(WIDTH), num_groups=8, like=("x", (2, 8, 6, 6)))),
    Row(
        "group-norm",
        op("GroupNormalization", *vectors(WIDTH), num_groups=2, like=("x", (2, 8, 6, 6))),
        clean=0,
        pin="GroupNormalization",
        breaks=True,
    ),
    Row("layer-norm", last(op("LayerNormalization", *vectors(WIDTH))), 0, pin="LayerNormalization", breaks=True),
    Row("layer-norm-over-space", op("LayerNormalization", *vectors(6), axis=-1)),
    Row(
        "rms-norm",
        last(op("RMSNormalization", uniform(WIDTH), like=("x", (2, 6, 6, 8)))),
        0,
        pin="RMSNormalization",
        breaks=True,
        opset=23,
    ),
    Row("lrn", op("LRN", size=3, alpha=0.5), 0, pin="LRN", breaks=True),
    # --------------------------------------------------- elementwise
    *(Row(f"unary-{name}", op(name)) for name in UNARY),
    Row("unary-Sqrt", chain(op("Abs"), op("Sqrt"))),
    Row("unary-Reciprocal", chain(op("Abs"), op("Add", scalar(1.0)), op("Reciprocal"))),
    Row("unary-Log", chain(op("Exp"), op("Log"))),
    *(
        Row(f"unary-{name}", chain(op("Tanh"), op("Mul", scalar(0.8)), op(name)))
        for name in ("Asin", "Acos", "Atanh", "Tan")
    ),
    Row("unary-Acosh", chain(op("Abs"), op("Add", scalar(1.1)), op("Acosh"))),
    Row("unary-Shrink", op("Shrink", lambd=0.2, bias=0.1)),
    *(
        Row(f"unary-{name}", beside(chain(op(name), op("Cast", to=TensorProto.FLOAT))), 0)
        for name in ("IsNaN", "IsInf")
    ),
    *(Row(f"logical-{name}", logical(name)) for name in ("And", "Or", "Xor", "Not", "Equal")),
    *(Row(f"compare-{name}", comparison(name)) for name in ("GreaterOrEqual", "LessOrEqual")),
    *(
        Row(f"bitwise-{name}", bitwise(name, np.int32, TensorProto.INT32), 0)
        for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot")
    ),
    Row("bit-shift", bitwise("BitShift", np.uint8, TensorProto.UINT8, direction="LEFT"), 0),
    Row("prelu", op("PRelu", uniform(WIDTH, 1, 1))),
    Row("prelu-shared", op("PRelu", uniform(1))),
    Row("clip", op("Clip", scalar(-0.3), scalar(1.2))),
    Row("pow", op("Pow", scalar(2.0))),
    Row("cast", chain(op("Cast", to=TensorProto.DOUBLE), op("Cast", to=TensorProto.FLOAT))),
    Row("cast-like", cast_like),
    Row("where", where, constant=0),
    *(Row(f"binary-{name}-constant", op(name, uniform(WIDTH, 1, 1))) for name in BINARY),
    *(Row(f"binary-{name}-dead-other", with_other(name)) for name in BINARY),
    Row("binary-swapped", swapped("Sub", uniform(1, WIDTH, 1, 1))),
    Row("binary-vector-last", last(op("Add", uniform(WIDTH)))),
    Row("binary-scalar", op("Mul", scalar(1.7))),
    Row("binary-Div", with_other("Div", positive=True), constant=4),
    Row("binary-Mod", op("Mod", scalar(0.7), fmod=1)),
    Row("multiply-by-live", with_other("Mul", dead=()), constant=0),
    Row("add-to-live", with_other("Add", dead=()), 0),
    Row("squeeze-excite", excite, constant=0),
    Row("spatial-gate", gate, constant=0),
    Row("softmax-over-space", op("Softmax", axis=-1)),
    Row("softmax", op("Softmax", axis=1), 0, pin="Softmax", breaks=True),
    Row("log-softmax", op("LogSoftmax", axis=1), 0, pin="LogSoftmax", breaks=True),
    # ------------------------------------------------------- pooling
    Row("max-pool", op("MaxPool", **POOLS)),
    Row("max-pool-padded", op("MaxPool", pads=[1] * 4, **POOLS)),
    Row("average-pool", op("AveragePool", pads=[1] * 4, **POOLS)),
    Row("average-pool-counting", op("AveragePool", pads=[1] * 4, count_include_pad=1, **POOLS), constant=0),
    Row("lp-pool", op("LpPool", p=2, **POOLS), constant=0),
    Row("global-average-pool", op("GlobalAveragePool")),
    Row("global-max-pool", op("GlobalMaxPool")),
    Row("global-lp-pool", op("GlobalLpPool", p=2)),
    Row("ReduceLogSum-over-space", chain(op("Exp"), op("ReduceLogSum", ints(2, 3)))),
    Row("size-as-number", size_as_number, clean=0),
    Row("lp-normalization", op("LpNormalization", axis=1), 0, pin="LpNormalization"),
    Row(
        "mean-variance-normalization",
        op("MeanVarianceNormalization", axes=[0, 1, 2, 3], like=("x", (2, 8, 6, 6))),
        0,
        pin="MeanVarianceNormalization",
        breaks=True,
    ),
    *(
        Row(f"{name}-over-space", op(name, ints(2, 3)), constant=c)
        for name, c in [("ReduceMean", 4), ("ReduceMax", 4), ("ReduceMin", 4), ("ReduceSum", 4), ("ReduceL2", 4)]
    ),
    *(Row(f"{name}-over-space", op(name, ints(2, 3)), constant=0) for name in
      ("ReduceL1", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd")),
    Row("ReduceMean-flat", op("ReduceMean", ints(-1, -2), keepdims=0)),
    *(
        Row(f"{name}-over-channels", lambda g, x, name=name: g.add("Mul", [x, g.add(name, [x, g.ints(1)])]), 0, pin=name, breaks=True)
        for name in ("ReduceMean", "ReduceLogSumExp")
    ),
    # ------------------------------------------------------- movement
    Row("concat", with_other("Concat", dead=(), axis=1)),
    Row("concat-over-space", with_other("Concat", axis=2)),
    Row("split-equal", split_equal),
    Row("split-unequal", split_unequal),
    Row("split-gate", split_gate, dead=(1, 3, 5, 7), padded=2),
    Row("slice", op("Slice", ints(1), ints(7), ints(1))),
    Row("slice-step", op("Slice", ints(-1), ints(-9), ints(1), ints(-2)), 0, pin="Slice", breaks=True),
    Row("slice-space", op("Slice", ints(1), ints(5), ints(2))),
    Row("gather-permutation", op("Gather", ints(3, 1, 0, 2, 7, 5, 6, 4), axis=1)),
    Row("gather-subset", op("Gather", ints(0, 1, 6, 7), axis=1)),
    Row("gather-repeat", op("Gather", ints(0, 1, 1, 7, 0), axis=1)),
    Row("shuffle", shuffle, padded=2),
    Row("shuffle-by-shape", shuffle_by_shape, padded=2),
    Row("shape-as-number", shape_as_number, clean=0),
    Row("reshape", chain(op("Reshape", ints(0, 0, 36)), lambda g, x: g.conv(x, 5))),
    Row("flatten", chain(op("Flatten"), lambda g, x: g.gemm(x, 5))),
    Row("transpose", last(op("Relu"))),
    Row("unsqueeze", chain(op("Unsqueeze", ints(1)), op("Squeeze", ints(1)))),
    Row("expand", expand),
    Row("tile-space", op("Tile", ints(1, 1, 2, 1))),
    Row("tile-channels", op("Tile", ints(1, 2, 1, 1)), clean=0),
    Row("pad", op("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1)), constant=0),
    Row("pad-edge", op("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")),
    Row("pad-reflect", op("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")),
    Row("pad-value", op("Pad", ints(0, 0, 1, 0, 0, 0, 0, 1), scalar(0.7)), clean=0),
    Row("pad-channels", op("Pad", ints(0, 1, 0, 0, 0, 2, 0, 0))),
    Row("resize", op("Resize", None, FLOAT_SCALES, **RESIZE)),
    Row("resize-linear", op("Resize", None, FLOAT_SCALES, mode="linear")),
    Row("resize-to-sizes", op("Resize", None, None, ints(2, 8, 9, 12), **RESIZE)),
    Row("depth-to-space-dcr", op("DepthToSpace", blocksize=2, mode="DCR"), dead=(1, 3, 5, 7), constant=0),
    Row("depth-to-space-crd", op("DepthToSpace", blocksize=2, mode="CRD"), dead=(4, 5, 6, 7), constant=0),
    Row("space-to-depth", op("SpaceToDepth", blocksize=2)),
    # ----------------------------------------------------------- pins
    Row("lstm", recurrent("LSTM", 4), 0, pin="LSTM"),
    Row("gru", recurrent("GRU", 3), 0, pin="GRU"),
    Row("cumsum", op("CumSum", np.asarray(1)), 0, pin="CumSum"),
    Row("argmax", chain(op("ArgMax", axis=1), op("Cast", to=TensorProto.FLOAT)), 0, pin="ArgMax", breaks=True),
    Row("if", condition, 0, pin="If", breaks=True),
    Row("captured-weight", captured_weight, 0),
    Row("loop", loop, 0, pin="Loop", breaks=True),
    Row("scan", scan, 0, pin="Scan", breaks=True),
    Row("custom", custom, 0, pin="Blur", runs=False),
)  # fmt: skip


def build(row: Row, *, clean: bool, padded: bool) -> tuple[Graph, onnx.ModelProto]:
    """conv -> row -> conv or dense, with the row's dead channels in the first conv."""
    g = Graph(seed=3, opset=row.opset)
    x = g.input("x", (2, 3, *{1: (6,), 2: (6, 6), 3: (4, 4, 4)}[row.rank]))
    first = g.conv(x, WIDTH, 3, pads=[1] * 2 * row.rank)
    g.zero_rows(g.layers[0], row.dead, clean=clean)
    y = row.build(g, first)
    rank = len(g.shape(y))
    if rank == 2:
        y = g.gemm(y, 4)
    elif padded:
        y = g.conv(y, 4, 3, pads=[1] * 2 * (rank - 2))
    else:
        y = g.conv(y, 4, 1)
    return g, g.model(y)


def remove(proto: onnx.ModelProto, carry: str) -> tuple[onnx.ModelProto, PassReport]:
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    report = passes.RemoveChannels(carry=carry)(model)
    return oracle.to_proto(model), report


def test_every_rule_has_its_row_of_tests() -> None:
    tested = {
        node.op_type
        for row in ROWS
        for node in build(row, clean=True, padded=False)[1].graph.node
    }
    # Upsample is gone since opset 10; Swish came with opset 24, which ONNX Runtime does not run yet.
    assert set(axis_rules.ROWS) - tested <= {"Upsample", "Swish"}


def first_width(proto: onnx.ModelProto) -> int:
    """Output channels of the node `first` (the first Conv of the graph)."""
    weight = next(n for n in proto.graph.node if n.op_type == "Conv").input[1]
    return next(t.dims[0] for t in proto.graph.initializer if t.name == weight)


def names_first(report: PassReport, g: Graph) -> list[str]:
    """Reasons of the skips about the first conv."""
    names = (g.layers[0].weight, g.nodes[0].name, g.nodes[0].output[0])
    return [s.reason for s in report.skips if any(name in s.subject for name in names)]


@pytest.mark.parametrize("carry", ["carrier", "bias-map"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_dead_channels_pass_through(row: Row, carry: str) -> None:
    for clean, padded in ((True, False), (False, False), (False, True)):
        g, proto = build(row, clean=clean, padded=padded)
        rewritten, report = remove(proto, carry)
        removed = WIDTH - first_width(rewritten)
        if row.runs:
            oracle.check(rewritten)
            inputs = oracle.make_inputs(proto, {})
            assert not oracle.assert_same_function(proto, rewritten, inputs).collapsed
        wanted = row.clean if clean or row.constant is None else row.constant
        if padded:
            # One carrier stays, where the padding keeps the constant from being folded.
            wanted = row.padded or max(wanted - 1, 0)
        assert removed >= wanted, (clean, padded, report)
        if removed == 0:
            assert names_first(report, g), report.skips
        if row.pin:
            assert removed == 0
            assert any(row.pin in reason for reason in names_first(report, g)), report.skips


@pytest.mark.parametrize("row", [row for row in ROWS if row.breaks], ids=lambda row: row.name)
def test_cutting_through_a_pin_breaks_the_model(row: Row) -> None:
    _, proto = build(row, clean=True, padded=False)
    inputs = oracle.make_inputs(proto, {})
    with pytest.raises(oracle.DifferenceError):
        oracle.assert_same_function(proto, cut_everywhere(proto, WIDTH, row.dead), inputs)


def test_surplus_dead_channels_of_one_group_stay_and_are_explained() -> None:
    g = Graph(seed=4)
    first = g.conv(g.input("x", (1, 3, 6, 6)), 8, 3)
    g.zero_rows(g.layers[0], (0, 1, 2, 5), clean=True)  # three in one group, one in the other
    proto = g.model(g.conv(g.conv(first, 6, 3, group=2), 4))
    rewritten, report = remove(proto, "carrier")
    assert 8 - first_width(rewritten) == 2
    assert any("group" in reason for reason in names_first(report, g)), report.skips
    oracle.assert_same_function(proto, rewritten, oracle.make_inputs(proto, {}))


def test_a_target_that_fits_one_size_of_an_open_axis_only_pins() -> None:
    """Such a model runs with a batch of 1, whatever its input declares."""
    g = Graph(seed=5)
    first = g.conv(g.input("x", (1, 3, 6), symbols=("n", 3, 6)), 8, 3, pads=[1, 1])
    g.zero_rows(g.layers[0], (0, 3), clean=True)
    proto = g.model(g.gemm(g.add("Reshape", [first, g.ints(1, 48)]), 4))
    rewritten, report = remove(proto, "carrier")
    assert first_width(rewritten) == 8
    (reason,) = names_first(report, g)
    assert "the sizes that 'Reshape' works with" in reason
    oracle.assert_same_function(proto, rewritten, oracle.make_inputs(proto, {"n": 1}))


UNREAD = [
    "unary-Relu",
    "unary-Sigmoid",
    "batch-norm",
    "instance-norm",
    "max-pool",
    "average-pool-counting",
    "conv-depthwise-padded",
    "prelu",
    "pad",
    "resize",
    "spatial-gate",
    "binary-Mul-constant",
    "cast",
    "slice-space",
    "gather-permutation",
    "shuffle",
    "tile-space",
    "binary-Add-dead-other",
    "quantized-per-channel",
]


@pytest.mark.parametrize("row", [r for r in ROWS if r.name in UNREAD], ids=lambda row: row.name)
def test_channels_that_nobody_reads_go(row: Row) -> None:
    live = dataclasses.replace(row, dead=())
    g, _ = build(live, clean=False, padded=False)
    g.zero_columns(g.layers[-1], DEAD)
    proto = g.model(g.nodes[-1].output[0])
    rewritten, report = remove(proto, "carrier")
    assert WIDTH - first_width(rewritten) >= len(DEAD), report
    inputs = oracle.make_inputs(proto, {})
    assert not oracle.assert_same_function(proto, rewritten, inputs).collapsed
