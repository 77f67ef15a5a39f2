"""Channels in another order: the function stays, blocks come to stand together, and orders that cannot be are refused."""

from __future__ import annotations

import collections
import dataclasses

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies as st

import passes
from passes import PermutePlan, PlanMismatch, targets
from passes.analysis.patterns import Pattern, sparsify
from tests import blocked, oracle, strategies
from tests.graphs import Graph
from tests.orders import draw_orders

ANY_GROUP = dataclasses.replace(targets.TARGETS["generic"], group_multiple=1)


def tidied(proto):
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    return model


def copy_of(model):
    return oracle.from_proto(oracle.to_proto(model))


def carried_out(model, orders):
    """The orders that nodes can follow, each tried by itself."""
    done = {}
    for name, order in orders.items():
        copy = copy_of(model)
        try:
            report = passes.PermuteChannels(plan=PermutePlan({name: order}))(copy)
        except PlanMismatch as error:
            assert "the plan cannot be carried out: '" in str(error)  # noqa: PT017 - most succeed
            assert oracle.to_proto(copy) == oracle.to_proto(model)
            continue
        is_other = list(order) != sorted(order)
        assert report.modified == is_other == (oracle.to_proto(copy) != oracle.to_proto(model))
        if is_other:
            done[name] = order
    return done


@hypothesis.given(strategies.cases(), st.integers(0, 2**16))
def test_any_order_preserves_the_function(case, seed):
    model = tidied(case.proto)
    done = carried_out(model, draw_orders(model, np.random.default_rng(seed)))
    hypothesis.assume(done)
    before = copy_of(model)
    report = passes.PermuteChannels(plan=PermutePlan(done))(model)
    assert report.exact
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    oracle.assert_same_function(case.proto, model, inputs)
    assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph]


def test_most_orders_can_be_carried_out():
    tried, done = 0, 0

    @hypothesis.settings(max_examples=40, phases=[hypothesis.Phase.generate], database=None)
    @hypothesis.seed(0)
    @hypothesis.given(strategies.cases())
    def count(case):
        nonlocal tried, done
        model = tidied(case.proto)
        orders = {
            name: order
            for name, order in draw_orders(model, np.random.default_rng(0)).items()
            if list(order) != sorted(order)
        }
        tried += len(orders)
        done += len(carried_out(model, orders))

    count()
    assert tried >= 20
    assert done >= 0.5 * tried


def chain():
    """A convolution, a normalization and another convolution."""
    g = Graph(seed=3)
    y = g.add("Relu", [g.batch_norm(g.conv(g.input("x", (1, 3, 6, 6)), 5, 3))])
    return g, g.model(g.conv(y, 4, 1))


def test_an_order_says_for_each_place_which_channel_comes_there():
    g, proto = chain()
    model = tidied(proto)
    name = next(node.outputs[0].name for node in model.graph if node.op_type == "Conv")
    order = (3, 0, 4, 1, 2)
    passes.PermuteChannels(plan=PermutePlan({name: order}))(model)
    first, second = (layer.weight for layer in g.layers)
    held = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert np.array_equal(held[first], g.constants[first][list(order)])
    assert np.array_equal(held[second], g.constants[second][:, list(order)])


@hypothesis.given(st.one_of(blocked.hidden(), blocked.hidden(linear=True)))
def test_blocks_hidden_by_permutations_that_fit_together_need_no_gather(case):
    model = tidied(case.proto)
    report = passes.PermuteChannels(purpose="group-blocks")(model)
    assert not report.skips
    is_linear = any(node.op_type == "MatMul" for node in model.graph)
    form = "products" if is_linear else "grouped"
    lowered = passes.GroupBlocks(lowering=form, target=ANY_GROUP)(model)
    assert [change.what.startswith(f"weights, as {form}") for change in lowered.changes] == [
        True
    ] * case.layers
    counts = collections.Counter(node.op_type for node in model.graph)
    assert not counts["Gather"]
    # Products read slices; what is sliced lies side by side, and nothing has to be put in order behind.
    assert is_linear or not counts["Slice"] + counts["Concat"]
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, {})
    oracle.assert_same_function(case.proto, model, inputs)


@hypothesis.given(blocked.hidden())
def test_channels_that_are_in_order_stay(case):
    model = tidied(case.proto)
    passes.PermuteChannels(purpose="group-blocks")(model)
    before = oracle.to_proto(model)
    again = passes.PermuteChannels(purpose="group-blocks")(model)
    assert not again.modified
    assert not again.changes
    assert oracle.to_proto(model) == before


@hypothesis.given(strategies.cases(kinds=("blocks",)))
def test_the_orders_of_the_planner_preserve_the_function(case):
    model = tidied(case.proto)
    report = passes.PermuteChannels(purpose="group-blocks")(model)
    hypothesis.assume(report.modified)
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    oracle.assert_same_function(case.proto, model, inputs)
    second = tidied(case.proto)
    passes.PermuteChannels(plan=report.plan)(second)
    assert oracle.to_proto(second) == oracle.to_proto(model)


