"""Plans the pruning of channels that are in use: the least important ones, as many as a ratio or a budget asks for.

Channels are chosen in groups. A group is what is counted and rounded together: the channels of a tensor that stand in
the same tensors everywhere, in every group of a grouped convolution or head alike. How many of a group stay follows from
how important its channels are beside all others (scope "global"), or is the same share everywhere ("layer"); the count
is brought to the nearest multiple of what the target likes. What ties channels together is then met by letting more of
them stay (`passes.planners.ties`), never by letting more go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from passes.analysis.edits import SetAttribute
from passes.analysis.macs import PRODUCTS, node_macs
from passes.analysis.tags import Conflict, Pin
from passes.analysis.walk import label
from passes.base import Change, Skip
from passes.errors import BudgetMissed, PlanMismatch
from passes.planners import listing
from passes.planners.cells import find_cells, grid_rows
from passes.planners.counts import counts_of_groups
from passes.planners.dead_channels import listed, weight_of
from passes.planners.importance import find_importance
from passes.planners.ties import Settlement, Ties
from passes.plans import ChannelPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from passes.analysis.channels import ChannelMap
    from passes.analysis.compact import Array
    from passes.analysis.walk import Replay
    from passes.planners.importance import Norm

__all__ = ["Group", "Pruner", "Pruning", "Rules", "Scope", "find_groups"]

Scope: TypeAlias = Literal["global", "layer"]
Counts: TypeAlias = tuple[int, ...]

BISECTIONS = 20
CLOSE = 0.001
"""A model this near to its budget, as a share of what it was, is not brought nearer."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a pruning is asked for, but how much.

    Attributes:
        scope: whether channels compete with those of all layers, or of their own.
        norm: how importance is measured.
        multiple: what counts are rounded to.
        max_ratio: the largest share of a group's channels that may go.
        whole: whether groups of convolutions and attention heads go as a whole, and not as many channels of each; None:
            where each has fewer than twice `multiple` channels.
    """

    scope: Scope = "global"
    norm: Norm = "l2"
    multiple: int = 8
    max_ratio: float = 0.9
    whole: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels of which a number is kept.

    It has lines (the groups of a convolution, the heads; mostly there is one line), and equally many items of each are
    kept. An item is one class of channels, or all classes of a head where heads go as a whole.

    Attributes:
        classes: the classes, shape `(n,)`.
        line: the line of each class, shape `(n,)`.
        item: the item, in its line, of each class, shape `(n,)`.
        scores: float, shape `(n,)`: importance, 1 on average.
        shape: number of lines, and of items in each.
        step: the count of items that is kept is a multiple of this.
        names: the weights that make the channels.
    """

    classes: Array
    line: Array
    item: Array
    scores: Array
    shape: tuple[int, int]
    step: int
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Items in each line."""
        return self.shape[1]

    def marked(self, mask: Array) -> Array:
        """Items with a class in a mask by class: bool, of `shape`."""
        out = np.zeros(self.shape, dtype=bool)
        chosen = mask[self.classes]
        out[self.line[chosen], self.item[chosen]] = True
        return out

    def order(self, held: Array) -> Array:
        """Items of each line, those that are held first, then by falling importance; of `shape`."""
        total, count = np.zeros(self.shape), np.zeros(self.shape)
        np.add.at(total, (self.line, self.item), self.scores)
        np.add.at(count, (self.line, self.item), 1)
        worth = np.where(held, np.inf, total / count)
        return np.argsort(-worth, axis=1, kind="stable")

    def best(self, held: Array, count: int) -> Array:
        """Classes of the first `count` items of each line."""
        chosen = np.zeros(self.shape, dtype=bool)
        np.put_along_axis(chosen, self.order(held)[:, :count], True, axis=1)
        return self.classes[chosen[self.line, self.item]]

    def up(self, count: int) -> int:
        """The next count that is allowed."""
        return min(-(-count // self.step) * self.step, self.size)

    def nearest(self, count: float) -> int:
        """The allowed count that is nearest; the larger of two."""
        below = int(count) // self.step * self.step
        above = min(below + self.step, self.size)
        return above if above - count <= count - below else below


@dataclasses.dataclass(frozen=True, eq=False)
class Pruning:
    """A pruning, ready to be carried out.

    Attributes:
        plan: which channels go, by the tensor that makes them.
        replay: the walk that proved it, with the edits.
        macs: multiply-accumulates before and after; None where they are not known.
        changes: what it does, in words.
        skips: what stays, and why.
    """

    plan: ChannelPlan
    replay: Replay
    macs: tuple[int, int] | None
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What becomes of counts.

    Attributes:
        wanted: how many items each group was to keep, before anything was rounded.
        counts: the same, rounded.
        stay: bool, shape `(tags,)`, by class.
        why: class -> why it stays although it was to go.
        replay: the walk that proved it.
        macs: multiply-accumulates, 0 where they are not known.
    """

    wanted: tuple[float, ...]
    counts: Counts
    stay: Array
    why: Mapping[int, Pin]
    replay: Replay
    macs: int


