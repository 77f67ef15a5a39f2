"""What `profile` says while it measures on several devices, and when it is done."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.narration import open_bars
from deploykit.cli.printable import printable_text
from deploykit.cli.profile_options import write_result
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from typing import Self

    from rich.progress import Progress, TaskID

    from deploykit.profile.remote.named_places import NamedPlace
    from deploykit.profiling import Request

__all__ = ["DevicesNarration", "check_several", "show_several"]


class DevicesNarration:
    """A `deploykit.several_devices.Progress` for people, as a context manager: a bar for each device on a terminal.

    Args:
        verbosity: below 0 nothing is said, above 0 every stage is a line where there is no terminal.
    """

    def __init__(self, verbosity: int) -> None:
        self._verbosity = verbosity
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._bars = open_bars(self._verbosity)
        return self

    def __call__(self, device: str, stage: str, done: float | None = None) -> None:
        """A stage begins on a device, or is `done` (0 to 1) of the way."""
        is_new = stage != self._stages.get(device)
        self._stages[device] = stage
        text = f"{device}: {stage}"
        if self._bars is not None:
            if device not in self._tasks:
                self._tasks[device] = self._bars.add_task(text, total=None)
            share: dict[str, Any] = {} if done is None else {"total": 1.0, "completed": done}
            if is_new and done is None:
                self._bars.reset(self._tasks[device], description=text, total=None)
            else:
                self._bars.update(self._tasks[device], description=text, **share)
        elif is_new and self._verbosity > 0:
            click.echo(printable_text(text), err=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def check_several(asked: dict[str, Any]) -> None:
    """Refuse what is asked of one device at a time.

    Args:
        asked: values of options, by name.

    Raises:
        UsageError: there is such a thing.
    """
    wrong = [name for name, value in asked.items() if value]
    if wrong:
        option = f"--{wrong[0].replace('_', '-')}"
        msg = f"{option} is asked of one device at a time, and --on names several. Name one of them."
        raise UsageError(msg)


def show_several(
    request: Request,
    places: Sequence[NamedPlace],
    given: Collection[str],
    verbosity: int,
    *,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure on several devices, and print what came of each.

    Raises:
        click.exceptions.Exit: with the exit code of the first device on which it went wrong.
    """
    from deploykit import several_devices
    from deploykit.cli.printable import printable, printable_json
    from deploykit.report.devices_records import to_json

    with DevicesNarration(verbosity) as progress:
        report = several_devices.profile_on(request, places, given=given, progress=progress)
    if out is not None:
        write_result(out, to_json(report))
    if as_json:
        click.echo(printable_json(to_json(report)), nl=False)
    else:
        from deploykit.report.devices_text import print_devices

        print_devices(printable(report))
    if report.exit_code:
        click.get_current_context().exit(report.exit_code)
