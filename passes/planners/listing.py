"""What a saved plan lists, in terms of a model: a plan may be edited, so nothing in it is taken for granted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.tags import Pin
from passes.errors import PlanMismatch

if TYPE_CHECKING:
    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.plans import ChannelPlan

__all__ = ["UNLISTED", "check_fit", "listed_pads", "unlisted"]

UNLISTED = Pin("", "the plan does not list them", "add them to the plan")
MOST_NAMED = 5


def check_fit(channels: ChannelMap, plan: ChannelPlan) -> None:
    """Check that a plan speaks of tensors and channels that there are.

    Raises:
        PlanMismatch: it does not.
    """
    sizes = {
        node.outputs[0].name or "": made.size for node, made in channels.trace.sources.items()
    }
    for name, positions in [*plan.dropped.items(), *plan.padded.items()]:
        if name not in sizes:
            there = ", ".join(f"'{other}'" for other in list(sizes)[:MOST_NAMED]) or "none"
            msg = (
                f"the plan speaks of channels of '{name}', and no weight of the model makes such a tensor. There are: "
                f"{there}{', ...' if len(sizes) > MOST_NAMED else ''}. Correct the name, or delete the entry."
            )
            raise PlanMismatch(msg)
        size = sizes[name]
        if plan.sizes.get(name, size) != size:
            msg = (
                f"the plan was made for {plan.sizes[name]} channels of '{name}', and the model has {size}. "
                "Make a new plan for this model."
            )
            raise PlanMismatch(msg)
        wrong = [position for position in positions if not 0 <= position < size]
        if wrong:
            msg = (
                f"the plan speaks of channel {wrong[0]} of '{name}', which has {size}: 0 to {size - 1}. "
                "Correct it, or delete it."
            )
            raise PlanMismatch(msg)
    for name, counts in plan.padded.items():
        for position, count in counts.items():
            if count < 1:
                msg = f"the plan puts {count} channels behind channel {position} of '{name}'. Give at least 1, or delete it."
                raise PlanMismatch(msg)


def unlisted(channels: ChannelMap, dropped: Mapping[str, Iterable[int]]) -> dict[int, Pin]:
    """Classes that have to stay because they are not listed in whole, with what is missing.

    Args:
        channels: the channel map of the model.
        dropped: positions of channels by the tensor that makes them.
    """
    held: dict[int, Pin] = {}
    listed = np.zeros(channels.roots.size, dtype=bool)
    missing: dict[int, tuple[str, int]] = {}
    for node, made in channels.trace.sources.items():
        name = node.outputs[0].name or ""
        line = channels.roots[made.ravel()]
        picked = np.zeros(line.size, dtype=bool)
        picked[list(dropped.get(name, ()))] = True
        listed[line[picked]] = True
        for free in np.flatnonzero(~picked).tolist():
            missing.setdefault(int(line[free]), (name, free))
    for root, (name, position) in missing.items():
        held[root] = UNLISTED
        if listed[root]:
            reason = f"the plan does not list channel {position} of '{name}', which they go together with"
            held[root] = Pin(name, reason, "add it to the plan, too")
    return held


def listed_pads(
    channels: ChannelMap,
    padded: Mapping[str, Mapping[int, int]],
    refused: Mapping[int, Pin],
    ends: Array,
) -> tuple[dict[int, int], dict[int, Pin]]:
    """How many zero channels a plan puts behind each class.

    Args:
        channels: the channel map of the model.
        padded: counts by tensor and position.
        refused: class -> why nothing can be put behind it.
        ends: classes behind which channels can be put.

    Returns:
        counts by class, and what is left out because it is not listed in whole.

    Raises:
        PlanMismatch: there can be none, or channels that go together have different counts.
    """
    found: dict[int, tuple[int, str, int]] = {}
    missing: dict[int, Pin] = {}
    for node, made in channels.trace.sources.items():
        name = node.outputs[0].name or ""
        line = channels.roots[made.ravel()]
        for position, count in padded.get(name, {}).items():
            root = int(line[position])
            what = f"the plan puts {count} channels behind channel {position} of '{name}'"
            if root in refused:
                msg = (
                    f"{what}, which cannot be: {refused[root].reason}. Delete it from the plan."
                )
                raise PlanMismatch(msg)
            if root not in ends:
                msg = f"{what}, which is not the last of the channels that go the same way. Delete it from the plan."
                raise PlanMismatch(msg)
            other, there, at = found.setdefault(root, (count, name, position))
            if other != count:
                msg = (
                    f"{what} and {other} behind channel {at} of '{there}', which goes together with it. "
                    "Give both the same number."
                )
                raise PlanMismatch(msg)
    for node, made in channels.trace.sources.items():
        name = node.outputs[0].name or ""
        line = channels.roots[made.ravel()]
        for at in np.flatnonzero(np.isin(line, list(found))).tolist():
            if at not in padded.get(name, {}):
                reason = f"the plan puts nothing behind channel {at} of '{name}', which goes together with it"
                missing.setdefault(int(line[at]), Pin(name, reason, "add it to the plan, too"))
    return {
        root: count for root, (count, _, _) in found.items() if root not in missing
    }, missing
