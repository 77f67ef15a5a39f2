"""What limits each layer on a device: its arithmetic, its memory, or what any node costs.

The peak is the best that the runtime gives of large products and convolutions; the bandwidth is what an elementwise operator
moves, at several sizes, so that a layer is held against the bandwidth of what it moves (a tensor that lies in a cache moves
faster than one that does not); the overhead is what a node costs that has next to nothing to do. All are measured where the
model is, with as many threads.

attainable time = max(multiply-accumulates / peak, bytes / bandwidth(bytes))

Bytes are those of all tensors that a kernel reads and writes, weights included, each once: a kernel that reads them again, or
finds them in a cache because the one before has just written them, moves more or less.

Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52 (4), 2009.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import profiling
from deploykit.errors import ModelError
from deploykit.profile import Settings, measure
from deploykit.report.profile_wording import seconds_text
from deploykit.report.what_if_records import (
    Limit,
    PeakRow,
    RooflineLayer,
    RooflineRecord,
)
from deploykit.what_if.prediction import Options, Studio, open_studio

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.profiling import Progress, Request
    from deploykit.report.profile_records import LayerRow, ProfileReport

__all__ = ["Limits", "Work", "judge", "measure_limits", "roofline"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PEAK = Settings(warmup_s=0.05, duration_s=0.3, min_rounds=7, rebuilds=2, max_duration_s=20.0)
PRODUCTS = (256, 512, 1024)
"""Sizes of square products that the peak is looked for with."""

CONVOLUTIONS = ((64, 56), (128, 28), (256, 14))
"""Channels and sizes of 3x3 convolutions likewise."""

STREAMS = tuple(2**power for power in (16, 18, 20, 22, 24, 26))
"""Bytes that elementwise operators move, read and written: from a cache of the first level to memory."""

CHAIN = 32
NOTHING = 4
"""Nodes in a chain of elementwise operators, and elements of the smallest of all."""

SURE_S = 5e-5
"""Time from which on that of a single layer is known well enough to be a peak."""

MOSTLY = 0.5
POOR = 0.4
"""Share of a layer's time from which on the overhead limits it, and of the attainable speed under which a kernel suits it badly."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a device gives.

    Attributes:
        macs_s: multiply-accumulates in a second, at most.
        bytes_s: bytes in a second, by how many there are, ascending.
        overhead_s: what a node costs that has next to nothing to do.
        peaks: all that was tried.
    """

    macs_s: float
    bytes_s: Mapping[int, float]
    overhead_s: float
    peaks: tuple[PeakRow, ...] = ()

    def bandwidth(self, count: float) -> float:
        """Bytes in a second, for so many: interpolated on the logarithm of sizes."""
        sizes = np.log2(np.asarray(list(self.bytes_s), dtype=np.float64))
        rates = np.asarray(list(self.bytes_s.values()))
        return float(np.interp(math.log2(max(count, 1.0)), sizes, rates))

    @property
    def memory_bytes_s(self) -> float:
        """Bytes in a second from memory: of what fits no cache."""
        return self.bytes_s[max(self.bytes_s)]

    @property
    def cache_bytes_s(self) -> float:
        """The most bytes in a second."""
        return max(self.bytes_s.values())

    @property
    def cache_bytes(self) -> int:
        """The most bytes that move nearer to the speed of caches than to that of memory."""
        middle = math.sqrt(self.memory_bytes_s * self.cache_bytes_s)
        return max(size for size, rate in self.bytes_s.items() if rate >= middle)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a kernel does: multiply-accumulates, and bytes that it reads and writes."""

    macs: int
    bytes: int


