"""Sweeps over batches and threads: throughput and efficiency follow from the times, and what cannot be run is refused."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import onnx
import pytest

from deploykit.errors import UsageError
from deploykit.profile import device
from deploykit.report.profile_records import schema
from deploykit.report.what_if_records import SweepRow
from deploykit.what_if.sweep import Sweep, _said, parse_sweep
from tests.deploykit.conftest import make_network
from tests.deploykit.narrow_nets import make_residual

FAST = ("--duration", "0.05", "--warmup", "0", "--rebuilds", "2")


def test_batches_are_compared_by_items_in_a_second(run, tmp_path):
    path, page = tmp_path / "residual.onnx", tmp_path / "page.html"
    onnx.save(make_residual(), path)
    result = run("profile", path, "--sweep", "batch=1,4", *FAST, "--json", "--html", page)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema("profile"))
    (found,) = document["sweeps"]
    one, four = found["rows"]
    assert (one["setting"], four["setting"]) == (1, 4)
    assert one["clock"] == four["clock"]
    assert four["items_s"] == pytest.approx(4 / four["p50_s"])
    assert one["speedup"] == one["efficiency"] == 1
    assert (
        four["speedup"] == four["efficiency"] == pytest.approx(four["items_s"] / one["items_s"])
    )
    # Four pictures take more than one, and no convolution is four times as fast at four.
    assert four["p50_s"] > 1.5 * one["p50_s"]
    assert "items/s" in page.read_text("utf-8")
    text = run("profile", path, "--sweep", "batch=1,4", *FAST).stdout
    assert "Most items in a second with a batch of" in text


def test_what_a_sweep_found_is_said_in_words():
    def row(setting, items_s):
        return SweepRow(setting, 0.1, 0.1, items_s, items_s / 50, 1.0, "wall")

    assert _said("batch", [row(1, 50.0), row(4, 75.0)]) == (
        "Most items in a second with a batch of 4: 75, 1.50 times those of 1."
    )
    assert _said("threads", [row(1, 50.0), row(2, 40.0)]) == (
        "Most items in a second with 1 thread: 50, no other of these gives more."
    )
    assert "with 2 threads: 75" in _said("threads", [row(1, 50.0), row(2, 75.0)])


def test_threads_are_compared_by_elapsed_time(run, network, monkeypatch):
    known = device.describe()
    several = dataclasses.replace(known, usable_cores=max(2, known.usable_cores))
    monkeypatch.setattr(device, "describe", lambda *_: several)
    result = run("profile", network, "--sweep", "threads=1,2", *FAST, "--json")
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)["sweeps"]
    one, two = found["rows"]
    assert one["clock"] == two["clock"] == "wall"
    assert two["speedup"] == pytest.approx(one["p50_s"] / two["p50_s"])
    assert two["efficiency"] == pytest.approx(two["speedup"] / 2)


def test_what_cannot_be_run_is_refused(run, network, tmp_path):
    fixed = tmp_path / "fixed.onnx"
    onnx.save(make_network(batch=2), fixed)
    for path, what, said in (
        (network, "batch=0", "numbers from 1 on"),
        (network, "rows=2", "is asked for as batch=1,2,4,8"),
        (network, "batch=2,2", "names a number twice"),
        (network, "threads=100000", "cores only wait for each other"),
        (fixed, "batch=1,4", "is fixed"),
    ):
        result = run("profile", path, "--sweep", what, *FAST)
        assert result.exit_code == 2, (what, result.output)
        assert said in result.stderr
    both = run("profile", network, "--sweep", "batch=1,2", "--batch", "3", *FAST)
    assert both.exit_code == 2
    assert "Leave one out" in both.stderr


def test_sweeps_as_text():
    assert parse_sweep("threads=1,2") == Sweep("threads", (1, 2))
    with pytest.raises(UsageError):
        parse_sweep("threads=")
