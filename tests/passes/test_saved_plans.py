"""Plans that were saved and edited: whatever part of one is carried out, the function stays; what is not sound is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import passes
from passes import ChannelPlan, PlanMismatch
from tests import oracle, strategies
from tests.deploykit.conftest import make_network

EXACT = (passes.RemoveChannels, passes.AlignChannels)


def made(kind, proto, **options):
    """The model after tidying and the pass, and what the pass reports."""
    model = oracle.from_proto(proto)
    passes.Tidy()(model)
    return model, kind(**options)(model)


def entries(plan):
    return [(name, at) for name, gone in plan.dropped.items() for at in gone]


@given(strategies.cases(), st.data())
def test_any_part_of_a_removal_preserves_the_function(case, data):
    carry = data.draw(st.sampled_from(("carrier", "bias-map")))
    _, whole = made(passes.RemoveChannels, case.proto, carry=carry)
    listed = entries(whole.plan)
    chosen = data.draw(st.sets(st.sampled_from(listed))) if listed else set()
    part = dataclasses.replace(
        whole.plan,
        dropped={
            name: tuple(at for at in gone if (name, at) in chosen)
            for name, gone in whole.plan.dropped.items()
        },
    )
    model, report = made(passes.RemoveChannels, case.proto, carry=carry, plan=part)
    assert set(entries(report.plan)) <= chosen
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    oracle.assert_same_function(case.proto, model, inputs)


@given(strategies.cases(), st.sampled_from(("carrier", "bias-map")))
def test_a_whole_plan_does_the_same_again(case, carry):
    first, report = made(passes.RemoveChannels, case.proto, carry=carry)
    plan = ChannelPlan.from_json(report.plan.to_json())
    assert plan == report.plan
    second, again = made(passes.RemoveChannels, case.proto, carry=carry, plan=plan)
    assert again.plan.dropped == report.plan.dropped
    one, other = (oracle.to_proto(model) for model in (first, second))
    assert one.graph.initializer == other.graph.initializer
    aligned = passes.AlignChannels(multiple=4)(first)
    replayed = passes.AlignChannels(plan=aligned.plan)(second)
    assert replayed.plan.padded == aligned.plan.padded
    one, other = (oracle.to_proto(model) for model in (first, second))
    assert one.graph.initializer == other.graph.initializer


@given(strategies.cases(), st.data())
def test_any_part_of_an_alignment_preserves_the_function(case, data):
    _, whole = made(passes.AlignChannels, case.proto, multiple=4)
    listed = [(name, at) for name, pads in whole.plan.padded.items() for at in pads]
    chosen = data.draw(st.sets(st.sampled_from(listed))) if listed else set()
    padded = {
        name: {at: count for at, count in pads.items() if (name, at) in chosen}
        for name, pads in whole.plan.padded.items()
    }
    model, report = made(passes.AlignChannels, case.proto, plan=ChannelPlan(padded=padded))
    assert {(name, at) for name, pads in report.plan.padded.items() for at in pads} <= chosen
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    oracle.assert_same_function(case.proto, model, inputs)


def test_a_plan_says_how_many_channels_there_were_and_why_they_go():
    _, report = made(passes.RemoveChannels, make_network())
    assert report.plan.dropped == {"h": tuple(range(32))}
    assert report.plan.sizes == {"h": 64}
    assert report.plan.reasons == {"h": "of the 64 channels that 'w1' makes, 32 are constant"}


def test_what_a_plan_does_not_list_stays_and_says_so():
    model, report = made(passes.RemoveChannels, make_network(), plan=ChannelPlan({"h": (0, 5)}))
    assert model.graph.initializers["w1"].shape == (62, 256)
    (skip,) = report.skips
    assert "30 in all" in skip.subject
    assert skip.reason == "the plan does not list them"


@pytest.mark.parametrize(
    ("kind", "plan", "message"),
    [
        (0, ChannelPlan({"q": (0,)}), "'q', and no weight .* There are: 'h'"),
        (0, ChannelPlan({"h": (64,)}), "channel 64 of 'h', which has 64: 0 to 63"),
        (0, ChannelPlan({"h": (-1,)}), "channel -1 of 'h'"),
        (
            0,
            ChannelPlan({"h": (0, 40, 41)}),
            r"channels \[40, 41\] of 'h', which cannot go: they are in use",
        ),
        (0, ChannelPlan({"y": (0,)}), "'y', which cannot go: .* graph output 'y'"),
        (
            0,
            ChannelPlan({"h": (0,)}, sizes={"h": 32}),
            "made for 32 channels of 'h', .* has 64",
        ),
        (0, ChannelPlan(padded={"h": {63: 1}}), "adds no channels"),
        (1, ChannelPlan({"h": (0,)}), "cuts no channels"),
        (1, ChannelPlan(padded={"c": {9: 0}}), "puts 0 channels behind channel 9 of 'c'"),
        (1, ChannelPlan(padded={"c": {2: 1}}), "which is not the last"),
        (1, ChannelPlan(padded={"y": {3: 1}}), "cannot be: .* graph output 'y'"),
        (1, ChannelPlan(padded={"c": {9: 6}, "d": {9: 5}}), "Give both the same number"),
    ],
)
def test_what_a_plan_cannot_do_is_refused(kind, plan, message):
    proto = make_network() if kind == 0 else make_sum()
    with pytest.raises(PlanMismatch, match=message):
        made(EXACT[kind], proto, plan=plan)


def make_sum():
    """Two convolutions of 10 channels that are added, and one that reads the sum."""
    from tests.graphs import Graph

    g = Graph(opset=17)
    x = g.input("x", (1, 3, 8, 8))
    one, other = g.conv(x, 10), g.conv(x, 10)
    y = g.conv(g.add("Add", [one, other]), 4)
    proto = g.model(y)
    names = {one: "c", other: "d", y: "y"}
    for node in proto.graph.node:
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                side[index] = names.get(name, name)
    for value in (*proto.graph.output, *proto.graph.value_info):
        value.name = names.get(value.name, value.name)
    return proto


def test_half_of_a_pair_is_left_alone():
    plan = ChannelPlan(padded={"c": {9: 6}, "d": {}})
    _, report = made(passes.AlignChannels, make_sum(), plan=plan)
    assert not report.modified
    assert not report.plan
