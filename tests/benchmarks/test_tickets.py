"""What the benchmark of tickets trains beside them, and what it says of its rows."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import json  # noqa: E402

import numpy as np  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from benchmarks import results, tickets  # noqa: E402
from benchmarks.masks import zero_rows  # noqa: E402

CASE = "fashion-vgg32"
DENSE = 0.88


def rows(good, *, case=CASE, without=()):
    """The first stage: all three points below dense but the good ones, which are at its height."""
    return [
        {
            "case": case,
            "seed": seed,
            "arm": arm,
            "density": density,
            "left": density,
            "accuracy": (DENSE if arm == "dense" or (arm, density) in good else DENSE - 0.03)
            + 0.0002 * seed,
        }
        for arm, density in tickets.first_stage()
        for seed in tickets.SEEDS
        if (arm, density, seed) not in without
    ]


def trained_again(*wanted, accuracy):
    return [
        {"case": CASE, "seed": s, "arm": a, "density": d, "left": d, "accuracy": accuracy}
        for a, d in wanted
        for s in tickets.SEEDS
    ]


def time_row(arm, density, *, ratio, macs, case=CASE):
    row = {"case": case, "seed": 0, "arm": arm, "density": density, "ratio": ratio}
    return {**row, "macs": macs, "ci95": [ratio, ratio], "zero_channels_left": 0}


def test_nothing_stands_beside_tickets_before_all_seeds_are_there():
    assert tickets.second_stage(rows(set(), without={("refill", 0.4, 2)}), CASE) == []
    assert tickets.second_stage(rows(set()), "mnist-lenet") == []


def test_what_matches_is_tried_on_new_weights_and_the_sparsest_against_random_masks():
    found = tickets.second_stage(rows({("refill", 0.8), ("refill", 0.64), ("imp", 0.2)}), CASE)
    targets = {("refill", 0.5), ("regroup-element", 0.3), ("regroup-channel", 0.3)}
    matching = {("refill", 0.8), ("refill", 0.64), ("imp", 0.2)}
    assert set(found) == {
        *((f"{arm}-reinit", density) for arm, density in targets | matching),
        ("refill-random", 0.64),
        ("imp-random", 0.2),
        ("refill-random", 0.5),
        ("regroup-channel-random", 0.3),
    }
    assert len(found) == len(set(found))


def test_the_extreme_is_the_sparsest_with_a_verdict():
    held = rows({("refill", 0.8), ("refill", 0.64)})
    held += trained_again(("refill-reinit", 0.8), accuracy=DENSE - 0.02)
    held += trained_again(("refill-reinit", 0.64), accuracy=DENSE + 0.02)
    text = tickets.extremes(held, CASE)
    assert "refill: matches dense to 36 %, wins to 20 %;" in text
    assert "regroup-channel: at no density tried" in text


def test_targets_are_met_or_missed():
    held = rows({("refill", 0.5), ("regroup-channel", 0.3)})
    times = [
        time_row("refill", 0.5, ratio=0.56, macs=0.5),
        time_row("regroup-channel", 0.3, ratio=0.5, macs=0.4),
        time_row("regroup-element", 0.3, ratio=1.0, macs=1.0),
        time_row("refill", 0.4, ratio=1.0, macs=0.5),
        time_row("refill", 0.5, ratio=1.0, macs=0.5, case="fashion-resnet8"),
    ]
    found = tickets.targets(held, times)
    assert [met for _, met in found] == [True, True, False, True, False]
    assert found[2][0].startswith(f"{CASE}, regroup-element at 0.3: -3.00 points to dense")
    assert found[4][0].endswith("0.83 of the multiply-adds saved are time")


def test_no_target_is_met_by_rounding():
    row = time_row("refill", 0.5, ratio=0.577, macs=0.5)
    assert tickets.share_of_flops(row) == pytest.approx(0.846)
    assert [met for _, met in tickets.targets([], [row])] == [False]


def test_the_exit_code_says_what_is_missing_and_what_is_missed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(tickets, "CASES", {CASE: tickets.CASES[CASE]})
    state = tmp_path / "rows.jsonl"
    command = ["--no-train", "--no-time", "--folder", str(tmp_path)]

    def run(held):
        state.write_text("".join(json.dumps(row) + "\n" for row in held))
        return tickets.main(command)

    good = {("refill", 0.5), ("regroup-element", 0.3), ("regroup-channel", 0.3)}
    held = rows(good)
    assert run(held) == tickets.INCOMPLETE
    assert "are missing: start it again" in capsys.readouterr().err
    beside = trained_again(*tickets.second_stage(held, CASE), accuracy=DENSE - 0.01)
    assert run(held + beside) == 0
    held = rows(good - {("refill", 0.5)})
    beside = trained_again(*tickets.second_stage(held, CASE), accuracy=DENSE - 0.01)
    assert run(held + beside) == 1
    assert "**missed**" in (tmp_path / "results" / "tickets.md").read_text()


def test_rows_of_zeros_are_counted():
    first = np.ones((4, 2, 3, 3), np.float32)
    first[[0, 2]] = 0
    second = np.ones((4, 3), np.float32)
    second[:, 1] = 0
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["y"], name="conv"),
        helper.make_node("GlobalAveragePool", ["y"], ["z"]),
        helper.make_node("Flatten", ["z"], ["f"]),
        helper.make_node("MatMul", ["f", "second"], ["out"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    found = list(zero_rows(helper.make_model(graph)))
    assert [(each.weight, each.node.name, each.zeros, each.rows) for each in found] == [
        ("first", "conv", 2, 4),
        ("second", "product", 1, 3),
    ]
