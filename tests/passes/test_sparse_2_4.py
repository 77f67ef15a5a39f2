"""The pass `sparse-2-4`: which axis it takes, what it leaves alone, and that what it makes obeys."""

from __future__ import annotations

import contextlib
import io

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import passes
from passes import PlanMismatch, SparsePlan, targets, weights
from passes.analysis import fits
from passes.analysis.patterns import Pattern
from passes.analysis.reductions import find_products
from tests import oracle
from tests.passes.test_patterns import by_search

TENSORRT = targets.TARGETS["tensorrt"]
DICE = np.random.default_rng(0)
KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
}


def model_of(nodes, constants, inputs, dtype=np.float32, opset=22):
    """A checked model; weights may be arrays or tensors that are stored already; what nodes make last is its output."""
    stored = [
        array if isinstance(array, onnx.TensorProto) else numpy_helper.from_array(array, name)
        for name, array in constants.items()
    ]
    kind = KINDS[np.dtype(dtype)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], kind, None)],
        stored,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def drawn(*shape, dtype=np.float32):
    return DICE.standard_normal(shape).astype(dtype)


def conv(rank=2, groups=1, dtype=np.float32, weight=None):
    w = drawn(16, 16 // groups, *(3,) * rank, dtype=dtype) if weight is None else weight
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=groups)
    return model_of([node], {"w": w}, {"x": (1, 16, *(6,) * rank)}, dtype)


def product(op, w, x, names=("x", "w"), **attributes):
    node = helper.make_node(op, names, ["y"], "product", **attributes)
    return model_of([node], {"w": w}, {"x": x}, w.dtype)


def quantized(axis, *, zero=0, per_channel=True):
    """A Conv whose weight is int8 behind a DequantizeLinear."""
    w = DICE.integers(-127, 128, (16, 8, 3, 3), dtype=np.int8)
    scale = DICE.uniform(0.01, 0.1, w.shape[axis] if per_channel else ()).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], "dq", axis=axis),
        helper.make_node("Conv", ["x", "d"], ["y"], "conv"),
    ]
    constants = {"w": w, "s": scale, "z": np.full(scale.shape, zero, np.int8)}
    return model_of(nodes, constants, {"x": (1, 8, 6, 6)})


def through(*steps):
    """A MatMul whose weight comes by way of other nodes."""
    made = {
        "Cast": ({"to": TensorProto.FLOAT}, np.float16),
        "Transpose": ({"perm": [1, 0]}, np.float32),
        "Identity": ({}, np.float32),
    }
    dtype = np.float16 if "Cast" in steps else np.float32
    w = drawn(8, 16, dtype=dtype) if "Transpose" in steps else drawn(16, 8, dtype=dtype)
    nodes, last = [], "w"
    for at, step in enumerate(steps):
        nodes.append(helper.make_node(step, [last], [f"v{at}"], f"n{at}", **made[step][0]))
        last = f"v{at}"
    nodes.append(helper.make_node("MatMul", ["x", last], ["y"], "product"))
    return model_of(nodes, {"w": w}, {"x": (4, 16)})


def constant_node():
    w = numpy_helper.from_array(drawn(16, 8), "ignored")
    nodes = [
        helper.make_node("Constant", [], ["w"], "c", value=w),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    return model_of(nodes, {}, {"x": (4, 16)})


def bfloat16_in_integers():
    """A weight of bfloat16 in int32_data, as some exporters write it."""
    w = drawn(16, 8, dtype=ml_dtypes.bfloat16)
    stored = onnx.TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=w.shape)
    stored.int32_data.extend(int(bits) for bits in w.view(np.uint16).reshape(-1))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    return model_of([node], {"w": stored}, {"x": (4, 16)}, ml_dtypes.bfloat16)


