"""The figures that gates are held against, each with that of the original and its 95 % interval where one is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from deploykit.report.profile_records import ProfiledModel, ProfileReport
    from deploykit.report.records import Report
    from deploykit.step.records import AccuracyRecord

__all__ = ["Figure", "Figures"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 2000
PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
P99_SAMPLES = 100


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the result.

    Attributes:
        value: in seconds or bytes where it is a time or a size; None if it is not known.
        baseline: the same of the original; None if it has none.
        ci95: 95 % interval of `value`; None where none is known, or the value is exact.
        note: why it is not known, or what weakens it.
    """

    value: float | None
    baseline: float | None = None
    ci95: tuple[float, float] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was found about a result.

    Attributes:
        report: of the optimization.
        devices: names of the devices that something was to be measured on.
        profiles: original and result measured in turns, by device.
        accuracy: how good both are; None if that was not looked at.
    """

    report: Report
    devices: tuple[str, ...]
    profiles: Mapping[str, ProfileReport]
    accuracy: AccuracyRecord | None = None

    def find(self, metric: str, device: str | None, *, relative: bool = False) -> Figure:
        """The figure of a metric.

        Args:
            metric: a name of `gates.METRICS`.
            device: where it was measured; None where devices make no difference.
            relative: whether it is to be held against that of the original: its interval is that of such a comparison.
        """
        if device is not None and device in self.profiles:
            return _measured(self.profiles[device], metric, relative=relative)
        if metric == "accuracy" and self.accuracy is not None:
            # Both were tried on the same examples, which an interval of one of them does not know.
            ci95 = None if relative else self.accuracy.ci95
            return Figure(self.accuracy.optimized, self.accuracy.original, ci95)
        if device is not None or metric == "accuracy":
            return Figure(None, note="nothing was run: the outputs differ from the original's")
        return _counted(self.report, metric)


def _measured(profile: ProfileReport, metric: str, *, relative: bool) -> Figure:
    original, result = profile.models
    note = ""
    if profile.clock == "cpu":
        note = "by processor time, because the machine was busy"
    if metric == "ratio":
        (row,) = profile.relative
        return Figure(row.ratio, None, row.ci95, note)
    if metric == "load":
        return Figure(result.load_s, original.load_s)
    if metric == "memory":
        if result.memory_bytes is None:
            return Figure(None, None, None, "memory is not known there")
        baseline = original.memory_bytes
        return Figure(float(result.memory_bytes), None if baseline is None else float(baseline))
    value, baseline = (getattr(each.latency, f"{metric}_s") for each in (result, original))
    if metric == "p99" and result.latency.samples < P99_SAMPLES:
        few = f"{result.latency.samples} runs are few for a 99th percentile: measure longer"
        note = "; ".join(filter(None, (note, few)))
    return Figure(value, baseline, _interval(profile, metric, relative=relative), note)


def _interval(
    profile: ProfileReport, metric: str, *, relative: bool
) -> tuple[float, float] | None:
    """95 % interval of a percentile: a bootstrap over the rounds of each build of the sessions.

    Both models were timed in the same rounds. Where the limit is a share of the original's percentile, rounds are drawn for
    both at once, so that what the machine did in a round falls out of the comparison.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall, 1993, chapter 13.
    """
    original, result = (_seconds(each, profile.clock) for each in profile.models)
    rebuild = np.asarray(profile.models[1].samples.rebuild)
    if result.size < 2 or rebuild.size != result.size:
        return None
    dice = np.random.default_rng(0)
    rounds = np.concatenate(
        [
            dice.choice(
                np.flatnonzero(rebuild == which), (RESAMPLES, int(np.sum(rebuild == which)))
            )
            for which in np.unique(rebuild)
        ],
        axis=1,
    )
    share = PERCENTILES[metric]
    drawn = np.percentile(result[rounds], share, axis=1)
    if relative:
        before = np.percentile(original[rounds], share, axis=1)
        drawn = drawn / before * np.percentile(original, share)
    lo, hi = (float(each) for each in np.percentile(drawn, (2.5, 97.5)))
    return lo, hi


def _seconds(model: ProfiledModel, clock: str) -> Floats:
    samples = model.samples
    return np.asarray(samples.cpu_s if clock == "cpu" else samples.wall_s, dtype=np.float64)


def _counted(report: Report, metric: str) -> Figure:
    if metric in {"max_error", "max_abs_error"}:
        found = report.validation
        if found is None:
            return Figure(None, note="the outputs were not compared")
        value = found.max_rel_error if metric == "max_error" else found.max_abs_error
        if not math.isfinite(value):
            return Figure(None, note="the outputs are not finite where the original's are")
        return Figure(value)
    count = {
        "bytes": report.size.bytes,
        "parameters": report.size.parameters,
        "macs": report.size.macs,
    }[metric]
    if count.after is None:
        return Figure(None, note="it could not be counted")
    return Figure(float(count.after), None if count.before is None else float(count.before))
