"""`deploykit profile`: how fast models are here or on a device, each by itself and against the first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from deploykit.cli.devices_narration import check_several, show_several
from deploykit.cli.narration import Narration
from deploykit.cli.options import command_line, output_options, set_verbosity
from deploykit.cli.place_options import Where, given_settings, open_place, place_options
from deploykit.cli.profile_options import (
    check_destination,
    make_request,
    measuring_options,
    show_result,
)
from deploykit.cli.what_if_options import NAMES, ask, check, what_if_options, write_page

__all__ = ["command"]


@click.command("profile", short_help="Measure latency, load time, memory and layers of models.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@measuring_options
@what_if_options
@place_options
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
    where: Where,
    **given: Any,  # noqa: ANN401 - options of several types
) -> None:
    """Measure the ONNX MODELs on this machine, or with --on on another one.

    Several models take turns, in random order, so that whatever else the machine does meets all of them. Each is
    compared with the first. Where the 95 % interval of a ratio reaches 1 no difference is claimed.

    --on a,b,c measures on several devices at the same time, and gives one table. What goes wrong on one of them is told,
    and spoils nothing of the others.

    --what-if and --allocate tell how fast a model would be with other channels, before anyone trains it: a network of
    those sizes is made up and timed. --roofline says what limits each layer, --sweep runs batches and threads.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    check_destination(out, models)
    asked = {name: given.pop(name) for name in NAMES}
    check(asked, models)
    places = where.places()
    request = make_request(models, command_line(), **given)
    if len(places) > 1:
        check_several(asked)
        show_several(request, places, given_settings(ctx), verbosity, as_json=as_json, out=out)
        return
    request = dataclasses.replace(request, **places[0].settings(given_settings(ctx)))

    from deploykit import profiling

    with Narration(verbosity) as progress, open_place(progress, places[0]) as place:
        request = dataclasses.replace(request, place=place)
        report = ask(request, asked, progress) or profiling.profile(request, progress=progress)
    if asked["html"] is not None:
        write_page(report, asked["html"])
    show_result(report, as_json=as_json, out=out, all_layers=verbosity > 0)
