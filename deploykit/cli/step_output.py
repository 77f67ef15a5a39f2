"""Prints what came of a step, as tables or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deploykit.step.records import StepResult
    from deploykit.step.secrets import Secrets

__all__ = ["show"]


def show(result: StepResult, *, as_json: bool, secrets: Secrets) -> None:
    """Print a result on stdout."""
    from deploykit.cli.printable import printable, printable_json

    if as_json:
        from deploykit.step.report_file import to_json

        click.echo(printable_json(to_json(result, secrets)), nl=False)
        return
    from deploykit.step.step_text import print_step

    print_step(printable(secrets.cleaned(result)))
