"""MatMul, Gemm and two-operand Einsum: axes named by letters, as Einsum does.

A letter is *contracted* (in both operands, not in the result), *free* (in one operand and the result) or a *batch*
letter (in all three). A constant operand is a weight: it consumes the channels along contracted letters and makes new
ones along its free letters. Between two activations nothing is made: contracted channels are tied one to one, and a
batch letter (an attention head) that loses its contracted dimensions lives on as a coarse channel.
"""

from __future__ import annotations

import dataclasses
import string
from typing import TYPE_CHECKING

import numpy as np

from passes.analysis.axis_rules.elementwise import (
    aligned,
    combine,
    cut_operand,
    operand_tags,
    padded,
)
from passes.analysis.axis_rules.row import Pins, attribute_int, data, input_at
from passes.analysis.compact import Array, varying_axes
from passes.analysis.edits import Select
from passes.analysis.tags import Grid, Pin
from passes.analysis.walk import label

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.walk import Replay, Trace

__all__ = ["Contraction", "Letters", "Weighted", "letters"]

SUMMED = "they are multiplied with one another and summed up"


@dataclasses.dataclass(frozen=True)
class Letters:
    """The axes of a contraction by letter, one string an operand and one for the result."""

    operands: tuple[str, str]
    result: str

    @property
    def contracted(self) -> str:
        """Letters of both operands that the result does not have."""
        return "".join(
            c for c in self.operands[0] if c in self.operands[1] and c not in self.result
        )

    @property
    def batch(self) -> str:
        """Letters of both operands and the result."""
        return "".join(
            c for c in self.result if c in self.operands[0] and c in self.operands[1]
        )

    def free(self, operand: int) -> str:
        """Letters of one operand and the result alone."""
        return "".join(
            c
            for c in self.operands[operand]
            if c in self.result and c not in self.operands[1 - operand]
        )

    def summed(self, operand: int) -> str:
        """Letters of one operand alone, which an Einsum sums up."""
        return "".join(
            c
            for c in self.operands[operand]
            if c not in self.result and c not in self.operands[1 - operand]
        )


def letters(node: ir.Node, ranks: tuple[int, int]) -> Letters | None:
    """Name the axes of a node's two operands; None for an Einsum of another form."""
    if node.op_type == "Gemm":
        one = "km" if attribute_int(node, "transA", 0) else "mk"
        other = "nk" if attribute_int(node, "transB", 0) else "kn"
        return Letters((one, other), "mn")
    if node.op_type == "MatMul":
        names = string.ascii_uppercase
        shared = max(ranks[0], ranks[1]) - 2
        batch = names[: max(shared, 0)]
        one = "k" if ranks[0] == 1 else batch[len(batch) - (ranks[0] - 2) :] + "mk"
        other = "k" if ranks[1] == 1 else batch[len(batch) - (ranks[1] - 2) :] + "kn"
        return Letters(
            (one, other), batch + ("m" if ranks[0] > 1 else "") + ("n" if ranks[1] > 1 else "")
        )
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "." in equation or "->" not in equation:
        return None
    terms, result = equation.split("->")
    operands = terms.split(",")
    if len(operands) != 2 or any(len(set(term)) != len(term) for term in (*operands, result)):
        return None
    return Letters((operands[0], operands[1]), result)


def place(tags: Array, axes: str, target: str) -> Array:
    """Put the axes `axes` of a compact array where `target` has them; other axes get size 1."""
    order = [axes.index(c) for c in target if c in axes]
    moved = tags.transpose(order + [axis for axis in range(tags.ndim) if axis not in order])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if c in axes else 1 for c in target])


def pick(tags: Array, axes: str, wanted: str) -> Array:
    """The part of a compact array along the letters `wanted`, in their order, at the first index of the others."""
    index = tuple(slice(None) if c in wanted else 0 for c in axes)
    rest = "".join(c for c in axes if c in wanted)
    return tags[index].transpose([rest.index(c) for c in wanted])


