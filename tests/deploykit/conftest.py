"""A small network with dead rows, and the command line as a function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from deploykit.cli import main


def make_network(*, hidden=64, dead=32, features=256, classes=4, batch="batch"):
    """Gemm, Relu, Gemm; `dead` of the hidden rows are zero."""
    dice = np.random.default_rng(0)
    first = dice.standard_normal((hidden, features)).astype(np.float32)
    bias = dice.standard_normal(hidden).astype(np.float32)
    first[:dead], bias[:dead] = 0, 0
    second = dice.standard_normal((classes, hidden)).astype(np.float32)
    arrays = {"w1": first, "b1": bias, "w2": second, "b2": np.ones(classes, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "hidden", transB=1),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "head", transB=1),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "source" / "network.onnx"
    path.parent.mkdir()
    onnx.save(make_network(), path)
    return path


@pytest.fixture
def external_network(tmp_path):
    path = tmp_path / "external" / "network.onnx"
    path.parent.mkdir()
    onnx.save_model(
        make_network(),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=64,
    )
    return path


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke
