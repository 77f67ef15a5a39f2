"""Networks of `nets.py` at a wanted sparsity: counts of whole channels, weights in blocks as regroup makes them, planted blocks.

Sparsity is the share of the weights of all convolutions that is zero, those of the first one included. The first convolution,
which reads the picture, depthwise ones and the classifier are dense, as in the paper.

`group_wise` draws weights with the structure that trained ones have (see SPREADS), keeps the largest of all layers together, and
makes blocks of whole input channels of what is kept, layer by layer. How the layers share the sparsity depends on their scales,
which random weights cannot tell:

- "equal": all layers have weights of one scale, and keep about the same share. BatchNormalization makes the scale of a layer
  meaningless;
- "fan-in": scales are those of an initialization after He et al. (2015), so that layers with many inputs, which are at the end
  and have most of the weights and few of the multiply-adds, lose the most. Training leaves something in between.

`planted` has blocks that were there from the beginning, under hidden permutations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import zlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from benchmarks import nets
from deploykit.finder.structures.columns import Budget
from deploykit.finder.structures.regroup import regroup
from passes import targets, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from deploykit.finder.structures.regroup import Method
    from passes.targets import Target

__all__ = [
    "BLOCKS",
    "FORM",
    "Blocked",
    "Form",
    "Pattern",
    "Scale",
    "aligned_counts",
    "group_wise",
    "linear",
    "planted",
    "sparsity_of",
    "widths",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Counts: TypeAlias = "Mapping[str, int]"
Form: TypeAlias = Literal["free", "balanced", "disjoint"]
Scale: TypeAlias = Literal["equal", "fan-in"]
Pattern: TypeAlias = Literal["dense", "random", "diagonal", "windows"]

FORM: Form = "balanced"
"""What becomes of a layer: a Gather and one grouped convolution, which loses the least time at any sparsity. "disjoint" needs
no Gather where permutations fold, but is at 1/2, 3/4, 7/8 only; "free" keeps more, and becomes a convolution for each block."""

BLOCKS = 4
"""Groups of rows in each layer."""

METHOD: Method = "cocluster"
"""How rows are grouped: `benchmarks.regroup` finds that it keeps the most on nearly all layers, in a fraction of the time."""

RANK = 8
SPREADS = {"rows": 0.15, "channels": 0.1, "pairs": 0.3, "low rank": 0.3}
"""Weights are normal numbers times a factor for each row, each input channel, and each pair of them: log-normal, with these standard
deviations; that of pairs has a part of rank 8.

On 29 convolutions of 32 to 256 channels in trained detection, recognition, speech and small image networks they are mostly 0.05 to
0.2 for rows and channels, and for pairs, the noise of 3x3 kernels included, 0.25 to 0.5. What matters for time: four blocks of a
quarter of 128 channels leave 35 % of them unread, and keep 39 % of the magnitude that a mask of that density keeps; of the trained
layers, 15 to 67 % (median 31 %), and 32 to 46 %. With channels of very different scales all blocks would take the same ones,
and group-wise networks would be narrow ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Blocked:
    """A network with weights in blocks.

    Attributes:
        model: zero outside of the blocks.
        sparsity: what was reached, 0 to 1.
        blocked: layers with blocks.
        layers: layers that could have some.
        macs: multiply-accumulates for one image of weights that are not zero.
        kept: share of the magnitude that the mask kept which lies in blocks.
        unread: share of the input channels of layers with blocks that are in no block.
    """

    model: ir.Model
    sparsity: float
    blocked: int
    layers: int
    macs: int
    kept: float
    unread: float


# -- channel-wise ------------------------------------------------------------


def sparsity_of(name: str, counts: Counts) -> float:
    """Share of the weights of the convolutions that go with the channels that are not kept."""
    layers = nets.layers(name)
    return 1 - _total(layers, counts) / _total(layers, _dense(name))


def widths(name: str, multiple: int) -> list[dict[str, int]]:
    """All counts at which the network is equally narrow everywhere, the narrowest first.

    Args:
        name: of the network.
        multiple: what counts are rounded to, down to one multiple.
    """
    found: dict[tuple[int, ...], dict[str, int]] = {}
    for step in range(1, 201):
        counts = _narrow(name, step / 200, multiple)
        found.setdefault(tuple(counts.values()), counts)
    return list(found.values())


