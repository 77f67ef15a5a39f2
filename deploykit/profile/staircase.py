"""The staircase of a device: time of one layer against its number of channels.

A runtime computes channels in blocks, so that time does not follow their number: it climbs in steps, and counts that
suit no fast kernel can take longer than larger ones. What is timed are models of that one layer, built at each count
with random weights and the geometry that the layer has in the network, all in turns.

A depthwise convolution has as many inputs as outputs. It is timed between two 1x1 convolutions, because in which
layout its input arrives is what decides its time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.profile import HERE, Settings, sampler
from deploykit.profile import Place as MeasuringPlace
from deploykit.report.records import Layer, Staircase
from deploykit.runtimes.onnxruntime import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir

    from passes.shapes import Sizes

__all__ = ["Place", "build", "choose_counts", "find_places", "summarize_rounds", "sweep"]

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

FLOATS = frozenset({"float16", "float32", "float64"})
NEIGHBOUR_CHANNELS = 16
"""Channels on the far side of the neighbours of a depthwise layer: few, so that they take little of the time."""

MOST_POINTS = 24
FEWEST_POINTS = 8
FEWEST_ROUNDS = 9
REBUILDS = 3
ONCE = Settings(warmup_s=0.0, duration_s=0.0, min_rounds=3, rebuilds=1, max_duration_s=60.0)
"""A look at how long a run takes on a device: what goes there costs more than two runs."""

NEAR = 4
"""Counts closer than this to one that matters are all tried."""


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A layer of the written model, as it is built again at other counts.

    Attributes:
        layer: its channels in the original and in the written model.
        node: its node in the written model.
        input_shape: sizes of what the node reads.
        dtype: type of the weight.
        macs: multiply-accumulates of the node in the original, as far as they follow from its own channels.
        opset: version of the operators.
        ir_version: version of the file format.
    """

    layer: Layer
    node: ir.Node
    input_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    macs: float
    opset: int
    ir_version: int

    @property
    def before(self) -> int:
        """Output channels in the original."""
        return self.layer.outputs.before or 0

    @property
    def after(self) -> int:
        """Output channels in the written model."""
        return self.layer.outputs.after or 0

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for a product."""
        return _integer(self.node, "group", 1)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is filtered by itself."""
        return (
            self.node.op_type == "Conv" and 1 < self.groups == self.after == self.input_shape[1]
        )

    @property
    def step(self) -> int:
        """What channel counts have to be a multiple of."""
        return 1 if self.is_depthwise else self.groups

    def weight_shape(self, count: int) -> tuple[int, ...]:
        """Sizes of the weight at so many output channels."""
        shape = list(self.layer.shape_after or self.layer.shape_before)
        match self.node.op_type:
            case "Conv":
                shape[0] = count
            case "ConvTranspose":
                shape[1] = count // self.groups
            case "Gemm" if _integer(self.node, "transB", 0):
                shape[0] = count
            case _:
                shape[-1] = count
        return tuple(shape)

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernel of a runtime computes it."""
        return (self.node.op_type, self.weight_shape(0)[2:], self.is_depthwise)

    @property
    def key(self) -> tuple[object, ...]:
        """What it has in common with layers that would give the very same staircase."""
        attributes = {name: str(each.value) for name, each in self.node.attributes.items()}
        return (
            self.node.op_type,
            self.input_shape,
            self.weight_shape(self.after),
            self.before,
            tuple(sorted(attributes.items())),
        )


def find_places(
    layers: Sequence[Layer],
    model: ir.Model,
    input_shapes: Mapping[str, tuple[int, ...]],
    *,
    seconds: Mapping[str, float] | None = None,
    most: int = 3,
) -> tuple[Place, ...]:
    """The layers whose staircases tell most: those that take longest, of the ones that changed if any did.

    Of each kind (operator, kernel, depthwise or not) the slowest comes first; a second one of a kind follows only
    where there are fewer kinds than places.

    Args:
        layers: each weight of the original and what became of it.
        model: the written model; unchanged.
        input_shapes: static sizes of its inputs, by name.
        seconds: time of nodes of the original, by name; None ranks by multiply-accumulates.
        most: how many are wanted at most.

    Returns:
        the layers, no two alike. Layers that are gone, quantized, or too narrow are left out.
    """
    from passes.analysis.macs import sized
    from passes.analysis.sparsity import constant_operands

    fixed, sizes = sized(model, input_shapes)
    if sizes is None:
        return ()
    rows = {layer.weight: layer for layer in layers if layer.outputs.after is not None}
    found = [
        place
        for node in fixed.graph
        for value, index in constant_operands(node)
        # A weight that something else stands before (a DequantizeLinear) is not built again as it was.
        if index == 1
        and value is node.inputs[1]
        and value.name in rows
        and (place := _place(rows[value.name], node, value, sizes, fixed)) is not None
    ]
    changed = [each for each in found if each.before != each.after]

    def cost(place: Place) -> float:
        return place.macs if seconds is None else seconds.get(place.layer.node, 0.0)

    alike: dict[tuple[object, ...], Place] = {}
    for place in sorted(changed or found, key=cost, reverse=True):
        alike.setdefault(place.key, place)
    kinds: dict[tuple[object, ...], Place] = {}
    for place in alike.values():
        kinds.setdefault(place.kind, place)
    firsts = list(kinds.values())
    return tuple([*firsts, *(each for each in alike.values() if each not in firsts)][:most])


def _place(
    layer: Layer, node: ir.Node, weight: ir.Value, sizes: Sizes, model: ir.Model
) -> Place | None:
    from passes.analysis.macs import node_macs

    read = None if node.inputs[0] is None else sizes.shape.get(node.inputs[0])
    macs = node_macs(node, sizes.shape.get)
    if read is None or macs is None or weight.const_value is None:
        return None
    dtype = np.dtype(weight.const_value.dtype.numpy())
    if dtype.name not in FLOATS:
        return None
    scale = (layer.outputs.before or 0) / max(1, layer.outputs.after or 0)
    opset = model.opset_imports.get("", 17)
    place = Place(layer, node, read, dtype, macs * scale, opset, model.ir_version or 8)
    is_wide = min(place.before, place.after) >= FEWEST_POINTS * place.step
    return place if is_wide and place.before % place.step == 0 else None


def choose_counts(
    before: int,
    as_is: int,
    after: int,
    *,
    multiples: Sequence[int],
    step: int = 1,
    most: int = MOST_POINTS,
) -> tuple[int, ...]:
    """The channel counts to try: those that matter, all near them, and both edges of steps up to the original count.

    Args:
        before: the count in the original.
        as_is: the count that removal leaves.
        after: the count in the written model.
        multiples: channel multiples that the target likes.
        step: what every count has to be a multiple of.
        most: how many there may be.

    Returns:
        the counts, ascending.
    """
    least = min(as_is, after)
    low = max(step, int(least * (0.5 if least == before else 0.8)))
    high = before + NEAR * step

    def fitting(counts: Iterable[int]) -> list[int]:
        those = (each for each in counts if low <= each <= high and each % step == 0)
        return [each for each in dict.fromkeys(those) if each not in chosen]

    chosen = {before, as_is, after}
    near = [
        count + sign * away * step
        for away in range(1, NEAR + 1)
        for count in (after, as_is)
        for sign in (-1, 1)
    ]
    chosen.update(fitting(near)[: most // 2])
    spacing = math.lcm(max(multiples, default=8), step)
    while (high - low) / spacing > max(1, (most - len(chosen)) / 2):
        spacing *= 2
    # Where a step begins is only seen with the counts on both sides of it.
    first = spacing * (low // spacing)
    edges = [at for edge in range(first, high + 1, spacing) for at in (edge, edge + step)]
    chosen.update(fitting(edges)[: max(0, most - len(chosen))])
    fine = math.lcm(min(multiples, default=4), step)
    rest = fitting(range(fine * (low // fine), high + 1, fine))
    while rest and len(chosen) < most:
        # The widest gap is filled first.
        rest.sort(key=lambda each: min(abs(each - other) for other in chosen))
        chosen.add(rest.pop())
    return tuple(sorted(chosen))


def sweep(
    place: Place,
    as_is: int,
    folder: Path,
    *,
    multiples: Sequence[int],
    threads: int | None = 1,
    budget_s: float = 2.0,
    progress: Callable[[float], None] | None = None,
    on: MeasuringPlace = HERE,
) -> Staircase:
    """Time a layer at many channel counts, in turns.

    Args:
        place: the layer.
        as_is: the count that removal leaves before anything is padded.
        folder: an empty folder for the models that are timed.
        multiples: channel multiples that the target likes.
        threads: threads of the sessions; None leaves the number to the runtime.
        budget_s: seconds that it may take; what takes longer per run is tried at fewer counts.
        progress: told the share of the work that is done, 0 to 1.
        on: where it is timed.

    Raises:
        ModelError: the layer does not run by itself.
        RuntimeUnavailable: the runtime is not there.
    """
    import onnx_ir as ir

    feeds = _feeds(place)
    largest = folder / "largest.onnx"
    ir.save(build(place, place.before), largest)
    once_s = _time_once(largest, feeds, threads, on)
    # A round runs every model twice (or for as long as the sampler lets it settle), most of them narrower than this.
    run_s = 0.75 * (max(once_s, sampler.SETTLE_S) + once_s)
    most = max(FEWEST_POINTS, min(MOST_POINTS, int(budget_s / FEWEST_ROUNDS / run_s)))
    counts = choose_counts(
        place.before, as_is, place.after, multiples=multiples, step=place.step, most=most
    )
    paths = [folder / f"{count}.onnx" for count in counts]
    for count, path in zip(counts, paths, strict=True):
        ir.save(build(place, count), path)
    taken = on.sample(
        paths,
        feeds,
        threads=threads,
        settings=Settings(
            warmup_s=min(0.005, budget_s / 100),
            duration_s=budget_s / len(counts),
            min_rounds=FEWEST_ROUNDS,
            rebuilds=REBUILDS,
            max_duration_s=max(1.0, 2 * budget_s),
        ),
        progress=progress,
    )
    if progress is not None:
        progress(1.0)  # time may have run out before the last round
    # With one thread its own time is what a busy machine hardly changes.
    clock = "cpu" if threads == 1 else "wall"
    middle, lo, hi = summarize_rounds(np.asarray(taken[f"{clock}_s"], dtype=np.float64))
    return Staircase(
        layer=place.layer.node,
        weight=place.layer.weight,
        op_type=place.node.op_type,
        axis="channels" if place.is_depthwise else "output channels",
        description=describe(place),
        counts=counts,
        seconds=middle,
        lo_s=lo,
        hi_s=hi,
        before=place.before,
        as_is=as_is,
        after=place.after,
        multiples=tuple(multiples),
        clock=clock,
        rounds=len(taken["rebuild"]),
    )


def build(place: Place, count: int) -> ir.Model:
    """The layer as a model of its own, with so many output channels and random weights."""
    import onnx_ir as ir

    from passes import weights

    dice = np.random.default_rng(0)
    dtype = ir.DataType.from_numpy(place.dtype)
    initializers: list[ir.Value] = []

    def weight(name: str, shape: Sequence[int]) -> ir.Value:
        value = ir.Value(name=name)
        weights.fill(value, dice.standard_normal(shape).astype(place.dtype))
        initializers.append(value)
        return value

    read = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(_read_shape(place)))
    nodes: list[ir.Node] = []
    last = read
    ones = [1] * (len(place.input_shape) - 2)
    if place.is_depthwise:
        nodes.append(
            ir.node("Conv", [last, weight("first", (count, NEIGHBOUR_CHANNELS, *ones))])
        )
        last = nodes[-1].outputs[0]
    attributes = [
        ir.AttrInt64("group", count) if name == "group" and place.is_depthwise else attribute
        for name, attribute in place.node.attributes.items()
    ]
    inputs = [last, weight("w", place.weight_shape(count))]
    if len(place.node.inputs) > 2 and place.node.inputs[2] is not None:
        inputs.append(weight("b", (count,)))
    nodes.append(ir.Node("", place.node.op_type, inputs, attributes))
    if place.is_depthwise:
        far = weight("last", (NEIGHBOUR_CHANNELS, count, *ones))
        nodes.append(ir.node("Conv", [nodes[-1].outputs[0], far]))
    result = nodes[-1].outputs[0]
    result.name, result.type = "y", ir.TensorType(dtype)
    result.shape = ir.Shape(
        [None] * max(len(place.input_shape), len(place.weight_shape(count)))
    )
    graph = ir.Graph(
        [read],
        [result],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": place.opset},
        name="layer",
    )
    return ir.Model(graph, ir_version=place.ir_version)


def describe(place: Place) -> str:
    """What is timed at each count, in a few words."""
    sizes = " x ".join(str(size) for size in place.input_shape[2:])
    if place.node.op_type not in {"Conv", "ConvTranspose"}:
        read = " x ".join(str(size) for size in place.input_shape)
        return f"{place.node.op_type} of {read}"
    kernel = "x".join(str(size) for size in place.weight_shape(place.after)[2:])
    found = place.node.attributes.get("strides")
    strides = [] if found is None else list(found.as_ints())
    stride = f", stride {strides[0]}" if strides and max(strides) > 1 else ""
    if place.is_depthwise:
        return f"depthwise {kernel} Conv{stride}, on {sizes}, between two 1x1 Conv"
    groups = f" in {place.groups} groups" if place.groups > 1 else ""
    return f"{kernel} {place.node.op_type}{stride}{groups}, {place.input_shape[1]} inputs of {sizes}"


def _read_shape(place: Place) -> tuple[int, ...]:
    if place.is_depthwise:
        return (place.input_shape[0], NEIGHBOUR_CHANNELS, *place.input_shape[2:])
    return place.input_shape


def _feeds(place: Place) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    dice = np.random.default_rng(1)
    return {"x": dice.standard_normal(_read_shape(place)).astype(place.dtype)}


def _time_once(
    path: Path,
    feeds: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    threads: int | None,
    on: MeasuringPlace,
) -> float:
    """About how long a run takes: the best of three."""
    if not on.is_local:
        found = on.sample([path], feeds, threads=threads, settings=ONCE)
        return min(float(each) for each in found["wall_s"][0])
    taken = []
    with Session(path, threads=threads) as session:
        session.run(feeds)
        for _ in range(3):
            began = time.perf_counter()
            session.run(feeds)
            taken.append(time.perf_counter() - began)
    return min(taken)


def summarize_rounds(
    seconds: Floats,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Medians and their 95 % intervals, of models that were timed in the same rounds.

    Each time is taken relative to its round first, and put back at the level of the middle round: what slows a whole
    round down says nothing about any of the models. The interval is between two order statistics, which assumes nothing
    of how times are spread.

    Args:
        seconds: float, shape `(models, rounds)`.

    Returns:
        medians, lower and upper ends, in seconds, each of length `models`.

    Source: the ranks are those of the binomial distribution in its normal approximation, n/2 -+ 0.98 sqrt(n).
    """
    level = np.exp(np.log(np.maximum(seconds, 1e-9)).mean(axis=0))
    ordered = np.sort(seconds / level * np.median(level), axis=1)
    rounds = seconds.shape[1]
    reach = 0.98 * math.sqrt(rounds)
    lo = max(0, math.floor(rounds / 2 - reach))
    hi = min(rounds - 1, math.ceil(rounds / 2 + reach))
    rows = (np.median(ordered, axis=1), ordered[:, lo], ordered[:, hi])
    middle, low, high = (tuple(float(value) for value in row) for row in rows)
    return middle, low, high


def _integer(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())
