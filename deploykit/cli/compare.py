"""`deploykit compare`: two models, or what was found out about two models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from deploykit.cli.narration import Narration
from deploykit.cli.options import command_line, output_options, set_verbosity
from deploykit.cli.place_options import Where, given_settings, open_place, place_options
from deploykit.cli.profile_options import (
    check_destination,
    make_request,
    measuring_options,
    show_result,
)

__all__ = ["command"]


@click.command("compare", short_help="Compare two models, or two reports, side by side.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@measuring_options
@place_options
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    a: Path,
    b: Path,
    *,
    out: Path | None,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
    where: Where,
    **given: Any,  # noqa: ANN401 - options of several types
) -> None:
    """Compare B with A.

    Two ONNX models: whether they compute the same, their sizes, and their latency, measured in turns. Two JSON files
    that 'optimize' or 'profile -o' wrote, or two result folders: what changed from the one to the other, and how the
    latencies compare, as far as measurements of different occasions do.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    check_destination(out, (a, b))
    named = where.one("compare")
    request = make_request((a, b), command_line(), **given)
    request = dataclasses.replace(request, **named.settings(given_settings(ctx)))

    from deploykit import comparison

    with Narration(verbosity) as progress, open_place(progress, named) as place:
        request = dataclasses.replace(request, place=place)
        result = comparison.compare(request, progress=progress)
    show_result(result, as_json=as_json, out=out, all_layers=verbosity > 0)