def aligned_counts(name: str, sparsity: float, multiple: int) -> dict[str, int]:
    """Channels to keep of each group, multiples, so that the sparsity is the wanted one or a little less.

    All groups keep the same share, as nearly as multiples allow. What is missing then, or too much, is up to the larger half of
    them, whose multiples are the smallest share: taking it where it fits best would take it where there are few weights and
    many multiply-adds.
    """
    layers, dense = nets.layers(name), _dense(name)
    least = (1 - sparsity) * _total(layers, dense)
    counts = min(
        (_narrow(name, step / 1000, multiple) for step in range(1, 1001)),
        key=lambda counts: abs(_total(layers, counts) - least),
    )
    large = max(dense.values()) / 2
    groups = sorted(
        (group for group in dense if dense[group] >= large), key=lambda group: -dense[group]
    )
    for group in itertools.cycle(groups):
        if _total(layers, counts) >= least:
            break
        counts[group] = min(dense[group], counts[group] + multiple)
    for group in groups:
        fewer = {**counts, group: counts[group] - multiple}
        if fewer[group] >= multiple and _total(layers, fewer) >= least:
            counts = fewer
    return counts


def _narrow(name: str, ratio: float, multiple: int) -> dict[str, int]:
    def kept(group: str, count: int) -> int:
        if group == "input":
            return count
        return min(count, max(multiple, multiple * round(count * ratio / multiple)))

    return {group: kept(group, count) for group, count in _dense(name).items()}


@functools.cache
def _dense(name: str) -> dict[str, int]:
    return nets.counts(name)


def _total(layers: Sequence[nets.Layer], counts: Counts) -> int:
    return sum(layer.weights(counts) for layer in layers)


# -- group-wise ------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def group_wise(
    name: str,
    sparsity: float,
    *,
    form: Form = FORM,
    scale: Scale = "equal",
    blocks: int = BLOCKS,
    target: Target | None = None,
    seed: int = 0,
) -> Callable[[int], Blocked]:
    """A network with the blocks that regroup finds, for any batch size.

    Args:
        name: of the network.
        sparsity: what is wanted, 0 to 1. It is met from below as closely as multiples allow; the form "disjoint" meets it
            only by chance.
        form: of the blocks.
        scale: of the layers, see above.
        blocks: groups of rows in each layer.
        target: whose multiples rows and channels come in; None is this machine.
        seed: of all that is random.

    Returns:
        makes the network for a batch size.
    """
    target = target or targets.detect()
    layers, dense = nets.layers(name), _dense(name)
    shapes = {
        layer.name: (dense[layer.outputs], dense[layer.inputs], layer.kernel, layer.kernel)
        for layer in layers
        if layer.inputs != "input" and not layer.is_depthwise
    }
    values = {key: _drawn(shape, key, seed, scale) for key, shape in shapes.items()}
    drawn = {key: np.abs(array) for key, array in values.items()}
    free = sum(map(math.prod, shapes.values()))
    least = (1 - sparsity) * _total(layers, dense) - (_total(layers, dense) - free)
    bound = _quantile(drawn.values(), 1 - least / free)
    masks = {key: magnitudes >= bound for key, magnitudes in drawn.items()}
    taken = _columns(masks, blocks, target.group_multiple, least)
    found = {}
    kept, total = 0.0, 0.0
    for key, mask in masks.items():
        density = taken[key] / mask.shape[1]
        if density < 1:
            made = regroup(
                mask,
                drawn[key],
                columns="channel",
                method=METHOD,
                density=density,
                # of block-diagonal matrices the number of blocks is what makes the density
                blocks=None if form == "disjoint" else blocks,
                balanced=form == "balanced",
                disjoint=form == "disjoint",
                target=target,
                seed=seed,
            )
            if made.reason is None:
                found[key] = made.mask
                magnitude = float(drawn[key][mask].sum())
                total += magnitude
                kept += made.kept * magnitude
    return functools.partial(_build, name, seed, found, values, kept / total if total else 1.0)


def _build(
    name: str,
    seed: int,
    masks: Mapping[str, Array],
    values: Mapping[str, Array],
    kept: float,
    batch: int = 1,
) -> Blocked:
    """The network with these values, zero outside of the masks."""
    model = nets.build(name, batch=batch, seed=seed)
    dense = _dense(name)
    left, macs = 0, nets.macs(model) // batch
    for layer in nets.layers(name):
        count = layer.weights(dense)
        if layer.name in values:
            weight = model.graph.initializers[f"{layer.name}.weight"]
            mask = masks.get(layer.name)
            like = weights.constant(weight)
            assert like is not None, "a weight is a constant"
            weights.set_tensor(weight, _filled(values[layer.name], mask, like))
            if mask is not None:
                here = int(np.count_nonzero(mask))
                macs -= layer.size**2 * (count - here)
                count = here
        left += count
    sparsity = 1 - left / _total(nets.layers(name), dense)
    read = [mask.any((0, 2, 3)) for mask in masks.values()]
    unread = 1 - float(np.concatenate(read).mean()) if read else 0.0
    return Blocked(model, sparsity, len(masks), len(values), macs, kept, unread)


