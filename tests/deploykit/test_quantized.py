"""Quantized layers that no rule describes are named, not passed over."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper


def integer_network(path, count):
    names = ["x", *(f"q{index}" for index in range(count))]
    weight = numpy_helper.from_array(np.ones((8, 8), np.int8), "w")
    nodes = []
    for index in range(count):
        product, scaled = f"p{index}", names[index + 1]
        nodes.append(helper.make_node("MatMulInteger", [names[index], "w"], [product], product))
        nodes.append(helper.make_node("Cast", [product], [scaled], scaled, to=TensorProto.INT8))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.INT8, ["n", 8])
        for name in ("x", names[-1])
    )
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    opset = [helper.make_opsetid("", 18)]
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=opset).SerializeToString()
    )
    return path


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "1 MatMulInteger node "), (3, "3 MatMulInteger nodes ")]
)
def test_operators_on_quantized_weights_without_a_rule_are_named(
    run, tmp_path, count, expected
):
    result = run("inspect", integer_network(tmp_path / "m.onnx", count))
    assert result.exit_code == 0, result.stderr
    assert expected in result.stdout
    assert "remove channels before quantizing" in result.stdout


def test_other_networks_have_none(run, network):
    assert "has no rule" not in run("inspect", network).stdout
