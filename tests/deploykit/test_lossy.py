"""Lossy runs: how far the outputs moved is reported, held against a tolerance where one is given, and told in words."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

import passes
from deploykit.output_change import find_changes
from deploykit.report.records import schema
from passes.weights import set_tensor
from tests.deploykit import fakes
from tests.deploykit.conftest import make_network

PRUNE = ("--passes", "tidy,prune-channels,infer-shapes", "--no-profile")


@pytest.fixture
def dense(tmp_path):
    """A classifier of four classes with 64 hidden channels in use."""
    path = tmp_path / "dense.onnx"
    onnx.save(make_network(dead=0), path)
    return path


@pytest.fixture
def real(tmp_path):
    """Six inputs of ten rows."""
    path = tmp_path / "real.npz"
    np.savez(path, x=np.random.default_rng(3).standard_normal((6, 10, 256)).astype(np.float32))
    return path


def scores(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"x": x})[0]


def test_errors_of_hand_made_outputs():
    # The first input is given. Its elements deviate by 4 from their mean; those of the other two, taken together, by 2
    # and by 6 each, which makes the root of 20.
    y = [np.array([[0.0, 8.0], [8.0, 0.0]]) + shift for shift in (0.0, 2.0, 6.0)]
    other = [y[0] + [[1, 0], [0, 0]], y[1] + [[9, 0], [0, 0]], y[2]]
    whole = [np.array([1, 2, 3, 4])] * 3
    wrong = [whole[0], np.array([1, 2, 3, 5]), np.array([0, 0, 0, 4])]
    found = find_changes(
        [{"y": a, "n": b} for a, b in zip(y, whole, strict=True)],
        [{"y": a, "n": b} for a, b in zip(other, wrong, strict=True)],
        given=1,
    )
    rows = {(row.output, row.on): row for row in found}
    given = rows["y", "given"]
    assert (given.inputs, given.max_abs_error, given.mean_abs_error) == (1, 1.0, 0.25)
    assert (given.max_rel_error, given.mean_rel_error, given.agreement) == (0.25, 0.0625, 1.0)
    drawn = rows["y", "generated"]
    assert drawn.inputs == 2
    assert drawn.max_abs_error == 9.0
    assert drawn.max_rel_error == pytest.approx(9.0 / 20**0.5)
    assert drawn.mean_rel_error == pytest.approx(1.125 / 20**0.5)
    assert drawn.agreement == 0.75
    assert rows["n", "given"].max_rel_error == 0.0
    integers = rows["n", "generated"]
    assert (integers.max_rel_error, integers.mean_rel_error) == (0.75, 0.5)
    assert integers.agreement is None


def test_the_change_on_given_inputs_does_not_depend_on_the_others():
    dice = np.random.default_rng(0)
    given = [dice.standard_normal((3, 5))]
    moved = [given[0] + 0.1]
    (alone,) = find_changes([{"y": given[0]}], [{"y": moved[0]}], given=1)
    for others in (1e-3, 1e3):
        other = [others * dice.standard_normal((3, 5)) for _ in range(4)]
        rows = find_changes(
            [{"y": array} for array in given + other],
            [{"y": array} for array in moved + other],
            given=1,
        )
        assert rows[0] == alone


def test_the_change_is_reported_on_given_and_on_generated_inputs(run, dense, real, tmp_path):
    options = ("--set", "prune-channels.ratio=0.5", "--set", "prune-channels.multiple=8")
    out = tmp_path / "out"
    result = run("optimize", dense, "-o", out, *PRUNE, *options, "--inputs", real, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema())
    assert document["verdict"] == "smaller"
    assert document["layers"][0]["outputs"] == {"before": 64, "after": 32}
    assert document["validation"]["verdict"] == "differs"
    given, generated = document["validation"]["changes"]
    assert (given["on"], given["inputs"]) == ("given", 6)
    assert (generated["on"], generated["inputs"]) == ("generated", 5)

    inputs = np.load(real)["x"]
    before = np.stack([scores(dense, x) for x in inputs])
    after = np.stack([scores(out / "model.onnx", x) for x in inputs])
    same = (before.argmax(-1) == after.argmax(-1)).mean()
    assert 0 < same < 1, "the network is no test"
    assert given["agreement"] == pytest.approx(same)
    assert given["max_abs_error"] == pytest.approx(np.abs(before - after).max(), rel=1e-4)
    assert given["mean_abs_error"] == pytest.approx(np.abs(before - after).mean(), rel=1e-4)
    assert 0 < given["mean_rel_error"] < given["max_rel_error"]
    assert not any("--inputs" in warning for warning in document["warnings"])

    page = (out / "report.html").read_text()
    assert "as prune-channels does" in page
    assert 'data-key="validation.changes.0.agreement"' in page
    told = run("optimize", dense, "-o", tmp_path / "again", *PRUNE, *options, "--inputs", real)
    assert f"the largest score is where it was on {100 * same:.3g} % of them" in " ".join(
        told.stdout.split()
    )


def test_without_inputs_the_report_asks_for_them(run, dense, tmp_path):
    options = ("--set", "prune-channels.ratio=0.25", "--json")
    document = json.loads(
        run("optimize", dense, "-o", tmp_path / "out", *PRUNE, *options).stdout
    )
    assert [row["on"] for row in document["validation"]["changes"]] == ["generated"]
    assert any("give real ones with --inputs" in warning for warning in document["warnings"])


@pytest.mark.parametrize(("tolerance", "code"), [("0.001", 1), ("100", 0)])
def test_a_tolerance_that_is_asked_for_is_held(run, dense, tmp_path, tolerance, code):
    out = tmp_path / "out"
    options = ("--set", "prune-channels.ratio=0.5", "--tolerance", tolerance, "--json")
    result = run("optimize", dense, "-o", out, *PRUNE, *options)
    assert result.exit_code == code, result.stderr
    document = json.loads(result.stdout)
    assert (document["verdict"] == "differs") == (code == 1)
    assert (out / "model.onnx").exists() == (code == 0)
    if code:
        assert "prune less, or allow more with --tolerance" in document["reason"]


def test_a_budget_out_of_reach_writes_nothing(run, dense, tmp_path):
    out = tmp_path / "out"
    result = run("optimize", dense, "-o", out, *PRUNE, "--set", "prune-channels.macs=0.01")
    assert result.exit_code == 1
    assert "is the lowest" in result.stderr
    assert not out.exists()


def test_how_much_has_to_be_said(run, dense, tmp_path):
    result = run("optimize", dense, "-o", tmp_path / "out", *PRUNE)
    assert result.exit_code == 2
    assert "how much?" in result.stderr


def test_a_dry_run_says_what_would_go(run, dense):
    result = run("optimize", dense, "--dry-run", *PRUNE, "--set", "prune-channels.ratio=0.5")
    assert result.exit_code == 0
    assert result.stdout.startswith("This pruning would leave")


def test_a_model_that_returns_no_numbers_is_not_excused(run, dense, tmp_path, monkeypatch):
    class Poison(fakes.Halve):
        """Divide by zero, and say that outputs may differ."""

        name = "poison"

        def call(self, model):
            set_tensor(model.graph.initializers["b2"], np.full(4, np.nan, np.float32))
            return fakes.report_of(self, modified=True)

    monkeypatch.setattr(passes, "BUILTIN", (Poison,))
    result = run(
        "optimize",
        dense,
        "-o",
        tmp_path / "out",
        "--passes",
        "poison",
        "--no-profile",
        "--json",
    )
    assert result.exit_code == 1
    assert "which no pruning explains" in json.loads(result.stdout)["reason"]
