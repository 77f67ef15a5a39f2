"""Plans the removal of dead channels: constant ones, whose constant can be carried on, and ones that nobody reads.

A class of channels can go if everywhere it appears it is constant or not needed. Then ties decide which really do
(`passes.planners.ties`), and how the constants of those are carried on (`passes.planners.carrying`). If a node cannot
follow after all, its channels stay, and the plan is made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis import operands
from passes.analysis.axis_rules.contraction import Weighted
from passes.analysis.axis_rules.convolution import CONVOLUTIONS, is_depthwise
from passes.analysis.axis_rules.row import attribute_int, data, input_at
from passes.analysis.tags import Conflict, Pin
from passes.analysis.walk import Replay, label
from passes.base import Change, Skip
from passes.planners import listing
from passes.planners.carrying import Carry, Carrying, carrier_pin
from passes.planners.ties import Settlement, Ties
from passes.plans import ChannelPlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.edits import Accumulate, Edit

__all__ = ["Removal", "plan_removal"]

MOST_LISTED = 12


@dataclasses.dataclass(frozen=True)
class Removal:
    """A removal, ready to be carried out.

    Attributes:
        plan: which channels go, by the tensor that makes them.
        edits: what has to be changed for it.
        replay: the walk that proved it.
        changes: what it does, in words.
        skips: what stays, and why.
        unsure: whether another look could find more: uses of one weight went apart, or channels stayed because a tensor
            would have been empty or a node could not follow, where a smaller set might have done.
        reasons: class -> why it stays, of those of which it is known.
    """

    plan: ChannelPlan
    edits: tuple[Edit, ...]
    replay: Replay
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]
    unsure: bool
    reasons: Mapping[int, Pin]


def plan_removal(
    channels: ChannelMap,
    *,
    carry: Carry = "carrier",
    only: Mapping[str, Sequence[int]] | None = None,
) -> Removal:
    """Plan the removal of every channel that is provably dead.

    Args:
        channels: the channel map of the model.
        carry: the form to prefer for constants that no bias can hold.
        only: positions of channels by the tensor that makes them: all others stay; None: every channel may go.
    """
    uses = find_uses(channels)
    ties = Ties(channels)
    carrying = Carrying(channels, carry)
    unlisted = {} if only is None else listing.unlisted(channels, only)
    held: dict[int, Pin] = {}
    while True:
        stay = uses.used.copy()
        stay[[*held, *unlisted]] = True
        settlement = Settlement(ties, stay, carrying.worth, uses.bonds)
        settlement.settle()
        while (more := carrying.wanted(settlement.stay)) is not None:
            settlement.keep(*more)
            settlement.settle()
        drop = ~settlement.stay[channels.roots]
        drop[0] = False
        try:
            replay = channels.replay(drop)
            break
        except Conflict as conflict:
            classes = np.unique(channels.roots[conflict.tags])
            new = [int(root) for root in classes if not settlement.stay[root]]
            if not new:
                raise
            pin = Pin(
                conflict.subject,
                f"'{conflict.subject}' cannot follow: {conflict.reason}",
                "keep them",
            )
            held.update(dict.fromkeys(new, pin))
    merges, amounts, carriers = carrying.edits(settlement.stay, replay)
    reasons = {**unlisted, **uses.why, **channels.pinned, **held, **settlement.why}
    for root, (reader, count) in carriers.items():
        reasons[root] = carrier_pin(reader, count)
    dropped = {
        node.outputs[0].name or "": tuple(int(i) for i in np.flatnonzero(drop[made.ravel()]))
        for node, made in channels.trace.sources.items()
        if drop[made].any()
    }
    return Removal(
        ChannelPlan(dropped, reasons=dict(why_gone(channels, drop))),
        (*merges, *replay.edits, *amounts),
        replay,
        tuple(describe(channels, drop, carriers, amounts)),
        tuple(explain(channels, settlement.stay, reasons)),
        bool(held)
        or settlement.had_empty
        or any(len(data(merge.node, merge.index).uses()) > 1 for merge in merges),
        reasons,
    )


@dataclasses.dataclass(frozen=True)
class Uses:
    """Which channels have to stay because of what they are worth.

    Attributes:
        used: bool, shape `(tags,)`, by class: pinned, or varying and needed somewhere.
        why: class -> reason, for the latter.
        bonds: (class, other class, reason): the other is a constant in a sum that the first stands for, and missed
            there unless the whole sum goes.
    """

    used: Array
    why: dict[int, Pin]
    bonds: tuple[tuple[int, int, Pin], ...]


def find_uses(channels: ChannelMap) -> Uses:
    """Find the classes that cannot go."""
    roots, trace, found = channels.roots, channels.trace, channels.values
    used = np.zeros(trace.tags.count, dtype=bool)
    used[0] = True
    used[list(channels.pinned)] = True
    why: dict[int, Pin] = {}
    bonds: set[tuple[int, int, Pin]] = set()
    for value, tags in trace.tags.of.items():
        if not tags.any():
            continue
        known, needed = found.constants.get(value), found.needed.get(value)
        constant = np.zeros((1,) * tags.ndim, dtype=bool) if known is None else known.mask
        bad = ~constant if needed is None else needed & ~constant
        classes = np.unique(roots[tags[over_channels(bad, tags)]])
        new = classes[~used[classes]]
        if len(new):
            why |= dict.fromkeys(new.tolist(), reason_at(channels, value))
        used[classes] = True
        demands = trace.tags.zero_only.get(value)
        if demands is None or known is None:
            continue
        # whether it is needed says nothing here: a sum that is constant itself needs nothing, but if it stays it is
        # still computed, from these
        for tag in np.unique(tags[over_channels(constant & (known.value != 0), tags)]):
            for pin, key in demands:
                whole = trace.tags.coarse_of.get((key, int(tag)))
                root = int(roots[tag])
                if whole is not None:
                    bonds.add((int(roots[whole]), root, pin))
                elif not used[root]:
                    used[root], why[root] = True, pin
    return Uses(used, why, tuple(bonds))


def over_channels(fact: Array, tags: Array) -> Array:
    """For each element of compact tags, whether a compact fact holds anywhere where it stands."""
    axes = tuple(axis for axis, size in enumerate(tags.shape) if size == 1)
    out: Array = np.broadcast_to(fact.any(axis=axes, keepdims=True), tags.shape)
    return out


LAYERS = CONVOLUTIONS | {"Gemm", "MatMul"}
"""Ops whose weight is the second input, unless the map notes another."""
WINDOWS = CONVOLUTIONS | {"AveragePool", "LpPool", "MaxPool", "Pad", "Resize", "Upsample"}
"""Ops that can make a pattern over space of a constant."""


def reason_at(channels: ChannelMap, value: ir.Value) -> Pin:
    """Why a dead channel cannot go that is in use at `value`, the first tensor where it is."""
    trace, node = channels.trace, value.producer()
    if node is None or makes_its_own(channels, node):
        name = value.name or ""
        return Pin(
            name,
            f"it is tied to channels of '{name}' that are in use",
            "prune the channels that are tied together as one",
        )
    where = label(node)
    if node.op_type in WINDOWS and any(channels.sizes.symbolic.get(value, ())[2:]):
        return Pin(
            where,
            f"'{where}' makes a pattern over space of its constant, at sizes that are not static",
            "export the model at a fixed input size",
        )
    live = [one for one in node.inputs if one is not None and not trace.is_weight(one)]
    if len(live) > 1:
        return Pin(
            where,
            f"'{where}' combines its constant with data that varies",
            "make the channel zero, its bias included: a zero is removed where a constant cannot be",
        )
    return Pin(
        where,
        f"'{where}' makes of its constant what is not a finite number, or what is not followed",
        "make the channel zero, its bias included",
    )


def makes_its_own(channels: ChannelMap, node: ir.Node) -> bool:
    """Whether a node makes channels of its own, and does not only pass on those that come in."""
    noted = channels.trace.notes.get(node)
    if node not in channels.trace.sources:
        return False
    return not (isinstance(noted, tuple) and is_depthwise(node, noted[0].size, noted[1].size))


def weight_of(channels: ChannelMap, node: ir.Node) -> str:
    """The name under which the user knows the channels that a node makes."""
    noted = channels.trace.notes.get(node)
    index = noted.weight if isinstance(noted, Weighted) else int(node.op_type in LAYERS)
    value = input_at(node, index)
    dequantizer = operands.dequantizer(value)
    value = value if dequantizer is None else dequantizer.inputs[0]
    return label(node) if value is None else value.name or label(node)


def describe(
    channels: ChannelMap,
    drop: Array,
    carriers: dict[int, tuple[str, int]],
    amounts: list[Accumulate],
) -> Iterator[Change]:
    """What a removal does, a line a weight."""
    for node, made in channels.trace.sources.items():
        gone = int(drop[made].sum())
        if gone:
            yield Change(
                weight_of(channels, node), "output channels", made.size, made.size - gone
            )
    for reader, count in carriers.values():
        yield Change(reader, "dead input channels taken over by a carrier", count, 1)
    for add in amounts:
        size = add.amount.size
        along = add.amount.shape[1 if add.node.op_type in CONVOLUTIONS else -1]
        what = "constant folded into the bias" if size == along else "bias map added"
        yield Change(label(add.node), f"{what}, elements", 0, size)


def why_gone(channels: ChannelMap, drop: Array) -> Iterator[tuple[str, str]]:
    """For each tensor that loses channels, its name, and the weight that makes them and why they go, in words."""
    for node, made in channels.trace.sources.items():
        gone = drop[made].ravel()
        if gone.any():
            known = channels.values.constants.get(node.outputs[0])
            constant = np.zeros(gone.size, dtype=bool)
            if known is not None:
                axes = tuple(axis for axis, size in enumerate(made.shape) if size == 1)
                mask = known.mask.all(axis=axes, keepdims=True)
                constant = np.broadcast_to(mask, made.shape).ravel() & gone
            words = []
            if constant.any():
                words.append(f"{constant.sum()} are constant")
            if (gone & ~constant).any():
                words.append(f"{(gone & ~constant).sum()} are read by nobody")
            yield (
                node.outputs[0].name or "",
                f"of the {made.size} channels that '{weight_of(channels, node)}' makes, {' and '.join(words)}",
            )


def explain(channels: ChannelMap, stay: Array, reasons: dict[int, Pin]) -> Iterator[Skip]:
    """A Skip for every dead channel that stays."""
    for node, made in dead_sources(channels):
        name = weight_of(channels, node)
        by_reason: dict[Pin, list[int]] = {}
        for index in made:
            root = int(channels.roots[channels.trace.sources[node].ravel()[index]])
            if root == 0 or stay[root]:
                by_reason.setdefault(reasons.get(root, UNTAGGED), []).append(index)
        for pin, indices in by_reason.items():
            yield Skip(f"{name}: channels {listed(indices)}", pin.reason, pin.advice)
    for node in channels.model.graph:
        noted = channels.trace.notes.get(node)
        blocked = channels.trace.blocked.get(node) or (UNMEASURED if noted is None else None)
        zeros = [] if blocked is None else zero_rows(node, noted)
        if blocked is not None and zeros:
            name = f"{weight_of(channels, node)}: channels {listed(zeros)}"
            yield Skip(name, blocked.reason, blocked.advice)


def zero_rows(node: ir.Node, noted: object) -> list[int]:
    """Output channels with no weight at all, of a node that makes no channels in the map."""
    weight, axis = 1, {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(node.op_type)
    if node.op_type == "Gemm":
        axis = 0 if attribute_int(node, "transB", 0) else 1
    if isinstance(noted, Weighted):
        weight, free = noted.weight, noted.names.free(noted.weight)
        axis = noted.names.operands[weight].index(free) if len(free) == 1 else None
    table = operands.read(input_at(node, weight)) if axis is not None else None
    if axis is None or table is None or table.ndim < 2 or not table.size:
        return []
    rows = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
    return [int(index) for index in np.flatnonzero(~rows.any(axis=1))]


UNMEASURED = Pin(
    "",
    "the sizes of what the layer works on are not known, or its weight is read in a way that no rule covers",
    "export the model at a fixed input size",
)
UNTAGGED = Pin(
    "", "they belong to data that comes in from outside, and cannot be cut", "keep them"
)


def dead_sources(channels: ChannelMap) -> Iterator[tuple[ir.Node, list[int]]]:
    """For each node that makes channels, the positions of those that are constant or not needed there."""
    found = channels.values
    for node, made in channels.trace.sources.items():
        out = node.outputs[0]
        known, needed = found.constants.get(out), found.needed.get(out)
        dead = np.zeros((1,) * made.ndim, dtype=bool) if known is None else known.mask
        if needed is not None:
            dead = dead | ~needed
        axes = tuple(axis for axis, size in enumerate(made.shape) if size == 1)
        dead = np.broadcast_to(dead.all(axis=axes, keepdims=True), made.shape)
        indices = np.flatnonzero(dead.ravel())
        if indices.size:
            yield node, [int(index) for index in indices]


def listed(indices: list[int]) -> str:
    """Indices for a message, all if they are few."""
    shown = ", ".join(str(index) for index in indices[:MOST_LISTED])
    return (
        f"[{shown}]" if len(indices) <= MOST_LISTED else f"[{shown}, ... {len(indices)} in all]"
    )
