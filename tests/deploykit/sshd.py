"""A device on the loopback: a real sshd on a free port, with keys, a folder and a Python of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

BUILT = Path("build/sshd")
PATIENCE_S = 30.0


def find_sshd():
    """The server and its libraries, or why there is none."""
    unpacked = (BUILT / "usr/sbin/sshd").absolute()
    for path in (shutil.which("sshd"), "/usr/sbin/sshd", "/usr/local/sbin/sshd", unpacked):
        if path and os.access(path, os.X_OK):
            break
    else:
        return None, "there is no sshd: 'make sshd' brings one"
    if os.getuid() == 0:
        try:
            pwd.getpwnam("sshd")
        except KeyError:
            return None, "as root sshd wants a user 'sshd', whom its package makes"
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return str(path), ""


class Device:
    """A device that is reached by SSH.

    Attributes:
        home: the folder in which the user's `.ssh` lies, who is to set HOME to it.
        folder: all that belongs to the device.
        cache: what its runs are made in.
        on: its address, as users write it.
    """

    def __init__(self, folder, home, sshd):
        import asyncssh

        self.folder, self.home = folder, home
        self.cache = folder / "cache"
        self._sshd = sshd
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.on = f"ssh://127.0.0.1:{self.port}"
        (folder / "bin").mkdir(parents=True)
        self.cache.mkdir()
        self.be_python(f'exec "{sys.executable}" "$@"')
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (ssh / "id_ed25519").exists():
            make_key(ssh / "id_ed25519")
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.key.write_private_key(folder / "host_key")
        (folder / "host_key").chmod(0o600)
        self.let_in((ssh / "id_ed25519.pub").read_text())
        with (ssh / "known_hosts").open("a") as known:
            known.write(self.known_line(self.key))
        self._process = None
        self.start()

    def known_line(self, key):
        return f"[127.0.0.1]:{self.port} {key.export_public_key().decode().strip()}\n"

    def let_in(self, public_key):
        (self.folder / "authorized_keys").write_text(public_key)

    def be_python(self, script, **environment):
        """Make `python3` of the device what a shell script says."""
        told = "".join(f"export {name}='{value}'\n" for name, value in environment.items())
        path = self.folder / "bin" / "python3"
        path.write_text(f"#!/bin/sh\n{told}{script}\n")
        path.chmod(0o755)

    def be_runtime(self, text):
        """Let its Python find another ONNX Runtime."""
        package = self.folder / "packages" / "onnxruntime"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(text)
        self.be_python(f'exec "{sys.executable}" "$@"', PYTHONPATH=str(package.parent))

    def start(self):
        config = self.folder / "sshd_config"
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host_key'}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"Subsystem sftp internal-sftp\nSetEnv XDG_CACHE_HOME={self.cache} PATH={path} HOME={self.folder}\n"
        )
        libraries = [str(each.parent) for each in BUILT.absolute().glob("usr/lib/*/*.so*")]
        environment = {**os.environ}
        if libraries:
            environment["LD_LIBRARY_PATH"] = ":".join(dict.fromkeys(libraries))
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the server that was looked for
                [self._sshd, "-D", "-e", "-f", str(config)], stderr=log, env=environment
            )
        wait_until(self._listens)

    def _listens(self):
        assert self._process.poll() is None, (self.folder / "sshd.log").read_text()
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1),
        ):
            return True
        return False

    def stop(self):
        """Take it from the network; what runs on it goes on."""
        if self._process is not None:
            sessions = self._sessions()
            self._process.terminate()
            self._process.wait()
            self._process = None
            kill(sessions)

    def cut(self):
        """Cut all connections; how many there were."""
        return kill(self._sessions())

    def _sessions(self):
        rows = list(processes())
        found, new = set(), {self._process.pid}
        while new:
            new = {
                pid
                for pid, parent, command in rows
                if parent in new and command.startswith(b"sshd: ")
            }
            found |= new
        return found

    def left(self):
        """What lies or runs there that did not before."""
        # Not rglob: the device may be removing what is walked through.
        files = [
            str((Path(at) / name).relative_to(self.cache))
            for at, folders, names in os.walk(self.cache)
            for name in (*folders, *names)
        ]
        mine = os.fsencode(str(self.folder / "cache"))
        running = [command for _, _, command in processes() if mine in command]
        return files + [str(command) for command in running]

    def jobs(self):
        """The lines of all jobs that run there."""
        return sorted(self.cache.glob("deploykit/run-*/jobs/*.jsonl"))


def kill(numbers):
    """Kill processes; how many of them were there."""
    found = 0
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
            found += 1
    return found


def processes():
    """Number, parent and command line of each process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(folder.name), parent, command


def make_key(path, passphrase=None):
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519")
    # In a form that needs no further package to be locked.
    form = "openssh" if passphrase is None else "pkcs8-pem"
    key.write_private_key(path, form, passphrase=passphrase)
    path.chmod(0o600)
    key.write_public_key(path.with_suffix(".pub"))
    return key


def wait_until(holds, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"{holds} did not come true in {patience_s:g} s"
        time.sleep(0.05)


@pytest.fixture
def make_device(tmp_path, monkeypatch):
    """Makes devices; the user's home is a folder of the test."""
    pytest.importorskip(
        "asyncssh", reason="devices are reached with asyncssh: pip install asyncssh"
    )
    sshd, why = find_sshd()
    if sshd is None:
        pytest.skip(why)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    made = []

    def make():
        made.append(Device(tmp_path / f"device{len(made)}", home, sshd))
        return made[-1]

    yield make
    for device in made:
        device.stop()
        kill([pid for pid, _, command in processes() if os.fsencode(device.cache) in command])


@pytest.fixture
def device(make_device):
    return make_device()
