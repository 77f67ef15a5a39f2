"""Which channels of which weights can only go together, in the names of the network's state dict.

A channel that a residual sum, a depthwise convolution, a concatenation or a shuffle ties to others lives in many weights:
as a row of all that make it, as columns of all that read it. `find_coupling` reads that off the exported graph, so that a
structure can drop channels which `passes.RemoveChannels` later cuts out for good.

A group is what is counted together: channels that stand in the same tensors everywhere. It has lines (the groups of a
grouped convolution; mostly there is one line) of which equally many items are kept, and an item is kept or dropped as one.
Held is an item that cannot go: it reaches an output of the model, is made by a weight that is not to be pruned, or meets
an operation through which nothing can be cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from deploykit.errors import UsageError
from deploykit.ticket import Bools, Ints

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.ticket import Array
    from passes.analysis.channels import ChannelMap
    from passes.analysis.tags import Pin
    from passes.base import Skip
    from passes.planners.pruning import Group

__all__ = ["Coupling", "CouplingGroup", "Member", "Role", "find_coupling"]

Role: TypeAlias = Literal["makes", "reads", "passes"]

MOST_NAMED = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """Where the items of a group stand in one weight.

    Attributes:
        weight: its name in the state dict.
        role: "makes": these are the rows that make the channels; "reads": the columns that read them; "passes": a depthwise
            filter for each.
        axis: the axis of the weight that the positions count along.
        indices: positions along that axis, shape `(n,)`; an item may have many (Flatten repeats a channel over space).
        items: the item, in the group, of each position, shape `(n,)`.
        channels: of rows and depthwise filters, the output channel of the layer at each position, shape `(n,)`: what a score
            by channel is looked up with. Of columns it is empty.
        within: the only positions along the other of the weight's first two axes that are meant (those of one group of a
            grouped convolution); None: all.
    """

    weight: str
    role: Role
    axis: int
    indices: Ints
    items: Ints
    channels: Ints
    within: Ints | None = None

    def select(self, chosen: Bools) -> tuple[Ints | slice, ...]:
        """The index of the weight's elements that belong to some items.

        Args:
            chosen: bool, shape `(items,)`.
        """
        found = self.indices[chosen[self.items]]
        if self.within is None:
            return (*(slice(None),) * self.axis, found)
        if self.axis == 0:
            return found[:, None], self.within
        return self.within[:, None], found


@dataclasses.dataclass(frozen=True, eq=False)
class CouplingGroup:
    """Items of which a number is kept.

    Attributes:
        shape: number of lines, and of items in each. Item `i` of line `l` has the number `l * shape[1] + i`.
        held: bool, shape `(items,)`: those that cannot go.
        members: where they stand.
        classes: classes of the channel map, shape `(n,)`; empty in a coupling made by hand.
        items: the item of each class, shape `(n,)`.
    """

    shape: tuple[int, int]
    held: Bools
    members: tuple[Member, ...]
    classes: Ints = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    items: Ints = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
    """What is dropped together.

    Attributes:
        groups: the groups that have anything to drop.
        shapes: shape of every weight that a member names, and of all weights that were asked for.
        skips: what cannot be dropped, and why, a line a weight.
        channels: the channel map it was read from; None: made by hand, and nothing but the groups is heeded.
        aliases: by name of a value of the graph that shows a weight whole, the name of that weight.
    """

    groups: tuple[CouplingGroup, ...]
    shapes: Mapping[str, tuple[int, ...]]
    skips: tuple[Skip, ...] = ()
    channels: ChannelMap | None = dataclasses.field(default=None, repr=False)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def settle(self, keep: Sequence[Bools], worth: Sequence[Array]) -> tuple[Bools, ...]:
        """Let more items stay until the graph can follow; mostly nothing changes.

        Args:
            keep: bool, shape `(items,)`, of each group: the items to keep.
            worth: float, the same shapes: the items of largest worth are the first to stay.

        Returns:
            supersets of `keep`, of which `passes.RemoveChannels` can remove all the rest.
        """
        if self.channels is None:
            return tuple(keep)
        return _settle(self.channels, self.groups, keep, worth)


def find_coupling(model: ir.Model, names: Collection[str]) -> Coupling:
    """Read off an exported network which channels can only go together.

    Args:
        model: the network, exported without optimisation, its parameters being initializers under the names of the state
            dict; unchanged.
        names: the weights whose rows may be dropped. Depthwise weights follow the channels that they pass on whether they
            are named or not.

    Raises:
        UsageError: a name is none of the graph's weights.
        PassError: the graph cannot be analysed.
    """
    from passes.analysis.channels import find_channels
    from passes.planners.pruning import Rules, find_groups
    from passes.tidy import Tidy

    _check_names(model, names)
    plain = model.clone()
    views = dict(_find_views(plain))
    Tidy()(plain)
    channels = find_channels(plain)
    reader = _Reader(channels, views, frozenset(names))
    groups = find_groups(
        channels, np.zeros(channels.roots.size), Rules(multiple=1), reader.held
    )
    found = tuple(_group(group, reader) for group in groups)
    named = {member.weight for group in found for member in group.members} | set(names)
    shapes = {name: _shape(model, name) for name in sorted(named)}
    aliases = {name: view.name for name, view in views.items()}
    return Coupling(found, shapes, tuple(reader.skips(names)), channels, aliases)


def _check_names(model: ir.Model, names: Collection[str]) -> None:
    missing = [name for name in names if name not in model.graph.initializers]
    if not missing:
        return
    there = [f"'{name}'" for name in list(model.graph.initializers)[:MOST_NAMED]]
    msg = (
        f"the weight '{missing[0]}' is not in the exported graph, whose weights are {', '.join(there)}, ...: the network does "
        "not use it, computes it from others, or shares it under another name. Leave it out of what is to be pruned."
    )
    raise UsageError(msg)


def _shape(model: ir.Model, name: str) -> tuple[int, ...]:
    shape = model.graph.initializers[name].shape
    return () if shape is None else tuple(shape.numpy())


@dataclasses.dataclass(frozen=True)
class _View:
    """A weight as a node sees it: for each axis, the axis of the state dict's weight; -1 where one of size 1 was put in."""

    name: str
    axes: tuple[int, ...]


