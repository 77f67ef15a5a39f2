"""What a sweep is told, and what comes of it, as frozen data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["Cell", "Model", "Row", "Sweep", "SweepResult"]

State: TypeAlias = Literal["passed", "failed", "error"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a sweep.

    Attributes:
        name: what the table calls it.
        settings: what it sets in a recipe, as `inputs.model="..."`; none leaves the recipe its own model.
    """

    name: str
    settings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step of a sweep.

    Attributes:
        recipe_name: what the table calls the recipe.
        recipe: the recipe.
        model: the model.
        device: where it is measured, as it is written after `--on`; None leaves that to the recipe.
        folder: the result folder.
        measures: the devices that it measures on, as they are written after `--on`; nothing else may be measured there in
            the meantime.
    """

    recipe_name: str
    recipe: Path
    model: Model
    device: str | None
    folder: Path
    measures: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What sets it apart from the others; the name of its folder."""
        return self.folder.name

    @property
    def settings(self) -> tuple[str, ...]:
        """What it sets in its recipe."""
        return (*self.model.settings, f"output.folder={json.dumps(str(self.folder))}")

    @property
    def on(self) -> tuple[str, ...]:
        """The devices that take the place of the recipe's."""
        return () if self.device is None else (self.device,)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, read and checked.

    Attributes:
        path: the file.
        name: what it is called.
        cells: all its steps, recipe by recipe.
    """

    path: Path
    name: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of a step on a device: a line of the table. What is not known is None.

    Attributes:
        cell: name of the cell.
        recipe: name of the recipe.
        model: name of the model.
        device: name of the device; None where nothing was measured.
        state: whether all gates are met, or why there is no result: "error".
        reason: the gates that were missed, or the error, in words.
        exit_code: what `deploykit run` would end with.
        p50_s: median latency of the result, in seconds; p90_s, p95_s and p99_s likewise.
        original_p50_s: median latency of the original.
        ratio: time of the result over that of the original, with its interval in ratio_lo and ratio_hi.
        load_s: seconds that opening the result takes.
        memory_bytes: the most memory that it takes.
        bytes: size of the result; original_bytes of the original.
        parameters: elements of its weights; original_parameters of the original.
        macs: multiply-adds; original_macs of the original.
        max_error: largest difference of an output, relative to what the output moves by.
        accuracy: figure of the result; original_accuracy of the original.
        higher_is_better: whether a higher accuracy is a better one.
        gates: how many gates there are; gates_met how many of them are met.
        key: hash of all that decided the result.
        folder: the result folder, relative to the sweep's.
        seconds: what it took, what was in the cache left out.
    """

    cell: str
    recipe: str
    model: str
    device: str | None
    state: State
    reason: str
    exit_code: int
    p50_s: float | None = None
    p90_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    original_p50_s: float | None = None
    ratio: float | None = None
    ratio_lo: float | None = None
    ratio_hi: float | None = None
    load_s: float | None = None
    memory_bytes: int | None = None
    bytes: int | None = None
    original_bytes: int | None = None
    parameters: int | None = None
    original_parameters: int | None = None
    macs: int | None = None
    original_macs: int | None = None
    max_error: float | None = None
    accuracy: float | None = None
    original_accuracy: float | None = None
    higher_is_better: bool | None = None
    gates: int = 0
    gates_met: int = 0
    key: str = ""
    folder: str = ""
    seconds: float = 0.0


TIMES = frozenset(
    {
        *(
            "p50_s",
            "p90_s",
            "p95_s",
            "p99_s",
            "original_p50_s",
            "ratio",
            "ratio_lo",
            "ratio_hi",
        ),
        *("load_s", "memory_bytes", "seconds"),
    }
)
"""Columns that are measured: they differ from run to run."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        sweep: what was asked for.
        folder: where the table and the results are.
        rows: all of them, in the order of the cells.
        reused: how many cells had their result already.
        retried: how many times a cell was begun anew because its process had died.
        elapsed_s: seconds it took.
    """

    sweep: Sweep
    folder: Path
    rows: tuple[Row, ...]
    reused: int
    retried: int
    elapsed_s: float

    @property
    def errors(self) -> tuple[Row, ...]:
        """Cells that have no result."""
        return tuple(row for row in self.rows if row.state == "error")

    @property
    def exit_code(self) -> int:
        """What the command exits with: whether gates are met is what a sweep finds out, and no failure of it."""
        return 1 if self.errors else 0

    def to_document(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "schema_version": "1.0",
            "kind": "sweep",
            "name": self.sweep.name,
            "folder": str(self.folder),
            "cells": len(self.sweep.cells),
            "reused": self.reused,
            "retried": self.retried,
            "elapsed_s": self.elapsed_s,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