@dataclasses.dataclass(frozen=True)
class Weighted:
    """What the trace of a contraction with a weight remembers.

    Attributes:
        names: the letters.
        weight: which operand is the weight.
        batch: batch letters on which the weight has its own numbers and the channels vary.
        contracted: contracted letters along which the weight has more than one element.
        incoming: tags over `batch` + `contracted`.
        outgoing: new tags over `batch` + the weight's free letters, or None: the activation's own channels go through.
    """

    names: Letters
    weight: int
    batch: str
    contracted: str
    incoming: Array
    outgoing: Array | None


class Contraction:
    """MatMul, Gemm and Einsum."""

    def trace(self, node: ir.Node, t: Trace) -> None:
        """Decide which operand, if any, is the weight."""
        names = None
        if node.op_type != "Einsum" or len(node.inputs) == 2:
            names = letters(node, (len(t.shape(data(node))), len(t.shape(data(node, 1)))))
        if names is None:
            Pins("'{op}' has an equation of another form than a product of two operands").trace(
                node, t
            )
            return
        if t.is_weight(data(node, 1)):
            self.trace_weight(node, t, names, 1)
        elif t.is_weight(data(node)):
            self.trace_weight(node, t, names, 0)
        else:
            trace_product(node, t, names)
        extra = input_at(node, 2)
        if extra is not None:
            trace_addend(node, t, extra)

    def trace_weight(self, node: ir.Node, t: Trace, names: Letters, weight: int) -> None:
        """Consume channels, and make new ones."""
        value, table, out = data(node, 1 - weight), data(node, weight), node.outputs[0]
        axes, mine = names.operands[1 - weight], names.operands[weight]
        tags, sizes = t.get(value), dict(zip(mine, t.shape(table), strict=True))
        real = dict(zip(axes, t.shape(value), strict=True))
        if pick(tags, axes, names.summed(1 - weight)).size > 1:
            t.pin(tags, node, SUMMED)
        contracted = "".join(c for c in names.contracted if sizes[c] > 1)
        if any(sizes[c] != real[c] for c in names.contracted):
            Pins("'{op}' broadcasts a contracted axis").trace(node, t)
            return
        consumes = pick(tags, axes, contracted).size > 1
        through = names.free(1 - weight) + "".join(c for c in names.batch if sizes[c] == 1)
        if consumes:
            tags = t.unite_along(node, tags, tuple(axes.index(c) for c in through))
        if not varying_axes(tags) and not contracted:
            t.pin(tags, node, "a single channel is multiplied out")
        batch = "".join(
            c for c in names.batch if sizes[c] > 1 and tags.shape[axes.index(c)] > 1
        )
        # channels that lie along other axes are not consumed, whatever stands first on the contracted one
        mine_only = place(pick(tags, axes, batch), batch, batch + contracted)
        consumed = (
            pick(tags, axes, batch + contracted) if consumes else mine_only if batch else 0
        )
        incoming = np.broadcast_to(consumed, [real[c] for c in batch + contracted])
        free = names.free(weight)
        passes = not consumes and any(tags.shape[axes.index(c)] > 1 for c in through)
        outgoing = None
        if passes or not free:
            # the axes that make no new channels keep those that come in
            if contracted and consumes:
                t.pin(incoming, node, SUMMED)
                t.set(node, out, np.zeros((1,) * len(names.result), dtype=np.int64))
            else:
                t.set(node, out, place(tags, axes, names.result))
            if passes:
                t.blocked[node] = Pin(
                    label(node),
                    f"'{label(node)}' already carries the channels of its input along another axis",
                    "keep them: a tensor has one axis of channels",
                )
        else:
            outgoing = t.tags.fresh(
                tuple(real.get(c, sizes[c]) for c in batch) + tuple(sizes[c] for c in free)
            )
            made = place(outgoing, batch + free, names.result)
            t.sources[node] = made
            t.set(node, out, made)
            wide, rows = None, squeezed(outgoing)
            if batch:
                count = int(np.prod([real[c] for c in batch]))
                wide, rows = incoming.reshape(count, -1), outgoing.reshape(count, -1)
            if rows.ndim > 1:
                t.tags.grids.append(Grid(rows, wide, label(node), "part"))
        t.notes[node] = Weighted(names, weight, batch, contracted, incoming, outgoing)
        role = "".join(
            "k" if c in names.contracted else "b" if c in batch else "f" if c in free else "."
            for c in mine
        )
        t.tie_weight(
            node, table, role, (incoming,) if outgoing is None else (incoming, outgoing)
        )

    def replay(self, node: ir.Node, r: Replay) -> None:
        """Cut the weight, or follow the activations."""
        noted = r.trace.notes.get(node)
        if isinstance(noted, Weighted):
            replay_weight(node, r, noted)
        elif noted is not None:
            replay_product(node, r, noted)
        extra = input_at(node, 2)
        if extra is not None and r.is_changed(node.outputs[0]):
            replay_addend(node, r, extra)


