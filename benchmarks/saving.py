"""Optimize a model with zeros as a user would, and time what comes of it against the dense one.

ONNX Runtime, one thread, warmed up, in turns, sessions built several times; shares of the thread-CPU time with 95 % intervals.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.pipeline import Request, optimize
from deploykit.profile import SCREENING, Settings, measure
from deploykit.profile.statistics import paired_ratio
from deploykit.recipe import Recipe
from passes.analysis.macs import PRODUCTS, node_macs, sized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.profile import Measurement

__all__ = ["Bench", "Row", "feed", "macs_by_kernel", "percent", "saved", "time_ratio", "write"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Row: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """How long models are timed.

    Attributes:
        duration_s: seconds for each model.
        rebuilds: of the sessions.
        is_quick: too short to prove anything.
    """

    duration_s: float = 3.0
    rebuilds: int = 5
    is_quick: bool = False

    @property
    def settings(self) -> Settings:
        """Of a measurement that goes into a table."""
        if self.is_quick:
            return Settings(warmup_s=0.05, duration_s=0.3, min_rounds=6, rebuilds=2)
        return Settings(duration_s=self.duration_s, min_rounds=20, rebuilds=self.rebuilds)

    @property
    def probing(self) -> Settings:
        """Of one of many that only look for something."""
        if self.is_quick:
            return self.settings
        return Settings(duration_s=self.duration_s / 2, rebuilds=3)

    def run(self, dense: ir.Model, zeroed: ir.Model, folder: Path) -> Row:
        """Optimize the zeroed model and time it against the dense one.

        Args:
            dense: fixed shapes, one input named "input".
            zeroed: what is optimized, with all default passes.
            folder: for dense.onnx and the result, out/model.onnx, which there is not if outputs differ.

        Returns:
            "saved", "flops_saved" (shares, the first with its interval), "dense_ms", "kernels" (multiply-adds of both models by
            kernel size), and what the report says. Without "saved" if outputs differ.
        """
        baseline = write(dense, folder / "dense.onnx")
        screening = (
            dataclasses.replace(SCREENING, duration_s=0.1) if self.is_quick else SCREENING
        )
        settings = Settings(duration_s=0.3 if self.is_quick else self.duration_s)
        source = write(zeroed, folder / "zeroed.onnx")
        report = optimize(
            Request(source, Recipe(), "benchmarks", settings=settings, screening=screening),
            folder / "out",
        )
        parameters = report.size.parameters
        chosen = [candidate.name for candidate in report.candidates if candidate.chosen]
        row: Row = {
            "verdict": report.verdict,
            "chosen": chosen[0] if chosen else "original",
            "error": report.validation.max_rel_error if report.validation else None,
            "parameters_left": round((parameters.after or 0) / (parameters.before or 1), 4),
            "optimize_s": round(report.elapsed_s or 0, 1),
            "changes": {each.name: len(each.changes) for each in report.passes if each.changes},
            "skips": [
                [each.name, skip.subject, skip.reason]
                for each in report.passes
                for skip in each.skipped
            ],
        }
        if report.model is None:
            return row
        optimized = folder / "out" / "model.onnx"
        inputs = feed(dense)
        taken = measure(
            {"dense": baseline, "optimized": optimized},
            inputs,
            baseline="dense",
            threads=1,
            settings=self.settings,
        )
        kernels = macs_by_kernel(baseline, optimized, inputs)
        before, after = (sum(macs[index] for macs in kernels.values()) for index in (0, 1))
        return {
            **row,
            "saved": saved(taken, "optimized"),
            "flops_saved": round(1 - after / before, 4),
            "dense_ms": round(1e3 * float(np.median(taken.samples["dense"].cpu_s)), 3),
            "kernels": kernels,
            "rounds": int(taken.samples["dense"].rebuild.size),
            "load": round(os.getloadavg()[0], 2),
        }


def write(model: ir.Model, path: Path) -> Path:
    """Save a model; give its path."""
    ir.save(model, path)
    return path


def feed(model: ir.Model) -> dict[str, Array]:
    """Numbers for its input."""
    value = model.graph.inputs[0]
    assert value.shape is not None, "the benchmarks' models have fixed shapes"
    shape = value.shape.numpy()
    return {"input": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


def saved(taken: Measurement, name: str, baseline: str = "dense") -> list[float]:
    """Share of the baseline's time that a model saves, and the ends of its interval, the lower one first."""
    found = paired_ratio(taken.samples[baseline], taken.samples[name], threads=1, clock="cpu")
    return [round(1 - number, 4) for number in (found.median, found.hi, found.lo)]


def time_ratio(
    candidate: Path, baseline: Path, inputs: Mapping[str, Array], settings: Settings
) -> float:
    """Time of a model over that of another."""
    taken = measure(
        {"baseline": baseline, "candidate": candidate}, inputs, threads=1, settings=settings
    )
    return paired_ratio(
        taken.samples["baseline"], taken.samples["candidate"], threads=1, clock="cpu"
    ).median


def macs_by_kernel(
    dense: Path, optimized: Path, inputs: Mapping[str, Array]
) -> dict[str, list[int]]:
    """Multiply-adds of two models, by the size of the kernels; "linear" has none."""
    found: dict[str, list[int]] = {}
    shapes = {name: array.shape for name, array in inputs.items()}
    for index, path in enumerate((dense, optimized)):
        fixed, sizes = sized(ir.load(path), shapes)
        assert sizes is not None, f"the shapes of {path} are known"
        for node in fixed.graph:
            if node.op_type in PRODUCTS:
                kernel = node.attributes.get("kernel_shape")
                name = "linear" if kernel is None else "x".join(map(str, kernel.as_ints()))
                found.setdefault(name, [0, 0])[index] += node_macs(node, sizes.shape.get) or 0
    return found


def percent(shares: Sequence[float]) -> str:
    """A share and its interval, in percent."""
    median, lo, hi = (100 * number for number in shares)
    return f"{median:.1f} [{lo:.1f}, {hi:.1f}]"
