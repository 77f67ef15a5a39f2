"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploykit.cli.printable import PlainFormatter
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.recipe import Recipe

__all__ = [
    "LOGGERS",
    "check_dump_dir",
    "check_save_plan",
    "check_shapes",
    "command_line",
    "model_options",
    "output_options",
    "read_recipe",
    "set_verbosity",
]

LOGGERS = ("deploykit", "passes")
"""Those of ours; what libraries log is for who calls them."""

LOG_SUFFIXES = (".log", ".txt")
"""Files that are there already are only added to if their names end so: they might be models."""

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """What is to be done to a model."""
    file = click.Path(path_type=Path, dir_okay=False)
    options = [
        click.option(
            "--passes",
            metavar="A,B,C",
            help="Run only these passes, in this order; with a plus before each, the default ones and these. "
            "[default: every exact one]",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="PASS.OPTION=VALUE",
            help="Set an option of a pass.",
        ),
        click.option(
            "--recipe",
            type=file,
            help="Read options from a recipe in TOML; those given here win.",
        ),
        click.option(
            "--target",
            metavar="NAME",
            help="What the model is made for. [default: this machine]",
        ),
        click.option(
            "--choose",
            type=click.Choice(["measure", "static"]),
            help="How the form of each layer with dense blocks is chosen: measured alone on this machine, or by the rules of "
            "the target. [default: measure]",
        ),
        click.option(
            "--keep",
            multiple=True,
            metavar="NAME",
            help="Leave the channels of this node or tensor alone; repeat it for more.",
        ),
        click.option(
            "--masks", type=file, help="Zero what these masks (.npz, by weight) drop, first."
        ),
        click.option(
            "--ticket",
            type=file,
            help="Put this ticket, or state dict, into the PyTorch model that SOURCE names, first.",
        ),
        click.option(
            "--plan",
            type=file,
            help="Carry out this saved plan, and nothing beyond it.",
        ),
        click.option(
            "--save-plan",
            type=file,
            help="Write what the passes cut and add there, to be edited and given to --plan.",
        ),
        click.option(
            "--shape",
            multiple=True,
            metavar="NAME:1x3x640x640",
            help="Size of an input with dynamic axes.",
        ),
        click.option(
            "--dump-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Write the graph after each pass there, as text.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def output_options(command: Command) -> Command:
    """How results and narration look."""
    options = [
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print the report as JSON, in place of tables.",
        ),
        click.option(
            "--log-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write a detailed log there.",
        ),
        click.option("-v", "--verbose", count=True, help="Tell more; twice: with tracebacks."),
        click.option("-q", "--quiet", count=True, help="Tell less."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def set_verbosity(ctx: click.Context, verbose: int, quiet: int, log_file: Path | None) -> int:
    """Configure logging for a command, and return how much it should say: 0 is normal."""
    verbosity = verbose - quiet
    ctx.find_root().obj["verbosity"] = verbosity
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(
        max(verbosity, -1), logging.DEBUG
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(level)
    handlers[0].setFormatter(PlainFormatter())
    # What a library says of a model is for who calls it; what a user has to know is in a message of ours.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    if log_file is not None:
        if (
            log_file.exists()
            and log_file.suffix not in LOG_SUFFIXES
            and not log_file.is_char_device()
        ):
            msg = (
                f"cannot log to '{log_file}': it is there already, and its name is none of a log. "
                f"Give a name that ends in {' or '.join(LOG_SUFFIXES)}, or a new one."
            )
            raise UsageError(msg)
        try:
            handlers.append(LogFile(log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            msg = f"cannot write the log file '{log_file}': {error.strerror}."
            raise UsageError(msg) from error
        ctx.call_on_close(handlers[-1].close)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.handlers[:] = handlers
    return verbosity


class LogFile(logging.FileHandler):
    """A log file; a disk that is full ends the log, and not the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say it once, and stop writing."""
        del record
        error = sys.exc_info()[1]
        if not self.filters:
            self.addFilter(lambda _: False)
            click.echo(f"Warning: the log '{self.baseFilename}' ends here: {error}", err=True)

    def close(self) -> None:
        """Close the file, whatever of it could be written."""
        with contextlib.suppress(OSError):
            super().close()


def read_recipe(
    recipe: Path | None,
    settings: tuple[str, ...],
    shape: tuple[str, ...],
    **given: Any,  # noqa: ANN401 - options of several types
) -> Recipe:
    """The recipe that a command line asks for.

    Args:
        recipe: a recipe file, or None.
        settings: `PASS.OPTION=VALUE` each.
        shape: `NAME:1x3x640x640` each.
        given: other fields of the recipe; None or () is not given.

    Raises:
        UsageError: something has another form.
    """
    from deploykit import recipe as recipes

    base = recipes.Recipe() if recipe is None else recipes.read(recipe)
    options: dict[str, dict[str, object]] = {}
    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, option = target.rpartition(".")
        if not (equals and dot and name and option):
            msg = f"--set takes PASS.OPTION=VALUE, not '{setting}'."
            raise UsageError(msg)
        options.setdefault(name, {})[option] = value
    if given.get("passes") is not None:
        given["passes"] = tuple(
            name.strip() for name in given["passes"].split(",") if name.strip()
        )
    if given.get("compute_capability") is not None:
        parts = (part.strip() for part in given["compute_capability"].split(","))
        given["compute_capability"] = tuple(part for part in parts if part)
        if not given["compute_capability"]:
            msg = "--compute-capability names no GPU: give numbers such as 8.6,8.9, or leave it out."
            raise UsageError(msg)
    for key in ("masks", "plan", "ticket"):
        if given.get(key) is not None:
            given[key] = str(given[key].resolve())
    if given.get("inputs"):
        for file in given["inputs"]:
            if file.is_file() and not zipfile.is_zipfile(file):
                msg = f"'{file}' is no .npz file. Inputs come in one with an array for each input, as numpy.savez writes it."
                raise UsageError(msg)
        # The effective recipe lies in another folder, and must still name the same files there.
        given["inputs"] = tuple(str(file.resolve()) for file in given["inputs"])
    shapes = dict(recipes.parse_shape(text) for text in shape)
    # No passes at all is a mistake that the recipe tells; flags that repeat are () where they were not given.
    found = {
        key: value
        for key, value in given.items()
        if value is not None and (value != () or key == "passes")
    }
    return recipes.merge(base, options, shape={**base.shape, **shapes}, **found)


def check_dump_dir(folder: Path | None) -> None:
    """Refuse a folder for dumps that cannot be, before any work is done.

    Raises:
        UsageError: a file is in the way, or nothing can be written there.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocker = next((each for each in (folder, *folder.parents) if each.is_file()), None)
        why = f"'{blocker}' is a file" if blocker else f"{error.strerror}"
        msg = f"cannot write dumps to '{folder}': {why}. Give another folder."
        raise UsageError(msg) from error


def check_save_plan(path: Path | None, out: Path | None = None) -> None:
    """Refuse a file for a plan that cannot be, before any work is done.

    Raises:
        UsageError: it is there already, its folder is not, or it would lie in the result folder.
    """
    if path is not None:
        from deploykit import saved_plans

        saved_plans.check_place(path, out=out)


def check_shapes(source: Path, recipe: Recipe) -> None:
    """Check the sizes that a recipe gives before anything runs, whether or not it will be run.

    Raises:
        UsageError: the model has no such input, or one of another shape.
    """
    from deploykit.torch_source import is_reference

    # Of what is exported first, the sizes are checked then.
    if recipe.shape and not is_reference(source):
        from deploykit import model_io

        model_io.check_shapes(model_io.load(source), recipe.shape)


def command_line() -> str:
    """The command line as it could be typed again."""
    return shlex.join(["deploykit", *sys.argv[1:]])
