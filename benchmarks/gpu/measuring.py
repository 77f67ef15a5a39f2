"""Times the forms of a network in one runtime, and compares what they compute with ONNX Runtime on the CPU.

A row says what ran, where and in what. What did not run is a row, too, with the reason; nothing is filled in for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from benchmarks.gpu import forms
from deploykit.errors import DeploykitError
from deploykit.profile import Settings, measure
from deploykit.runtimes import onnxruntime as ort
from deploykit.runtimes.trtexec import read_times

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.profile import Measurement
    from deploykit.runtimes import Runner

__all__ = [
    "CUDA",
    "Row",
    "Saved",
    "save",
    "time_in_onnxruntime",
    "time_in_runner",
    "time_trtexec",
]

Row: TypeAlias = dict[str, Any]

CUDA = "CUDAExecutionProvider"
QUICK = Settings(warmup_s=0.05, duration_s=0.2, min_rounds=6, rebuilds=1)
FULL = Settings(warmup_s=0.5, duration_s=3.0, min_rounds=30, rebuilds=3)


@dataclasses.dataclass(frozen=True)
class Saved:
    """The forms of a network on disk.

    Attributes:
        paths: the file of each form in fp16.
        feeds: an input for all of them.
        expected: what each form computes in fp32 on the CPU.
    """

    paths: Mapping[str, Path]
    feeds: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


def save(network: str, batch: int, folder: Path) -> Saved:
    """Make and write all forms of a network."""
    paths, expected = {}, {}
    feeds: dict[str, np.ndarray] = {}
    for form in forms.FORMS:
        model = forms.make(network, form, batch)
        if not feeds:
            (value,) = model.graph.inputs
            shape = tuple(int(size) for size in value.shape)
            data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            feeds = {value.name: data}
        exact = folder / f"{form.replace(' ', '-').replace(':', '-')}.fp32.onnx"
        ir.save(model, exact)
        with ort.Session(exact, optimization="none") as session:
            (expected[form],) = session.run(feeds).values()
        paths[form] = exact.with_suffix("").with_suffix(".fp16.onnx")
        ir.save(forms.halve(model), paths[form])
        exact.unlink()
    return Saved(paths, feeds, expected)


def time_in_runner(saved: Saved, runner: Runner, *, quick: bool) -> list[Row]:
    """Time the forms in a runtime of engines, or of layers."""
    rows, sound = [], {}
    for form, path in saved.paths.items():
        row: Row = {"form": form, "runtime": runner.about}
        try:
            with contextlib.closing(runner.open(path, saved.feeds)) as session:
                outputs = session.run(None, saved.feeds)
            if outputs:
                row["error"] = error(outputs[0], saved.expected[form])
            verdict = runner.sparse_verdict(path, saved.feeds)
            row["sparse"] = None if verdict is None else dataclasses.asdict(verdict)
            sound[form] = path
        except DeploykitError as refused:
            row["reason"] = str(refused)
        rows.append(row)
    _time(rows, sound, saved, quick=quick, runner=runner)
    # Of the dense form, whose weights are reduced for this: what each layer would take.
    if "dense" in sound:
        times = runner.sparse_times(sound["dense"], saved.feeds)
        rows[0]["layers"] = [dataclasses.asdict(each) for each in times]
    return rows


def time_in_onnxruntime(saved: Saved, *, quick: bool) -> list[Row]:
    """Time the forms in ONNX Runtime on CUDA, where its package can."""
    rows, sound = [], {}
    providers = (CUDA, ort.CPU)
    for form, path in saved.paths.items():
        row: Row = {"form": form, "runtime": f"onnxruntime {ort.load().__version__} {CUDA}"}
        try:
            # A session that fell back to the CPU is an error here.
            with ort.Session(path, providers=providers) as session:
                (found,) = session.run(saved.feeds).values()
            row["error"] = error(found, saved.expected[form])
            sound[form] = path
        except DeploykitError as refused:
            row["reason"] = str(refused)
        rows.append(row)
    _time(rows, sound, saved, quick=quick, providers=providers)
    return rows


def time_trtexec(saved: Saved, *, quick: bool) -> list[Row]:
    """Time the forms with NVIDIA's own tool, if it is on the path: a check of our clock."""
    tool = shutil.which("trtexec")
    if tool is None:
        reason = "trtexec is not on the path: it comes with the archives of TensorRT, not with its Python packages"
        return [{"form": form, "runtime": "trtexec", "reason": reason} for form in saved.paths]
    rows = []
    for form, path in saved.paths.items():
        row: Row = {"form": form, "runtime": "trtexec"}
        with tempfile.TemporaryDirectory() as folder:
            times = Path(folder) / "times.json"
            done = subprocess.run(
                [
                    *(tool, f"--onnx={path}", "--sparsity=enable", f"--exportTimes={times}"),
                    *("--stronglyTyped", f"--duration={1 if quick else 5}"),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not times.exists():
                row["reason"] = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            else:
                found = read_times(times.read_text(encoding="utf-8"))
                row["p50_ms"] = float(np.median(found.compute_s)) * 1e3
                row["clock"] = "device"
        rows.append(row)
    return rows


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, over what the expected output moves by."""
    spread = float(expected.std()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / spread


def _time(
    rows: Sequence[Row],
    sound: Mapping[str, Path],
    saved: Saved,
    *,
    quick: bool,
    runner: Runner | None = None,
    providers: Sequence[str] = (ort.CPU,),
) -> None:
    """Time the forms that run, in turns, and put the times into their rows."""
    if not sound:
        return
    try:
        measured = measure(
            sound,
            saved.feeds,
            threads=None,
            settings=QUICK if quick else FULL,
            providers=providers,
            runner=runner,
        )
    except DeploykitError as refused:
        for row in rows:
            row.setdefault("reason", str(refused))
        return
    for row in rows:
        if row["form"] in sound:
            row.update(_figures(measured, row["form"]))


def _figures(measured: Measurement, form: str) -> Row:
    latency = measured.latencies[form]
    found: Row = {
        "p50_ms": latency.p50_s * 1e3,
        "p99_ms": latency.p99_s * 1e3,
        "samples": latency.samples,
        "clock": measured.clock,
        "device": ", ".join(measured.providers),
    }
    ratio = measured.ratios.get(form)
    if ratio is not None and measured.baseline == "dense":
        found["ratio"], found["ci95"] = ratio.median, [ratio.lo, ratio.hi]
    return found
