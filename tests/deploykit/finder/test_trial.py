"""A search with several seeds: what tickets are held against, the verdict that is printed, and taking it up again."""

from __future__ import annotations

import dataclasses
import json
import math

import jsonschema
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

from deploykit.errors import UsageError  # noqa: E402
from deploykit.finder.contrasts import NEW_WEIGHTS, shuffle_masks  # noqa: E402
from deploykit.finder.search import Settings, search  # noqa: E402
from deploykit.finder.structuring import Structure  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from deploykit.finder.trial import try_seeds  # noqa: E402
from deploykit.finder.verdict import judge  # noqa: E402
from deploykit.ticket import Ticket  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Pictures  # noqa: E402

TASK = "tests.deploykit.finder.toy:clouds_task"
PLAIN = Settings(rounds=2, sparsity=0.6)
REFILL = Settings(
    rounds=1, sparsity=0.5, structure=Structure("refill", match="weights"), rewind=1
)


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_each_seed_is_a_whole_search_with_what_its_ticket_is_held_against(tmp_path):
    trial = try_seeds(Clouds(), PLAIN, tmp_path / "out", (3, 4, 5))
    assert [arm.name for arm in trial.verdict.arms] == [
        "dense",
        "ticket",
        "re-initialised",
        "random mask",
    ]
    for seed, result in zip((3, 4, 5), trial.results, strict=True):
        alone = search(
            Clouds(), dataclasses.replace(PLAIN, seed=seed), tmp_path / f"alone{seed}"
        )
        assert alone.ticket.read_bytes() == result.ticket.read_bytes()
        assert alone.rows == result.rows
        ticket = Ticket.load(result.ticket).masks
        again = Ticket.load(result.folder / result.contrasts["re-initialised"].file)
        other = Ticket.load(result.folder / result.contrasts["random mask"].file)
        assert all(np.array_equal(again.masks[name], ticket[name]) for name in ticket)
        for name, mask in ticket.items():
            assert np.count_nonzero(other.masks[name]) == np.count_nonzero(mask)
            assert not np.array_equal(other.masks[name], mask)
    expected = judge(
        *(
            [row.test for row in trial.rows(arm)]
            for arm in ("dense", "ticket", "re-initialised", "random mask")
        )
    )
    assert trial.verdict == expected
    assert json.loads((tmp_path / "out" / "verdict.json").read_text()) == trial.record()


def test_new_weights_are_trained_from_the_beginning(tmp_path):
    trial = try_seeds(Pictures(), REFILL, tmp_path / "out", (0, 1, 2))
    result = trial.results[1]
    row = result.contrasts["re-initialised"]
    assert [epoch.epoch for epoch in row.epochs] == [1, 2, 3, 4]
    assert [epoch.epoch for epoch in result.rows[-1].epochs] == [2, 3, 4]
    trainer = Trainer(Pictures(), seed=1)
    masks = Ticket.load(result.ticket).masks
    by_hand = trainer.train(trainer.initial(1 + NEW_WEIGHTS), masks, number=1)
    held = Ticket.load(result.folder / row.file).weights
    assert all(np.array_equal(by_hand.weights[name], held[name]) for name in held)


def test_a_random_mask_has_the_structure_too(tmp_path):
    trial = try_seeds(Pictures(), REFILL, tmp_path / "out", (0, 1, 2))
    for result in trial.results:
        row = result.contrasts["random mask"]
        assert row.structure == "refill"
        for name, mask in Ticket.load(result.folder / row.file).masks.items():
            rows = mask.reshape(mask.shape[0], mask.shape[1], -1)
            # Whole channels: each position of a filter is kept as the others are.
            assert np.array_equal(rows.any(axis=2), rows.all(axis=2)), name


def test_weights_count_what_is_never_pruned_as_well(tmp_path):
    trial = try_seeds(Clouds(), PLAIN, tmp_path / "out", (0, 1, 2))
    everything = sum(each.numel() for each in Clouds().model().parameters())
    assert trial.weights("dense") == everything
    pruned = 768 - round(768 * 0.4)
    assert trial.weights("ticket") == everything - pruned
    record = trial.record()
    assert record["arms"][1]["efficiency"] == {
        "value": pytest.approx(
            100 * trial.verdict.arms[1].mean / ((everything - pruned) / 1e6)
        ),
        "formula": "100 * accuracy / (weights / 1e6)",
    }


def test_one_that_was_stopped_comes_to_the_same(tmp_path):
    whole = tmp_path / "whole"
    try_seeds(Clouds(), PLAIN, whole, (0, 1, 2))

    class StopError(Exception):
        pass

    for after in (3, 11, 19, 26):
        calls = 0

        def count(status, after=after):
            nonlocal calls
            calls += 1
            if calls > after:
                raise StopError

        folder = tmp_path / f"stopped{after}"
        with pytest.raises(StopError):
            try_seeds(Clouds(), PLAIN, folder, (0, 1, 2), progress=count)
        try_seeds(Clouds(), PLAIN, folder, (0, 1, 2))
        assert content(folder) == content(whole)


