"""Zero rows of layers that the channel map leaves out are explained all the same."""

from __future__ import annotations

import numpy as np

import passes
from tests import oracle
from tests.graphs import Graph


def test_a_token_mixing_layer_keeps_its_zero_rows_and_says_why():
    g = Graph(seed=2)
    x = g.dense(g.input("x", (1, 6, 4)), 8)
    mixed = g.add("MatMul", [g.add("Transpose", [x], perm=[0, 2, 1]), g.const(mixer())])
    model = oracle.from_proto(g.model(g.dense(g.add("Transpose", [mixed], perm=[0, 2, 1]), 3)))
    report = passes.RemoveChannels()(model)
    assert any(
        "[1, 4]" in skip.subject and "another axis" in skip.reason for skip in report.skips
    )


def test_a_layer_of_unknown_size_says_so():
    g = Graph(seed=2)
    x = g.conv(g.input("x", (1, 3, 5, 5)), 8, 1)
    g.zero_rows(g.layers[0], (2, 5))
    proto = g.model(x)
    del proto.graph.input[0].type.tensor_type.shape.dim[:]
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    report = passes.RemoveChannels()(oracle.from_proto(proto))
    assert not report.modified
    assert any("[2, 5]" in skip.subject and "not known" in skip.reason for skip in report.skips)


def test_a_product_of_unknown_size_is_known_by_its_weight():
    g = Graph(seed=2)
    x = g.dense(g.input("x", (4, 6)), 8)
    g.zero_rows(g.layers[0], (2, 5))
    proto = g.model(x)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]
    report = passes.RemoveChannels()(oracle.from_proto(proto))
    weight = g.layers[0].weight
    assert any(skip.subject == f"{weight}: channels [2, 5]" for skip in report.skips)


def mixer() -> np.ndarray:
    """A matrix over tokens with two columns of zeros."""
    matrix = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    matrix[:, [1, 4]] = 0
    return matrix