PASSED_ON = frozenset({"Identity", "Cast", "CastLike"})
SINGLES = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
"""Ops that leave a weight's order alone where they only add or take away axes of size 1."""


def _find_views(model: ir.Model) -> Iterator[tuple[str, _View]]:
    """By value name, what shows a weight whole. Read before constants are folded, which loses names of weights."""
    seen: dict[str, _View] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for name, value in model.graph.initializers.items():
        if value.shape is not None:
            sizes[name] = tuple(value.shape.numpy())
            seen[name] = _View(name, tuple(range(len(sizes[name]))))
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        view = None if source is None else seen.get(source.name or "")
        if view is None or source is None:
            continue
        out, axes, before = node.outputs[0], view.axes, sizes[source.name or ""]
        if node.op_type == "Transpose":
            order = node.attributes.get("perm")
            picked = (
                range(len(axes))[::-1] if order is None else [int(a) for a in order.as_ints()]
            )
            axes, after = tuple(axes[a] for a in picked), tuple(before[a] for a in picked)
        elif node.op_type in PASSED_ON:
            after = before
        elif node.op_type in SINGLES and out.shape is not None and out.shape.is_static():
            after = tuple(out.shape.numpy())
            if [size for size in after if size != 1] != [size for size in before if size != 1]:
                continue
            whole = iter(axis for axis, size in zip(axes, before, strict=True) if size != 1)
            axes = tuple(next(whole) if size != 1 else -1 for size in after)
        else:
            continue
        seen[out.name or ""], sizes[out.name or ""] = _View(view.name, axes), after
    yield from seen.items()


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """One side of a product: the classes along an axis of a weight.

    Attributes:
        view: the weight; None if it is no parameter.
        role: what it does with the channels.
        axis: of the value that the node reads.
        classes: class of every channel, shape `(channels,)`.
        indices: its position along the axis, shape `(channels,)`.
        other: the axis that `parts` counts along.
        parts: for each channel, the group of the convolution it is in; None where there is one.
        width: how many positions of `other` a part has.
    """

    view: _View | None
    role: Role
    axis: int
    classes: Ints
    indices: Ints
    other: int = 0
    parts: Ints | None = None
    width: int = 0


