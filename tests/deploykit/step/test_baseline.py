"""The result against the last accepted one: what is worse, what cannot be said, and how rarely it is said wrongly."""

from __future__ import annotations

import dataclasses
import json

import pytest

from deploykit.errors import UsageError
from deploykit.report.records import Count, SourceRecord
from deploykit.step import baseline, report_file
from deploykit.step.records import AccuracyRecord
from deploykit.step.secrets import Secrets
from tests.deploykit.step.results import make_profile, make_report, make_result


@pytest.fixture
def accept(tmp_path):
    """Writes the report of a result that was accepted."""

    def write(result):
        (tmp_path / "report.json").write_text(
            report_file.to_json(result, Secrets({})), encoding="utf-8"
        )
        return baseline.read(tmp_path)

    return write


def held(accepted, **changes):
    now = make_result()
    given = {
        "report": now.report,
        "profiles": now.profiles,
        "accuracy": now.accuracy,
        **changes,
    }
    found = baseline.compare(accepted, **given)
    return found, {(row.what, row.device): row for row in found.rows}


def test_the_same_result_is_no_regression(accept):
    found, rows = held(accept(make_result()))
    assert found.ok
    assert not found.notes
    assert set(rows) == {
        *(("time", "here"), ("time", "nano"), ("accuracy", None)),
        *((what, None) for what in ("bytes", "parameters", "macs")),
    }
    assert all(row.ratio == pytest.approx(1.0) for row in rows.values())


def test_what_is_slower_is_told_from_a_machine_that_is_slower(accept):
    accepted = accept(make_result())
    # Everything takes 1.5 times as long as on the other occasion; the result on "nano" 10 % more than that.
    profiles = {
        "here": make_profile(0.5, seed=3, machine=1.5),
        "nano": make_profile(0.55, seed=4, machine=3.0, fingerprint="f1"),
    }
    found, rows = held(accepted, profiles=profiles)
    assert not found.ok
    assert not rows["time", "here"].regressed
    row = rows["time", "nano"]
    assert row.regressed
    assert row.ci95[0] > 1.0
    assert row.ratio == pytest.approx(1.1, abs=0.02)
    assert "slower" in row.said


def test_a_faster_result_is_no_regression(accept):
    found, rows = held(accept(make_result()), profiles={"here": make_profile(0.4, seed=5)})
    assert found.ok
    assert rows["time", "here"].ci95[1] < 1.0
    assert any("'nano'" in note for note in found.notes)


def test_noise_alone_is_rarely_called_a_regression(accept):
    accepted = accept(make_result(profiles={"here": make_profile(seed=100, noise=0.03)}))
    wrong = 0
    for seed in range(60):
        profile = make_profile(seed=seed, noise=0.03, machine=1 + seed / 60)
        wrong += not held(accepted, profiles={"here": profile})[0].ok
    # One side of a 95 % interval: 2.5 % are expected at most; more than 5 of 60 come by chance one time in a thousand.
    assert wrong <= 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": {"fingerprint": "other"}}, "devices or runtimes differ"),
        ({"threads": 2}, "threads were 1"),
        ({"runtime": "tensorrt 10"}, "the runtime was"),
        ({"inputs": ()}, "inputs had other sizes"),
    ],
)
def test_times_that_cannot_be_compared_are_not(accept, change, reason):
    now = {"here": dataclasses.replace(make_profile(5.0), **change)}
    found, rows = held(accept(make_result()), profiles=now)
    assert found.ok
    assert ("time", "here") not in rows
    assert any(reason in note for note in found.notes)


def test_another_original_is_said(accept):
    profile = make_profile(5.0)
    original = dataclasses.replace(profile.models[0], sha256="c" * 64)
    report = make_report(source=SourceRecord("model.onnx", "c" * 64))
    changed = dataclasses.replace(profile, models=(original, profile.models[1]))
    found, rows = held(accept(make_result()), profiles={"here": changed}, report=report)
    assert ("time", "here") not in rows
    assert any("another original" in note for note in found.notes)
    assert any("two models" in note for note in found.notes)


def test_accuracy_and_size_are_compared_plainly(accept):
    accepted = accept(make_result())
    size = dataclasses.replace(
        make_report().size, parameters=Count(4000, 2100), bytes=Count(1, 8001)
    )
    worse = AccuracyRecord("top1", 0.95, 0.93, higher_is_better=True, examples=360)
    found, rows = held(accepted, report=make_report(size=size), accuracy=worse)
    regressed = {what for (what, _), row in rows.items() if row.regressed}
    assert regressed == {"accuracy", "parameters"}
    assert not found.ok
    # An interval that holds the accepted figure proves nothing.
    unsure = dataclasses.replace(worse, ci95=(0.90, 0.95))
    assert not held(accepted, accuracy=unsure)[1]["accuracy", None].regressed
    # Of an error the lower figure is the better one.
    error = AccuracyRecord("top1", 0.95, 0.93, higher_is_better=False, examples=360)
    assert not held(accepted, accuracy=error)[1]["accuracy", None].regressed
    other = dataclasses.replace(worse, examples=10)
    assert any("360 examples" in note for note in held(accepted, accuracy=other)[0].notes)


def test_a_report_that_missed_its_own_gates_is_pointed_out(accept):
    found, _ = held(accept(make_result(gates=("ratio <= 0.1",))))
    assert any("missed" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "no report of a result"),
        ('{"kind": "profile", "schema_version": "1.0"}', "no report of a result"),
        ('{"candidates": [], "source": {}, "schema_version": "7.0"}', "schema version 7.0"),
        ('{"candidates": [], "source": {}, "schema_version": "1.0"}', "not a whole report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, reason):
    (tmp_path / "b.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        baseline.read(tmp_path / "b.json")
    with pytest.raises(UsageError, match="No such file"):
        baseline.read(tmp_path / "missing.json")


def test_a_report_of_optimize_serves_too(tmp_path, accept):
    accepted = accept(make_result())
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    samples = {
        which: {key: model["samples"][key] for key in ("wall_s", "cpu_s", "rebuild")}
        for which, model in zip(
            ("baseline", "optimized"),
            document.pop("step")["profiles"]["here"]["models"],
            strict=True,
        )
    }
    document["profile"] = {
        "ratio": {"median": 0.5, "ci95": [0.49, 0.51]},
        "threads": 1,
        "runtime": "onnxruntime 1",
        "device": {"fingerprint": "f0"},
        "samples": samples,
    }
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    plain = baseline.read(tmp_path)
    assert plain.sha256 != accepted.sha256
    found, rows = held(plain, profiles={"here": make_profile(0.6, seed=6)})
    assert rows["time", "here"].regressed
    assert not found.ok