class Pruner:
    """Finds out which channels go, for one model.

    Args:
        channels: the channel map of the model.
        rules: how.
        shapes: sizes of values by name, for multiply-accumulates, where the model leaves sizes open; those that are not
            there are counted at stand-ins.
    """

    def __init__(
        self,
        channels: ChannelMap,
        rules: Rules,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.channels = channels
        self.ties = Ties(channels)
        self.rules = rules
        self.shapes = shapes or {}
        self.importance = find_importance(channels, rules.norm)
        self.held: dict[int, Pin] = dict(channels.pinned)
        for root in np.flatnonzero(~np.isfinite(self.importance)):
            self.held.setdefault(int(root), UNREADABLE)
        self.groups = find_groups(channels, self.importance, rules, self.held)
        self.worth = np.zeros(channels.roots.size)
        for group in self.groups:
            self.worth[group.classes] = group.scores
        self.trials: dict[Counts, Trial] = {}
        self.free = 0
        self.ranks: list[Array] = []
        if self.groups:
            scores = [group.scores[self.is_free(group)] for group in self.groups]
            ranks = np.argsort(np.argsort(np.concatenate(scores), kind="stable"))
            self.free = ranks.size
            self.ranks = np.split(ranks, np.cumsum([one.size for one in scores])[:-1])

    def is_free(self, group: Group) -> Array:
        """Which classes of a group nothing holds: bool, shape `(n,)`."""
        return np.asarray([int(root) not in self.held for root in group.classes], dtype=bool)

    def at_ratio(self, ratio: float) -> Pruning:
        """Prune a share of all channels that can go.

        Args:
            ratio: the share, above 0 and below 1; rounding and ties change it.
        """
        return self.finish(self.trial(ratio))

    def at_counts(self, counts: Mapping[str, int]) -> Pruning:
        """Prune to a number of channels for each weight; the least important ones go.

        Args:
            counts: output channels to keep, by weight; others keep theirs unless they are tied to one of these. The rules
                should round to multiples of 1.

        Raises:
            PlanMismatch: the counts are not of this model, or contradict each other.
        """
        items = counts_of_groups(self.channels, self.groups, counts, self.held)
        return self.finish(self.realise(tuple(float(count) for count in items), items))

    def at_plan(self, plan: ChannelPlan, share: float | None = None) -> Pruning:
        """Prune what a plan lists, and nothing else.

        Args:
            plan: what to prune.
            share: of the original's multiply-accumulates, that should be left; the plan goes first, and a Skip says so.

        Raises:
            PlanMismatch: it lists what is not there, or has to stay.
        """
        listing.check_fit(self.channels, plan)
        if plan.padded:
            msg = f"pruning adds no channels, and its plan pads '{next(iter(plan.padded))}'. Delete that."
            raise PlanMismatch(msg)
        for node, made in self.channels.trace.sources.items():
            name, line = node.outputs[0].name or "", self.channels.roots[made.ravel()]
            for position in plan.dropped.get(name, ()):
                pin = self.held.get(int(line[position]))
                if pin is not None:
                    msg = (
                        f"the plan drops channel {position} of '{name}', which cannot go: {pin.reason}. "
                        "Delete it from the plan."
                    )
                    raise PlanMismatch(msg)
        for root, pin in listing.unlisted(self.channels, plan.dropped).items():
            self.held.setdefault(root, pin)
        self.groups, self.ranks = [], []
        pruning = self.finish(self.realise((), ()))
        if share is None or pruning.macs is None or pruning.macs[1] <= share * pruning.macs[0]:
            return pruning
        left = pruning.macs[1] / pruning.macs[0]
        missed = Skip(
            "multiply-accumulates",
            f"the plan leaves {left:.3f} of them, and {share:g} were asked for",
            "put channels back into the plan, or make a new one",
        )
        return dataclasses.replace(pruning, skips=(missed, *pruning.skips))

    def at_macs(self, share: float) -> Pruning:
        """Prune until the model has at most a share of its multiply-accumulates, and as close to that as counts allow.

        Args:
            share: of the original's multiply-accumulates.

        Raises:
            BudgetMissed: so few cannot be reached.
        """
        whole = self.macs(None)
        if not whole:
            msg = (
                "cannot prune to a share of the multiply-accumulates, because the sizes of some products are not known. "
                "Give the sizes of the inputs, or a ratio of channels."
            )
            raise BudgetMissed(msg)
        budget = math.floor(share * whole)
        above, below = 0.0, 1.0
        least = self.trial(below)
        if least.macs > budget:
            raise BudgetMissed(self.missed(share, least, whole))
        for _ in range(BISECTIONS):
            middle = (above + below) / 2
            if self.trial(middle).macs <= budget:
                below = middle
            else:
                above = middle
        return self.finish(self.given_back(self.trial(below), budget, whole))

    def given_back(self, trial: Trial, budget: int, whole: int) -> Trial:
        """Let groups keep more, the most important channels first, as long as a budget holds.

        All of a bisection's last step went at once, and what it saved beyond the budget may do for some of it.
        """
        open_groups = set(range(len(self.groups)))
        while open_groups and budget - trial.macs > CLOSE * whole:
            gains = {index: self.gain(index, trial.counts[index]) for index in open_groups}
            index = max(gains, key=lambda one: (gains[one], -one))
            group, count = self.groups[index], trial.counts[index]
            counts = list(trial.counts)
            counts[index] = group.up(count + 1)
            more = self.realise(trial.wanted, tuple(counts))
            if counts[index] == count or more.macs > budget:
                open_groups.remove(index)
            else:
                trial = more
        return trial

    def gain(self, index: int, count: int) -> float:
        """Importance of the next items of a group that keeps `count`."""
        group = self.groups[index]
        more = np.setdiff1d(
            group.best(self.held_items(group), group.up(count + 1)),
            group.best(self.held_items(group), count),
        )
        return float(self.worth[more].mean()) if more.size else 0.0

    def trial(self, ratio: float) -> Trial:
        """What becomes of a ratio."""
        wanted = tuple(self.wanted(ratio))
        counts = tuple(
            min(max(group.nearest(count), self.least(group)), group.size)
            for group, count in zip(self.groups, wanted, strict=True)
        )
        return self.realise(wanted, counts)

    def wanted(self, ratio: float) -> Iterator[float]:
        """How many items of each line every group is to keep, before rounding."""
        gone = round(ratio * self.free)
        for group, ranks in zip(self.groups, self.ranks, strict=True):
            share = ratio * ranks.size if self.rules.scope == "layer" else (ranks < gone).sum()
            yield group.size * (1 - float(share) / group.classes.size)

    def least(self, group: Group) -> int:
        """The fewest items that each line of a group keeps."""
        floor = math.ceil(group.size * (1 - self.rules.max_ratio) - 1e-9)
        held = int(self.held_items(group).sum(1).max(initial=0))
        return group.up(max(floor, held, 1))

    def held_items(self, group: Group) -> Array:
        """Items that have to stay: bool, of the group's shape."""
        return group.marked(self.held_mask())

    def held_mask(self) -> Array:
        """Classes that have to stay: bool, shape `(tags,)`."""
        mask = np.zeros(self.channels.roots.size, dtype=bool)
        mask[list(self.held)] = True
        mask[0] = True
        return mask

    def realise(self, wanted: tuple[float, ...], counts: Counts) -> Trial:
        """Find out what really goes when every group keeps so many."""
        known = self.trials.get(counts)
        if known is not None:
            return dataclasses.replace(known, wanted=wanted)
        while True:
            settlement = self.settled(counts)
            drop = ~settlement.stay[self.channels.roots]
            drop[0] = False
            try:
                replay = self.channels.replay(drop)
                break
            except Conflict as conflict:
                classes = np.unique(self.channels.roots[conflict.tags])
                new = [int(root) for root in classes if not settlement.stay[root]]
                if not new:
                    raise
                reason = f"'{conflict.subject}' cannot follow: {conflict.reason}"
                self.held.update(dict.fromkeys(new, Pin(conflict.subject, reason, "keep them")))
                # what was found before rests on these going
                self.trials.clear()
        found = Trial(
            wanted, counts, settlement.stay, settlement.why, replay, self.macs(replay) or 0
        )
        self.trials[counts] = found
        return found

    def settled(self, counts: Counts) -> Settlement:
        """What stays, once all ties and multiples are met."""
        stay, held = self.held_mask(), self.held_mask()
        for group, count in zip(self.groups, counts, strict=True):
            stay[group.best(group.marked(held), count)] = True
        # in the order in which the graph made them, so that heads of heads follow
        for coarse, fine, _ in self.ties.covers:
            stay[coarse] |= stay[fine].any()
        settlement = Settlement(self.ties, stay, self.worth)
        before = -1
        while before != (before := int(settlement.stay.sum())):
            settlement.settle()
            for group in self.groups:
                kept = group.marked(settlement.stay)
                count = group.up(int(kept.sum(1).max(initial=0)))
                if count:
                    settlement.keep(group.best(kept, count), self.rounded(group, count))
        return settlement

    def rounded(self, group: Group, count: int) -> Pin:
        """Why a channel stays for the sake of a multiple."""
        return Pin(
            group.names[0],
            f"they fill a count of {count}, as multiples of {self.rules.multiple} are wanted"
            if count > group.step
            else f"there are too few of them, where multiples of {self.rules.multiple} are wanted",
            "prune to a smaller multiple",
        )

    def macs(self, replay: Replay | None) -> int | None:
        """Multiply-accumulates after a plan, or of the model as it is; None where sizes are not known."""
        return sum(rows.values()) if (rows := self.macs_by_node(replay)) is not None else None

    def macs_by_node(self, replay: Replay | None) -> dict[ir.Node, int] | None:
        """Multiply-accumulates of each product; None where sizes are not known."""
        before = self.channels.sizes.shape

        def shape_of(value: ir.Value) -> tuple[int, ...] | None:
            real = self.shapes.get(value.name or "", before.get(value))
            if real is None or replay is None or value not in replay.shapes:
                return real
            # channels never lie along an axis whose size is open, so the two speak of different axes
            sizes = zip(real, before[value], replay.shapes[value], strict=True)
            return tuple(after if old != after else size for size, old, after in sizes)

        groups = {
            edit.node: edit.value
            for edit in (() if replay is None else replay.edits)
            if isinstance(edit, SetAttribute) and edit.name == "group"
        }
        rows: dict[ir.Node, int] = {}
        for node in self.channels.model.graph:
            if node.op_type in PRODUCTS:
                left = groups.get(node)
                found = node_macs(node, shape_of, left if isinstance(left, int) else None)
                if found is None:
                    return None
                rows[node] = found
        return rows

    def missed(self, share: float, least: Trial, whole: int) -> str:
        """Why a budget cannot be met."""
        rows = self.macs_by_node(least.replay) or {}
        largest = ", ".join(
            f"'{label(node)}' {100 * rows[node] / max(least.macs, 1):.0f} %"
            for node in sorted(rows, key=lambda node: -rows[node])[:3]
        )
        reasons = [pin.reason for pin in {**least.why, **self.held}.values()]
        common = sorted(set(reasons), key=lambda reason: -reasons.count(reason))[:2]
        return (
            f"cannot prune the model to {share:g} of its {whole:,} multiply-accumulates: {least.macs / whole:.3f} is the "
            f"lowest, with at most {100 * self.rules.max_ratio:g} % of a layer's channels gone, in multiples of "
            f"{self.rules.multiple}. The largest parts of what is left: {largest}. Channels stay because: "
            f"{'; '.join(common) or 'of these limits alone'}. Allow more (max_ratio, multiple), or give a larger budget."
        )

    def finish(self, trial: Trial) -> Pruning:
        """The plan, and what there is to say about it."""
        channels = self.channels
        drop = ~trial.stay[channels.roots]
        drop[0] = False
        dropped = {
            node.outputs[0].name or "": tuple(
                int(i) for i in np.flatnonzero(drop[made.ravel()])
            )
            for node, made in channels.trace.sources.items()
            if drop[made].any()
        }
        changes: list[Change] = []
        sizes, reasons = {}, {}
        for node, made in channels.trace.sources.items():
            gone = int(drop[made].sum())
            if gone:
                name, weight = node.outputs[0].name or "", weight_of(channels, node)
                sizes[name] = made.size
                reasons[name] = (
                    f"of the {made.size} channels that '{weight}' makes, {gone} matter least"
                )
                changes.append(Change(weight, "output channels", made.size, made.size - gone))
        whole = self.macs(None)
        if changes and whole:
            changes.append(Change("the model", "multiply-accumulates", whole, trial.macs))
        return Pruning(
            ChannelPlan(dropped, sizes=sizes, reasons=reasons),
            trial.replay,
            None if not whole else (whole, trial.macs),
            tuple(changes),
            tuple(self.explain(trial)),
        )

    def explain(self, trial: Trial) -> Iterator[Skip]:
        """A Skip for what could not go at all, and for what was to go and stayed."""
        channels = self.channels
        # without groups a plan was carried out: then ties are all that can let anything stay
        stayed = self.held if self.groups else {**self.held, **trial.why}
        for node, made in channels.trace.sources.items():
            by_reason: dict[Pin, list[int]] = {}
            for index, root in enumerate(channels.roots[made.ravel()]):
                pin = stayed.get(int(root), listing.UNLISTED)
                if pin is not listing.UNLISTED:
                    by_reason.setdefault(pin, []).append(index)
            for pin, indices in by_reason.items():
                name = f"{weight_of(channels, node)}: channels {listed(indices)}"
                yield Skip(name, pin.reason, pin.advice)
        surplus: dict[tuple[str, Pin], list[int]] = {}
        for group, wanted in zip(self.groups, trial.wanted, strict=True):
            kept, held = group.marked(trial.stay), self.held_items(group)
            most = int(kept.sum(1).max(initial=0))
            extra = most - max(math.ceil(wanted - 1e-9), int(held.sum(1).max(initial=0)))
            if extra <= 0:
                continue
            there = group.classes[kept[group.line, group.item]]
            found = [trial.why[int(root)] for root in there if int(root) in trial.why]
            pin = max(set(found), key=found.count) if found else self.limit(group, most)
            total = surplus.setdefault((group.names[0], pin), [0, 0])
            total[0] += extra * group.shape[0]
            total[1] += group.shape[0] * group.size
        for (name, pin), (extra, size) in surplus.items():
            yield Skip(f"{name}: {extra} of {size}", pin.reason, pin.advice)

    def limit(self, group: Group, count: int) -> Pin:
        """Why more is kept than was wanted, where no tie is the reason."""
        if count > group.step and count == self.least(group):
            reason = (
                f"no more than {100 * self.rules.max_ratio:g} % of a layer's channels may go"
            )
            return Pin(group.names[0], reason, "allow more with max_ratio")
        return self.rounded(group, count)


UNREADABLE = Pin(
    "", "a weight of theirs holds NaN or infinity, or cannot be read", "repair the weight"
)


def find_groups(
    channels: ChannelMap, importance: Array, rules: Rules, held: Mapping[int, Pin]
) -> list[Group]:
    """The groups of a model, those that are held as a whole left out.

    Args:
        channels: the channel map.
        importance: float, shape `(tags,)`, by class.
        rules: how groups are rounded, and whether heads go as a whole.
        held: classes that have to stay.
    """
    members = np.zeros(channels.roots.size, dtype=bool)
    for made in channels.trace.sources.values():
        members[channels.roots[made]] = True
    cells = find_cells(channels, members)
    names: dict[int, list[str]] = {}
    for node, made in channels.trace.sources.items():
        for root in np.unique(channels.roots[made]):
            names.setdefault(int(root), []).append(weight_of(channels, node))
    found = []
    for lines, step in arrange(channels, cells, rules):
        classes = np.concatenate([np.concatenate(line) for line in lines])
        if all(int(root) in held for root in classes):
            continue
        scores = importance[classes]
        finite = scores[np.isfinite(scores)]
        mean = float(finite.mean()) if finite.size else 0.0
        sizes = [[len(item) for item in line] for line in lines]
        found.append(
            Group(
                classes,
                np.repeat(np.arange(len(lines)), [sum(line) for line in sizes]),
                np.concatenate([np.repeat(np.arange(len(line)), line) for line in sizes]),
                np.where(np.isfinite(scores), scores, mean) / (mean or 1.0),
                (len(lines), len(lines[0])),
                step,
                tuple(names.get(int(classes[0]), ("",))),
            )
        )
    return found


def arrange(
    channels: ChannelMap, cells: Sequence[Array], rules: Rules
) -> Iterator[tuple[list[list[Array]], int]]:
    """Put cells into lines of items.

    Two things link cells: *alike* are the parts of the rows of a grid, which must keep equally many channels; *bound*
    are those that make one group of a convolution, or one head, and can only go together.

    Yields:
        the lines of a group, each a list of items, which are arrays of classes; and what counts of items are multiples of.
    """
    alike, bound = links(channels, cells)
    bundle_of = components(len(cells), [*alike, *bound])
    family_of, unit_of = components(len(cells), alike), components(len(cells), bound)
    for bundle in range(int(bundle_of.max(initial=-1)) + 1):
        inside = np.flatnonzero(bundle_of == bundle)
        families = [inside[family_of[inside] == one] for one in np.unique(family_of[inside])]
        units = [inside[unit_of[inside] == one] for one in np.unique(unit_of[inside])]
        widths = [len(cells[family[0]]) for family in families]
        # every unit has to hold equally many cells of each family, or what goes would not be regular
        regular = len(units) > 1 and all(
            len({int((family_of[unit] == family_of[family[0]]).sum()) for unit in units}) == 1
            for family in families
        )
        small = min(widths) < 2 * rules.multiple
        if regular and (small if rules.whole is None else rules.whole):
            items = [np.concatenate([cells[cell] for cell in unit]) for unit in units]
            steps = [rules.multiple // math.gcd(rules.multiple, width) for width in widths]
            yield [items], math.lcm(*steps)
            continue
        for family in families:
            yield [list(cells[cell].reshape(-1, 1)) for cell in family], rules.multiple


def links(
    channels: ChannelMap, cells: Sequence[Array]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs of cells that are alike, and that are bound together."""
    roots, tags = channels.roots, channels.trace.tags
    cell_of = np.full(roots.size, -1)
    for index, cell in enumerate(cells):
        cell_of[cell] = index

    def cells_of(classes: Array) -> list[int]:
        return list(dict.fromkeys(int(cell) for cell in cell_of[classes.ravel()]))

    alike: list[tuple[int, int]] = []
    bound: list[tuple[int, int]] = []
    for grid in tags.grids:
        for side in (grid.tags, grid.partner):
            rows = [] if side is None else [cells_of(roots[row]) for row in grid_rows(side)]
            sizes = {tuple(len(cells[cell]) for cell in row) for row in rows if -1 not in row}
            if len(sizes) == 1 and all(-1 not in row for row in rows):
                for row in rows[1:]:
                    alike += zip(rows[0], row, strict=True)
        if grid.partner is not None:
            for one, other in zip(grid.tags, grid.partner, strict=True):
                together = cells_of(roots[np.concatenate([one.ravel(), other.ravel()])])
                bound += [(together[0], cell) for cell in together[1:]]
    heads: dict[int, list[int]] = {}
    for cover in tags.covers:
        heads.setdefault(int(roots[cover.coarse]), []).extend(cells_of(roots[cover.fine]))
    for together in heads.values():
        bound += [(together[0], cell) for cell in together[1:]]
    return alike, [pair for pair in bound if -1 not in pair]


def components(count: int, pairs: Sequence[tuple[int, int]]) -> Array:
    """Which component each of `count` things is in, numbered from 0."""
    table = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    graph = coo_array(
        (np.ones(len(table), dtype=bool), (table[:, 0], table[:, 1])), shape=(count, count)
    )
    labels: Array = connected_components(graph, directed=False)[1]
    return labels
