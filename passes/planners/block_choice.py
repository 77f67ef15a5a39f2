"""Chooses the form of a layer with blocks by rules alone, where nothing can be measured."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final

from passes.lowerings import DENSE
from passes.lowerings.tape import has_long_runs, is_run

if TYPE_CHECKING:
    from passes.lowerings.alone import Case

__all__ = ["Chosen", "choose_by_rules", "estimate"]

WORTH: Final = 0.9
"""A form has to be estimated at less than this of the dense layer: an estimate is wrong by a tenth easily."""
RUN: Final = 8
"""Multiply-adds that take as long as an element that is copied along with its neighbours."""


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

    Args:
        case: the layer.
        name: one of its forms.
    """
    if case.task.layer.kind == "conv":
        return _estimate_convolution(case, name)
    return _estimate_product(case, name)


def _estimate_convolution(case: Case, name: str) -> float:
    task = case.task
    places = case.shape[0] * math.prod(case.shape[2:])
    outputs = places // math.prod(_strides(case))
    if name == DENSE:
        return float(task.layer.array.size * outputs)
    kernel = math.prod(stop - first for first, stop in task.window)
    even = {"grouped": task.diagonal, "gathered": task.even, "padded": task.padded}.get(name)
    order = [part.rows for part in task.parts]
    if even is not None:
        order = [rows for rows, _ in even]
        width = even[0][1].size
        macs = sum(rows.size for rows, _ in even) * width * kernel * outputs
        read = 0 if name == "grouped" else len(even) * width
        written = 0
    else:
        macs = sum(part.area for part in task.parts) * kernel * outputs
        read = sum(part.columns.size for part in task.parts)
        written = task.layer.rows if len(task.parts) > 1 else 0
    if task.restore(order) is not None:
        written += task.layer.rows
    return float(macs + (read * places + written * outputs) * case.target.copy_macs)


def _estimate_product(case: Case, name: str) -> float:
    task = case.task
    places = math.prod(case.shape) // task.layer.columns
    if name == DENSE:
        return float(task.layer.array.size * places)
    macs = sum(part.area for part in task.parts)
    rows = task.layer.rows
    picked = [part.columns for part in task.parts if not is_run(part.columns)]
    restored = task.restore(part.rows for part in task.parts)
    if restored is not None:
        picked.append(restored)
    if name == "products-of-rows":
        # Turned twice; then whole rows are copied.
        moved = (task.layer.columns + 2 * rows + sum(each.size for each in picked)) * RUN
    else:
        moved = (sum(part.columns.size for part in task.parts) + rows) * RUN
        moved += sum(
            each.size * (RUN if has_long_runs(each) else case.target.gather_macs)
            for each in picked
        )
    return float((macs + moved) * places)


def _strides(case: Case) -> tuple[int, ...]:
    found = case.task.layer.node.attributes.get("strides")
    return tuple(found.as_ints()) if found is not None else (1,)
