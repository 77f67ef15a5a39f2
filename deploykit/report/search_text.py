"""What a search found, as a table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from deploykit.finder.metrics import Row
    from deploykit.finder.search import Result

__all__ = ["print_search", "render_search"]

PIPE_WIDTH = 140


def print_search(result: Result, *, console: Console | None = None) -> None:
    """Print a result to a console, by default to stdout."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            # A file has no width; 80 columns would break what is said of layers.
            console = Console(width=PIPE_WIDTH)
    console.print(render_search(result))


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
            f"{result.task}: {ticket.sparsity:.1%} of {ticket.total:,} weights dropped", "bold"
        ),
        Text(""),
        table,
    ]
    parts += [Text(f"note: {note}", "dim") for note in ticket.notes]
    return Group(*parts)


def _cells(row: Row, dense: Row) -> list[str]:
    structure = "scattered" if row.structure == "none" else row.structure
    structure = structure if row.round else "dense"
    difference = f"{row.test - dense.test:+.4f}" if row.round else ""
    return [
        str(row.round),
        structure,
        f"{row.kept:,}",
        f"{row.sparsity:.1%}",
        f"{row.validation:.4f}",
        f"{row.test:.4f}",
        difference,
    ]
