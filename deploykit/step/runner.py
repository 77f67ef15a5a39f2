"""Runs a step: what is kept is taken, the rest is done, gates are held against figures, and the folder appears.

recipe -> devices -> stages and their keys -> cache or work -> gates -> documents -> OUT/, unless it is there already
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploykit import exported, opening
from deploykit.errors import UsageError
from deploykit.output_folder import OutputFolder
from deploykit.report import html
from deploykit.step import baseline as baselines
from deploykit.step import junit, manifest, recipe_toml, report_file, summary, work
from deploykit.step.cache import PARTS, Cache, Object
from deploykit.step.figures import Figures
from deploykit.step.gates import evaluate
from deploykit.step.places import Spot, open_spots
from deploykit.step.recipe_file import effective, input_files, read_recipe
from deploykit.step.recipe_words import reworded, warnings_of, without_options
from deploykit.step.records import StageRecord, StepResult
from deploykit.step.secrets import Secrets, veiled
from deploykit.step.stages import (
    ACCURACY,
    EXPORT,
    OPTIMIZE,
    Stage,
    optimize_where,
    plan_stages,
    profile_name,
    why,
)

if TYPE_CHECKING:
    from deploykit.report.profile_records import ProfileReport
    from deploykit.report.records import Report
    from deploykit.step.records import AccuracyRecord, BaselineComparison, StepRecipe

__all__ = ["CACHE", "Progress", "Request", "explain", "run"]

CACHE = Path(".deploykit") / "cache"
"""Where results are kept, beside the recipe."""


class Progress(Protocol):
    """Told what is going on, and how far it is."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """Something begins, or is `done` (0 to 1) of the way."""


def silent(stage: str, done: float | None = None) -> None:
    """Progress that nobody watches."""
    del stage, done


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run, and how.

    Attributes:
        recipe: the recipe file.
        settings: values that take the place of its own, as `TABLE.KEY=VALUE` or `PASS.OPTION=VALUE`.
        on: devices that take the place of its own.
        baseline: the report of the last accepted result; None if there is none.
        cache: where results are kept; None is beside the recipe.
        use_cache: whether they are kept and taken at all.
        force: whether a result folder is replaced that no step wrote.
        cache_limit_bytes: what is kept is pruned down to this afterwards; None to keep all.
    """

    recipe: Path
    settings: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    baseline: Path | None = None
    cache: Path | None = None
    use_cache: bool = True
    force: bool = False
    cache_limit_bytes: int | None = None


@dataclasses.dataclass(eq=False)
class Done:
    """What was done so far.

    Attributes:
        stages: in order.
        objects: results, by stage.
        warnings: what was found on the way.
    """

    stages: list[StageRecord]
    objects: dict[str, Object]
    warnings: list[str]


def run(request: Request, *, progress: Progress = silent) -> StepResult:
    """Run a step, and write its result folder.

    Args:
        request: what, and how.
        progress: told what is going on.

    Returns:
        what came of it. A gate that is missed is no error: see `StepResult.ok`.

    Raises:
        UsageError: the recipe, or something that it names, makes no sense.
        ModelError: the model cannot be handled.
        RuntimeUnavailable: a runtime or a device is not there.
    """
    began = time.perf_counter()
    recipe, accepted = _read(request)
    secrets = Secrets()
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(_claim(request, recipe))
        place = _cache_folder(request, recipe) if request.use_cache else folder.work / "cache"
        _check_cache(place, recipe)
        cache = opened.enter_context(Cache(place, tell=progress))
        spots = opened.enter_context(open_spots(recipe, progress))
        progress("looking at what is to be done")
        stages = plan_stages(recipe, spots)
        known = manifest.read(recipe.output)
        before = manifest.components_before(known)
        done = _work(
            recipe, stages, spots, cache, before=before, secrets=secrets, progress=progress
        )
        progress("holding gates against figures")
        result = _result(recipe, done, accepted)
        expected = manifest.to_document(result, secrets)
        is_new = not manifest.is_whole(recipe.output, known, expected)
        result = dataclasses.replace(
            result, is_new=is_new, elapsed_s=time.perf_counter() - began
        )
        if is_new:
            progress("writing the result")
            _write(folder.path, result, done, expected, secrets)
            folder.commit()
        if request.cache_limit_bytes is not None:
            cache.prune(request.cache_limit_bytes)
    return result


