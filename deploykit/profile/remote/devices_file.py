"""Reads `devices.toml`, in which users name their devices, so that `--on nano` says all that has to be said.

    [nano]
    on = "ssh://me@192.168.0.7"
    python = "~/venv/bin/python"
    runtime = "trtexec"
    threads = 4

The file that `--devices` names counts; else that in the current folder; else that in the user's folder for
configurations (`$XDG_CONFIG_HOME/deploykit`, `~/.config/deploykit`).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deploykit.errors import UsageError
from deploykit.profile.remote.address import Host, parse_address

__all__ = ["FILE", "HERE_NAME", "find_devices", "read_devices"]

FILE: Final = "devices.toml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HERE_NAME: Final = "here"
"""The name of this machine, which no other device can have."""

TEXTS: Final = ("python", "runtime", "folder")
SECONDS: Final = ("connect_s", "reconnect_s", "timeout_s", "lease_s")
KNOWN: Final = ("on", *TEXTS, "threads", "keep_models", *SECONDS)


def find_devices(file: Path | None = None) -> dict[str, Host]:
    """The devices that users have named; none where there is no such file.

    Args:
        file: the file to read; None looks for one.

    Raises:
        UsageError: it cannot be read, or says something that makes no sense.
    """
    if file is not None:
        return read_devices(file)
    config = os.environ.get("XDG_CONFIG_HOME")
    home = Path(config) if config else Path("~/.config").expanduser()
    for place in (Path(FILE), home / "deploykit" / FILE):
        if place.is_file():
            return read_devices(place)
    return {}


def read_devices(file: Path) -> dict[str, Host]:
    """The devices of a file, by name.

    Raises:
        UsageError: it cannot be read, or says something that makes no sense; the message names the device and the key.
    """
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read the devices in '{file}': {error.strerror}."
        raise UsageError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"'{file}' is not TOML: {error}."
        raise UsageError(msg) from error
    return {name: _host(file, name, given) for name, given in document.items()}


def _host(file: Path, name: str, given: object) -> Host:
    where = f"the device '{name}' in '{file}'"
    if not isinstance(given, Mapping):
        msg = f"'{name}' in '{file}' is no device: give each a table, as [{name}] and below it on = \"ssh://user@host\"."
        raise UsageError(msg)
    if name == HERE_NAME or not NAME.fullmatch(name):
        why = (
            "that is this machine"
            if name == HERE_NAME
            else "letters, digits, '.', '_' and '-' make one"
        )
        msg = f"no device can be called '{name}' in '{file}': {why}. Give it another name."
        raise UsageError(msg)
    for key in given:
        if key not in KNOWN:
            near = difflib.get_close_matches(key, KNOWN, 1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            msg = f"{where} has '{key}', which there is not.{meant} There are: {', '.join(KNOWN)}."
            raise UsageError(msg)
    if not isinstance(given.get("on"), str):
        msg = f'{where} does not say where it is: add on = "ssh://user@host".'
        raise UsageError(msg)
    try:
        address = parse_address(given["on"])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    host = Host(name=name, address=address, keeps_models=_checked(where, given, "keep_models"))
    return dataclasses.replace(
        host,
        **{
            key: _checked(where, given, key)
            for key in (*TEXTS, "threads", *SECONDS)
            if key in given
        },
    )


def _checked(where: str, given: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - of the type of that key
    """The value of a key, if it is of its type.

    Raises:
        UsageError: it is not.
    """
    value = given.get(key, False)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "keep_models":
        wanted, fits = "true or false", isinstance(value, bool)
    elif key == "threads":
        wanted, fits = (
            "a whole number from 1",
            isinstance(value, int) and is_number and value > 0,
        )
    elif key in SECONDS:
        wanted, fits = "seconds above 0", is_number and value > 0
    else:
        wanted, fits = "a text", isinstance(value, str) and bool(value)
    if not fits:
        msg = f"{where}: '{key}' is {wanted}, not {value!r}."
        raise UsageError(msg)
    if key == "runtime":
        from deploykit.runtimes import check_name

        try:
            check_name(value)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    return float(value) if key in SECONDS else value