def _filled(values: Array, mask: Array | None, like: Array) -> Array:
    """Values on a mask, with each filter centred and as long as it is in `like`, so that signals pass as they did."""
    mask = np.ones(values.shape, np.bool_) if mask is None else mask
    axes = tuple(range(1, values.ndim))
    count = np.maximum(mask.sum(axes, keepdims=True), 1)
    mean = np.where(mask, values, 0).sum(axes, keepdims=True) / count
    centred = np.where(mask, values - mean, 0)
    lengths = np.sqrt(np.square(centred).sum(axes, keepdims=True))
    wanted = np.sqrt(np.square(like).sum(axes, keepdims=True))
    scaled: Array = centred * (wanted / np.maximum(lengths, 1e-12))
    return scaled.astype(np.float32)


def _drawn(shape: tuple[int, ...], name: str, seed: int, scale: Scale) -> Array:
    """Weights of a layer, float32."""
    dice = np.random.default_rng([seed, zlib.crc32(f"{name}/drawn".encode())])

    def normal(*sizes: int) -> Array:
        return dice.standard_normal(sizes, dtype=np.float32)

    rows, channels = shape[:2]
    spread = SPREADS["rows"] * normal(rows, 1) + SPREADS["channels"] * normal(1, channels)
    spread += SPREADS["pairs"] * normal(rows, channels)
    low_rank = normal(rows, RANK) @ normal(RANK, channels) / np.sqrt(np.float32(RANK))
    spread += SPREADS["low rank"] * low_rank
    values: Array = normal(*shape) * np.exp(spread).reshape(rows, channels, 1, 1)
    wanted = 1.0 if scale == "equal" else math.sqrt(2 / math.prod(shape[1:]))
    values *= np.float32(wanted / np.sqrt(np.square(values).mean()))
    return values


def _quantile(arrays: Iterable[Array], share: float) -> float:
    values = np.concatenate([array.ravel() for array in arrays])
    index = min(max(round(share * values.size), 0), values.size - 1)
    return float(np.partition(values, index)[index])


