"""`deploykit find`: what scripts rely on, and what a user can do wrong."""

from __future__ import annotations

import builtins
import json
import signal
import subprocess
import sys

import jsonschema
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

from deploykit.cli import find  # noqa: E402
from deploykit.cli.search_narration import SearchNarration, status_text, time_text  # noqa: E402
from deploykit.finder.nm import METHODS  # noqa: E402
from deploykit.finder.progress import Clock, Status  # noqa: E402
from deploykit.finder.sources import SOURCES  # noqa: E402
from deploykit.finder.structures.refill import CRITERIA  # noqa: E402
from deploykit.finder.structuring import STRUCTURES  # noqa: E402
from deploykit.ticket import Ticket  # noqa: E402

TASK = "tests.deploykit.finder.toy:clouds_task"


def test_what_is_written_out_is_what_there_is():
    assert set(find.SOURCES) == set(SOURCES)
    assert find.NM_METHODS == METHODS
    assert ("none", *STRUCTURES) == find.STRUCTURES
    assert find.CRITERIA == CRITERIA


def test_a_table_ends_a_search_and_json_obeys_its_schema(run, tmp_path):
    out = tmp_path / "out"
    result = run("find", TASK, "-o", out, "--rounds", "2", "--seed", "4", "-v")
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["0", "dense", "768", "0.0%"] in [line[:4] for line in lines]
    assert ["2", "scattered", "492", "35.9%"] in [line[:4] for line in lines]
    assert "round 2 of 2, epoch 4 of 4, 35.9% sparse, validation" in result.stderr
    assert f"ticket: {out / 'ticket.safetensors'}" in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("PASSED | ")
    again = run("find", TASK, "-o", out, "--rounds", "2", "--seed", "4", "--json", "-q")
    document = json.loads(again.stdout)
    jsonschema.validate(document, json.loads(run("schema", "find").stdout))
    assert [row["kept"] for row in document["rounds"]] == [768, 614, 492]
    assert again.stderr.splitlines() == [f"ticket: {out / 'ticket.safetensors'}"]
    again = run("find", TASK, "-o", out, "--rounds", "2", "--seed", "4")
    assert again.stderr.startswith("nothing was left to do: this search was finished before")
    assert "nothing was left" not in result.stderr
    for row in document["rounds"]:
        held = Ticket.load(out / row["file"]).provenance
        assert held["metrics"] == {"validation": row["validation"], "test": row["test"]}


