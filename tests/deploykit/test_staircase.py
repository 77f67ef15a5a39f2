"""Which layers are swept, at which counts, what is built at each, and what many noisy samples of it say."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.layers import compare
from deploykit.profile import staircase
from deploykit.profile.staircase import (
    build,
    choose_counts,
    find_places,
    summarize_rounds,
    sweep,
)

GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
network (float[1,3,16,16] x, float[24,3,3,3] stem, float[24] stem_b, float[24,1,3,3] deep, float[40,24,1,1] point,
         float[40,10,3,3] grouped, float[40,12,2,2] up, float[12,30] head, float[30,8] last) => (float[1,8] y)
{
    [stem] a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, stem, stem_b)
    [deep] b = Conv<pads = [1, 1, 1, 1], group = 24>(a, deep)
    [point] c = Conv(b, point)
    [grouped] d = Conv<pads = [1, 1, 1, 1], group = 4>(c, grouped)
    [up] e = ConvTranspose<strides = [2, 2]>(d, up)
    pooled = GlobalAveragePool(e)
    f = Flatten(pooled)
    [head] g = MatMul(f, head)
    [last] y = Gemm(g, last)
}
"""


def make(graph=GRAPH):
    dice = np.random.default_rng(0)
    model = ir.from_onnx_text(graph)
    for value in list(model.graph.inputs)[1:]:
        array = dice.standard_normal(value.shape.numpy()).astype(np.float32)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    return model


@pytest.fixture(scope="module")
def places():
    model = make()
    found = find_places(compare(model, model), model, {"x": (1, 3, 16, 16)}, most=99)
    return {place.layer.node: place for place in found}


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(8, 24),
    st.sampled_from([1, 2, 8]),
)
def test_counts_are_few_sorted_and_hold_those_that_matter(as_is, after, extra, most, step):
    as_is, after = as_is * step, after * step
    before = max(as_is, after) + extra * step
    counts = choose_counts(before, as_is, after, multiples=(4, 8, 16), step=step, most=most)
    assert {before, as_is, after} <= set(counts)
    assert list(counts) == sorted(set(counts))
    assert len(counts) <= most
    assert all(count > 0 and count % step == 0 for count in counts)


def test_counts_are_dense_around_the_choice_and_show_both_edges_of_steps():
    counts = choose_counts(144, 93, 96, multiples=(4, 8, 16))
    assert set(range(89, 101)) <= set(counts)
    assert {112, 113, 128, 129, 144, 145} <= set(counts)


def test_the_slowest_of_each_kind_comes_first(places):
    model = make()
    seconds = {
        "deep": 5.0,
        "stem": 4.0,
        "grouped": 3.0,
        "point": 2.0,
        "head": 1.0,
        "last": 0.5,
        "up": 0.1,
    }
    found = find_places(compare(model, model), model, {"x": (1, 3, 16, 16)}, seconds=seconds)
    # The grouped one has the kernel of the stem, which takes longer.
    assert [place.layer.node for place in found] == ["deep", "stem", "point"]


def test_layers_that_changed_come_before_those_that_did_not():
    before, after = make(), make()
    cut = after.graph.initializers["last"]
    cut.const_value = ir.tensor(np.ones((30, 9), np.float32), name="last")
    cut.shape = ir.Shape((30, 9))
    found = find_places(compare(before, after), after, {"x": (1, 3, 16, 16)}, most=1)
    assert [(place.layer.node, place.before, place.after) for place in found] == [
        ("last", 8, 9)
    ]


def test_layers_without_a_choice_are_left_out(places):
    # Too few outputs for the steps of its groups, or at all.
    assert set(places) == {"stem", "deep", "point", "head", "up", "last", "grouped"}
    narrow = make(
        GRAPH.replace("float[40,10,3,3]", "float[40,2,3,3]").replace("group = 4", "group = 20")
    )
    found = find_places(compare(narrow, narrow), narrow, {"x": (1, 3, 16, 16)}, most=99)
    assert "grouped" not in {place.layer.node for place in found}


