"""Profiles models: from files and options to a `ProfileReport`.

inputs that suit all models -> measurement in turns -> memory, each in its own process -> layers -> advice
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

import deploykit
from deploykit import model_io
from deploykit.errors import ModelError, UsageError
from deploykit.profile import HERE, Measurement, Place, Settings, device, measure
from deploykit.profile.advice import advise, advise_on_layers
from deploykit.profile.engine_layers import map_layers, read_nodes
from deploykit.profile.state import watch_for
from deploykit.profile.state.during import Course
from deploykit.profile.statistics import find_outliers
from deploykit.report import profile_records as records
from deploykit.report.profile_wording import labels, speed_text
from deploykit.report.records import LatencyRow
from deploykit.report.state_records import course_record
from deploykit.runtimes import DEFAULT, TensorSpec, start
from deploykit.runtimes.onnxruntime import Session
from deploykit.validate import FIRST_SIZES, find_inputs, load_inputs, resolve_shapes

if TYPE_CHECKING:
    from deploykit.profile.layer_times import LayerProfile
    from deploykit.profile.statistics import Ratio, Timings
    from deploykit.report.sparse_records import SparseTime, SparseVerdict
    from deploykit.runtimes import Runner

__all__ = ["Request", "profile", "relative_row", "versions"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feeds: TypeAlias = Mapping[str, Array]

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime")


class Progress(Protocol):
    """Told what is going on, and how far it is."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """A stage begins, or is `done` (0 to 1) of the way."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to profile, and how.

    Attributes:
        models: the model files; ratios are relative to the first.
        command: the command line, for the report.
        shapes: sizes of inputs with dynamic axes, by input.
        batch: size for the batch axis of every input that has one: that with "batch" in its name, or the first one if it
            is dynamic.
        inputs: an .npz file with real inputs, of which the first are used; None to generate some.
        threads: threads of the sessions; None leaves the number to the runtime.
        runtime: what runs the models.
        settings: how long and how often it is measured.
        layers: whether the layers are timed, too.
        place: where they are measured.
        names: what to call the models; none: by what sets their paths apart.
    """

    models: tuple[Path, ...]
    command: str
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    batch: int | None = None
    inputs: Path | None = None
    threads: int | None = 1
    runtime: str = "onnxruntime"
    settings: Settings = dataclasses.field(default_factory=Settings)
    layers: bool = False
    place: Place = HERE
    names: tuple[str, ...] = ()


def silent(stage: str, done: float | None = None) -> None:
    """Progress that nobody watches."""
    del stage, done


def profile(request: Request, *, progress: Progress = silent) -> records.ProfileReport:
    """Measure models against each other, and each by itself.

    Raises:
        UsageError: something that was asked for makes no sense, or the models do not take the same inputs.
        ModelError: a model cannot be read, or does not run.
        RuntimeUnavailable: the runtime is not there.
    """
    began = time.perf_counter()
    place = request.place
    if request.layers and not place.is_local and request.runtime != DEFAULT:
        msg = (
            f"the layers of an engine are timed on this machine only, not on {place.name}: leave out --layers or --runtime, or "
            "run 'deploykit profile --layers' there."
        )
        raise UsageError(msg)
    runner = start(request.runtime) if place.is_local else None
    names = request.names or labels(request.models)
    paths = dict(zip(names, request.models, strict=True))
    progress("reading the models")
    sources = {name: SourceFile.read(path) for name, path in paths.items()}
    feeds, warnings = find_feeds(request, names)
    progress("measuring", 0.0)
    seen_before = place.look()
    before = device.describe(seen_before)
    measured = measure(
        paths,
        feeds,
        threads=request.threads,
        settings=request.settings,
        progress=lambda done: progress("measuring", done),
        runner=runner,
        place=place,
        runtime=request.runtime,
        watch=watch_for(seen_before),
    )
    seen_after = place.look()
    after = device.describe(seen_after)
    course = Course.of(seen_before, measured.states, seen_after, elapsed_s=measured.elapsed_s)
    warnings = [*warnings, *advise(measured, before, after, course)]
    memory: dict[str, int | None] = dict.fromkeys(names)
    if runner is None and request.runtime == DEFAULT:
        progress("measuring memory")
        memory = {
            name: place.memory_peak(path, feeds, threads=request.threads)
            for name, path in paths.items()
        }
    layers: dict[str, LayerProfile] = {}
    sparse: dict[str, Sparse] = {}
    for name, path in paths.items():
        if request.layers:
            progress(f"timing the layers of {name}")
            layers[name] = _profile_layers(request, path, feeds, runner)
            warnings += advise_on_layers(name, layers[name])
        if runner is not None:
            progress(f"looking for sparse kernels in {name}")
            times = runner.sparse_times(path, feeds) if request.layers else ()
            sparse[name] = Sparse(runner.sparse_verdict(path, feeds), times)
    return records.ProfileReport(
        command=request.command,
        versions=versions(),
        models=tuple(
            _model_record(
                name,
                sources[name],
                measured,
                memory_bytes=memory[name],
                layers=layers.get(name),
                sparse=sparse.get(name, Sparse()),
            )
            for name in names
        ),
        relative=tuple(
            relative_row(name, names[0], ratio, paired=True)
            for name, ratio in measured.ratios.items()
        ),
        inputs=tuple(
            records.InputRow(name, str(array.dtype), tuple(array.shape))
            for name, array in feeds.items()
        ),
        clock=measured.clock,
        clean_share=measured.clean_share,
        threads=measured.threads,
        runtime=measured.runtime,
        providers=measured.providers,
        settings=dataclasses.asdict(request.settings),
        device=dataclasses.asdict(before),
        state=course_record(
            course.before,
            course.during,
            course.after,
            run_s=float(np.median(measured.samples[names[0]].wall_s))
            if len(names) == 1
            else None,
        ),
        warnings=tuple(warnings),
        elapsed_s=time.perf_counter() - began,
    )


@dataclasses.dataclass(frozen=True)
class Sparse:
    """What is known of sparse kernels in a model: what a builder chose, and layers timed in both forms."""

    verdict: SparseVerdict | None = None
    times: tuple[SparseTime, ...] = ()


def _profile_layers(
    request: Request, path: Path, feeds: Feeds, runner: Runner | None
) -> LayerProfile:
    """Time the layers of a model in the runtime that was asked for."""
    duration_s = min(1.0, request.settings.duration_s)
    if runner is not None:
        nodes = read_nodes(model_io.load(path).model)
        return map_layers(nodes, runner.profile_layers(path, feeds, duration_s=duration_s))
    from deploykit.profile.layer_times import profile_layers

    return profile_layers(
        path,
        feeds,
        threads=request.threads,
        duration_s=duration_s,
        warmup_s=request.settings.warmup_s,
        place=request.place,
    )


def relative_row(model: str, baseline: str, ratio: Ratio, *, paired: bool) -> records.Relative:
    """A measured ratio as a record, with what may be said of it."""
    return records.Relative(
        model=model,
        baseline=baseline,
        ratio=ratio.median,
        ci95=(ratio.lo, ratio.hi),
        proven=not ratio.lo <= 1.0 <= ratio.hi,
        paired=paired,
        clock=ratio.clock,
        said=speed_text(ratio.median, ratio.lo, ratio.hi),
    )


def versions() -> dict[str, str]:
    """Versions of deploykit and of what it uses."""
    found = {"deploykit": deploykit.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """What is kept of a model that was read and found sound: path, hash and bytes."""

    path: str
    sha256: str
    bytes: int

    @classmethod
    def read(cls, path: Path) -> SourceFile:
        """Read a model as every command does, which refuses what is none, and forget it again."""
        source = model_io.load(path)
        return cls(str(path), source.sha256, sum(file.stat().st_size for file in source.files))


# -- inputs --------------------------------------------------------------------------------------


def find_feeds(request: Request, names: Sequence[str]) -> tuple[Feeds, list[str]]:
    """One set of inputs that all models take, and what should be known about it.

    Sizes that one model leaves open and another one fixes are those of the other.

    Args:
        request: the models, and what was asked for.
        names: what to call the models.

    Raises:
        UsageError: there are no such inputs: the models differ in them, or the sizes that were given do not fit.
        ModelError: no inputs were found that suit the first model.
    """
    found = {}
    for name, path in zip(names, request.models, strict=True):
        with Session(path, optimization="none") as session:
            found[name] = session.inputs
    specs = merge_inputs(found)
    if request.inputs is not None:
        if request.batch is not None:
            msg = "--batch is for generated inputs: leave it out, or leave out --inputs."
            raise UsageError(msg)
        several = load_inputs(request.inputs, specs)
        for name, shape in request.shapes.items():
            found_shape = several[0][name].shape if name in several[0] else None
            if found_shape != tuple(shape):
                what = (
                    "is not there"
                    if found_shape is None
                    else f"has the shape {list(found_shape)}"
                )
                msg = f"--shape gives '{name}' {list(shape)}, and in '{request.inputs}' it {what}: leave out one of the two."
                raise UsageError(msg)
        more = (
            [f"'{request.inputs}' holds {len(several)} inputs; the first one was measured with"]
            if len(several) > 1
            else []
        )
        return several[0], more
    failure: ModelError | None = None
    tried = set()
    for sizes in FIRST_SIZES:
        shapes = resolve_shapes(specs, _checked(specs, request.shapes), sizes)
        shapes = _with_batch(specs, shapes, request)
        key = tuple(shapes.items())
        if key in tried:
            continue
        tried.add(key)
        try:
            feeds = find_inputs(request.models[0], shapes, count=1).feeds[0]
        except ModelError as error:
            failure = failure or error
            continue
        return feeds, _assumptions(specs, feeds, request)
    raise failure if failure is not None else ModelError("no sizes were found for the inputs")


def merge_inputs(
    found: Mapping[str, Sequence[TensorSpec]],
) -> tuple[TensorSpec, ...]:
    """The inputs of several models as those of one: a size that any of them fixes is fixed.

    Args:
        found: the inputs of each model, by what the model is called.

    Raises:
        UsageError: the models cannot take the same inputs.
    """
    (first, mine), *others = found.items()
    merged = {spec.name: spec for spec in mine}
    for name, theirs in others:
        their = {spec.name: spec for spec in theirs}
        if their.keys() != merged.keys():
            raise _different(first, mine, name, theirs, "they have other names")
        for key, spec in their.items():
            known = merged[key]
            if known.dtype != spec.dtype:
                raise _different(first, mine, name, theirs, f"'{key}' has another type")
            if len(known.shape) != len(spec.shape) or any(
                isinstance(a, int) and isinstance(b, int) and a != b
                for a, b in zip(known.shape, spec.shape, strict=True)
            ):
                raise _different(first, mine, name, theirs, f"'{key}' has another shape")
            sizes = tuple(
                b if isinstance(b, int) else a
                for a, b in zip(known.shape, spec.shape, strict=True)
            )
            merged[key] = TensorSpec(key, known.dtype, sizes)
    return tuple(merged.values())


def _different(
    first: str,
    mine: Sequence[TensorSpec],
    second: str,
    theirs: Sequence[TensorSpec],
    why: str,
) -> UsageError:
    return UsageError(
        f"'{first}' and '{second}' cannot be run on the same inputs: {why}. '{first}' takes {_specs_text(mine)}; "
        f"'{second}' takes {_specs_text(theirs)}. Profile each by itself."
    )


def _specs_text(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {_shape_text(spec)}" for spec in specs)


def _shape_text(spec: TensorSpec) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in spec.shape)}]"


def _checked(
    specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, tuple[int, ...]]:
    """The shapes that were given, if they fit all models.

    Raises:
        UsageError: they do not.
    """
    by_name = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        if name not in by_name:
            msg = f"a shape is given for '{name}', which is no input of the model. Its inputs: {', '.join(by_name)}."
            raise UsageError(msg)
        declared = by_name[name].shape
        if len(declared) != len(shape) or any(
            isinstance(size, int) and size != given
            for size, given in zip(declared, shape, strict=True)
        ):
            msg = (
                f"the shape {'x'.join(map(str, shape))} does not fit the input '{name}', which is "
                f"{_shape_text(by_name[name])}: only its dynamic axes are free."
            )
            raise UsageError(msg)
    return shapes


def _batch_axis(spec: TensorSpec) -> int | None:
    """The axis that --batch sets: that with "batch" in its name, or the first one, if it is dynamic."""
    open_axes = [axis for axis, size in enumerate(spec.shape) if not isinstance(size, int)]
    named = [axis for axis in open_axes if "batch" in str(spec.shape[axis]).lower()]
    return next(iter(named or [axis for axis in open_axes if axis == 0]), None)


def _with_batch(
    specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], request: Request
) -> dict[str, tuple[int, ...]]:
    """The shapes with the batch that was asked for.

    Raises:
        UsageError: no input has an axis for it, or another size was given for one.
    """
    batch = request.batch
    if batch is None:
        return dict(shapes)
    changed = {}
    for spec in specs:
        shape = shapes[spec.name]
        axis = _batch_axis(spec)
        if axis is not None:
            if spec.name in request.shapes and shape[axis] != batch:
                msg = (
                    f"--shape gives the input '{spec.name}' {shape[axis]} where --batch gives {batch}: "
                    "leave one of them out."
                )
                raise UsageError(msg)
            shape = (*shape[:axis], batch, *shape[axis + 1 :])
        changed[spec.name] = shape
    if not any(_batch_axis(spec) is not None or spec.shape[:1] == (batch,) for spec in specs):
        msg = (
            f"--batch {batch} cannot be set: the first axis of {_specs_text(specs)} is fixed. Export the model with a dynamic "
            "batch axis."
        )
        raise UsageError(msg)
    return changed


def _assumptions(specs: Sequence[TensorSpec], feeds: Feeds, request: Request) -> list[str]:
    """Says which sizes were assumed; nothing if all were given."""
    guessed = []
    for spec in specs:
        given = {_batch_axis(spec)} if request.batch is not None else set()
        left = {axis for axis, size in enumerate(spec.shape) if not isinstance(size, int)}
        if spec.name not in request.shapes and left - given:
            guessed.append(f"{spec.name} {list(feeds[spec.name].shape)}")
    if not guessed:
        return []
    return [
        f"sizes are left open; figures are for {', '.join(guessed)}: give others with --shape, or --batch"
    ]


# -- records -------------------------------------------------------------------------------------


def _model_record(
    name: str,
    source: SourceFile,
    measured: Measurement,
    *,
    memory_bytes: int | None,
    layers: LayerProfile | None,
    sparse: Sparse,
) -> records.ProfiledModel:
    latency = measured.latencies[name]
    timings = measured.samples[name]
    return records.ProfiledModel(
        name=name,
        path=source.path,
        sha256=source.sha256,
        bytes=source.bytes,
        latency=LatencyRow(
            latency.p50_s, latency.p90_s, latency.p95_s, latency.p99_s, latency.samples
        ),
        load_s=float(np.median(measured.load_s[name])),
        memory_bytes=memory_bytes,
        outliers=tuple(
            records.OutlierRow(each.source, each.count) for each in find_outliers(timings)
        ),
        samples=_sample_record(timings, measured.load_s[name]),
        layers=()
        if layers is None
        else tuple(
            records.LayerRow(
                layer.name, layer.op_type, layer.seconds, layer.runtime_ops, layer.covers
            )
            for layer in layers.layers
        ),
        layer_totals=None
        if layers is None
        else records.LayerTotals(
            layers.total_s,
            layers.whole_s,
            layers.unmapped_s,
            layers.overhead_s,
            layers.clock,
        ),
        sparse=sparse.verdict,
        sparse_times=sparse.times,
    )


def _sample_record(timings: Timings, load_s: Sequence[float]) -> records.SampleRecord:
    def whole(numbers: Array | None) -> tuple[int, ...]:
        return () if numbers is None else tuple(int(number) for number in numbers)

    def nanoseconds(seconds: Array | Sequence[float]) -> tuple[float, ...]:
        return tuple(round(float(each), 9) for each in seconds)

    return records.SampleRecord(
        wall_s=nanoseconds(timings.wall_s),
        cpu_s=nanoseconds(timings.cpu_s),
        rebuild=whole(timings.rebuild),
        switches=whole(timings.switches),
        faults=whole(timings.faults),
        load_s=nanoseconds(load_s),
    )
