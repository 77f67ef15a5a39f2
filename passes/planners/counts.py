"""Turns counts of channels by weight into counts of the groups that they are kept in.

Who plans for time says how many output channels each weight keeps, and leaves to importance which ones. Weights whose
channels are tied have to say the same; weights that are not named keep theirs unless they are tied to one that is named.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from passes.errors import PlanMismatch
from passes.planners.dead_channels import weight_of

if TYPE_CHECKING:
    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.tags import Pin
    from passes.planners.pruning import Group

__all__ = ["counts_of_groups", "find_makers", "group_of_classes"]


def find_makers(channels: ChannelMap) -> dict[str, list[Array]]:
    """The classes of the channels that each weight makes, one array a node that uses it."""
    found: dict[str, list[Array]] = {}
    for node, made in channels.trace.sources.items():
        found.setdefault(weight_of(channels, node), []).append(channels.roots[made.ravel()])
    return found


def group_of_classes(channels: ChannelMap, groups: Sequence[Group]) -> Array:
    """Which group each class is in: int, shape `(tags,)`; -1 for none."""
    found = np.full(channels.roots.size, -1)
    for index, group in enumerate(groups):
        found[group.classes] = index
    return found


def counts_of_groups(
    channels: ChannelMap,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    held: Mapping[int, Pin],
) -> tuple[int, ...]:
    """How many items each group keeps.

    Args:
        channels: the channel map.
        groups: the groups, not rounded to any multiple.
        counts: output channels to keep, by weight. Where the channels of a weight are in several groups, each keeps the
            same share.
        held: classes that have to stay, and why.

    Raises:
        PlanMismatch: there is no such weight, it has not so many channels, so few of them cannot be kept, or two weights
            that are tied are given different counts.
    """
    makers = find_makers(channels)
    inside = group_of_classes(channels, groups)
    wanted = [group.size for group in groups]
    said_by: dict[int, str] = {}
    for weight, count in counts.items():
        for classes in makers.get(weight) or _unknown(weight, makers):
            if not 1 <= count <= classes.size:
                msg = (
                    f"the counts keep {count} channels of '{weight}', which makes {classes.size}. Keep 1 to {classes.size}; "
                    "or were the counts made for another model?"
                )
                raise PlanMismatch(msg)
            if count == classes.size:
                shares = dict.fromkeys(_present(inside[classes]), 1.0)
            else:
                shares = _share(weight, count, classes, inside[classes], held)
            for index, share in shares.items():
                items = _items(weight, count, classes.size, share * groups[index].size)
                first = said_by.setdefault(index, weight)
                if first != weight and wanted[index] != items:
                    msg = (
                        f"the counts keep {counts[first]} channels of '{first}' and {count} of '{weight}', whose channels "
                        "are tied: they meet in a sum, or pass through the same layer. Give both the same share."
                    )
                    raise PlanMismatch(msg)
                wanted[index] = items
    return tuple(wanted)


def _unknown(weight: str, makers: Mapping[str, object]) -> list[Array]:
    near = difflib.get_close_matches(weight, list(makers), n=3, cutoff=0.3) or list(makers)[:3]
    there = ", ".join(f"'{name}'" for name in near) or "none"
    msg = (
        f"the counts name '{weight}', and no weight of that name makes channels in this model. There is {there}. Give the "
        "counts of this model; 'deploykit inspect' lists its weights."
    )
    raise PlanMismatch(msg)


def _present(indices: Array) -> list[int]:
    return [int(index) for index in np.unique(indices) if index >= 0]


def _share(
    weight: str, count: int, classes: Array, indices: Array, held: Mapping[int, Pin]
) -> dict[int, float]:
    """The share of each group that leaves `count` channels of a weight."""
    fixed = int((indices < 0).sum())
    free = classes.size - fixed
    if not free or count <= fixed:
        pins = [held[int(root)] for root in classes if int(root) in held]
        why = f": {pins[0].reason}" if pins else ""
        msg = (
            f"the counts keep {count} of the {classes.size} channels of '{weight}', of which {fixed} cannot go{why}. "
            f"Keep {'all' if not free else f'more than {fixed}'} of them."
        )
        raise PlanMismatch(msg)
    return dict.fromkeys(_present(indices), (count - fixed) / free)


def _items(weight: str, count: int, size: int, wanted: float) -> int:
    items = round(wanted)
    if items < 1:
        msg = (
            f"the counts keep {count} of the {size} channels of '{weight}', which go several at a time (they are heads, or "
            "groups of a convolution): none would be left. Keep more of them."
        )
        raise PlanMismatch(msg)
    return items