@pytest.mark.parametrize("name", ["stem", "deep", "point", "grouped", "up", "head", "last"])
def test_the_layer_is_built_as_it_is_but_for_its_channels(places, name):
    place = places[name]
    count = place.after + 3 * place.step
    proto = ir.to_proto(build(place, count))
    onnx.checker.check_model(proto, full_check=True)
    nodes = {node.op_type + str(len(node.attribute)): node for node in proto.graph.node}
    own = ir.to_proto(place.node)
    node = nodes[own.op_type + str(len(own.attribute))]
    attributes, same = (
        {a.name: onnx.helper.get_attribute_value(a) for a in each.attribute}
        for each in (node, own)
    )
    weights = {each.name: tuple(each.dims) for each in proto.graph.initializer}
    if name == "deep":
        assert attributes.pop("group") == count
        same.pop("group")
        assert (weights["first"][0], weights["w"][0], weights["last"][1]) == (
            count,
            count,
            count,
        )
    else:
        assert (
            np.prod(weights["w"]) * place.after
            == np.prod(place.weight_shape(place.after)) * count
        )
        (read,) = proto.graph.input
        assert tuple(d.dim_value for d in read.type.tensor_type.shape.dim) == place.input_shape
    assert attributes == same
    assert ("b" in weights) == (name == "stem")
    result = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*result.value_info, *result.output)
    }
    assert shapes[node.output[0]][1] == count


def test_a_sweep_of_a_real_layer_is_told_whole(places, tmp_path):
    done = []
    found = sweep(
        places["deep"], 21, tmp_path, multiples=(4, 8), budget_s=0.05, progress=done.append
    )
    assert (found.before, found.as_is, found.after) == (24, 21, 24)
    assert {21, 24} <= set(found.counts)
    assert len(found.counts) == len(found.seconds) == len(found.lo_s) == len(found.hi_s) >= 8
    assert all(
        0 < lo <= at <= hi
        for lo, at, hi in zip(found.lo_s, found.seconds, found.hi_s, strict=True)
    )
    assert found.description == "depthwise 3x3 Conv, on 8 x 8, between two 1x1 Conv"
    assert found.clock == "cpu"
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_what_takes_long_is_tried_at_fewer_counts(places, tmp_path, monkeypatch):
    asked = []

    def sample(paths, feeds, **settings):
        asked.append(len(paths))
        return {
            "rebuild": [0, 0],
            "wall_s": [[1.0, 1.0]] * len(paths),
            "cpu_s": [[2.0, 2.0]] * len(paths),
        }

    monkeypatch.setattr(staircase.sampler, "sample", sample)
    for once_s, threads in ((1e-5, 1), (1.0, 4)):
        monkeypatch.setattr(staircase, "_time_once", lambda *_, once_s=once_s: once_s)
        folder = tmp_path / str(once_s)
        folder.mkdir()
        found = sweep(places["point"], 37, folder, multiples=(4, 8, 16), threads=threads)
        assert found.clock == ("cpu" if threads == 1 else "wall")
    assert asked[0] > asked[1] == 8


def test_what_slows_a_whole_round_widens_nothing():
    dice = np.random.default_rng(0)
    true = np.array([1.0, 1.1, 2.0, 2.05])[:, None] * 1e-3
    round_level = np.exp(dice.normal(0, 0.3, 200))
    seconds = true * round_level * np.exp(dice.normal(0, 0.01, (4, 200)))
    middle, lo, hi = map(np.array, summarize_rounds(seconds))
    assert middle / middle[0] == pytest.approx(true[:, 0] / true[0, 0], rel=0.01)
    assert ((hi - lo) / middle).max() < 0.01
    assert middle[0] == pytest.approx(1e-3, rel=0.15)


def test_the_interval_holds_the_median_as_often_as_it_says():
    dice = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        # Of many models a round's level is known well, so that each interval is that of one median.
        seconds = np.exp(dice.normal(0, 0.1, (40, 31)))
        _, lo, hi = summarize_rounds(seconds)
        held += lo[0] <= 1.0 <= hi[0]
    assert 0.93 <= held / 400 <= 1.0
