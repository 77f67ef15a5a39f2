"""Networks at a wanted sparsity are what the headline benchmark says they are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import blocks, nets
from passes import weights
from passes.targets import TARGETS
from tests import oracle

AVX2 = TARGETS["onnxruntime-cpu-avx2"]


def convolutions(model):
    return {
        node.name: weights.constant(node.inputs[1])
        for node in model.graph
        if node.op_type == "Conv"
    }


def supports(weight):
    """Rows by the input channels that they read; a channel is read with its whole kernel or not at all."""
    table = (weight != 0).reshape(*weight.shape[:2], -1)
    assert (table.any(2) == table.all(2)).all()
    found: dict[tuple[int, ...], list[int]] = {}
    for row, channels in enumerate(table.any(2)):
        found.setdefault(tuple(np.flatnonzero(channels)), []).append(row)
    return found


@pytest.mark.parametrize(
    ("name", "parameters", "last"),
    [
        # GraSP's ResNet-32 of double width; kuangliu's MobileNet; torchvision's ResNet-50 with a 3x3 stem and 200 classes
        ("wrn32-2", 1_860_522, 8),
        ("mobilenetv1", 3_217_226, 2),
        ("resnet50-64", 23_910_152, 8),
    ],
)
def test_networks_have_the_sizes_of_the_literature(name, parameters, last):
    model = nets.build(name, batchnorm=True)
    found = [
        math.prod(value.shape.numpy())
        for key, value in model.graph.initializers.items()
        if not key.endswith((".mean", ".variance"))
    ]
    assert sum(found) == parameters
    assert nets.layers(name)[-1].size == last


@pytest.mark.parametrize("name", ["wrn32-2", "mobilenetv1"])
def test_sizes_of_layers_follow_from_counts(name):
    keep = nets.uniform(0.5)
    model, counts = nets.build(name, keep=keep), nets.counts(name, keep)
    layers = nets.layers(name)
    found = {key: weight.size for key, weight in convolutions(model).items()}
    assert {layer.name: layer.weights(counts) for layer in layers} == found
    classifier = math.prod(model.graph.initializers["classifier.weight"].shape.numpy())
    assert sum(layer.macs(counts) for layer in layers) + classifier == nets.macs(model)


@pytest.mark.parametrize("multiple", [8, 16])
@pytest.mark.parametrize(
    ("name", "sparsity"), [("wrn32-2", 0.53), ("mobilenetv1", 0.67), ("vgg16", 0.4)]
)
def test_counts_meet_the_sparsity_and_are_equally_narrow(name, sparsity, multiple):
    dense, counts = nets.counts(name), blocks.aligned_counts(name, sparsity, multiple)
    assert sparsity - 0.01 < blocks.sparsity_of(name, counts) <= sparsity
    del dense["input"], counts["input"]
    assert all(count % multiple == 0 for count in counts.values())
    # there is one share that every count has, but for rounding and one multiple more or less
    slack = 1.5 * multiple
    least = max((count - slack) / dense[group] for group, count in counts.items())
    assert least <= min((count + slack) / dense[group] for group, count in counts.items())
    # and the multiply-adds fall as the weights do: a sparsity is not met where it pays most
    layers = nets.layers(name)
    full = nets.counts(name)
    counts["input"] = full["input"]
    left = sum(layer.macs(counts) for layer in layers) / sum(
        layer.macs(full) for layer in layers
    )
    assert 1 - left == pytest.approx(sparsity, abs=0.06)


@pytest.mark.parametrize("scale", ["equal", "fan-in"])
def test_weights_outside_of_blocks_are_zero(scale):
    make = blocks.group_wise("wrn32-2", 0.66, scale=scale, target=AVX2)
    made, found = make(2), convolutions(make(2).model)
    zeros = sum(int((weight == 0).sum()) for weight in found.values())
    assert made.sparsity == pytest.approx(zeros / sum(weight.size for weight in found.values()))
    assert 0.65 < made.sparsity <= 0.66
    assert made.blocked == made.layers == len(found) - 1
    assert found.pop("stem").all()
    for weight in found.values():
        rows = supports(weight)
        assert len(rows) <= blocks.BLOCKS
        assert {len(columns) for columns in rows} <= set(range(8, weight.shape[1] + 1, 8))
        assert len({len(columns) for columns in rows}) == 1

    def density(stage):
        return np.mean(
            [
                np.mean(weight != 0)
                for key, weight in found.items()
                if key.startswith(stage) and weight.shape[2] == 3
            ]
        )

    # one multiple of the narrow stage's 32 channels is a quarter
    difference = density("stage1") - density("stage3")
    assert difference > 0.1 if scale == "fan-in" else difference < 0.05


def test_other_forms_reach_the_sparsity_too():
    free = blocks.group_wise("wrn32-2", 0.66, form="free", target=AVX2)(1)
    assert free.sparsity == pytest.approx(0.66, abs=0.02)
    disjoint = blocks.group_wise("wrn32-2", 0.66, form="disjoint", target=AVX2)(1)
    for key, weight in convolutions(disjoint.model).items():
        if key != "stem":
            columns = list(itertools.chain(*supports(weight)))
            assert sorted(columns) == list(range(weight.shape[1]))


def test_outputs_move_with_the_input():
    model = blocks.group_wise("wrn32-2", 0.66, target=AVX2)(8).model
    session = ort.InferenceSession(oracle.to_proto(model).SerializeToString())
    pictures = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)
    outputs = session.run(None, {"input": pictures})[0]
    assert np.isfinite(outputs).all()
    assert outputs.std(axis=0).mean() > 0.05 * np.abs(outputs).mean()


def test_planted_blocks_fold_over_the_residual_stream():
    found = convolutions(blocks.planted("wrn32-2", "diagonal", 0.25).model)
    for stage in (1, 2, 3):
        of_stage = [
            supports(found[f"stage{stage}.block{block}.conv2"]).values() for block in range(5)
        ]
        assert len({frozenset(map(tuple, rows)) for rows in of_stage}) == 1
        following = supports(found[f"stage{stage}.block1.conv1"])
        assert {frozenset(columns) for columns in following} == {
            frozenset(rows) for rows in of_stage[0]
        }


def test_planted_channels_are_drawn_for_each_layer_and_all_are_read():
    made = blocks.planted("wrn32-2", "random", 0.25)
    found = convolutions(made.model)
    rows = [supports(found[f"stage3.block{block}.conv2"]) for block in (1, 2)]
    assert {frozenset(map(tuple, each.values())) for each in rows[:1]} == {
        frozenset(map(tuple, each.values())) for each in rows[1:]
    }
    assert set(rows[0]) != set(rows[1])
    for each in rows:
        assert [len(columns) for columns in each] == [32] * 4
        assert sorted(itertools.chain(*each)) == list(range(128))


@pytest.mark.parametrize(("pattern", "width"), [("diagonal", 8), ("windows", 16)])
def test_linear_layers_end_in_the_order_of_the_graph(pattern, width):
    model = blocks.linear((32, 32, 64), pattern)
    last = weights.constant(model.graph.initializers["linear2.weight"]).T
    found = supports(last)
    assert [list(rows) for rows in found.values()] == [
        list(range(first, first + 16)) for first in range(0, 64, 16)
    ]
    assert {len(columns) for columns in found} == {width}
    middle = weights.constant(model.graph.initializers["linear1.weight"]).T
    assert any(np.diff(rows).max() > 1 for rows in supports(middle).values())
