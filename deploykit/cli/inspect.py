"""`deploykit inspect`: what is in a model, what could be removed, and why the rest could not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploykit.cli.narration import Narration
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

__all__ = ["command"]


@click.command(
    "inspect", short_help="Show sparsity, what could be removed, and why the rest could not."
)
@click.argument("source", type=click.Path(path_type=Path))
@model_options
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: Path,
    *,
    dump_dir: Path | None,
    save_plan: Path | None,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
    **given: Any,  # noqa: ANN401 - fields of a recipe
) -> None:
    """Show the sparsity of every layer of SOURCE, which channels could be removed, and why others could not.

    SOURCE is an ONNX model, or a PyTorch model as package.module:object, with --ticket in it.

    The passes run on a copy; nothing is measured and nothing is written.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    recipe = read_recipe(**given)
    check_dump_dir(dump_dir)
    check_save_plan(save_plan)
    check_shapes(source, recipe)

    from deploykit import pipeline
    from deploykit.cli.output import show

    with Narration(verbosity) as progress:
        report = pipeline.plan(
            pipeline.Request(source, recipe, command_line(), dump_dir, save_plan=save_plan),
            progress=progress,
        )
    show(report, as_json=as_json, all_layers=True)
