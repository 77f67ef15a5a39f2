"""A connection by SSH, as plain functions: run a command, send a file, read on in one, and connect again when it breaks.

What the user's SSH configuration, agent, keys and known hosts say is heeded. Nothing is ever asked: a host that is not known,
or that wants a password, is an error that says what to do. The work is done by asyncssh, on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from deploykit.errors import RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from types import ModuleType

    import asyncssh

    from deploykit.profile.remote.address import Host, Tell

__all__ = ["Completed", "Connection", "ConnectionBroken", "NoSpace", "NotThere"]

Result = TypeVar("Result")
Bytes: TypeAlias = Callable[[int], None]
"""Told how many bytes are done."""

ALIVE_S = 10
"""A connection on which nothing comes back for three times as long is broken."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
"""How long is waited before it is tried again: twice as long every time."""

BLOCK = 1 << 18


class ConnectionBroken(RuntimeUnavailable):
    """The connection is not there any more; it may be tried again."""


class NotThere(RuntimeUnavailable):
    """A file or folder on the device is not there."""


class NoSpace(RuntimeUnavailable):
    """The device did not take a file."""


@dataclasses.dataclass(frozen=True)
class Completed:
    """How a command ended: its exit code, and what it wrote."""

    code: int
    output: str
    errors: str


