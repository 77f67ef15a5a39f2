"""The console that results are printed on, and the plain tables on it."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["plain_table", "result_console"]

PIPE_WIDTH = 140


def result_console(given: Console | None = None, *, pipe_width: int = PIPE_WIDTH) -> Console:
    """Where a result is printed: the console that is given, or stdout.

    Args:
        given: a console; None is stdout.
        pipe_width: columns where nobody sees the end of the line: a file has no width, and 80 would break every name in it.
    """
    if given is not None:
        return given
    console = Console()
    return console if console.is_terminal else Console(width=pipe_width)


def plain_table(*headers: str, texts: Collection[str]) -> Table:
    """A table without lines: figures to the right and unbroken, texts to the left.

    Args:
        headers: of its columns; no markup in them is heeded.
        texts: those of them that hold texts. The first column may be broken either way.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        is_text = header in texts
        table.add_column(
            escape(header),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=index > 0 and not is_text,
        )
    return table
