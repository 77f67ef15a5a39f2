"""From a model to a result: make forms of it, prove that they compute the same, measure them, choose one, report.

    load -> forms (passes on clones) -> checks -> validation -> measurement -> choice -> OUT/

Every form is written to disk as it will be handed out, and what is checked, validated and measured is that file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from deploykit import (
    block_layers,
    candidates,
    closeups,
    emulation,
    engine_output,
    groups,
    layers,
    model_io,
    one_file,
    registry,
    runtimes,
    saved_plans,
    size,
)
from deploykit.background import Later
from deploykit.choice import ORIGINAL, Choice, Form, choose, shortlist
from deploykit.errors import (
    DeploykitError,
    ModelError,
    PassFailed,
    RuntimeUnavailable,
    UsageError,
)
from deploykit.instruments import Dump, Memory
from deploykit.layer_choice import LayerChooser
from deploykit.masks import apply_masks, read_masks
from deploykit.opening import Opened, files_of, open_model, versions
from deploykit.output_folder import OutputFolder
from deploykit.profile import HERE, SCREENING, Measurement, Place, Settings, Timings, measure
from deploykit.recipe import Recipe, to_toml
from deploykit.report import html, records
from deploykit.sparse_layers import lost_patterns
from deploykit.validate import (
    FEWER_INPUTS,
    FIRST_SIZES,
    HEAVY_BYTES,
    INPUTS,
    RETYPED,
    Reference,
    Validation,
    compare,
    find_inputs,
    load_inputs,
    resolve_shapes,
    run_reference,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.profile.device import Device
    from deploykit.runtimes import Runner
    from passes.base import PassReport
    from passes.plans import Plan
    from passes.targets import Target

__all__ = ["Progress", "Request", "optimize", "plan"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feeds: TypeAlias = Mapping[str, Array]

SMALLER = 0.98
"""A file that lost less than this without losing a parameter was only written differently."""

ORDERING_CHANNELS = "ordering channels"
"""What is told while a good order of channels is searched for."""


class Progress(Protocol):
    """Told what is going on, and how far it is."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """A stage begins, or is `done` (0 to 1) of the way."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to optimize, and how.

    Attributes:
        source: the model file, or a PyTorch model as `package.module:object`.
        recipe: how.
        command: the command line, for the report.
        dump_dir: folder for the graph after each pass of the chosen form.
        settings: how long the final measurement is.
        screening: how long the one before it is.
        save_plan: file for what the passes cut and add.
        place: where forms are measured.
        exported: a folder with the PyTorch model as it was exported before, by `deploykit.exported`; None to export it.
    """

    source: Path
    recipe: Recipe
    command: str
    dump_dir: Path | None = None
    settings: Settings = dataclasses.field(default_factory=Settings)
    screening: Settings = SCREENING
    save_plan: Path | None = None
    place: Place = HERE
    exported: Path | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """A form of the model on disk.

    Attributes:
        form: its name, and what it adds.
        steps: the steps that made it, each with the options it had.
        reports: what they reported.
        seconds: what each of them took, by pass.
        path: the file.
        size: how large it is.
        bytes: bytes of its files.
    """

    form: Form
    steps: tuple[candidates.Step, ...]
    reports: tuple[PassReport, ...]
    seconds: Mapping[str, float]
    path: Path
    size: size.ModelSize
    bytes: int

    @property
    def is_altered(self) -> bool:
        """Whether a pass that was asked for changed what it computes."""
        return any(report.modified and not report.exact for report in self.reports)

    @property
    def is_ordered(self) -> bool:
        """Whether channels were put in order for 2:4, which is only done for who asks: it helps training, or runs elsewhere."""
        return any(
            report.modified and step.is_for_sparsity
            for step, report in zip(self.steps, self.reports, strict=True)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The original, and what it is held against.

    Attributes:
        opened: where it comes from.
        model: the model that counts as the original: that of the source, with masks applied.
        path: a file of that model.
        feeds: the inputs that models are measured with.
        later: what it computes, when that is known.
        size: how large it is.
        warnings: what was found on the way.
    """

    opened: Opened
    model: ir.Model
    path: Path
    feeds: Feeds
    later: Later[Reference]
    size: size.ModelSize
    warnings: tuple[str, ...]

    @property
    def source(self) -> model_io.Source:
        """The original as it was read."""
        return self.opened.source

    @property
    def reference(self) -> Reference:
        """What it computes."""
        return self.later.result()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Their shapes, by name."""
        return {name: array.shape for name, array in self.feeds.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Everything that is settled before there is something to decide.

    Attributes:
        request: what was asked for.
        recipe: that of the request, checked.
        target: what the passes were told about the device.
        start: the original.
        steps: what was done to it.
        forms: what it made, the plain form first.
        tried: the last report of each pass, whatever became of the form that it was for.
        failed: forms that could not be made, or turned out wrong; grows.
        progress: told what is going on.
        runner: what runs the models that are timed; None is ONNX Runtime.
    """

    request: Request
    recipe: Recipe
    target: Target
    start: Start
    steps: tuple[candidates.Step, ...]
    forms: tuple[Saved, ...]
    tried: Mapping[str, PassReport]
    failed: list[candidates.Unmade]
    progress: Progress
    runner: Runner | None = None

    @property
    def is_exact(self) -> bool:
        """Whether every pass claims to preserve the function."""
        return all(step.is_exact for step in self.steps)


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What came of the forms.

    Attributes:
        verdict: in a word.
        reason: in a sentence.
        form: what is handed out; None for the original.
        validations: outputs compared with those of the original, by form.
        measured: measurements against the original, the final one last.
    """

    verdict: records.Verdict
    reason: str
    form: Saved | None
    validations: Mapping[str, Validation]
    measured: tuple[Measurement, ...] = ()

    def shown(self, forms: Sequence[Saved]) -> Saved:
        """The form whose passes are reported: where the original stays, what was tried."""
        return self.form or forms[0]


def silent(stage: str, done: float | None = None) -> None:
    """Progress that nobody watches."""
    del stage, done


def optimize(
    request: Request, out: Path, *, force: bool = False, progress: Progress = silent
) -> records.Report:
    """Optimize a model and write the result folder.

    Args:
        request: what, and how.
        out: the result folder.
        force: whether an earlier result there may be replaced.
        progress: told what is going on.

    Returns:
        the report that was written. With the verdict "differs" the folder holds it without a model.

    Raises:
        UsageError: something that was asked for makes no sense.
        ModelError: the model cannot be handled; nothing is written.
        RuntimeUnavailable: the runtime is not there.
    """
    began = time.perf_counter()
    recipe, saved = _settled(request.recipe)
    target = find_target(recipe, request.place)
    # What cannot run or build here says so before anything is done.
    is_here = request.place.is_local
    runner = runtimes.start(recipe.runtime) if recipe.profile and is_here else None
    if recipe.engine is not None:
        engine_output.check(recipe.engine, recipe.compute_capability)
    with (
        OutputFolder(out, force=force, sources=files_of(request.source, recipe)) as folder,
        contextlib.ExitStack() as running,
    ):
        start = _start(request, recipe, folder.work, progress)
        # The original runs beside the passes: they want one core, and a heavy model takes as long.
        running.enter_context(start.later)
        folder.protect(start.source.files)
        if saved is not None:
            saved.check_source(recipe.plan, request.source, start.source.sha256)
        plans = {} if saved is None else saved.plans
        chooser = (
            LayerChooser(
                recipe.threads,
                progress=progress,
                runner=runner,
                place=request.place,
                runtime=recipe.runtime,
            )
            if recipe.profile and recipe.choose == "measure"
            else None
        )
        steps = candidates.plan_steps(
            recipe,
            target,
            plans,
            candidates.Told(
                start.shapes,
                start.opened.blocks,
                chooser,
                lambda done: progress(ORDERING_CHANNELS, done),
            ),
        )
        memory = Memory()
        forms, failed = _make_forms(start, steps, folder.work, progress, memory)
        job = Job(
            request,
            recipe,
            target,
            start,
            steps,
            tuple(forms),
            memory.reports,
            failed,
            progress,
            runner,
        )
        decided = _decide(job)
        report = _report(job, decided, folder.work)
        progress("writing the result")
        if decided.verdict != "differs":
            _write_model(start, decided.form, folder.path)
            report = _with_sparse(report, job, folder.path)
        if request.dump_dir is not None:
            dump = Dump(request.dump_dir)
            candidates.run_steps(
                start.model.clone(), decided.shown(forms).steps, instruments=[dump]
            )
        report = dataclasses.replace(
            report,
            model=str(out / "model.onnx") if decided.verdict != "differs" else None,
            elapsed_s=time.perf_counter() - began,
        )
        (folder.path / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
        (folder.path / "report.json").write_text(records.to_json(report), encoding="utf-8")
        (folder.path / "report.html").write_text(html.render(report), encoding="utf-8")
        _save_plan(request, start.source, recipe, decided.shown(forms))
        folder.commit()
    return report


def plan(request: Request, *, progress: Progress = silent) -> records.Report:
    """Say what `optimize` would do without measuring: run the passes on a clone, and write nothing.

    Raises:
        UsageError: something that was asked for makes no sense.
        ModelError: the model cannot be handled.
    """
    began = time.perf_counter()
    recipe, saved = _settled(dataclasses.replace(request.recipe, profile=False))
    target = find_target(recipe, request.place)
    with tempfile.TemporaryDirectory(prefix="deploykit-") as work:
        opened = open_model(request.source, recipe, Path(work), progress=progress)
        if saved is not None:
            saved.check_source(recipe.plan, request.source, opened.source.sha256)
        plans = {} if saved is None else saved.plans
        request = dataclasses.replace(request, recipe=recipe)
        report = _planned(request, opened, target, plans, progress)
    return dataclasses.replace(report, elapsed_s=time.perf_counter() - began)


def _planned(
    request: Request,
    opened: Opened,
    target: Target,
    plans: Mapping[str, Plan],
    progress: Progress,
) -> records.Report:
    """What `plan` says of a model, for a request whose recipe is checked."""
    recipe, source = request.recipe, opened.source
    model = _masked(source, recipe)
    shapes, notes = _assumed_shapes(source.path, model, recipe, opened.examples)
    told = candidates.Told(
        shapes, opened.blocks, tell=lambda done: progress(ORDERING_CHANNELS, done)
    )
    steps = candidates.plan_steps(recipe, target, plans, told)
    progress("planning")
    instruments = [Dump(request.dump_dir)] if request.dump_dir is not None else []
    with _told_by_the_runtime(source.path, recipe):
        made = next(candidates.make(model, steps, instruments=instruments))
        if isinstance(made, candidates.Unmade):
            raise ModelError(made.reason)
        before = size.count(model, shapes)
        after = size.count(made.model, shapes)
        compared = layers.compare(model, made.model, _forms(made))
        found = groups.find_groups(model)
        passed = _pass_records(made.reports, made.steps, made.seconds)
        blocked, no_blocks = block_layers.inspect_blocks(
            model, steps, compared, passed, result=made.model, given=opened.blocks
        )
    _save_plan(request, source, recipe, made)
    return records.Report(
        command=request.command,
        versions=versions(opened),
        source=opened.record,
        model=None,
        target=target.name,
        passes=passed,
        size=records.Size(
            records.Count(before.parameters, after.parameters),
            records.Count(sum(file.stat().st_size for file in source.files), None),
            records.Count(before.macs, after.macs),
            records.Count(before.nodes, after.nodes),
        ),
        validation=None,
        candidates=(),
        profile=None,
        layers=compared,
        ticket_layers=opened.ticket_layers,
        block_layers=blocked,
        no_blocks=no_blocks,
        verdict="planned",
        groups=found,
        reason=(
            "this is what exact removal would do; nothing was measured or written"
            if all(step.is_exact for step in steps)
            else "this is what would be done; nothing was measured or written, and the outputs were not compared"
        ),
        warnings=(
            *opened.notes,
            *notes,
            *(_left_out_warnings(steps) if recipe.passes is not None else ()),
            *_block_warnings(opened, steps),
            *lost_patterns(compared, made.model),
        ),
    )


def _settled(recipe: Recipe) -> tuple[Recipe, saved_plans.SavedPlan | None]:
    """The recipe, checked, with the passes and options of its saved plan, and that plan."""
    if recipe.plan is None:
        return recipe.check(), None
    saved = saved_plans.read(Path(recipe.plan))
    return saved.settle(recipe).check(), saved


def _save_plan(
    request: Request, source: model_io.Source, recipe: Recipe, made: candidates.Made | Saved
) -> None:
    """Write down what the passes of a form did, if that was asked for."""
    if request.save_plan is None:
        return
    steps = tuple(
        saved_plans.PlannedStep(
            report.name, registry.settable(step.kind, step.options), report.plan
        )
        for step, report in zip(made.steps, made.reports, strict=True)
    )
    plan = saved_plans.SavedPlan(
        str(request.source), source.sha256, recipe.masks, versions(), steps
    )
    saved_plans.write(plan, request.save_plan)


@contextlib.contextmanager
def _told_by_the_runtime(path: Path, recipe: Recipe) -> Iterator[None]:
    """Let the runtime say what is wrong with a model that a pass stumbles over; if it takes it, the bug is ours.

    Raises:
        ModelError: the runtime does not take the model.
    """
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        try:
            find_inputs(path, recipe.shape, count=1)
        except RuntimeUnavailable:
            raise error from None
        raise


def find_target(recipe: Recipe, place: Place = HERE) -> Target:
    """The target that a checked recipe names, or that of the place where forms are measured."""
    from passes import targets

    if recipe.target is not None:
        return targets.TARGETS[recipe.target]
    # What is timed or built in the family of TensorRT is for a GPU, whatever CPU it is made on.
    if recipe.runtime in runtimes.ENGINES or recipe.engine is not None:
        return targets.TARGETS["tensorrt"]
    if place.is_local:
        return targets.detect()
    there = place.describe()
    return targets.choose(there.architecture, there.flags)


def _start(request: Request, recipe: Recipe, work: Path, progress: Progress) -> Start:
    from passes import weights

    (work / "exported").mkdir()
    opened = open_model(
        request.source,
        recipe,
        work / "exported",
        hash_ahead=True,
        exported=request.exported,
        progress=progress,
    )
    source, path = opened.source, opened.source.path
    model = _masked(source, recipe)
    if model is source.model and path.suffix not in {".onnxtxt", ".textproto", ".json"}:
        original = path
    else:
        (work / "original").mkdir()
        original = work / "original" / "model.onnx"
        model_io.save(model, original, external=source.is_external, sources=source.files)
    is_heavy = weights.size_bytes(model) >= HEAVY_BYTES
    inputs = find_inputs(
        original, recipe.shape, count=FEWER_INPUTS if is_heavy else INPUTS, probe_only=True
    )
    warnings = [*opened.notes, *inputs.notes]
    if is_heavy:
        warnings.append(
            f"compared on {FEWER_INPUTS} generated inputs, not {INPUTS}, because the model is larger than "
            f"{HEAVY_BYTES >> 30} GiB: give more with --inputs"
        )
    feeds: list[Feeds] = [*opened.examples, *inputs.feeds]
    if recipe.inputs:
        from deploykit.runtimes.onnxruntime import Session

        with Session(original, optimization="none") as session:
            # Real inputs come first: they are what is measured.
            feeds = [
                *(each for file in recipe.inputs for each in load_inputs(file, session.inputs)),
                *feeds,
            ]
    given = len(feeds) - len(inputs.feeds)

    def refer(is_wanted: Callable[[], bool]) -> Reference:
        return run_reference(
            original,
            feeds,
            given=given,
            known={given: inputs.probe},
            is_lenient=True,
            is_wanted=is_wanted,
        )

    shapes = {name: array.shape for name, array in feeds[0].items()}
    if not recipe.inputs and not opened.examples:
        warnings += _assumption(model, recipe, shapes)
    counted = size.count(model, shapes)
    return Start(opened, model, original, feeds[0], Later(refer), counted, tuple(warnings))


def _assumed_shapes(
    path: Path, model: ir.Model, recipe: Recipe, examples: Sequence[Feeds]
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The sizes that `optimize` would count and measure with, and a note where they are a guess.

    Those of a task's example; else those that the runtime takes; the first ones of the list if there is none, or it does not
    take the model.

    Raises:
        UsageError: the sizes that were given do not fit the inputs that leave some open.
    """
    from deploykit.runtimes import TensorSpec

    if examples:
        return {name: array.shape for name, array in examples[0].items()}, []
    specs = [
        TensorSpec(
            value.name or "",
            "" if value.dtype is None else value.dtype.name.lower(),
            tuple(
                (part if part >= 0 else None) if isinstance(part, int) else part.value
                for part in value.shape
            ),
        )
        for value in model.graph.inputs
        if value.shape is not None and value.name not in model.graph.initializers
    ]
    shapes = resolve_shapes(specs, recipe.shape, FIRST_SIZES[0])
    notes = _assumption(model, recipe, shapes)
    if notes:
        try:
            feeds = find_inputs(path, recipe.shape, count=1).feeds[0]
        except (ModelError, RuntimeUnavailable):
            return shapes, notes
        shapes = {name: array.shape for name, array in feeds.items()}
        notes = _assumption(model, recipe, shapes)
    return shapes, notes