def squeezed(tags: Array) -> Array:
    """Without axes of size 1."""
    return tags.reshape([size for size in tags.shape if size != 1] or [1])


def replay_weight(node: ir.Node, r: Replay, noted: Weighted) -> None:
    """Cut the rows and columns of a weight."""
    names, weight = noted.names, noted.weight
    value, out = data(node, 1 - weight), node.outputs[0]
    axes, lines = names.operands[1 - weight], noted.batch + noted.contracted
    arriving, old = noted.incoming, noted.outgoing
    if r.is_changed(value) and arriving.any():
        sizes = dict(zip(axes, r.shape(value), strict=True))
        arriving = np.broadcast_to(pick(r.new(value), axes, lines), [sizes[c] for c in lines])
    leaving = survivors(node, r, noted, arriving)
    if old is None or leaving is None:
        if r.is_changed(value) and r.trace.tags.of[out].any():
            r.set(node, out, place(r.new(value), axes, names.result))
        if np.array_equal(arriving, noted.incoming):
            return
    elif np.array_equal(arriving, noted.incoming) and np.array_equal(leaving, old):
        return
    else:
        r.set(node, out, place(leaving, noted.batch + names.free(weight), names.result))
    r.edit(cut(node, r, noted, arriving, leaving))


def cut(
    node: ir.Node, r: Replay, noted: Weighted, arriving: Array, leaving: Array | None
) -> Select:
    """The elements of a weight that a plan leaves.

    Args:
        node: the node that reads the weight.
        r: the second walk.
        noted: what the first walk remembers of the node.
        arriving: tags over batch and contracted letters after the plan.
        leaving: tags over batch and free letters after the plan, or None where the weight makes no channels.
    """
    names, mine = noted.names, noted.names.operands[noted.weight]
    lines, free = noted.batch + noted.contracted, noted.batch + names.free(noted.weight)
    target = lines + names.free(noted.weight)
    came = np.unravel_index(r.origins(node, noted.incoming, arriving), noted.incoming.shape)
    places = {c: place(where, lines, target) for c, where in zip(lines, came, strict=True)}
    zero = place(arriving < 0, lines, target)
    if noted.outgoing is not None and leaving is not None:
        went = np.unravel_index(r.origins(node, noted.outgoing, leaving), noted.outgoing.shape)
        for c, where in zip(free, went, strict=True):
            places.setdefault(c, place(where, free, target))
        zero = zero | place(leaving < 0, free, target)
    picks: list[Array | None] = []
    for c in mine:
        found = places.get(c)
        if found is None:
            picks.append(None)
        elif not noted.batch and found.size == max(found.shape):
            picks.append(found.ravel())
        else:
            picks.append(place(found, target, mine))
    return Select(
        node, noted.weight, tuple(picks), place(zero, target, mine) if zero.any() else None
    )


