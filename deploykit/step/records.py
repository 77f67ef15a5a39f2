"""What a step is told, and what it has to say, as frozen data. Documents are made of these, and of nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.errors import GateFailed

if TYPE_CHECKING:
    from deploykit.recipe import Recipe
    from deploykit.report.profile_records import ProfileReport
    from deploykit.report.records import Report

__all__ = [
    "SCHEMA_VERSION",
    "AccuracyRecord",
    "AccuracySpec",
    "BaselineComparison",
    "BaselineRow",
    "DeviceSpec",
    "Gate",
    "GateResult",
    "MeasureSpec",
    "StageRecord",
    "StepRecipe",
    "StepResult",
]

SCHEMA_VERSION = "1.0"
"""Of recipes, manifests and results."""

Operator: TypeAlias = Literal["<=", "<", ">=", ">"]
State: TypeAlias = Literal["cached", "ran", "failed", "stale"]


@dataclasses.dataclass(frozen=True)
class DeviceSpec:
    """A place where the model is measured.

    Attributes:
        on: "here", an address as `ssh://host`, or a name of devices.toml.
        name: what gates, documents and tables call it; unique in a recipe.
    """

    on: str
    name: str


@dataclasses.dataclass(frozen=True)
class AccuracySpec:
    """How good a model is at its task is found by this.

    Attributes:
        metric: `module:function`, or the name of a built-in metric.
        data: the file that it is given; None if it needs none.
        higher_is_better: whether a higher figure is a better one.
    """

    metric: str
    data: Path | None = None
    higher_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class MeasureSpec:
    """How long models are measured, in seconds, and how often their sessions are built anew."""

    duration_s: float = 3.0
    warmup_s: float = 0.2
    rebuilds: int = 3


@dataclasses.dataclass(frozen=True)
class Gate:
    """What the result must be like.

    Attributes:
        text: as it was written.
        metric: what is looked at, as "p95" or "accuracy".
        operator: how the figure is compared with the limit.
        limit: the number, in seconds or bytes where it is a time or a size; a factor if `is_relative`.
        unit: the unit as it was written ("ms", "MB"); empty without one.
        is_relative: whether the limit is `limit` times the figure of the original model.
        device: the device that it is about; None for all of them, or where devices make no difference.
    """

    text: str
    metric: str
    operator: Operator
    limit: float
    unit: str = ""
    is_relative: bool = False
    device: str | None = None


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What became of a gate on a device.

    Attributes:
        gate: the gate.
        device: name of the device that the figure is from; None where devices make no difference.
        figure: what was found, in the unit of `limit`; None if it could not be found.
        ci95: its 95 % interval; None where none is known.
        limit: what it was compared with, in seconds or bytes where it is a time or a size.
        baseline: the same figure of the original model; None if there is none.
        unit: "s", "B" or empty: that of figure, ci95, limit and baseline.
        passed: whether the gate is met.
        note: what else should be known, in words; why it failed where there is no figure.
    """

    gate: Gate
    device: str | None
    figure: float | None
    ci95: tuple[float, float] | None
    limit: float
    baseline: float | None
    unit: str
    passed: bool
    note: str = ""

    @property
    def metric(self) -> str:
        """What was looked at."""
        return self.gate.metric

    @property
    def is_close(self) -> bool:
        """Whether the interval of the figure reaches over the limit."""
        return self.ci95 is not None and self.ci95[0] <= self.limit <= self.ci95[1]


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """A stage of the step, and what became of it.

    Attributes:
        name: "export", "optimize", "profile NAME" or "accuracy".
        key: hash of all that decides its result.
        components: what that hash is made of, by name.
        state: "cached" if an earlier result was taken, "ran", "failed", or "stale" where nothing is run: it would be.
        seconds: what it took; of a cached one, what it took when it ran.
        why: why it ran, or would run, in words; empty for a cached one.
    """

    name: str
    key: str
    components: Mapping[str, str]
    state: State
    seconds: float
    why: str = ""


