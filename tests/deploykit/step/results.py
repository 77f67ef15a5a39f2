"""Results of steps with samples that were drawn, and not measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from deploykit.profile.statistics import Timings, paired_ratio
from deploykit.profiling import relative_row
from deploykit.recipe import Recipe
from deploykit.report import profile_records as p
from deploykit.report import records as r
from deploykit.step.figures import Figures
from deploykit.step.gates import evaluate, parse_gate
from deploykit.step.records import (
    AccuracyRecord,
    DeviceSpec,
    MeasureSpec,
    StageRecord,
    StepRecipe,
    StepResult,
)

ROUNDS, REBUILDS = 60, 3
GATES = ("p95 <= 5 ms", "ratio <= 0.6", "max_error <= 1e-3", "accuracy >= 0.98 * baseline")


def make_profile(ratio=0.5, *, seed=0, machine=1.0, noise=0.01, fingerprint="f0", **changes):
    """Original and result in turns, on a machine that is `machine` times as slow as usual."""
    dice = np.random.default_rng(seed)
    rebuild = np.repeat(np.arange(REBUILDS), ROUNDS // REBUILDS)
    original = 0.004 * machine * np.exp(noise * dice.standard_normal(ROUNDS))
    # What the machine does in a round it does to both.
    result = original * ratio * np.exp(noise * dice.standard_normal(ROUNDS))
    models, timings = [], []
    for name, seconds in (("original", original), ("result", result)):
        timings.append(Timings(rebuild, seconds, seconds))
        p50, p90, p95, p99 = (float(each) for each in np.percentile(seconds, (50, 90, 95, 99)))
        models.append(
            p.ProfiledModel(
                name=name,
                path=f"{name}.onnx",
                sha256=("a" if name == "original" else "b") * 64,
                bytes=1000,
                latency=r.LatencyRow(p50, p90, p95, p99, ROUNDS),
                load_s=0.01,
                memory_bytes=2**20,
                outliers=(),
                samples=p.SampleRecord(
                    tuple(map(float, seconds)),
                    tuple(map(float, seconds)),
                    tuple(map(int, rebuild)),
                    (),
                    (),
                    (0.01,),
                ),
            )
        )
    found = paired_ratio(*timings)
    report = p.ProfileReport(
        command="deploykit run recipe.toml",
        versions={"deploykit": "0.1.0"},
        models=tuple(models),
        relative=(relative_row("result", "original", found, paired=True),),
        inputs=(p.InputRow("x", "float32", (1, 8)),),
        clock=found.clock,
        clean_share=found.clean_share,
        threads=1,
        runtime="onnxruntime 1",
        providers=("CPUExecutionProvider",),
        settings={},
        device={"cpu": "chip", "fingerprint": fingerprint},
        warnings=(),
        elapsed_s=1.0,
    )
    return dataclasses.replace(report, **changes)


def make_report(**changes):
    report = r.Report(
        command="deploykit run recipe.toml",
        versions={"deploykit": "0.1.0"},
        source=r.SourceRecord("model.onnx", "a" * 64),
        model="build/model.onnx",
        target="generic",
        passes=(),
        size=r.Size(
            r.Count(4000, 2000), r.Count(16000, 8000), r.Count(9000, 5000), r.Count(9, 9)
        ),
        validation=r.ValidationRecord(1e-6, 2e-6, 5, "equal", 1e-4, "y"),
        candidates=(),
        profile=None,
        layers=(),
        verdict="faster",
        reason="it is faster",
    )
    return dataclasses.replace(report, **changes)


def make_result(*, gates=GATES, ratio=0.5, folder=Path("/data"), **changes):
    """A step that ran on the devices "here" and "nano"; the second is twice as slow."""
    profiles = {
        "here": make_profile(ratio, seed=1),
        "nano": make_profile(ratio, seed=2, machine=2.0, fingerprint="f1"),
    }
    report = make_report()
    accuracy = AccuracyRecord("top1", 0.95, 0.94, higher_is_better=True, examples=360)
    parsed = tuple(parse_gate(text) for text in gates)
    result = StepResult(
        recipe=StepRecipe(
            path=folder / "recipe.toml",
            extends=(),
            name="digits",
            model=str(folder / "model.onnx"),
            files=(),
            output=folder / "build",
            optimize=Recipe(),
            measure=MeasureSpec(),
            devices=(DeviceSpec("here", "here"), DeviceSpec("ssh://u@nano", "nano")),
            accuracy=None,
            gates=parsed,
        ),
        stages=(
            StageRecord("optimize", "1" * 64, {"model": "a"}, "cached", 3.5),
            StageRecord("profile here", "2" * 64, {"model": "a"}, "ran", 2.0, "never ran"),
        ),
        gates=evaluate(parsed, Figures(report, tuple(profiles), profiles, accuracy)),
        report=report,
        profiles=profiles,
        accuracy=accuracy,
        versions={"deploykit": "0.1.0", "onnxruntime": "1.31.1"},
        is_new=True,
        elapsed_s=5.5,
    )
    return dataclasses.replace(result, **changes)
