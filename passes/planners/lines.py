"""Lines of channels whose order can change, and the walk that carries orders out.

A line is what one tensor has along its channels, with all that are tied to it: producers that meet in an Add, depthwise
convolutions and normalizations on the way, everybody who reads them. It has one order. Where a tensor is a part of another one whose
channels are tied as well (a Concat that a depthwise convolution or an Add follows), both belong to the line of the larger one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.tags import Conflict, Pin
from passes.base import Change, Skip
from passes.errors import PlanMismatch
from passes.plans import PermutePlan

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.walk import Replay

__all__ = ["Carried", "Line", "Ordering", "carry", "carry_out_orders", "find_lines"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ordering:
    """What was planned.

    Attributes:
        plan: the orders.
        replay: the walk that carries them out.
        changes: what is done, in words.
        skips: what is left, and why.
    """

    plan: PermutePlan
    replay: Replay
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """Channels that have one order.

    Attributes:
        classes: in the order in which they stand.
        makers: the nodes that write them; the first one writes all.
        frozen: bool, by place: channels that are tied to others of the line (queries to keys), and stay where they are.
    """

    classes: Array
    makers: tuple[ir.Node, ...]
    frozen: Array

    @property
    def name(self) -> str:
        """The tensor by which plans call the line."""
        return self.makers[0].outputs[0].name or ""


@dataclasses.dataclass(frozen=True, eq=False)
class Carried:
    """Orders carried out.

    Attributes:
        replay: the walk.
        orders: those that all nodes can follow.
        conflicts: why the others were dropped.
    """

    replay: Replay
    orders: Mapping[Line, Array]
    conflicts: Mapping[Line, Pin]

    def plan(self, reasons: Mapping[Line, str]) -> PermutePlan:
        """The plan that asks for these orders.

        Args:
            reasons: what each of them is good for.
        """
        return PermutePlan(
            {line.name: tuple(int(at) for at in order) for line, order in self.orders.items()},
            {line.name: reasons[line] for line in self.orders},
        )

    @property
    def skips(self) -> tuple[Skip, ...]:
        """What keeps its order, because a node cannot follow."""
        return tuple(
            Skip(line.name, f"its channels stay in their order: {pin.reason}", pin.advice)
            for line, pin in self.conflicts.items()
        )


def find_lines(channels: ChannelMap) -> tuple[list[Line], dict[ir.Node, Pin]]:
    """Lines whose order can change; and the nodes whose outputs cannot, with the reason."""
    written: dict[bytes, tuple[Array, list[ir.Node]]] = {}
    refused: dict[ir.Node, Pin] = {}
    first_of: dict[int, bytes] = {}
    together: dict[bytes, list[bytes]] = {}
    for node, made in channels.trace.sources.items():
        classes = channels.roots[made.ravel()]
        key = np.ascontiguousarray(classes).tobytes()
        pin = next(
            (channels.fixed[int(root)] for root in classes if int(root) in channels.fixed),
            None,
        )
        if pin is None and _repeated(classes).all():
            pin = Pin("", "several of them are tied to one another", "keep them")
        if pin is not None:
            refused[node] = pin
        written.setdefault(key, (classes, []))[1].append(node)
        together.setdefault(key, [key])
        for other in {first_of.setdefault(int(root), key) for root in classes}:
            if together[other] is not together[key]:
                joined = together[other] + together[key]
                for each in joined:
                    together[each] = joined
    lines = []
    for parts in {id(keys): keys for keys in together.values()}.values():
        ordered = sorted(parts, key=lambda key: -written[key][0].size)
        makers = tuple(node for key in ordered for node in written[key][1])
        classes = written[ordered[0]][0]
        stuck = next((refused[node] for node in makers if node in refused), None)
        if stuck is None and not _is_one_order(classes, [written[key][0] for key in ordered]):
            stuck = Pin("", "they are tied to those of several tensors in parts", "keep them")
        if stuck is None:
            lines.append(Line(classes, makers, _repeated(classes)))
        else:
            refused |= {node: stuck for node in makers if node not in refused}
    return lines, refused


def _repeated(classes: Array) -> Array:
    """Bool, of the same shape: which classes occur more than once."""
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    repeated: Array = (counts > 1)[inverse.reshape(-1)]
    return repeated


def _is_one_order(classes: Array, others: list[Array]) -> bool:
    """Whether all of several tensors' channels are among those of the first, in the same order."""
    place = {int(root): at for at, root in enumerate(classes)}
    for other in others:
        if other is classes:
            continue
        places = [place.get(int(root), -1) for root in other]
        if min(places) < 0 or (np.diff(places) < 0).any():
            return False
    return True


