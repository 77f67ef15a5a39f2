"""What a search found, as a table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploykit.report.console_text import result_console

if TYPE_CHECKING:
    from deploykit.finder.efficiency import Efficiency
    from deploykit.finder.metrics import Row
    from deploykit.finder.search import Result
    from deploykit.finder.trial import Trial
    from deploykit.finder.verdict import Comparison

__all__ = ["print_search", "print_trial", "render_search", "render_trial"]


def print_search(result: Result, *, console: Console | None = None) -> None:
    """Print a result to a console, by default to stdout."""
    result_console(console).print(render_search(result))


def print_trial(trial: Trial, *, console: Console | None = None) -> None:
    """Print a search with several seeds, and the verdict, to a console, by default to stdout."""
    result_console(console).print(
        Group(render_search(trial.results[0]), Text(""), render_trial(trial))
    )


def render_search(result: Result) -> RenderableType:
    """The networks that were trained, one a line, and what is to be said of the ticket."""
    dense, ticket = result.rows[0], result.rows[-1]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("round", "structure"):
        table.add_column(name, justify="right" if name == "round" else "left")
    for name in ("weights left", "sparsity", "validation", "test", "against dense"):
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(*_cells(row, dense), style="bold" if row is ticket else "")
    parts: list[RenderableType] = [
        Text(
            f"{result.task}: {ticket.sparsity:.1%} of {ticket.total:,} prunable weights dropped",
            "bold",
        ),
        Text(""),
        table,
    ]
    if ticket.sad is not None:
        first, last = (
            f"{ticket.sad[f'per_weight_{which}_epoch']:.2%}" for which in ("first", "last")
        )
        said = f"masks: {first} of their weights changed in a step of the first epoch, {last} in one of the last (SAD, see sad.csv)"
        parts += [Text(""), Text(said)]
    parts += [Text(f"note: {note}", "dim") for note in ticket.notes]
    return Group(*parts)


def render_trial(trial: Trial) -> RenderableType:
    """The verdict: what each arm came to over the seeds, the tests, and how much each weight does."""
    verdict = trial.verdict
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network")
    for name in (
        *("weights", "mean", "std", "ticket less this", "margin", "t with margin"),
        "p with margin (one-sided)",
        "efficiency",
    ):
        table.add_column(name, justify="right")
    tests = {
        found.against: found
        for found in (verdict.matches_dense, verdict.beats_reinit, verdict.beats_random)
        if found is not None
    }
    formula = ""
    for arm in verdict.arms:
        efficiency = trial.efficiency(arm.name)
        formula = efficiency.formula if efficiency is not None else formula
        table.add_row(
            arm.name,
            f"{trial.weights(arm.name):,}",
            f"{arm.mean:.4f}",
            f"{arm.std:.4f}",
            *_test_cells(tests.get(arm.name)),
            _efficiency_cell(efficiency),
            style="bold" if arm.name == "ticket" else "",
        )
    seeds = ", ".join(str(result.settings["seed"]) for result in trial.results)
    parts: list[RenderableType] = [
        Text(
            f"test metric with the seeds {seeds}; weights are those of the whole network",
            "bold",
        ),
        Text(""),
        table,
        Text(""),
        Text(verdict.said, "bold"),
    ]
    if formula:
        parts.append(
            Text(
                f"parameter efficiency = {formula}, with the weights of the whole network",
                "dim",
            )
        )
    return Group(*parts)


def _efficiency_cell(found: Efficiency | None) -> str:
    if found is None:
        return ""
    return f"{found.value:,.0f}" if found.value >= 1000 else f"{found.value:.4g}"


def _test_cells(found: Comparison | None) -> tuple[str, str, str, str]:
    if found is None:
        return "", "", "", ""
    return (
        f"{found.difference:+.4f}",
        f"{found.margin:g}",
        f"{found.t:.2f}",
        f"{found.p:.2g}",
    )


def _cells(row: Row, dense: Row) -> list[str]:
    difference = f"{row.test - dense.test:+.4f}" if row.round else ""
    return [
        str(row.round),
        row.form,
        f"{row.kept:,}",
        f"{row.sparsity:.1%}",
        f"{row.validation:.4f}",
        f"{row.test:.4f}",
        difference,
    ]
