"""Searches: what a round starts from and prunes, what is saved, and what another run makes of it."""

from __future__ import annotations

import csv
import errno
import json
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

from deploykit.errors import ModelError, UsageError  # noqa: E402
from deploykit.finder import rounds as rounding  # noqa: E402
from deploykit.finder import store  # noqa: E402
from deploykit.finder.ranking import count_kept  # noqa: E402
from deploykit.finder.search import Settings, search  # noqa: E402
from deploykit.finder.sources import SOURCES  # noqa: E402
from deploykit.finder.store import Store  # noqa: E402
from deploykit.finder.structuring import Structure  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from deploykit.ticket import Ticket  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Pictures  # noqa: E402

TOTAL = 16 * 24 + 24 * 16


def rounds(folder):
    return {
        file.stem: Ticket.load(file)
        for file in sorted((folder / "rounds").glob("round-*.safetensors"))
    }


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_search_prunes_a_fifth_a_round_and_starts_from_the_rewound_weights(tmp_path):
    result = search(Clouds(), Settings(rounds=3, rewind=1, seed=2), tmp_path / "out")
    found = rounds(tmp_path / "out")
    assert [count_kept(found[name].masks) for name in found] == [0, 614, 492, 393]
    assert [row.kept for row in result.rows] == [TOTAL, 614, 492, 393]
    start = Ticket.load(tmp_path / "out" / "rounds" / "start.safetensors").weights
    trainer = Trainer(Clouds(), seed=2)
    previous = found["round-00"].weights
    for number in (1, 2, 3):
        ticket = found[f"round-{number:02d}"]
        # The smallest of what the round before has left and trained are gone, and nothing else.
        kept = {each: np.abs(previous[each])[mask] for each, mask in ticket.masks.items()}
        gone = {each: np.abs(previous[each])[~mask] for each, mask in ticket.masks.items()}
        assert min(map(np.min, kept.values())) >= max(map(np.max, gone.values()))
        again = trainer.train(start, ticket.masks, number=number, first_epoch=1)
        assert all((again.weights[each] == ticket.weights[each]).all() for each in start)
        previous = ticket.weights
        assert ticket.provenance["dense"] == found["round-00"].provenance["metrics"]
    assert "dense" not in found["round-00"].provenance
    assert Ticket.load(result.ticket).provenance == found["round-03"].provenance
    assert any((start[each] != trainer.initial()[each]).any() for each in start)


def test_without_rewinding_a_round_goes_on_from_the_weights_before(tmp_path):
    search(Clouds(), Settings(rounds=2, rewind="none"), tmp_path / "out")
    found = rounds(tmp_path / "out")
    assert not (tmp_path / "out" / "rounds" / "start.safetensors").exists()
    ticket = found["round-02"]
    again = Trainer(Clouds()).train(found["round-01"].weights, ticket.masks, number=2)
    assert (again.weights["0.weight"] == ticket.weights["0.weight"]).all()


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "imp"])
def test_one_shot_sources_need_no_rounds(tmp_path, source):
    result = search(Clouds(), Settings(source=source, sparsity=0.8), tmp_path / "out")
    assert [row.kept for row in result.rows] == [TOTAL, 154]
    assert result.rows[-1].epochs[-1].loss < result.rows[-1].epochs[0].loss
    ticket = Ticket.load(result.ticket)
    assert ticket.provenance["settings"]["source"] == source
    if source != "omp":
        # They look at the weights before training, and tickets start there.
        assert ticket.provenance["settings"]["rewind"] == 0


def test_refill_keeps_whole_channels_of_a_residual_network_and_imp_goes_on_without(tmp_path):
    settings = Settings(structure=Structure("refill"), rounds=3, every_round=True)
    result = search(Pictures(), settings, tmp_path / "out")
    found = rounds(tmp_path / "out")
    assert [row.structure for row in result.rows] == [
        "none",
        "refill",
        "none",
        "refill",
        "none",
        "refill",
    ]
    plain = search(Pictures(), Settings(rounds=2), tmp_path / "plain")
    for number in (1, 2):
        # What is pruned is what would be without a structure.
        ours, theirs = (
            Ticket.load(folder / "rounds" / f"round-{number:02d}.safetensors").masks
            for folder in (tmp_path / "out", plain.folder)
        )
        assert all((ours[each] == theirs[each]).all() for each in theirs)
    for number in (1, 2, 3):
        ticket = found[f"round-{number:02d}-refill"]
        alive = ticket.masks["first.weight"].reshape(16, -1).any(axis=1)
        assert 0 < alive.sum() < 16
        # The residual sum ties them: the same channels stay in both, and nobody reads the others.
        assert (ticket.masks["two.weight"].reshape(16, -1).any(axis=1) == alive).all()
        assert (ticket.masks["head.weight"].any(axis=0) == alive).all()
        rows = ticket.masks["first.weight"].reshape(16, -1)
        assert (rows.all(axis=1) == alive).all()


