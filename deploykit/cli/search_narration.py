"""What a search says while it runs: a bar with round, epoch, sparsity and metric on a terminal, else lines."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from typing import Self

    from rich.progress import Progress, TaskID

    from deploykit.finder.progress import Status

__all__ = ["SearchNarration", "status_text", "time_text"]


class SearchNarration:
    """A `deploykit.finder.progress.Progress` for people, as a context manager.

    Args:
        verbosity: below 0 nothing is said. Where there is no terminal, every network that is trained is a line, and above 0 every
            epoch.
    """

    def __init__(self, verbosity: int) -> None:
        self._verbosity = verbosity
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._verbosity >= 0 and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("loading the data", total=1.0, left="")
            self._bar.start()
        return self

    def __call__(self, status: Status) -> None:
        """The search is here now."""
        if self._bar is not None and self._task is not None:
            left = "" if status.left_s is None else f"{time_text(status.left_s)} left"
            self._bar.update(
                self._task, completed=status.done, description=status_text(status), left=left
            )
            return
        is_end = status.epochs > 0 and status.epoch == status.epochs
        if (is_end and self._verbosity >= 0) or self._verbosity > 0:
            click.echo(status_text(status), err=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def status_text(status: Status) -> str:
    """Where a search is, in one line."""
    what = "dense network" if not status.round else f"round {status.round} of {status.rounds}"
    said = [each for each in (status.seed, status.arm or what) if each]
    if status.epochs:
        said.append(f"epoch {status.epoch} of {status.epochs}")
    else:
        said.append(status.stage)
    if status.round:
        said.append(f"{status.sparsity:.1%} sparse")
    if status.metric is not None:
        said.append(f"validation {status.metric:.4f}")
    return ", ".join(said)


def time_text(seconds: float) -> str:
    """A duration in the units that people say it in."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
