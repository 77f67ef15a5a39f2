"""`deploykit inspect`: what is in a model, what could be removed, and why the rest could not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.recipe import Recipe

__all__ = ["command"]


@click.command(
    "inspect", short_help="Show sparsity, what could be removed, and why the rest could not."
)
@click.argument("source", type=click.Path(path_type=Path))
@model_options
@click.option(
    "--sparse",
    is_flag=True,
    help="Say in place of all else of each layer whether sparse kernels could take it (2:4), and why not; for TensorRT, if "
    "--target names nothing else.",
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: Path,
    *,
    dump_dir: Path | None,
    save_plan: Path | None,
    sparse: bool,
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
    if sparse:
        refuse_beside_sparse(dump_dir=dump_dir, save_plan=save_plan, **given)
    recipe = read_recipe(**given)
    check_dump_dir(dump_dir)
    check_save_plan(save_plan)
    check_shapes(source, recipe)

    if sparse:
        show_sparse(source, recipe, verbosity, as_json=as_json)
        return

    from deploykit import pipeline
    from deploykit.cli.output import show

    with Narration(verbosity) as progress:
        report = pipeline.plan(
            pipeline.Request(source, recipe, command_line(), dump_dir, save_plan=save_plan),
            progress=progress,
        )
    show(report, as_json=as_json, all_layers=True)


def refuse_beside_sparse(**given: object) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: there is one.
    """
    for name in ("passes", "settings", "choose", "keep", "plan", "save_plan", "dump_dir"):
        if given.get(name):
            flag = "--set" if name == "settings" else f"--{name.replace('_', '-')}"
            msg = f"--sparse looks at the model as it is, and runs no pass: leave {flag} out."
            raise UsageError(msg)


def show_sparse(source: Path, recipe: Recipe, verbosity: int, *, as_json: bool) -> None:
    """Print what sparse kernels could make of each layer."""
    from deploykit.cli.printable import printable, printable_json
    from deploykit.sparse_layers import inspect_sparse

    with Narration(verbosity):
        found = inspect_sparse(source, recipe.check(), command_line())
    if as_json:
        from deploykit.report.eligibility_records import to_json

        click.echo(printable_json(to_json(found)), nl=False)
        return
    from deploykit.report.eligibility_text import print_inspection

    print_inspection(printable(found))