def test_refill_says_where_it_leaves_fewer_weights_than_the_mask(tmp_path):
    told = {}
    for match in ("rows", "weights"):
        structure = Structure("refill", match=match)
        settings = Settings(source="random", structure=structure, sparsity=0.5, epochs=1)
        row = search(Pictures(), settings, tmp_path / match).rows[-1]
        told[match] = [note for note in row.notes if "--match weights" in note]
        ticket = Ticket.load(tmp_path / match / "ticket.safetensors")
        assert ticket.provenance["notes"] == list(row.notes)
        if match == "rows":
            assert row.sparsity > 0.6
            assert (
                f"{row.sparsity:.1%} of the weights are dropped, and 50.0% by the mask"
                in told[match][0]
            )
    assert [len(told[match]) for match in ("rows", "weights")] == [1, 0]


@pytest.mark.parametrize(
    "criterion", ["remaining-count", "feature-l1", "feature-l2", "saliency"]
)
def test_every_criterion_chooses_channels(tmp_path, criterion):
    structure = Structure("refill+", criterion=criterion, extra=0.5)
    result = search(
        Pictures(),
        Settings(source="omp", structure=structure, sparsity=0.6, epochs=2),
        tmp_path / "out",
    )
    rows = Ticket.load(result.ticket).masks["one.weight"].reshape(16, -1).any(axis=1)
    # floor(density * 16) channels, and half of the others back.
    assert 8 <= rows.sum() < 16


def test_regroup_hands_its_blocks_on_and_says_what_stays_dense(tmp_path):
    pytest.importorskip("mtkahypar")
    structure = Structure("regroup", columns="channel", blocks=1)
    result = search(
        Pictures(),
        Settings(structure=structure, rounds=2, group_aware=True, epochs=2),
        tmp_path / "out",
    )
    ticket = Ticket.load(result.ticket)
    assert [row.structure for row in result.rows] == ["none", "regroup", "regroup"]
    assert set(ticket.blocks) <= set(ticket.masks)
    for name in ticket.masks:
        if name not in ticket.blocks:
            assert ticket.masks[name].all()
    assert any("'first.weight' stays dense: " in note for note in result.rows[-1].notes)


def test_the_same_search_gives_the_same_bytes_and_another_seed_others(tmp_path):
    settings = Settings(rounds=2, epochs=2, structure=Structure("refill"))
    for name in ("one", "two"):
        search(Pictures(), settings, tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    search(Pictures(), Settings(rounds=2, epochs=2, seed=1), tmp_path / "three")
    assert (tmp_path / "three" / "ticket.safetensors").read_bytes() != (
        tmp_path / "one" / "ticket.safetensors"
    ).read_bytes()


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("epochs", "again", "structure"),
    # The last epoch of a training is not saved by itself, but with its round.
    [(1, 11, None), (4, 9, None), (6, 6, None), (11, 1, Structure("refill"))],
)
def test_a_search_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, epochs, again, structure
):
    settings = Settings(rounds=2, structure=structure)
    search(Pictures(), settings, tmp_path / "whole")
    seen = []

    def stop(status):
        seen.append(status)
        if len([each for each in seen if each.epoch]) == epochs:
            raise Stop

    with pytest.raises(Stop):
        search(Pictures(), settings, tmp_path / "out", progress=stop, checkpoint_s=0.0)
    assert not (tmp_path / "out" / "ticket.safetensors").exists()
    trained = []

    class Counting(rounding.Clock):
        def tick(self, epochs=1):
            trained.append(epochs)
            super().tick(epochs)

    monkeypatch.setattr(rounding, "Clock", Counting)
    search(Pictures(), settings, tmp_path / "out", checkpoint_s=0.0)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    # 4 epochs each of the dense network and two tickets; what was done before the stop is not done again.
    assert len(trained) == again


