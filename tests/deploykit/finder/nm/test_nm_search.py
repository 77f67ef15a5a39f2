"""Searches for N:M masks: what each method starts from, what is saved, and what users can do wrong."""

from __future__ import annotations

import csv
import json

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

from deploykit.errors import UsageError  # noqa: E402
from deploykit.finder.nm import NM, Pattern  # noqa: E402
from deploykit.finder.nm import search as nm_search  # noqa: E402
from deploykit.finder.nm.ordering import Ordered  # noqa: E402
from deploykit.finder.nm.straight_through import StraightThrough, choose_masks  # noqa: E402
from deploykit.finder.search import Settings, search  # noqa: E402
from deploykit.finder.structuring import Structure  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from deploykit.ticket import Ticket  # noqa: E402
from passes.analysis import patterns  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Pictures  # noqa: E402

TASK = "tests.deploykit.finder.toy:clouds_task"
PICTURES = "tests.deploykit.finder.toy:pictures"
PLAIN = NM(permute=False)


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_asp_trains_the_trained_network_once_more_under_its_best_mask(tmp_path):
    result = search(Clouds(), Settings(source="asp", nm=PLAIN), tmp_path / "out")
    dense, ticket = (
        Ticket.load(result.folder / "rounds" / f"{name}.safetensors")
        for name in ("round-00", "round-01-2of4")
    )
    assert [row.kept for row in result.rows] == [768, 384]
    assert [row.form for row in result.rows] == ["dense", "2:4"]
    for name, mask in ticket.masks.items():
        best = patterns.best_mask(dense.weights[name], 1, patterns.TWO_OF_FOUR)
        assert (mask == best).all()
        assert (ticket.weights[name] != 0).sum() == mask.sum()
    again = Trainer(Clouds()).train(dense.weights, ticket.masks, number=1)
    assert all((again.weights[each] == ticket.weights[each]).all() for each in again.weights)
    assert len(ticket.provenance["epochs"]) == len(dense.provenance["epochs"])
    assert not (result.folder / "sad.csv").exists()
    assert result.rows[-1].sad is None