def survivors(node: ir.Node, r: Replay, noted: Weighted, arriving: Array) -> Array | None:
    """What a plan leaves of the channels that a weight makes, over batch and free letters; None if it makes none.

    Args:
        node: the node that reads the weight.
        r: the second walk.
        noted: what the first walk remembers of the node.
        arriving: tags over batch and contracted letters after the plan.
    """
    old, incoming, batch = noted.outgoing, noted.incoming, len(noted.batch)
    if old is None:
        return None
    varying = [axis for axis in range(old.ndim) if old.shape[axis] > 1]
    if batch == 0 and len(varying) <= 1:
        left = r.survivors(old.ravel())
        r.require(
            node,
            varying or left.size == old.size,
            old,
            "its only channel cannot become several",
        )
        return left.reshape(
            [-1 if axis in varying else 1 for axis in range(old.ndim)] if varying else old.shape
        )
    rows = old.reshape(int(np.prod(old.shape[: max(batch, 1)])), -1)
    order = list(range(rows.shape[0]))
    if batch:
        came = r.origins(node, incoming, arriving).reshape(
            int(np.prod(arriving.shape[:batch])), -1
        )
        order = [int(row[0]) // int(np.prod(incoming.shape[batch:])) for row in came]
    kept = [r.survivors(rows[row]) for row in order]
    alive = kept if batch else [line for line in kept if line.size]
    lengths = {line.size for line in alive}
    r.require(
        node, len(lengths) == 1 and 0 not in lengths, old, "its rows would differ in length"
    )
    stacked = np.stack(alive)
    inner = old.shape[max(batch, 1) :]
    r.require(
        node,
        len(inner) == 1 or stacked.shape[1] == int(np.prod(inner)),
        old,
        "its parts would differ",
    )
    outer = (stacked.shape[0],) if max(batch, 1) == 1 else (*arriving.shape[:batch],)
    return stacked.reshape(*outer, *(inner if len(inner) != 1 else (stacked.shape[1],)))


@dataclasses.dataclass(frozen=True)
class Product:
    """What the trace of a product of two activations remembers.

    Attributes:
        names: the letters.
        coarse: whether the contracted letters carry channels, so that batch letters live on as coarse ones.
    """

    names: Letters
    coarse: bool


def trace_product(node: ir.Node, t: Trace, names: Letters) -> None:
    """Tie the contracted channels of two activations; pass on the others."""
    values = (data(node), data(node, 1))
    sides = [t.get(value) for value in values]
    shapes = [
        dict(zip(axes, t.shape(value), strict=True))
        for axes, value in zip(names.operands, values, strict=True)
    ]
    contracted = names.contracted
    for side, (tags, axes) in enumerate(zip(sides, names.operands, strict=True)):
        if pick(tags, axes, names.summed(side)).size > 1:
            t.pin(tags, node, SUMMED)
    carries = [
        pick(tags, axes, contracted).size > 1
        for tags, axes in zip(sides, names.operands, strict=True)
    ]
    if any(carries):
        inner = [
            t.unite_along(node, tags, tuple(axes.index(c) for c in names.free(side)))
            for side, (tags, axes) in enumerate(zip(sides, names.operands, strict=True))
        ]
        target = names.batch + contracted
        one, other = (
            place(tags, axes, target) for tags, axes in zip(inner, names.operands, strict=True)
        )
        t.unite(node, one, other)
        for value, tags in zip(values, inner, strict=True):
            pin = Pin(label(node), SUMMED, "make them zero, not constant")
            t.tags.demand_zero(value, pin, (node, "product"))
            t.tags.stiffen(tags, Pin(label(node), SUMMED, "keep them"))
        wide = np.maximum(np.broadcast_arrays(one, other)[0], 0)
        t.notes[node] = Product(names, coarse=True)
        t.set(node, node.outputs[0], coarse_result(node, t, names, wide))
        return
    for tags in sides:
        if not varying_axes(tags):
            t.pin(tags, node, "a single channel is multiplied out")
    placed = [
        place(tags, axes, names.result)
        for tags, axes in zip(sides, names.operands, strict=True)
    ]
    real = [tuple(sizes.get(c, 1) for c in names.result) for sizes in shapes]
    result = combine(node, t, (placed[0], real[0]), (placed[1], real[1]))
    t.notes[node] = Product(names, coarse=False)
    t.set(node, node.outputs[0], result)


def coarse_result(node: ir.Node, t: Trace, names: Letters, wide: Array) -> Array:
    """Tags of the result, given those over batch and contracted letters: one coarse channel a batch index."""
    target = names.batch + names.contracted
    if all(wide.shape[target.index(c)] == 1 for c in names.batch):
        return np.zeros((1,) * len(names.result), dtype=np.int64)
    return place(coarse(node, t, names, wide), target, names.result)


def coarse(node: ir.Node, t: Trace, names: Letters, wide: Array) -> Array:
    """One coarse channel a batch index, given tags over batch and contracted letters, over the same letters."""
    count = len(names.batch)
    axes = tuple(range(count, count + len(names.contracted)))
    return t.tags.coarsen((node, "product"), wide, axes, label(node))


def replay_product(node: ir.Node, r: Replay, noted: Product) -> None:
    """Check that the contracted channels still match; pass on the others."""
    values = (data(node), data(node, 1))
    if not any(r.is_changed(value) for value in values):
        return
    names, out = noted.names, node.outputs[0]
    sides = [r.new(value) for value in values]
    shapes = [
        dict(zip(axes, r.shape(value), strict=True))
        for axes, value in zip(names.operands, values, strict=True)
    ]
    for c in names.contracted + names.batch:
        fits = shapes[0][c] == shapes[1][c] or (
            c in names.batch and 1 in (shapes[0][c], shapes[1][c])
        )
        r.require(node, fits, sides[0], "its operands would differ in length")
    if noted.coarse:
        target = names.batch + names.contracted
        inner = [
            pick_first(tags, axes, target)
            for tags, axes in zip(sides, names.operands, strict=True)
        ]
        r.agree(node, inner[0], inner[1])
        wide = np.broadcast_arrays(inner[0], inner[1])[0]
        old = np.broadcast_arrays(
            *(
                pick_first(r.old(value), axes, target)
                for value, axes in zip(values, names.operands, strict=True)
            )
        )[0]
        if any(old.shape[target.index(c)] > 1 for c in names.batch):
            heads = [coarse(node, r.trace, names, tags) for tags in (old, wide)]
            r.meet(node, (heads[0], old), (heads[1], wide))
            r.set(node, out, place(heads[1], target, names.result))
        return
    old_out = r.old(out)
    before, after = (
        [
            place(tags, axes, names.result)
            for tags, axes in zip(both, names.operands, strict=True)
        ]
        for both in ([r.old(value) for value in values], sides)
    )
    r.meet(node, (before[0], before[1]), (after[0], after[1]))
    for was, tags in zip(before, after, strict=True):
        if was.shape == old_out.shape and (was == old_out).all():
            r.set(node, out, tags)
            return


def pick_first(tags: Array, axes: str, target: str) -> Array:
    """Compact tags over `target`, at the first index of other axes, on which they are tied anyway."""
    index = tuple(slice(None) if c in target else slice(0, 1) for c in axes)
    return place(tags[index], axes, target)


def trace_addend(node: ir.Node, t: Trace, extra: ir.Value) -> None:
    """Gemm's third operand is added to the result."""
    out = node.outputs[0]
    if not t.is_weight(extra):
        mine = (aligned(t.get(extra), 2), padded(t.shape(extra), 2))
        result = combine(node, t, (t.get(out), t.shape(out)), mine)
        if varying_axes(result) != varying_axes(t.get(out)):
            t.pin(result, node, "they are added to data that has no removable channels")
    else:
        operand_tags(node, t, 2, t.get(out))


def replay_addend(node: ir.Node, r: Replay, extra: ir.Value) -> None:
    """Cut a constant third operand; check another."""
    out = node.outputs[0]
    new = r.new(out)
    if r.trace.is_weight(extra):
        cut_operand(node, r, 2, new)
    elif r.is_changed(extra):
        mine = aligned(r.new(extra), 2)
        r.require(node, mine.shape == new.shape, mine, "its operands would differ in length")
        r.agree(node, mine, new)
    else:
        real = padded(r.shape(extra), 2)
        fits = all(size in {1, whole} for size, whole in zip(real, r.shape(out), strict=True))
        r.require(node, fits, new, "its operands would differ in length")
