"""Plans the order of channels in which an N:M pattern keeps the most magnitude of the layers that read them.

The pattern lies along the inputs of a layer, in aligned groups; another order of the channels puts others together. All layers that
read a line of channels share its order, so their weights are searched as one matrix. Channels only change places where that moves
nothing between the two halves of a Split, the groups of a convolution or the heads of an attention.

An order is only taken if the pattern keeps more of all that read the line, counted once more at the end, and breaks no weight that
obeys already.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from passes.analysis.axis_rules.contraction import Weighted
from passes.analysis.fits import Candidate, find_candidates
from passes.base import Change, Skip
from passes.planners.lines import Line, Ordering, carry, find_lines
from passes.planners.permutation_search import kept, search_order, seconds_of_round

if TYPE_CHECKING:
    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.patterns import Pattern
    from passes.analysis.tags import Pin

__all__ = ["plan_sparse_order"]

GAIN: Final = 1e-6
"""Share of the magnitude from which on an order is worth having: below it is rounding."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Reader:
    """A weight that reads channels of a line.

    Attributes:
        name: of the weight.
        groups: for each group of the pattern the places of its channels in the line, shape `(groups, M)`.
        columns: float32, magnitudes by place in the line, shape `(channels, rows)`; zeros at places that are in no group.
        pattern: N:M.
    """

    name: str
    groups: Array
    columns: Array
    pattern: Pattern

    def of(self, groups: Array) -> Array:
        """Its columns, with zeros at places that it does not put together in the groups given."""
        mine = {group.tobytes() for group in np.sort(self.groups, axis=1)}
        shared = [group.tobytes() in mine for group in np.sort(groups, axis=1)]
        is_shared = np.zeros(len(self.columns), dtype=bool)
        is_shared[groups[shared]] = True
        found: Array = np.where(is_shared[:, None], self.columns, np.float32(0))
        return found

    def kept(self, order: Array) -> float:
        """Magnitude that the pattern keeps when the channels stand in an order."""
        return kept(self.columns[order[self.groups.ravel()]], self.pattern)

    @functools.cached_property
    def before(self) -> float:
        """Magnitude that it keeps as they stand."""
        return self.kept(np.arange(len(self.columns)))

    @functools.cached_property
    def magnitude(self) -> float:
        """Of everything."""
        return float(self.columns.sum(dtype=np.float64))

    @property
    def obeys(self) -> bool:
        """Whether the pattern takes nothing from it."""
        return self.before >= self.magnitude * (1 - GAIN)


@dataclasses.dataclass(eq=False)
class _Task:
    """A line, and what reads it.

    Attributes:
        line: the line.
        parts: int, by place: only channels of the same number change places.
        readers: what reads it.
    """

    line: Line
    parts: Array
    readers: list[_Reader] = dataclasses.field(default_factory=list)

    def chosen(self) -> Array:
        """The groups that are searched for, shape `(groups, M)`: those of whoever holds most magnitude, and of others beside them.

        Readers behind a shuffle put other channels together; they have a say at the end.
        """
        found: list[Array] = []
        taken = np.zeros(self.line.classes.size, dtype=bool)
        for reader in sorted(self.readers, key=lambda each: -each.magnitude):
            groups = reader.groups[~taken[reader.groups].any(axis=1)]
            taken[groups] = True
            found.append(groups)
        return np.concatenate(found)

    def matrices(self) -> Iterator[tuple[Array, Array, Array | None]]:
        """What is to be searched, one after the other: places in the line, magnitudes by place, and parts if there are several."""
        groups = self.chosen()
        parts = self.parts[groups]
        columns = np.concatenate([reader.of(groups) for reader in self.readers], axis=1)
        pure = (parts == parts[:, :1]).all()
        for part in np.unique(parts[:, 0]) if pure else (None,):
            places = (groups if part is None else groups[parts[:, 0] == part]).ravel()
            held = columns[places]
            # Rows of those who do not put these together are zeros.
            used = held.any(axis=0)
            yield places, held[:, used], None if pure else parts.ravel()


