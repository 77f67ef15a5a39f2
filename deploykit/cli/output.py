"""Prints a result on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deploykit.report.records import Report

__all__ = ["show"]


def show(report: Report, *, as_json: bool, all_layers: bool) -> None:
    """Print a report, as JSON or as tables."""
    from deploykit.cli.printable import printable, printable_json

    if as_json:
        from deploykit.report.records import to_json

        click.echo(printable_json(to_json(report)), nl=False)
        return
    from deploykit.report.text import print_report

    print_report(printable(report), all_layers=all_layers)