def explain(request: Request, *, progress: Progress = silent) -> StepResult:
    """Say what `run` would do again and why, and run and write nothing.

    Raises:
        UsageError: the recipe, or something that it names, makes no sense.
        ModelError: the model cannot be handled.
        RuntimeUnavailable: a device is not there, so that nobody knows whether it is the same.
    """
    began = time.perf_counter()
    recipe, _ = _read(request)
    cache = Cache(_cache_folder(request, recipe))
    before = manifest.components_before(manifest.read(recipe.output))
    with open_spots(recipe, progress) as spots:
        stages = plan_stages(recipe, spots)
    rows = []
    for stage in stages:
        kept = cache.find(stage.key) if request.use_cache else None
        reason = "" if kept else why(stage, before.get(stage.name))
        if not request.use_cache:
            reason = "no kept results are taken"
        rows.append(
            StageRecord(
                stage.name,
                stage.key,
                stage.components,
                "cached" if kept else "stale",
                kept.seconds if kept else 0.0,
                reason,
            )
        )
    return StepResult(
        recipe,
        tuple(rows),
        versions=opening.versions(),
        elapsed_s=time.perf_counter() - began,
    )


# -- before --------------------------------------------------------------------------------------


def _read(request: Request) -> tuple[StepRecipe, baselines.Accepted | None]:
    recipe = read_recipe(request.recipe, settings=request.settings, on=request.on)
    accepted = None if request.baseline is None else baselines.read(request.baseline)
    return recipe, accepted


def _claim(request: Request, recipe: StepRecipe) -> OutputFolder:
    """The result folder: that of an earlier step is replaced without being asked."""
    is_ours = manifest.read(recipe.output) is not None
    sources = [file for files in input_files(recipe).values() for file in files]
    return OutputFolder(recipe.output, force=request.force or is_ours, sources=sources)


def _cache_folder(request: Request, recipe: StepRecipe) -> Path:
    return (request.cache or recipe.folder / CACHE).resolve()


def _check_cache(place: Path, recipe: StepRecipe) -> None:
    """Refuse a cache in the result folder, which is replaced as a whole, and a result folder among kept results.

    Raises:
        UsageError: one lies in the other.
    """
    if place.is_relative_to(recipe.output):
        msg = f"the cache '{place}' lies in the result folder, and would go with it. Give another place with --cache."
        raise UsageError(msg)
    if any(recipe.output.is_relative_to(place / part) for part in PARTS):
        msg = (
            f"the result folder '{recipe.output}' lies in the cache '{place}', whose content may go at any time. Give "
            "another folder as output.folder."
        )
        raise UsageError(msg)


# -- work ----------------------------------------------------------------------------------------


def _work(
    recipe: StepRecipe,
    stages: Sequence[Stage],
    spots: Mapping[str, Spot],
    cache: Cache,
    *,
    before: Mapping[str, Mapping[str, str]],
    secrets: Secrets,
    progress: Progress,
) -> Done:
    """Take what is kept, and do the rest."""
    done = Done([], {}, [])
    for stage in stages:
        if stage.name not in {EXPORT, OPTIMIZE} and not work.result_files(
            done.objects[OPTIMIZE].folder
        ):
            continue  # the outputs differ: there is no model to run
        make = _maker(recipe, stage, spots, done.objects, _within(progress, stage.name))
        with veiled(secrets), without_options(), _staying(stage.name):
            found = cache.take(stage.key, stage.name, stage.components, make)
        done.objects[stage.name] = found
        if found.note:
            done.warnings.append(found.note)
        done.stages.append(
            StageRecord(
                stage.name,
                stage.key,
                stage.components,
                "ran" if found.is_new else "cached",
                found.seconds,
                why(stage, before.get(stage.name)) if found.is_new else "",
            )
        )
    return done


@contextlib.contextmanager
def _staying(name: str) -> Iterator[None]:
    """Let no code of others end the program: with sys.exit(0) it would look as if the model might ship.

    Raises:
        UsageError: it tries to.
    """
    try:
        yield
    except SystemExit as error:
        msg = f"'{name}' came to no result: code that it calls ended the program (sys.exit, {error.code}). Take that out."
        raise UsageError(msg) from error


def _within(progress: Progress, name: str) -> Progress:
    """Progress that says of which stage it is."""

    def tell(stage: str, done: float | None = None) -> None:
        progress(f"{name}: {stage}", done)

    return tell