def test_what_is_finished_is_told_again_without_training(tmp_path, monkeypatch):
    first = search(Clouds(), Settings(rounds=2), tmp_path / "out")
    before = content(tmp_path / "out")
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    second = search(Clouds(), Settings(rounds=2), tmp_path / "out")
    assert second == first
    assert (first.was_finished, second.was_finished) == (False, True)
    assert content(tmp_path / "out") == before


def test_other_settings_or_another_task_are_refused_until_forced(tmp_path):
    out = tmp_path / "out"
    one, refill = {"rounds": 1, "epochs": 1, "reference": "m:one"}, Structure("refill")
    search(Clouds(), Settings(**one), out)
    before = content(out)

    class Other(Clouds):
        name = "clouds"

        def loss(self, outputs, targets):
            return 2 * super().loss(outputs, targets)

    class Rate(Clouds):
        name = "clouds"

        def optimizer(self, parameters):
            return torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=1e-4)

    class Wide(Clouds):
        name = "clouds"

        def model(self):
            return torch.nn.Sequential(torch.nn.Linear(16, 28), torch.nn.Linear(28, 4))

    extent = "it is --rounds 1 --sparsity 0.201 there and --rounds 2 --sparsity 0.359 here"
    for task, settings, message in (
        (Clouds(), Settings(**one, seed=1), "--seed is 0 there and 1 here"),
        (
            Clouds(),
            Settings(**{**one, "rounds": 2, "epochs": 2, "seed": 1}),
            f"{extent}; --epochs is 1 there and 2 here; --seed is 0 there and 1 here",
        ),
        (
            Clouds(),
            Settings(**one, structure=refill),
            "--structure is none there and refill here",
        ),
        (Clouds(), Settings(**one, rewind="none"), "--rewind is 0 there and none here"),
        (
            Clouds(),
            Settings(**one, deterministic=False),
            "--no-deterministic is given here, and not there",
        ),
        (
            Rate(),
            Settings(**{**one, "reference": "m:b"}),
            "the task is m:one there and m:b here",
        ),
        (Other(), Settings(**one), "the task's loss differs"),
        (Rate(), Settings(**one), "the task's optimizer differs"),
        (Wide(), Settings(**one), "the task's model differs"),
    ):
        with pytest.raises(UsageError) as caught:
            search(task, settings, out)
        assert f"a search with other settings: {message}. Start it" in str(caught.value)
    assert content(out) == before
    search(Clouds(), Settings(**one, structure=refill), out, force=True)
    other = Settings(**one, structure=Structure("refill", match="weights"))
    with pytest.raises(UsageError, match="settings: --match is rows there and weights here"):
        search(Clouds(), other, out)
    search(Clouds(), Settings(rounds=2, epochs=1), out, force=True)
    assert len(rounds(out)) == 3
    # Forced, it is done anew even if it is the same.
    (out / "rounds" / "round-01.safetensors").write_bytes(b"junk")
    search(Clouds(), Settings(rounds=2, epochs=1), out, force=True)
    assert len(rounds(out)) == 3


def test_what_is_no_search_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"holds 'thesis.txt', and no search"):
            search(Clouds(), Settings(rounds=1), out, force=force)
    with pytest.raises(UsageError, match=r"thesis.txt' is a file"):
        search(Clouds(), Settings(rounds=1), out / "thesis.txt")
    assert content(out) == {"thesis.txt": b"years of work"}
    (out / "search.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no settings of a search"):
        search(Clouds(), Settings(rounds=1), out)


def test_a_damaged_round_is_told_and_a_damaged_checkpoint_costs_its_epochs_only(tmp_path):
    out, settings = tmp_path / "out", Settings(rounds=2, rewind=1)
    search(Clouds(), settings, out)
    whole = content(out)
    file = out / "rounds" / "round-01.safetensors"
    (out / "rounds" / "checkpoint.safetensors").write_bytes(b"half a check")
    (out / "rounds" / "round-02.safetensors").unlink()
    search(Clouds(), settings, out)
    assert content(out) == whole
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ModelError, match=r"round-01.safetensors' is cut short"):
        search(Clouds(), settings, out)
    file.unlink()
    (out / "rounds" / "start.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks 'rounds/start.safetensors'"):
        search(Clouds(), settings, out)


