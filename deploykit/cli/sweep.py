"""`deploykit sweep`: many steps, and one table."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from deploykit.cli.narration import Narration, closing_line
from deploykit.cli.options import LOGGERS, command_line, output_options, set_verbosity
from deploykit.errors import UsageError

__all__ = ["command"]


@click.command(
    "sweep", short_help="Run recipes x models x devices, and put the results in one table."
)
@click.argument("sweep", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the table, the plot, and a result folder for each cell.",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="A Ray cluster that is there: auto, HOST:PORT or ray://HOST:PORT. Its machines have to see OUT "
    "under the same path. "
    "[default: one is started on this machine]",
)
@click.option("--serial", is_flag=True, help="One cell after the other, without Ray.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results of stages are kept. [default: OUT/cache]",
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    sweep: Path,
    *,
    out: Path,
    address: str | None,
    serial: bool,
    cache: Path | None,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
) -> None:
    """Run every recipe with every model on every device that SWEEP names.

    Each cell is a step as 'deploykit run' has it, with a folder of its own; what a stage found is shared. Killed or
    interrupted, the same command goes on. Cells that measure on one device take turns. Whether gates are met is a result:
    the exit code is 1 only where a cell has none.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    if serial and address is not None:
        msg = "--serial is without Ray, and --address names a cluster of it. Give one of them."
        raise UsageError(msg)
    began = time.monotonic()

    from deploykit.cli.printable import printable, printable_json
    from deploykit.step.secrets import Secrets, veil_logs
    from deploykit.sweep import runner
    from deploykit.sweep.cluster import LOCAL

    secrets = Secrets()
    ctx.find_root().obj["redact"] = secrets.redact
    veil_logs(secrets, LOGGERS)
    with Narration(verbosity) as progress:
        result = runner.sweep(
            sweep,
            out,
            address=None if serial else address or LOCAL,
            cache=cache,
            progress=lambda stage, done=None: progress(secrets.redact(stage), done),
        )
    if as_json:
        document = secrets.cleaned(result.to_document())
        click.echo(printable_json(json.dumps(document, indent=1, ensure_ascii=False)))
    else:
        from deploykit.sweep.text import print_sweep

        print_sweep(printable(secrets.cleaned(result)))
    closing_line(
        ok=not result.errors,
        began=began,
        command=secrets.redact(command_line()),
        verbosity=verbosity,
    )
    ctx.exit(result.exit_code)
