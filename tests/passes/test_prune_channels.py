"""Pruning equals zeroing, takes the channels that hand-worked sums name, and meets ratios, multiples and budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import onnx.parser
import pytest
from hypothesis import strategies as st
from onnx import numpy_helper

import passes
from benchmarks import nets
from passes import weights
from passes.analysis.channels import find_channels
from passes.analysis.macs import count_macs
from passes.planners.importance import find_importance
from passes.planners.pruning import Pruner, Rules
from tests import masking, oracle, strategies
from tests.graphs import Graph

if TYPE_CHECKING:
    import onnx_ir as ir

# ------------------------------------------------------------------------- pruning equals zeroing


def prune_and_mask(
    proto: onnx.ModelProto, rules: Rules, ratio: float
) -> tuple[ir.Model, onnx.ModelProto] | None:
    """The pruned model, and the original with the same channels zeroed; None if none can go."""
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    channels = find_channels(model)
    plan = Pruner(channels, rules).at_ratio(ratio).plan
    masked = masking.masked(model, channels, plan.dropped)
    options = {"scope": rules.scope, "multiple": rules.multiple, "whole": rules.whole}
    report = passes.PruneChannels(ratio=ratio, importance=rules.norm, **options)(model)
    assert report.modified == bool(plan)
    oracle.check(model)
    return (model, masked) if plan else None


@hypothesis.given(
    strategies.cases(kinds=("coupled",)),
    st.sampled_from(("global", "layer")),
    st.sampled_from((1, 2, 4)),
    st.sampled_from((None, True, False)),
    st.sampled_from((0.3, 0.6)),
)
def test_pruning_equals_zeroing(
    case: strategies.Case, scope: str, multiple: int, whole: bool | None, ratio: float
) -> None:
    rules = Rules(scope=scope, multiple=multiple, whole=whole)
    made = prune_and_mask(case.proto, rules, ratio)
    hypothesis.assume(made is not None)
    pruned, masked = made
    inputs = oracle.make_inputs(case.proto, case.sizes)
    agreement = oracle.assert_same_function(masked, pruned, inputs)
    hypothesis.assume(not agreement.collapsed)


@pytest.mark.parametrize("name", ["resnet18-cifar", "mobilenetv2"])
def test_pruning_equals_zeroing_on_known_networks(name: str) -> None:
    proto = oracle.to_proto(nets.build(name, batchnorm=True))
    made = prune_and_mask(proto, Rules(), 0.4)
    assert made is not None
    pruned, masked = made
    inputs = oracle.make_inputs(proto, {})
    assert not oracle.assert_same_function(masked, pruned, inputs).collapsed
    assert weights.parameter_count(pruned) < 0.8 * weights.parameter_count(
        oracle.from_proto(proto)
    )


# ------------------------------------------------------------------------- what importance is


def parsed(text: str, **arrays: object) -> ir.Model:
    """A model from ONNX text, with constants given as arrays."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(np.asarray(array, dtype=np.float32), name)
        proto.graph.initializer.append(tensor)
    return oracle.from_proto(proto)


def pointwise(table: object) -> np.ndarray:
    """A matrix as the weight of a 1x1 convolution."""
    return np.asarray(table, dtype=np.float32)[:, :, None, None]


def chain(first: object, second: object) -> ir.Model:
    """x -> 1x1 convolution -> Relu -> 1x1 convolution -> y."""
    one, two = pointwise(first), pointwise(second)
    text = f"""g (float[1,{one.shape[1]},2,2] x) => (float[1,{two.shape[0]},2,2] y)
    {{ a = Conv(x, first) b = Relu(a) y = Conv(b, second) }}"""
    return parsed(text, first=one, second=two)


ROWS = [[3, 0], [1, 1], [2, 0], [2, 3]]
COLUMNS = [[0, 2, 1, 0], [0, 2, 1, 0]]
# squares: rows 9, 2, 4, 13 and columns 0, 8, 2, 0; magnitudes: rows 3, 2, 2, 5 and columns 0, 4, 2, 0


