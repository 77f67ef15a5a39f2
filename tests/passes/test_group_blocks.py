"""Layers with blocks in every form that fits: the function stays, the graph is sound, and nothing else is touched."""

from __future__ import annotations

import collections
import dataclasses
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import passes
from passes import BlockPlan, PlanMismatch, shapes, targets, weights
from passes.lowerings import DENSE, LOWERINGS
from passes.lowerings.alone import Case
from passes.lowerings.task import BlockedLayer
from passes.planners.block_choice import Chosen
from passes.planners.block_finding import find_all_blocks
from tests import blocked, oracle, strategies
from tests.graphs import Graph

ANY_GROUP = dataclasses.replace(targets.TARGETS["generic"], group_multiple=1)
FORMS = (*(each.name for each in LOWERINGS), "best")


def lowered(proto, **options):
    """A model after the pass, and what the pass reports."""
    model = oracle.from_proto(proto)
    return model, passes.GroupBlocks(**options)(model)


def at_random(seed):
    """A choice of any form that fits."""
    dice = np.random.default_rng(seed)

    def choose(cases):
        return [Chosen(str(dice.choice(each.names[1:])), "drawn") for each in cases]

    return choose


def judge(before, model):
    """The result is a sound graph with the interface of the original, and computes the same."""
    proto = oracle.to_proto(model)
    made = [name for node in proto.graph.node for name in node.output]
    made += [tensor.name for tensor in proto.graph.initializer]
    assert len(made) == len(set(made))
    nodes = [node.name for node in proto.graph.node]
    assert len(nodes) == len(set(nodes))
    read = {name for node in proto.graph.node for name in node.input}
    read |= {value.name for value in proto.graph.output}
    constants = [tensor.name for tensor in proto.graph.initializer]
    constants += [node.output[0] for node in proto.graph.node if node.op_type == "Constant"]
    assert set(constants) <= read
    assert proto.graph.input == before.proto.graph.input
    assert proto.graph.output == before.proto.graph.output
    oracle.check(model)
    inputs = oracle.make_inputs(before.proto, before.sizes)
    oracle.assert_same_function(before.proto, model, inputs)


@hypothesis.given(blocked.blocked(), st.sampled_from(blocked.TARGETS))
def test_every_form_preserves_the_function(case, target):
    for form in FORMS:
        model, report = lowered(case.proto, lowering=form, target=target)
        assert report.exact
        assert report.modified == bool(report.changes)
        if report.modified:
            judge(case, model)
        else:
            assert oracle.to_proto(model) == oracle.to_proto(oracle.from_proto(case.proto))


@hypothesis.given(
    strategies.cases(kinds=("blocks",)),
    st.integers(0, 2**16),
    st.sampled_from(blocked.TARGETS),
    st.booleans(),
)
def test_forms_anywhere_in_a_graph_preserve_the_function(case, seed, target, is_ordered):
    model = oracle.from_proto(case.proto)
    passes.Tidy()(model)
    if is_ordered:
        passes.PermuteChannels(purpose="group-blocks")(model)
    report = passes.GroupBlocks(choose=at_random(seed), target=target)(model)
    hypothesis.assume(report.modified)
    passes.InferShapes()(model)
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    oracle.assert_same_function(case.proto, model, inputs)


def test_every_form_is_drawn_for_every_kind_of_layer():
    seen = collections.Counter()

    @hypothesis.settings(max_examples=400, phases=[hypothesis.Phase.generate], database=None)
    @hypothesis.seed(0)
    @hypothesis.given(blocked.blocked(half=False), st.sampled_from(blocked.TARGETS))
    def collect(case, target):
        for each in cases_of(case.proto, target):
            layer = each.task.layer
            seen.update(each.names)
            seen[f"rank {each.task.rank}"] += 1
            seen["groups"] += layer.groups > 1
            seen["window"] += layer.is_cropped
            seen["padded groups"] += "gathered" in each.names and any(
                (columns < 0).any() for _, columns in each.task.even
            )
        seen[f"opset {case.graph.opset}"] += 1

    collect()
    wanted = [
        *FORMS[:-1],
        "rank 2",
        "rank 3",
        "rank 4",
        "rank 5",
        "groups",
        "window",
        "padded groups",
        *(f"opset {opset}" for opset in blocked.OPSETS),
    ]
    assert {name: seen[name] for name in wanted if not seen[name]} == {}