def _maker(
    recipe: StepRecipe,
    stage: Stage,
    spots: Mapping[str, Spot],
    objects: Mapping[str, Object],
    progress: Progress,
) -> Callable[[Path], None]:
    """What does the work of a stage in a folder that it is given."""
    export_folder = objects[EXPORT].folder if EXPORT in objects else None

    def make(folder: Path) -> None:
        if stage.name == EXPORT:
            progress("exporting the model")
            work.export(recipe, folder)
        elif stage.name == OPTIMIZE:
            options, place = optimize_where(recipe, spots)
            work.optimize(
                recipe,
                folder,
                options=options,
                place=place,
                export_folder=export_folder,
                progress=progress,
            )
        else:
            original = work.find_original(recipe, export_folder)
            optimized = work.result_files(objects[OPTIMIZE].folder)[work.MODEL]
            if stage.name == ACCURACY:
                progress("running the metric")
                work.accuracy(recipe, folder, original=original, optimized=optimized)
            else:
                work.profile(
                    recipe,
                    folder,
                    original=original,
                    optimized=optimized,
                    examples=None
                    if export_folder is None
                    else exported.examples_file(export_folder),
                    spot=spots[str(stage.device)],
                    progress=progress,
                )
        stage.check_files()

    return make


# -- result --------------------------------------------------------------------------------------


def _result(recipe: StepRecipe, done: Done, accepted: baselines.Accepted | None) -> StepResult:
    """What all of it says; a pure function of what was read and kept."""
    report = _placed(work.read_report(done.objects[OPTIMIZE].folder), recipe)
    profiles = {
        device.name: reworded(work.read_profile(done.objects[profile_name(device.name)].folder))
        for device in recipe.devices
        if profile_name(device.name) in done.objects
    }
    accuracy = (
        work.read_accuracy(done.objects[ACCURACY].folder) if ACCURACY in done.objects else None
    )
    devices = tuple(device.name for device in recipe.devices)
    gates = evaluate(recipe.gates, Figures(report, devices, profiles, accuracy))
    compared = _compared(accepted, report, profiles, accuracy)
    warnings = [
        *done.warnings,
        *warnings_of(report, profiles),
        *(
            f"the gate '{row.gate.text}' is close{f' on {row.device}' if row.device else ''}: the 95 % interval of the figure "
            "reaches over the limit, so that the next run may end in another way. Measure longer, or leave more room"
            for row in gates
            if row.is_close
        ),
    ]
    result = StepResult(
        recipe,
        tuple(done.stages),
        gates,
        report,
        profiles,
        accuracy,
        compared,
        report.versions,
        tuple(dict.fromkeys(warnings)),
    )
    model = f"{effective(recipe)['output']['folder']}/{work.MODEL}"
    shown = dataclasses.replace(report, model=model if result.ok else None)
    return dataclasses.replace(result, report=shown)


def _compared(
    accepted: baselines.Accepted | None,
    report: Report,
    profiles: Mapping[str, ProfileReport],
    accuracy: AccuracyRecord | None,
) -> BaselineComparison | None:
    return None if accepted is None else baselines.compare(accepted, report, profiles, accuracy)


def _placed(report: Report, recipe: StepRecipe) -> Report:
    """A report with files called as this recipe calls them: what was kept may be from another folder."""
    inputs = effective(recipe)["inputs"]
    ticket = report.source.ticket
    source = dataclasses.replace(
        report.source,
        path=inputs["model"],
        ticket=None if ticket is None else dataclasses.replace(ticket, path=inputs["ticket"]),
    )
    placed = dataclasses.replace(report, source=source, command=work.command_of(recipe))
    return reworded(placed)


def _write(
    folder: Path,
    result: StepResult,
    done: Done,
    expected: Mapping[str, object],
    secrets: Secrets,
) -> None:
    """Write the result folder. The model is only in there if it may ship."""
    if result.ok:
        for name, path in work.result_files(done.objects[OPTIMIZE].folder).items():
            shutil.copyfile(path, folder / name)
    for name, text in _documents(result, secrets):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / manifest.NAME).write_text(manifest.to_json(expected, folder), encoding="utf-8")


def _documents(result: StepResult, secrets: Secrets) -> Iterator[tuple[str, str]]:
    if result.report is not None:
        yield "report.html", html.render(secrets.cleaned(result.report))
    yield "report.json", report_file.to_json(result, secrets)
    yield "recipe.toml", recipe_toml.to_toml(secrets.cleaned(effective(result.recipe)))
    yield "junit.xml", junit.to_xml(result, secrets)
    yield "summary.md", summary.to_markdown(result, secrets)
