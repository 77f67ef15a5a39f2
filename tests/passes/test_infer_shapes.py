"""Stale shapes are replaced, and a changed interface is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes import InferShapes, weights
from passes.errors import PassError

MODEL = """
<ir_version: 9, opset_import: ["": 18, "my": 1]>
g (float[N,3,8,8] x) => (float[N,2,8,8] y, float[N,2] z)
<float[4,3,1,1] w1 = {ONES}, float[2,4,1,1] w2 = {1,1,1,1,1,1,1,1}, float[4] b = {1,1,1,1}>
{
    a = Conv (x, w1, b)
    r = Relu (a)
    y = Conv (r, w2)
    c = my.Op (y)
    z = my.Op (c)
}
""".replace("ONES", ",".join(["1"] * 12))


def inferred(text: str = MODEL) -> tuple[ir.Model, dict[str, ir.Value]]:
    model = ir.from_onnx_text(text)
    values = {value.name: value for node in model.graph for value in node.outputs}
    values["c"].shape = ir.Shape([7, 7])
    assert InferShapes()(model).modified
    return model, values


def test_shapes_follow_weights_that_were_cut() -> None:
    model, values = inferred()
    assert values["r"].shape == ["N", 4, 8, 8]
    for name, cut in {"w1": np.s_[:3], "b": np.s_[:3], "w2": np.s_[:, :3]}.items():
        value = model.graph.initializers[name]
        weights.set_tensor(value, weights.constant(value)[cut])
    report = InferShapes()(model)
    assert values["r"].shape == values["a"].shape == ["N", 3, 8, 8]
    assert report.changes[0].after == 2
    assert not InferShapes()(model).modified
    # Nothing can find these again.
    assert values["c"].shape == [7, 7]
    assert values["z"].shape == ["N", 2]


def test_a_changed_interface_is_refused() -> None:
    model, values = inferred()
    value = model.graph.initializers["w2"]
    weights.set_tensor(value, weights.constant(value)[:1])
    with pytest.raises(
        PassError, match=r"'y' is declared as \[N,2,8,8\] but the graph computes \[N,1,8,8\]"
    ):
        InferShapes()(model)
    assert values["y"].shape == ["N", 2, 8, 8]


def test_sizes_that_do_not_fit_are_refused() -> None:
    model, _ = inferred(
        MODEL.replace("Relu (a)", "Mul (a, k)").replace(
            "float[4] b", "float[4,1,1] k = {1,1,1,1}, float[4] b"
        )
    )
    value = model.graph.initializers["w1"]
    weights.set_tensor(value, weights.constant(value)[:3])
    with pytest.raises(
        PassError, match=r"shape inference refuses the model: .*ncompatible dim"
    ):
        InferShapes()(model)


def test_a_sequence_is_no_tensor_and_its_elements_have_sizes_of_their_own() -> None:
    model = ir.from_onnx_text("""
<ir_version: 9, opset_import: ["": 18]>
g (float[N,5] x) => (float[N,2] y, float[N,3] z)
<int64 zero = {0}, int64 one = {1}, int64[2] sizes = {2, 3}>
{
    parts = SplitToSequence <axis = 1> (x, sizes)
    part = SequenceAt (parts, zero)
    other = SequenceAt (parts, one)
    y = Relu (part)
    z = Relu (other)
}
""")
    InferShapes()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    values = {value.name: value for node in model.graph for value in node.outputs}
    assert not isinstance(values["parts"].type, ir.TensorType)
    # a size that both of them had would be a wrong one
    assert values["part"].shape[0] == values["other"].shape[0] == "N"
    assert values["part"].shape[1] == values["other"].shape[1] == ir.SymbolicDim(None)
    assert not InferShapes()(model).modified