class _Reader:
    """What the products of a graph make and read, in names of the state dict."""

    def __init__(
        self, channels: ChannelMap, views: Mapping[str, _View], names: frozenset[str]
    ) -> None:
        self.channels = channels
        self.sides = [
            side
            for node, noted in channels.trace.notes.items()
            for side in _sides(channels, views, node, noted)
        ]
        self.held: dict[int, Pin] = dict(channels.pinned)
        self._hold_strange()
        self._hold_unnamed(names)

    def _hold(self, classes: Ints, subject: str, reason: str, advice: str) -> None:
        from passes.analysis.tags import Pin

        for root in np.unique(classes).tolist():
            self.held.setdefault(root, Pin(subject, reason, advice))

    def _hold_strange(self) -> None:
        """Hold what no mask can make removable for sure."""
        from passes.analysis.axis_rules.contraction import Weighted
        from passes.analysis.axis_rules.convolution import CONVOLUTIONS
        from passes.analysis.walk import label

        channels, roots = self.channels, self.channels.roots
        for node, made in channels.trace.sources.items():
            noted = channels.trace.notes.get(node)
            if node.op_type not in CONVOLUTIONS and not isinstance(noted, Weighted):
                reason = f"'{label(node)}' makes them, which has no rows to prune"
                self._hold(roots[made], label(node), reason, "keep them")
        for node, noted in channels.trace.notes.items():
            if isinstance(noted, Weighted) and _letters(noted) is None:
                tags = [noted.incoming.ravel()]
                tags += [] if noted.outgoing is None else [noted.outgoing.ravel()]
                reason = f"'{label(node)}' multiplies along several axes at once"
                self._hold(roots[np.concatenate(tags)], label(node), reason, "keep them")
        # a mask cannot promise that biases are zero, which these sums would need
        for value, demands in channels.trace.tags.zero_only.items():
            pin, _ = demands[0]
            self._hold(roots[channels.trace.get(value)], pin.subject, pin.reason, "keep them")

    def _hold_unnamed(self, names: frozenset[str]) -> None:
        """Hold what is made by weights that are not to be pruned, and read by what is no weight of the network."""
        for side in self.sides:
            if side.view is None:
                reason = "a weight that is computed, and no parameter, makes or reads them"
                self._hold(side.classes, "", reason, "keep them")
            elif side.role == "makes" and side.view.name not in names:
                reason = f"'{side.view.name}' makes them too, and is not to be pruned"
                self._hold(side.classes, side.view.name, reason, "name it as well")

    def skips(self, names: Collection[str]) -> Iterator[Skip]:
        """A line for each weight and reason."""
        from passes.base import Skip

        said: set[tuple[str, str]] = set()
        made = {
            side.view.name for side in self.sides if side.view and side.role != "reads"
        } & set(names)
        for name in names:
            if name not in made:
                reason = "it is no weight of a convolution or a product that makes channels"
                yield Skip(name, reason, "leave it out of what is to be pruned")
        for side in self.sides:
            if side.view is None or side.view.name not in names or side.role != "makes":
                continue
            pins = [self.held[root] for root in side.classes.tolist() if root in self.held]
            for pin in dict.fromkeys(pins):
                if (side.view.name, pin.reason) not in said:
                    said.add((side.view.name, pin.reason))
                    subject = (
                        f"{side.view.name}: {pins.count(pin)} of {side.classes.size} channels"
                    )
                    yield Skip(subject, pin.reason, pin.advice)


def _sides(
    channels: ChannelMap, views: Mapping[str, _View], node: ir.Node, noted: object
) -> Iterator[_Side]:
    """The sides of a node that multiplies by a weight."""
    from passes.analysis.axis_rules.contraction import Weighted
    from passes.analysis.axis_rules.convolution import CONVOLUTIONS, is_depthwise
    from passes.analysis.axis_rules.row import attribute_int, data

    roots = channels.roots
    if node.op_type in CONVOLUTIONS and isinstance(noted, tuple):
        incoming, outgoing = roots[noted[0]], roots[noted[1]]
        value = data(node, 1)
        view = views.get(value.name or "")
        if view is not None and view.axes != tuple(range(len(view.axes))):
            view = None  # which groups its rows are in would not be where they are looked for
        if is_depthwise(node, incoming.size, outgoing.size):
            yield _Side(view, "passes", 0, outgoing, np.arange(outgoing.size))
            return
        groups = attribute_int(node, "group", 1)
        transposed = node.op_type == "ConvTranspose"
        # one side lies along axis 0 in full, the other along axis 1, anew in every group
        for role, classes, outer in (
            ("makes", outgoing, not transposed),
            ("reads", incoming, transposed),
        ):
            where, width = np.arange(classes.size), classes.size // groups
            axis, at = (0, where) if outer else (1, where % width)
            other = incoming if classes is outgoing else outgoing
            parts = where // width if groups > 1 and not outer else None
            rows = other.size // groups
            yield _Side(
                view, "makes" if role == "makes" else "reads", axis, classes, at, 0, parts, rows
            )
    elif isinstance(noted, Weighted):
        found = _letters(noted)
        if found is None:
            return
        value = data(node, noted.weight)
        view, mine = views.get(value.name or ""), noted.names.operands[noted.weight]
        contracted, free = found
        if contracted and noted.incoming.any():
            classes = roots[noted.incoming.ravel()]
            yield _Side(view, "reads", mine.index(contracted), classes, np.arange(classes.size))
        if free and noted.outgoing is not None:
            classes = roots[noted.outgoing.ravel()]
            yield _Side(view, "makes", mine.index(free), classes, np.arange(classes.size))


