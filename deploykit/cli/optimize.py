"""`deploykit optimize`: a model full of zeros in, a smaller and faster one out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import click

from deploykit.cli.narration import Narration, closing_line
from deploykit.cli.options import (
    check_dump_dir,
    check_save_plan,
    check_shapes,
    command_line,
    model_options,
    output_options,
    read_recipe,
    set_verbosity,
)
from deploykit.cli.place_options import Where, given_settings, open_place, place_options
from deploykit.errors import UsageError

__all__ = ["command"]


@click.command(
    "optimize", short_help="Make a model smaller and faster, with its function preserved."
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for model.onnx, report.json, report.html and recipe.toml.",
)
@click.option("--force", is_flag=True, help="Replace an earlier result in that folder.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be removed and what not; run and write nothing.",
)
@click.option(
    "--profile/--no-profile",
    default=None,
    help="Measure candidates and choose. [default: profile]",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Real inputs (.npz, by input), to validate and measure with.",
)
@click.option(
    "--tolerance",
    type=float,
    help="Largest relative error that counts as equal. [default: by dtype]",
)
@click.option(
    "--runtime",
    metavar="NAME",
    help="What the models are timed in; see 'deploykit runtimes'. [default: onnxruntime]",
)
@click.option(
    "--engine",
    metavar="NAME",
    help="Also build an engine of the result, with tensorrt or tensorrt-rtx.",
)
@click.option(
    "--compute-capability",
    metavar="8.6,8.9",
    help="GPUs that the engine is for, with tensorrt-rtx. [default: as it builds by itself]",
)
@click.option(
    "--threads",
    type=int,
    help="Threads of the measured sessions. [default: 1, the sharpest comparison]",
)
@click.option(
    "--duration",
    type=click.FloatRange(min=0.0),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="Timed running of each model in the final measurement.",
)
@place_options
@model_options
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: Path,
    out: Path | None,
    *,
    force: bool,
    dry_run: bool,
    duration: float,
    dump_dir: Path | None,
    save_plan: Path | None,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
    where: Where,
    **given: Any,  # noqa: ANN401 - fields of a recipe
) -> None:
    """Optimize the ONNX model SOURCE and write the result to a folder.

    SOURCE may also be a PyTorch model, as package.module:object (a torch.nn.Module, a task, or a function that returns one),
    which is exported first, with --ticket in it.

    Every exact pass runs on a copy. The result computes the same, which is checked, and it is never slower than the
    original: what the passes could not know is decided by measuring, in turns, on this machine, or with --on on the device that it
    is for.

    `--passes +prune-channels` asks for a pass that changes the function; then the report says how far the outputs move.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    if out is None and not dry_run:
        msg = "where should the result go? Give a folder with -o OUT, or --dry-run to write nothing."
        raise UsageError(msg)
    began = time.monotonic()
    named = where.one("optimize")
    recipe = read_recipe(**given)
    if given["recipe"] is None:
        recipe = dataclasses.replace(recipe, **named.settings(given_settings(ctx)))
    check_dump_dir(dump_dir)
    check_save_plan(save_plan, None if dry_run else out)
    check_shapes(source, recipe)

    from deploykit import pipeline
    from deploykit.cli.output import show
    from deploykit.profile import SCREENING, Settings

    screening = Settings(
        warmup_s=SCREENING.warmup_s,
        duration_s=min(SCREENING.duration_s, duration),
        min_rounds=SCREENING.min_rounds,
        rebuilds=SCREENING.rebuilds,
        max_duration_s=SCREENING.max_duration_s,
    )
    request = pipeline.Request(
        source,
        recipe,
        command_line(),
        dump_dir,
        Settings(duration_s=duration),
        screening,
        save_plan,
    )
    with Narration(verbosity) as progress, open_place(progress, named) as place:
        request = dataclasses.replace(request, place=place)
        if dry_run or out is None:
            report = pipeline.plan(request, progress=progress)
        else:
            report = pipeline.optimize(request, out, force=force, progress=progress)
    show(report, as_json=as_json, all_layers=verbosity > 0)
    if out is not None and not dry_run:
        click.echo(f"report: {out / 'report.html'}", err=True)
    ok = report.verdict != "differs"
    closing_line(ok=ok, began=began, command=request.command, verbosity=verbosity)
    if not ok:
        ctx.exit(1)
