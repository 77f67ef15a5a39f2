"""Options that say where models are measured, and how they become a place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploykit.cli.printable import printable_text

if TYPE_CHECKING:
    from deploykit.profile import Place
    from deploykit.profile.address import Tell

__all__ = ["open_place", "place_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def place_options(command: Command) -> Command:
    """Where models are measured."""
    options = [
        click.option(
            "--on",
            metavar="WHERE",
            help="Measure on a device, reached by SSH: ssh://user@host[:port], or a host of your SSH configuration. "
            "[default: this machine]",
        ),
        click.option(
            "--device-python",
            metavar="PATH",
            help="The Python of the device that has numpy and a runtime. [default: python3]",
        ),
        click.option(
            "--accept-new-host",
            is_flag=True,
            help="Trust a device whose host key is not known yet, and remember the key. One that changed is never trusted.",
        ),
        click.option(
            "--keep-models",
            is_flag=True,
            help="Leave the models on the device, in ~/.cache/deploykit/models, so that they need not go there again. "
            "Otherwise nothing is left there.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextlib.contextmanager
def open_place(
    tell: Tell,
    *,
    on: str | None,
    device_python: str | None,
    accept_new_host: bool,
    keep_models: bool,
) -> Iterator[Place]:
    """The place that the options name, ready to be measured on; afterwards what was left there is gone.

    Raises:
        UsageError: there is no such place, or an option is for devices and there is none.
        RuntimeUnavailable: it cannot be reached, or lacks what is needed.
    """
    from deploykit.errors import UsageError
    from deploykit.profile import HERE

    if on is None:
        given = {
            "--device-python": device_python is not None,
            "--accept-new-host": accept_new_host,
            "--keep-models": keep_models,
        }
        wrong = [name for name, is_given in given.items() if is_given]
        if wrong:
            msg = f"{wrong[0]} is about a device: say which one with --on, or leave it out."
            raise UsageError(msg)
        yield HERE
        return
    from deploykit.profile.address import find_place

    place = find_place(
        on,
        tell=tell,
        python=device_python,
        accepts_new_host=accept_new_host,
        keeps_models=keep_models,
    )
    try:
        with place:
            yield place
    finally:
        for note in getattr(place, "notes", ()):
            click.echo(printable_text(f"note: {note}"), err=True)
