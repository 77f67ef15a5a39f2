"""What `deploykit profile` and `deploykit compare` have to say, as frozen data.

Their JSON forms are published as `profile.schema.json` and `compare.schema.json`. The keys of the documents are stable
within a `schema_version`; later versions may add keys.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, TypeAlias

from deploykit.report.records import LatencyRow, ValidationRecord
from deploykit.report.sparse_records import SparseTime, SparseVerdict
from deploykit.report.state_records import CourseRecord
from deploykit.report.what_if_records import RooflineRecord, SweepRecord, WhatIfRecord

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "Fact",
    "InputRow",
    "LayerPair",
    "LayerRow",
    "LayerTotals",
    "OutlierRow",
    "ProfileReport",
    "ProfiledModel",
    "Relative",
    "SampleRecord",
    "Subject",
    "join_numbers",
    "schema",
    "to_document",
    "to_json",
]

SCHEMA_VERSION = "1.2"

Kind: TypeAlias = Literal["profile", "compare"]


@dataclasses.dataclass(frozen=True)
class SampleRecord:
    """All samples of one model, one number a round; models of one measurement share their rounds.

    Attributes:
        wall_s: elapsed seconds.
        cpu_s: processor seconds of the thread (of the process, with several threads).
        rebuild: which build of the sessions a round belongs to.
        switches: how often the thread lost its core in a run.
        faults: page faults in a run.
        load_s: seconds that opening a session took, one number a rebuild.
    """

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    rebuild: tuple[int, ...]
    switches: tuple[int, ...]
    faults: tuple[int, ...]
    load_s: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class OutlierRow:
    """Samples that lie far out: why, as far as it can be known, and how many."""

    source: str
    count: int


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """The time of one node of a model, in seconds, what ran it, and the other nodes that were run along with it."""

    name: str
    op_type: str
    seconds: float
    runtime_ops: tuple[str, ...]
    covers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LayerTotals:
    """What the layers of a model add up to, in seconds.

    Attributes:
        total_s: all kernels of the runtime.
        whole_s: the whole model, timed without the profiler.
        unmapped_s: the part of `total_s` that belongs to no node of the model.
        overhead_s: the profiler's own time, which is in none of them.
        clock: the clock of `whole_s`.
    """

    total_s: float
    whole_s: float
    unmapped_s: float
    overhead_s: float
    clock: str


@dataclasses.dataclass(frozen=True)
class ProfiledModel:
    """One model, and what was measured.

    Attributes:
        name: what sets its path apart from the others.
        path: the file.
        sha256: hash of its content, of data files as well.
        bytes: bytes of its files.
        latency: percentiles of its samples.
        load_s: median of the seconds that opening it took.
        memory_bytes: the most memory that opening and running it took; None where the system does not tell.
        outliers: samples that lie far out, by source.
        samples: all samples.
        layers: time of each of its nodes; empty if they were not timed.
        layer_totals: what those add up to; None if they were not timed.
        sparse: what is known of sparse kernels in it; None if the runtime chooses none.
        sparse_times: layers timed dense and in sparse form, where the runtime can be told which to take.
    """

    name: str
    path: str
    sha256: str
    bytes: int
    latency: LatencyRow
    load_s: float
    memory_bytes: int | None
    outliers: tuple[OutlierRow, ...]
    samples: SampleRecord
    layers: tuple[LayerRow, ...] = ()
    layer_totals: LayerTotals | None = None
    sparse: SparseVerdict | None = None
    sparse_times: tuple[SparseTime, ...] = ()


@dataclasses.dataclass(frozen=True)
class Relative:
    """Time of a model over that of another.

    Attributes:
        model: the one.
        baseline: the other.
        ratio: the ratio; below 1 the model is faster.
        ci95: its 95 % interval.
        proven: whether the interval leaves out 1: if not, no difference is claimed.
        paired: whether both were timed in the same rounds.
        clock: which clock it is by.
        said: the same in words.
    """

    model: str
    baseline: str
    ratio: float
    ci95: tuple[float, float]
    proven: bool
    paired: bool
    clock: str
    said: str


@dataclasses.dataclass(frozen=True)
class InputRow:
    """An input that the models were measured with."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ProfileReport:
    """The result of `profile`.

    Attributes:
        command: the command line.
        versions: versions of deploykit and of the libraries it used.
        models: each model, in the order they were given.
        relative: each other model against the first.
        inputs: what they were measured with.
        clock: the clock that all latencies and ratios are by.
        clean_share: share of the samples in which the thread was hardly kept waiting, 0 to 1.
        threads: threads of the sessions; None is the runtime's own number.
        runtime: what ran the models.
        providers: the devices it ran on, in its own words.
        settings: how long and how often it measured.
        device: the machine.
        state: its temperatures, clocks, power and memory before, during and after; None in documents of version 1.1.
        warnings: what disturbed the measurement, and what to do about it.
        elapsed_s: seconds it all took.
        what_if: the models that are not there yet, of which all but the first are made up; None if all are files.
        roofline: what limits each layer of the first model; None if that was not asked.
        sweeps: the first model at several batches or numbers of threads.
    """

    command: str
    versions: Mapping[str, str]
    models: tuple[ProfiledModel, ...]
    relative: tuple[Relative, ...]
    inputs: tuple[InputRow, ...]
    clock: str
    clean_share: float
    threads: int | None
    runtime: str
    providers: tuple[str, ...]
    settings: Mapping[str, object]
    device: Mapping[str, object]
    warnings: tuple[str, ...]
    elapsed_s: float
    state: CourseRecord | None = None
    what_if: WhatIfRecord | None = None
    roofline: RooflineRecord | None = None
    sweeps: tuple[SweepRecord, ...] = ()
    kind: Kind = "profile"
    schema_version: str = SCHEMA_VERSION


