"""Says where a device is and how it is to be used: what users write after `--on`, and what becomes of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TypeAlias

from deploykit.errors import UsageError

__all__ = ["Address", "Host", "Tell", "parse_address"]

Tell: TypeAlias = Callable[[str, float | None], None]
"""Told what is going on, and how far it is (0 to 1, or None)."""

SCHEME = "ssh://"
FORM = re.compile(
    r"(?:(?P<user>[^@:/\s-][^@:/\s]*)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w-]+)\]|(?P<host>[^@:/\[\]\s-][^@:/\[\]\s]*))(?::(?P<port>\d+))?/?"
)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a device is reached by SSH.

    Attributes:
        host: its name, address, or alias in the SSH configuration.
        user: who logs in; None leaves that to the SSH configuration.
        port: where; None leaves that to the SSH configuration.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """`user@host:port`, as far as it is given."""
        user = "" if self.user is None else f"{self.user}@"
        host = f"[{self.host}]" if ":" in self.host and self.port is not None else self.host
        return f"{user}{host}" + ("" if self.port is None else f":{self.port}")

    @property
    def command(self) -> str:
        """What a user types to get there."""
        port = "" if self.port is None else f"-p {self.port} "
        user = "" if self.user is None else f"{self.user}@"
        return f"ssh {port}{user}{self.host}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """A device, and how it is used.

    Attributes:
        name: what users call it.
        address: where it is.
        python: its Python, 3.8 or newer, with numpy and a runtime; `~/` stands for the home folder there.
        runtime: what runs the models there; None is what the command says.
        threads: threads of the sessions; None is what the command says.
        folder: where the workspace of a run is made there; None is `deploykit` in its cache folder, or in that for temporary
            files if there is none.
        accepts_new_host: whether a host key that is not known is taken, and added to the known ones.
        keeps_models: whether models stay in that folder, so that they need not go there again.
        connect_s: seconds in which a connection has to be there.
        reconnect_s: seconds for which a connection that was lost is tried again.
        timeout_s: seconds without any progress after which a run is given up.
        lease_s: seconds after which the device ends a run by itself, and removes what belongs to it, if it hears nothing
            from here.
        hint: what else may be wrong if it cannot be reached: nothing, or a sentence after a blank.
    """

    name: str
    address: Address
    python: str = "python3"
    runtime: str | None = None
    threads: int | None = None
    folder: str | None = None
    accepts_new_host: bool = False
    keeps_models: bool = False
    connect_s: float = 20.0
    reconnect_s: float = 120.0
    timeout_s: float = 600.0
    lease_s: float = 300.0
    hint: str = ""


def parse_address(text: str) -> Address:
    """Read `ssh://user@host:port`, or a name that the SSH configuration knows.

    Raises:
        UsageError: it has another form.
    """
    rest = text.strip()
    if rest.lower().startswith(SCHEME):
        rest = rest[len(SCHEME) :]
    found = FORM.fullmatch(rest)
    port = None if found is None or found["port"] is None else int(found["port"])
    if found is None or (port is not None and not 0 < port < 65536):
        why = "a password has no place in it" if re.match(r"[^@/]*:[^@/]*@", rest) else ""
        why = why or ("its port is none" if found is not None else "that is no address")
        msg = (
            f"cannot measure on '{text}': {why}. Give ssh://user@host, ssh://user@host:port (an IPv6 address in brackets), or "
            "a host of your SSH configuration."
        )
        raise UsageError(msg)
    return Address(found["six"] or found["host"], found["user"], port)