def _assumption(
    model: ir.Model, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Says which sizes were assumed for inputs that leave some open; nothing if none were."""
    guessed = [
        f"{value.name} {list(shapes[value.name])}"
        for value in model.graph.inputs
        if value.name is not None
        and value.name in shapes
        and value.name not in recipe.shape
        and value.shape is not None
        and not all(isinstance(part, int) and part >= 0 for part in value.shape)
    ]
    if not guessed:
        return []
    return [
        f"the model leaves sizes open; figures are for {', '.join(guessed)}: give others with --shape"
    ]


def _masked(source: model_io.Source, recipe: Recipe) -> ir.Model:
    """The model of the source, or a clone of it with the recipe's masks applied."""
    if recipe.masks is None:
        return source.model
    model = source.model.clone()
    apply_masks(model, read_masks(Path(recipe.masks)))
    return model


def _make_forms(
    start: Start,
    steps: Sequence[candidates.Step],
    work: Path,
    progress: Progress,
    memory: Memory,
) -> tuple[list[Saved], list[candidates.Unmade]]:
    """Make, save and check all forms; the first is the plain one.

    Raises:
        PassFailed: the plain form cannot be made, or is no valid model.
    """
    forms: list[Saved] = []
    failed: list[candidates.Unmade] = []
    seen: list[Path] = []
    source_problem: str | None = None
    progress("running the passes")
    for made in candidates.make(start.model, steps, instruments=[memory]):
        if isinstance(made, candidates.Unmade):
            failed.append(made)
            continue
        progress(f"form '{made.form.name}'")
        folder = work / f"form{len(forms) + len(failed):02d}"
        folder.mkdir()
        path = folder / "model.onnx"
        model_io.save(
            made.model, path, external=start.source.is_external, sources=start.source.files
        )
        if any(_is_same(path.parent, other) for other in seen):
            shutil.rmtree(folder)
            continue
        seen.append(folder)
        problem = _problem(path)
        if problem is not None:
            # A checker that already refuses the source says nothing about what was made of it.
            source_problem = source_problem or _problem(start.path, is_ours=False) or ""
            if not source_problem:
                if not forms:
                    raise PassFailed(
                        made.reports[-1].name, f"the result is no valid model: {problem}"
                    )
                failed.append(
                    candidates.Unmade(made.form, f"bug in deploykit: no valid model: {problem}")
                )
                continue
        forms.append(
            Saved(
                made.form,
                made.steps,
                made.reports,
                made.seconds,
                path,
                size.count(made.model, start.shapes),
                model_io.saved_bytes(path),
            )
        )
    return forms, failed


def _is_same(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = [{file.name for file in each.iterdir()} for each in (folder, other)]
    return names[0] == names[1] and all(
        filecmp.cmp(folder / name, other / name, shallow=False) for name in names[0]
    )


def _problem(path: Path, *, is_ours: bool = True) -> str | None:
    """What ONNX's own checker, shape inference included, says against a file; None if nothing.

    Of a file of ours it sees the outline, which has to lie beside it.
    """
    import onnx

    outline = one_file.outline(path, path.name) if is_ours else None
    checked = path if outline is None else path.with_name("outline.onnx")
    if outline is not None:
        checked.write_bytes(outline)
    try:
        onnx.checker.check_model(str(checked), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().split("\n", 1)[0]
    finally:
        if outline is not None:
            checked.unlink()
    return None


def _decide(job: Job) -> Decision:
    """Validate, measure and choose; adds to the job's `failed` what does not compute the same."""
    plain = job.forms[0]
    job.progress("comparing outputs")
    validations = {
        plain.form.name: compare(
            job.start.reference,
            plain.path,
            job.recipe.tolerance,
            is_retyped=not job.is_exact,
        )
    }
    fault = _fault(job, validations[plain.form.name])
    if fault is not None:
        return Decision("differs", fault, plain, validations)
    if job.recipe.profile:
        _check_measurable(validations[plain.form.name])
        _ = job.start.source.sha256  # nothing else may run while something is measured
        choice, measured = _choose(job, validations)
    else:
        choice, measured = (
            Choice(plain.form.name, "nothing was measured, so nothing was added"),
            (),
        )
    chosen = next((saved for saved in job.forms if saved.form.name == choice.name), None)
    verdict = _verdict(job.start, chosen, measured)
    reason = choice.reason
    if (
        verdict == "unchanged"
        and chosen is not None
        and (chosen.is_altered or chosen.is_ordered)
    ):
        # Who asks for zeros, an order for them, or another type, gets them: what they are good for may run elsewhere.
        verdict = "changed"
        reason = "what was asked for was done, and it made nothing faster or smaller here"
        reason += "" if measured else "; nothing was measured"
    elif verdict == "unchanged" and chosen is not None:
        rest = "nothing else made it faster" if measured else "nothing was measured"
        reason = f"nothing worth while could be removed, and {rest}"
        if chosen.size.parameters < job.start.size.parameters:
            reason = f"'{chosen.form.name}' has fewer parameters, but its constants take no fewer bytes, and {rest}"
        chosen = None
    if chosen is None and job.recipe.masks is not None:
        reason += "; model.onnx is the original with the masks applied"
    return Decision(verdict, reason, chosen, validations, measured)


def _check_measurable(found: Validation) -> None:
    """Refuse to measure what runs in other types than the original, or not at all, on ONNX Runtime.

    Raises:
        UsageError: it is such a model.
    """
    why = next((note for note in found.notes if note in {emulation.NOTE, RETYPED}), None)
    if why is not None:
        msg = f"the result cannot be measured beside the original: {why}. Add --no-profile, and measure it where it runs."
        raise UsageError(msg)


def _choose(
    job: Job, validations: dict[str, Validation]
) -> tuple[Choice, tuple[Measurement, ...]]:
    """Choose by measurement; adds to `validations` what is validated on the way."""
    paths = {saved.form.name: saved.path for saved in job.forms}
    plain, *rivals = (saved.form for saved in job.forms)
    measured: list[Measurement] = []
    smaller = {
        saved.form.name
        for saved in job.forms
        if saved.size.parameters < job.start.size.parameters
    }

    parameters = {saved.form.name: saved.size.parameters for saved in job.forms}

    def run(those: Sequence[Form], settings: Settings, stage: str) -> Measurement:
        job.progress(stage, 0.0)
        measured.append(
            measure(
                {ORIGINAL: job.start.path, **{form.name: paths[form.name] for form in those}},
                job.start.feeds,
                baseline=ORIGINAL,
                threads=job.recipe.threads,
                settings=settings,
                progress=lambda done: job.progress(stage, done),
                runner=job.runner,
                place=job.request.place,
                runtime=job.recipe.runtime,
            )
        )
        return measured[-1]

    if len(rivals) > 2:
        screened = run(
            [plain, *rivals], job.request.screening, f"screening {len(job.forms)} forms"
        )
        rivals = shortlist(plain, rivals, screened.ratio)
    while True:
        final = run(
            [plain, *rivals],
            job.request.settings,
            f"measuring {len(rivals) + 1} against the original",
        )
        choice = choose(plain, rivals, final.ratio, smaller, parameters)
        if choice.name == ORIGINAL:
            return choice, tuple(measured)
        if choice.name not in validations:
            job.progress("comparing outputs")
            validations[choice.name] = compare(
                job.start.reference, paths[choice.name], job.recipe.tolerance
            )
        told = _rival_fault(job, choice.name, validations[choice.name])
        if told is None:
            return choice, tuple(measured)
        wrong = next(form for form in rivals if form.name == choice.name)
        job.failed.append(candidates.Unmade(wrong, told))
        rivals.remove(wrong)


def _fault(job: Job, found: Validation) -> str | None:
    """What is wrong with the plain form, whose outputs compare like this; None if nothing is.

    A lossy pass moves the outputs, so that is no fault unless a tolerance was asked for. What does not run, or returns
    no numbers where the original does, is one in any case.
    """
    if found.verdict == "equal":
        return None
    apart = f"the outputs differ from the original's ({_difference(found)})"
    if job.is_exact:
        return f"{apart}, although every pass is exact: please report this as a bug, with the model"
    if job.recipe.tolerance is not None:
        return f"{apart}: prune less, or allow more with --tolerance"
    lost = any("float" in row.dtype and math.isinf(row.max_abs_error) for row in found.outputs)
    if found.failure is not None or lost:
        return (
            f"{apart}, which no pruning explains: please report this as a bug, with the model"
        )
    return None


def _rival_fault(job: Job, name: str, found: Validation) -> str | None:
    """What is wrong with another form than the plain one; None if nothing is.

    Where the plain form is pruned, what exact passes add to it is held against that form, not against the original.
    """
    saved = next(saved for saved in job.forms if saved.form.name == name)
    if not job.is_exact and all(
        step.is_exact for step in saved.steps if step.name in saved.form.added
    ):
        plain = job.forms[0]
        inputs = job.start.reference.inputs
        found = compare(run_reference(plain.path, inputs), saved.path)
        if found.verdict == "differs":
            return f"bug in deploykit: its outputs differ from those of '{plain.form.name}' ({_difference(found)})"
        return None
    if job.is_exact and found.verdict == "differs":
        return (
            f"bug in deploykit: its outputs differ from the original's ({_difference(found)})"
        )
    return _fault(job, found)


def _verdict(
    start: Start, chosen: Saved | None, measured: Sequence[Measurement]
) -> records.Verdict:
    if chosen is None:
        return "unchanged"
    if measured and measured[-1].ratios[chosen.form.name].hi < 1.0:
        return "faster"
    bytes_before = _source_bytes(start)
    # The bytes of constants count: what nodes and names take in a file of a few kilobytes says nothing.
    fewer = (
        chosen.size.parameters < start.size.parameters
        and chosen.size.constant_bytes < start.size.constant_bytes
    )
    if fewer or chosen.bytes < SMALLER * bytes_before:
        return "smaller"
    return "unchanged"


def _write_model(start: Start, form: Saved | None, folder: Path) -> None:
    """Write the chosen form, or the original, as `model.onnx`."""
    if form is not None:
        for file in form.path.parent.iterdir():
            file.rename(folder / file.name)
    elif start.source.is_external:
        model_io.save(
            start.model, folder / "model.onnx", external=True, sources=start.source.files
        )
    else:
        shutil.copyfile(start.path, folder / "model.onnx")


def _with_sparse(report: records.Report, job: Job, folder: Path) -> records.Report:
    """The report with what is known of sparse kernels in the written model, and of its engine, which is built here."""
    path, feeds, recipe = folder / "model.onnx", job.start.feeds, job.recipe
    if job.runner is not None:
        job.progress("looking for sparse kernels")
        report = dataclasses.replace(report, sparse=job.runner.sparse_verdict(path, feeds))
    if recipe.engine is not None:
        job.progress(f"building an engine with {recipe.engine}")
        built = engine_output.write(
            path, feeds, recipe.engine, recipe.compute_capability, job.runner
        )
        report = dataclasses.replace(report, engine=built)
    return report


def _report(job: Job, decided: Decision, work: Path) -> records.Report:
    start, forms = job.start, job.forms
    shown = decided.shown(forms)
    is_written = decided.form is not None
    after = shown.size if is_written else start.size
    bytes_before = _source_bytes(start)
    warnings = list(start.warnings) + list(_left_out_warnings(job.steps))
    warnings += _block_warnings(start.opened, job.steps)
    if job.recipe.engine is not None and decided.measured and job.runner is None:
        warnings.append(
            f"the forms were chosen by their times on the CPU of {job.request.place.name}, and the engine is for a GPU: give --no-profile, "
            "or where there is a GPU --runtime tensorrt"
        )
    warnings += [
        f"'{unmade.form.name}' was not considered: {unmade.reason}" for unmade in job.failed
    ]
    validation = decided.validations.get(shown.form.name)
    if validation is not None:
        warnings += validation.notes
    if is_written and not job.is_exact and not job.start.reference.given:
        warnings.append(
            "the outputs changed, and generated inputs say little of what that costs: give real ones with --inputs, and "
            "evaluate the model on your task"
        )
    if (
        is_written
        and shown.bytes > bytes_before
        and shown.size.constant_bytes <= start.size.constant_bytes
    ):
        warnings.append(
            "the file is larger although its constants are not: nodes, names and shapes were added"
        )
    final = decided.measured[-1] if decided.measured else None
    if final is not None and final.truncated:
        warnings.append("the measurement was cut short; intervals are wider than they need be")
    written = one_file.load(shown.path) if is_written else start.model
    compared = layers.compare(start.model, written, _forms(shown) if is_written else {})
    if is_written:
        warnings += lost_patterns(compared, written)
    seen = _look(job, decided, compared, written, work)
    warnings += seen.warnings
    passed = (
        *_pass_records(shown.reports, shown.steps, shown.seconds),
        *_tried_records(job, decided, shown),
    )
    return records.Report(
        command=job.request.command,
        versions=versions(start.opened),
        source=start.opened.record,
        model=None,
        target=job.target.name,
        passes=passed,
        size=records.Size(
            records.Count(start.size.parameters, after.parameters),
            records.Count(bytes_before, shown.bytes if is_written else bytes_before),
            records.Count(start.size.macs, after.macs),
            records.Count(start.size.nodes, after.nodes),
        ),
        validation=None if validation is None else _validation_record(validation),
        candidates=_candidate_records(job, decided),
        profile=None
        if final is None
        else _profile_record(
            final,
            ORIGINAL if decided.form is None else shown.form.name,
            job.request.place.describe(),
        ),
        layers=compared,
        layer_times=seen.layer_times,
        staircases=seen.staircases,
        ticket_layers=start.opened.ticket_layers,
        block_layers=block_layers.find_block_layers(
            start.model, shown.steps, compared, passed, given=start.opened.blocks
        ),
        verdict=decided.verdict,
        reason=decided.reason,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _look(
    job: Job,
    decided: Decision,
    compared: Sequence[records.Layer],
    written: ir.Model,
    work: Path,
) -> closeups.Closeups:
    """Look at single layers on the device; nothing where nothing was measured or nothing is written."""
    if not decided.measured or decided.verdict == "differs":
        return closeups.Closeups()
    form, plain = decided.form, job.forms[0]
    removed = compared
    if form is not plain:
        # Where the original stays, too: what removal alone leaves is what a user would compare with.
        removed = layers.compare(job.start.model, one_file.load(plain.path))
    return closeups.look(
        job.start.path,
        job.start.path if form is None else form.path,
        job.start.feeds,
        model=written,
        layers=compared,
        as_is={
            row.weight: row.outputs.after for row in removed if row.outputs.after is not None
        },
        folder=work,
        multiples=job.target.multiples,
        threads=job.recipe.threads,
        duration_s=job.request.settings.duration_s,
        progress=job.progress,
        runner=job.runner,
        place=job.request.place,
        runtime=job.recipe.runtime,
    )


def _candidate_records(job: Job, decided: Decision) -> tuple[records.Candidate, ...]:
    chosen = ORIGINAL if decided.form is None else decided.form.form.name
    if decided.verdict == "differs":
        chosen = ""
    problems = {unmade.form.name: unmade.reason for unmade in job.failed}
    rows = [
        records.Candidate(
            ORIGINAL,
            1.0 if decided.measured else None,
            (1.0, 1.0) if decided.measured else None,
            chosen == ORIGINAL,
            job.start.size.parameters,
            validated=True,
        )
    ]
    for saved in job.forms:
        name = saved.form.name
        # The latest measurement that a form took part in is the longest.
        found = [
            measured.ratios[name] for measured in decided.measured if name in measured.ratios
        ]
        ratio = found[-1] if found else None
        validation = decided.validations.get(name)
        is_final = bool(decided.measured) and name in decided.measured[-1].ratios
        note = problems.get(
            name, "" if is_final or not decided.measured else "behind in the screening"
        )
        rows.append(
            records.Candidate(
                name,
                None if ratio is None else ratio.median,
                None if ratio is None else (ratio.lo, ratio.hi),
                chosen == name,
                saved.size.parameters,
                None if validation is None else validation.verdict == "equal",
                note,
            )
        )
    known = {row.name for row in rows}
    for name, problem in problems.items():
        if name not in known:
            rows.append(records.Candidate(name, None, None, chosen=False, note=problem))
    return tuple(rows)


def _profile_record(final: Measurement, name: str, where: Device) -> records.Profile:
    rows = {
        each: records.LatencyRow(
            *(found.p50_s, found.p90_s, found.p95_s, found.p99_s), samples=found.samples
        )
        for each, found in final.latencies.items()
    }
    if name == ORIGINAL:
        # What is handed out is the original itself.
        interval, noisy = records.Interval(1.0, (1.0, 1.0)), final.clean_share < 0.5
    else:
        ratio = final.ratios[name]
        interval, noisy = records.Interval(ratio.median, (ratio.lo, ratio.hi)), ratio.noisy
    return records.Profile(
        baseline=rows[ORIGINAL],
        optimized=rows[name],
        ratio=interval,
        clock=final.clock,
        noisy=noisy,
        threads=final.threads,
        runtime=final.runtime,
        device={
            **dataclasses.asdict(where),
            **({"gpu": ", ".join(final.providers)} if final.clock == "device" else {}),
        },
        samples={
            key: _samples(final.samples[which])
            for key, which in (("baseline", ORIGINAL), ("optimized", name))
        },
    )


def _samples(timings: Timings) -> records.Samples:
    # A clock's digits beyond the nanosecond mean nothing, and would be half of the file.
    wall_s, cpu_s = (
        tuple(round(float(each), 9) for each in array)
        for array in (timings.wall_s, timings.cpu_s)
    )
    return records.Samples(wall_s, cpu_s, tuple(int(each) for each in timings.rebuild))


def _validation_record(found: Validation) -> records.ValidationRecord:
    return records.ValidationRecord(
        max_abs_error=found.max_abs_error,
        max_rel_error=found.max_rel_error,
        inputs=found.inputs,
        verdict=found.verdict,
        tolerance=found.tolerance,
        worst_output=found.worst,
        outputs=tuple(
            records.OutputRow(
                name=row.name,
                dtype=row.dtype,
                max_abs_error=row.max_abs_error,
                max_rel_error=row.max_rel_error,
                tolerance=row.tolerance,
                equal=row.verdict == "equal",
            )
            for row in found.outputs
        ),
        changes=found.changes,
    )


def _pass_records(
    reports: Sequence[PassReport],
    steps: Sequence[candidates.Step],
    seconds: Mapping[str, float],
) -> tuple[records.PassRecord, ...]:
    return tuple(
        records.PassRecord(
            name=report.name,
            exact=report.exact,
            modified=report.modified,
            options=dict(step.options),
            seconds=seconds.get(report.name, 0.0),
            changes=tuple(
                records.Change(change.subject, change.what, change.before, change.after)
                for change in report.changes
            ),
            skipped=tuple(
                records.Skip(skip.subject, skip.reason, skip.advice) for skip in report.skips
            ),
        )
        for report, step in zip(reports, steps, strict=True)
    )


def _forms(made: candidates.Made | Saved) -> dict[str, str]:
    """How weights are computed that are no longer there as they were, by name."""
    from passes.plans import BlockPlan

    return {
        name: f"{form}, {report.plan.reasons.get(name, '').partition(':')[0]}"
        for report in made.reports
        if isinstance(report.plan, BlockPlan)
        for name, form in report.plan.lowerings.items()
    }


def _tried_records(job: Job, decided: Decision, shown: Saved) -> tuple[records.PassRecord, ...]:
    """Of a pass that chooses for each layer, and is not part of what is handed out: why not, layer by layer."""
    ran = {step.name for step in shown.steps}
    found = []
    for step in job.steps:
        report = job.tried.get(step.name)
        if step.name in ran or report is None or not registry.accepts(step.kind, "choose"):
            continue
        left = tuple(
            records.Skip(
                change.subject,
                f"it stays dense, although it would be computed by itself as {change.what.removeprefix('weights, as ')}: "
                f"as a whole the model is not proven faster so ({decided.reason})",
                "see the candidates",
            )
            for change in report.changes
        )
        told = tuple(
            records.Skip(skip.subject, skip.reason, skip.advice) for skip in report.skips
        )
        found.append(
            records.PassRecord(
                name=report.name,
                exact=report.exact,
                modified=False,
                options=dict(step.options),
                seconds=0.0,
                changes=(),
                skipped=(*left, *told),
            )
        )
    return tuple(found)


def _left_out_warnings(steps: Sequence[candidates.Step]) -> tuple[str, ...]:
    return tuple(
        f"'{name}' did not run: what it adds is only kept when a measurement shows that it pays"
        for name in candidates.left_out(steps)
    )


def _block_warnings(opened: Opened, steps: Sequence[candidates.Step]) -> tuple[str, ...]:
    """Says that a ticket's blocks make nothing faster where no pass runs that takes them."""
    if not opened.blocks or any(registry.accepts(step.kind, "blocks") for step in steps):
        return ()
    told = (
        f"the ticket has dense blocks in {len(opened.blocks)} weights, and no pass of this run computes them as small "
        "operations: these layers stay dense, zeros included, and take as long as before"
    )
    return (told,)


def _difference(found: Validation) -> str:
    if found.failure is not None:
        return found.failure
    return f"output '{found.worst}' by {found.max_rel_error:.2g} of what it moves by; allowed is {found.tolerance:.2g}"


def _source_bytes(start: Start) -> int:
    return sum(file.stat().st_size for file in start.source.files)