@pytest.mark.parametrize(("source", "decay"), [("ste", 0.0), ("sr-ste", 2e-4)])
def test_ste_starts_where_the_dense_network_does_and_logs_every_step(tmp_path, source, decay):
    result = search(Clouds(), Settings(source=source, nm=PLAIN), tmp_path / "out")
    ticket = Ticket.load(result.ticket)
    trainer = Trainer(Clouds())
    rule = StraightThrough(trainer.names, Pattern(), decay)
    again = trainer.train(trainer.initial(), {}, number=1, masking=rule)
    assert all((again.weights[each] == ticket.weights[each]).all() for each in again.weights)
    held = ticket.provenance["nm"]
    assert (held["method"], held["pattern"], held["decay"]) == (source, "2:4", decay)
    with (tmp_path / "out" / "sad.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    assert [int(each["step"]) for each in steps] == list(range(1, 4 * 5 + 1))
    flips = [flip for epoch in again.epochs for flip in epoch.flips]
    assert [int(each["sad"]) for each in steps] == flips
    assert float(steps[0]["sad_per_weight"]) == flips[0] / 768
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    assert [each["sad"] for each in epochs[:4]] == [""] * 4
    assert (
        sum(int(each["sad"]) for each in epochs[4:])
        == sum(flips)
        == result.rows[-1].sad["total"]
    )
    assert (tmp_path / "out" / "sad.png").read_bytes()[:4] == b"\x89PNG"


def test_ste_can_go_on_from_the_dense_network_and_asp_from_an_early_one(tmp_path):
    tuned = search(
        Clouds(), Settings(source="ste", nm=PLAIN, rewind="none"), tmp_path / "tuned"
    )
    dense = Ticket.load(tuned.folder / "rounds" / "round-00.safetensors")
    trainer = Trainer(Clouds())
    rule = StraightThrough(trainer.names, Pattern())
    again = trainer.train(dense.weights, {}, number=1, masking=rule)
    ticket = Ticket.load(tuned.ticket)
    assert all((again.weights[each] == ticket.weights[each]).all() for each in again.weights)
    early = search(Clouds(), Settings(source="asp", nm=PLAIN, rewind=1), tmp_path / "early")
    start = Ticket.load(early.folder / "rounds" / "start.safetensors")
    masks = choose_masks(
        [torch.from_numpy(np.array(dense.weights[name])) for name in trainer.names],
        trainer.names,
        Pattern(),
    )
    again = trainer.train(start.weights, masks, number=1, first_epoch=1)
    ticket = Ticket.load(early.ticket)
    assert all((again.weights[each] == ticket.weights[each]).all() for each in again.weights)


@pytest.mark.parametrize("source", ["asp", "sr-ste"])
def test_channels_are_ordered_by_the_dense_weights_and_what_is_trained_computes_the_same(
    tmp_path, source
):
    settings = Settings(source=source, rewind=1 if source == "asp" else "default")
    result = search(Pictures(), settings, tmp_path / "out")
    rounds = tmp_path / "out" / "rounds"
    ordered = Ordered.from_ticket(Ticket.load(rounds / "ordered.safetensors"))
    trainer = Trainer(Pictures())
    start = (
        trainer.initial()
        if source == "sr-ste"
        else Ticket.load(rounds / "start.safetensors").weights
    )
    dense = Ticket.load(rounds / "round-00.safetensors").weights
    inputs = Pictures().example_inputs()
    for before, after in ((start, ordered.weights), (dense, ordered.scored)):
        assert any((before[name] != after[name]).any() for name in before)
        old, new = (trainer.model_with(each).eval()(*inputs) for each in (before, after))
        torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-4)
    held = Ticket.load(result.ticket).provenance["nm"]
    assert held["kept_magnitude"]["after"] > held["kept_magnitude"]["before"]
    assert held["ordered"]
    ticket = Ticket.load(result.ticket)
    if source == "asp":
        best = {
            name: patterns.best_mask(ordered.scored[name], 1, patterns.TWO_OF_FOUR)
            for name in ticket.masks
        }
        again = trainer.train(ordered.weights, best, number=1, first_epoch=1)
    else:
        rule = StraightThrough(trainer.names[1:], Pattern(), 2e-4)
        again = trainer.train(ordered.weights, {}, number=1, masking=rule)
    assert all((again.weights[each] == ticket.weights[each]).all() for each in again.weights)


class Stop(Exception):
    """Whoever watches has seen enough."""


