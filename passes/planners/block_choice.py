"""Chooses the form of a layer with blocks by rules alone, where nothing can be measured."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final

from passes.lowerings import DENSE

if TYPE_CHECKING:
    from passes.lowerings.alone import Case

__all__ = ["Chosen", "choose_by_rules", "estimate"]

WORTH: Final = 0.9
"""A form has to be estimated at less than this of the dense layer: an estimate is wrong by a tenth easily."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What was decided for a layer.

    Attributes:
        name: of the form.
        reason: why, in words.
        advice: what a user can do about it.
    """

    name: str
    reason: str
    advice: str = ""


def choose_by_rules(case: Case) -> Chosen:
    """The form with the lowest estimate, if that is well below the dense layer."""
    costs = {name: estimate(case, name) for name in case.names}
    dense = costs.pop(DENSE)
    best = min(costs, key=lambda name: costs[name])
    ratio = costs[best] / dense
    if ratio >= WORTH:
        return Chosen(
            DENSE,
            f"by the rules of '{case.target.name}' it would take {ratio:.2f} of the dense time as {best}",
            "measure on the device, which knows better, or make larger blocks",
        )
    return Chosen(best, f"{ratio:.2f} of the dense time, by the rules of '{case.target.name}'")


def estimate(case: Case, name: str) -> float:
    """The time of a form, in multiply-adds.

    What is computed counts as it is, in whole multiples of channels; what is copied counts as the target says that a copied
    element takes.
    """
    task = case.task
    copied = case.target.copy_macs
    if task.layer.kind == "conv":
        places = case.shape[0] * math.prod(case.shape[2:])
        outputs = places // math.prod(_strides(case))
        kernel = math.prod(stop - first for first, stop in task.window)
        whole = task.layer.array.size * outputs
    else:
        places = outputs = math.prod(case.shape) // task.layer.columns
        kernel, whole = 1, task.layer.array.size * outputs
    if name == DENSE:
        return float(whole)
    even = task.even
    if name in {"grouped", "gathered"} and even is not None:
        width = even[0][1].size
        macs = sum(rows.size for rows, _ in even) * width * kernel * outputs
        read = len(even) * width if name == "gathered" else 0
    else:
        macs = sum(part.area for part in task.parts) * kernel * outputs
        read = sum(part.columns.size for part in task.parts)
        read += task.layer.rows if len(task.parts) > 1 else 0
        if name == "products-of-rows":
            read += task.layer.columns + task.layer.rows
    rows = [part.rows for part in task.parts]
    if task.restore(rows) is not None:
        read += task.layer.rows
    return float(macs + read * places * copied)


def _strides(case: Case) -> tuple[int, ...]:
    found = case.task.layer.node.attributes.get("strides")
    return tuple(found.as_ints()) if found is not None else (1,)
