"""The report of a step as one JSON document: that of the optimization, with what the step adds under the key `step`.

Every reader of the report of `optimize` reads it too. It is what a later step takes as `--baseline`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from deploykit.report import profile_records, records
from deploykit.step.secrets import Secrets

if TYPE_CHECKING:
    from deploykit.step.records import GateResult, StepResult

__all__ = ["to_document", "to_json"]


def to_document(result: StepResult, secrets: Secrets | None = None) -> dict[str, Any]:
    """The result as plain JSON values, without secrets.

    Args:
        result: what came of a step; without a report, as of `--explain`, the key `step` is all there is.
        secrets: what must not be told. Default: what the environment holds.
    """
    shown = (secrets or Secrets()).cleaned(result)
    document: dict[str, Any] = {}
    if shown.report is not None:
        document = records.to_document(shown.report)
    document["step"] = {
        "schema_version": shown.schema_version,
        "name": shown.recipe.name,
        "recipe": str(shown.recipe.path),
        "output": str(shown.recipe.output),
        "verdict": shown.verdict,
        "is_new": shown.is_new,
        "stages": [
            {**dataclasses.asdict(stage), "components": dict(stage.components)}
            for stage in shown.stages
        ],
        "gates": [_gate(row) for row in shown.gates],
        "profiles": {
            name: profile_records.to_document(profile)
            for name, profile in shown.profiles.items()
        },
        "accuracy": None
        if shown.accuracy is None
        else records.plain(dataclasses.asdict(shown.accuracy)),
        "baseline": None
        if shown.baseline is None
        else records.plain({**dataclasses.asdict(shown.baseline), "ok": shown.baseline.ok}),
        "versions": dict(shown.versions),
        "warnings": list(shown.warnings),
        "elapsed_s": shown.elapsed_s,
    }
    return document


def to_json(result: StepResult, secrets: Secrets | None = None) -> str:
    """The same as text, ending in a newline; an array of numbers is one line."""
    document = to_document(result, secrets)
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    return records.join_numbers(text) + "\n"


def _gate(row: GateResult) -> dict[str, Any]:
    found: dict[str, Any] = records.plain(
        {
            "gate": row.gate.text,
            "metric": row.metric,
            "device": row.device,
            "figure": row.figure,
            "ci95": row.ci95,
            "operator": row.gate.operator,
            "limit": row.limit,
            "baseline": row.baseline,
            "unit": row.unit,
            "passed": row.passed,
            "close": row.is_close,
            "note": row.note,
        }
    )
    return found
