"""One small graph an operator (several where its attributes matter), for the analyses of values.

Each graph computes `z` from `y`. What the analyses claim about it is compared with what ONNX Runtime does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from passes.shapes import Sizes, measure

SHAPE = (2, 4, 5, 6)


@dataclasses.dataclass(frozen=True)
class Case:
    """Nodes from `y` to `z`, one a line.

    Attributes:
        lines: nodes in ONNX text.
        constants: initializers by name.
        shape: shape of `y`.
        opset: version of the operator set.
        known: whether all that is constant in the runtime must be known; False where that is out of reach.
        needed: the same for what must be found not needed.
        tolerance: how far the runtime may be from a claimed value, as a fraction of the largest.
    """

    lines: str
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE
    opset: int = 21
    known: bool = True
    needed: bool = True
    tolerance: float = 1e-5

    @property
    def op_types(self) -> set[str]:
        return {node.op_type for node in self.nodes()}

    def nodes(self) -> list[onnx.NodeProto]:
        return [onnx.parser.parse_node(line) for line in self.lines.strip().splitlines()]


def build(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int | str, ...]],
    constants: Mapping[str, np.ndarray],
    outputs: tuple[str, ...],
    opset: int = 21,
) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
            for n, s in inputs.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10
    )


def load(proto: onnx.ModelProto) -> ir.Model:
    return ir.serde.deserialize_model(proto)


def sizes_of(model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Sizes:
    """Measure a model; `shapes`, by name, help out where the inference of shapes finds nothing."""
    sizes = measure(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    given = {values[name]: shape for name, shape in (shapes or {}).items()}
    return dataclasses.replace(sizes, shape={**given, **sizes.shape})


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def thinned(*shape: int) -> np.ndarray:
    """A weight that reads, by row, only inputs 1 and 3, or 0 and 2, or all, or none."""
    weight = normal(*shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            if row % 4 == 3 or (row % 4 < 2 and column % 2 == row % 2):
                weight[row, column] = 0
    return weight


def flipped(*shape: int) -> np.ndarray:
    """The same with inputs first: shape `(inputs, outputs, ...)`."""
    inputs, outputs, *taps = shape
    return np.ascontiguousarray(thinned(outputs, inputs, *taps).swapaxes(0, 1))


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


SCALAR = {"c": np.array(0.7, dtype=np.float32)}
PER_CHANNEL = {"c": f32(0.5, 0, -2, 0).reshape(4, 1, 1)}
BIAS = {"b": normal(8, seed=9)}
MATRIX = (3, 4)

CONV = """z = Conv <{}> (y, w, b)"""
TRANSPOSE = """z = ConvTranspose <{}> (y, w, b)"""


def conv(attributes: str, *weight: int, kind: str = CONV, **options: object) -> Case:
    outputs = int(options.pop("outputs", weight[0]))  # type: ignore[call-overload]
    kernel = flipped(*weight) if kind is TRANSPOSE else thinned(*weight)
    return Case(kind.format(attributes), {"w": kernel, "b": normal(outputs, seed=9)}, **options)  # type: ignore[arg-type]


UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Gelu",
]
BINARY = ["Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Sub", "Sum"]
COMPARISONS = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
REDUCTIONS = [
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
]

CASES: dict[str, Case] = {
    **{name: Case(f"z = {name}(y)") for name in UNARY},
    **{name: Case(f"z = {name}(y, c)", PER_CHANNEL) for name in BINARY},
    **{f"{name} with itself": Case(f"t = Exp(y)\nz = {name}(y, t)") for name in BINARY},
    **{name: Case(f"t = {name}(y, c)\nz = Cast <to=1> (t)", SCALAR) for name in COMPARISONS},
    **{
        f"{name} of space": Case(f"z = {name} <keepdims={keep}> (y, a)", {"a": i64(2, -1)})
        for keep, name in enumerate(REDUCTIONS * 2)
        if keep < 2 or keep >= len(REDUCTIONS)
        for keep in [keep % 2]
    },
    "ReduceSum of channels": Case("z = ReduceSum <keepdims=0> (y, a)", {"a": i64(1)}),
    "ReduceMax before 13": Case("z = ReduceMax <axes=[2,3], keepdims=0> (y)", opset=11),
    "Equal": Case("t = Equal(y, c)\nz = Cast <to=1> (t)", SCALAR, known=False, needed=False),
    "Xor": Case("s = Greater(y, c)\nt = Less(y, c)\nu = Xor(s, t)\nv = Not(u)\nz = Cast <to=1> (v)", SCALAR, known=False, needed=False),
    "And": Case("s = Greater(y, c)\nt = Less(y, d)\nu = And(s, t)\nz = Cast <to=1> (u)", {"c": f32(-1, 9, -1, 9).reshape(4, 1, 1), "d": f32(2)}, needed=False),
    "Or": Case("s = Greater(y, c)\nt = Less(y, d)\nu = Or(s, t)\nz = Cast <to=1> (u)", {"c": f32(1, -9, 1, 1).reshape(4, 1, 1), "d": f32(-1)}, needed=False),
    "IsNaN": Case("t = Log(y)\nu = IsNaN(t)\nz = Cast <to=1> (u)", known=False),
    "IsInf": Case("r = Relu(y)\nt = Reciprocal(r)\nu = IsInf(t)\nz = Cast <to=1> (u)", known=False),
    "guarded Softmax": Case("t = Softmax(y)\nu = IsNaN(t)\nz = Where(u, c, t)", {"c": f32(0)}),
    "Pow": Case("t = Abs(y)\nz = Pow(t, c)", SCALAR),
    "Mod": Case("z = Mod <fmod=1> (y, c)", SCALAR),
    "integers": Case("t = Cast <to=7> (y)\nu = Div(t, c)\nv = Mod(t, c)\nw = Add(u, v)\nz = Cast <to=1> (w)", {"c": i64(3)}),
    "CastLike": Case("t = CastLike(y, c)\nz = Cast <to=1> (t)", {"c": np.array(0.7, dtype=np.float16)}),
    # Sigmoid runs in single precision here: the runtime inserts casts and drops the inner roundings.
    "half precision": Case("t = Cast <to=10> (y)\nu = Sigmoid(t)\nz = Cast <to=1> (u)", tolerance=1e-3),
    "Clip": Case("z = Clip(y, l, h)", {"l": np.array(-0.5, np.float32), "h": np.array(9, np.float32)}),
    "Clip before 11": Case("z = Clip <min=-0.5, max=9.0> (y)", opset=9),
    "Gelu by tanh": Case('z = Gelu <approximate="tanh"> (y)'),
    "Shrink": Case("z = Shrink <bias=0.1, lambd=0.3> (y)"),
    "Swish": Case("z = Swish(y)", opset=24),
    "Where": Case("t = Exp(y)\nz = Where(c, y, t)", {"c": np.array([[True, False, True, True, False, True]])}),
    "Where of zeros": Case("t = Mul(y, d)\nz = Where(c, t, e)", {"c": np.array([True, False, False, True, False, True]), "d": f32(1, 0, 2, 0).reshape(4, 1, 1), "e": f32(0)}),
    "Where by the input": Case("t = Greater(y, d)\nu = Identity(c)\nz = Where(t, c, u)", {"c": normal(4, 1, 1), "d": f32(0)}, needed=False),
    "Dropout": Case("z = Dropout(y)"),
    "QuantizeLinear": Case("t = QuantizeLinear(y, s, o)\nz = DequantizeLinear(t, s, o)", {"s": np.array(0.03, np.float32), "o": np.array(120, np.uint8)}),
    "QuantizeLinear per channel": Case(
        "t = QuantizeLinear <axis=1> (y, s, o)\nz = DequantizeLinear <axis=1> (t, s, o)",
        {"s": f32(0.01, 0.02, 0.03, 0.0041), "o": np.array([3, -4, 0, 20], np.int8)},
    ),
    "Conv 1x1": conv("kernel_shape=[1,1]", 8, 4, 1, 1),
    "Conv unpadded": conv("kernel_shape=[3,2]", 8, 4, 3, 2),
    "Conv padded": conv("pads=[1,0,2,1]", 8, 4, 3, 2),
    "Conv strided, dilated": conv("pads=[2,1,1,1], strides=[2,2], dilations=[2,1]", 8, 4, 2, 3, needed=False),
    "Conv SAME_UPPER": conv('auto_pad="SAME_UPPER", strides=[2,3]', 8, 4, 3, 4),
    "Conv SAME_LOWER": conv('auto_pad="SAME_LOWER", strides=[2,1]', 8, 4, 3, 4),
    "Conv VALID": conv('auto_pad="VALID", strides=[2,1]', 8, 4, 3, 4),
    "Conv grouped": conv("group=2, pads=[1,1,1,1]", 8, 2, 3, 3),
    "Conv without middle taps": Case(
        "z = Conv <pads=[1,1,1,1]> (y, w, b)",
        {"w": thinned(8, 4, 3, 3) * f32(1, 1, 1, 1, 0, 1, 1, 1, 1).reshape(3, 3), **BIAS},
    ),
    "Conv depthwise": conv("group=4, pads=[1,1,1,1], strides=[2,2]", 8, 1, 3, 3),
    "Conv on a line": conv("pads=[1,1]", 8, 4, 3, shape=(2, 4, 7)),
    "Conv in a volume": conv("pads=[0,1,0,0,1,0]", 8, 4, 1, 3, 2, shape=(2, 4, 2, 3, 4)),
    "Conv of maps": Case(
        "t = Conv <pads=[1,1,1,1], group=4> (y, w)\nu = Relu(t)\nz = Conv <pads=[0,1,1,0], strides=[2,1]> (u, v, b)",
        {"w": normal(4, 1, 3, 3), "v": thinned(8, 4, 3, 3), **BIAS},
    ),
    "Conv grouped, of maps": Case(
        "t = Conv <pads=[1,1,1,1], group=4> (y, w)\nu = Relu(t)\nz = Conv <group=2, pads=[0,1,1,0]> (u, v, b)",
        {"w": normal(4, 1, 3, 3), "v": thinned(8, 2, 3, 3), **BIAS},
    ),
    "Conv of quantized weights": Case(
        "w = DequantizeLinear <axis=0> (q, s)\nz = Conv <pads=[1,1,1,1]> (y, w, b)",
        {"q": np.rint(40 * thinned(8, 4, 3, 3)).astype(np.int8), "s": np.abs(normal(8)), **BIAS},
    ),
    "ConvTranspose": conv("kernel_shape=[1,1]", 4, 8, 1, 1, kind=TRANSPOSE, outputs=8),
    "ConvTranspose strided": conv("strides=[2,2], kernel_shape=[2,2]", 4, 8, 2, 2, kind=TRANSPOSE, outputs=8),
    "ConvTranspose overlapping": conv("strides=[2,1], pads=[1,0,1,1], output_padding=[1,0]", 4, 8, 3, 3, kind=TRANSPOSE, outputs=8),
    "ConvTranspose grouped": conv("group=2, strides=[2,1], dilations=[1,2]", 4, 4, 2, 3, kind=TRANSPOSE, outputs=8),
    "ConvTranspose SAME_UPPER": conv('auto_pad="SAME_UPPER", strides=[2,2]', 4, 8, 3, 3, kind=TRANSPOSE, outputs=8),
    "ConvTranspose to a shape": conv("output_shape=[10,12], strides=[2,2]", 4, 8, 3, 3, kind=TRANSPOSE, outputs=8),
    "ConvTranspose of maps": Case(
        "t = Conv <pads=[1,1,1,1], group=4> (y, w)\nu = Relu(t)\nz = ConvTranspose <strides=[2,1], pads=[1,2,0,1]> (u, v, b)",
        {"w": normal(4, 1, 3, 3), "v": flipped(4, 8, 3, 4), **BIAS},
    ),
    "Gemm": Case("z = Gemm <alpha=0.5, beta=2.0> (y, w, b)", {"w": flipped(4, 8), "b": normal(8)}, shape=(3, 4)),
    "Gemm transposed": Case("z = Gemm <transA=1, transB=1> (y, w)", {"w": thinned(8, 3)}, shape=(3, 4)),
    "MatMul": Case("z = MatMul(y, w)", {"w": flipped(4, 8)}, shape=(2, 4)),
    "MatMul of three axes": Case("t = Transpose <perm=[0,2,1]> (y)\nz = MatMul(t, w)", {"w": flipped(4, 8)}, shape=(2, 4, 3)),
    "MatMul batched": Case("z = MatMul(y, w)", {"w": normal(4, 6, 3) * f32(1, 0, 1)}),
    "MatMul by a vector": Case("t = Transpose <perm=[0,2,3,1]> (y)\nz = MatMul(t, w)", {"w": f32(0, 1, 0, 2)}),
    "MatMul from the left": Case("z = MatMul(w, y)", {"w": thinned(8, 4)}, shape=(2, 4, 3)),
    "MatMul of a vector": Case("z = MatMul(w, y)", {"w": f32(0, 1, 0, 2)}, shape=(2, 4, 3)),
    "MatMul of activations": Case("s = Mul(y, g)\nt = Transpose <perm=[0,2,1]> (s)\nz = MatMul(t, y)", {"g": f32(0, 1, 0, 1).reshape(4, 1)}, shape=(2, 4, 3), needed=False),
    "dead heads": Case("s = Mul(y, g)\nt = Transpose <perm=[0,1,3,2]> (s)\nz = MatMul(y, t)", {"g": f32(1, 1, 0, 0).reshape(4, 1, 1)}),
    "attention": Case("t = Exp(y)\ns = Softmax(t)\nu = Transpose <perm=[0,2,1]> (y)\nz = MatMul(s, u)", shape=(2, 4, 3)),
    "Einsum": Case('z = Einsum <equation="bchw,oc->bohw"> (y, w)', {"w": thinned(8, 4)}),
    "Einsum of activations": Case('s = Mul(y, g)\nz = Einsum <equation="bchw,bcdw->bhd"> (y, s)', {"g": f32(0, 0, 0, 1).reshape(4, 1, 1)}, needed=False),
    "BatchNormalization": Case(
        "z = BatchNormalization(y, s, b, m, v)",
        {"s": f32(0, 1, 2, -1), "b": normal(4), "m": normal(4, seed=1), "v": np.abs(normal(4, seed=2))},
    ),
    # The mean of equal numbers is not quite that number in the runtime, and what is left is divided by sqrt(epsilon).
    "InstanceNormalization": Case("z = InstanceNormalization(y, s, b)", {"s": f32(0, 1, 2, -1), "b": normal(4)}, tolerance=1e-4),
    "InstanceNormalization of maps": Case(
        "t = Conv <pads=[1,1,1,1], group=4> (y, w)\nz = InstanceNormalization(t, s, b)",
        {"w": normal(4, 1, 3, 3), "s": f32(0, 1, 2, -1), "b": normal(4)},
    ),
    "GroupNormalization": Case("z = GroupNormalization <num_groups=2> (t, s, b)\n", {"s": f32(0, 1, 2, -1, 1, 1, 1, 0), "b": normal(8)}),
    "LayerNormalization": Case("z = LayerNormalization <axis=2> (y, s, b)", {"s": normal(5, 6) * f32(1, 0, 1, 1, 0, 2), "b": normal(5, 6)}),
    "LayerNormalization of channels": Case("t = Transpose <perm=[0,2,3,1]> (y)\nz = LayerNormalization(t, s)", {"s": f32(1, 0, 2, 0)}),
    "RMSNormalization": Case("z = RMSNormalization <axis=-1> (y, s)", {"s": f32(1, 0, 1, 1, 0, 2)}, opset=23),
    "LRN-wide": Case("t = Mul(y, g)\nz = LRN <size=11, alpha=0.5> (t)", {"g": f32(0, 1, 1, 1).reshape(4, 1, 1)}),
    "LRN": Case("t = Mul(y, g)\nz = LRN <size=3, alpha=0.5> (t)", {"g": f32(0, 1, 1, 1).reshape(4, 1, 1)}),
    "Softmax": Case("z = Softmax <axis=2> (y)"),
    "Softmax before 13": Case("z = Softmax <axis=2> (y)", opset=11),
    "LogSoftmax": Case("z = LogSoftmax <axis=-1> (y)"),
    "Softmax of channels": Case("z = Softmax <axis=1> (y)"),
    "MaxPool": Case("z = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (y)"),
    "MaxPool hanging over": Case("z = MaxPool <kernel_shape=[2,3], strides=[3,2], ceil_mode=1> (y)", needed=False),
    "MaxPool of maps": Case("t = Conv <pads=[1,1,1,1], group=4> (y, w)\nz = MaxPool <kernel_shape=[3,3], pads=[1,1,0,1], strides=[1,2]> (t)", {"w": normal(4, 1, 3, 3)}),
    "AveragePool": Case("z = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (y)"),
    "AveragePool counting pads": Case("z = AveragePool <kernel_shape=[3,3], pads=[1,0,1,2], strides=[2,1], count_include_pad=1> (y)"),
    "AveragePool of maps": Case("t = Conv <pads=[1,1,1,1], group=4> (y, w)\nz = AveragePool <kernel_shape=[3,2], pads=[1,1,0,1], strides=[1,2]> (t)", {"w": normal(4, 1, 3, 3)}),
    "LpPool": Case("t = Mul(y, g)\nz = LpPool <kernel_shape=[3,2]> (t)", {"g": f32(1, 0, 1, 0).reshape(4, 1, 1)}, known=False),
    "GlobalAveragePool": Case("z = GlobalAveragePool(y)"),
    "GlobalMaxPool": Case("z = GlobalMaxPool(y)"),
    "GlobalLpPool": Case("z = GlobalLpPool(y)"),
    "GlobalAveragePool of maps": Case("t = Conv <pads=[1,1,1,1], group=4> (y, w)\nz = GlobalAveragePool(t)", {"w": normal(4, 1, 3, 3)}),
    "Concat": Case("t = Exp(y)\nz = Concat <axis=1> (y, c, t)", {"c": normal(2, 2, 5, 6)}),
    "Concat in space": Case("t = Exp(y)\nz = Concat <axis=-1> (y, t)"),
    "Split": Case("s, t = Split <axis=1> (y, n)\nu = Exp(t)\nz = Concat <axis=1> (u, s)", {"n": i64(1, 3)}),
    "Split equally": Case("s, t, u = Split <axis=3, num_outputs=3> (y)\nv = Exp(u)\nz = Concat <axis=3> (v, t, s)"),
    "Split by attribute": Case("s, t = Split <axis=1, split=[3,1]> (y)\nz = Add(s, t)", opset=11),
    "Slice": Case("z = Slice(y, s, e, a, p)", {"s": i64(-1, 1), "e": i64(-99, 2**62), "a": i64(1, -1), "p": i64(-2, 2)}),
    "Slice by attribute": Case("z = Slice <starts=[1], ends=[-1], axes=[1]> (y)", opset=9),
    "Gather": Case("z = Gather <axis=1> (y, i)", {"i": i64(3, 0, 0, -3)}),
    "Gather one": Case("z = Gather <axis=-2> (y, i)", {"i": np.array(2)}),
    "Gather in two axes": Case("z = Gather <axis=1> (y, i)", {"i": i64(3, 0, 1, 1).reshape(2, 2)}),
    "embedding": Case("t = Abs(y)\ni = Cast <to=7> (t)\nu = Clip(i, l, h)\nz = Gather(e, u)", {"e": normal(5, 3) * f32(1, 0, 1) + f32(0, 0.5, 0), "l": np.array(0), "h": np.array(4)}, known=False, needed=False),
    "Gather by the input": Case("t = Abs(y)\ni = Cast <to=7> (t)\nu = Clip(i, l, h)\nv = ReduceMax <keepdims=0> (u)\nz = Gather <axis=3> (y, v)", {"l": np.array(0), "h": np.array(4)}, needed=False),
    "Reshape": Case("z = Reshape(y, s)", {"s": i64(0, 2, -1, 3)}),
    "Flatten": Case("z = Flatten(y)"),
    "Transpose": Case("z = Transpose <perm=[2,1,3,0]> (y)"),
    "Squeeze": Case("t = ReduceMean <keepdims=1> (y, a)\nz = Squeeze(t, a)", {"a": i64(2, 3)}),
    "Unsqueeze": Case("z = Unsqueeze(y, a)", {"a": i64(0, -1)}),
    "Expand": Case("t = ReduceMean <keepdims=1> (y, a)\nz = Expand(t, s)", {"a": i64(2, 3), "s": i64(3, 1, 1, 5, 6)}),
    "Tile": Case("z = Tile(y, n)", {"n": i64(1, 2, 1, 3)}),
    "Identity": Case("z = Identity(y)"),
    "Pad": Case("z = Pad(y, p, c)", {"p": i64(0, 1, 0, 0, 0, 2, 0, 0), "c": np.array(0.25, np.float32)}),
    "Pad space": Case("z = Pad(y, p)", {"p": i64(0, 0, 1, -1, 0, 0, 0, 2)}, needed=False),
    "Pad reflecting": Case('z = Pad <mode="reflect"> (y, p)', {"p": i64(0, 2, 0, 1, 0, 1, 0, 0)}),
    "Pad by edges": Case('z = Pad <mode="edge"> (y, p, , a)', {"p": i64(1, 2), "a": i64(1)}),
    "Pad around": Case('z = Pad <mode="wrap"> (y, p)', {"p": i64(0, 2, 0, 0, 0, 1, 0, 3)}),
    "Resize": Case('z = Resize <mode="linear"> (y, , s)', {"s": f32(1, 1, 2, 1.5)}),
    "Resize to sizes": Case('z = Resize <mode="cubic"> (y, , , s)', {"s": i64(2, 4, 9, 3)}),
    "Resize of maps": Case('t = Conv <pads=[1,1,1,1], group=4> (y, w)\nz = Resize <mode="nearest"> (t, , s)', {"w": normal(4, 1, 3, 3), "s": f32(1, 1, 2, 3)}),
    "Resize, asymmetric, of maps": Case('t = Conv <pads=[1,1,1,1], group=4> (y, w)\nz = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (t, , s)', {"w": normal(4, 1, 3, 3), "s": f32(1, 1, 4, 3)}),
    "Upsample": Case('z = Upsample <mode="nearest"> (y, s)', {"s": f32(1, 1, 2, 3)}, opset=9),
    "DepthToSpace": Case("z = DepthToSpace <blocksize=2> (y)"),
    "DepthToSpace CRD": Case('t = Concat <axis=1> (y, y)\nz = DepthToSpace <blocksize=2, mode="CRD"> (t)'),
    "SpaceToDepth": Case("z = SpaceToDepth <blocksize=2> (y)", shape=(2, 4, 4, 6)),
    "shuffle": Case("s = Reshape(y, a)\nt = Transpose <perm=[0,2,1,3,4]> (s)\nz = Reshape(t, b)", {"a": i64(0, 2, 2, 5, 6), "b": i64(0, -1, 5, 6)}),
    "ConstantOfShape": Case("s = Shape(y)\nt = ConstantOfShape(s)\nz = Mul(y, t)"),
    "Size": Case("s = Size(y)\nt = Cast <to=1> (s)\nz = Div(y, t)"),
    "squeeze and excite": Case(
        "p = GlobalAveragePool(y)\ns = Conv(p, w, b)\nt = Sigmoid(s)\nz = Mul(y, t)",
        {"w": thinned(4, 4, 1, 1), "b": normal(4)},
    ),
    "unknown operator": Case("z = CumSum(y, a)", {"a": np.array(3)}, known=False, needed=False),
}  # fmt: skip
CASES["Div"] = Case("z = Div(y, c)", {"c": f32(0.5, 3, -2, 0).reshape(4, 1, 1)})
CASES["Acosh"] = Case("t = Exp(y)\nu = Add(t, c)\nz = Acosh(u)", {"c": f32(1)})
CASES["GroupNormalization"] = Case(
    "t = Concat <axis=1> (y, c)\nz = GroupNormalization <num_groups=4> (t, s, b)",
    {"c": normal(1, 4, 5, 6)[[0, 0]], "s": f32(0, 1, 2, -1, 1, 1, 1, 0), "b": normal(8)},
)
