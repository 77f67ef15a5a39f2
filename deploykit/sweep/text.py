"""The results of a sweep as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.report.profile_wording import seconds_text
from deploykit.report.wording import bytes_text, count_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from deploykit.sweep.records import Row, SweepResult

__all__ = ["print_sweep"]

PIPE_WIDTH = 160
"""Where nobody sees the end of the line, names need not be broken."""


def print_sweep(result: SweepResult, *, console: Console | None = None) -> None:
    """Print all rows, and what was done for them."""
    from deploykit.report.console_text import result_console

    console = result_console(console, pipe_width=PIPE_WIDTH)
    console.print(_table(result))
    cells = len(result.sweep.cells)
    said = [f"{cells} cells", f"{result.reused} done before"]
    if result.retried:
        said.append(f"{result.retried} begun anew because their process had died")
    if result.errors:
        said.append(f"{len(result.errors)} without a result")
    console.print(f"\n{', '.join(said)}. {result.folder}", markup=False, highlight=False)
    for row in result.errors:
        console.print(f"{row.cell}: {row.reason}", markup=False, highlight=False)


def _table(result: SweepResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("recipe", "model", "device"):
        table.add_column(header, overflow="fold")
    for header in ("p50", "time / original", "accuracy", "bytes", "parameters", "gates"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in result.rows:
        # Names are the user's: brackets in them are no markup.
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: Row) -> list[str]:
    ratio = "-"
    if row.ratio is not None:
        ratio = f"{row.ratio:.3f} [{row.ratio_lo:.3f}, {row.ratio_hi:.3f}]"
    return [
        row.recipe,
        row.model,
        row.device or "-",
        seconds_text(row.p50_s),
        ratio,
        "-" if row.accuracy is None else f"{row.accuracy:.4g}",
        "-" if row.bytes is None else bytes_text(row.bytes),
        "-" if row.parameters is None else count_text(row.parameters),
        f"{row.gates_met}/{row.gates}" if row.gates else "-",
        "" if row.state == "passed" else row.state,
    ]
