"""Everything a run has to say, as frozen data; its JSON form is the published `report.schema.json`.

The keys of the JSON document are stable within a `schema_version`; later versions may add keys.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, TypeAlias

from deploykit.output_change import OutputChange
from deploykit.report.sparse_records import EngineRecord, SparseVerdict

__all__ = [
    "SCHEMA_VERSION",
    "BlockLayer",
    "BlockOutline",
    "Candidate",
    "Change",
    "Count",
    "Group",
    "Interval",
    "LatencyRow",
    "Layer",
    "LayerTimeRow",
    "OutputRow",
    "PassRecord",
    "Profile",
    "Report",
    "Samples",
    "Size",
    "Skip",
    "SourceRecord",
    "Staircase",
    "TicketRecord",
    "ValidationRecord",
    "Verdict",
    "join_numbers",
    "plain",
    "schema",
    "to_document",
    "to_json",
]

SCHEMA_VERSION = "1.4"

NUMBERS = re.compile(r"\[\n\s*([-+.0-9eE,\s]+?)\s*\]")
"""An array of numbers as `json` indents it."""

Verdict: TypeAlias = Literal["faster", "smaller", "changed", "unchanged", "differs", "planned"]


@dataclasses.dataclass(frozen=True)
class Count:
    """A number before and after; None where it could not be counted."""

    before: int | None
    after: int | None

    @property
    def ratio(self) -> float | None:
        """After over before; None where either is not known or there was nothing before."""
        return self.after / self.before if self.before and self.after is not None else None


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: elements of its weights.
        bytes: bytes of its files.
        macs: multiply-accumulates of its convolutions and matrix products at the sizes it was measured with.
        nodes: nodes of its main graph.
    """

    parameters: Count
    bytes: Count
    macs: Count
    nodes: Count


@dataclasses.dataclass(frozen=True)
class TicketRecord:
    """The ticket that was put into a model.

    Attributes:
        path: the file.
        sha256: its hash.
        test_metric: what the search measured of it on the test examples, in PyTorch; None if the file does not say. Since 1.3.
        dense_test_metric: the same of the dense network that it was found in. Since 1.3.
    """

    path: str
    sha256: str
    test_metric: float | None = None
    dense_test_metric: float | None = None


@dataclasses.dataclass(frozen=True)
class MaskPicture:
    """A mask, or a weight, on a coarse grid.

    Attributes:
        height: cells from top to bottom: output channels.
        width: cells from left to right: columns.
        cells: bytes in base64, row by row: the share of a cell that is kept, 255 is all of it; of a weight how large it is there.
    """

    height: int
    width: int
    cells: str


@dataclasses.dataclass(frozen=True)
class TicketLayer:
    """What a ticket keeps of a weight.

    Attributes:
        weight: its name in the PyTorch model.
        outputs: output channels.
        columns: weights of each.
        found: weights that the mask kept before it was given a structure; None if that is not known.
        kept: weights that are kept.
        blocks: dense blocks that they lie in; 0 where they were not put in any.
        picture_found: the mask before it was given a structure.
        picture: the mask.
        picture_ordered: the same with rows and columns in the order of its blocks.
    """

    weight: str
    outputs: int
    columns: int
    found: int | None
    kept: int
    blocks: int
    picture_found: MaskPicture | None = None
    picture: MaskPicture | None = None
    picture_ordered: MaskPicture | None = None


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """The model that was read.

    Attributes:
        path: what was asked for: a file, or `package.module:object`.
        sha256: hash of the content; of a PyTorch model, that of the ONNX file that it was exported to.
        factory: `package.module:object`; None for a file.
        ticket: the ticket that was put into the model; None without one.
    """

    path: str
    sha256: str
    factory: str | None = None
    ticket: TicketRecord | None = None


@dataclasses.dataclass(frozen=True)
class Change:
    """Something a pass did; `before` and `after` are counts in the unit that `what` names."""

    subject: str
    what: str
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class Skip:
    """Something a pass did not do, why, and what can be done about it."""

    subject: str
    reason: str
    advice: str


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """One pass of the chosen candidate; `seconds` is wall time, `options` those that were set."""

    name: str
    exact: bool
    modified: bool
    options: Mapping[str, object]
    seconds: float
    changes: tuple[Change, ...]
    skipped: tuple[Skip, ...]


@dataclasses.dataclass(frozen=True)
class OutputRow:
    """How far apart one output of the two models is."""

    name: str
    dtype: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    equal: bool


