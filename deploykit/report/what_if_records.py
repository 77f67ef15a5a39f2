"""What `deploykit profile` says of networks that are not there yet, of the device's limits and of sweeps, as frozen data."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

__all__ = [
    "AllocationRecord",
    "GroupRow",
    "KeptRow",
    "PeakRow",
    "Prediction",
    "RefusedWhatIf",
    "RooflineLayer",
    "RooflineRecord",
    "SkipRow",
    "SweepRecord",
    "SweepRow",
    "TableRow",
    "WhatIfRecord",
]

Limit: TypeAlias = Literal["compute", "memory", "overhead"]


@dataclasses.dataclass(frozen=True)
class KeptRow:
    """Output channels that a weight keeps, and those it has."""

    weight: str
    keep: int
    of: int


@dataclasses.dataclass(frozen=True)
class SkipRow:
    """What stays as it is, why, and what to do about it."""

    subject: str
    reason: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A network as it would be, as it was measured.

    Attributes:
        name: as it was asked for; the name of one of the report's models, whose times are its own.
        form: how channels are aligned in the form that was the fastest.
        parameters: of the original, and of this.
        macs: multiply-accumulates likewise; None where sizes are not known.
        ratio: time over that of the original.
        ci95: its 95 % interval.
        assumed: what was assumed, in words.
        kept: weights that lose output channels.
        skips: what stays as it is.
    """

    name: str
    form: str
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    ratio: float
    ci95: tuple[float, float]
    assumed: tuple[str, ...] = ()
    kept: tuple[KeptRow, ...] = ()
    skips: tuple[SkipRow, ...] = ()


@dataclasses.dataclass(frozen=True)
class RefusedWhatIf:
    """A what-if that nothing was measured of, and why."""

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """Channels that are kept together: the weights that make them, and items of each line of them.

    Attributes:
        weights: the weights that make the channels.
        size: items there are.
        uniform: items that the same share everywhere keeps.
        keep: items that the allocation keeps.
    """

    weights: tuple[str, ...]
    size: int
    uniform: int
    keep: int


@dataclasses.dataclass(frozen=True)
class TableRow:
    """Times of one kind of layer, alone, over its numbers of channels.

    Attributes:
        layer: the first layer of this kind.
        description: what was timed.
        layers: how many layers of the network are of this kind.
        inputs: numbers of input channels.
        outputs: numbers of output channels.
        seconds: a row for each number of inputs, a number for each of outputs.
    """

    layer: str
    description: str
    layers: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class AllocationRecord:
    """The counts that save the most time at a budget.

    Attributes:
        budget: "weights" or "macs".
        share: the share of them that was to be left, at least.
        left: the share that the chosen counts leave.
        uniform_left: the share that the same share of channels everywhere leaves.
        least: the smallest share of a group's channels that could be kept.
        chosen: "allocated", or "uniform" where that was as fast.
        expected: time over that of the original, as the table of latencies has it, by name of the model.
        said: what came of it, in a sentence.
        groups: counts.
        table: the latencies it rests on.
        saved_as: the file that the counts were written to; None if to none.
    """

    budget: Literal["weights", "macs"]
    share: float
    left: float
    uniform_left: float
    least: float
    chosen: Literal["allocated", "uniform"]
    expected: dict[str, float]
    said: str
    groups: tuple[GroupRow, ...]
    table: tuple[TableRow, ...]
    saved_as: str | None = None


@dataclasses.dataclass(frozen=True)
class WhatIfRecord:
    """Networks as they would be.

    Attributes:
        original: name of the model that they are made of.
        predictions: what was measured.
        refused: what was not.
        allocation: the counts that save the most time, if they were asked for.
    """

    original: str
    predictions: tuple[Prediction, ...]
    refused: tuple[RefusedWhatIf, ...] = ()
    allocation: AllocationRecord | None = None


@dataclasses.dataclass(frozen=True)
class PeakRow:
    """The most that a device gave, by one of the models it was tried with.

    Attributes:
        what: what was run.
        per_s: multiply-accumulates, or bytes, in a second.
        is_best: whether it is the one that layers are held against.
    """

    what: str
    per_s: float
    is_best: bool


@dataclasses.dataclass(frozen=True)
class RooflineLayer:
    """One layer under the roof.

    Attributes:
        name: of the node.
        op_type: its operator.
        macs: multiply-accumulates.
        bytes: bytes of what it reads and writes, weights included; each once.
        seconds: what it takes.
        attainable_s: what it would take at the device's peak and bandwidth.
        share: of the attainable speed that it reaches, 0 to 1.
        limit: what limits it.
        said: the same in a sentence.
    """

    name: str
    op_type: str
    macs: int
    bytes: int
    seconds: float
    attainable_s: float
    share: float
    limit: Limit
    said: str


@dataclasses.dataclass(frozen=True)
class RooflineRecord:
    """What limits the layers of a model on a device.

    Attributes:
        model: its name.
        dtype: what peaks were measured in.
        peak_macs_s: multiply-accumulates in a second, at most.
        memory_bytes_s: bytes in a second from memory.
        cache_bytes_s: bytes in a second from the caches.
        cache_bytes: bytes of what counts as in the caches.
        overhead_s: what a node costs that has next to nothing to do.
        peaks: all that was tried.
        layers: the layers, in the order of the model.
        said: what limits the model as a whole, in a sentence.
    """

    model: str
    dtype: str
    peak_macs_s: float
    memory_bytes_s: float
    cache_bytes_s: float
    cache_bytes: int
    overhead_s: float
    peaks: tuple[PeakRow, ...]
    layers: tuple[RooflineLayer, ...]
    said: str


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One setting of a sweep.

    Attributes:
        setting: batch or threads.
        p50_s: median latency.
        p95_s: 95th percentile.
        items_s: items (of the batch) in a second, by the median.
        speedup: items in a second over those of the first setting.
        efficiency: of threads, the speed-up over how many times as many there are; of batches, the same as the speed-up.
        clock: the clock that it is by.
    """

    setting: int
    p50_s: float
    p95_s: float
    items_s: float
    speedup: float
    efficiency: float
    clock: str


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """A model at several settings: "batch" or "threads"."""

    what: Literal["batch", "threads"]
    model: str
    rows: tuple[SweepRow, ...]
    said: str