class Connection:
    """A connection to a device, which is made anew when it breaks.

    Args:
        host: the device, and how it is used.
        tell: told what is going on.

    Attributes:
        notes: what a user should know afterwards, in words.
    """

    def __init__(self, host: Host, tell: Tell) -> None:
        self.notes: list[str] = []
        self._host = host
        self._tell = tell
        self._ssh = _asyncssh()
        _quiet_asyncio()
        self._live: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient | None = None
        self._beat: asyncio.Task[None] | None = None
        self._refusal = ""
        self._loop = asyncio.new_event_loop()
        self._connecting = asyncio.Lock()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"ssh {host.name}", daemon=True
        )
        self._thread.start()

    # -- what users of it call ---------------------------------------------------------------------

    def open(self) -> None:
        """Connect.

        Raises:
            RuntimeUnavailable: the device cannot be reached, is not known, or lets nobody in.
            UsageError: the user's SSH configuration cannot be read.
        """
        self._wait(self._ready())

    def run(self, command: str, *, script: str = "", timeout_s: float = 60.0) -> Completed:
        """Run a command line in the shell there, with a text on its standard input.

        It is not tried again when the connection breaks.

        Raises:
            RuntimeUnavailable: it took too long, or the device cannot be reached.
        """
        return self._wait(self._run(command, script, timeout_s))

    def send(self, source: Path | bytes, target: str, progress: Bytes | None = None) -> None:
        """Write a file there, whole or not at all.

        Raises:
            NoSpace: it was not taken.
            RuntimeUnavailable: the device cannot be reached.
        """
        self._insist(lambda: self._send(source, target, progress))

    def make_folder(self, path: str) -> None:
        """Make a folder, and those that it lies in."""
        self._insist(lambda: self._make_folder(path))

    def rename(self, old: str, new: str) -> None:
        """Give a file or folder another name; nothing may lie there."""
        self._insist(lambda: self._rename(old, new))

    def read(self, path: str, offset: int) -> bytes:
        """What a file holds from there on: nothing if it is not longer.

        Raises:
            NotThere: there is no such file.
            RuntimeUnavailable: the device cannot be reached.
        """
        return self._insist(lambda: self._read(path, offset))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file in a folder, by name; empty if there is no such folder."""
        return self._insist(lambda: self._sizes(folder))

    def remove_tree(self, path: str) -> None:
        """Remove a folder and all in it."""
        self._insist(lambda: self._remove_tree(path))

    def free_bytes(self, path: str) -> int | None:
        """Bytes that may still be written to the disk that a folder lies on; None if the device does not tell."""
        return self._insist(lambda: self._free_bytes(path))

    def keep_writing(self, path: str, every_s: float) -> None:
        """From now on, write a sign of life to a file now and then, over any connection there is."""

        async def start() -> None:
            await self._write_sign(path, 0)
            self._beat = asyncio.ensure_future(self._beat_on(path, every_s))

        self._wait(start())

    def close(self) -> None:
        """Hang up."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeUnavailable, TimeoutError):
            asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()

    # -- from this thread to the other one ---------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(self._translated(work), self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C arrives here, and the other thread does not hear it.
            future.cancel()
            raise

    def _insist(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Do something that may be done twice, over a new connection if the old one breaks.

        Raises:
            RuntimeUnavailable: the device could not be reached any more.
        """
        began = None
        wait_s = FIRST_WAIT_S
        while True:
            try:
                if self._live is not None and self._live.is_closed():
                    self._tell(
                        f"the connection to {self._host.name} broke; connecting again", None
                    )
                self._wait(self._ready())
                return self._wait(make())
            except ConnectionBroken as error:
                now = time.monotonic()
                began = began or now
                if now - began > self._host.reconnect_s:
                    msg = (
                        f"the connection to {self._host.name} broke and could not be made again in {now - began:.0f} s: {error} "
                        f"What ran there ends by itself and removes what it left after {self._host.lease_s:g} s."
                    )
                    raise RuntimeUnavailable(msg) from error
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _translated(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do some work; what asyncssh says of a broken connection becomes `ConnectionBroken`."""
        ssh = self._ssh
        try:
            return await work
        except ssh.SFTPNoSuchFile as error:
            raise NotThere(f"{error.reason}") from error
        except (
            ssh.ConnectionLost,
            ssh.SFTPConnectionLost,
            ssh.SFTPNoConnection,
            ssh.ChannelOpenError,
            ssh.DisconnectError,
            ConnectionError,
            BrokenPipeError,
        ) as error:
            # The channel for files may have broken by itself: a new connection has one for sure.
            self._sftp = None
            if self._live is not None:
                self._live.abort()
            raise ConnectionBroken(f"{_reason(error)}.") from error
        except ssh.SFTPError as error:
            msg = f"{self._host.name} does not do what was asked for by SFTP: {_reason(error)}."
            raise RuntimeUnavailable(msg) from error

    # -- on the other thread -----------------------------------------------------------------------

    async def _ready(self) -> asyncssh.SSHClientConnection:
        """The connection, made anew if there is none."""
        async with self._connecting:
            live = self._live
            if live is None or live.is_closed():
                self._sftp = None
                self._live = live = await self._connect()
        return live

    async def _connect(self) -> asyncssh.SSHClientConnection:
        ssh, host = self._ssh, self._host
        address = host.address
        name = host.name
        self._refusal = ""
        given: dict[str, Any] = {"host": address.host}
        if address.port is not None:
            given["port"] = address.port
        if address.user is not None:
            given["username"] = address.user
        try:
            known, files = _known_hosts(ssh, given)
            live: asyncssh.SSHClientConnection = await ssh.connect(
                **given,
                known_hosts=known,
                client_factory=lambda: _Client(self, known, files),
                # What would ask somebody.
                password_auth=False,
                kbdint_auth=False,
                connect_timeout=host.connect_s,
                login_timeout=host.connect_s,
                keepalive_interval=ALIVE_S,
                keepalive_count_max=3,
            )
        except ssh.HostKeyNotVerifiable as error:
            raise RuntimeUnavailable(
                self._refusal or f"{name} is not trusted: {_reason(error)}."
            ) from error
        except ssh.PermissionDenied as error:
            msg = (
                f"{name} does not let us in: {_reason(error)}. It has to know one of your SSH keys: nobody is asked for a "
                f"password here. Make '{address.command}' work without one (ssh-copy-id; ssh-add for a key with a passphrase)."
            )
            raise RuntimeUnavailable(msg) from error
        except (ssh.KeyImportError, ssh.KeyEncryptionError) as error:
            msg = (
                f"a key for {name} cannot be used: {_reason(error)}. Add it to your agent with ssh-add, or name another one with "
                "IdentityFile in ~/.ssh/config."
            )
            raise RuntimeUnavailable(msg) from error
        except ValueError as error:
            # So asyncssh calls a pair of key files of which one is not the other's.
            if "key mismatch" not in str(error):
                raise
            msg = (
                f"a key for {name} cannot be used: its public key, in the .pub file beside it, is that of another one "
                f"({_reason(error)}). Remove that file, or make it anew with 'ssh-keygen -y -f KEY > KEY.pub'."
            )
            raise RuntimeUnavailable(msg) from error
        except ssh.ConfigParseError as error:
            msg = f"your SSH configuration cannot be read: {_reason(error)}. Correct ~/.ssh/config."
            raise UsageError(msg) from error
        except ssh.KeyExchangeFailed as error:
            msg = (
                f"{name} and this machine have nothing in common to connect by: {_reason(error)}. If its host key was changed, "
                f"ask who looks after it, and remove the old one with 'ssh-keygen -R {_known_name(address.host, address.port)}'."
            )
            raise RuntimeUnavailable(msg) from error
        except (OSError, ssh.Error, TimeoutError) as error:
            msg = (
                f"{name} cannot be reached: {_reason(error)}. Is it switched on and in the network, and does '{address.command}' "
                f"get there?{host.hint}"
            )
            raise ConnectionBroken(msg) from error
        return live

    def refuse(self, text: str) -> None:
        """Keep why the host is not trusted."""
        self._refusal = text

    @property
    def host(self) -> Host:
        """The device."""
        return self._host

    async def _files(self) -> asyncssh.SFTPClient:
        live = await self._ready()
        if self._sftp is None:
            try:
                self._sftp = await live.start_sftp_client()
            except self._ssh.ChannelOpenError:
                raise
            except self._ssh.SFTPError:
                raise
            except self._ssh.Error as error:
                msg = (
                    f"{self._host.name} has no SFTP, by which models go there: {_reason(error)}. Install its SFTP server "
                    "(openssh-sftp-server)."
                )
                raise RuntimeUnavailable(msg) from error
        return self._sftp

    async def _run(self, command: str, script: str, timeout_s: float) -> Completed:
        live = await self._ready()
        try:
            done = await asyncio.wait_for(live.run(command, input=script), timeout_s)
        except TimeoutError as error:
            msg = f"{self._host.name} did not answer within {timeout_s:g} s: it may be very busy. Try again."
            raise RuntimeUnavailable(msg) from error
        if done.returncode is None:
            raise ConnectionBroken("it broke while a command was running.")
        return Completed(done.returncode, str(done.stdout or ""), str(done.stderr or ""))

    async def _send(
        self, source: Path | bytes, target: str, progress: Bytes | None = None
    ) -> None:
        sftp = await self._files()
        part = target + ".part"
        try:
            if isinstance(source, bytes):
                async with sftp.open(part, "wb") as file:
                    await file.write(source)
            else:
                await sftp.put(
                    str(source),
                    part,
                    progress_handler=None
                    if progress is None
                    else lambda _from, _to, done, _all: progress(done),
                )
            await self._rename(part, target)
        except (
            self._ssh.SFTPConnectionLost,
            self._ssh.SFTPNoConnection,
            self._ssh.SFTPNoSuchFile,
        ):
            raise
        except self._ssh.SFTPError as error:
            with contextlib.suppress(self._ssh.Error, OSError):
                await sftp.remove(part)
            msg = f"{self._host.name} did not take '{target}': {_reason(error)}."
            raise NoSpace(msg) from error

    async def _rename(self, old: str, new: str) -> None:
        sftp = await self._files()
        try:
            await sftp.posix_rename(old, new)
        except self._ssh.SFTPOpUnsupported:
            await sftp.rename(old, new)
        except self._ssh.SFTPNoSuchFile:
            # The answer to the first try may have been lost with the connection.
            if not await sftp.exists(new):
                raise

    async def _make_folder(self, path: str) -> None:
        await (await self._files()).makedirs(path, exist_ok=True)

    async def _read(self, path: str, offset: int) -> bytes:
        sftp = await self._files()
        async with sftp.open(path, "rb") as file:
            found = b""
            while True:
                part = bytes(await file.read(BLOCK, offset + len(found)))  # type: ignore[arg-type]  # opened for bytes
                found += part
                if len(part) < BLOCK:
                    return found

    async def _sizes(self, folder: str) -> dict[str, int]:
        sftp = await self._files()
        try:
            rows = await sftp.readdir(folder)
        except self._ssh.SFTPNoSuchFile:
            return {}
        return {
            str(row.filename): row.attrs.size or 0
            for row in rows
            if str(row.filename) not in {".", ".."}
        }

    async def _remove_tree(self, path: str) -> None:
        with contextlib.suppress(self._ssh.SFTPNoSuchFile):
            await (await self._files()).rmtree(path, ignore_errors=True)

    async def _free_bytes(self, path: str) -> int | None:
        sftp = await self._files()
        try:
            found = await sftp.statvfs(path)
        except self._ssh.SFTPOpUnsupported:
            return None
        return int(found.bavail * (found.frsize or found.bsize))

    async def _beat_on(self, path: str, every_s: float) -> None:
        number = 0
        while True:
            await asyncio.sleep(every_s)
            number += 1
            # What is wrong is told by whoever needs the connection next.
            with contextlib.suppress(self._ssh.Error, OSError, RuntimeUnavailable, UsageError):
                await self._write_sign(path, number)

    async def _write_sign(self, path: str, number: int) -> None:
        sftp = await self._files()
        # Not made anew: where the folder is gone, nobody waits for it.
        async with sftp.open(path, "r+b") as file:
            await file.write(f"{number}\n".encode(), 0)

    async def _hang_up(self) -> None:
        others = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        if self._live is not None:
            self._live.close()
            with contextlib.suppress(self._ssh.Error, OSError, TimeoutError):
                await asyncio.wait_for(self._live.wait_closed(), 3.0)
        left = [each for each in others if not each.done()]
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _Client(connection: Connection, known: Any, files: list[Path]) -> asyncssh.SSHClient:  # noqa: N802, ANN401 - a class that needs asyncssh, and a type of its
    ssh = _asyncssh()

    class Client(ssh.SSHClient):  # type: ignore[misc, name-defined]  # asyncssh is imported where it is needed
        """Decides about host keys that are not among the known ones."""

        def validate_host_public_key(
            self,
            host: str,
            addr: str,
            port: int,
            key: Any,  # noqa: ANN401 - a type of asyncssh
        ) -> bool:
            device = connection.host
            print_ = key.get_fingerprint()
            kind = key.get_algorithm()
            others = ssh.match_known_hosts(known, host, addr, port if port != 22 else None)[0]
            where = _known_name(host, port)
            if others:
                connection.refuse(
                    f"the host key of {device.name} has changed: it shows {kind} {print_}, which is none of the "
                    f"{len(others)} known for {where}. Somebody may be in between. If the device was set up anew, ask who "
                    f"looks after it for the fingerprint, and remove the old key with 'ssh-keygen -R {where}'."
                )
                return False
            if not device.accepts_new_host:
                connection.refuse(
                    f"{device.name} is not known yet: it shows the host key {kind} {print_}. If that is its fingerprint, connect "
                    f"once with '{device.address.command}' and confirm, or give --accept-new-host."
                )
                return False
            _remember(files[0], where, key.export_public_key("openssh").decode())
            connection.notes.append(
                f"the host key of {device.name} was not known; {kind} {print_} was added to '{files[0]}'"
            )
            return True

    return Client()


def _quiet_asyncio() -> None:
    """Keep asyncio from writing to stderr, where no logging is set up, of what `Connection` tells in words of its own."""
    log = logging.getLogger("asyncio")
    if not any(isinstance(each, logging.NullHandler) for each in log.handlers):
        log.addHandler(logging.NullHandler())


def _known_name(host: str, port: int | None) -> str:
    return host if port in {None, 22} else f"[{host}]:{port}"


def _known_hosts(ssh: ModuleType, given: dict[str, Any]) -> tuple[Any, list[Path]]:
    """The keys that are trusted, and the files that new ones belong in, as the user's configuration names them."""
    options = ssh.SSHClientConnectionOptions(**given)
    # asyncssh takes no file at all for "trust everybody", which is not meant by it here.
    named = [Path(os.fspath(each)).expanduser() for each in options.known_hosts or ()]
    folder = Path("~/.ssh").expanduser()
    files = named or [
        folder / "known_hosts",
        folder / "known_hosts2",
        Path("/etc/ssh/ssh_known_hosts"),
    ]
    present = [str(file) for file in files if file.is_file() and os.access(file, os.R_OK)]
    # An empty file as such would be taken for the default one.
    return ssh.read_known_hosts(present) if present else ssh.import_known_hosts(""), files


def _remember(file: Path, name: str, key: str) -> None:
    """Add a host key to the known ones."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kind, text = key.split()[:2]
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    gap = "" if not before or before.endswith("\n") else "\n"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as lines:
        lines.write(f"{gap}{name} {kind} {text}\n")


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words."""
    number = getattr(error, "errno", None)
    if isinstance(error, ConnectionError) and number is not None:
        # What asyncio says of it is its own call.
        return os.strerror(number)
    told = str(getattr(error, "reason", "") or getattr(error, "strerror", "") or error)
    return told.strip().rstrip(".") or type(error).__name__


def _asyncssh() -> ModuleType:
    """Import asyncssh.

    Raises:
        RuntimeUnavailable: it is not installed.
    """
    import importlib
    import warnings

    try:
        with warnings.catch_warnings():
            # Its ciphers of old are none of our concern.
            warnings.simplefilter("ignore")
            return importlib.import_module("asyncssh")
    except ImportError as error:
        msg = (
            f"devices are reached by SSH with asyncssh, which cannot be imported: {error}. Install it with "
            "'pip install asyncssh', or from a checkout with \"pip install '.[ssh]'\"."
        )
        raise RuntimeUnavailable(msg) from error