@pytest.mark.parametrize(
    ("norm", "importance", "order"),
    [("l2", [9, 10, 6, 13], [2, 0, 1, 3]), ("l1", [3, 6, 4, 5], [0, 2, 3, 1])],
)
def test_importance_sums_rows_and_columns(norm, importance, order) -> None:
    model = chain(ROWS, COLUMNS)
    channels = find_channels(model)
    (node, made), *_ = channels.trace.sources.items()
    assert find_importance(channels, norm)[channels.roots[made.ravel()]].tolist() == importance
    for count in (1, 2, 3):
        plan = Pruner(channels, Rules(norm=norm, multiple=1)).at_ratio(count / 4).plan
        assert plan.dropped == {node.outputs[0].name: tuple(sorted(order[:count]))}


def test_importance_spans_all_coupled_layers() -> None:
    rng = np.random.default_rng(3)
    one, two = rng.standard_normal((4, 3, 3, 3)), rng.standard_normal((4, 3, 1, 1))
    deep, grouped = rng.standard_normal((4, 1, 3, 3)), rng.standard_normal((6, 2, 1, 1))
    scale, up = rng.standard_normal(4), rng.standard_normal((4, 2, 2, 2))
    model = parsed(
        """g (float[1,3,8,8] x) => (float[1,6,6,6] y, float[1,2,16,16] z)
        <float[4] zero = {0,0,0,0}, float[4] unit = {1,1,1,1}>
        { a = Conv<pads = [1,1,1,1]>(x, one) n = BatchNormalization(a, scale, zero, zero, unit)
          b = Conv(x, two) s = Add(n, b) d = Conv<group = 4>(s, deep) y = Conv<group = 2>(d, grouped)
          z = ConvTranspose<strides = [2,2]>(s, up) }""",
        one=one, two=two, deep=deep, grouped=grouped, scale=scale, up=up,
    )  # fmt: skip
    channels = find_channels(model)
    made = next(iter(channels.trace.sources.values()))
    squares = {
        "one": (one**2).sum((1, 2, 3)),
        "two": (two**2).sum((1, 2, 3)),
        "deep": (deep**2).sum((1, 2, 3)),
        "scale": scale**2,
        "up": (up**2).sum((1, 2, 3)),
        # channels 0 and 1 are read by the first three outputs, 2 and 3 by the others
        "grouped": np.concatenate(
            [(grouped[:3] ** 2).sum((0, 2, 3)), (grouped[3:] ** 2).sum((0, 2, 3))]
        ),
    }
    found = find_importance(channels)[channels.roots[made.ravel()]]
    np.testing.assert_allclose(found, sum(squares.values()), rtol=1e-5)


# ------------------------------------------------------------------------------- scope, rounding