def plan_sparse_order(
    channels: ChannelMap,
    pattern: Pattern,
    *,
    seconds: float,
    seed: int = 0,
    tell: Callable[[float], None] | None = None,
) -> Ordering:
    """Plan orders that keep the most magnitude under a pattern.

    Args:
        channels: the channel map of the model.
        pattern: N:M.
        seconds: how long to search, all lines together; see `permutation_search.search_order`.
        seed: of what is random.
        tell: called from time to time with the share that is done.
    """
    lines, refused = find_lines(channels)
    tasks, skips = _tasks(channels, lines, refused, pattern)
    obeying = [task for task in tasks if all(reader.obeys for reader in task.readers)]
    skips += [
        Skip(
            task.line.name,
            f"what reads its channels obeys {pattern} already",
            "nothing needs to be done",
        )
        for task in obeying
    ]
    tasks = [task for task in tasks if task not in obeying]
    everything = [(task, matrix) for task in tasks for matrix in task.matrices()]
    cost = sum(seconds_of_round(matrix[1], pattern) for _, matrix in everything)
    orders: dict[Line, Array] = {}
    done = 0.0
    for index, (task, (places, columns, parts)) in enumerate(everything):
        share = seconds_of_round(columns, pattern) / cost

        def told(part: float, start: float = done, width: float = share) -> None:
            if tell is not None:
                tell(start + part * width)

        found = search_order(
            columns, pattern, seconds=seconds * share, seed=seed + index, parts=parts, tell=told
        )
        done += share
        order = orders.setdefault(task.line, np.arange(task.line.classes.size))
        order[places] = places[found.order]
    wanted = {}
    for task in tasks:
        reason = _why_not(task, orders[task.line], pattern)
        if reason is None:
            wanted[task.line] = orders[task.line]
        else:
            skips.append(Skip(task.line.name, *reason))
    carried = carry(channels, wanted)
    plan = carried.plan(
        {
            task.line: f"{pattern} keeps more of "
            + ", ".join(_told(reader, orders[task.line]) for reader in task.readers)
            for task in tasks
            if task.line in carried.orders
        }
    )
    changes = [
        Change(
            name, f"channels, in another order: {plan.reasons[name]}", len(order), len(order)
        )
        for name, order in plan.orders.items()
    ]
    return Ordering(plan, carried.replay, tuple(changes), (*skips, *carried.skips))


def _told(reader: _Reader, order: Array) -> str:
    """What an order does for a reader."""
    whole = reader.magnitude or 1.0
    return f"'{reader.name}' ({reader.before / whole:.2%} -> {reader.kept(order) / whole:.2%})"


def _why_not(task: _Task, order: Array, pattern: Pattern) -> tuple[str, str] | None:
    """Why an order that was found is not taken, and what to do; None if it is."""
    after = [reader.kept(order) for reader in task.readers]
    for reader, value in zip(task.readers, after, strict=True):
        if reader.obeys and value < reader.magnitude * (1 - GAIN):
            return (
                f"its channels stay in their order: '{reader.name}' obeys {pattern}, and would not any more",
                "train all layers that read them together",
            )
    if sum(after) <= sum(reader.before for reader in task.readers) * (1 + GAIN):
        return (
            f"no order was found in which {pattern} keeps more of what reads its channels",
            "search longer, or with another seed",
        )
    return None


