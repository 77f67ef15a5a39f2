"""What a command says while it works: a progress bar on a terminal, lines where it was asked for, else nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from deploykit.cli.printable import printable_text

if TYPE_CHECKING:
    from typing import Self

    from rich.progress import Progress, TaskID

__all__ = ["Narration", "closing_line", "open_bars"]


def open_bars(verbosity: int) -> Progress | None:
    """Progress bars on stderr, running; None where nobody sees them, or nothing is to be said.

    Args:
        verbosity: below 0 nothing is said.
    """
    if verbosity < 0 or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bars.start()
    return bars


class Narration:
    """A `deploykit.pipeline.Progress` for people, as a context manager.

    Args:
        verbosity: below 0 nothing is said, above 0 every stage is a line where there is no terminal.
    """

    def __init__(self, verbosity: int) -> None:
        self._verbosity = verbosity
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> Self:
        self._bar = open_bars(self._verbosity)
        return self

    def __call__(self, stage: str, done: float | None = None) -> None:
        """A stage begins, or is `done` (0 to 1) of the way."""
        is_new = stage != self._stage
        self._stage = stage
        if self._bar is not None:
            if is_new and self._task is not None:
                self._bar.remove_task(self._task)
            if is_new or self._task is None:
                self._task = self._bar.add_task(stage, total=None)
            if done is not None:
                self._bar.update(self._task, total=1.0, completed=done)
        elif is_new and self._verbosity > 0:
            click.echo(stage, err=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def closing_line(*, ok: bool, began: float, command: str, verbosity: int) -> None:
    """The last line of a run, on stderr: how it ended, how long it took, and what it was."""
    if verbosity >= 0:
        word = "PASSED" if ok else "FAILED"
        line = f"{word} | {time.monotonic() - began:.1f} s | {command}"
        click.echo(printable_text(line), err=True)