def two_branches() -> ir.Model:
    """Hidden channels of importance 8, 9, 11, 12 in one branch and 100, 100, 1900, 1900 in the other."""
    first = pointwise(np.sqrt([[8.0], [9], [11], [12]]))
    second = pointwise(np.sqrt([[100.0], [101], [1900], [1901]]))
    return parsed(
        """g (float[1,1,2,2] x) => (float[1,1,2,2] y, float[1,1,2,2] z)
        { a = Conv(x, first) b = Relu(a) y = Conv(b, none)
          c = Conv(x, second) d = Relu(c) z = Conv(d, none) }""",
        first=first, second=second, none=np.full((1, 4, 1, 1), 1e-3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scope", "ratio", "dropped"),
    [
        # beside the mean of its own layer, 100 of 1900 is less than 8 of 12
        ("global", 0.25, {"c": (0, 1)}),
        ("global", 0.5, {"a": (0, 1), "c": (0, 1)}),
        ("layer", 0.25, {"a": (0,), "c": (0,)}),
        ("layer", 0.5, {"a": (0, 1), "c": (0, 1)}),
    ],
)
def test_scope(scope, ratio, dropped) -> None:
    model = two_branches()
    # one weight read twice, alike, would tie the branches
    passes.Tidy()(model)
    weights.copy_for(model.graph[5], 1, np.full((1, 4, 1, 1), 1e-3, dtype=np.float32))
    plan = Pruner(find_channels(model), Rules(scope=scope, multiple=1)).at_ratio(ratio).plan
    assert plan.dropped == dropped


def ramp(count: int) -> ir.Model:
    """A chain whose hidden channel i has importance i + 1."""
    return chain(np.sqrt(np.arange(1.0, count + 1))[:, None], np.zeros((1, count)))


@pytest.mark.parametrize(
    ("ratio", "multiple", "max_ratio", "kept"),
    [
        (0.3, 1, 0.9, 14),
        (0.3, 8, 0.9, 16),
        (0.5, 8, 0.9, 8),
        (0.45, 8, 0.9, 8),
        (0.4, 8, 0.9, 16),
        (0.15, 8, 0.9, 16),
        (0.05, 8, 0.9, 20),
        (0.95, 8, 0.9, 8),
        (0.95, 1, 0.9, 2),
        (0.95, 1, 0.5, 10),
        (0.95, 4, 0.45, 12),
        (0.5, 32, 0.9, 20),
    ],
)
def test_rounding_of_twenty_channels(ratio, multiple, max_ratio, kept) -> None:
    model = ramp(20)
    report = passes.PruneChannels(ratio=ratio, multiple=multiple, max_ratio=max_ratio)(model)
    table = weights.constant(model.graph.initializers["first"])
    assert table is not None
    # the largest stay, whatever their number is
    np.testing.assert_allclose(table.ravel() ** 2, np.arange(21 - kept, 21), rtol=1e-5)
    assert report.modified == (kept < 20)
    wanted = round(20 * (1 - ratio), 9)
    stayed = [skip for skip in report.skips if skip.subject.startswith("first: ")]
    assert bool(stayed) == (kept > wanted)
    if stayed and kept < 20:
        limit = (
            "may go" if ratio > max_ratio and kept > multiple else f"multiples of {multiple}"
        )
        assert limit in stayed[0].reason


def attention(heads: int, width: int) -> ir.Model:
    """One layer of self-attention on 5 tokens, with weights of its own for queries, keys and values."""
    g = Graph(4)
    x = g.input("x", (1, 5, 8))
    parts = []
    for turn in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)):
        y = g.add("MatMul", [x, g.normal(8, heads * width)])
        y = g.add("Reshape", [y, g.ints(0, 0, heads, -1)])
        parts.append(g.add("Transpose", [y], perm=list(turn)))
    scores = g.add("Softmax", [g.add("MatMul", parts[:2])], axis=-1)
    y = g.add("Transpose", [g.add("MatMul", [scores, parts[2]])], perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, g.ints(0, 0, -1)])
    return oracle.from_proto(g.model(g.add("MatMul", [y, g.normal(heads * width, 3)])))


@pytest.mark.parametrize(
    ("multiple", "whole", "heads", "width"),
    [(4, None, 4, 4), (4, True, 2, 8), (8, None, 2, 8), (1, False, 4, 4)],
)
def test_heads_lose_dimensions_or_go_whole(multiple, whole, heads, width) -> None:
    model = attention(4, 8)
    options = {"ratio": 0.5, "scope": "layer", "multiple": multiple, "whole": whole}
    assert passes.PruneChannels(**options)(model).modified
    passes.InferShapes()(model)
    found = [node for node in model.graph if node.op_type == "Reshape"][:3]
    shapes = [tuple(int(size) for size in node.outputs[0].shape) for node in found]
    assert shapes == [(1, 5, heads, width)] * 3


