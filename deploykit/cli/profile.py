"""`deploykit profile`: how fast models are here, each by itself and against the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploykit.cli.narration import Narration
from deploykit.cli.options import command_line, output_options, set_verbosity
from deploykit.cli.profile_options import (
    check_destination,
    make_request,
    measuring_options,
    show_result,
)

__all__ = ["command"]


@click.command(
    "profile", short_help="Measure latency, load time, memory and layers of models here."
)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@measuring_options
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[Path, ...],
    *,
    out: Path | None,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
    **given: Any,  # noqa: ANN401 - options of several types
) -> None:
    """Measure the ONNX MODELs on this machine.

    Several models take turns, in random order, so that whatever else the machine does meets all of them. Each is
    compared with the first. Where the 95 % interval of a ratio reaches 1 no difference is claimed.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    check_destination(out, models)
    request = make_request(models, command_line(), **given)

    from deploykit import profiling

    with Narration(verbosity) as progress:
        report = profiling.profile(request, progress=progress)
    show_result(report, as_json=as_json, out=out, all_layers=verbosity > 0)