@dataclasses.dataclass(frozen=True)
class AccuracyRecord:
    """How good both models are at their task.

    Attributes:
        metric: what was asked for.
        original: figure of the original model.
        optimized: figure of the optimized model.
        higher_is_better: whether a higher figure is a better one.
        examples: how many examples both were tried on; None if the metric does not say.
        ci95: 95 % interval of `optimized`; None where none is known.
    """

    metric: str
    original: float
    optimized: float
    higher_is_better: bool
    examples: int | None = None
    ci95: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class BaselineRow:
    """A figure of the result against that of the last accepted one.

    Attributes:
        what: "time", "accuracy", "bytes", "parameters" or "macs".
        device: name of the device; None where devices make no difference.
        before: figure of the accepted result; of times, its ratio to the original.
        after: the same of this one.
        ratio: after over before; None where that cannot be said.
        ci95: its 95 % interval; None where none is known.
        regressed: whether it is proven worse.
        said: all of it in words.
    """

    what: str
    device: str | None
    before: float | None
    after: float | None
    ratio: float | None
    ci95: tuple[float, float] | None
    regressed: bool
    said: str


@dataclasses.dataclass(frozen=True)
class BaselineComparison:
    """The result against the last accepted one.

    Attributes:
        path: its report, as it was named.
        sha256: hash of that file.
        rows: figures that were compared.
        notes: what was not compared and why, in words.
    """

    path: str
    sha256: str
    rows: tuple[BaselineRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is proven worse."""
        return not any(row.regressed for row in self.rows)


@dataclasses.dataclass(frozen=True)
class StepRecipe:
    """A recipe, read and checked; all paths are absolute.

    Attributes:
        path: the file.
        extends: files that it builds on, the nearest first.
        name: what it is called; that of the file if it says nothing.
        model: path of a model file, or a PyTorch model as `package.module:object`.
        files: whatever else decides the result.
        output: the result folder.
        optimize: how the model is optimized, with ticket, masks, plan and example inputs in it.
        measure: how long models are measured.
        devices: where; none if nothing is measured after optimizing.
        accuracy: how good models are is found by this; None if it is not looked at.
        gates: what the result must be like.
    """

    path: Path
    extends: tuple[Path, ...]
    name: str
    model: str
    files: tuple[Path, ...]
    output: Path
    optimize: Recipe
    measure: MeasureSpec
    devices: tuple[DeviceSpec, ...]
    accuracy: AccuracySpec | None
    gates: tuple[Gate, ...]

    @property
    def folder(self) -> Path:
        """Where the recipe lies; modules it names are looked for there first."""
        return self.path.parent


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        recipe: what was asked for.
        stages: what was done for it, in order.
        gates: what became of the gates, one row a gate and device.
        report: that of the optimization; None for `--explain`.
        profiles: original and optimized model measured in turns, by device: the original is the first of its models.
        accuracy: how good both models are; None if it was not looked at.
        baseline: the result against the last accepted one; None if none was given.
        versions: versions of deploykit and of the libraries it used.
        warnings: what a user should know.
        is_new: whether the result folder was written; False if all of it was there already.
        elapsed_s: seconds it all took.
    """

    recipe: StepRecipe
    stages: tuple[StageRecord, ...]
    gates: tuple[GateResult, ...] = ()
    report: Report | None = None
    profiles: Mapping[str, ProfileReport] = dataclasses.field(default_factory=dict)
    accuracy: AccuracyRecord | None = None
    baseline: BaselineComparison | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_new: bool = False
    elapsed_s: float = 0.0
    schema_version: str = SCHEMA_VERSION

    @property
    def ok(self) -> bool:
        """Whether the model may ship: every gate is met, its outputs are right, and nothing is proven worse than before."""
        return (
            all(gate.passed for gate in self.gates)
            and (self.report is None or self.report.verdict != "differs")
            and (self.baseline is None or self.baseline.ok)
        )

    @property
    def verdict(self) -> Literal["passed", "failed"]:
        """The same in a word."""
        return "passed" if self.ok else "failed"

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return 0 if self.ok else GateFailed.exit_code

    @property
    def model(self) -> Path | None:
        """The model that may ship: it is only in the result folder if `ok`."""
        return self.recipe.output / "model.onnx" if self.ok and self.report else None
