"""Sizes as measured are the sizes that the runtime meets, and what can vary is known to vary."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes import shapes, weights
from passes.analysis import integers

ARITHMETIC = """
<ir_version: 9, opset_import: ["": 18]>
g (float[N,6,H,W] x, int64[N,T] ids) => (float r)
<float[8,6,3,3] w = {{{}}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
 int64[1] three = {{3}}, int64[1] big = {{1000000}}, int64[1] cap = {{100}}, int64[1] minus = {{-1}},
 int64 four = {{4}}, float[1] half = {{0.5}}, int64 o = {{0}}, float[0] none = {{}}>
{{
    c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
    s = Shape (c)
    n = Slice (s, zero, one)
    hw = Slice (s, two, big)
    channels = Gather <axis = 0> (s, one)
    pixels = ReduceProd <keepdims = 1> (hw)
    heads = Div (channels, two)
    target = Concat <axis = 0> (n, two, heads, pixels)
    split = Reshape (c, target)
    turned = Transpose <perm = [0, 3, 1, 2]> (split)
    back = Shape <start = 1> (turned)
    hwf = Cast <to = 1> (hw)
    smallf = Mul (hwf, half)
    floored = Floor (smallf)
    smalls = Cast <to = 7> (floored)
    nc = Slice (s, zero, two)
    sizes = Concat <axis = 0> (nc, smalls)
    resized = Resize (c, none, none, sizes)
    zeros = ConstantOfShape <value = int64[1] {{1}}> (smalls)
    w2 = Gather <axis = 0> (s, three)
    w1 = Squeeze (w2)
    steps = Range (o, w1, four)
    mask = Equal (s, minus)
    filled = ConstantOfShape <value = int64[1] {{1}}> (four1)
    four1 = Shape (s)
    wide = Where (mask, filled, s)
    expanded = Expand (half, wide)
    pads = Concat <axis = 0> (zero, zero, zero, two, zero, zero, zero, w2)
    padded = Pad (c, pads)
    capped = Min (w2, cap)
    first = Slice (c, zero, capped, three)
    t = Shape (ids)
    tn = Gather <axis = 0> (t, one)
    tiled = Tile (ids, tnn)
    tnn = Concat <axis = 0> (one, tn)
    r = ReduceSum <keepdims = 0> (expanded)
}}
""".format(", ".join(["0.1"] * 8 * 6 * 9))


def model_of(text: str, **opsets: int) -> ir.Model:
    """Parse, and put the nodes in order."""
    model = ir.from_onnx_text(text)
    model.graph.sort()
    model.opset_imports.update(opsets)
    return model


def by_name(facts: dict) -> dict:
    return {value.name: fact for value, fact in facts.items()}


def run_all(model: ir.Model, sizes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Every value of the main graph, as ONNX Runtime computes it on inputs of those sizes."""
    proto = ir.to_proto(model)
    have = {output.name for output in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made if n not in have)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feeds = {i.name: np.ones(sizes[i.name], kinds[i.type]) for i in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_sizes_and_their_arithmetic_are_what_the_runtime_gets() -> None:
    model = model_of(ARITHMETIC)
    before = ir.to_proto(model).SerializeToString()
    sizes = shapes.measure(model)
    assert ir.to_proto(model).SerializeToString() == before
    shape, contents = by_name(sizes.shape), by_name(sizes.integers)
    real = run_all(model, shape)
    assert {name: array.shape for name, array in real.items()} == {n: shape[n] for n in real}
    for name, array in real.items():
        # tiled repeats an input; zeros has too many elements to be worth knowing.
        if array.dtype.kind in "ib" and name != "tiled" and array.size <= shapes.MOST_ELEMENTS:
            np.testing.assert_array_equal(contents[name], array, err_msg=name)


def test_what_depends_on_an_open_size_is_flagged_and_nothing_else() -> None:
    model = model_of(ARITHMETIC)
    sizes = shapes.measure(model)
    free = by_name(sizes.symbolic)
    flags = {name: flag.tolist() for name, flag in by_name(sizes.integers_symbolic).items()}
    assert free["x"] == free["c"] == free["expanded"] == (True, False, True, True)
    assert free["split"] == (True, False, False, True)
    assert free["padded"] == (True, False, True, True)
    assert free["w"] == (False,) * 4
    assert flags["s"] == [True, False, True, True]
    assert flags["channels"] == flags["heads"] == [False]
    assert flags["target"] == [True, False, False, True]
    assert flags["back"] == [True, False, False]
    assert flags["smalls"] == [True, True]
    assert flags["wide"] == [True, False, True, True]
    # 100 with the stand-ins, but a narrower image would change it.
    assert sizes.integers[next(v for v in sizes.integers if v.name == "capped")] == 100
    assert flags["capped"] == [True]


def reading(expression: str, declared: str = "float[N,3,H,W] x", **more: str) -> ir.Model:
    return model_of(
        f"""<ir_version: 10, opset_import: ["": 18{more.get("domain", "")}]>
        g ({declared}) => (float[a] y)
        <{more.get("constants", "int64[1] minus = {-1}")}>
        {{ {expression} y = Reshape (z, minus) }}"""
    )


def test_stand_ins_adapt_to_what_a_model_has_baked_in() -> None:
    one = reading(
        "z = Reshape (x, s)", constants="int64[1] minus = {-1}, int64[3] s = {1, 3, -1}"
    )
    sizes = shapes.measure(one)
    assert by_name(sizes.shape)["z"][1] == 3
    square = reading("t = Transpose <perm = [0, 1, 3, 2]> (x) z = Add (x, t)")
    shape = by_name(shapes.measure(square).shape)
    assert shape["x"][2] == shape["x"][3]
    # Here the batch is open, although the first square stand-ins have a batch of one.
    assert by_name(shapes.measure(square).symbolic)["z"] == (True, False, True, True)
    line = reading(
        "p = AveragePool <kernel_shape = [48, 1]> (x) q = Squeeze (p, two) z = Identity (q)",
        constants="int64[1] minus = {-1}, int64[1] two = {2}",
    )
    assert by_name(shapes.measure(line).shape)["z"][1] == 3


def test_a_length_that_a_window_does_not_fit_into_is_replaced_by_a_longer_one() -> None:
    sound = reading(
        "c = Conv <strides = [40]> (x, w) s = Slice (c, zero, minus, two) z = Relu (s)",
        "float[N,1,T] x",
        constants="int64[1] minus = {-1}, int64[1] zero = {0}, int64[1] two = {2}, "
        f"float[1,1,40] w = {{{','.join(['1'] * 40)}}}",
    )
    sizes = shapes.measure(sound)
    assert by_name(sizes.shape)["z"][2] > 0
    assert by_name(sizes.symbolic)["z"] == (True, False, True)


def test_a_weight_settles_the_channels_that_the_input_leaves_open() -> None:
    model = reading(
        "z = Conv <group = 2> (x, w)",
        "float[N,C,H,W] x",
        constants="int64[1] minus = {{-1}}, float[4,3,1,1] w = {{{}}}".format(
            ",".join(["1"] * 12)
        ),
    )
    sizes = shapes.measure(model)
    assert by_name(sizes.shape)["x"][1] == 6
    assert by_name(sizes.symbolic)["x"][1] is False


def test_custom_ops_are_believed_where_the_model_declares_their_sizes() -> None:
    told = reading("a = my.Op (x) z = Relu (a)", "float[2,3,4,5] x", domain=', "my": 1')
    assert "z" not in by_name(shapes.measure(told).shape)
    custom = told.graph[0].outputs[0]
    custom.shape = ir.Shape([2, 7])
    custom.type = ir.TensorType(ir.DataType.FLOAT)
    assert by_name(shapes.measure(told).shape)["z"] == (2, 7)


def test_no_weight_is_read() -> None:
    model = reading(
        "b = Constant <value = float[1] {1}> () a = Conv (x, w) z = Mul (a, b)",
        constants="int64[1] minus = {{-1}}, float[4,3,1,1] w = {{{}}}".format(
            ",".join(["1"] * 12)
        ),
    )

    def refuse() -> ir.Tensor:
        raise AssertionError("a weight was read")

    def lazy(*shape: int) -> ir.LazyTensor:
        return ir.LazyTensor(refuse, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))

    weight = model.graph.initializers["w"]
    weight._const_value, weight.shape = lazy(4096, 3, 1, 1), ir.Shape([4096, 3, 1, 1])
    node = next(node for node in model.graph if node.op_type == "Constant")
    node.attributes["value"] = ir.AttrTensor("value", lazy(4096, 1, 1))
    assert by_name(shapes.measure(model).shape)["z"][1] == 4096


CASES = [
    ("y = Gather <axis = 1> (a, i)", {"a": (2, 4), "i": [[0, -1], [2, 1]]}),
    ("y = GatherElements <axis = 0> (a, i)", {"a": (3, 2), "i": [[0, -1], [2, 1]]}),
    (
        "y = Slice (a, i, j, k, l)",
        {"a": (5, 4), "i": [-1, 0], "j": [-9, 3], "k": [0, 1], "l": [-2, 1]},
    ),
    ("y = Concat <axis = 1> (a, b)", {"a": (2, 1), "b": (2, 3)}),
    ("z, y = Split <axis = 0> (a, i)", {"a": (5,), "i": [2, 3]}),
    ("y = Squeeze (a, i)", {"a": (1, 3, 1), "i": [0]}),
    ("y = Unsqueeze (a, i)", {"a": (3,), "i": [0, 2]}),
    ("y = Reshape (a, i)", {"a": (2, 6), "i": [0, -1, 3]}),
    ("y = Flatten <axis = 2> (a)", {"a": (2, 3, 4)}),
    ("y = Transpose <perm = [2, 0, 1]> (a)", {"a": (2, 3, 4)}),
    ("y = Expand (a, i)", {"a": (3, 1), "i": [2, 1, 4]}),
    ("y = Tile (a, i)", {"a": (2, 2), "i": [2, 1]}),
    ("y = Add (a, b)", {"a": (2, 3), "b": (3,)}),
    ("y = Div (a, b)", {"a": (4, 3), "b": (3,)}),
    ("y = Mod (a, b)", {"a": (4, 3), "b": (3,)}),
    ("y = Mod <fmod = 1> (a, b)", {"a": (4, 3), "b": (3,)}),
    ("y = Min (a, b, a)", {"a": (4,), "b": (1,)}),
    ("c = Greater (a, b) y = Where (c, a, b)", {"a": (2, 3), "b": (3,)}),
    ("y = ReduceProd <keepdims = 0> (a, i)", {"a": (2, 3), "i": [-1]}),
    ("y = ReduceMax (a)", {"a": (2, 3)}),
    ("y = Range (a, b, c)", {"a": (), "b": (), "c": ()}),
    ("y = NonZero (a)", {"a": (2, 3)}),
    ("f = Cast <to = 1> (a) g = Sqrt (f) h = Floor (g) y = Cast <to = 7> (h)", {"a": (5,)}),
]


@pytest.mark.parametrize(("body", "given"), CASES, ids=[body for body, _ in CASES])
def test_evaluation_agrees_with_the_runtime_and_flags_are_sound(body: str, given: dict) -> None:
    """Changing what is flagged never changes a result that is not flagged."""
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.choice([-7, -3, -2, 2, 3, 5, 11], size=shape).astype(np.int64)

    feeds = {k: draw(v) if isinstance(v, tuple) else np.int64(v) for k, v in given.items()}
    if "Range" in body:
        feeds = {"a": np.int64(2), "b": np.int64(15), "c": np.int64(3)}
    if "Sqrt" in body:
        feeds["a"] = np.abs(feeds["a"])
    feeds = {name: np.asarray(array) for name, array in feeds.items()}
    ranks = ", ".join(f"int64[{','.join(map(str, a.shape))}] {n}" for n, a in feeds.items())
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["": 18]> g ({ranks.replace("[] ", " ")}) => (int64[?] y) {{ {body} }}'
    )
    model.graph.outputs[0].shape = None

    def evaluated(inputs: dict, flags: dict) -> tuple[np.ndarray, np.ndarray]:
        known, marks = dict(inputs), dict(flags)
        for node in model.graph:
            data = [known[v.name] for v in node.inputs]
            found = integers.evaluate(node, data)
            assert found is not None
            assert integers.evaluated_size(node, data) >= found[0].size
            tainted = integers.taint(node, data, [marks[v.name] for v in node.inputs], found)
            names = [v.name for v in node.outputs]
            known.update(zip(names, found, strict=True))
            marks.update(zip(names, tainted, strict=True))
        return known["y"], marks["y"]

    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    clean = {name: np.zeros(array.shape, bool) for name, array in feeds.items()}
    result, flags = evaluated(feeds, clean)
    np.testing.assert_array_equal(result, session.run(["y"], feeds)[0])
    assert not flags.any()
    free = [name for name, shape in given.items() if isinstance(shape, tuple)]
    for _ in range(20):
        marks = clean | {name: rng.random(feeds[name].shape) < 0.3 for name in free}
        result, flags = evaluated(feeds, marks)
        assert flags.shape == result.shape
        other = {n: np.where(marks[n], draw(a.shape), a) for n, a in feeds.items()}
        if "Range" in body or "Sqrt" in body:
            other = {n: np.abs(a) for n, a in other.items()}
        changed, _ = evaluated(other, marks)
        if changed.shape != result.shape:
            assert flags.all()
        else:
            np.testing.assert_array_equal(changed[~flags], result[~flags])
    for name in given.keys() - set(free):
        # What steers the movement decides on every element.
        _, flags = evaluated(feeds, clean | {name: np.ones(feeds[name].shape, bool)})
        assert flags.all()


def test_a_model_that_inference_refuses_is_an_error_with_the_cause() -> None:
    model = reading(
        "z = Add (x, w)",
        "float[2,3] x",
        constants="int64[1] minus = {-1}, float[4] w = {1,2,3,4}",
    )
    with pytest.raises(
        shapes.PassError, match=r"shape inference refuses the model: .*[Ii]ncompatible dim"
    ):
        shapes.infer(model)
    assert weights.parameter_count(model) == 4