def roofline(
    request: Request, options: Options | None = None, *, progress: Progress = profiling.silent
) -> ProfileReport:
    """Hold every layer of a model against what the device gives.

    Raises:
        UsageError: several models.
        ModelError: the model cannot be read or does not run, or its sizes are not known.
        RuntimeUnavailable: the runtime is not there.
    """
    with open_studio(request, options or Options(), progress) as studio:
        dtype = _dtype(studio.source.model)
        limits = measure_limits(studio, dtype)
        report = profiling.profile(dataclasses.replace(request, layers=True), progress=progress)
        work = _find_work(studio, report.models[0].layers)
        limits = _with_best_layer(limits, report.models[0].layers, work)
        layers = tuple(
            judge(row, work[row.name], limits)
            for row in report.models[0].layers
            if row.name in work
        )
    record = RooflineRecord(
        model=studio.name,
        dtype=dtype.name,
        peak_macs_s=limits.macs_s,
        memory_bytes_s=limits.memory_bytes_s,
        cache_bytes_s=limits.cache_bytes_s,
        cache_bytes=limits.cache_bytes,
        overhead_s=limits.overhead_s,
        peaks=limits.peaks,
        layers=layers,
        said=_said(layers),
    )
    return dataclasses.replace(report, roofline=record)


def _with_best_layer(
    limits: Limits, rows: Sequence[LayerRow], work: Mapping[str, Work]
) -> Limits:
    """The limits, with a layer of the model as the peak where one is faster than all that was tried.

    A layer alone brings its data into the runtime's own layout and back, so that one among others may be a little faster.
    """
    rates = {
        row.name: work[row.name].macs / row.seconds
        for row in rows
        if row.name in work and row.seconds > SURE_S
    }
    if not rates or max(rates.values()) <= limits.macs_s:
        return limits
    best = max(rates, key=lambda name: rates[name])
    others = (
        dataclasses.replace(row, is_best=row.is_best and row.per_s != limits.macs_s)
        for row in limits.peaks
    )
    peaks = (*others, PeakRow(f"'{best}' in the model", rates[best], is_best=True))
    return dataclasses.replace(limits, macs_s=rates[best], peaks=peaks)


# -- layers -----------------------------------------------------------------------------------------


def judge(row: LayerRow, work: Work, limits: Limits) -> RooflineLayer:
    """What limits a layer.

    Args:
        row: the layer, and what it takes.
        work: what it does.
        limits: what the device gives.
    """
    compute_s = work.macs / limits.macs_s
    memory_s = work.bytes / limits.bandwidth(work.bytes)
    attainable_s = max(compute_s, memory_s)
    share = min(1.0, attainable_s / row.seconds) if row.seconds > 0 else 1.0
    limit: Limit = "compute" if compute_s >= memory_s else "memory"
    if (
        limits.overhead_s >= MOSTLY * row.seconds
        or limits.overhead_s > attainable_s > share * row.seconds
    ):
        limit = "overhead"
    return RooflineLayer(
        name=row.name,
        op_type=row.op_type,
        macs=work.macs,
        bytes=work.bytes,
        seconds=row.seconds,
        attainable_s=attainable_s,
        share=share,
        limit=limit,
        said=_sentence(limit, share, work, limits, row.seconds),
    )


def _sentence(limit: Limit, share: float, work: Work, limits: Limits, seconds: float) -> str:
    percent = f"{100 * share:.0f} %"
    if limit == "overhead":
        return f"{seconds_text(limits.overhead_s)} of {seconds_text(seconds)} are what any node costs: fewer nodes help, less work does not"
    if limit == "memory":
        intensity = work.macs / max(work.bytes, 1)
        start = f"moves {work.bytes / 1e6:.3g} MB for {intensity:.2g} multiply-accumulates a byte, at {percent} of what the device gives"
        if share < POOR:
            return f"{start}: its kernel is far from that, or brings data into another layout"
        return f"{start}: smaller tensors help, faster arithmetic does not"
    if share < POOR:
        return f"reaches {percent} of the peak: its kernel suits these counts badly; other multiples of channels may take less"
    return f"reaches {percent} of the peak: only less arithmetic helps, as fewer channels"


def _said(layers: Sequence[RooflineLayer]) -> str:
    total = sum(layer.seconds for layer in layers) or 1.0
    parts = []
    for limit, words in (
        ("compute", "by arithmetic"),
        ("memory", "by memory"),
        ("overhead", "by what any node costs"),
    ):
        seconds = sum(layer.seconds for layer in layers if layer.limit == limit)
        if seconds:
            parts.append(f"{100 * seconds / total:.0f} % {words}")
    attainable = sum(layer.attainable_s for layer in layers)
    return (
        f"Of the layers' time, what limits it: {', '.join(parts)}. At the device's limits they would take {100 * attainable / total:.0f} % "
        "of it."
    )


