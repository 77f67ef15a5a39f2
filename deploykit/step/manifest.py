"""The manifest of a result folder: the effective recipe, and the hashes of all that went in and came out.

It says nothing about when and how long, so that the same step has the same manifest wherever and whenever it is run, and
a run can tell by it that its folder is what it would write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit.step.cache import file_hash
from deploykit.step.recipe_file import effective
from deploykit.step.secrets import Secrets

if TYPE_CHECKING:
    from deploykit.step.records import StepResult

__all__ = ["NAME", "components_before", "is_whole", "read", "to_document", "to_json"]

Document: TypeAlias = dict[str, Any]

NAME = "manifest.json"


def to_document(result: StepResult, secrets: Secrets) -> Document:
    """The manifest of a result, without the hashes of the files that it lies beside."""
    recipe = result.recipe
    said: Document = {
        "schema_version": result.schema_version,
        "kind": "manifest",
        "name": recipe.name,
        "verdict": result.verdict,
        "recipe": effective(recipe),
        "recipe_files": {
            Path(os.path.relpath(path, recipe.folder)).as_posix(): file_hash(path)
            for path in (recipe.path, *recipe.extends)
        },
        "stages": [
            {"name": stage.name, "key": stage.key, "components": dict(stage.components)}
            for stage in result.stages
        ],
        "gates": [
            {
                "gate": row.gate.text,
                "device": row.device,
                "figure": row.figure,
                "limit": row.limit if row.limit == row.limit else None,
                "unit": row.unit,
                "passed": row.passed,
            }
            for row in result.gates
        ],
        "baseline": None if result.baseline is None else {"sha256": result.baseline.sha256},
        "versions": dict(result.versions),
    }
    # As it will be read again, so that the two can be compared.
    cleaned: Document = json.loads(json.dumps(secrets.cleaned(said)))
    return cleaned


def to_json(document: Mapping[str, Any], folder: Path) -> str:
    """A manifest with the hashes of the files in a folder, as text that ends in a newline."""
    files = {
        path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != NAME
    }
    return json.dumps({**document, "files": files}, indent=1, ensure_ascii=False) + "\n"


def read(folder: Path) -> Document | None:
    """The manifest of a result folder; None if there is none that can be read."""
    try:
        document = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return (
        document if isinstance(document, dict) and document.get("kind") == "manifest" else None
    )


def components_before(document: Document | None) -> dict[str, Mapping[str, str]]:
    """What the stages of a manifest depended on, by stage."""
    try:
        rows = [] if document is None else document["stages"]
        return {str(row["name"]): dict(row["components"]) for row in rows}
    except (KeyError, TypeError, ValueError):
        return {}


def is_whole(folder: Path, document: Document | None, expected: Mapping[str, Any]) -> bool:
    """Whether a folder holds what would be written: its manifest says so, and every file is as it says."""
    if document is None:
        return False
    said = {key: value for key, value in document.items() if key != "files"}
    files = document.get("files")
    if said != expected or not isinstance(files, dict):
        return False
    try:
        there = {path.name for path in folder.iterdir()} - {NAME}
        return there == set(files) and all(
            file_hash(folder / name) == known for name, known in files.items()
        )
    except OSError:
        return False