def carry(channels: ChannelMap, orders: Mapping[Line, Array]) -> Carried:
    """Carry out orders; lines that a node cannot follow keep theirs.

    Args:
        channels: the channel map.
        orders: for each position of a line the one whose channel comes there.
    """
    left = dict(orders)
    conflicts: dict[Line, Pin] = {}
    while True:
        ranks = {
            int(root): at
            for line, order in left.items()
            for at, root in enumerate(line.classes[order])
            if not line.frozen[at]
        }
        try:
            return Carried(_checked_replay(channels, ranks), left, conflicts)
        except Conflict as conflict:
            met = {int(root) for root in channels.roots[conflict.tags]}
            guilty = [line for line in left if met & {int(root) for root in line.classes}]
            if not guilty:
                raise
            for line in guilty:
                reason = f"'{conflict.subject}' cannot follow: {conflict.reason}"
                conflicts[line] = Pin(conflict.subject, reason, "keep them")
                del left[line]


def carry_out_orders(channels: ChannelMap, plan: PermutePlan) -> Replay:
    """Carry out a plan of somebody else.

    Raises:
        PlanMismatch: it names no channels of this model, or is no order of them.
        Conflict: a node cannot follow.
    """
    makers = {node.outputs[0].name: node for node in channels.trace.sources}
    ranks: dict[int, int] = {}
    for name, order in plan.orders.items():
        if name not in makers:
            msg = f"the plan orders channels of '{name}', and no weight of the model makes such a tensor. Correct the name."
            raise PlanMismatch(msg)
        classes = channels.roots[channels.trace.sources[makers[name]].ravel()]
        if sorted(order) != list(range(classes.size)):
            msg = f"the plan's order of '{name}' is no order of its {classes.size} channels: each of 0 to {classes.size - 1} once."
            raise PlanMismatch(msg)
        stuck = next((int(root) for root in classes if int(root) in channels.fixed), None)
        if stuck is not None:
            msg = f"the channels of '{name}' cannot change their order: {channels.fixed[stuck].reason}. Delete the entry."
            raise PlanMismatch(msg)
        frozen, places = _repeated(classes), np.asarray(order)
        if (places[frozen] != np.flatnonzero(frozen)).any():
            msg = f"not all channels of '{name}' can change their order: several of them are tied to one another. Delete the entry."
            raise PlanMismatch(msg)
        new = {int(root): at for at, root in enumerate(classes[places]) if not frozen[at]}
        if any(ranks.get(root, at) != at for root, at in new.items()):
            msg = f"the plan orders the channels of '{name}' in two ways: they are tied to those of another entry. Delete one."
            raise PlanMismatch(msg)
        ranks |= new
    return _checked_replay(channels, ranks)


def _checked_replay(channels: ChannelMap, ranks: Mapping[int, int]) -> Replay:
    """Carry out ranks, and check that every tensor still has the channels that it had.

    Raises:
        Conflict: a node cannot follow.
    """
    replay = channels.replay(np.zeros(channels.roots.size, dtype=bool), ranks=ranks)
    for node in channels.model.graph:
        for value in node.outputs:
            if not replay.is_changed(value):
                continue
            old, new = replay.old(value), replay.new(value)
            if old.shape != new.shape or not np.array_equal(
                np.sort(old, axis=None), np.sort(new, axis=None)
            ):
                raise replay.conflict(node, old, "it would take other channels than before")
    return replay
