"""Plans zero channels that bring counts up to a multiple the runtime likes.

A cell (`passes.planners.cells`) is padded as one, behind its last channel, wherever that stands.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.convolution import CONVOLUTIONS
from passes.analysis.tags import Conflict, Pin
from passes.analysis.walk import Replay
from passes.base import Change, Skip
from passes.planners.cells import find_cells
from passes.planners.dead_channels import weight_of
from passes.planners.listing import check_fit, listed_pads
from passes.plans import ChannelPlan

if TYPE_CHECKING:
    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array

__all__ = ["Alignment", "plan_alignment"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Padding, ready to be carried out.

    Attributes:
        plan: where zero channels go, by the tensor that makes them.
        replay: the walk that proved it, with the edits.
        changes: what it does, in words.
        skips: counts that stay odd, and why.
    """

    plan: ChannelPlan
    replay: Replay
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


def plan_alignment(
    channels: ChannelMap, *, multiple: int, plan: ChannelPlan | None = None
) -> Alignment:
    """Plan zero channels so that every convolution's counts are multiples.

    Args:
        channels: the channel map of the model.
        multiple: the count wanted, per group for grouped convolutions.
        plan: where to put how many, in place of the multiple.

    Raises:
        PlanMismatch: the plan puts channels where none can be put.
    """
    roots = channels.roots
    cells = find_cells(channels, convolved(channels))
    refused: dict[int, Pin] = {**channels.pinned, **channels.rigid}
    wanted = {int(cell[-1]): -cell.size % multiple for cell in cells}
    if plan is not None:
        check_fit(channels, plan)
        stuck = {
            int(cell[-1]): pin
            for cell in cells
            for pin in [next((refused[int(one)] for one in cell if int(one) in refused), None)]
            if pin is not None
        }
        wanted, unlisted = listed_pads(channels, plan.padded, stuck, np.asarray(list(wanted)))
        refused |= {root: pin for root, pin in unlisted.items() if root not in refused}
    while True:
        by_class: dict[int, int] = {}
        for cell in cells:
            missing = wanted.get(int(cell[-1]), 0)
            if missing and not any(int(root) in refused for root in cell):
                by_class[int(cell[-1])] = missing
        tags = np.flatnonzero(np.isin(roots, list(by_class)))
        pads = {int(tag): by_class[int(roots[tag])] for tag in tags}
        try:
            replay = channels.replay(np.zeros(roots.size, dtype=bool), pads)
            break
        except Conflict as conflict:
            mine = {int(root) for root in roots[conflict.tags]}
            new = [
                cell
                for cell in cells
                if int(cell[-1]) in by_class and mine & {int(root) for root in cell}
            ]
            if not new:
                raise
            pin = Pin(
                conflict.subject,
                f"'{conflict.subject}' cannot follow: {conflict.reason}",
                "keep the count",
            )
            for cell in new:
                refused.setdefault(int(cell[-1]), pin)
    padded, changes, skips = describe(channels, pads, refused, multiple)
    sources = {node.outputs[0].name or "": node for node in channels.trace.sources}
    sizes = {name: channels.trace.sources[sources[name]].size for name in padded}
    reasons = {
        name: f"the {sizes[name]} channels that '{weight_of(channels, sources[name])}' makes are no multiple of {multiple}"
        for name in padded
    }
    return Alignment(
        ChannelPlan(padded=padded, sizes=sizes, reasons=reasons),
        replay,
        tuple(changes),
        tuple(skips),
    )


def describe(
    channels: ChannelMap, pads: dict[int, int], refused: dict[int, Pin], multiple: int
) -> tuple[dict[str, dict[int, int]], list[Change], list[Skip]]:
    """What a padding does.

    Args:
        channels: the channel map of the model.
        pads: how many zero channels are put behind a tag, by tag.
        refused: class -> why nothing is put behind it.
        multiple: the count wanted.

    Returns:
        the pads by tensor name and position, and what is changed and skipped, in words.
    """
    roots = channels.roots
    padded: dict[str, dict[int, int]] = {}
    changes, skips = [], []
    for node, made in channels.trace.sources.items():
        line = made.ravel()
        added = {int(i): pads[int(tag)] for i, tag in enumerate(line) if int(tag) in pads}
        if added:
            padded[node.outputs[0].name or ""] = added
            after = line.size + sum(added.values())
            what = "output channels, zero channels added"
            changes.append(Change(weight_of(channels, node), what, line.size, after))
        elif line.size % multiple and node.op_type in CONVOLUTIONS:
            pin = next(
                (refused[int(root)] for root in roots[line] if int(root) in refused), None
            )
            if pin is not None:
                subject = f"{weight_of(channels, node)}: {line.size} channels"
                skips.append(Skip(subject, pin.reason, pin.advice))
    return padded, changes, skips


def convolved(channels: ChannelMap) -> Array:
    """Which classes a convolution makes or reads: bool, shape `(tags,)`."""
    found = np.zeros(channels.roots.size, dtype=bool)
    for node, noted in channels.trace.notes.items():
        if node.op_type in CONVOLUTIONS:
            for side in noted:
                found[channels.roots[side]] = True
    return found
