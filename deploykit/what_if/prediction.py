"""Times networks as they would be against the original: a prediction that is a measurement."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import model_io, profiling
from deploykit.errors import DeploykitError, UsageError
from deploykit.layer_choice import LayerChooser
from deploykit.profile import SCREENING, Place, measure
from deploykit.profile.place import Here
from deploykit.profile.statistics import adds_enough
from deploykit.report.profile_wording import labels
from deploykit.report.what_if_records import (
    KeptRow,
    Prediction,
    RefusedWhatIf,
    SkipRow,
    WhatIfRecord,
)
from deploykit.runtimes import start
from deploykit.size import count
from deploykit.what_if.surrogates import AS_IS, Bench, Surrogate

if TYPE_CHECKING:
    from deploykit.model_io import Source
    from deploykit.profiling import Progress, Request
    from deploykit.report.profile_records import ProfileReport
    from deploykit.runtimes import Runner
    from deploykit.what_if.asks import WhatIf
    from passes.targets import Target

__all__ = ["Options", "Studio", "measure_all", "open_studio", "predict"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Options:
    """How networks are made up.

    Attributes:
        multiple: what counts of channels are rounded to; None: what the target likes.
        target: name of the target; None: that of the place where it is measured.
    """

    multiple: int | None = None
    target: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Studio:
    """What all networks of one run are made and timed with.

    Attributes:
        request: the model, and how it is measured.
        name: what the model is called.
        source: the model.
        feeds: what it is run on.
        bench: builds surrogates.
        runner: what runs models here; None is ONNX Runtime, or that they run elsewhere.
        folder: where models may be written.
        progress: told what is going on.
    """

    request: Request
    name: str
    source: Source
    feeds: Mapping[str, Array]
    bench: Bench
    runner: Runner | None
    folder: Path
    progress: Progress

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of the inputs."""
        return {name: tuple(array.shape) for name, array in self.feeds.items()}

    @property
    def where(self) -> Place:
        """Where single layers are timed: with the runner, if one runs here."""
        return self.request.place if self.runner is None else Here(self.runner)

    def write(self, surrogate: Surrogate, number: int) -> dict[str, Path]:
        """The files of a surrogate's forms."""
        paths = {}
        for index, (form, model) in enumerate(surrogate.forms.items()):
            paths[form] = self.folder / f"{number}-{index}.onnx"
            model_io.save(model, paths[form], external=self.source.is_external)
        return paths

    def fastest(self, surrogate: Surrogate, number: int) -> tuple[str, Path]:
        """The form of a surrogate that `optimize` would take: the plain one unless another is proven faster by 2 %."""
        paths = self.write(surrogate, number)
        if len(paths) == 1:
            return next(iter(paths.items()))
        self.progress(f"looking for the fastest form of {surrogate.name}", 0.0)
        measured = measure(
            paths,
            self.feeds,
            threads=self.request.threads,
            settings=SCREENING,
            progress=lambda done: self.progress(
                f"looking for the fastest form of {surrogate.name}", done
            ),
            runner=self.runner,
            place=self.request.place,
            runtime=self.request.runtime,
        )
        best = AS_IS
        for form in list(paths)[1:]:
            if adds_enough(measured.ratio(form, best)):
                best = form
        return best, paths[best]


@contextmanager
def open_studio(request: Request, options: Options, progress: Progress) -> Iterator[Studio]:
    """Read the model, and get ready what networks are made with.

    Raises:
        UsageError: several models, or a target that there is not.
        ModelError: the model cannot be read, or does not run.
        RuntimeUnavailable: the runtime is not there.
    """
    if len(request.models) != 1:
        msg = f"what would be is asked of one model, and {len(request.models)} are given. Give one of them."
        raise UsageError(msg)
    (name,) = labels(request.models)
    progress("reading the model")
    source = model_io.load(request.models[0])
    feeds, _ = profiling.find_feeds(request, (name,))
    runner = start(request.runtime) if request.place.is_local else None
    target = _find_target(request, options)
    chooser = LayerChooser(
        threads=request.threads or 1,
        progress=progress,
        runner=runner,
        place=request.place,
        runtime=request.runtime,
    )
    shapes = {each: tuple(array.shape) for each, array in feeds.items()}
    bench = Bench(source.model, shapes, target, options.multiple, chooser)
    with tempfile.TemporaryDirectory(prefix="deploykit-what-if-") as folder:
        yield Studio(request, name, source, feeds, bench, runner, Path(folder), progress)


