"""How far the outputs of a model move: from input to input, and from one model to another that is meant to differ.

Errors that should be none are put in relation to how far an output moves from input to input; see `deploykit.validate`.
Those that are meant are put in relation to the standard deviation of the output itself, over all its elements on all inputs
of one kind, which does not depend on what else was tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["LEAST_SPREAD", "OutputChange", "find_changes", "find_spreads"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LEAST_SPREAD = 0.01


@dataclasses.dataclass(frozen=True)
class OutputChange:
    """How one output changed, on inputs of one kind.

    Attributes:
        output: its name.
        on: "given", the user's own inputs, or "generated".
        inputs: how many there are.
        max_abs_error: largest absolute difference.
        max_rel_error: the same, in standard deviations of the output; integers, bools and strings: the largest share of
            elements that differ on one input.
        mean_abs_error: absolute difference, the mean over all elements.
        mean_rel_error: the same, in standard deviations of the output; of integers, bools and strings the share that differs.
        agreement: share of rows whose largest element is where it was, 0 to 1: of outputs that look like the scores of a
            classifier, which are floats of shape `(rows, classes)`; None for others.
    """

    output: str
    on: str
    inputs: int
    max_abs_error: float
    max_rel_error: float
    mean_abs_error: float
    mean_rel_error: float
    agreement: float | None


def find_changes(
    expected: Sequence[Mapping[str, Array]], actual: Sequence[Mapping[str, Array]], given: int
) -> tuple[OutputChange, ...]:
    """Compare the outputs of two models.

    Args:
        expected: outputs of the original by name, one entry an input.
        actual: those of the other model, of the same names and shapes.
        given: how many of the inputs, the first ones, are the user's own.

    Returns:
        for each output a row for the given inputs, and one for the others.
    """
    rows = []
    for name in expected[0]:
        mine, theirs = [each[name] for each in expected], [each[name] for each in actual]
        for on, part in (("given", slice(given)), ("generated", slice(given, None))):
            if mine[part]:
                rows.append(find_change(name, on, mine[part], theirs[part]))
    return tuple(rows)


def find_change(
    name: str, on: str, expected: Sequence[Array], actual: Sequence[Array]
) -> OutputChange:
    """How one output changed on inputs of one kind."""
    errors = [find_errors(*pair) for pair in zip(expected, actual, strict=True)]
    largest = [float(each.max(initial=0.0)) for each in errors]
    means = [float(each.mean()) if each.size else 0.0 for each in errors]
    is_float = expected[0].dtype.kind == "f"
    deviation = find_deviation(expected) if is_float else 1.0
    mean = math.fsum(means) / len(means)
    return OutputChange(
        output=name,
        on=on,
        inputs=len(errors),
        max_abs_error=max(largest),
        # of what is no float, an element is right or wrong, and the share of wrong ones says more than the worst one
        max_rel_error=relative(max(largest if is_float else means), deviation),
        mean_abs_error=mean,
        mean_rel_error=relative(mean, deviation),
        agreement=find_agreement(expected, actual),
    )


def find_deviation(outputs: Sequence[Array]) -> float:
    """Standard deviation of the finite elements of an output on all inputs; where they are all the same, their size."""
    elements = np.concatenate(
        [array[np.isfinite(array)].astype(np.float64) for array in outputs]
    )
    if not elements.size:
        return 0.0
    return float(elements.std()) or float(np.abs(elements).max())


def find_errors(expected: Array, actual: Array) -> Array:
    """Absolute differences of two arrays, float64; 1 or 0 where they hold no floats; infinite where only one is finite."""
    if expected.dtype.kind != "f":
        return np.asarray(expected != actual, dtype=np.float64)
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.subtract(actual, expected, dtype=np.float64))
    errors: Array = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return errors


def relative(error: float, scale: float) -> float:
    """An error in relation to a scale; nothing is infinitely far from what never moves."""
    if scale > 0.0:
        return float(error) / scale
    return math.inf if error > 0.0 else 0.0


def find_agreement(expected: Sequence[Array], actual: Sequence[Array]) -> float | None:
    """Share of rows whose largest element is where it was; None for what is no table of scores."""
    if any(
        array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] < 2 for array in expected
    ):
        return None
    pairs = zip(expected, actual, strict=True)
    same = np.concatenate([mine.argmax(1) == theirs.argmax(1) for mine, theirs in pairs])
    return float(same.mean()) if same.size else None


def find_spreads(outputs: Sequence[Array]) -> list[float]:
    """How far an output moves, for each input: the largest distance of its elements from their median over all inputs.

    The median, and a figure for each input, because a single input with huge outputs must not excuse the errors of the
    others. An output that is the only one of its shape is measured by the range of its own elements.

    Args:
        outputs: an output on all inputs.
    """
    spreads = [0.0] * len(outputs)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(outputs):
        groups.setdefault(array.shape, []).append(index)
    for shape, members in groups.items():
        if 0 in shape:
            continue
        stack = np.stack([outputs[index] for index in members]).astype(np.float64)
        stack[~np.isfinite(stack)] = 0.0
        if len(members) == 1:
            spreads[members[0]] = float(np.ptp(stack)) or float(np.abs(stack).max())
            continue
        middle = np.median(stack, axis=0)
        for index, array in zip(members, stack, strict=True):
            spreads[index] = float(np.abs(array - middle).max())
    return spreads
