"""From what users write after `--on` to places: names of `devices.toml`, addresses, and this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError
from deploykit.profile.place import HERE
from deploykit.profile.remote.address import Address, Host, Tell, parse_address
from deploykit.profile.remote.devices_file import FILE, HERE_NAME, find_devices

if TYPE_CHECKING:
    from deploykit.profile.place import Place

__all__ = ["HERE_ONLY", "NamedPlace", "find_places"]

SCHEME = "ssh://"


@dataclasses.dataclass(frozen=True)
class NamedPlace:
    """A place that was asked for; nothing is connected yet.

    Attributes:
        name: what the user calls it.
        host: the device; None is this machine.
    """

    name: str
    host: Host | None = None

    def settings(self, given: Collection[str] = ()) -> dict[str, Any]:
        """What `devices.toml` says of how models run there: "runtime" and "threads", where it says so.

        Args:
            given: which of them the command line gives, which wins.
        """
        said: dict[str, Any] = {}
        if self.host is not None:
            said = {"runtime": self.host.runtime, "threads": self.host.threads}
        return {
            name: value
            for name, value in said.items()
            if value is not None and name not in given
        }

    def open(self, tell: Tell | None = None) -> Place:
        """The place, a context manager: entering it connects.

        Args:
            tell: told what is going on: connecting, uploading.
        """
        if self.host is None:
            return HERE
        from deploykit.profile.remote.remote_place import RemotePlace

        return RemotePlace(self.host, tell=tell)


HERE_ONLY = (NamedPlace(HERE.name),)
"""Where models are measured if nobody says anything else."""


def find_places(
    text: str,
    *,
    file: Path | None = None,
    python: str | None = None,
    accepts_new_host: bool = False,
    keeps_models: bool = False,
) -> tuple[NamedPlace, ...]:
    """The places that users mean by what they write after `--on`.

    Args:
        text: addresses, names of devices, or "here" for this machine, with commas between them.
        file: the `devices.toml` to look names up in; None looks for one.
        python: the Python of the devices; None is what the file says, or `python3`.
        accepts_new_host: whether a host key that is not known is taken, and added to the known ones.
        keeps_models: whether models stay there for the next time, whatever the file says.

    Raises:
        UsageError: one of them is none, or is named twice, or the file makes no sense.
    """
    devices = find_devices(file)
    changes: dict[str, object] = {} if python is None else {"python": python}
    changes |= {"accepts_new_host": True} if accepts_new_host else {}
    changes |= {"keeps_models": True} if keeps_models else {}
    found = [_find(part.strip(), devices, changes) for part in text.split(",") if part.strip()]
    if not found:
        msg = "--on names no place: give ssh://user@host, a name of devices.toml, or leave it out."
        raise UsageError(msg)
    names = [place.name for place in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        msg = f"the device '{twice}' is named twice. Name each once."
        raise UsageError(msg)
    _refuse_the_same(found)
    return tuple(found)


def _refuse_the_same(places: Sequence[NamedPlace]) -> None:
    """They are measured at the same time, which two of one device would tell by their figures."""
    seen: dict[Address, str] = {}
    for place in places:
        if place.host is None:
            continue
        other = seen.setdefault(place.host.address, place.name)
        if other != place.name:
            msg = (
                f"'{other}' and '{place.name}' are the same device, {place.host.address}: measured at the same time, each would "
                "be in the other's figures. Name one of them, and the other one in a run of its own."
            )
            raise UsageError(msg)


def _find(text: str, devices: Mapping[str, Host], changes: Mapping[str, object]) -> NamedPlace:
    if text == HERE_NAME:
        return NamedPlace(HERE.name)
    known = devices.get(text)
    if known is None:
        name = text.removeprefix(SCHEME).rstrip("/")
        hint = ""
        if devices and not text.startswith(SCHEME):
            hint = f" {FILE} has no device of that name; it has {', '.join(devices)}."
        known = Host(name=name, address=parse_address(text), hint=hint)
    return NamedPlace(known.name, dataclasses.replace(known, **changes))  # type: ignore[arg-type]  # each of its type
