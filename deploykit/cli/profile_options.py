"""Options that `profile` and `compare` share, and how they become a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.profiling import Request
    from deploykit.report.profile_records import Comparison, ProfileReport

__all__ = [
    "check_destination",
    "make_request",
    "measuring_options",
    "show_result",
    "write_result",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def measuring_options(command: Command) -> Command:
    """How models are run and timed."""
    options = [
        click.option(
            "--shape",
            multiple=True,
            metavar="NAME:1x3x640x640",
            help="Size of an input with dynamic axes.",
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            metavar="N",
            help="Size of the batch axis of every input, if it is dynamic.",
        ),
        click.option(
            "--inputs",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Real inputs (.npz, by input) to measure with.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            default=1,
            show_default=True,
            help="Threads of the sessions; 0 leaves the number to the runtime.",
        ),
        click.option(
            "--warmup",
            type=click.FloatRange(min=0.0),
            default=0.2,
            show_default=True,
            metavar="SECONDS",
            help="Running of each new session before it is timed.",
        ),
        click.option(
            "--duration",
            type=click.FloatRange(min=0.0),
            default=3.0,
            show_default=True,
            metavar="SECONDS",
            help="Timed running of each model, at least 10 runs.",
        ),
        click.option(
            "--rebuilds",
            type=click.IntRange(min=1),
            default=3,
            show_default=True,
            help="How often the sessions are built anew.",
        ),
        click.option(
            "--runtime",
            default="onnxruntime",
            show_default=True,
            metavar="NAME",
            help="What runs the models.",
        ),
        click.option("--layers", is_flag=True, help="Time each layer as well."),
        click.option(
            "-o",
            "--out",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write the result there, as JSON with all samples.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_request(
    models: tuple[Path, ...],
    command: str,
    *,
    shape: tuple[str, ...],
    batch: int | None,
    inputs: Path | None,
    threads: int,
    warmup: float,
    duration: float,
    rebuilds: int,
    runtime: str,
    layers: bool,
) -> Request:
    """The request that a command line asks for.

    Raises:
        UsageError: a shape has another form.
    """
    from deploykit.profile import Settings
    from deploykit.profiling import Request
    from deploykit.recipe import parse_shape

    return Request(
        models=models,
        command=command,
        shapes=dict(parse_shape(text) for text in shape),
        batch=batch,
        inputs=inputs,
        threads=threads or None,
        runtime=runtime,
        settings=Settings(warmup_s=warmup, duration_s=duration, rebuilds=rebuilds),
        layers=layers,
    )


def check_destination(out: Path | None, sources: tuple[Path, ...]) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        UsageError: it is one of the sources, or its folder is not there.
    """
    if out is None:
        return
    if any(source.exists() and out.exists() and source.samefile(out) for source in sources):
        msg = f"cannot write the result to '{out}': it is what was to be read. Choose another place."
        raise UsageError(msg)
    if not out.absolute().parent.is_dir():
        msg = f"cannot write the result to '{out}': there is no folder '{out.parent}'. Make it first."
        raise UsageError(msg)


def write_result(out: Path, text: str, what: str = "result") -> None:
    """Write a document to a file, whole or not at all.

    Args:
        out: the file.
        text: all of it.
        what: what to call it.

    Raises:
        UsageError: it cannot be written.
    """
    from deploykit.atomic import write_whole

    try:
        write_whole(out, text.encode())
    except OSError as error:
        msg = f"cannot write the {what} to '{out}': {error.strerror}. Choose another place."
        raise UsageError(msg) from error
    click.echo(f"{what}: {out}", err=True)


def show_result(
    result: ProfileReport | Comparison, *, as_json: bool, out: Path | None, all_layers: bool
) -> None:
    """Print a result, as JSON or as tables, and write its JSON to a file if there is one to write."""
    from deploykit.cli.printable import printable, printable_json
    from deploykit.report.profile_records import to_json

    if out is not None:
        write_result(out, to_json(result))
    if as_json:
        click.echo(printable_json(to_json(result)), nl=False)
        return
    from deploykit.report.profile_text import print_result

    print_result(printable(result), all_layers=all_layers)