def grouped(width: int, groups: int) -> ir.Model:
    """A grouped convolution between two others."""
    g = Graph(5)
    x = g.conv(g.input("x", (1, 3, 4, 4)), width * groups, 1)
    y = g.conv(g.add("Relu", [x]), width * groups, 3, group=groups)
    return oracle.from_proto(g.model(g.conv(g.add("Relu", [y]), 5, 1)))


@pytest.mark.parametrize(
    ("multiple", "whole", "groups", "width"),
    [(2, None, 4, 4), (2, True, 2, 6), (4, None, 2, 6), (4, False, 4, 4), (1, False, 4, 3)],
)
def test_groups_keep_equally_many_channels_or_go_whole(multiple, whole, groups, width) -> None:
    model = grouped(6, 4)
    passes.PruneChannels(ratio=0.5, scope="layer", multiple=multiple, whole=whole)(model)
    node = [node for node in model.graph if node.op_type == "Conv"][1]
    assert node.attributes.get_int("group", 1) == groups
    kernel = weights.constant(node.inputs[1])
    assert kernel is not None
    assert kernel.shape[:2] == (groups * width, width)


# ---------------------------------------------------------------------------------------- budgets


def deep_chain() -> ir.Model:
    """Three 1x1 convolutions, 8 -> 16 -> 16 -> 4 channels, on 2x2 pixels."""
    g = Graph(9)
    x = g.add("Relu", [g.conv(g.input("x", (1, 8, 2, 2)), 16, 1)])
    x = g.add("Relu", [g.conv(x, 16, 1)])
    return oracle.from_proto(g.model(g.conv(x, 4, 1)))


def chain_macs(first: int, second: int) -> int:
    return 4 * (8 * first + first * second + second * 4)


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6, 0.5, 0.41, 0.3])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_a_budget_is_met_as_nearly_as_rounding_allows(share, scope, multiple) -> None:
    model = deep_chain()
    report = passes.PruneChannels(macs=share, scope=scope, multiple=multiple)(model)
    kernels = [
        np.shape(weights.constant(node.inputs[1]))
        for node in model.graph
        if node.op_type == "Conv"
    ]
    first, second = kernels[0][0], kernels[1][0]
    budget = share * chain_macs(16, 16)
    assert chain_macs(first, second) <= budget
    assert report.changes[-1].after == chain_macs(first, second)
    assert report.changes[-1].before == chain_macs(16, 16)
    assert first % multiple == second % multiple == 0
    close = 0.001 * chain_macs(16, 16)
    for more in ((first + multiple, second), (first, second + multiple)):
        fits = max(more) <= 16 and chain_macs(*more) <= budget
        assert not fits or budget - chain_macs(first, second) <= close


def test_a_budget_out_of_reach_names_the_lowest() -> None:
    model = deep_chain()
    before = oracle.to_proto(model)
    lowest = chain_macs(8, 8) / chain_macs(16, 16)
    with pytest.raises(
        passes.BudgetMissed, match=f"{lowest:.3f} is the lowest.*multiples of 8"
    ):
        passes.PruneChannels(macs=0.3, multiple=8)(model)
    assert oracle.to_proto(model) == before


def test_a_budget_counts_at_the_sizes_that_are_given() -> None:
    g = Graph(2)
    x = g.input("x", (1, 4, 4, 4), symbols=(1, 4, "height", "width"))
    x = g.add("Relu", [g.conv(x, 24, 3, pads=[1] * 4)])
    x = g.add("Flatten", [g.add("GlobalAveragePool", [x])])
    x = g.add("Relu", [g.gemm(x, 512)])
    proto = g.model(g.gemm(x, 64))
    shape = {"x": (1, 4, 2, 2)}
    shares = {}
    for name, shapes in (("given", shape), ("assumed", None)):
        model = oracle.from_proto(proto)
        whole = count_macs(model, shape)
        passes.PruneChannels(macs=0.5, multiple=1, shapes=shapes)(model)
        left = count_macs(model, shape)
        assert whole is not None
        assert left is not None
        shares[name] = left / whole
    # at 2x2 pixels the matrices are nearly all of it, at the sizes assumed the convolution is
    assert 0.49 < shares["given"] <= 0.5
    assert abs(shares["assumed"] - 0.5) > 0.02


