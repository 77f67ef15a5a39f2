"""The pass `set-precision`: what is typed, what stays in fp32, and that the outputs move by the rounding alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from onnx import TensorProto, defs, helper, numpy_helper

import passes
from passes import float_types, targets, weights
from passes.analysis.eligibility import find_eligibility
from tests import oracle, strategies
from tests.passes.test_sparse_2_4 import drawn, model_of

FLOAT = "tensor(float)"


def typed(proto, **options):
    model = oracle.from_proto(proto)
    report = passes.SetPrecision(**options)(model)
    passes.InferShapes()(model)
    oracle.check(model)
    return model, report


def types_of(model):
    """Node name -> the type of what it makes."""
    return {node.name: node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"}


def casts(model):
    return [node for node in model.graph if node.op_type == "Cast"]


def outputs_of(model, feeds):
    return oracle.open_session(model).run(None, dict(feeds))


def assert_close(proto, model, feeds, tolerance=5e-3):
    for mine, theirs in zip(outputs_of(proto, feeds), outputs_of(model, feeds), strict=True):
        scale = np.abs(mine).max()
        assert np.abs(mine - theirs.astype(mine.dtype)).max() <= tolerance * scale


NODES = {
    "MatMul": lambda x, y: helper.make_node("MatMul", [x, "w"], [y], f"matmul_{y}"),
    "Relu": lambda x, y: helper.make_node("Relu", [x], [y], f"relu_{y}"),
}


def chain(*nodes, constants=None, opset=22):
    """Nodes from x to y, each reading what the one before it makes."""
    found = {"w": drawn(16, 16), **(constants or {})}
    read = {name for node in nodes for name in node.input}
    found = {name: array for name, array in found.items() if name in read}
    return model_of(list(nodes), found, {"x": (4, 16)}, opset=opset)


X = {"x": drawn(4, 16)}


def test_weights_are_halved_and_the_interface_stays():
    proto = chain(NODES["MatMul"]("x", "h"), NODES["Relu"]("h", "y"))
    model, report = typed(proto)
    assert (report.exact, report.modified, report.skips) == (False, True, ())
    assert types_of(model) == {
        "matmul_h": ir.DataType.FLOAT16,
        "relu_y": ir.DataType.FLOAT16,
    }
    assert len(casts(model)) == 2
    (value,) = model.graph.initializers.values()
    assert (value.name, value.dtype) == ("w", ir.DataType.FLOAT16)
    np.testing.assert_array_equal(
        weights.constant(value),
        numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float16),
    )
    interface = [*model.graph.inputs, *model.graph.outputs]
    assert [(value.name, value.dtype) for value in interface] == [
        ("x", ir.DataType.FLOAT),
        ("y", ir.DataType.FLOAT),
    ]
    assert_close(proto, model, X)
    again = passes.SetPrecision()(model)
    assert (again.modified, again.changes) == (False, ())


def test_inputs_and_outputs_are_typed_on_request():
    proto = chain(NODES["MatMul"]("x", "h"), NODES["Relu"]("h", "y"))
    proto.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, (4, 16)))
    model, _ = typed(proto, io="typed", keep=("relu_y",))
    assert [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)] == [
        ir.DataType.FLOAT16
    ] * 3
    assert [value.name for value in model.graph.outputs] == ["y", "h"]
    assert types_of(model)["relu_y"] == ir.DataType.FLOAT
    found = outputs_of(model, {"x": X["x"].astype(np.float16)})
    for mine, theirs in zip(outputs_of(proto, X), found, strict=True):
        assert theirs.dtype == np.float16
        np.testing.assert_allclose(theirs, mine, atol=0.05)


def test_a_weight_that_both_sides_read_is_there_twice():
    proto = chain(NODES["MatMul"]("x", "h"), NODES["MatMul"]("h", "y"))
    model, report = typed(proto, keep=("matmul_y",))
    found = {value.name: value.dtype for value in model.graph.initializers.values()}
    assert found == {"w": ir.DataType.FLOAT, "w_float16": ir.DataType.FLOAT16}
    assert [(skip.subject, skip.reason) for skip in report.skips] == [
        ("matmul_y", "you asked to keep it in fp32")
    ]
    assert_close(proto, model, X)
    # Named by its weight, every node that reads it stays.
    _, report = typed(proto, keep=("w",))
    assert not report.modified


def times(number, x="x", y="y"):
    return helper.make_node("Mul", [x, number], [y], f"mul_{y}")


STAY = {
    "beyond fp16": (
        chain(times("c", y="h"), NODES["Relu"]("h", "y"), constants={"c": np.float32(1e6)}),
        {"mul_h": "reaches 1e+06, and fp16 ends at 65504", "relu_y": "it comes from 'mul_h'"},
    ),
    "bounded again": (
        chain(
            times("c", y="h"),
            helper.make_node("Softmax", ["h"], ["s"], "softmax"),
            NODES["MatMul"]("s", "y"),
            constants={"c": np.float32(-1e5)},
        ),
        {"mul_h": "fp16 ends at 65504", "softmax": "it comes from 'mul_h'"},
    ),
    "vanishes": (
        chain(
            helper.make_node("Add", ["x", "e"], ["y"], "add"),
            constants={"e": np.float32(1e-12)},
        ),
        {"add": "is at most 1e-12, which is 0 in fp16"},
    ),
    "from integers": (
        chain(
            helper.make_node("Shape", ["x"], ["s"], "shape"),
            helper.make_node("Cast", ["s"], ["f"], "cast", to=TensorProto.FLOAT),
            times("c", "f", "g"),
            helper.make_node("Cast", ["g"], ["i"], "back", to=TensorProto.INT64),
            helper.make_node("Expand", ["x", "i"], ["y"], "expand"),
            constants={"c": np.float32(1)},
        ),
        {"mul_g": "what were integers"},
    ),
    "quantized": (
        chain(
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
            NODES["MatMul"]("d", "m"),
            NODES["Relu"]("m", "r"),
            helper.make_node("QuantizeLinear", ["r", "s", "z"], ["p"], "q2"),
            helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"], "dq2"),
            constants={"s": np.float32(0.05), "z": np.int8(0)},
        ),
        {"matmul_m": "quantized layer", "relu_r": "its results are quantized"},
    ),
    "no such type": (
        chain(
            helper.make_node("EyeLike", ["x"], ["e"], "eye", dtype=1),
            helper.make_node("Add", ["x", "e"], ["y"], "add"),
        ),
        {"eye": "EyeLike takes no float16"},
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays_in_fp32(name):
    proto, reasons = STAY[name]
    model, report = typed(proto)
    assert {skip.subject for skip in report.skips} == set(reasons)
    for skip in report.skips:
        assert reasons[skip.subject] in skip.reason
        assert skip.advice
        assert types_of(model)[skip.subject] == ir.DataType.FLOAT
    assert_close(proto, model, X)


def test_behind_a_softmax_numbers_are_small_again():
    model, _ = typed(STAY["bounded again"][0])
    assert types_of(model)["matmul_y"] == ir.DataType.FLOAT16


def test_bfloat16_has_the_range_and_wants_an_opset():
    model, report = typed(STAY["beyond fp16"][0], dtype="bf16")
    assert not report.skips
    assert set(types_of(model).values()) == {ir.DataType.BFLOAT16}
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    for opset, reasons in (
        (17, ["Conv takes no bfloat16 in opset 17, but from opset 22 on"]),
        (22, []),
    ):
        proto = model_of([node], {"w": drawn(8, 4, 3, 3)}, {"x": (1, 4, 8, 8)}, opset=opset)
        _, report = typed(proto, dtype="bf16")
        assert [skip.reason for skip in report.skips] == reasons
        assert report.modified == (not reasons)


def test_bodies_stay_and_read_what_they_read():
    def body(name, weight):
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", weight], [name], name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 16))],
        )

    nodes = [
        NODES["MatMul"]("x", "h"),
        helper.make_node("ReduceSum", ["h"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], "greater"),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            "if",
            then_branch=body("then", "w"),
            else_branch=body("else", "v"),
        ),
    ]
    constants = {"w": drawn(16, 16), "v": drawn(16, 16), "zero": np.float32(0)}
    proto = model_of(nodes, constants, {"x": (4, 16)})
    model, report = typed(proto)
    assert [(skip.subject, skip.reason) for skip in report.skips] == [
        ("if", "the bodies of If stay in fp32")
    ]
    for sign in (1, -1):
        assert_close(proto, model, {"x": sign * X["x"]}, 1e-2)


def test_fixed_inputs_and_outputs_keep_their_type():
    nodes = [
        helper.make_node("Resize", ["x", "", "s"], ["r"], "resize", mode="nearest"),
        helper.make_node("LayerNormalization", ["r", "g"], ["y", "mean"], "norm"),
    ]
    constants = {"s": np.array([1, 1, 2, 2], np.float32), "g": np.ones(8, np.float32)}
    proto = model_of(nodes, constants, {"x": (1, 2, 4, 4)})
    proto.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, None))
    proto = onnx.shape_inference.infer_shapes(proto)
    model, report = typed(proto)
    assert not report.skips
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["g"].dtype == ir.DataType.FLOAT16
    assert_close(proto, model, {"x": drawn(1, 2, 4, 4)})


def test_types_are_inferred_where_a_file_does_not_say_them():
    proto = chain(NODES["MatMul"]("x", "h"), NODES["Relu"]("h", "y"))
    del proto.graph.value_info[:]
    _, report = typed(proto)
    assert not report.skips


def test_wrong_options():
    for options in ({"dtype": "fp8"}, {"io": "int8"}):
        with pytest.raises(ValueError, match=r"not to 'fp8'|not 'int8'"):
            passes.SetPrecision(**options)


@settings(max_examples=60)
@given(strategies.cases())
def test_random_networks_move_by_rounding_alone(case):
    # What is beyond fp16 on the way is for an evaluation to find.
    inputs = oracle.make_inputs(case.proto, case.sizes)
    expected = outputs_of(case.proto, inputs[0])
    assume(
        all(np.abs(array).max(initial=0) < 1e3 for array in expected if array.dtype.kind == "f")
    )
    model = oracle.from_proto(case.proto)
    passes.Tidy()(model)
    report = passes.SetPrecision()(model)
    passes.InferShapes()(model)
    oracle.check(model)
    found = outputs_of(model, inputs[0])
    for mine, theirs in zip(expected, found, strict=True):
        assert mine.dtype == theirs.dtype
        if mine.dtype.kind == "f" and np.isfinite(theirs).all():
            spread = max(1.0, float(np.abs(mine).max(initial=0)))
            assert np.abs(mine - theirs).max(initial=0) <= 0.1 * spread
    assert all(skip.reason and skip.advice for skip in report.skips)


def test_sparse_kernels_become_possible():
    proto = chain(NODES["MatMul"]("x", "h"), NODES["Relu"]("h", "y"))
    model, _ = typed(proto)
    for judged, precision in ((oracle.from_proto(proto), "fp32"), (model, "fp16")):
        (layer,) = find_eligibility(judged, targets.TARGETS["tensorrt"])
        assert layer.precision == precision
        says = any("it computes in fp32" in remark.reason for remark in layer.remarks)
        assert says == (precision == "fp32")


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_the_table_is_that_of_the_schemas(kind):
    """What it says of an operator, ONNX allows for all of its float inputs and outputs but the fixed ones, and not before."""
    wanted = f"tensor({kind.name.lower()})"

    def allows(schema):
        allowed = {
            each.type_param_str: each.allowed_type_strs for each in schema.type_constraints
        }
        fixed = (
            float_types.FIXED_INPUTS.get(schema.name, ()),
            float_types.FIXED_OUTPUTS.get(schema.name, ()),
        )
        kinds = {
            formal.type_str
            for skipped, formals in zip(fixed, (schema.inputs, schema.outputs), strict=True)
            for index, formal in enumerate(formals)
            if index not in skipped
            and FLOAT in allowed.get(formal.type_str, (formal.type_str,))
        }
        return all(wanted in allowed.get(each, ()) for each in kinds)

    versions = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            versions.setdefault(schema.name, {})[schema.since_version] = schema
    for name in float_types.KNOWN:
        for since, schema in versions[name].items():
            says = float_types.takes(name, kind, since) == 0
            assert not says or allows(schema), (name, since, "is too early")
            is_last = since == max(versions[name])
            assert says or not (is_last and allows(schema)), (name, since, "is missing")
        assert float_types.takes(name, kind, max(versions[name])) in {0, None}
    assert float_types.takes("Cast", kind, 22) is None


@pytest.mark.tensorrt
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_tensorrt_builds_typed_networks(dtype):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")
    from tests.passes.test_tensorrt_accepts import build

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "conv"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v"], ["y"], "head", transB=1),
    ]
    constants = {"w": drawn(32, 16, 3, 3), "v": drawn(8, 32)}
    proto = model_of(nodes, constants, {"x": (1, 16, 8, 8)}, opset=22)
    sizes = [len(build(typed(proto, dtype=dtype, keep=keep)[0])) for keep in ((), ("head",))]
    assert len(set(sizes)) == 2
