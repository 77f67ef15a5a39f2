"""What `deploykit inspect --sparse` has to say, as frozen data; its JSON form is the published `inspect-sparse.schema.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, TypeAlias

from deploykit.report.records import SourceRecord

__all__ = [
    "SCHEMA_VERSION",
    "Answer",
    "RemarkRecord",
    "SparseInspection",
    "SparseLayer",
    "schema",
    "to_json",
]

SCHEMA_VERSION = "1.0"

Answer: TypeAlias = Literal["eligible", "doubtful", "not yet", "no"]


@dataclasses.dataclass(frozen=True)
class RemarkRecord:
    """Something that speaks against sparse kernels in a layer: what it makes of the layer, why, and what to do."""

    answer: Answer
    reason: str
    advice: str


@dataclasses.dataclass(frozen=True)
class SparseLayer:
    """What sparse kernels could make of a layer.

    Attributes:
        node: the layer.
        op_type: its operator.
        weight: name of the stored weight; None if there is none.
        shape: of the stored weight; empty if there is none.
        axis: the axis of that along which groups lie; None if there is none.
        outputs: output channels.
        inputs: channels that each output reads.
        precision: what it computes in; empty if that is not known.
        share: share of groups that obey, 0 to 1; None where there are no groups.
        kept: share of the magnitude that the best mask would keep, 0 to 1; likewise.
        answer: "eligible" if nothing speaks against it, "doubtful" if it may not be picked, "not yet" if its weight does
            not obey, "no" if it cannot be.
        remarks: what speaks against it, the worst first.
    """

    node: str
    op_type: str
    weight: str | None
    shape: tuple[int, ...]
    axis: int | None
    outputs: int
    inputs: int
    precision: str
    share: float | None
    kept: float | None
    answer: Answer
    remarks: tuple[RemarkRecord, ...]


@dataclasses.dataclass(frozen=True)
class SparseInspection:
    """All layers of a model that multiply, and what sparse kernels could make of them.

    Attributes:
        command: the command line.
        versions: versions of deploykit and of the libraries it used.
        source: the model that was read.
        target: whose rules were taken.
        pattern: N:M.
        layers: in graph order.
        rules: the rules of the target that are about patterns of zeros, each with its source.
        warnings: what the user should know.
        elapsed_s: seconds it all took.
    """

    command: str
    versions: Mapping[str, str]
    source: SourceRecord
    target: str
    pattern: str
    layers: tuple[SparseLayer, ...]
    rules: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    schema_version: str = SCHEMA_VERSION

    def count(self, answer: Answer) -> int:
        """How many layers have this answer."""
        return sum(layer.answer == answer for layer in self.layers)


def to_json(found: SparseInspection) -> str:
    """The inspection as a JSON document, ending in a newline."""
    document = dataclasses.asdict(found)
    document["rules"] = [{"text": text, "source": source} for text, source in found.rules]
    order = ["schema_version", *(key for key in document if key != "schema_version")]
    ordered = {key: document[key] for key in order}
    return json.dumps(ordered, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of the document."""
    folder = resources.files("deploykit.report")
    text = folder.joinpath("inspect-sparse.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
