"""Attention heads that add nothing go, whatever constants they hold."""

from __future__ import annotations

import passes
from passes import weights
from tests import oracle
from tests.graphs import Graph

HEADS, WIDTH, TOKENS = 2, 4, 6


def test_a_head_goes_though_its_scores_are_constant_at_one_token() -> None:
    g = Graph(seed=3)
    size = HEADS * WIDTH
    # the class token of a vision transformer is the same for every image
    token = g.const(g.rng.standard_normal((1, 1, size)))
    x = g.add("Concat", [token, g.dense(g.input("x", (1, TOKENS - 1, 5)), size)], axis=1)
    parts = []
    for name, order in {"q": (0, 2, 1, 3), "k": (0, 2, 3, 1), "v": (0, 2, 1, 3)}.items():
        y = g.dense(x, size)
        if name == "v":
            g.zero_rows(g.layers[-1], range(WIDTH, size), clean=True)
        y = g.add("Reshape", [y, g.ints(0, 0, HEADS, WIDTH)])
        parts.append(g.add("Transpose", [y], perm=list(order)))
    scores = g.add("Softmax", [g.add("MatMul", parts[:2])], axis=-1)
    y = g.add("Transpose", [g.add("MatMul", [scores, parts[2]])], perm=[0, 2, 1, 3])
    proto = g.model(g.dense(g.add("Reshape", [y, g.ints(0, 0, size)]), 3))
    model = oracle.from_proto(proto)
    report = passes.RemoveChannels()(model)
    made = [weights.constant(model.graph.initializers[layer.weight]) for layer in g.layers]
    assert [array.shape[1] for array in made if array is not None] == [size, *[WIDTH] * 3, 3]
    assert not report.skips
    oracle.check(model)
    oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))