def cases_of(proto, target):
    """The layers with blocks of a model, with their forms."""
    model = oracle.from_proto(proto)
    sizes = shapes.measure(model)
    found = []
    for layer, blocks in find_all_blocks(model).found:
        size = tuple(sizes.shape[layer.data])
        task = BlockedLayer(layer, blocks, target.group_multiple, len(size))
        found.append(Case(task, size, target))
    return found


@hypothesis.given(blocked.blocked(), st.sampled_from(blocked.TARGETS))
def test_a_layer_alone_computes_the_same_in_all_its_forms(case, target):
    for each in cases_of(case.proto, target):
        models = {name: oracle.to_proto(each.build(name)) for name in each.names}
        for model in models.values():
            oracle.check(model)
        feeds = each.feeds()
        (expected,) = oracle.run(oracle.open_session(models.pop(DENSE)), feeds)
        for model in models.values():
            (actual,) = oracle.run(oracle.open_session(model), feeds)
            scale = max(1e-3, np.abs(expected).max())
            limit = oracle.TOLERANCE[each.task.layer.array.dtype]
            np.testing.assert_allclose(actual, expected, atol=limit * scale, rtol=0)


@hypothesis.given(blocked.blocked(), st.sampled_from(blocked.TARGETS), st.integers(0, 2**16))
def test_a_plan_does_the_same_again(case, target, seed):
    model, report = lowered(case.proto, target=target, choose=at_random(seed))
    hypothesis.assume(report.modified)
    again, replayed = lowered(case.proto, target=target, plan=report.plan)
    assert replayed.plan.lowerings == report.plan.lowerings
    assert oracle.to_proto(again) == oracle.to_proto(model)


# --------------------------------------------------------------------------- examples