def test_options_reach_the_search(run, tmp_path):
    out = tmp_path / "out"
    options = [
        "--source",
        "omp",
        "--structure",
        "refill+",
        "--extra",
        "0.5",
        "--sparsity",
        "0.75",
    ]
    more = [
        "--epochs",
        "2",
        "--rewind",
        "1",
        "--criterion",
        "remaining-count",
        "--multiple",
        "2",
    ]
    result = run("find", TASK, "-o", out, *options, *more, "--json")
    assert result.exit_code == 0, result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert settings["structure"] == {
        "name": "refill+",
        "criterion": "remaining-count",
        "multiple": 2,
        "match": "rows",
        "extra": 0.5,
    }
    assert (settings["source"], settings["kept"]) == ("omp", [192])
    assert (settings["epochs"], settings["rewind"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([TASK], 2, "Give a folder with -o OUT"),
        (["nowhere:task", "-o", "{out}"], 2, "there is no module 'nowhere'"),
        (["digits", "-o", "{out}"], 2, "deploykit.finder.tasks:digits"),
        (["tests.deploykit.finder.toy:clouds", "-o", "{out}"], 2, "failed when it was called"),
        ([TASK, "-o", "{full}"], 2, "holds 'thesis.txt', and no search"),
        ([TASK, "-o", "{full}/thesis.txt"], 2, "is a file"),
        ([TASK, "-o", "{out}", "--rewind", "soon"], 2, "neither a number of epochs nor 'none'"),
        ([TASK, "-o", "{out}", "--rewind", "9"], 2, "cannot rewind to epoch 9"),
        ([TASK, "-o", "{out}", "--sparsity", "1"], 2, "0.0<x<1.0"),
        ([TASK, "-o", "{out}", "--extra", "0.1"], 2, "--extra belongs to --structure refill+"),
        (
            [TASK, "-o", "{out}", "--structure", "refill", "--blocks", "2"],
            2,
            "--blocks belongs to --structure regroup",
        ),
        (
            [TASK, "-o", "{out}", "--structure", "regroup", "--target", "toaster"],
            2,
            "there is no target 'toaster'",
        ),
        ([TASK, "-o", "{out}", "--device", "gpu"], 2, "there is no device 'gpu'"),
        (
            [TASK, "-o", "{out}", "--rounds", "99"],
            2,
            "nothing of the 768 weights would be left",
        ),
    ],
)
def test_mistakes_are_told_without_a_traceback(run, tmp_path, arguments, code, message):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    filled = [each.format(out=tmp_path / "out", full=full) for each in arguments]
    result = run("find", *filled)
    assert result.exit_code == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()
    assert (full / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("missing", ["torch", "safetensors.numpy"])
def test_without_the_extra_the_command_that_brings_it_is_told(
    run, tmp_path, monkeypatch, missing
):
    real = builtins.__import__

    def absent(name, *more):
        if name == missing:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", absent)
    result = run("find", TASK, "-o", tmp_path / "out")
    assert result.exit_code in {2, 4}
    assert "pip install 'deploykit-onnx[torch]'" in result.stderr


def test_an_interrupted_search_says_how_to_go_on_and_does(tmp_path):
    command = [
        *(sys.executable, "-m", "deploykit", "find", "tests.deploykit.finder.toy:slow"),
        *(
            "-o",
            str(tmp_path / "out"),
            "--rounds",
            "2",
            "--epochs",
            "8",
            "--threads",
            "1",
            "-vv",
        ),
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    for line in child.stderr:
        if line.startswith("round 1 of 2, epoch 2"):
            break
    child.send_signal(signal.SIGTERM)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert stdout == ""
    assert "Start the same command again to go on." in stderr.splitlines()[-1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603 - ours
    assert done.returncode == 0, done.stderr
    assert "dense network" not in done.stderr
    assert "round 2 of 2, epoch 8 of 8" in done.stderr


def status(**given):
    plain = {
        "stage": "training",
        "round": 3,
        "rounds": 10,
        "epoch": 5,
        "epochs": 20,
        "sparsity": 0.488,
        "metric": 0.98125,
        "done": 0.5,
        "left_s": 75.0,
    }
    return Status(**{**plain, **given})


def test_a_line_says_where_a_search_is():
    assert (
        status_text(status()) == "round 3 of 10, epoch 5 of 20, 48.8% sparse, validation 0.9812"
    )
    assert status_text(status(round=0, metric=None)) == "dense network, epoch 5 of 20"
    assert (
        status_text(status(stage="refill", epochs=0, metric=None))
        == "round 3 of 10, refill, 48.8% sparse"
    )
    assert [time_text(each) for each in (0.2, 75, 600, 86400)] == [
        "1 s",
        "75 s",
        "10 min",
        "24.0 h",
    ]


def test_on_a_terminal_a_bar_shows_round_epoch_sparsity_metric_and_time(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with SearchNarration(0) as narration:
        narration(status())
        narration._bar.refresh()
    shown = capfd.readouterr().err
    assert "round 3 of 10, epoch 5 of 20, 48.8% sparse, validation 0.9812" in shown
    assert "75 s left" in shown


def test_in_a_pipe_each_network_is_a_line_and_each_epoch_where_asked_for(capfd):
    told = {}
    for verbosity in (-1, 0, 1):
        with SearchNarration(verbosity) as narration:
            narration(status())
            narration(status(epoch=20))
        told[verbosity] = capfd.readouterr().err.splitlines()
    end = "round 3 of 10, epoch 20 of 20, 48.8% sparse, validation 0.9812"
    assert told[-1] == []
    assert told[0] == [end]
    assert told[1] == [end.replace("epoch 20 ", "epoch 5 "), end]


def test_time_left_counts_what_was_trained_now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("deploykit.finder.progress.time.monotonic", lambda: now[0])
    clock = Clock(20)
    clock.skip(10)
    assert clock.left_s is None
    now[0] += 6.0
    clock.tick(3)
    assert clock.part == 13 / 20
    assert clock.left_s == pytest.approx(2.0 * 7)
