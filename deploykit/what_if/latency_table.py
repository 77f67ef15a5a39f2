"""How long layers take at other numbers of channels: each kind of layer is timed alone, over a grid of inputs and outputs.

Layers that are alike in everything that takes time are one kind, timed once. All counts of outputs at one count of inputs take
turns. Between counts of the grid times are interpolated. A layer alone also pays for what surrounds a run and for bringing its
data into the runtime's own layout: so a table is only used for ratios, and the layer's time in the network, which has neither,
is what they are applied to.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.profile import Settings
from deploykit.profile.staircase import Place, build, describe, summarize_rounds
from deploykit.report.what_if_records import TableRow

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.profile import Place as MeasuringPlace
    from deploykit.what_if.network import Layer, Network

__all__ = ["LatencyTable", "LayerTable", "measure_table"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

TABLE = Settings(warmup_s=0.0, duration_s=0.04, min_rounds=11, rebuilds=2, max_duration_s=20.0)
"""How long each point is measured: some hundreds for a network, and what is chosen is measured again as a whole."""

MOST_INPUTS = 4
MOST_OUTPUTS = 7
EVEN = 16
"""What counts of the grid are multiples of where no single group says which there can be."""

LEFT = 0.05
"""Share of a measured time that is left at least when what surrounds a run is taken off."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerTable:
    """Times of one kind of layer.

    Attributes:
        place: the layer, as it is built alone.
        layers: names of the layers of this kind.
        inputs: counts of inputs, ascending; one for depthwise layers, whose inputs are their outputs.
        outputs: counts of outputs, ascending.
        seconds: float, shape `(len(inputs), len(outputs))`.
    """

    place: Place
    layers: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: Floats

    def at(self, inputs: float, outputs: float) -> float:
        """Seconds at any counts, interpolated between those of the grid, and held at its edges."""
        one, other, part = _between(self.inputs, inputs)
        low, high, share = _between(self.outputs, outputs)
        table = self.seconds
        first = table[one, low] * (1 - share) + table[one, high] * share
        second = table[other, low] * (1 - share) + table[other, high] * share
        return float(first * (1 - part) + second * part)

    def ratio(self, inputs: float, outputs: float) -> float:
        """Seconds over those of the layer as it is."""
        return self.at(inputs, outputs) / max(float(self.seconds[-1, -1]), 1e-12)

    @property
    def row(self) -> TableRow:
        """As a record."""
        return TableRow(
            self.layers[0],
            describe(self.place),
            len(self.layers),
            self.inputs,
            self.outputs,
            tuple(tuple(round(float(each), 9) for each in row) for row in self.seconds),
        )


def _between(points: Sequence[int], wanted: float) -> tuple[int, int, float]:
    """The two points around a number, and how far it is from the first to the second."""
    if wanted <= points[0]:
        return 0, 0, 0.0
    if wanted >= points[-1]:
        return len(points) - 1, len(points) - 1, 0.0
    high = bisect.bisect_left(points, wanted)
    low = high - 1
    return low, high, (wanted - points[low]) / (points[high] - points[low])


@dataclasses.dataclass(frozen=True, eq=False)
class LatencyTable:
    """Times of all kinds of layers of a network: `by_layer` names the table of each layer that has one."""

    tables: tuple[LayerTable, ...]

    def by_layer(self) -> dict[str, LayerTable]:
        """The table of each layer."""
        return {name: table for table in self.tables for name in table.layers}


def measure_table(
    network: Network,
    shapes: Mapping[str, tuple[int, ...]],
    choices: Sequence[Sequence[int]],
    folder: Path,
    *,
    on: MeasuringPlace,
    threads: int | None,
    runtime: str,
    progress: Callable[[float], None],
) -> LatencyTable:
    """Time every kind of layer whose channels may change.

    Args:
        network: the network.
        shapes: static sizes of its inputs, by name.
        choices: the counts that each group may have.
        folder: where the models of single layers may be written.
        on: where they are timed.
        threads: threads of the sessions; None leaves the number to the runtime.
        runtime: what runs them there.
        progress: told the share of the work that is done, 0 to 1.
    """
    kinds = _find_kinds(network, shapes)
    around_s = _around(folder, on, threads, runtime)
    grids = [_grid(place, layers, choices) for place, layers in kinds]
    total = sum(len(inputs) for inputs, _ in grids)
    done = 0
    tables = []
    for (place, layers), (inputs, outputs) in zip(kinds, grids, strict=True):
        rows = []
        for count in inputs:
            rows.append(
                _time_row(
                    place, count, outputs, folder, on=on, threads=threads, runtime=runtime
                )
            )
            done += 1
            progress(done / total)
        seconds = np.asarray(rows)
        seconds = np.maximum(seconds - around_s, LEFT * seconds)
        names = tuple(layer.name for layer in layers)
        tables.append(LayerTable(place, names, inputs, outputs, seconds))
    return LatencyTable(tuple(tables))