def test_a_stopped_search_comes_to_the_same_bytes(tmp_path, monkeypatch):
    settings = Settings(source="sr-ste", nm=NM(Pattern(transposable=True), 0.01))
    search(Pictures(), settings, tmp_path / "whole")
    seen = []

    def stop(status):
        seen.append(status)
        if len([each for each in seen if each.epoch]) == 6:
            raise Stop

    with pytest.raises(Stop):
        search(Pictures(), settings, tmp_path / "out", progress=stop, checkpoint_s=0.0)
    held = Ticket.load(tmp_path / "out" / "rounds" / "checkpoint.safetensors")
    # What goes on is dense.
    assert (held.weights["model.one.weight"] != 0).all()
    # The order that was found is kept: a planner may come to another one elsewhere.
    monkeypatch.setattr(nm_search, "order_channels", lambda *_: pytest.fail("ordered again"))
    search(Pictures(), settings, tmp_path / "out", checkpoint_s=0.0)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--source", "sr-ste", "--decay", "0.002"], "2:4"),
        (["--source", "asp", "--pattern", "1:4", "--transposable"], "1:4"),
    ],
)
def test_what_is_trained_is_exported_and_optimized_as_n_of_m_exactly(
    run, tmp_path, options, pattern
):
    out, done = tmp_path / "found", tmp_path / "out"
    result = run("find", PICTURES, "-o", out, *options, "--no-permute", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads(run("schema", "find").stdout))
    assert ("sad" in document["rounds"][1]) == ("sr-ste" in options)
    assert document["settings"]["pattern"] == pattern
    ticket = Ticket.load(out / "ticket.safetensors")
    assert set(ticket.masks) == {"one.weight", "two.weight"}
    notes = document["rounds"][1]["notes"]
    assert notes == ["'first.weight' stays dense: it reads 1 channels, no multiple of 4"]
    wanted = patterns.Pattern.parse(pattern)
    for name, mask in ticket.masks.items():
        array = np.abs(ticket.weights[name])
        # What is kept is what the passes would keep of it.
        if "--transposable" not in options:
            assert (patterns.best_mask(array, 1, wanted) == mask).all()
        assert patterns.obeys(array, 1, wanted)
        assert patterns.obeys(array, 0, wanted) == ("--transposable" in options)
    no_search = ("--set", "permute-channels.seconds=0.1", "--no-profile")
    taken = run(
        "optimize", PICTURES, "--ticket", out / "ticket.safetensors", "-o", done, *no_search
    )
    assert taken.exit_code == 0, taken.stderr
    model = ir.load(done / "model.onnx")
    obeying = [
        patterns.obeys(value.const_value.numpy(), 1, wanted)
        for value in model.graph.initializers.values()
        if value.shape.rank() == 4 and value.shape[1] == 16
    ]
    assert obeying == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pattern", "3:2"], "'3:2' is no pattern"),
        (["--pattern", "0:4"], "'0:4' is no pattern"),
        (["--pattern", "half"], "'half' is no pattern"),
        (["--pattern", "4:8", "--transposable"], "has too many"),
        (
            ["--pattern", "2:7"],
            "can be 2:7: '0.weight': it reads 16 channels, no multiple of 7",
        ),
        (["--rounds", "3"], "--rounds belongs to --source imp, omp, random"),
        (["--structure", "refill"], "--structure belongs to --source imp"),
        (["--decay", "0"], "is not in the range"),
        (["--rewind", "4"], "cannot rewind to epoch 4"),
        (["--source", "ste", "--decay", "0.1"], "--decay belongs to --source sr-ste"),
        (
            ["--source", "imp", "--pattern", "2:4"],
            "--pattern belongs to --source asp, ste, sr-ste",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(
    run, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained"))
    result = run("find", TASK, "-o", tmp_path / "out", "--source", "sr-ste", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(source="asp", structure=Structure("refill")), "takes no structure"),
        (Settings(source="ste", rounds=3), "takes no rounds"),
        (Settings(source="ste", sparsity=0.5), "takes no sparsity"),
        (Settings(source="ste", nm=NM(decay=0.1)), "belongs to the source sr-ste"),
        (Settings(source="sr-ste", nm=NM(decay=-1.0)), "a number above 0"),
        (Settings(source="imp", rounds=1, nm=NM()), "belongs to the sources asp, ste, sr-ste"),
        (Settings(source="sparse"), "There are: imp, omp, random, snip, grasp, synflow, asp"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        search(Clouds(), settings, tmp_path / "out")


def test_another_pattern_is_another_search(run, tmp_path):
    out = tmp_path / "out"
    common = ("find", TASK, "-o", out, "--epochs", "1")
    assert run(*common, "--source", "ste", "--no-permute").exit_code == 0
    for options, message in (
        (["ste", "--no-permute", "--pattern", "1:4"], "--pattern is 2:4 there and 1:4 here."),
        (
            ["ste", "--no-permute", "--transposable"],
            "--transposable is given here, and not there.",
        ),
        (["asp", "--no-permute"], "--source is ste there and asp here"),
        (["ste"], "--no-permute is given there, and not here."),
    ):
        result = run(*common, "--source", *options)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_several_seeds_hold_the_mask_against_new_weights_and_random_masks_that_obey(
    run, tmp_path
):
    options = ("--source", "sr-ste", "--seeds", "3", "--epochs", "1", "--no-permute")
    result = run("find", TASK, "-o", tmp_path / "out", *options, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads(run("schema", "find").stdout))
    arms = {arm["name"]: arm for arm in document["verdict"]["arms"]}
    assert arms["ticket"]["weights"] == arms["random mask"]["weights"]
    rounds = tmp_path / "out" / "rounds"
    held = {
        name: Ticket.load(rounds / f"{name}.safetensors").masks
        for name in ("round-01-2of4", "re-initialised", "random-mask")
    }
    for name, mask in held["round-01-2of4"].items():
        assert (held["re-initialised"][name] == mask).all()
        assert (held["random-mask"][name].reshape(-1, 4).sum(axis=1) == 2).all()
        assert (held["random-mask"][name] != mask).any()
