"""Tidy makes a graph plain, keeps its function for every size of its inputs, and touches nothing it should not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes import Tidy, UnsupportedGraph, weights

HEADS = """
<ir_version: 9, opset_import: ["": 18]>
g (float[N,T,12] x) => (float[N,T,12] y)
<float[12,12] w = {WEIGHTS}>
{
    h = MatMul (x, w)
    s = Shape (h)
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    two = Constant <value = int64 {2}> ()
    n = Gather (s, zero)
    t = Gather (s, one)
    d = Gather (s, two)
    three = Constant <value_int = 3> ()
    width = Div (d, three)
    axis = Constant <value_ints = [0]> ()
    n1 = Unsqueeze (n, axis)
    t1 = Unsqueeze (t, axis)
    h1 = Unsqueeze (three, axis)
    w1 = Unsqueeze (width, axis)
    apart = Concat <axis = 0> (n1, t1, h1, w1)
    q = Reshape (h, apart)
    turned = Transpose <perm = [0, 2, 1, 3]> (q)
    keys = Transpose <perm = [0, 2, 3, 1]> (q)
    scores = MatMul (turned, keys)
    widthf = Cast <to = 1> (width)
    root = Sqrt (widthf)
    scaled = Div (scores, root)
    p = Softmax <axis = -1> (scaled)
    mixed = MatMul (p, turned)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    d1 = Unsqueeze (d, axis)
    whole = Concat <axis = 0> (n1, t1, d1)
    y = Reshape (back, whole)
}
""".replace("WEIGHTS", ", ".join(f"{0.01 * (i * 37 % 23 - 11):.2f}" for i in range(144)))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def tidied(model: ir.Model, *feeds: dict[str, np.ndarray]) -> ir.Model:
    """Tidy a clone; the function, the interface and the original stay, and doing it again does nothing."""
    twin = model.clone()
    report = Tidy()(twin)
    assert report.modified == bool(report.changes)
    assert not Tidy()(twin).modified
    for feed in feeds:
        for a, b in zip(run(model, **feed), run(twin, **feed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    return twin


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_numbers_read_off_a_tensor_are_fixed_unless_they_follow_the_input() -> None:
    """The 1/sqrt(width) of an attention must not follow the width when heads get narrower."""
    model = ir.from_onnx_text(HEADS)
    plain = tidied(model, {"x": draw(2, 5, 12)}, {"x": draw(1, 3, 12)})
    scale = next(node.inputs[1] for node in plain.graph if node.op_type == "Div")
    assert weights.constant(scale) == np.float32(2)
    assert ops(plain).count("Gather") == 2
    apart, whole = (node for node in plain.graph if node.op_type == "Concat")
    assert [c if c is None else c.tolist() for c in map(weights.constant, apart.inputs)] == [
        None,
        None,
        [3],
        [4],
    ]
    assert weights.constant(whole.inputs[2]) == [12]
    assert not {"Constant", "Sqrt", "Cast"} & set(ops(plain))


def test_weights_are_computed_where_that_takes_no_space() -> None:
    many = ", ".join(["2"] * 40 * 40)
    model = ir.from_onnx_text(f"""
    <ir_version: 9, opset_import: ["": 18]>
    g (float[40,40] x) => (float[40,40] y)
    <float[40,40] own = {{{many}}}, float[40,40] shared = {{{many}}}, float[40,1] column = {{{many[:118]}}},
     int8[40,40] q = {{{many}}}, float scale = {{0.5}}, int64[1] first = {{0}}, int64[2] full = {{40, 40}}, float[1] ten = {{10}}>
    {{
        a = Transpose (own)
        b = Mul (a, scale)
        c = Transpose (shared)
        wide = Expand (column, full)
        floats = DequantizeLinear (q, scale)
        bias0 = ConstantOfShape <value = float[1] {{3}}> (full)
        bias1 = Mul (column, ten)
        bias2 = Tile (ten, forty)
        forty = Slice (full, first, one)
        one = Constant <value = int64[1] {{1}}> ()
        y = Sum (x, b, c, shared, wide, floats, bias0, bias1, bias2)
    }}""")
    model.graph.sort()
    plain = tidied(model, {"x": draw(40, 40)})
    # c would need a second copy of a shared weight; Expand and ConstantOfShape would swell.
    assert sorted(ops(plain)) == sorted(
        ["Transpose", "Expand", "DequantizeLinear", "ConstantOfShape", "Sum"]
    )
    assert weights.size_bytes(plain) <= weights.size_bytes(model) + 1024
    product = plain.graph.initializers["b"]
    assert weights.constant(product).max() == 1


FUNCTION = """
<ir_version: 9, opset_import: ["": 18, "my": 1]>
g (float[2] x) => (float[2] y, float[2] same, float[2] z)
<float[2] w = {1, 2}, float half = {0.5}, bool on = {1}, bool off = {0}, float[2] nobody = {1, 2}>
{
    a = my.twice (x)
    b = Identity (a)
    c, mask = Dropout (b, half, off)
    d = Add (c, w)
    y = Identity (d)
    same = Identity (x)
    z = Identity (w)
    unused = Relu (d)
    unused2 = Relu (unused)
}
<domain: "my", opset_import: ["": 18]>
twice (v) => (r) { r = Add (v, v) }
"""


def test_what_does_nothing_goes_and_the_interface_stays() -> None:
    plain = tidied(ir.from_onnx_text(FUNCTION), {"x": draw(2)})
    # Two outputs need their Identity: an input and a weight cannot be called otherwise.
    assert ops(plain) == ["Add", "Add", "Identity", "Identity"]
    assert [value.name for value in plain.graph.outputs] == ["y", "same", "z"]
    assert sorted(plain.graph.initializers) == ["w"]
    assert not plain.functions


def test_dropout_that_drops_is_kept() -> None:
    training = ir.from_onnx_text(FUNCTION.replace("half, off", "half, on"))
    Tidy()(training)
    assert "Dropout" in ops(training)
    masked = ir.from_onnx_text(
        FUNCTION.replace("Relu (d)", "Not (mask)").replace(
            "Relu (unused)", "Where (unused, d, d)"
        )
    )
    masked.graph.outputs.append(masked.graph[-1].outputs[0])
    Tidy()(masked)
    assert "Dropout" in ops(masked)


def test_subgraphs_stay_as_they_are_and_keep_what_they_read() -> None:
    model = ir.from_onnx_text("""
    <ir_version: 9, opset_import: ["": 18]>
    g (float[N,4] x, bool p) => (float[N,4] y)
    {
        k = Constant <value = float[4] {1, 2, 3, 4}> ()
        passed = Identity (x)
        s = Shape (x)
        i = Constant <value = int64[1] {1}> ()
        width = Gather (s, i)
        y = If (p) <
            then_branch = t () => (float[N,4] u) { one = Constant <value = float {1}> () v = Add (passed, k) u = Mul (v, one) },
            else_branch = e () => (float[N,4] m) { r = Expand (k, width) n = Identity (r) m = Add (n, x) }
        >
    }""")
    feeds = [{"x": draw(3, 4), "p": np.asarray(p)} for p in (True, False)]
    plain = tidied(model, *feeds)
    assert ops(plain) == ["Identity", "If"]
    branches = [attribute.as_graph() for attribute in plain.graph[1].attributes.values()]
    inner = {node.op_type: node for graph in branches for node in graph}
    assert sorted(node.op_type for graph in branches for node in graph) == sorted(
        ["Constant", "Add", "Mul", "Expand", "Identity", "Add"]
    )
    assert [value.name for value in inner["Expand"].inputs] == ["k", "width"]
    assert weights.constant(inner["Expand"].inputs[1]).tolist() == [4]


@pytest.mark.parametrize("version", [3, 4])
def test_listing_an_initializer_as_input_means_overridable_since_version_4(
    version: int,
) -> None:
    model = ir.from_onnx_text(f"""
    <ir_version: {version}, opset_import: ["": 9]>
    g (float[2] x, float[2] w) => (float[2] y)
    <float[2] w = {{1, 2}}>
    {{ a = Sqrt (w)  y = Add (x, a) }}""")
    report = Tidy()(model)
    names = [value.name for value in model.graph.inputs]
    if version == 3:
        assert names == ["x"]
        assert ops(model) == ["Add"]
        assert model.ir_version == 4
        assert "IR version" in report.changes[0].what
        np.testing.assert_allclose(
            run(model, x=draw(2))[0], draw(2) + np.sqrt([1, 2]), rtol=1e-6
        )
    else:
        assert names == ["x", "w"]
        assert ops(model) == ["Sqrt", "Add"]
        assert not report.modified


def test_a_bias_that_is_spelled_out_by_its_weight_becomes_a_constant() -> None:
    # what an exporter leaves of a layer without bias: zeros like the input, as many as the weight has rows
    model = ir.from_onnx_text("""
<ir_version: 9, opset_import: ["": 18]>
g (float[N,1,4] x) => (float[N,300,4] y)
<float zero = {0}, int64[1] one = {1}, int64[3] sizes = {300, 1, 1}>
{
    w = ConstantOfShape <value = float[1] {0.5}> (sizes)
    rows = Shape <start = 0, end = 1> (w)
    many = Expand (rows, one)
    typed = CastLike (zero, x)
    b = Expand (typed, many)
    c = Conv (x, w, b)
    y = CastLike (c, x)
}
""")
    twin = tidied(model, {"x": draw(2, 1, 4)})
    conv = next(node for node in twin.graph if node.op_type == "Conv")
    assert weights.constant(conv.inputs[2]).shape == (300,)
    assert "CastLike" not in ops(twin)
    assert "Expand" not in ops(twin)


def test_functions_for_another_opset_are_refused():
    """The runtime takes such a model; the two cannot be one graph."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 23, "mine" : 1]>'
        "g (float[1, 4] x) => (float[1, 4] y) { h = Relu(x) y = mine.f (h) }"
        '<domain: "mine", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }'
    )
    with pytest.raises(UnsupportedGraph, match="'mine::f': the model's functions cannot be"):
        Tidy()(ir.from_proto(proto))