# ------------------------------------------------------------------------------ skips and options


def test_sizes_that_the_model_does_not_take_are_refused() -> None:
    g = Graph(2)
    x = g.conv(g.input("x", (1, 4, 4, 4), symbols=(1, 4, "height", "width")), 16, 1)
    half = g.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    twice = g.add("Resize", [half, "", g.const(np.float32([1, 1, 2, 2]), "s")], mode="nearest")
    both = g.add("Concat", [x, twice], axis=1)
    model = oracle.from_proto(g.model(g.conv(both, 4, 1)))
    with pytest.raises(passes.PassError, match=r"'x' \[1, 4, 5, 5\].*multiples of 32"):
        passes.PruneChannels(macs=0.5, shapes={"x": (1, 4, 5, 5)})(model)


def test_what_cannot_go_is_named() -> None:
    report = passes.PruneChannels(ratio=0.5, multiple=1, keep=("a",))(chain(ROWS, COLUMNS))
    assert not report.modified
    reasons = {skip.subject.split(":")[0]: skip.reason for skip in report.skips}
    assert reasons == {
        "first": "you asked to keep them",
        "second": "they reach the graph output 'y', whose size is the model's interface",
    }


def test_a_channel_of_weights_that_are_no_numbers_stays() -> None:
    model = chain([[np.nan, 0], *ROWS[1:]], COLUMNS)
    plan = Pruner(find_channels(model), Rules(multiple=1)).at_ratio(0.7).plan
    assert plan.dropped == {"a": (1, 2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how much"),
        ({"ratio": 0.5, "macs": 0.5}, "either 'ratio'"),
        ({"ratio": 1.0}, "'ratio' is a share above 0 and below 1, not 1.0"),
        ({"macs": -1.0}, "'macs' is a share"),
        ({"ratio": 0.5, "max_ratio": 0.0}, "'max_ratio'"),
        ({"ratio": 0.5, "multiple": 0}, "multiples of 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        passes.PruneChannels(**options)


def test_counts_are_rounded_to_what_the_target_likes() -> None:
    for name, kept in (("onnxruntime-cpu-avx512", 16), ("tensorrt", 8)):
        model = ramp(20)
        passes.PruneChannels(ratio=0.4, target=passes.TARGETS[name])(model)
        assert model.graph.initializers["first"].shape[0] == kept + (name == "tensorrt") * 8


def test_a_plan_is_carried_out_as_it_is_edited() -> None:
    first = deep_chain()
    done = passes.PruneChannels(ratio=0.5, multiple=1)(first)
    assert done.plan is not None
    again = deep_chain()
    assert passes.PruneChannels(plan=done.plan)(again).plan == done.plan
    assert oracle.to_proto(again) == oracle.to_proto(first)

    name, dropped = next(iter(done.plan.dropped.items()))
    fewer = passes.ChannelPlan({name: dropped[:1]})
    report = passes.PruneChannels(plan=fewer)(deep_chain())
    assert report.plan is not None
    assert report.plan.dropped == fewer.dropped
    report = passes.PruneChannels(plan=fewer, macs=0.4)(deep_chain())
    left = report.changes[-1].after / report.changes[-1].before
    assert any(
        f"leaves {left:.3f} of them, and 0.4 were" in each.reason for each in report.skips
    )
    last = again.graph.outputs[0].name or ""
    with pytest.raises(passes.PlanMismatch, match="cannot go: they reach the graph output"):
        passes.PruneChannels(plan=passes.ChannelPlan({last: (0,)}))(deep_chain())