def _tasks(
    channels: ChannelMap,
    lines: Sequence[Line],
    refused: Mapping[Any, Pin],
    pattern: Pattern,
) -> tuple[list[_Task], list[Skip]]:
    """What can be searched; and layers whose inputs stay in their order, with the reason."""
    count = channels.roots.size
    line_of, place_of = np.full(count, -1), np.zeros(count, dtype=np.int64)
    for index, line in enumerate(lines):
        free = np.flatnonzero(~line.frozen)
        line_of[line.classes[free]] = index
        place_of[line.classes[free]] = free
    why: dict[int, Pin] = {}
    for node, pin in refused.items():
        for root in channels.roots[channels.trace.sources[node].ravel()]:
            why.setdefault(int(root), pin)
    parts = _parts(channels, lines, line_of, place_of)
    tasks = [_Task(line, parts[index]) for index, line in enumerate(lines)]
    skips: list[Skip] = []
    for candidate in find_candidates(channels.model, pattern):
        if not isinstance(candidate, Candidate) or candidate.refusal is not None:
            # What cannot have the pattern is for the pass that makes it to say.
            continue
        reader = candidate.products[0]
        classes = _incoming(channels, candidate)
        if classes is None or not (classes > 0).any():
            reason = "its inputs stay in their order: they are no channels of this model's, but of its input, or of something that has no order of its own"
            skips.append(Skip(candidate.name, reason, "nothing can be done"))
            continue
        owners = line_of[classes].reshape(-1, pattern.group)
        whole = (owners == owners[:, :1]).all(axis=1) & (owners[:, 0] >= 0)
        if not whole.any():
            found = [why[int(root)] for root in classes if int(root) in why]
            reason, advice = (
                (found[0].reason, found[0].advice)
                if found
                else (
                    "groups of the pattern lie across tensors that are put side by side",
                    f"make the sizes of these multiples of {pattern.group}",
                )
            )
            skips.append(
                Skip(candidate.name, f"its inputs stay in their order: {reason}", advice)
            )
            continue
        columns = _columns(candidate)
        for owner in np.unique(owners[whole, 0]):
            groups = np.flatnonzero(whole & (owners[:, 0] == owner))
            positions = (groups[:, None] * pattern.group + np.arange(pattern.group)).ravel()
            places = place_of[classes[positions]]
            if np.unique(places).size < places.size:
                reason = f"its inputs stay in their order as far as '{reader.name}' is concerned: each channel comes in several times, in places that move together"
                skips.append(Skip(candidate.name, reason, "nothing needs to be done"))
                continue
            wide = np.zeros((lines[owner].classes.size, columns.shape[1]), dtype=np.float32)
            wide[places] = columns[positions]
            if places.size > pattern.group:
                tasks[owner].readers.append(
                    _Reader(candidate.name, places.reshape(-1, pattern.group), wide, pattern)
                )
    return [task for task in tasks if task.readers], skips


def _incoming(channels: ChannelMap, candidate: Candidate) -> Array | None:
    """The class of every input of a layer, in the order in which its weight has them; None if they are not channels one by one."""
    product = candidate.products[0]
    noted = channels.trace.notes.get(product.node)
    if noted is None:
        return None
    tags = noted.incoming if isinstance(noted, Weighted) else noted[0]
    if tags.ndim != 1 or tags.size != product.inputs * product.groups:
        return None
    if product.groups > 1 and candidate.held.shape != candidate.held.seen:
        return None
    found: Array = channels.roots[tags]
    return found


def _columns(candidate: Candidate) -> Array:
    """Magnitudes of a weight by input, float32, shape `(inputs, rows)`; of a grouped convolution, all groups beside each other."""
    product, held = candidate.products[0], candidate.held
    array = np.abs(candidate.array.astype(np.float32))
    if held.scale is not None:
        array = array * np.abs(held.scale.astype(np.float32))
    turned = np.moveaxis(array, held.axis, 0)
    if product.groups == 1:
        return turned.reshape(turned.shape[0], -1)
    split = turned.reshape(turned.shape[0], product.groups, -1)
    return np.concatenate([split[:, group] for group in range(product.groups)])


def _parts(
    channels: ChannelMap, lines: Sequence[Line], line_of: Array, place_of: Array
) -> list[Array]:
    """For each line a number by place: channels of different numbers cannot change places.

    They cannot where a tensor holds the one and not the other, nor from one group, part or head to another.
    """
    parts = [np.zeros(line.classes.size, dtype=np.int64) for line in lines]

    def split(sets: Iterable[Array]) -> None:
        """Let the channels of each set differ from those of the others, and of none."""
        labels: dict[int, Array] = {}
        for number, classes in enumerate(sets, 1):
            owners = line_of[classes]
            for owner in np.unique(owners[owners >= 0]):
                label = labels.setdefault(
                    int(owner), np.zeros(lines[owner].classes.size, dtype=np.int64)
                )
                label[place_of[classes[owners == owner]]] = number
        for owner, label in labels.items():
            if (label != label[0]).any():
                pairs = np.stack([parts[owner], label])
                parts[owner] = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)

    seen: set[bytes] = set()
    for tags in channels.trace.tags.of.values():
        classes = np.unique(channels.roots[tags])
        key = classes.tobytes()
        if key not in seen:
            seen.add(key)
            split([classes])
    for grid in channels.trace.tags.grids:
        for side in (grid.tags, grid.partner):
            if side is not None and side.ndim > 1:
                split(channels.roots[side].reshape(-1, side.shape[-1]))
    return parts