def _find_target(request: Request, options: Options) -> Target:
    from deploykit.pipeline import find_target
    from deploykit.recipe import Recipe

    recipe = Recipe(target=options.target, runtime=request.runtime).check()
    return find_target(recipe, request.place)


def predict(
    request: Request,
    what_ifs: Sequence[WhatIf],
    options: Options | None = None,
    *,
    progress: Progress = profiling.silent,
) -> ProfileReport:
    """Measure what a model would be like.

    Args:
        request: the model, and how it is measured.
        what_ifs: the networks to make of it.
        options: how they are made.
        progress: told what is going on.

    Returns:
        the profile of the original and of every network, all timed in turns, with their layers.

    Raises:
        UsageError: a what-if makes no sense for this model.
        ModelError: the model cannot be read or does not run, or nothing of what was asked for can be made.
        RuntimeUnavailable: the runtime is not there, or makes nothing of what was asked for.
    """
    names = [each.name for each in what_ifs]
    if len(set(names)) < len(names):
        msg = f"the what-if '{max(names, key=names.count)}' is asked for twice. Leave one out."
        raise UsageError(msg)
    with open_studio(request, options or Options(), progress) as studio:
        made: list[Surrogate] = []
        refused: list[RefusedWhatIf] = []
        failure: DeploykitError | None = None
        for what_if in what_ifs:
            progress(f"making {what_if.name}")
            try:
                made.append(studio.bench.build(what_if))
            except UsageError:
                raise
            except DeploykitError as error:
                failure = failure or error
                refused.append(RefusedWhatIf(what_if.name, str(error)))
        if failure is not None and not made:
            raise failure
        report, predictions = measure_all(studio, made)
    record = WhatIfRecord(studio.name, predictions, tuple(refused))
    return dataclasses.replace(report, what_if=record)


def measure_all(
    studio: Studio, surrogates: Sequence[Surrogate]
) -> tuple[ProfileReport, tuple[Prediction, ...]]:
    """Time the original and surrogates in turns, and their layers."""
    chosen = [studio.fastest(each, number) for number, each in enumerate(surrogates)]
    request = dataclasses.replace(
        studio.request,
        models=(studio.request.models[0], *(path for _, path in chosen)),
        names=(studio.name, *(each.name for each in surrogates)),
        layers=True,
    )
    report = profiling.profile(request, progress=studio.progress)
    before = count(studio.source.model, studio.shapes)
    rows = []
    for each, (form, _), relative in zip(surrogates, chosen, report.relative, strict=True):
        after = count(each.forms[form], studio.shapes)
        macs = None
        if before.macs is not None and after.macs is not None:
            macs = (before.macs, after.macs)
        rows.append(
            Prediction(
                name=each.name,
                form=form,
                parameters=(before.parameters, after.parameters),
                macs=macs,
                ratio=relative.ratio,
                ci95=relative.ci95,
                assumed=each.assumed,
                kept=tuple(KeptRow(weight, *row) for weight, row in each.kept.items()),
                skips=tuple(
                    SkipRow(skip.subject, skip.reason, skip.advice) for skip in each.skips
                ),
            )
        )
    # What was timed is gone when this ends: its path would name a file that is not there.
    models = (
        report.models[0],
        *(dataclasses.replace(model, path=model.name) for model in report.models[1:]),
    )
    return dataclasses.replace(report, models=models), tuple(rows)
