"""What the stages do: each writes its result to an empty folder, from which it is read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit import exported, pipeline, profiling
from deploykit.profile import SCREENING, Settings
from deploykit.report import profile_records, records
from deploykit.report.reading import from_document
from deploykit.step.accuracy import measure_accuracy
from deploykit.step.records import AccuracyRecord
from deploykit.step.sources import find_sources, loading
from deploykit.torch_source import TorchSource

if TYPE_CHECKING:
    from deploykit.profile import Place
    from deploykit.recipe import Recipe
    from deploykit.step.places import Spot
    from deploykit.step.records import StepRecipe

__all__ = [
    "accuracy",
    "export",
    "find_original",
    "optimize",
    "profile",
    "read_accuracy",
    "read_profile",
    "read_report",
    "result_files",
]

Progress: TypeAlias = Callable[[str, float | None], None]

RESULT = "result"
REPORT, PROFILE, ACCURACY = "report.json", "profile.json", "accuracy.json"
MODEL = "model.onnx"
NOT_THE_MODEL = (REPORT, "report.html", "recipe.toml")


def command_of(recipe: StepRecipe) -> str:
    """What documents say was typed: the recipe says everything else."""
    return f"deploykit run {recipe.path.name}"


def export(recipe: StepRecipe, folder: Path) -> None:
    """Export a PyTorch model, with its ticket in it."""
    options = recipe.optimize
    module = recipe.model.partition(":")[0]
    ticket = None if options.ticket is None else Path(options.ticket)
    with loading(recipe.folder, find_sources(module, recipe.folder).files):
        written = TorchSource(recipe.model, ticket, options.shape).write(folder)
    exported.keep(written)


def optimize(
    recipe: StepRecipe,
    folder: Path,
    *,
    options: Recipe,
    place: Place,
    export_folder: Path | None,
    progress: Progress,
) -> None:
    """Optimize the model, and keep it with the report."""
    settings = _settings(recipe)
    screening = dataclasses.replace(
        SCREENING, duration_s=min(SCREENING.duration_s, settings.duration_s)
    )
    request = pipeline.Request(
        Path(recipe.model),
        options,
        command_of(recipe),
        settings=settings,
        screening=screening,
        place=place,
        exported=export_folder,
    )
    pipeline.optimize(request, folder / RESULT, progress=progress)  # type: ignore[arg-type]  # the same, with a default
    # Documents are made anew for every result folder.
    for name in NOT_THE_MODEL[1:]:
        (folder / RESULT / name).unlink()


def profile(
    recipe: StepRecipe,
    folder: Path,
    *,
    original: Path,
    optimized: Path,
    examples: Path | None,
    spot: Spot,
    progress: Progress,
) -> None:
    """Measure the original and the optimized model in turns."""
    options = recipe.optimize
    # Sizes that were asked for are measured with, as forms were; examples of an export have sizes of their own.
    inputs = None if options.shape else examples
    if options.inputs:
        inputs = Path(options.inputs[0])
    request = profiling.Request(
        models=(original, optimized),
        command=command_of(recipe),
        shapes=options.shape if inputs is None else {},
        inputs=inputs,
        threads=spot.threads,
        runtime=spot.runtime,
        settings=_settings(recipe),
        place=spot.place,
    )
    found = profiling.profile(request, progress=progress)  # type: ignore[arg-type]  # the same, with a default
    text = profile_records.to_json(_renamed(found))
    (folder / PROFILE).write_text(text, encoding="utf-8")


def accuracy(recipe: StepRecipe, folder: Path, *, original: Path, optimized: Path) -> None:
    """Find how good both models are."""
    if recipe.accuracy is None:
        return
    found = measure_accuracy(recipe.accuracy, recipe.folder, original, optimized)
    (folder / ACCURACY).write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")


# -- reading back --------------------------------------------------------------------------------


def read_report(folder: Path) -> records.Report:
    """The report of an optimization."""
    return from_document(records.Report, _json(folder / RESULT / REPORT))


def read_profile(folder: Path) -> profile_records.ProfileReport:
    """A measurement."""
    return from_document(profile_records.ProfileReport, _json(folder / PROFILE))


def read_accuracy(folder: Path) -> AccuracyRecord:
    """How good both models are."""
    return from_document(AccuracyRecord, _json(folder / ACCURACY))


def find_original(recipe: StepRecipe, export_folder: Path | None) -> Path:
    """The file of the model that all others are held against."""
    return Path(recipe.model) if export_folder is None else exported.model_file(export_folder)


def result_files(folder: Path) -> Mapping[str, Path]:
    """The optimized model and what belongs to it, by name in a result folder; empty if there is none."""
    found = {
        path.name: path
        for path in sorted((folder / RESULT).iterdir())
        if path.name not in NOT_THE_MODEL
    }
    return found if MODEL in found else {}


def _settings(recipe: StepRecipe) -> Settings:
    spec = recipe.measure
    return Settings(warmup_s=spec.warmup_s, duration_s=spec.duration_s, rebuilds=spec.rebuilds)


def _renamed(found: profile_records.ProfileReport) -> profile_records.ProfileReport:
    """The measurement with models called by what they are: their files lie in a cache, and may be gone."""
    names = ("original", "optimized")
    called = {model.name: name for model, name in zip(found.models, names, strict=True)}
    return dataclasses.replace(
        found,
        models=tuple(
            dataclasses.replace(model, name=called[model.name], path=called[model.name])
            for model in found.models
        ),
        relative=tuple(
            dataclasses.replace(row, model=called[row.model], baseline=called[row.baseline])
            for row in found.relative
        ),
    )


def _json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(path.read_text(encoding="utf-8"))
