"""Orders for 2:4: the function stays, the pattern keeps more, what obeys goes on obeying, and whoever cannot follow says so."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import passes
from passes import PermutePlan, PlanMismatch
from passes.analysis.fits import Candidate, find_candidates, fit
from passes.analysis.patterns import TWO_OF_FOUR, Pattern
from tests import oracle, strategies
from tests.graphs import Graph


def loaded(proto):
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    return model


def fits(model, pattern=TWO_OF_FOUR):
    """By weight: what the pattern keeps of its magnitude, and that magnitude."""
    found = {}
    for candidate in find_candidates(model, pattern):
        if isinstance(candidate, Candidate) and candidate.refusal is None:
            how = fit(candidate.held, pattern)
            if how is not None:
                size = np.abs(candidate.array.astype(np.float64))
                if candidate.held.scale is not None:
                    size = size * candidate.held.scale
                found[candidate.name] = (how.kept, float(size.sum()))
    return found


def total(found):
    return sum(kept * size for kept, size in found.values())


def permuted(proto, **options):
    model = loaded(proto)
    before = fits(model)
    report = passes.PermuteChannels(**{"seconds": 0.1, **options})(model)
    oracle.check(model)
    oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))
    return model, report, before, fits(model)


def heavy_tailed(g):
    """Let some channels count more than others, as those of trained networks do."""
    for layer in g.layers:
        held = g.constants[layer.weight]
        scale = np.exp(0.8 * g.rng.standard_normal(held.shape))
        g.constants[layer.weight] = (held * scale).astype(held.dtype)


@hypothesis.given(strategies.cases(), st.integers(0, 99))
def test_the_function_stays_and_the_pattern_keeps_no_less(case, seed):
    model = loaded(case.proto)
    before = fits(model)
    report = passes.PermuteChannels(seconds=0.02, seed=seed)(model)
    assert report.exact
    assert all("keeps more of '" in change.what for change in report.changes)
    after = fits(model)
    assert set(after) == set(before)
    assert total(after) >= total(before) * (1 - 1e-6)
    for name, (kept, _) in before.items():
        if kept == 1:
            assert after[name][0] == pytest.approx(1, abs=1e-5)
    if report.modified:
        oracle.check(model)
        inputs = oracle.make_inputs(case.proto, case.sizes)
        oracle.assert_same_function(case.proto, model, inputs)


def residual():
    """Two blocks around which the input is added again: five layers on one line, and one inside of each block."""
    g = Graph(seed=2)
    x = g.batch_norm(g.conv(g.input("x", (1, 3, 8, 8)), 16, 3, pads=[1] * 4))
    for _ in range(2):
        y = g.add("Relu", [g.batch_norm(g.conv(x, 24, 3, pads=[1] * 4))])
        x = g.add("Relu", [g.add("Add", [g.batch_norm(g.conv(y, 16, 1)), x])])
    out = g.conv(x, 5, 1)
    heavy_tailed(g)
    return g.model(out)


def test_producers_that_meet_in_an_add_and_all_who_read_them_share_an_order():
    _, report, before, after = permuted(residual())
    assert len(report.changes) == 3
    assert all(after[name][0] > before[name][0] for name in before if before[name][0] < 1)
    assert len(before) == 5
    line = max(report.plan.reasons.values(), key=len)
    assert line.count("%") == 2 * 3
    assert line.startswith("2:4 keeps more of ")


def concat():
    """Three branches side by side, as in a DenseNet, that a normalization, a depthwise convolution and others read."""
    g = Graph(seed=4)
    x = g.input("x", (1, 3, 8, 8))
    parts = [g.add("Relu", [g.conv(x, width, 3)]) for width in (8, 12, 16)]
    joined = g.batch_norm(g.add("Concat", parts, axis=1))
    y = g.conv(g.conv(joined, 36, 3, group=36), 8, 1)
    z = g.conv(g.add("Relu", [joined]), 8, 3)
    out = g.add("Add", [y, z])
    heavy_tailed(g)
    return g.model(out)


def test_parts_of_a_concat_are_ordered_each_within_itself():
    model, report, before, after = permuted(concat())
    assert report.modified
    assert all(after[name][0] > before[name][0] for name in before)
    order = next(order for order in report.plan.orders.values() if len(order) == 36)
    for start, stop in ((0, 8), (8, 20), (20, 36)):
        assert sorted(order[start:stop]) == list(range(start, stop))
    assert [node.op_type for node in model.graph].count("Gather") == 0


def test_parts_that_are_no_multiples_of_the_group_keep_the_groups_across_them():
    g = Graph(seed=5)
    x = g.input("x", (1, 3, 6, 6))
    joined = g.add("Concat", [g.conv(x, width, 1) for width in (10, 10)], axis=1)
    out = g.conv(joined, 8, 1)
    heavy_tailed(g)
    _, report, before, after = permuted(g.model(out))
    assert total(after) > total(before)
    assert report.modified


def attention(shared=False):
    """A transformer block with a class token: heads, normalizations, an embedding and a residual stream."""
    g = Graph(seed=6)
    width, heads = 32, 2
    patches = g.conv(g.input("x", (1, 3, 8, 8)), width, 4, strides=[4, 4])
    tokens = g.add(
        "Transpose", [g.add("Reshape", [patches, g.ints(1, width, 4)])], perm=[0, 2, 1]
    )
    token = g.normal(1, 1, width)
    if shared:
        token = g.add("Expand", [token, g.ints(1, 1, width)])
    x = g.add("Add", [g.add("Concat", [token, tokens], axis=1), g.normal(1, 5, width)])

    def normal(value):
        scale = g.const(g.rng.uniform(0.6, 1.4, width))
        return g.add("LayerNormalization", [value, scale, g.normal(width)], axis=-1)

    y = normal(x)
    parts = []
    for _ in range(3):
        flat = g.add("Reshape", [g.dense(y, width), g.ints(1, 5, heads, width // heads)])
        parts.append(g.add("Transpose", [flat], perm=[0, 2, 1, 3]))
    q, k, v = parts
    scores = g.add("MatMul", [q, g.add("Transpose", [k], perm=[0, 1, 3, 2])])
    mixed = g.add("MatMul", [g.add("Softmax", [scores], axis=-1), v])
    back = g.add(
        "Reshape", [g.add("Transpose", [mixed], perm=[0, 2, 1, 3]), g.ints(1, 5, width)]
    )
    x = g.add("Add", [x, g.dense(back, width)])
    hidden = g.add("Gelu", [g.dense(normal(x), 48)])
    x = g.add("Add", [x, g.dense(hidden, width)])
    out = g.dense(normal(x), 7)
    heavy_tailed(g)
    return g.model(out)


@pytest.mark.parametrize("shared", [False, True])
def test_every_layer_of_a_transformer_is_served(shared):
    _, report, before, after = permuted(attention(shared))
    assert (
        len(before) == 7
    )  # three projections, the one behind the heads, two of the MLP, the last
    assert all(after[name][0] > before[name][0] for name in before)
    assert not report.skips


def test_values_are_ordered_within_their_head():
    _, report, _, _ = permuted(attention())
    # Of values, 16 a head; the residual stream has 32 that are one.
    within = [
        order
        for order in report.plan.orders.values()
        if sorted(order[:16]) == list(range(16)) and sorted(order) == list(range(32))
    ]
    assert len(within) == 1


def head_norm(kind, *, width=16, heads=2):
    """Channels in heads, normalized over each head, and a layer that reads them."""
    g = Graph(seed=7)
    x = g.add("Reshape", [g.dense(g.input("x", (1, 3, 6)), width), g.ints(1, 3, heads, -1)])
    if kind == "scaled":
        scale, shift = (
            g.const(g.rng.uniform(0.6, 1.4, width // heads)),
            g.normal(width // heads),
        )
        x = g.add("LayerNormalization", [x, scale, shift], axis=-1)
    else:
        x = g.add("Softmax", [x], axis=-1)
    out = g.dense(g.add("Reshape", [x, g.ints(1, 3, width)]), 5)
    return g, g.model(out)


def order_of(model, order):
    name = next(node.outputs[0].name for node in model.graph if node.op_type == "MatMul")
    return passes.PermuteChannels(plan=PermutePlan({name: tuple(order)}))(model)


ALIKE = [3, 1, 0, 2, 7, 6, 5, 4]


@pytest.mark.parametrize(
    ("kind", "order", "reason"),
    [
        ("scaled", [*ALIKE, *(8 + at for at in ALIKE)], None),
        ("scaled", [*ALIKE, *range(8, 16)], "its parameters serve channels in several orders"),
        ("plain", [*ALIKE, *range(8, 16)], None),
        ("plain", [8, *range(1, 8), 0, *range(9, 16)], "would mix channels of two rows"),
    ],
)
def test_what_is_normalized_together_stays_together(kind, order, reason):
    _, proto = head_norm(kind)
    model = loaded(proto)
    if reason is None:
        assert order_of(model, order).modified
        oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))
        return
    with pytest.raises(PlanMismatch, match=reason):
        order_of(model, order)


def test_a_group_of_a_convolution_keeps_its_channels():
    g = Graph(seed=8)
    x = g.add("Relu", [g.conv(g.input("x", (1, 3, 6, 6)), 32, 3)])
    out = g.conv(x, 8, 3, group=2)
    heavy_tailed(g)
    _, report, before, after = permuted(g.model(out))
    (order,) = report.plan.orders.values()
    assert sorted(order[:16]) == list(range(16))
    assert total(after) > total(before)


def test_halves_of_a_split_keep_their_channels():
    g = Graph(seed=9)
    x = g.conv(g.input("x", (1, 3, 6, 6)), 32, 3)
    one, other = g.add("Split", [x, g.ints(16, 16)], n=2, axis=1)
    out = g.add("Add", [g.conv(one, 8, 1), g.conv(g.add("Relu", [other]), 8, 1)])
    heavy_tailed(g)
    _, report, before, after = permuted(g.model(out))
    (order,) = report.plan.orders.values()
    assert sorted(order[:16]) == list(range(16))
    assert all(after[name][0] > before[name][0] for name in before)


def obeying(g, weight):
    held = g.constants[weight]
    four = np.abs(held.reshape(held.shape[0], -1, 4, *held.shape[2:]))
    rank = four.argsort(axis=2).argsort(axis=2)
    g.constants[weight] = (held.reshape(four.shape) * (rank >= 2)).reshape(held.shape)


def test_what_obeys_is_neither_searched_nor_broken():
    g = Graph(seed=10)
    x = g.add("Relu", [g.conv(g.input("x", (1, 3, 6, 6)), 16, 3)])
    both = g.add("Concat", [g.conv(x, 8, 1), g.conv(x, 8, 3, pads=[1] * 4)], axis=1)
    out = g.conv(both, 8, 1)
    heavy_tailed(g)
    for layer in g.layers[1:]:
        obeying(g, layer.weight)
    _, report, _, _ = permuted(g.model(out))
    assert not report.modified
    assert {skip.reason for skip in report.skips if "obeys" in skip.reason} == {
        "what reads its channels obeys 2:4 already"
    }
    weight = g.layers[2].weight
    g.constants[weight] = g.rng.standard_normal(g.constants[weight].shape).astype(np.float32)
    _, report, _, after = permuted(g.model(out))
    assert after[g.layers[1].weight][0] == 1
    assert any("and would not any more" in skip.reason for skip in report.skips)


def test_a_layer_that_reads_the_input_says_why_it_cannot():
    g = Graph(seed=11)
    out = g.conv(g.input("x", (1, 16, 6, 6)), 8, 3)
    _, report, _, _ = permuted(g.model(out))
    assert not report.modified
    (skip,) = report.skips
    assert skip.subject == g.layers[0].weight
    assert "no channels of this model's" in skip.reason


def test_layers_behind_a_shuffle_have_a_say():
    g = Graph(seed=12)
    x = g.conv(g.input("x", (1, 3, 6, 6)), 32, 3)
    mixed = g.add("Reshape", [x, g.ints(1, 2, 16, 4, 4)])
    mixed = g.add("Transpose", [mixed], perm=[0, 2, 1, 3, 4])
    mixed = g.add("Reshape", [mixed, g.ints(1, 32, 4, 4)])
    out = g.add("Add", [g.conv(x, 8, 1), g.conv(mixed, 8, 1)])
    heavy_tailed(g)
    _, _, before, after = permuted(g.model(out))
    assert total(after) > total(before)


def test_other_patterns():
    proto = residual()
    model = loaded(proto)
    pattern = Pattern(1, 8)
    before = fits(model, pattern)
    passes.PermuteChannels(pattern="1:8", seconds=0.1)(model)
    assert total(fits(model, pattern)) > total(before)
    oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))


def test_the_plan_is_the_same_for_a_seed_and_can_be_carried_out_again():
    one, other = loaded(residual()), loaded(residual())
    plan = passes.PermuteChannels(seconds=0.1, seed=3)(one).plan
    assert passes.PermuteChannels(seconds=0.1, seed=3)(other).plan == plan
    again = loaded(residual())
    passes.PermuteChannels(plan=plan)(again)
    assert oracle.to_proto(again) == oracle.to_proto(one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"purpose": "luck"}, "ordered for sparse-2-4 or group-blocks, not for 'luck'"),
        ({"pattern": "4:2"}, "'4:2' is no pattern"),
        ({"seconds": 0}, "above 0, not 0"),
        ({"seconds": float("nan")}, "above 0, not nan"),
        ({"seconds": float("inf")}, "above 0, not inf"),
        ({"seed": -1}, "0 or more, not -1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        passes.PermuteChannels(**options)