def test_a_search_that_is_there_becomes_the_first_seed(run, tmp_path):
    out = tmp_path / "out"
    assert run("find", TASK, "-o", out, "--rounds", "2").exit_code == 0
    held = content(out)
    result = run("find", TASK, "-o", out, "--rounds", "2", "--seeds", "3", "--json", "-v")
    assert result.exit_code == 0, result.stderr
    assert "seed 1 of 3, dense" not in result.stderr
    assert "seed 1 of 3, re-initialised, epoch 4 of 4" in result.stderr
    assert "seed 3 of 3, random mask, epoch 4 of 4" in result.stderr
    now = content(out)
    assert all(now[name] == data for name, data in held.items() if "metrics" not in name)
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads(run("schema", "find").stdout))
    assert json.loads((out / "verdict.json").read_text()) == document["verdict"]
    for arm in document["verdict"]["arms"]:
        tests = [network["test"] for network in arm["networks"]]
        assert arm["mean"] == pytest.approx(np.mean(tests))
        assert arm["std"] == pytest.approx(np.std(tests, ddof=1))
        assert [network["seed"] for network in arm["networks"]] == [0, 1, 2]


def test_the_verdict_is_printed_with_its_tests(run, tmp_path):
    options = ("-o", tmp_path / "out", "--rounds", "1", "--seeds", "3", "--margin", "0.5")
    result = run("find", TASK, *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "out" / "verdict.json").read_text())
    text = " ".join(result.stdout.split())
    assert record["said"] in text
    for arm in record["arms"]:
        assert f"{arm['name']} {arm['weights']:,} {arm['mean']:.4f} {arm['std']:.4f}" in text
    assert record["matches_dense"]["margin"] == 0.5
    test = record["matches_dense"]
    assert f"{test['difference']:+.4f} 0.5 {test['t']:.2f} {test['p']:.2g}" in text
    assert "random mask of the same structure" in record["said"]
    assert "parameter efficiency = 100 * accuracy / (weights / 1e6)" in text
    # Anything is within half of all examples of the dense network; whether it wins is another question.
    assert record["matches_dense"]["proven"]


def test_another_search_takes_the_verdict_of_the_one_before_with_it(run, tmp_path):
    out = tmp_path / "out"
    assert run("find", TASK, "-o", out, "--rounds", "1", "--seeds", "3").exit_code == 0
    result = run("find", TASK, "-o", out, "--rounds", "2", "--force")
    assert result.exit_code == 0, result.stderr
    assert not (out / "verdict.json").exists()


def test_time_left_counts_the_seeds_to_come(tmp_path):
    told = []
    try_seeds(Clouds(), PLAIN, tmp_path / "out", (0, 1, 2), progress=told.append)
    done = [status.done for status in told]
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert {status.seed for status in told} == {"seed 1 of 3", "seed 2 of 3", "seed 3 of 3"}
    # In the middle of the first seed, the two others are still to come.
    early = next(status for status in told if status.left_s and status.done > 0.1)
    assert early.left_s is not None
    assert early.left_s > 0


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 1), (2, 2, 2, 3)])
def test_too_few_seeds_are_refused_before_anything_is_trained(tmp_path, seeds):
    with pytest.raises(UsageError, match="at least 3 different seeds"):
        try_seeds(Clouds(), PLAIN, tmp_path / "out", seeds)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seeds", "2"), "2 is not in the range x>=3"),
        (("--margin", "0.01"), "--margin belongs to --seeds"),
        (("--seeds", "3", "--margin", "-1"), "-1.0 is not in the range"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, tmp_path, options, said):
    result = run("find", TASK, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_shuffling_keeps_each_layer_and_its_pairs():
    dice = np.random.default_rng(0)
    weights = {"a": dice.normal(size=(4, 6)), "b": dice.normal(size=(3, 2, 3))}
    masks = {name: np.abs(array) > 0.5 for name, array in weights.items()}
    mask, scored = shuffle_masks(masks, {**weights, "bias": np.ones(2)}, -3, 2)
    assert np.array_equal(scored["bias"], np.ones(2))
    for name, before in masks.items():
        assert mask[name].shape == before.shape
        assert np.array_equal(
            np.sort(scored[name], axis=None), np.sort(weights[name], axis=None)
        )
        # What a weight is worth goes where its place in the mask goes.
        assert np.array_equal(mask[name], np.abs(scored[name]) > 0.5)
        assert not np.array_equal(mask[name], before)


def test_a_verdict_without_spread_is_written_as_json(tmp_path):
    class Certain(Clouds):
        def metric(self, outputs, targets):
            return torch.ones(())

    trial = try_seeds(Certain(), PLAIN, tmp_path / "out", (0, 1, 2))
    record = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert math.isinf(trial.verdict.matches_dense.t)
    assert record["matches_dense"]["t"] is None
    assert record["matches_dense"]["proven"] is True
    assert record["wins"] is False
