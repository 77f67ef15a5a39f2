"""A sum over channels that is constant itself is still computed from them, as long as it stays."""

from __future__ import annotations

import passes
from tests import oracle
from tests.graphs import Graph


def test_constants_stay_in_a_constant_sum():
    g = Graph(seed=4)
    x = g.input("x", (2, 3, 4, 4))
    dead = g.conv(x, 8, 1)
    g.zero_rows(g.layers[0], tuple(range(8)))
    total = g.add("ReduceSum", [dead, g.ints(1)], keepdims=1)
    proto = g.model(g.conv(g.add("Mul", [g.conv(x, 4, 1), total]), 5, 1))
    model = oracle.from_proto(proto)
    passes.RemoveChannels()(model)
    assert not oracle.assert_same_function(
        proto, model, oracle.make_inputs(proto, {})
    ).collapsed
