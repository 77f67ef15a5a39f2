"""How good a model is at its task: by a function of the user's, or by one that is built in.

A function is called with the path of a model, and with that of the data if the recipe names some, and returns a number.
`top1` and `top5` are the share of examples whose label is the most likely one, or one of the five most likely.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
import sys
import traceback
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import DeploykitError, UsageError
from deploykit.step.sources import check_reference, find_sources, loading

if TYPE_CHECKING:
    from deploykit.runtimes import TensorSpec
    from deploykit.step.records import AccuracyRecord, AccuracySpec

__all__ = ["BUILT_IN", "check_metric", "measure_accuracy"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BUILT_IN: Mapping[str, int] = {"top1": 1, "top5": 5}
"""Names of metrics, and how many answers are looked at."""

LABELS = "labels"
BATCH = 64
Z_95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Share:
    """How many of some examples were right."""

    right: int
    examples: int

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.right / self.examples

    @property
    def ci95(self) -> tuple[float, float]:
        """Its 95 % interval.

        Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, J. Am. Stat. Assoc. 22,
            1927.
        """
        count, share = self.examples, self.value
        scale = 1 + Z_95**2 / count
        middle = (share + Z_95**2 / (2 * count)) / scale
        half = Z_95 * math.sqrt(share * (1 - share) / count + (Z_95 / (2 * count)) ** 2) / scale
        return max(0.0, middle - half), min(1.0, middle + half)


def check_metric(metric: str, folder: Path) -> None:
    """Check that there is such a metric, as far as that can be known without running it.

    Raises:
        UsageError: there is none.
    """
    if metric not in BUILT_IN:
        check_reference(metric, folder)


def measure_accuracy(
    spec: AccuracySpec, folder: Path, original: Path, optimized: Path
) -> AccuracyRecord:
    """Find how good two models are.

    Args:
        spec: by what.
        folder: where modules are looked for first.
        original: file of the one.
        optimized: file of the other.

    Raises:
        UsageError: the metric fails, or returns no number; or the data do not fit the models.
        ModelError: a model does not run on the data.
    """
    from deploykit.step.records import AccuracyRecord

    if spec.metric in BUILT_IN:
        before, after = (_share(spec, path) for path in (original, optimized))
        return AccuracyRecord(
            spec.metric,
            original=before.value,
            optimized=after.value,
            higher_is_better=True,
            examples=after.examples,
            ci95=after.ci95,
        )
    module, _, name = spec.metric.partition(":")
    with (
        loading(folder, find_sources(module, folder).files),
        contextlib.redirect_stdout(sys.stderr),
    ):
        function = _function(spec.metric, module, name)
        before_value = _call(function, spec, original, "original")
        after_value = _call(function, spec, optimized, "optimized")
    return AccuracyRecord(
        spec.metric,
        original=before_value,
        optimized=after_value,
        higher_is_better=spec.higher_is_better,
    )


def _function(metric: str, module: str, name: str) -> Callable[..., object]:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except DeploykitError:
        raise
    except (Exception, SystemExit) as error:
        msg = f"the metric '{metric}' cannot be loaded: {_told(error)}. Correct it."
        raise UsageError(msg) from error
    if not callable(found):
        msg = f"the metric '{metric}' is a {type(found).__name__}, and no function of the path of a model."
        raise UsageError(msg)
    return found  # type: ignore[no-any-return]  # it is callable


def _call(function: Callable[..., object], spec: AccuracySpec, path: Path, which: str) -> float:
    given = (str(path),) if spec.data is None else (str(path), str(spec.data))
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        what = "the path of a model" + ("" if spec.data is None else " and that of the data")
        msg = f"the metric '{spec.metric}' cannot be called with {what}: {error}. Change its parameters."
        raise UsageError(msg) from error
    except ValueError:
        pass  # a function of C that does not say what it takes
    try:
        value = function(*given)
    except DeploykitError:
        raise
    except (Exception, SystemExit) as error:
        # A script's sys.exit(0) would end the step as if the model might ship.
        msg = f"the metric '{spec.metric}' failed on the {which} model: {_told(error)}. Correct it."
        raise UsageError(msg) from error
    try:
        number = float(value)  # type: ignore[arg-type]  # that is what is tried
    except (TypeError, ValueError) as error:
        msg = f"the metric '{spec.metric}' returned a {type(value).__name__} for the {which} model, and no number. Correct it."
        raise UsageError(msg) from error
    if not math.isfinite(number):
        msg = (
            f"the metric '{spec.metric}' returned {number} for the {which} model, which nothing can be compared with. "
            "Correct it."
        )
        raise UsageError(msg)
    return number


def _told(error: BaseException) -> str:
    """An error of the user's code, and the line of the user's code that it comes from."""
    text = str(error).rstrip(" .")
    lines = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__) + place


# -- built in ------------------------------------------------------------------------------------


def _share(spec: AccuracySpec, path: Path) -> Share:
    """How often the label is among the most likely answers of a model."""
    from deploykit.runtimes.onnxruntime import Session

    if spec.data is None:
        msg = f"'{spec.metric}' needs data: an .npz with the inputs by name and \"{LABELS}\"."
        raise UsageError(msg)
    arrays = _read(spec.data)
    answers = BUILT_IN[spec.metric]
    with Session(path) as session:
        labels = _labels(spec.data, arrays, [each.name for each in session.inputs])
        count = labels.size
        right = 0
        step = _step(session.inputs)
        for begin in range(0, count, step):
            wanted = labels[begin : begin + step]
            chosen = np.arange(begin, begin + step)
            feeds = {
                each.name: _part(spec.data, each, arrays[each.name], chosen)
                for each in session.inputs
            }
            scores = next(iter(session.run(feeds).values()))
            if scores.ndim != 2 or scores.shape[0] < wanted.size:
                msg = (
                    f"'{spec.metric}' wants a first output of one score for each class, shape (examples, classes), and "
                    f"'{path.name}' returns {list(scores.shape)}. Give a metric of your own, as module:function."
                )
                raise UsageError(msg)
            best = np.argsort(-scores[: wanted.size], axis=1, kind="stable")[:, :answers]
            right += int((best == wanted[:, None]).any(axis=1).sum())
    return Share(right, count)


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        msg = f"'{path}' cannot be read as examples: {error}. It must be an .npz file, as numpy.savez writes it."
        raise UsageError(msg) from error


def _labels(path: Path, arrays: Mapping[str, Array], inputs: list[str]) -> Array:
    """The labels, shape `(examples,)`."""
    missing = [name for name in (*inputs, LABELS) if name not in arrays]
    if missing:
        there = ", ".join(f"'{name}'" for name in arrays) or "nothing"
        msg = f"'{path}' has no array '{missing[0]}', and holds {there}: give the inputs by name and \"{LABELS}\"."
        raise UsageError(msg)
    labels = arrays[LABELS]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        msg = f"'{path}': \"{LABELS}\" is {labels.dtype} of shape {list(labels.shape)}, and has to be whole numbers, one an example."
        raise UsageError(msg)
    for name in inputs:
        if arrays[name].shape[:1] != labels.shape:
            msg = f"'{path}' has {labels.size} labels, and '{name}' has the shape {list(arrays[name].shape)}: one row an example."
            raise UsageError(msg)
    return labels


def _step(inputs: tuple[TensorSpec, ...]) -> int:
    """How many examples are run at once: as many as the model is made for."""
    fixed = [each.shape[0] for each in inputs if each.shape and isinstance(each.shape[0], int)]
    return fixed[0] if fixed and isinstance(fixed[0], int) else BATCH


def _part(path: Path, spec: TensorSpec, array: Array, chosen: Array) -> Array:
    """Some examples; where the model is made for a number of them, the last one again for those that are missing."""
    if array.ndim != len(spec.shape):
        msg = f"'{path}': '{spec.name}' has {array.ndim} axes, and the model's input has {len(spec.shape)}."
        raise UsageError(msg)
    if not isinstance(spec.shape[0], int):
        chosen = chosen[chosen < len(array)]
    part = array[np.minimum(chosen, len(array) - 1)]
    wanted = np.dtype(spec.dtype) if spec.dtype != "bfloat16" else part.dtype
    if not np.can_cast(part.dtype, wanted, casting="same_kind"):
        msg = f"'{path}': '{spec.name}' is {part.dtype}, and the model's input is {spec.dtype}: convert it first."
        raise UsageError(msg)
    return np.ascontiguousarray(part, dtype=wanted)