def tied(*, same_axis):
    """A weight that two products read."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "second")
        if same_axis
        else helper.make_node("Gemm", ["h", "w"], ["y"], "second", transB=1),
    ]
    return model_of(nodes, {"w": drawn(16, 16)}, {"x": (4, 16)})


CASES = {
    "fp32 Conv": (conv(), 1),
    "fp16 Conv": (conv(dtype=np.float16), 1),
    "bf16 Conv": (conv(dtype=ml_dtypes.bfloat16), 1),
    "bf16 in int32_data": (bfloat16_in_integers(), 0),
    "Conv 1-D": (conv(1), 1),
    "Conv 3-D": (conv(3), 1),
    "Conv in groups": (conv(groups=4), 1),
    "MatMul": (product("MatMul", drawn(16, 8), (4, 16)), 0),
    "MatMul of rank 3": (product("MatMul", drawn(4, 16, 8), (4, 2, 16)), 1),
    "MatMul, weight on the left": (product("MatMul", drawn(4, 8, 16), (4, 16, 2), "wx"), 2),
    "MatMul by a vector": (product("MatMul", drawn(16), (4, 16)), 0),
    "Gemm": (product("Gemm", drawn(16, 8), (4, 16)), 0),
    "Gemm transB": (product("Gemm", drawn(8, 16), (4, 16), transB=1), 1),
    "Gemm of A": (product("Gemm", drawn(8, 16), (16, 4), "wx"), 1),
    "Gemm of A transposed": (product("Gemm", drawn(16, 8), (16, 4), "wx", transA=1), 0),
    "int8, a scale an output": (quantized(0), 1),
    "int8, one scale": (quantized(0, per_channel=False), 1),
    "int8, a scale an input": (quantized(1), 1),
    "Transpose": (through("Transpose"), 1),
    "Cast, Transpose, Identity": (through("Identity", "Cast", "Transpose"), 1),
    "Constant node": (constant_node(), 0),
    "shared along one axis": (tied(same_axis=True), 0),
}


def weight_of(model):
    """The stored weight of the first product."""
    return find_products(model)[0].held


def forced(proto, **options):
    model = oracle.from_proto(proto)
    report = passes.Sparse24(force="magnitude", target=TENSORRT, **options)(model)
    oracle.check(model)
    return model, report


@pytest.mark.parametrize("name", CASES)
def test_the_best_mask_along_the_axis_that_is_summed_over(name):
    proto, axis = CASES[name]
    held = weight_of(oracle.from_proto(proto))
    assert held.axis == axis
    before = weights.constant(held.value)
    model, report = forced(proto)
    after = weights.constant(weight_of(model).value)
    real = before if held.scale is None else before.astype(np.float32) * held.scale
    expected = np.where(
        by_search(real, axis, Pattern(2, 4)), before, np.zeros((), before.dtype)
    )
    np.testing.assert_array_equal(after, expected)
    assert after.dtype == before.dtype
    assert (report.modified, report.exact, report.skips) == (True, False, ())
    (change,) = report.changes
    assert (change.subject, change.after) == ("w", before.size // 4)
    assert report.plan.axes == {"w": axis}
    # It obeys now, so that there is nothing to do any more, and the plan is one that an exact run can carry out.
    proto = oracle.to_proto(model)
    again = passes.Sparse24(target=TENSORRT, plan=report.plan)(model)
    assert (again.modified, again.exact, again.skips) == (False, True, ())
    assert [change.subject for change in again.changes] == ["w"]
    assert oracle.to_proto(model).SerializeToString() == proto.SerializeToString()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime-cpu"])
def test_nothing_is_altered_unasked(name, target):
    proto, _ = CASES[name]
    model = oracle.from_proto(proto)
    before = oracle.to_proto(model).SerializeToString()
    report = passes.Sparse24(target=targets.TARGETS[target])(model)
    assert (report.exact, report.modified, report.changes) == (True, False, ())
    assert len(report.skips) == 1
    assert report.skips[0].subject == "w"
    assert not report.plan
    assert oracle.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("name", ["fp32 Conv", "Gemm transB", "MatMul", "MatMul of rank 3"])
def test_outputs_are_those_of_the_masked_original(name):
    proto, axis = CASES[name]
    model, _ = forced(proto)
    masked = onnx.ModelProto()
    masked.CopyFrom(proto)
    (stored,) = masked.graph.initializer
    before = numpy_helper.to_array(stored)
    mask = by_search(before, axis, Pattern(2, 4))
    stored.CopyFrom(numpy_helper.from_array(np.where(mask, before, 0).astype(np.float32), "w"))
    oracle.assert_same_function(masked, model, oracle.make_inputs(proto, {}))


# Of fp16, polygraphy compares with the largest double.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_polygraphy_agrees_on_what_it_reads():
    sparse = pytest.importorskip(
        "polygraphy.tools.sparse", reason="needs the extra `polygraphy`"
    )
    for name in ("fp32 Conv", "fp16 Conv", "Conv 1-D", "Gemm", "Gemm transB", "Transpose"):
        proto, _ = CASES[name]
        for model, expected in (
            (proto, "non-sparse"),
            (oracle.to_proto(forced(proto)[0]), "sparse"),
        ):
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                sparse.SparsityPruner(model).check()
            assert f"Found {expected} tensor: w" in said.getvalue(), (name, said.getvalue())


REFUSED = {
    "another axis": (
        tied(same_axis=False),
        "w",
        "'first' sums over its axis 0 and 'second' over axis 1",
        "copy of its own",
    ),
    "zero point": (quantized(0, zero=3), "conv", "zero point that is not 0", "symmetrically"),
    "no whole groups": (
        product("MatMul", drawn(18, 8), (4, 18)),
        "w",
        "it reads 18 channels, no multiple of 4",
        "multiple of 4",
    ),
    "depthwise": (conv(groups=16), "w", "it is depthwise", "little work"),
    "transposed convolution": (
        model_of(
            [helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up")],
            {"w": drawn(16, 8, 2, 2)},
            {"x": (1, 16, 4, 4)},
        ),
        "w",
        "transposed convolution",
        "Resize",
    ),
    "two activations": (
        model_of([helper.make_node("MatMul", ["x", "x"], ["y"], "scores")], {}, {"x": (4, 4)}),
        "scores",
        "it multiplies two activations",
        "nothing can be done",
    ),
    "NaN": (
        conv(weight=np.full((16, 16, 3, 3), np.nan, np.float32)),
        "w",
        "NaN or an infinity",
        "repair",
    ),
    "an infinity": (
        product("MatMul", np.where(np.eye(16), np.inf, 0).astype(np.float16), (4, 16)),
        "w",
        "NaN or an infinity",
        "repair",
    ),
    "another reader": (
        model_of(
            [
                helper.make_node("Gather", ["w", "i"], ["e"], "embed"),
                helper.make_node("MatMul", ["e", "w"], ["y"], "head"),
            ],
            {"w": drawn(16, 16), "i": np.arange(4)},
            {},
        ),
        "w",
        "'embed' (Gather) reads it",
        "copy of its own",
    ),
    "an output": (
        model_of(
            [
                helper.make_node("Transpose", ["w"], ["t"], "turn"),
                helper.make_node("MatMul", ["x", "t"], ["y"], "head"),
            ],
            {"w": drawn(16, 16)},
            {"x": (4, 16)},
        ),
        None,
        "",
        "",
    ),
    "a weight made on the way": (
        model_of(
            [
                helper.make_node("Reshape", ["w", "s"], ["r"], "fold"),
                helper.make_node("MatMul", ["x", "r"], ["y"], "head"),
            ],
            {"w": drawn(256), "s": np.array([16, 16])},
            {"x": (4, 16)},
        ),
        "head",
        "made by 'fold' (Reshape)",
        "tidy",
    ),
}
REFUSED["an output"][0].graph.output.append(
    helper.make_tensor_value_info("t", TensorProto.FLOAT, (16, 16))
)
REFUSED["an output"] = (
    REFUSED["an output"][0],
    "w",
    "it is the output 't' of the model",
    "copy of its own",
)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    proto, subject, reason, advice = REFUSED[name]
    before = oracle.to_proto(oracle.from_proto(proto)).SerializeToString()
    model, report = forced(proto)
    (skip,) = report.skips
    assert skip.subject == subject
    assert reason in skip.reason
    assert advice in skip.advice
    assert (report.modified, report.changes) == (False, ())
    assert oracle.to_proto(model).SerializeToString() == before


def test_a_skip_says_by_how_much():
    w = np.zeros((8, 16), np.float32)
    w[:, 0::4] = 3
    w[:, 1::4] = 2
    w[0, 2] = 5  # one group of 32 has three, and the best mask drops the 2
    model = oracle.from_proto(product("Gemm", w, (4, 16), transB=1))
    (skip,) = passes.Sparse24(target=TENSORRT)(model).skips
    assert skip.reason.startswith("3 % of its groups")
    assert "would keep 99 % of its magnitude" in skip.reason
    assert "--set sparse-2-4.force=magnitude" in skip.advice


def test_kept_nodes_and_other_patterns():
    proto, _ = CASES["MatMul"]
    for keep in ("w", "product"):
        _, report = forced(proto, keep=(keep,))
        assert [(skip.subject, skip.reason) for skip in report.skips] == [
            ("w", "you asked to keep it")
        ]
    model, report = forced(proto, pattern="1:8")
    after = weights.constant(weight_of(model).value).reshape(2, 8, 8)
    assert (np.count_nonzero(after, axis=1) == 1).all()
    assert report.plan.patterns == {"w": "1:8"}
    with pytest.raises(ValueError, match="is no pattern"):
        passes.Sparse24(pattern="4:2")
    with pytest.raises(ValueError, match="not by 'luck'"):
        passes.Sparse24(force="luck")


def test_masks_that_are_given():
    proto, _ = CASES["Gemm transB"]
    mask = np.tile([False, True, False, True], (8, 4))
    model = oracle.from_proto(proto)
    before = weights.constant(weight_of(model).value)
    report = passes.Sparse24(masks={"w": mask}, target=TENSORRT)(model)
    assert (report.exact, report.modified) == (False, True)
    np.testing.assert_array_equal(weights.constant(weight_of(model).value), before * mask)
    wrong = {
        "no layer multiplies by such a weight. There are: 'w'": {"v": mask},
        "has shape [4, 16], its weight [8, 16]": {"w": mask[:4]},
        "does not obey 2:4 along axis 1": {"w": np.ones((8, 16), bool)},
    }
    for said, masks in wrong.items():
        with pytest.raises(PlanMismatch) as refused:
            passes.Sparse24(masks=masks, target=TENSORRT)(oracle.from_proto(proto))
        assert said in str(refused.value)


def test_plans_say_which_weights():
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    proto = model_of(nodes, {"a": drawn(16, 16), "b": drawn(16, 16)}, {"x": (4, 16)})
    model, report = forced(proto, plan=SparsePlan({"b": 0}, {"b": "2:4"}))
    assert [change.subject for change in report.changes] == ["b"]
    assert [(skip.subject, skip.reason) for skip in report.skips] == [
        ("a", "the plan does not list it")
    ]
    np.testing.assert_array_equal(
        weights.constant(model.graph.initializers["a"]),
        numpy_helper.to_array(proto.graph.initializer[0]),
    )
    wrong = {
        "64 of its 64 groups do not. Set 'force'": ({"a": 0}, {}),
        "along axis 1 of 'a', and it is 2:4 along axis 0": ({"a": 1}, {"force": "magnitude"}),
        "no layer multiplies by such a weight": ({"x": 1}, {"force": "magnitude"}),
    }
    for said, (axes, options) in wrong.items():
        plan = SparsePlan(axes, dict.fromkeys(axes, "2:4"))
        with pytest.raises(PlanMismatch) as refused:
            passes.Sparse24(plan=plan, target=TENSORRT, **options)(oracle.from_proto(proto))
        assert said in str(refused.value)


@pytest.mark.parametrize("axis", [0, 1])
def test_large_weights_in_a_file_are_made_in_slices(axis, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LARGE_BYTES", 1 << 10)
    proto = product("Gemm", drawn(120, 80), (2, 120 if axis == 0 else 80), transB=axis)
    before = numpy_helper.to_array(proto.graph.initializer[0])
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="data", size_threshold=0)
    model = ir.load(path)
    passes.Sparse24(force="magnitude", target=TENSORRT)(model)
    held = model.graph.initializers["w"].const_value
    assert isinstance(held, weights.Derived)
    written = io.BytesIO()
    held.tofile(written)
    after = np.frombuffer(written.getvalue(), np.float32).reshape(before.shape)
    expected = np.where(by_search(before, axis, Pattern(2, 4)), before, 0)
    np.testing.assert_array_equal(after, expected)


def test_a_weight_that_does_not_obey_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LARGE_BYTES", 1 << 10)
    monkeypatch.setattr(fits, "ELEMENTS_AT_ONCE", 1 << 8)
    proto = product("Gemm", drawn(64, 16), (2, 16), transB=1)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="data", size_threshold=0)
    for obeying_rows in (0, 64):
        model = ir.load(path)
        asked = []

        def derive(array, rows, obeying=obeying_rows, asked=asked):
            asked.append(rows)
            part = array[rows].copy()
            part[:obeying, 2:4] = part[:obeying, 6:8] = part[:obeying, 9:11] = 0
            part[:obeying, 12:14] = 0
            return part

        weights.set_derived(model.graph.initializers["w"], derive, (64, 16))
        report = passes.Sparse24(target=targets.TARGETS["onnxruntime-cpu"])(model)
        assert bool(report.changes) == bool(obeying_rows)
        assert asked == [slice(at, at + 16) for at in range(0, obeying_rows or 16, 16)]


def test_layers_in_subgraphs_and_functions():
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], "inside")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, (4, 8))],
        [numpy_helper.from_array(drawn(16, 8), "w")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["e"], "outside")],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, (4, 8))],
    )
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=body, else_branch=other)
    proto = model_of([node], {"v": drawn(16, 8), "c": np.array(True)}, {"x": (4, 16)})
    _, report = forced(proto)
    assert sorted(report.plan.axes) == ["v", "w"]
    assert not report.skips


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    "name", ["fp32 Conv", "fp16 Conv", "Conv 3-D", "Conv in groups", "MatMul of rank 3", "Gemm"]
)
def test_tensorrt_builds_what_is_made(name):
    pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")
    from tests.passes.test_tensorrt_accepts import build

    assert build(CASES[name][0]) != build(forced(CASES[name][0])[0])
