"""Retyped models by the command line: what is compared, and bfloat16 where nothing computes in it."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.emulation import NOTE, write_emulated
from deploykit.runtimes.onnxruntime import Session
from tests.deploykit.conftest import make_network

SET = ("--passes", "tidy,set-precision,infer-shapes", "--no-profile", "--set")


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.onnx"
    model = make_network(dead=0)
    model.opset_import[0].version = 22
    model.ir_version = 10
    onnx.save(model, path)
    return path


def narrow(array):
    """Numbers rounded to bfloat16."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_every_node_is_rounded(tmp_path):
    dice = np.random.default_rng(0)
    x, w, v = (dice.standard_normal((8, 8)).astype(np.float32) for _ in range(3))
    constant = helper.make_node(
        "Constant", [], ["v"], value=numpy_helper.from_array(v.astype(ml_dtypes.bfloat16))
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=TensorProto.BFLOAT16),
        constant,
        helper.make_node("MatMul", ["n", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (8, 8))],
        [
            helper.make_tensor_value_info("y", TensorProto.BFLOAT16, (8, 8)),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, (8, 8)),
            helper.make_tensor_value_info("n", TensorProto.BFLOAT16, (8, 8)),
        ],
        [numpy_helper.from_array(w.astype(ml_dtypes.bfloat16), "w")],
    )
    path = tmp_path / "narrow.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(model, path)
    (tmp_path / "out").mkdir()
    written = write_emulated(path, tmp_path / "out")
    onnx.checker.check_model(str(written), full_check=True)
    with Session(written, optimization="none") as session:
        found = session.run({"x": x})
    assert list(found) == ["y", "z", "n"]
    np.testing.assert_array_equal(found["n"], narrow(x))
    hidden = narrow(np.maximum(narrow(narrow(x) @ narrow(w)), 0))
    for name in ("y", "z"):
        # fp32 sums in another order may be rounded to the number beside it.
        np.testing.assert_allclose(
            found[name], narrow(hidden @ narrow(v)), rtol=2**-7, atol=1e-5
        )
        np.testing.assert_array_equal(found[name], narrow(found[name]))


def test_what_holds_no_bfloat16_is_not_written_again(dense, tmp_path):
    assert write_emulated(dense, tmp_path) is None


@pytest.mark.parametrize("io", ["fp32", "typed"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_typed_model_is_compared_and_written(run, dense, tmp_path, dtype, io):
    out = tmp_path / "out"
    options = (*SET, f"set-precision.dtype={dtype}", "--set", f"set-precision.io={io}")
    result = run("optimize", dense, "-o", out, *options)
    assert result.exit_code == 0, result.stdout + result.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == "smaller"
    found = report["validation"]
    assert found["verdict"] == "equal"
    assert found["tolerance"] == {"fp16": 5e-3, "bf16": 4e-2}[dtype]
    assert 0 < found["max_rel_error"] < found["tolerance"]
    assert (NOTE in report["warnings"]) == (dtype == "bf16")
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[dtype]
    graph = onnx.load(out / "model.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} == {kind}
    assert graph.output[0].type.tensor_type.elem_type == (
        kind if io == "typed" else TensorProto.FLOAT
    )


def test_a_tolerance_is_held(run, dense, tmp_path):
    options = (*SET, "set-precision.dtype=bf16", "--tolerance", "1e-6")
    result = run("optimize", dense, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize("option", ["dtype=bf16", "io=typed"])
def test_what_cannot_be_measured_says_so(run, dense, tmp_path, option):
    result = run(
        "optimize", dense, "-o", tmp_path / "out", *SET[:2], "--set", f"set-precision.{option}"
    )
    assert result.exit_code == 2
    assert "Add --no-profile" in result.stderr
    assert not (tmp_path / "out").exists()