def _find_work(studio: Studio, rows: Sequence[LayerRow]) -> dict[str, Work]:
    """What each timed layer does, with the nodes that are done along with it."""
    from passes.analysis.macs import PRODUCTS as OPERATORS
    from passes.analysis.macs import node_macs, sized

    fixed, sizes = sized(studio.source.model, studio.shapes)
    if sizes is None:
        msg = f"the sizes of the tensors of '{studio.name}' are not known: give the sizes of its inputs with --shape."
        raise ModelError(msg)
    nodes = {node.name or node.outputs[0].name or "": node for node in fixed.graph}
    found = {}
    for row in rows:
        mine = [nodes[name] for name in (row.name, *row.covers) if name in nodes]
        if not mine:
            continue
        macs = sum(
            node_macs(node, sizes.shape.get) or 0 for node in mine if node.op_type in OPERATORS
        )
        found[row.name] = Work(macs, _bytes(mine, sizes.shape))
    return found


def _bytes(nodes: Sequence[ir.Node], shapes: Mapping[ir.Value, tuple[int, ...]]) -> int:
    """Bytes that come into some nodes and go out of them."""
    inside = {value for node in nodes for value in node.outputs}
    mine = set(nodes)
    read = {value for node in nodes for value in node.inputs if value is not None} - inside
    written = {
        value
        for value in inside
        if value.is_graph_output() or any(user not in mine for user in value.consumers())
    }
    return sum(_size(value, shapes) for value in read | written)


def _size(value: ir.Value, shapes: Mapping[ir.Value, tuple[int, ...]]) -> int:
    shape = shapes.get(value)
    if shape is None:
        return 0
    width = 4.0 if value.dtype is None else value.dtype.itemsize
    return round(math.prod(shape) * width)


def _dtype(model: ir.Model) -> np.dtype[Any]:
    """The type that most of the model's weights have, as far as peaks are measured in it."""
    totals: dict[str, int] = {}
    for value in model.graph.initializers.values():
        if value.dtype is not None and value.shape is not None and value.shape.is_static():
            name = value.dtype.name.lower()
            totals[name] = totals.get(name, 0) + math.prod(value.shape.numpy())
    most = max(totals, key=lambda name: totals[name], default="float")
    return np.dtype({"float16": np.float16, "double": np.float64}.get(most, np.float32))


# -- limits -----------------------------------------------------------------------------------------


