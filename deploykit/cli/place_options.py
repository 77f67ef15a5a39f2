"""Options that say where models are measured, and how they become places."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploykit.cli.printable import printable_text
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.profile import Place
    from deploykit.profile.remote.address import Tell
    from deploykit.profile.remote.named_places import NamedPlace

__all__ = ["Where", "given_settings", "open_place", "place_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Where:
    """What a command line says of where to measure.

    Attributes:
        on: places, with commas between them; None is this machine.
        devices: the file in which devices have names; None looks for one.
        device_python: the Python of the devices; None is what the file says, or `python3`.
        accept_new_host: whether a host key that is not known is taken.
        keep_models: whether models stay on the device.
    """

    on: str | None
    devices: Path | None
    device_python: str | None
    accept_new_host: bool
    keep_models: bool

    def places(self) -> tuple[NamedPlace, ...]:
        """The places that are meant; nothing is connected yet.

        Raises:
            UsageError: there is no such place, or an option is for devices and there is none.
        """
        from deploykit.profile.remote.named_places import HERE_ONLY, find_places

        if self.on is not None:
            return find_places(
                self.on,
                file=self.devices,
                python=self.device_python,
                accepts_new_host=self.accept_new_host,
                keeps_models=self.keep_models,
            )
        given = {
            "--devices": self.devices is not None,
            "--device-python": self.device_python is not None,
            "--accept-new-host": self.accept_new_host,
            "--keep-models": self.keep_models,
        }
        wrong = [name for name, is_given in given.items() if is_given]
        if wrong:
            msg = f"{wrong[0]} is about a device: say which one with --on, or leave it out."
            raise UsageError(msg)
        return HERE_ONLY

    def one(self, command: str) -> NamedPlace:
        """The place that is meant, for a command that works on one at a time.

        Args:
            command: its name.

        Raises:
            UsageError: there are several; as `places`.
        """
        places = self.places()
        if len(places) > 1:
            msg = (
                f"'{command}' works on one device at a time, and --on names {len(places)}: "
                f"{', '.join(place.name for place in places)}. Run it once for each; 'profile' measures on several."
            )
            raise UsageError(msg)
        return places[0]


def place_options(command: Command) -> Command:
    """Where models are measured; the command is given a `Where` as `where`."""
    options = [
        click.option(
            "--on",
            metavar="WHERE",
            help="Measure on a device, reached by SSH: ssh://user@host[:port], a name of devices.toml, or a host of your SSH "
            "configuration; 'here' is this machine. 'profile' takes several, as a,b,c. [default: this machine]",
        ),
        click.option(
            "--devices",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="The file in which devices have names. [default: devices.toml here, or in ~/.config/deploykit]",
        ),
        click.option(
            "--device-python",
            metavar="PATH",
            help="The Python of the device that has numpy and a runtime. [default: what devices.toml says, or python3]",
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
    names = [field.name for field in dataclasses.fields(Where)]

    @functools.wraps(command)
    def gathered(*arguments: Any, **given: Any) -> Any:  # noqa: ANN401 - those of the command
        where = Where(**{name: given.pop(name) for name in names})
        return command(*arguments, where=where, **given)

    wrapped: Any = gathered
    for option in reversed(options):
        wrapped = option(wrapped)
    done: Command = wrapped
    return done


def given_settings(ctx: click.Context) -> frozenset[str]:
    """Which of "runtime" and "threads" the command line gives, so that `devices.toml` has no say in them."""
    typed = click.core.ParameterSource.COMMANDLINE
    return frozenset(
        name for name in ("runtime", "threads") if ctx.get_parameter_source(name) is typed
    )


@contextlib.contextmanager
def open_place(tell: Tell, named: NamedPlace) -> Iterator[Place]:
    """A place, ready to be measured on; afterwards what was left there is gone.

    Raises:
        RuntimeUnavailable: it cannot be reached, or lacks what is needed.
    """
    place = named.open(tell)
    try:
        with place:
            yield place
    finally:
        for note in getattr(place, "notes", ()):
            click.echo(printable_text(f"note: {note}"), err=True)
