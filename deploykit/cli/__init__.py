"""The command line: one module a command, and no heavy import before a command runs.

Results go to stdout, everything else to stderr. What a user can cause is told in a message and an exit code; only
`-vv` adds a traceback. On an error nothing is printed on stdout, with `--json` neither.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import sys
import traceback
import warnings
from typing import Any, NoReturn

import click

from deploykit import __version__
from deploykit.cli.printable import printable_text
from deploykit.cli.supervise import supervise
from deploykit.errors import DeploykitError, ModelError, UsageError

__all__ = ["main", "program"]

COMMANDS = (
    "optimize",
    "find",
    "run",
    "sweep",
    "profile",
    "inspect",
    "compare",
    "runtimes",
    "passes",
    "schema",
)
LIBRARIES = ("onnx", "onnx-ir", "onnxruntime", "numpy", "torch")
BUG = 70
INTERRUPTED = 130

# What a disk or its owner refuses: the user's to change, and no bug of ours.
REFUSED = {
    getattr(errno, name)
    for name in (
        "EACCES",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "EMFILE",
        "ENAMETOOLONG",
        "ENOSPC",
        "EPERM",
        "EROFS",
    )
    if hasattr(errno, name)
}


class Commands(click.Group):
    """Commands that are imported when they are named, and errors as exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of a user's work."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"deploykit.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; what goes wrong becomes a message on stderr and an exit code."""
        ctx.obj = {"verbosity": 0}
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    # Those of libraries are for who calls them, and not for who runs this.
                    warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except DeploykitError as error:
            _tell(ctx, str(error), error)
            ctx.exit(error.exit_code)
        except MemoryError as error:
            _tell(
                ctx,
                f"the model needs more memory than there is: {error}. Run it on a larger machine.",
                error,
            )
            ctx.exit(ModelError.exit_code)
        except KeyboardInterrupt:
            _tell(ctx, "interrupted; nothing half-written is left", None)
            ctx.exit(INTERRUPTED)
        except SystemExit as error:
            # Ours end with ctx.exit: somebody's module or script ended, which is no result, whatever its code.
            _tell(
                ctx,
                f"code that was called ended the program (sys.exit, {error.code}) before there was a result. Take that out "
                "of it",
                None,
            )
            ctx.exit(UsageError.exit_code)
        except BrokenPipeError:
            # The reader of our output has gone; Python would complain once more while it closes stdout.
            sys.stdout = None
            ctx.exit(1)
        except OSError as error:
            if error.errno not in REFUSED:
                _tell_bug(ctx, error)
            place = f"'{error.filename}'" if error.filename else "the output"
            _tell(
                ctx,
                f"cannot read or write {place}: {error.strerror}. Free some space, or choose another place.",
                error,
            )
            # Python would try once more to write what is left, and complain again.
            sys.stdout = None if not error.filename else sys.stdout
            ctx.exit(UsageError.exit_code)
        except Exception as error:  # noqa: BLE001 - whatever is left is a bug of ours, and is told as one
            _tell_bug(ctx, error)


def _tell_bug(ctx: click.Context, error: Exception) -> NoReturn:
    _tell(
        ctx,
        f"{type(error).__name__}: {error}",
        error,
        "This is a bug in deploykit. Run again with -vv for the traceback.",
    )
    ctx.exit(BUG)


def _tell(ctx: click.Context, message: str, error: Exception | None, *more: str) -> None:
    """Print a message on stderr: one line, whatever the names in it, and others below it."""
    # A command that is given secrets says how they are taken out.
    redact = ctx.obj.get("redact", str)
    if error is not None and ctx.obj["verbosity"] >= 2:
        click.echo(redact("".join(traceback.format_exception(error))), err=True, nl=False)
    click.secho("Error: ", fg="red", err=True, nl=False)
    for line in (message, *more):
        click.echo(printable_text(redact(" ".join(line.split()))), err=True)


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    del parameter
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"deploykit {__version__}")
    for name in LIBRARIES:
        try:
            click.echo(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            click.echo(f"{name} is not installed")
    ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 the answer is no, 2 usage, 3 the model is not supported, "
    "4 a runtime or device is absent, 70 a bug in deploykit, 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of deploykit and its libraries.",
)
def main() -> None:
    """Turn the zeros of a pruned network into speed, and prove it."""


def program() -> None:
    """`main`, in a process of its own: what makes a library crash ends in a message, too."""
    supervise(lambda: main(prog_name="deploykit"))