def measure_limits(studio: Studio, dtype: np.dtype[Any]) -> Limits:
    """Measure what the device gives with the request's runtime and threads.

    Args:
        studio: where and how.
        dtype: the type of the numbers.

    Raises:
        ModelError: the runtime computes no products of this type.
    """
    probes = list(_probes(dtype))
    taken: dict[str, float] = {}
    for number, probe in enumerate(probes):
        studio.progress("measuring the limits of the device", number / len(probes))
        taken[probe.name] = _time(studio, probe)
    around_s = taken["nothing, once"]
    overhead_s = max(0.0, (taken["nothing"] - around_s) / (CHAIN - 1))
    rows: list[PeakRow] = []
    streams: dict[int, float] = {}
    for probe in probes:
        seconds = max(taken[probe.name] - around_s, 0.2 * taken[probe.name])
        if probe.macs:
            rows.append(PeakRow(probe.name, probe.macs / seconds, is_best=False))
        elif probe.bytes:
            each_s = seconds / probe.nodes
            rate = probe.bytes / max(each_s - overhead_s, 0.2 * each_s)
            streams[probe.bytes] = max(streams.get(probe.bytes, 0.0), rate)
            rows.append(PeakRow(probe.name, rate, is_best=False))
    best = max(row.per_s for row, probe in _with_macs(rows, probes))
    rows = [
        dataclasses.replace(row, is_best=row.per_s == best or row.per_s in streams.values())
        for row in rows
    ]
    return Limits(best, dict(sorted(streams.items())), overhead_s, tuple(rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A model that is timed to learn what a device gives.

    Attributes:
        name: what is run, in words.
        build: makes the model.
        shape: of its input "x".
        dtype: of the input.
        macs: multiply-accumulates.
        bytes: bytes that each of its nodes reads and writes.
        nodes: how many nodes it has.
    """

    name: str
    build: Callable[[], ir.Model]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    macs: int = 0
    bytes: int = 0
    nodes: int = 1


def _with_macs(
    rows: Sequence[PeakRow], probes: Sequence[Probe]
) -> Iterator[tuple[PeakRow, Probe]]:
    known = {probe.name: probe for probe in probes}
    yield from ((row, known[row.what]) for row in rows if known[row.what].macs)


def _probes(dtype: np.dtype[Any]) -> Iterator[Probe]:
    small = (1, NOTHING)
    yield Probe("nothing, once", lambda: _chain(1, small, dtype), small, dtype)
    yield Probe("nothing", lambda: _chain(CHAIN, small, dtype), small, dtype)
    for size in PRODUCTS:
        yield Probe(
            f"MatMul of {size}x{size} and {size}x{size}",
            lambda size=size: _layer("MatMul", (size, size), (size, size), dtype),  # type: ignore[misc]  # a default binds it
            (size, size),
            dtype,
            macs=size**3,
        )
    for channels, size in CONVOLUTIONS:
        shape = (1, channels, size, size)
        yield Probe(
            f"3x3 Conv, {channels} to {channels} channels of {size}x{size}",
            lambda shape=shape: _layer("Conv", shape, (shape[1], shape[1], 3, 3), dtype),  # type: ignore[misc]  # a default binds it
            shape,
            dtype,
            macs=9 * channels * channels * size * size,
        )
    for count in STREAMS:
        line = (1, count // (2 * dtype.itemsize))
        nodes = CHAIN if count <= STREAMS[2] else 2
        yield Probe(
            f"elementwise, {count // 1024:,} KiB",
            lambda line=line, nodes=nodes: _chain(nodes, line, dtype),  # type: ignore[misc]  # defaults bind them
            line,
            dtype,
            bytes=count,
            nodes=nodes,
        )


def _time(studio: Studio, probe: Probe) -> float:
    """Median seconds of a run."""
    import onnx_ir as ir

    path = studio.folder / "probe.onnx"
    ir.save(probe.build(), path)
    feeds = {"x": np.random.default_rng(0).standard_normal(probe.shape).astype(probe.dtype)}
    measured = measure(
        {probe.name: path},
        feeds,
        threads=studio.request.threads,
        settings=PEAK,
        runner=studio.runner,
        place=studio.request.place,
        runtime=studio.request.runtime,
    )
    return measured.latencies[probe.name].p50_s


def _chain(nodes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ir.Model:
    """Elementwise operators one after the other, that no optimizer makes one of."""
    import onnx_ir as ir

    read = last = _value("x", shape, dtype)
    made = []
    for op_type in itertools.islice(itertools.cycle(("Neg", "Abs")), nodes):
        made.append(ir.node(op_type, [last]))
        last = made[-1].outputs[0]
    return _model(read, last, shape, dtype, made, [])


def _layer(
    op_type: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], dtype: np.dtype[Any]
) -> ir.Model:
    """One product or convolution, which keeps the size of what it reads."""
    import onnx_ir as ir

    from passes import weights

    read = _value("x", shape, dtype)
    weight = ir.Value(name="w")
    weights.fill(weight, np.random.default_rng(1).standard_normal(weight_shape).astype(dtype))
    attributes = {"pads": [1, 1, 1, 1]} if op_type == "Conv" else {}
    node = ir.node(op_type, [read, weight], attributes)
    return _model(read, node.outputs[0], shape, dtype, [node], [weight])


def _value(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> ir.Value:
    import onnx_ir as ir

    kind = ir.TensorType(ir.DataType.from_numpy(dtype))
    return ir.Value(name=name, type=kind, shape=ir.Shape(shape))


def _model(  # noqa: PLR0917 - a graph in its order
    read: ir.Value,
    made: ir.Value,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    nodes: Sequence[ir.Node],
    initializers: Sequence[ir.Value],
) -> ir.Model:
    import onnx_ir as ir

    made.name = "y"
    made.type, made.shape = ir.TensorType(ir.DataType.from_numpy(dtype)), ir.Shape(shape)
    graph = ir.Graph(
        [read],
        [made],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": 17},
        name="probe",
    )
    return ir.Model(graph, ir_version=8)