def _find_kinds(
    network: Network, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[Place, list[Layer]]]:
    """Layers whose channels may change, those that are alike together."""
    from deploykit.layers import compare
    from passes.analysis.macs import sized
    from passes.analysis.sparsity import constant_operands

    fixed, sizes = sized(network.model, shapes)
    rows = {row.weight: row for row in compare(network.model, network.model)}
    layers = {layer.name: layer for layer in network.layers if layer.weight and layer.groups}
    kinds: dict[tuple[object, ...], tuple[Place, list[Layer]]] = {}
    for node in fixed.graph:
        layer = layers.get(node.name or node.outputs[0].name or "")
        row = None if layer is None else rows.get(layer.weight)
        if layer is None or row is None or sizes is None:
            continue
        value = next(
            (
                value
                for value, index in constant_operands(node)
                if index == 1 and value is node.inputs[1]
            ),
            None,
        )
        read = None if node.inputs[0] is None else sizes.shape.get(node.inputs[0])
        if value is None or read is None or value.const_value is None:
            continue
        place = Place(
            row,
            node,
            read,
            np.dtype(value.const_value.dtype.numpy()),
            float(layer.macs),
            fixed.opset_imports.get("", 17),
            fixed.ir_version or 8,
        )
        # Where groups of a convolution change along with channels, no single count says what is timed.
        if place.dtype.kind == "f" and (place.groups == 1 or place.is_depthwise):
            key = (*place.key, *_ranges(layer))
            kinds.setdefault(key, (place, []))[1].append(layer)
    return list(kinds.values())


def _ranges(layer: Layer) -> tuple[bool, bool]:
    """Which sides of a layer may change: it is timed over those."""
    return bool(layer.inputs.parts), bool(layer.outputs.parts)


def _grid(
    place: Place, layers: Sequence[Layer], choices: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The counts of inputs and of outputs to time a kind of layer at."""
    floor = [each[0] for each in choices]
    inputs: set[int] = set()
    outputs: set[int] = set()
    for layer in layers:
        for width, found, most in (
            (layer.inputs, inputs, MOST_INPUTS),
            (layer.outputs, outputs, MOST_OUTPUTS),
        ):
            low, high = math.ceil(width.at(floor)), round(width.full)
            found |= set(_spread(_reached(width.parts, width.fixed, choices), low, high, most))
    if place.is_depthwise:
        inputs = {round(layers[0].inputs.full)}
    return tuple(sorted(inputs)), tuple(sorted(outputs))


def _reached(
    parts: Mapping[int, float], fixed: float, choices: Sequence[Sequence[int]]
) -> list[int]:
    """Counts that a layer can come to, where one group decides; where several do, none are named."""
    if len(parts) != 1:
        return []
    ((group, part),) = parts.items()
    return [round(fixed + part * count) for count in choices[group]]


def _spread(reached: Sequence[int], low: int, high: int, most: int) -> list[int]:
    """At most so many counts between two, evenly in the ratio of one to the next where they can be chosen."""
    if low >= high:
        return [high]
    wanted = np.geomspace(low, high, most)
    if not reached:
        # Odd counts run on other kernels, and are none that several groups at nice counts come to.
        nice = {EVEN * max(1, round(each / EVEN)) for each in wanted}
        return sorted({each for each in nice if low < each < high} | {low, high})
    if len(reached) <= most:
        return list(reached)
    near = {min(reached, key=lambda count: abs(count - each)) for each in wanted}
    return sorted(near | {reached[0], reached[-1]})


def resized(place: Place, inputs: int) -> Place:
    """A layer with another number of inputs."""
    shape = list(place.layer.shape_after or place.layer.shape_before)
    read = list(place.input_shape)
    if place.is_depthwise:
        return place
    match place.node.op_type:
        case "Conv":
            shape[1] = read[1] = inputs
        case "ConvTranspose":
            shape[0] = read[1] = inputs
        case "Gemm" if place.node.attributes.get_int("transB", 0):
            shape[1] = read[-1] = inputs
        case _:
            shape[-2] = read[-1] = inputs
    layer = dataclasses.replace(place.layer, shape_after=tuple(shape))
    return dataclasses.replace(place, layer=layer, input_shape=tuple(read))


def _time_row(
    place: Place,
    inputs: int,
    outputs: Sequence[int],
    folder: Path,
    *,
    on: MeasuringPlace,
    threads: int | None,
    runtime: str,
) -> list[float]:
    """Seconds of a layer at one number of inputs and several of outputs, in turns."""
    here = resized(place, inputs)
    models = {count: build(here, count) for count in outputs}
    (read,) = {tuple(model.graph.inputs[0].shape.numpy()) for model in models.values()}  # type: ignore[union-attr]  # build gives it one
    return _time(models, read, place.dtype, folder, on=on, threads=threads, runtime=runtime)


def _time(
    models: Mapping[int, ir.Model],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    folder: Path,
    *,
    on: MeasuringPlace,
    threads: int | None,
    runtime: str,
) -> list[float]:
    import onnx_ir as ir

    paths = []
    for count, model in models.items():
        paths.append(folder / f"layer-{count}.onnx")
        ir.save(model, paths[-1])
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(dtype)}
    taken = on.sample(paths, feeds, runtime=runtime, threads=threads, settings=TABLE)
    # With one thread its own time is what a busy machine hardly changes.
    clock = "cpu_s" if threads == 1 and not taken["is_device"] else "wall_s"
    middle, _, _ = summarize_rounds(np.asarray(taken[clock], dtype=np.float64))
    for path in paths:
        path.unlink()
    return list(middle)


def _around(folder: Path, on: MeasuringPlace, threads: int | None, runtime: str) -> float:
    """What a run costs that has next to nothing to do, in seconds."""
    import onnx_ir as ir

    kind = ir.TensorType(ir.DataType.FLOAT)
    read = ir.Value(name="x", type=kind, shape=ir.Shape([1, 4]))
    node = ir.node("Neg", [read])
    made = node.outputs[0]
    made.name, made.type, made.shape = "y", kind, ir.Shape([1, 4])
    graph = ir.Graph([read], [made], nodes=[node], opset_imports={"": 17}, name="nothing")
    model = ir.Model(graph, ir_version=8)
    (seconds,) = _time(
        {0: model},
        (1, 4),
        np.dtype(np.float32),
        folder,
        on=on,
        threads=threads,
        runtime=runtime,
    )
    return seconds
