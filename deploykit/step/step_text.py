"""The result of a step on a terminal: stages, gates, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploykit.report.profile_wording import seconds_text
from deploykit.step.gates import value_text
from deploykit.step.junit import limit_text

if TYPE_CHECKING:
    from deploykit.step.records import GateResult, StageRecord, StepResult

__all__ = ["print_step"]

WORDS = {"cached": "kept", "ran": "done", "failed": "failed", "stale": "to be done"}


def print_step(result: StepResult, console: Console | None = None) -> None:
    """Print a result.

    Args:
        result: what came of a step; its text is printable.
        console: where; None is stdout.
    """
    console = console or Console(highlight=False, soft_wrap=False)
    _print_stages(console, result.stages)
    if result.report is None:
        again = [stage.name for stage in result.stages if stage.state == "stale"]
        told = (
            f"{_listed(again)} would run"
            if again
            else "nothing would run: every result is kept"
        )
        console.print(Text(f"{told}. Nothing was run or written."))
        return
    if result.gates:
        console.print()
        _print_gates(console, result.gates)
    if result.baseline is not None:
        console.print()
        for row in result.baseline.rows:
            console.print(Text(f"against the last accepted result: {row.said}"))
        for note in result.baseline.notes:
            console.print(Text(f"not compared: {note}"))
    if result.warnings:
        console.print()
    for warning in result.warnings:
        console.print(Text(f"note: {warning}"))
    console.print()
    console.print(Text(_verdict(result), style="bold"))


def _print_stages(console: Console, stages: Sequence[StageRecord]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("stage", "", "seconds", "why"):
        table.add_column(
            heading,
            justify="right" if heading == "seconds" else "left",
            overflow="fold",
            no_wrap=heading != "why",
        )
    for stage in stages:
        seconds = f"{stage.seconds:.1f}" if stage.state == "ran" else ""
        table.add_row(*map(Text, (stage.name, WORDS[stage.state], seconds, stage.why)))
    console.print(table)


def _print_gates(console: Console, gates: Sequence[GateResult]) -> None:
    columns: dict[str, Callable[[GateResult], str]] = {
        "gate": lambda row: row.gate.text,
        "device": lambda row: row.device or "",
        "figure": lambda row: value_text(row.figure, row.unit),
        "95 % interval": _interval_text,
        # What a share of the original's figure comes to; other limits are in the gate itself.
        "limit": lambda row: value_text(row.limit, row.unit) if row.gate.is_relative else "",
    }
    shown = {
        heading: [text(row) for row in gates]
        for heading, text in columns.items()
        if any(text(row) for row in gates)
    }
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (*shown, ""):
        table.add_column(
            heading,
            justify="right" if heading in {"figure", "95 % interval", "limit"} else "left",
            no_wrap=heading in {"figure", "95 % interval", ""},
            overflow="fold",
        )
    for number, row in enumerate(gates):
        word = Text("passed", style="green") if row.passed else Text("FAILED", style="bold red")
        if row.is_close:
            word.append(", close", style="not bold default")
        table.add_row(*(Text(cells[number]) for cells in shown.values()), word)
    console.print(table)
    for row in gates:
        if row.note and not row.is_close:
            console.print(Text(f"{row.gate.text}: {row.note}"))


def _interval_text(row: GateResult) -> str:
    if row.ci95 is None:
        return ""
    return " to ".join(value_text(each, row.unit) for each in row.ci95)


def _verdict(result: StepResult) -> str:
    name = result.recipe.name
    if result.ok:
        count = len(result.gates)
        gates = (
            f"{count} gate{'s' if count > 1 else ''} passed" if count else "there are no gates"
        )
        is_done = any(stage.state == "ran" for stage in result.stages)
        done = (
            f"{result.model} was written"
            if result.is_new
            else f"nothing to do, {result.model} is up to date"
        )
        if result.is_new and not is_done:
            done += " from kept results"
        return f"{name} passed: {gates}; {done} ({seconds_text(result.elapsed_s)})."
    faults = [
        f"{row.metric}{f' on {row.device}' if row.device else ''} is {value_text(row.figure, row.unit)}, and has to be "
        f"{limit_text(row)}"
        for row in result.gates
        if not row.passed and row.figure is not None
    ]
    faults += [
        f"{row.gate.text}: {row.note}"
        for row in result.gates
        if row.figure is None and (result.report is None or result.report.verdict != "differs")
    ]
    if result.report is not None and result.report.verdict == "differs":
        faults.insert(0, result.report.reason)
    if result.baseline is not None:
        faults += [row.said for row in result.baseline.rows if row.regressed]
    return f"{name} failed: {'; '.join(faults)}. No model was written; {result.recipe.output} says more."


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))
