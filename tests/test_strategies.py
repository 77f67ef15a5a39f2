"""The random models themselves: they must be worth testing on."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest

from tests import oracle, strategies
from tests.graphs import Graph


def draw_many(count: int) -> list[strategies.Case]:
    """A fixed set of random models."""
    drawn: list[strategies.Case] = []

    @hypothesis.settings(max_examples=count, phases=[hypothesis.Phase.generate], database=None)
    @hypothesis.seed(0)
    @hypothesis.given(strategies.cases())
    def collect(case: strategies.Case) -> None:
        drawn.append(case)

    collect()
    return drawn


def test_random_models_run_and_depend_on_their_input() -> None:
    collapsed, drawn = 0, draw_many(60)
    for case in drawn:
        inputs = oracle.make_inputs(case.proto, case.sizes)
        assert len(inputs) == 5
        agreement = oracle.assert_same_function(case.proto, case.proto, inputs)
        assert agreement.error == 0.0
        collapsed += agreement.collapsed
    assert collapsed <= len(drawn) // 4


def test_random_models_are_diverse_and_full_of_zeros() -> None:
    drawn = draw_many(200)
    ops = {n.op_type for case in drawn for n in case.proto.graph.node}
    assert {"Conv", "ConvTranspose", "Gemm", "MatMul", "Concat", "Split", "Reshape"} <= ops
    assert len(ops) >= 40
    assert len({case.zeros for case in drawn}) >= 4
    assert any(case.sizes for case in drawn)
    assert any(case.graph.dtype == np.float16 for case in drawn)
    with_zeros = sum(
        any((case.graph.constants[layer.weight] == 0).any() for layer in case.graph.layers)
        for case in drawn
    )
    assert with_zeros >= len(drawn) // 2


def two_layers(scale: float) -> Graph:
    g = Graph(seed=1)
    x = g.input("x", (1, 3, 6, 6))
    y = g.conv(g.add("Relu", [g.conv(x, 4, 3)]), 2)
    g.outputs.append(y)
    g.constants[g.layers[-1].weight][0, 0] *= scale
    return g


def test_the_oracle_sees_a_small_difference_and_a_changed_interface() -> None:
    original = two_layers(1.0).model()
    inputs = oracle.make_inputs(original, {})
    assert not oracle.assert_same_function(original, two_layers(1.0).model(), inputs).collapsed
    with pytest.raises(oracle.DifferenceError, match="of its spread"):
        oracle.assert_same_function(original, two_layers(1.001).model(), inputs)
    narrower = Graph(seed=1)
    y = narrower.conv(narrower.input("x", (1, 3, 6, 6)), 2)
    with pytest.raises(oracle.DifferenceError, match="interface"):
        oracle.assert_same_function(original, narrower.model(y), inputs)


def test_the_oracle_calls_a_constant_output_collapsed() -> None:
    g = two_layers(1.0)
    for layer in g.layers:
        g.constants[layer.weight][:] = 0
    proto = g.model()
    inputs = oracle.make_inputs(proto, {})
    assert oracle.assert_same_function(proto, proto, inputs).collapsed


def test_large_inputs_stay_finite() -> None:
    g = Graph(seed=2, dtype=np.float16)
    proto = g.model(g.conv(g.conv(g.input("x", (1, 3, 6, 6)), 8, 3), 4, 3))
    large = oracle.make_inputs(proto, {})[-1]["x"]
    assert np.abs(large).max() > 100
    assert oracle.is_finite(oracle.run(oracle.open_session(proto), {"x": large}))
