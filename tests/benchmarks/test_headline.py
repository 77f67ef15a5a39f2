"""The headline benchmark does what is missing, and its exit code says whether a target is missed."""

from __future__ import annotations

import json

import pytest

from benchmarks import headline, headline_tables
from benchmarks.paper import CASES

LABEL = "resnet18-cifar/group-wise/78"


def row_of(saved):
    """What a case gives, without running it."""

    def run_case(case, batch, options):
        row = {
            "kind": "network",
            "label": case.label,
            "batch": batch,
            "reached": 0.78,
            "saved": saved,
            "flops_saved": 0.75,
            "parameters_left": 0.2,
            "error": 1e-6,
            "chosen": "as is",
        }
        row["beaten"] = {
            key: headline._beaten(saved, figure) for key, figure in case.printed.items()
        }
        return {**row, "failures": headline._failures(case, row)}

    return run_case


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(saved, *more):
        monkeypatch.setattr(headline, "run_case", row_of(saved))
        state = tmp_path / "rows.jsonl"
        code = headline.main(
            ["--only", LABEL, "--batches", "1,8", "--state", str(state), *more]
        )
        lines = state.read_text().splitlines() if state.exists() else []
        return code, [json.loads(line) for line in lines]

    return run


def test_cases_are_told_apart_by_their_labels():
    labels = [case.label for case in CASES]
    assert len(set(labels)) == len(labels)
    assert {case.label for case in CASES if case.is_target} == {
        "vgg16/group-wise/80",
        "resnet18-cifar/group-wise/78",
        "resnet50-64/channel-wise/74",
    }


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.66, 0.65, 0.67), "yes"), ((0.66, 0.64, 0.68), "not proven"), ((0.6, 0.5, 0.64), "no")],
)
def test_a_figure_is_beaten_by_the_whole_interval(interval, word):
    assert headline._beaten(interval, 64.93) == word


def test_rows_are_kept_and_a_missed_target_fails(run):
    assert run([0.7, 0.69, 0.71], "--minutes", "0") == (headline.INCOMPLETE, [])
    code, rows = run([0.6, 0.58, 0.62])
    # those of the other scale are asked for as well, and are no targets
    assert code == 1
    assert [bool(row["failures"]) for row in rows] == [True, True, False, False]
    assert run([0.7, 0.69, 0.71]) == (1, rows)


def test_targets_that_are_met_pass(run, capsys):
    code, rows = run([0.7, 0.69, 0.71])
    assert code == 0
    assert len(rows) == 4
    assert "**70.0 [69.0, 71.0]**" in capsys.readouterr().out


def test_quick_rows_prove_nothing(run):
    assert len(run([0.7, 0.69, 0.71], "--quick")[1]) == 4
    assert len(run([0.7, 0.69, 0.71])[1]) == 8


def test_the_picture_is_drawn_and_the_same_again(run, tmp_path):
    run([0.7, 0.69, 0.71], "--plot", str(tmp_path / "one.svg"))
    run([0.7, 0.69, 0.71], "--plot", str(tmp_path / "other.svg"))
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "other.svg").read_bytes()
    assert b"<!-- resnet18-cifar  group-wise  78 % -->" in drawn
    assert b"torch-pruning" not in drawn


def test_torch_pruning_stands_beside_its_network(tmp_path):
    case = next(case for case in CASES if case.structure == "channel-wise")
    network = {"key": ["network"], **row_of([0.5, 0.49, 0.51])(case, 1, None)}
    rounded = {"saved": [0.47, 0.46, 0.48]}
    peer = {"kind": "peer", "label": case.label, "batch": 1, "default": {}, "rounded": rounded}
    text = headline_tables.table([network, peer])
    assert text.count("47.0 [46.0, 48.0]") == 1
    assert "rounds what is left down" in text
    assert "torch-pruning takes" not in headline_tables.table([network])
    # a network that is not there, or not at this batch, has no bar to stand on
    headline_tables.plot([network, peer, {**peer, "batch": 8}], tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "<!-- torch-pruning, with round_to -->" in drawn
