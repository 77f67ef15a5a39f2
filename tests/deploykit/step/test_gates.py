"""Gates: what they say, the figures they are held against, and their intervals."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.step.figures import Figures
from deploykit.step.gates import METRICS, check_together, evaluate, parse_gate, value_text
from deploykit.step.records import AccuracyRecord, Gate
from tests.deploykit.step.results import make_profile, make_report


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p95 <= 4 ms", ("p95", "<=", 0.004, "ms", False, None)),
        ("p99<250us", ("p99", "<", 250e-6, "us", False, None)),
        ("nano: memory <= 64 MiB", ("memory", "<=", 64 * 2.0**20, "MiB", False, "nano")),
        ("bytes < 1_000_000", ("bytes", "<", 1e6, "", False, None)),
        ("ratio <= .6", ("ratio", "<=", 0.6, "", False, None)),
        ("max_error <= 1e-3", ("max_error", "<=", 1e-3, "", False, None)),
        ("accuracy >= 0.98 * baseline", ("accuracy", ">=", 0.98, "", True, None)),
        ("accuracy >= baseline", ("accuracy", ">=", 1.0, "", True, None)),
        ("me@pi-5: p50 <= baseline * 0.5", ("p50", "<=", 0.5, "", True, "me@pi-5")),
        ("accuracy > -3.5", ("accuracy", ">", -3.5, "", False, None)),
    ],
)
def test_gates_are_read(text, expected):
    gate = parse_gate(text)
    metric, operator, limit, unit, is_relative, device = expected
    assert gate == Gate(text, metric, operator, pytest.approx(limit), unit, is_relative, device)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no gate"),
        ("p95", "has no operator"),
        ("p95 <=", "it has no limit"),
        ("p95 <= fast", "'fast' is no limit"),
        ("p95 <= 4 ms 3", "is no limit"),
        ("p95 <= nan ms", "is no limit"),
        ("p95 <= 4 Ms", "has the unit 'Ms'"),
        ("p95 <= 4 ms * baseline", "has a unit and is relative"),
        (": p95 <= 4 ms", "names no device"),
        ("nano: bytes <= 4 MB", "the same on all"),
        ("ratio <= 0.5 * baseline", "relative to the original as it is"),
        ("p95 > 0 ms", "is always met"),
        ("macs < 0", "can never be met"),
        ("accuracy >= 0 * baseline", "is always met"),
    ],
)
def test_what_is_no_gate_is_told(text, message):
    with pytest.raises(UsageError, match=message):
        parse_gate(text)


@pytest.mark.parametrize(
    ("texts", "is_fault"),
    [
        (("p95 <= 4 ms", "p95 >= 5 ms"), True),
        (("p95 < 4 ms", "p95 >= 4 ms"), True),
        (("p95 <= 4 ms", "p95 >= 4 ms"), False),
        (("p95 <= 4 ms", "p95 <= 5 ms"), False),
        (("p95 <= 4 ms", "p95 <= 4 ms"), True),
        (("a: p95 <= 4 ms", "b: p95 >= 5 ms"), False),
        (("a: p95 <= 4 ms", "p95 >= 5 ms"), True),
        (("p95 <= 4 ms", "p95 >= 0.5 * baseline"), False),
    ],
)
def test_gates_that_exclude_each_other_are_found(texts, is_fault):
    assert (check_together([parse_gate(text) for text in texts]) is not None) == is_fault


def figures(ratio=0.5, **given):
    profiles = {"here": make_profile(ratio), "nano": make_profile(0.9, seed=1)}
    return Figures(make_report(), tuple(profiles), profiles, **given)


def results(*texts, found=None):
    return evaluate([parse_gate(text) for text in texts], found or figures())


def test_a_gate_is_held_on_every_device_or_on_the_one_it_names():
    rows = results("ratio <= 0.6", "nano: ratio <= 0.95", "parameters <= baseline")
    assert [(row.device, row.passed) for row in rows] == [
        ("here", True),
        ("nano", False),
        ("nano", True),
        (None, True),
    ]


def test_figures_are_those_of_the_result_and_shares_those_of_the_original():
    found = figures()
    original, result = found.profiles["here"].models
    absolute, relative = (
        row for row in results("p95 <= 3 ms", "p95 <= 0.7 * baseline") if row.device == "here"
    )
    assert absolute.figure == relative.figure == result.latency.p95_s
    assert relative.limit == pytest.approx(0.7 * original.latency.p95_s)
    assert absolute.passed
    assert relative.passed


def test_the_interval_of_a_percentile_covers_it():
    """On samples of a known distribution, whose median is 2 ms: in about 95 of 100 measurements."""
    hits = 0
    for seed in range(100):
        profile = make_profile(0.5, seed=seed)
        (row,) = evaluate(
            [parse_gate("p50 <= 1 s")], Figures(make_report(), ("here",), {"here": profile})
        )
        lo, hi = row.ci95
        hits += lo <= 0.002 <= hi
        assert lo <= row.figure <= hi
        assert hi - lo < 0.02 * 0.002, "and it is not wide because nothing is known"
    assert hits >= 88


def test_a_share_is_compared_in_the_same_rounds():
    """What the machine does to both falls out, so that the interval is narrower than that of the figure alone."""
    profile = make_profile(0.5, noise=0.001)
    dice = np.random.default_rng(3)
    busy = np.exp(0.5 * dice.random(len(profile.models[0].samples.wall_s)))
    models = tuple(
        dataclasses.replace(
            model,
            samples=dataclasses.replace(
                model.samples,
                wall_s=tuple(np.asarray(model.samples.wall_s) * busy),
                cpu_s=tuple(np.asarray(model.samples.cpu_s) * busy),
            ),
        )
        for model in profile.models
    )
    found = Figures(
        make_report(), ("here",), {"here": dataclasses.replace(profile, models=models)}
    )
    widths = []
    for text in ("p50 <= 1 s", "p50 <= 0.9 * baseline"):
        (row,) = evaluate([parse_gate(text)], found)
        widths.append(row.ci95[1] - row.ci95[0])
    assert widths[1] < widths[0] / 10


def test_a_close_figure_is_told_as_close():
    row = next(row for row in results("ratio <= 0.5") if row.device == "here")
    assert row.is_close
    assert "reaches over the limit" in row.note
    far = next(row for row in results("ratio <= 0.7") if row.device == "here")
    assert not far.is_close
    assert far.note == ""


def test_what_is_not_known_is_not_met():
    report = dataclasses.replace(make_report(), validation=None)
    nothing = Figures(report, ("here",), {})
    rows = results(
        *("p95 <= 1 s", "max_error <= 1", "accuracy >= 0.1", "ratio <= 1"), found=nothing
    )
    assert [row.passed for row in rows] == [False] * 4
    assert all(row.figure is None and row.note for row in rows)
    bad = AccuracyRecord("m", original=0.5, optimized=0.4, higher_is_better=True)
    (row,) = results("accuracy >= 0.9 * baseline", found=figures(accuracy=bad))
    assert (row.figure, row.limit, row.passed) == (0.4, pytest.approx(0.45), False)


def test_every_metric_has_a_figure():
    found = figures(accuracy=AccuracyRecord("m", 0.5, 0.5, higher_is_better=True))
    for name, metric in METRICS.items():
        device = "here" if metric.of == "device" else None
        assert found.find(name, device).value is not None, name


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00404, "s", "4.04 ms"),
        (33.8e3, "B", "33.8 KB"),
        (1.0, "s", "1 s"),
        (1e-7, "s", "0.1 us"),
        (1234567.0, "", "1,234,567"),
        (0.92641, "", "0.9264"),
        (None, "s", "-"),
        (math.nan, "", "-"),
    ],
)
def test_figures_are_shown_in_units_that_suit_them(value, unit, text):
    assert value_text(value, unit) == text