def test_two_searches_in_one_folder_are_not_mixed(tmp_path):
    out = tmp_path / "out"

    def enter(status):
        if status.epoch == 1 and not status.round:
            with pytest.raises(UsageError, match="another search is going on"):
                search(Clouds(), Settings(rounds=1, epochs=2), out, force=True)

    search(Clouds(), Settings(rounds=1, epochs=2), out, progress=enter)
    with Store(out, {}, "", force=True):
        pass


def test_a_loss_that_becomes_nan_leaves_the_rounds_before_it(tmp_path):
    class Late(Clouds):
        name = "late"
        calls = 0

        def loss(self, outputs, targets):
            self.calls += 1
            # 5 steps an epoch, of which the probe takes one more.
            return super().loss(outputs, targets) * (float("nan") if self.calls > 14 else 1.0)

    with pytest.raises(
        UsageError,
        match=r"after step 4 of epoch 1, round 1. Rounds before this one are kept.*another folder, or --force",
    ):
        search(Late(), Settings(rounds=2, epochs=2, rewind=0), tmp_path / "out")
    assert list(rounds(tmp_path / "out")) == ["round-00"]
    assert (tmp_path / "out" / "metrics.csv").read_text().count("\n") == 3
    early = Late()
    early.calls = 10
    with pytest.raises(UsageError, match=r"epoch 1, round 0. Lower its .* --force to begin"):
        search(early, Settings(rounds=2, epochs=2, rewind=0), tmp_path / "early")


def test_a_full_disk_is_told_and_what_was_found_is_kept(tmp_path, monkeypatch):
    real, out = store.write_whole, tmp_path / "out"

    def full(path, data):
        if path.name == "round-01.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr("deploykit.ticket.write_whole", full)
    with pytest.raises(
        UsageError, match=r"round-01.safetensors': No space left.*free some space"
    ):
        search(Clouds(), Settings(rounds=1), out)
    assert list(rounds(out)) == ["round-00"]
    monkeypatch.setattr("deploykit.ticket.write_whole", real)
    assert len(search(Clouds(), Settings(rounds=1), out).rows) == 2


def test_metrics_hold_every_epoch(tmp_path):
    result = search(Clouds(), Settings(rounds=2, rewind=1), tmp_path / "out")
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(int(each["round"]), int(each["epoch"])) for each in lines] == [
        *((0, epoch) for epoch in (1, 2, 3, 4)),
        *((number, epoch) for number in (1, 2) for epoch in (2, 3, 4)),
    ]
    assert [float(each["test"]) for each in lines if each["test"]] == [
        row.test for row in result.rows
    ]
    assert [each["structure"] for each in lines] == ["dense"] * 4 + ["scattered"] * 6
    assert lines[-1]["kept"] == "492"
    assert float(lines[-1]["remaining"]) + float(lines[-1]["sparsity"]) == pytest.approx(1)
    assert (tmp_path / "out" / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "search.json").read_text())["settings"]["rewind"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "magic"}, "there is no source 'magic'"),
        ({"rate": 1.0}, "between 0 and 1 of what is left"),
        ({"sparsity": 1.0}, "the sparsity is a part between 0 and 1"),
        ({"rounds": 0}, "1 round or more"),
        ({"rounds": None}, "Give a number of rounds, or a sparsity"),
        ({"rewind": 4}, "cannot rewind to epoch 4 of a training of 4 epochs"),
        ({"rewind": "none", "source": "snip"}, "tickets start from them. Give an epoch"),
        ({"every_round": True}, "if there is one"),
        (
            {"group_aware": True, "structure": Structure("refill")},
            "needs the structure 'regroup'",
        ),
    ],
)
def test_settings_without_sense_are_refused_before_anything_is_written(
    tmp_path, settings, message
):
    with pytest.raises(UsageError, match=message):
        search(Clouds(), Settings(**{"rounds": 2, **settings}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "stripes"}, "there is no structure 'stripes'"),
        ({"name": "refill", "criterion": "luck"}, "there is no criterion 'luck'"),
        ({"name": "regroup", "target": "toaster"}, "there is no target 'toaster'"),
        ({"name": "refill", "extra": 0.1}, "taken back by 'refill\\+'"),
    ],
)
def test_structures_that_are_none_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Structure(**options)