def _columns(
    masks: Mapping[str, Array], blocks: int, multiple: int, least: float
) -> dict[str, int]:
    """Input channels that each block of a layer takes, so that at least so many weights are in blocks.

    In proportion to what its mask keeps, times a factor that is the same for all layers.
    """
    budget = Budget(0, multiple, multiple, "equal")
    density = {key: float(mask.mean()) for key, mask in masks.items()}

    def taken(factor: float) -> dict[str, int]:
        return {
            key: mask.shape[1]
            if len(mask) < blocks or mask.shape[1] <= multiple
            else budget.nearest(min(factor * density[key], 1) * mask.shape[1], mask.shape[1])
            for key, mask in masks.items()
        }

    def area(columns: Mapping[str, int]) -> int:
        return sum(columns[key] * (mask.size // mask.shape[1]) for key, mask in masks.items())

    lo, hi = 0.0, 1.0
    while area(taken(hi)) < least and hi < 64:
        hi *= 2
    for _ in range(40):
        middle = (lo + hi) / 2
        lo, hi = (lo, middle) if area(taken(middle)) >= least else (middle, hi)
    columns = taken(hi)
    # What multiples leave over goes to the smaller layers.
    for key in sorted(masks, key=lambda key: -masks[key].size):
        fewer = {**columns, key: columns[key] - multiple}
        if fewer[key] >= multiple and area(fewer) >= least:
            columns = fewer
    return columns


# -- planted ------------------------------------------------------------


def planted(
    name: str, pattern: Pattern, share: float, *, batch: int = 1, seed: int = 0
) -> Blocked:
    """A network whose 3x3 convolutions all have blocks that can be found again, but for the first one.

    The channels of each group lie in a hidden order, the same for all layers that share them. Blocks are a quarter of the rows
    each, in that order, so that rows can be brought together by permuting channels alone.

    Args:
        name: of the network.
        pattern: "random": each block reads input channels drawn for this layer, `share` of them. (Each channel is read by some
            block: channels that nobody reads would be cut, and that is not what this is about.) "diagonal": each reads a
            quarter of the input channels, in their hidden order, so that permutations fold completely.
        share: of the input channels that a block reads; rounded up to the machine's multiple unless it is a quarter.
        batch: fixed batch size.
        seed: of all that is random.
    """
    dense = _dense(name)
    dice = np.random.default_rng([seed, zlib.crc32(f"{name}/{pattern}/{share}".encode())])
    orders = {group: dice.permutation(count) for group, count in dense.items()}
    multiple = targets.detect().group_multiple
    masks, values = {}, {}
    for layer in nets.layers(name):
        if layer.kernel != 3 or layer.inputs == "input":
            continue
        rows, columns = dense[layer.outputs], dense[layer.inputs]
        mask = np.zeros((rows, columns, 3, 3), np.bool_)
        count = columns // BLOCKS if share == 1 / BLOCKS else _up(share * columns, multiple)
        rows_of = np.split(orders[layer.outputs], BLOCKS)
        columns_of = np.split(orders[layer.inputs], BLOCKS)
        if pattern == "random":
            columns_of = [
                np.append(own, dice.permutation(np.setdiff1d(range(columns), own)))[:count]
                for own in np.split(dice.permutation(columns), BLOCKS)
            ]
        for mine, theirs in zip(rows_of, columns_of, strict=True):
            mask[np.ix_(mine, theirs)] = True
        masks[layer.name] = mask
        values[layer.name] = dice.standard_normal(mask.shape).astype(np.float32)
    return _build(name, seed, masks, values, 1.0, batch)


def _up(number: float, multiple: int) -> int:
    return multiple * math.ceil(number / multiple)


SEQUENCE = 128
NARROW = 16


def linear(sizes: Sequence[int], pattern: Pattern, *, seed: int = 0) -> ir.Model:
    """Linear layers (MatMul, bias, Relu) in a row, over a sequence of 128, each with weights in four blocks.

    In front of them is a dense layer from 16 inputs, 1 % of the multiply-adds, so that there is a layer to fold the permutation
    of the first one's inputs into. Inner channels lie in a hidden order; the outputs of the last layer in that of the graph.

    Args:
        sizes: channels, as in 768, 768, 768 for two layers.
        pattern: "dense"; "diagonal": each block reads a quarter of the inputs; "windows": and 8 of the next block's, which
            makes 74 % of zeros of 768 inputs.
        seed: of all that is random.
    """
    dice = np.random.default_rng([seed, *sizes])
    orders = [dice.permutation(size) for size in sizes[:-1]] + [np.arange(sizes[-1])]
    graph = ir.Graph([], [], nodes=[], name="linear", opset_imports={"": 17})

    def typed(name: str, shape: Sequence[int]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    def constant(name: str, array: Array) -> ir.Value:
        value = typed(name, array.shape)
        value.const_value = ir.tensor(array, name=name)
        graph.register_initializer(value)
        return value

    def node(op: str, name: str, inputs: list[ir.Value], shape: Sequence[int]) -> ir.Value:
        output = typed(f"{name}.out", shape)
        graph.append(ir.node(op, inputs, outputs=[output], name=name))
        return output

    x = typed("input", (1, SEQUENCE, NARROW))
    graph.inputs.append(x)
    before = NARROW
    for index, size in enumerate(sizes):
        mask = np.ones((before, size), np.bool_)
        if index and pattern != "dense":
            mask[:] = False
            width = before // BLOCKS + (8 if pattern == "windows" else 0)
            for part, mine in enumerate(np.split(orders[index], BLOCKS)):
                first = part * (before // BLOCKS)
                theirs = np.arange(first, first + width) % before
                mask[np.ix_(orders[index - 1][theirs], mine)] = True
        drawn = dice.standard_normal((before, size), dtype=np.float32)
        weight = np.where(mask, drawn, np.float32(0)) * np.sqrt(
            2 / mask.sum(0, dtype=np.float32)
        )
        name, shape = f"linear{index}", (1, SEQUENCE, size)
        x = node("MatMul", name, [x, constant(f"{name}.weight", weight)], shape)
        bias = dice.normal(0, 0.2, size).astype(np.float32)
        x = node("Add", f"{name}.add", [x, constant(f"{name}.bias", bias)], shape)
        x = node("Relu", f"{name}.relu", [x], shape)
        before = size
    x.name = "output"
    graph.outputs.append(x)
    return ir.Model(graph, ir_version=8, producer_name="benchmarks")