@dataclasses.dataclass(frozen=True)
class Subject:
    """One side of a comparison: a model, or a document about models."""

    name: str
    path: str
    sha256: str | None


@dataclasses.dataclass(frozen=True)
class Fact:
    """Something that both sides have, and how it changed.

    Attributes:
        what: its name.
        a: of the first, in words.
        b: of the second, in words.
        change: from the first to the second, in words; empty where a ratio with an interval says it.
        values: both as numbers, in seconds, bytes or as a count; None what is not known, or no number.
    """

    what: str
    a: str
    b: str
    change: str
    values: tuple[float | None, float | None] = (None, None)


@dataclasses.dataclass(frozen=True)
class LayerPair:
    """A node in two models, by name: seconds in each, None where it takes no time of its own, and why it does not."""

    name: str
    op_type: str
    a_s: float | None
    b_s: float | None
    note: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        command: the command line.
        versions: versions of deploykit and of the libraries it used.
        compared: "models", or "reports" (of `optimize` or `profile`).
        a: what is compared with.
        b: what is compared.
        facts: what both have, side by side.
        relative: times of B over those of A.
        validation: whether two models compute the same; None for reports.
        outputs_differ: why the outputs could not be compared, in words; None if they could.
        layers: the nodes of two models side by side; empty if they were not timed.
        profile: the measurement of two models; None for reports.
        warnings: what weakens the comparison, and what to do about it.
        elapsed_s: seconds it all took.
    """

    command: str
    versions: Mapping[str, str]
    compared: Literal["models", "reports"]
    a: Subject
    b: Subject
    facts: tuple[Fact, ...]
    relative: tuple[Relative, ...]
    validation: ValidationRecord | None
    outputs_differ: str | None
    layers: tuple[LayerPair, ...]
    profile: ProfileReport | None
    warnings: tuple[str, ...]
    elapsed_s: float
    kind: Kind = "compare"
    schema_version: str = SCHEMA_VERSION


def to_document(report: ProfileReport | Comparison) -> dict[str, Any]:
    """The report as plain JSON values; numbers that JSON does not have become null."""
    document: dict[str, Any] = _plain(dataclasses.asdict(report))
    first = ("schema_version", "kind")
    return {
        key: document[key] for key in (*first, *(key for key in document if key not in first))
    }


def to_json(report: ProfileReport | Comparison) -> str:
    """The report as a JSON document, ending in a newline; each list of samples is one line."""
    text = json.dumps(to_document(report), indent=1, allow_nan=False, ensure_ascii=False)
    return join_numbers(text) + "\n"


def schema(kind: Kind) -> dict[str, Any]:
    """The JSON schema of a document."""
    file = resources.files("deploykit.report").joinpath(f"{kind}.schema.json")
    loaded: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return loaded


def join_numbers(text: str) -> str:
    """Put lists of numbers on one line: thousands of samples are data, not text to read."""
    lines: list[str] = []
    is_open = False
    for line in text.split("\n"):
        bare = line.strip()
        is_number = bool(bare) and (bare[0].isdigit() or bare[0] == "-") and ":" not in bare
        if is_open and (is_number or bare in {"]", "],"}):
            lines[-1] += bare + (" " if is_number and bare.endswith(",") else "")
            is_open = is_number
            continue
        lines.append(line)
        is_open = bare.endswith("[")
    return "\n".join(lines)


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