@hypothesis.given(strategies.cases())
def test_without_blocks_nothing_changes(case):
    # Zeros of dead channels make blocks as well: whoever is asked about a dense model has none of either.
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            filled = np.where(array == 0, array.dtype.type(0.01), array)
            tensor.CopyFrom(onnx.numpy_helper.from_array(filled, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type in {1, 10}:
                array = onnx.numpy_helper.to_array(attribute.t)
                filled = np.where(array == 0, array.dtype.type(0.01), array)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(filled, attribute.t.name))
    before = oracle.to_proto(oracle.from_proto(proto)).SerializeToString(deterministic=True)
    model = oracle.from_proto(proto)
    for rewrite in (passes.PermuteChannels(purpose="group-blocks"), passes.GroupBlocks()):
        report = rewrite(model)
        assert not report.modified
        assert not report.changes
        after = oracle.to_proto(model).SerializeToString(deterministic=True)
        assert after == before


# ------------------------------------------------------------------------ refusals


def gated_groups():
    """A gate with one element for four places of what it is multiplied with, all of which have channels of their own."""
    g = Graph(seed=5)
    x = g.input("x", (2, 6))
    wide = g.add("Reshape", [g.gemm(x, 12), g.ints(0, 3, 2, 2)])
    gate = g.add("Sigmoid", [g.conv(g.add("GlobalAveragePool", [wide]), 3, 1)])
    return g.model(g.conv(g.add("Mul", [wide, gate]), 4, 1))


def branches():
    """Two convolutions that are added up."""
    g = Graph(seed=4)
    x = g.input("x", (1, 3, 6, 6))
    y = g.add("Add", [g.conv(x, 4, 3), g.conv(x, 4, 3)])
    return g.model(g.conv(g.add("Relu", [y]), 2, 1))


def tied_in_itself():
    """A weight whose channels come twice, added up in another order."""
    g = Graph(seed=6)
    y = g.conv(g.input("x", (1, 3, 6, 6)), 4, 3)
    index = g.const(np.asarray([1, 0, 3, 2]), "index")
    y = g.add("Add", [y, g.add("Gather", [y, index], axis=1)])
    return g.model(g.conv(y, 2, 1))


REFUSED = {
    "a tensor that is none": (
        branches,
        {"nothing": (0, 1)},
        "orders channels of 'nothing', and no weight of the model makes such a tensor",
    ),
    "an activation": (branches, {"Relu_8:0": (3, 2, 1, 0)}, "no weight of the model makes"),
    "too few": (
        branches,
        {"Conv_3:0": (1, 0)},
        "is no order of its 4 channels: each of 0 to 3",
    ),
    "twice": (branches, {"Conv_3:0": (0, 1, 1, 3)}, "is no order of its 4 channels"),
    "out of range": (branches, {"Conv_3:0": (0, 1, 2, 4)}, "is no order of its 4 channels"),
    "an output": (
        branches,
        {"Conv_11:0": (1, 0)},
        "cannot change their order: they reach the graph output 'Conv_11:0'",
    ),
    "two orders": (
        branches,
        {"Conv_3:0": (1, 0, 2, 3), "Conv_6:0": (3, 2, 1, 0)},
        "in two ways: they are tied to those of another entry",
    ),
    "a gate": (
        gated_groups,
        {"Conv_9:0": (2, 0, 1)},
        "channels would meet that did not before",
    ),
    "tied in itself": (tied_in_itself, {"Conv_3:0": (1, 0, 2, 3)}, "tied to one another"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_plan_is_refused(name):
    build, orders, message = REFUSED[name]
    proto = build()
    model = tidied(proto)
    before = oracle.to_proto(model)
    with pytest.raises(PlanMismatch) as caught:
        passes.PermuteChannels(plan=PermutePlan(orders))(model)
    assert message in str(caught.value)
    assert oracle.to_proto(model) == before


def test_the_same_order_twice_is_one():
    model = tidied(branches())
    order = (1, 0, 3, 2)
    plan = PermutePlan({"Conv_3:0": order, "Conv_6:0": order})
    assert passes.PermuteChannels(plan=plan)(model).modified
    oracle.assert_same_function(branches(), model, oracle.make_inputs(branches(), {}))


def test_what_is_to_be_kept_stays():
    g, proto = chain()
    model = tidied(proto)
    plan = PermutePlan({next(iter(model.graph)).outputs[0].name: (4, 3, 2, 1, 0)})
    with pytest.raises(PlanMismatch, match="you asked to keep them"):
        passes.PermuteChannels(plan=plan, keep=(g.layers[0].weight,))(model)
    with pytest.raises(PlanMismatch, match="no node or tensor of that name"):
        passes.PermuteChannels(keep=("nobody",))(model)


def test_zeros_that_obey_2_4_are_no_blocks_that_an_order_would_break():
    g = Graph(seed=5)
    hidden = g.add("Relu", [g.gemm(g.input("x", (2, 64)), 128)])
    output = g.gemm(hidden, 32)
    for layer in g.layers:
        array = g.constants[layer.weight]
        array[:] = sparsify(array, 1, Pattern(2, 4))
    model = tidied(g.model(output))
    before = oracle.to_proto(model)
    report = passes.PermuteChannels(purpose="group-blocks")(model)
    assert not report.modified
    assert oracle.to_proto(model) == before
    assert [
        skip.subject
        for skip in passes.GroupBlocks()(model).skips
        if "its zeros obey 2:4" in skip.reason
    ] == [g.layers[0].weight]


def test_every_other_channel_obeys_2_4_and_is_a_block_all_the_same():
    g = Graph(seed=6)
    hidden = g.add("Relu", [g.gemm(g.input("x", (2, 32)), 32)])
    output = g.gemm(hidden, 32)
    array = g.constants[g.layers[1].weight]
    array[:16, ::2] = array[16:, 1::2] = 0
    model = tidied(g.model(output))
    (order,) = passes.PermuteChannels(purpose="group-blocks")(model).plan.orders.values()
    assert {tuple(at % 2 for at in half) for half in (order[:16], order[16:])} == {
        (0,) * 16,
        (1,) * 16,
    }
