"""Runs the cells of a sweep, each a step of its own, and keeps what came of them as rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.atomic import write_whole
from deploykit.errors import DeploykitError
from deploykit.step.secrets import Secrets
from deploykit.sweep.device_lock import hold
from deploykit.sweep.records import Cell, Row

if TYPE_CHECKING:
    from deploykit.report.profile_records import ProfileReport
    from deploykit.step.records import StepResult
    from deploykit.step.runner import Request

__all__ = ["died_rows", "finished_rows", "keep_rows", "run_cell"]

BUG = 70
DIED = 4
"""Exit code of a cell whose process died again and again: what killed it is beyond us, as an absent device is."""


def run_cell(cell: Cell, cache: Path) -> tuple[Row, ...]:
    """Run a cell: a row for each device that it was measured on, or one that says why there is no result.

    Args:
        cell: the cell.
        cache: results of stages, which all cells share.
    """
    from deploykit.step import runner

    began = time.monotonic()
    try:
        with hold(cell.measures):
            result = runner.run(_request(cell, cache))
    except DeploykitError as error:
        return (_error_row(cell, str(error), error.exit_code),)
    except Exception as error:  # noqa: BLE001 - a bug in one cell must not take the others along
        told = f"{type(error).__name__}: {error}. This is a bug in deploykit"
        return (_error_row(cell, told, BUG),)
    return _rows(cell, result, time.monotonic() - began)


def finished_rows(cell: Cell, kept: Path, cache: Path) -> tuple[Row, ...] | None:
    """The rows of a cell that was run before and would do nothing now; None if it has to be run.

    Args:
        cell: the cell.
        kept: folder of kept rows.
        cache: results of stages, which all cells share.
    """
    from deploykit.step import runner

    try:
        rows = tuple(Row(**row) for row in json.loads(_file(kept, cell).read_bytes()))
        if any(row.state == "error" for row in rows) or not cell.folder.is_dir():
            return None
        plan = runner.explain(_request(cell, cache))
    except (OSError, ValueError, TypeError, DeploykitError):
        return None  # it is run, which says what is wrong
    is_same = bool(rows) and all(row.key == _key(plan) for row in rows)
    return rows if is_same and all(stage.state == "cached" for stage in plan.stages) else None


def keep_rows(cell: Cell, rows: Sequence[Row], kept: Path) -> None:
    """Write down what came of a cell, so that it need not be run again."""
    kept.mkdir(parents=True, exist_ok=True)
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1, ensure_ascii=False)
    write_whole(_file(kept, cell), (text + "\n").encode())


def died_rows(cell: Cell, times: int) -> tuple[Row, ...]:
    """The row of a cell whose process died each time."""
    told = (
        f"the process that ran it died {times} times: it was killed, or a library crashed. Is there enough memory? "
        f"Run it by itself: deploykit run {cell.recipe}"
    )
    return (_error_row(cell, told, DIED),)


def _request(cell: Cell, cache: Path) -> Request:
    from deploykit.step.runner import Request

    return Request(cell.recipe, settings=cell.settings, on=cell.on, cache=cache)


def _file(kept: Path, cell: Cell) -> Path:
    return kept / f"{cell.name}.json"


def _error_row(cell: Cell, reason: str, exit_code: int) -> Row:
    return Row(
        cell=cell.name,
        recipe=cell.recipe_name,
        model=cell.model.name,
        device=cell.device,
        state="error",
        reason=Secrets().redact(reason),
        exit_code=exit_code,
        folder=_relative(cell),
    )


def _relative(cell: Cell) -> str:
    return f"{cell.folder.parent.name}/{cell.folder.name}"


def _key(result: StepResult) -> str:
    """Hash of all that decided a result: of the keys of its stages, and of its gates."""
    parts = [*(stage.key for stage in result.stages), *(g.text for g in result.recipe.gates)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _rows(cell: Cell, result: StepResult, seconds: float) -> tuple[Row, ...]:
    report, accuracy = result.report, result.accuracy
    missed = [f"{row.gate.text}" for row in result.gates if not row.passed]
    reason = f"missed: {', '.join(dict.fromkeys(missed))}" if missed else ""
    if report is not None and report.verdict == "differs":
        reason = report.reason
    base = Row(
        cell=cell.name,
        recipe=cell.recipe_name,
        model=cell.model.name or Path(result.recipe.model).stem,
        device=None,
        state=result.verdict,
        reason=Secrets().redact(reason),
        exit_code=result.exit_code,
        key=_key(result),
        folder=_relative(cell),
        seconds=seconds,
    )
    if report is not None:
        size, found = report.size, report.validation
        base = dataclasses.replace(
            base,
            bytes=size.bytes.after,
            original_bytes=size.bytes.before,
            parameters=size.parameters.after,
            original_parameters=size.parameters.before,
            macs=size.macs.after,
            original_macs=size.macs.before,
            max_error=None if found is None else found.max_rel_error,
        )
    if accuracy is not None:
        base = dataclasses.replace(
            base,
            accuracy=accuracy.optimized,
            original_accuracy=accuracy.original,
            higher_is_better=accuracy.higher_is_better,
        )
    rows = [_measured(base, result, name, profile) for name, profile in result.profiles.items()]
    return tuple(rows) or (_counted(base, result, None),)


def _measured(base: Row, result: StepResult, device: str, profile: ProfileReport) -> Row:
    original, optimized = profile.models[0], profile.models[1]
    relative = profile.relative[0]
    return dataclasses.replace(
        _counted(base, result, device),
        device=device,
        p50_s=optimized.latency.p50_s,
        p90_s=optimized.latency.p90_s,
        p95_s=optimized.latency.p95_s,
        p99_s=optimized.latency.p99_s,
        original_p50_s=original.latency.p50_s,
        ratio=relative.ratio,
        ratio_lo=relative.ci95[0],
        ratio_hi=relative.ci95[1],
        load_s=optimized.load_s,
        memory_bytes=optimized.memory_bytes,
    )


def _counted(base: Row, result: StepResult, device: str | None) -> Row:
    gates = [row for row in result.gates if row.device in {None, device}]
    met = sum(row.passed for row in gates)
    return dataclasses.replace(base, gates=len(gates), gates_met=met)