def _letters(noted: object) -> tuple[str, str] | None:
    """The letter along which a weight reads channels and that along which it makes some, or ""; None if there are more."""
    from passes.analysis.axis_rules.contraction import Weighted

    if not isinstance(noted, Weighted) or noted.batch:
        return None
    free = noted.names.free(noted.weight) if noted.outgoing is not None else ""
    if len(noted.contracted) > 1 or len(free) > 1:
        return None
    return noted.contracted, free


def _group(group: Group, reader: _Reader) -> CouplingGroup:
    """A group of the planner's, in names of the state dict."""
    item_of = np.full(reader.channels.roots.size, -1)
    items = group.line * group.shape[1] + group.item
    item_of[group.classes] = items
    held = np.zeros(group.shape[0] * group.shape[1], dtype=bool)
    held[items[[int(root) in reader.held for root in group.classes]]] = True
    seen: set[tuple[object, ...]] = set()
    members = []
    for side in reader.sides:
        for member in _members(side, item_of[side.classes]):
            within = None if member.within is None else member.within.tobytes()
            key = (
                *(member.weight, member.role, member.axis, within),
                *(member.indices.tobytes(), member.items.tobytes()),
            )
            # a weight that is used twice is one weight
            if key not in seen:
                seen.add(key)
                members.append(member)
    return CouplingGroup(group.shape, held, tuple(members), group.classes, items)


def _members(side: _Side, items: Ints) -> Iterator[Member]:
    """What of a side belongs to a group: one member, or one for each group of a convolution."""
    mine = np.flatnonzero(items >= 0)
    if side.view is None or not mine.size:
        return
    axis = side.view.axes[side.axis]
    parts = [None] if side.parts is None else np.unique(side.parts[mine]).tolist()
    for part in parts:
        there = mine if part is None or side.parts is None else mine[side.parts[mine] == part]
        within = None if part is None else np.arange(part * side.width, (part + 1) * side.width)
        channels = there if side.role != "reads" else there[:0]
        yield Member(
            side.view.name, side.role, axis, side.indices[there], items[there], channels, within
        )


def _settle(
    channels: ChannelMap,
    groups: Sequence[CouplingGroup],
    keep: Sequence[Bools],
    worth: Sequence[Array],
) -> tuple[Bools, ...]:
    """See `Coupling.settle`."""
    from passes.analysis.tags import Conflict
    from passes.planners.ties import Settlement, Ties

    ties = Ties(channels)
    stay = np.ones(channels.roots.size, dtype=bool)
    value = np.zeros(channels.roots.size)
    for group, kept, scores in zip(groups, keep, worth, strict=True):
        stay[group.classes] = kept[group.items]
        value[group.classes] = scores[group.items]
    # a coarse channel lives exactly as long as one of its fine ones
    for coarse, fine, _ in ties.covers:
        stay[coarse] = stay[fine].any() or coarse in channels.pinned
    while True:
        settlement = Settlement(ties, stay, value)
        settlement.settle()
        stay = settlement.stay
        whole = stay.copy()
        for group in groups:
            of_item = np.zeros(group.held.size, dtype=bool)
            of_item[group.items[stay[group.classes]]] = True
            whole[group.classes] = of_item[group.items]
        if (whole != stay).any():
            stay = whole
            continue
        drop = ~stay[channels.roots]
        drop[0] = False
        try:
            channels.replay(drop)
            break
        except Conflict as conflict:
            more = np.unique(channels.roots[conflict.tags])
            if stay[more].all():
                raise
            stay[more] = True
    settled = []
    for group in groups:
        found = np.zeros(group.held.size, dtype=bool)
        found[group.items[stay[group.classes]]] = True
        settled.append(found)
    return tuple(settled)