@dataclasses.dataclass(frozen=True)
class ValidationRecord:
    """The comparison of the written model with the original.

    Attributes:
        max_abs_error: largest difference of any output.
        max_rel_error: largest difference relative to the scale of its output.
        inputs: how many sets of inputs both models ran on.
        verdict: "equal" or "differs".
        tolerance: what `max_rel_error` was held against, of the worst output.
        worst_output: the output with the largest relative error.
        outputs: each output.
        changes: how far each output is from the original's, on the user's inputs and on generated ones.
    """

    max_abs_error: float
    max_rel_error: float
    inputs: int
    verdict: str
    tolerance: float
    worst_output: str | None
    outputs: tuple[OutputRow, ...] = ()
    changes: tuple[OutputChange, ...] = ()


@dataclasses.dataclass(frozen=True)
class Interval:
    """A ratio of times with its 95 % interval; below 1 is faster than the baseline."""

    median: float
    ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A form of the model that could have been chosen.

    Attributes:
        name: what sets it apart.
        ratio: its time over that of the original; None if it was not measured.
        ci95: the interval of that.
        chosen: whether it is the one that was written.
        parameters: elements of its weights.
        validated: whether its outputs were compared and equal; None if they were not compared.
        note: why it was not chosen, or what was special.
    """

    name: str
    ratio: float | None
    ci95: tuple[float, float] | None
    chosen: bool
    parameters: int | None = None
    validated: bool | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """Latency of a model, in seconds."""

    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    samples: int


@dataclasses.dataclass(frozen=True)
class Samples:
    """All samples of one model, one number a round; models of one measurement share their rounds.

    Attributes:
        wall_s: elapsed seconds, to the nanosecond.
        cpu_s: processor seconds of the thread (of the process, with several threads).
        rebuild: which build of the sessions a round belongs to.
    """

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    rebuild: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Profile:
    """The written model timed against the original.

    Attributes:
        baseline: the original.
        optimized: the written model.
        ratio: time of the written model over that of the original.
        clock: "wall", or "cpu" where the machine was too busy for wall time to mean anything.
        noisy: whether it was.
        threads: threads of the sessions.
        runtime: what ran the models.
        device: what it ran on.
        samples: what all of this rests on, for "baseline" and "optimized".
    """

    baseline: LatencyRow
    optimized: LatencyRow
    ratio: Interval
    clock: str
    noisy: bool
    threads: int | None
    runtime: str
    device: Mapping[str, object]
    samples: Mapping[str, Samples] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LayerTimeRow:
    """Time of one node of the user's model; None where that model does not have it.

    Attributes:
        name: of the node.
        op_type: its operator.
        before_s: seconds in the original.
        after_s: seconds in the written model.
    """

    name: str
    op_type: str
    before_s: float | None
    after_s: float | None


@dataclasses.dataclass(frozen=True)
class Staircase:
    """Time of one layer against its number of channels, on the device; all counts were timed in turns.

    Attributes:
        layer: the node.
        weight: its weight.
        op_type: its operator.
        axis: which channels were swept.
        description: what was built and timed at each count.
        counts: the channel counts, ascending.
        seconds: median time at each count.
        lo_s: lower ends of the 95 % intervals of these medians.
        hi_s: upper ends.
        before: the count in the original.
        as_is: the count that removal leaves before anything is padded.
        after: the count in the written model.
        multiples: channel multiples that the target likes.
        clock: "cpu" or "wall".
        rounds: how many times each count was timed.
    """

    layer: str
    weight: str
    op_type: str
    axis: str
    description: str
    counts: tuple[int, ...]
    seconds: tuple[float, ...]
    lo_s: tuple[float, ...]
    hi_s: tuple[float, ...]
    before: int
    as_is: int
    after: int
    multiples: tuple[int, ...]
    clock: str
    rounds: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """One weight of the original and what became of it.

    Attributes:
        weight: its name.
        node: the node that uses it.
        op_type: that node's operator.
        shape_before: its shape in the original.
        shape_after: its shape in the written model; None if it is gone.
        outputs: output channels.
        inputs: input channels (in each group).
        zeros: share of zeros in the original, 0 to 1.
        zero_outputs: output channels of the original whose weights are all zero.
        zero_inputs: input channels of the original whose weights are all zero.
        obeys_2_4: whether of each four weights along its input channels at most two are not zero.
        form: how it is computed where it is no longer there as one weight: the lowering, and its blocks.
    """

    weight: str
    node: str
    op_type: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...] | None
    outputs: Count
    inputs: Count
    zeros: float
    zero_outputs: int
    zero_inputs: int
    obeys_2_4: bool
    form: str | None = None


@dataclasses.dataclass(frozen=True)
class BlockOutline:
    """A block, or a part of one, in the ordered matrix: its first row and column, and how many it has."""

    row: int
    column: int
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class BlockLayer:
    """A weight with dense blocks, as a matrix of output channels by input channels once dead channels are gone.

    Attributes:
        weight: its name.
        node: the node that uses it.
        op_type: that node's operator.
        outputs: rows of the matrix.
        inputs: columns of the matrix.
        kernel: sizes of the kernel of a convolution; empty for a product.
        blocks: rows and columns of each block, in the order of their first rows.
        share: share of the matrix that lies in blocks, 0 to 1; of kernels the part that some of them use counts.
        text: the blocks in words.
        form: the form in which it is computed; "dense" if it stayed as it is, empty if that was not decided.
        reason: why, in words.
        picture: the matrix; None where it is not drawn.
        picture_ordered: the same with rows and columns in the order of the blocks.
        outlines: the blocks in that, in pieces where they share columns; empty where these would be too many.
    """

    weight: str
    node: str
    op_type: str
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    share: float
    text: str
    form: str = ""
    reason: str = ""
    picture: MaskPicture | None = None
    picture_ordered: MaskPicture | None = None
    outlines: tuple[BlockOutline, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that share their channels.

    Attributes:
        layers: the nodes that make them.
        channels: how many there are.
        pinned: how many of them have to stay.
        reason: why those have to.
    """

    layers: tuple[str, ...]
    channels: int
    pinned: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `optimize` or `inspect`.

    Attributes:
        command: the command line.
        versions: versions of deploykit and of the libraries it used.
        source: the model that was read.
        model: path of the model that was written; None if none was.
        target: what the passes were told about the device.
        passes: the passes of the chosen candidate.
        size: before and after.
        validation: the comparison of outputs; None if nothing was run.
        candidates: all forms that were tried.
        profile: the final measurement; None if nothing was measured.
        layers: each weight of the original.
        layer_times: time of each node; empty if nothing was measured.
        staircases: time against channel count of the layers that take longest; empty if nothing was measured.
        ticket_layers: what the ticket keeps of each weight; empty without one.
        block_layers: weights with dense blocks.
        no_blocks: sparse weights without, and why; of an inspection only.
        sparse: what is known of sparse kernels in the written model, as the runtime that timed it runs it; None if that chooses
            none.
        engine: the engine that was built of the written model; None if none was asked for.
        verdict: what came of it; "planned" for a dry run or an inspection.
        reason: why that, in a sentence.
        groups: layers that share their channels; of an inspection only.
        warnings: what the user should know before using the result.
        elapsed_s: seconds it all took.
    """

    command: str
    versions: Mapping[str, str]
    source: SourceRecord
    model: str | None
    target: str
    passes: tuple[PassRecord, ...]
    size: Size
    validation: ValidationRecord | None
    candidates: tuple[Candidate, ...]
    profile: Profile | None
    layers: tuple[Layer, ...]
    verdict: Verdict
    reason: str
    groups: tuple[Group, ...] = ()
    warnings: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    layer_times: tuple[LayerTimeRow, ...] = ()
    staircases: tuple[Staircase, ...] = ()
    ticket_layers: tuple[TicketLayer, ...] = ()
    block_layers: tuple[BlockLayer, ...] = ()
    no_blocks: tuple[Skip, ...] = ()
    sparse: SparseVerdict | None = None
    engine: EngineRecord | None = None
    schema_version: str = SCHEMA_VERSION

    @property
    def changes(self) -> tuple[Change, ...]:
        """All changes of all passes."""
        return tuple(change for record in self.passes for change in record.changes)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """All skips of all passes."""
        return tuple(skip for record in self.passes for skip in record.skipped)


def to_document(report: Report) -> dict[str, Any]:
    """The report as plain JSON values; numbers that JSON does not have become null."""
    document = plain(dataclasses.asdict(report))
    order = ["schema_version", *(key for key in document if key != "schema_version")]
    return {key: document[key] for key in order}


def to_json(report: Report) -> str:
    """The report as a JSON document, ending in a newline; an array of numbers is one line."""
    text = json.dumps(to_document(report), indent=1, allow_nan=False, ensure_ascii=False)
    return join_numbers(text) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of the document."""
    text = resources.files("deploykit.report").joinpath("report.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def join_numbers(text: str) -> str:
    """Put the arrays of numbers of an indented JSON document on one line each: thousands of samples are no text to read."""
    # Line breaks inside of strings are escaped, so that what this finds are arrays.
    return NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """A value as JSON has it: numbers that JSON does not have become null, and what it knows nothing of its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    # Options may be anything, such as a Target; their text is what a reader can use.
    return str(value)