def diagonal(g, x, rows, *, blocks=4, name=None, **attrs):
    """A convolution with blocks along the diagonal, its outputs and inputs in another order."""
    columns = g.shape(x)[1]
    y = g.conv(x, rows, 3, pads=[1] * 4, weight=name, **attrs)
    if name is None:
        mask = np.kron(np.eye(blocks), np.ones((rows // blocks, columns // blocks)))
        dice = np.random.default_rng(rows)
        mask = mask[dice.permutation(rows)][:, dice.permutation(columns)]
        g.constants[g.layers[-1].weight] *= mask[:, :, None, None]
    return y


def test_one_gather_serves_all_who_read_the_same():
    g = Graph(seed=1)
    x = g.add("Relu", [g.conv(g.input("x", (1, 3, 8, 8)), 16, 3)])
    one = diagonal(g, x, 16)
    weight = g.layers[-1].weight
    other = diagonal(g, x, 16, name=weight)
    case = strategies.Case(g.model(g.add("Concat", [one, other], axis=1)), {}, "", g)
    model, report = lowered(case.proto, lowering="gathered", target=ANY_GROUP)
    assert len(report.changes) == 2
    judge(case, model)
    read = [node.inputs[0] for node in model.graph if node.op_type == "Gather"]
    # One in front of both, and one behind each.
    assert len(read) == 3
    assert len(set(read)) == 3


@pytest.mark.parametrize(
    ("rows", "forms"),
    [
        # Where rows have to be put in order behind, nothing has to be gathered in front.
        ("shuffled", {"grouped": ["Conv", "Gather"]}),
        # Where they are in order as it is, either side may be put in order.
        ("turned", {"grouped": ["Conv", "Gather"], "gathered": ["Gather", "Conv"]}),
        ("in order", {"grouped": ["Conv"]}),
    ],
)
def test_blocks_side_by_side_need_one_gather_at_most(rows, forms):
    g = Graph(seed=3)
    weight = g.normal(16, 16, 3, 3)
    mask = np.kron(np.eye(4), np.ones((4, 4)))
    order = {"shuffled": g.rng.permutation(16), "turned": np.arange(16) ^ 12}
    mask = mask[order.get(rows, np.arange(16))]
    g.constants[weight] *= mask[:, :, None, None]
    y = g.conv(g.input("x", (1, 16, 8, 8)), 16, weight=weight)
    case = strategies.Case(g.model(y), {}, "", g)
    for form in ("grouped", "gathered"):
        model, report = lowered(case.proto, lowering=form, target=ANY_GROUP)
        assert report.modified == (form in forms)
        if report.modified:
            judge(case, model)
            assert [node.op_type for node in model.graph] == forms[form]


def test_layers_in_a_row_are_all_lowered():
    g = Graph(seed=2)
    x = g.conv(g.input("x", (1, 3, 8, 8)), 16, 3)
    case = strategies.Case(g.model(diagonal(g, diagonal(g, x, 16), 32)), {}, "", g)
    for form in ("gathered", "split"):
        model, report = lowered(case.proto, lowering=form, target=ANY_GROUP)
        assert len(report.changes) == 2
        judge(case, model)


@pytest.mark.parametrize(
    ("attrs", "kernel", "pads"),
    [
        ({"pads": [1, 1, 1, 1]}, [3, 2], [1, 0, 1, 1]),
        ({"pads": [1, 2, 0, 1]}, [3, 2], [1, 1, 0, 1]),
        ({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, [3, 2], [2, 0, 2, 2]),
        ({"pads": [2, 2, 2, 2], "strides": [2, 2]}, [3, 2], [2, 1, 2, 2]),
        # There is no padding that could be left out: the window would start further to the right.
        ({"pads": [1, 0, 1, 1]}, None, None),
        ({"pads": [2, 1, 2, 2], "dilations": [2, 2]}, None, None),
        ({"auto_pad": "SAME_UPPER"}, None, None),
        ({"auto_pad": "VALID"}, None, None),
    ],
)
def test_filters_that_are_zero_in_the_same_places_are_cropped(attrs, kernel, pads):
    g = Graph(seed=7)
    y = g.conv(g.input("x", (1, 4, 9, 9)), 6, 3, **attrs)
    g.constants[g.layers[0].weight][..., 0] = 0
    case = strategies.Case(g.model(y), {}, "", g)
    model, report = lowered(case.proto, lowering="smaller")
    if kernel is None:
        assert not report.modified
        return
    judge(case, model)
    (node,) = model.graph
    assert list(node.attributes["kernel_shape"].as_ints()) == kernel
    assert list(node.attributes["pads"].as_ints()) == pads
    (change,) = report.changes
    assert (change.before, change.after) == (6 * 4 * 9, 6 * 4 * 6)


def bias_of(kind):
    """A convolution with blocks whose bias is not a constant."""
    g = Graph(seed=8)
    x = g.input("x", (1, 16, 6, 6))
    bias = g.input("b", (16,)) if kind == "given" else g.add("Neg", [g.normal(16)])
    weight = g.normal(16, 16, 3, 3)
    g.constants[weight] *= np.kron(np.eye(4), np.ones((4, 4)))[:, :, None, None]
    return g.model(g.add("Conv", [x, weight, bias]))


@pytest.mark.parametrize("kind", ["given", "computed"])
def test_a_bias_that_is_no_constant_keeps_a_convolution_as_it_is(kind):
    _, report = lowered(bias_of(kind), lowering="grouped", target=ANY_GROUP)
    assert not report.modified
    assert "its bias is not a constant" in report.skips[0].reason


# --------------------------------------------------------------------------- what is given


def linear(rows=16, columns=16):
    """A MatMul with four blocks along the diagonal, and another layer without any."""
    g = Graph(seed=9)
    y = g.dense(g.input("x", (3, columns)), rows, bias=False)
    blocked_weight = g.layers[-1].weight
    g.constants[blocked_weight] *= np.kron(np.eye(4), np.ones((columns // 4, rows // 4)))
    y = g.dense(g.add("Relu", [y]), 4, bias=False)
    return g.model(y), blocked_weight, g.layers[-1].weight


def given(*parts):
    return types.SimpleNamespace(
        blocks=[
            types.SimpleNamespace(rows=np.asarray(rows), columns=np.asarray(columns))
            for rows, columns in parts
        ]
    )


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        # From 0 to 24 and from 80 to 96: two long runs.
        (np.r_[0:24, 80:96], {"Slice": 3, "Concat": 2, "Gather": 0}),
        (np.arange(0, 80, 2), {"Slice": 1, "Concat": 1, "Gather": 1}),
        # Long runs and a few elements apart, 13 in each on average.
        (np.r_[0:37, 50, 60], {"Slice": 1, "Concat": 1, "Gather": 1}),
    ],
)
def test_a_few_long_runs_of_the_last_axis_are_sliced(read, expected):
    """There a Gather copies one element at a time."""
    g = Graph(seed=4)
    y = g.dense(g.input("x", (3, 96)), 64, bias=False)
    mask = np.zeros((96, 64))
    mask[40:80, :32] = 1
    mask[read, 32:] = 1
    g.constants[g.layers[-1].weight] *= mask
    case = strategies.Case(g.model(y), {}, "", g)
    model, report = lowered(case.proto, lowering="products")
    assert len(report.changes) == 1
    judge(case, model)
    names = [node.op_type for node in model.graph]
    assert {name: names.count(name) for name in expected} == expected


def test_blocks_of_a_ticket_are_taken_where_they_hold_the_weight():
    proto, weight, _ = linear()
    halves = given((range(8), range(8)), (range(8, 16), range(8, 16)))
    _, report = lowered(proto, lowering="products", blocks={weight: halves})
    assert "2 of 8x8 in 16x16" in report.changes[0].what
    # Blocks that leave out weights, or that lie elsewhere, are none: what is zero says more.
    for wrong in (
        given((range(4), range(4))),
        given((range(16), range(4, 16))),
        given((range(17), range(17))),
        given(),
    ):
        model, report = lowered(proto, lowering="products", blocks={weight: wrong})
        assert "4 of 4x4 in 16x16" in report.changes[0].what
        oracle.assert_same_function(proto, model, oracle.make_inputs(proto, {}))


def test_what_is_to_be_kept_stays():
    proto, weight, _ = linear()
    node = proto.graph.node[0].name
    for name in (weight, node):
        model, report = lowered(proto, keep=(name,))
        assert [(skip.subject, skip.reason) for skip in report.skips] == [
            (weight, "you asked to keep it")
        ]
        assert oracle.to_proto(model) == oracle.to_proto(oracle.from_proto(proto))
    with pytest.raises(PlanMismatch, match="no node or tensor of that name"):
        lowered(proto, keep=("nobody",))


def test_bad_input_is_refused_in_words():
    proto, weight, dense = linear()
    names = ", ".join(["best", DENSE, *FORMS[:-1]])
    with pytest.raises(ValueError, match=f"no lowering 'faster'. There are: {names}"):
        passes.GroupBlocks(lowering="faster")
    for lowerings, message in (
        (
            {"nobody": "products"},
            "the plan names 'nobody', and the model has no layer with blocks",
        ),
        (
            {dense: "products"},
            f"the plan names '{dense}', and the model has no layer with blocks",
        ),
        (
            {weight: "grouped"},
            "as 'grouped', which does not fit: it is no convolution. There are:",
        ),
        ({weight: "faster"}, "as 'faster', which does not fit: there is no such form"),
        ({weight: "best"}, "as 'best', which does not fit: there is no such form"),
    ):
        before = oracle.from_proto(proto)
        with pytest.raises(PlanMismatch) as caught:
            passes.GroupBlocks(plan=BlockPlan(lowerings))(before)
        assert message in str(caught.value)
        assert oracle.to_proto(before) == oracle.to_proto(oracle.from_proto(proto))


@pytest.mark.parametrize(("number", "what"), [(np.nan, "NaN"), (np.inf, "an infinity")])
def test_what_no_zero_cancels_keeps_all_layers_as_they_are(number, what):
    proto, weight, _ = linear()
    model = oracle.from_proto(proto)
    other = next(value for name, value in model.graph.initializers.items() if name != weight)
    array = other.const_value.numpy().copy()
    array[0, 0] = number
    weights.set_tensor(other, array)
    before = oracle.to_proto(model)
    report = passes.GroupBlocks(lowering="products")(model)
    assert not report.modified
    assert f"holds {what}, which no zero cancels" in report.skips[0].reason
    with pytest.raises(
        PlanMismatch, match="the plan computes layers by blocks, and none can be"
    ):
        passes.GroupBlocks(plan=BlockPlan({weight: "products"}))(model)
    assert oracle.to_proto(model).SerializeToString() == before.SerializeToString()


def test_a_plan_that_is_empty_changes_nothing():
    proto, _, _ = linear()
    model, report = lowered(proto, plan=BlockPlan())
    assert not report.modified
    assert oracle.to_proto(model) == oracle.to_proto(oracle.from_proto(proto))


def test_sizes_that_are_open_are_asked_for():
    g = Graph(seed=10)
    x = g.input("x", (1, 16, 9, 9), symbols=("n", 16, "h", "w"))
    proto = g.model(diagonal(g, x, 16))
    seen = []

    def choose(cases):
        seen.extend(each.shape for each in cases)
        return [Chosen(DENSE, "so") for _ in cases]

    lowered(proto, choose=choose, shapes={"x": (2, 16, 20, 30)})
    assert seen == [(2, 16, 20, 30)]
