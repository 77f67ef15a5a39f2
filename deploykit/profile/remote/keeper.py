"""Runs the sampler's jobs on a device, one after the other, and leaves nothing behind: a file that stands alone.

`python keeper.py FOLDER` needs Python 3.8 and nothing else. It hangs on no connection: who gives it work may go and come
back. In the folder lie

* `keeper.json`: how long it waits, see `Keeper`;
* `lease`: written to by who gives work, from time to time. When that has not happened for long, or the folder is gone,
  everything is ended and the folder is removed; SIGTERM does the same;
* `jobs/N.json`: a job for `sampler.py`, carried out as soon as it is there;
* `jobs/N.jsonl`: what the sampler prints. If it ends without having said so, an event is added: `{"event": "error", "kind":
  "stuck", "seconds": S}` if it printed nothing for too long, `"disk"` if it could not write, and `"crash"` with the "signal"
  or exit "code" and the last "text" that it wrote to stderr otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    Process: TypeAlias = subprocess.Popen[bytes]

IDLE_S, BUSY_S = 0.05, 0.25
"""How often it looks around: rarely while something is measured."""

DISK_FULL = 28
"""Exit code of the sampler when its lines could not be written."""


class Keeper:
    """Runs jobs.

    Args:
        folder: the workspace.
        lease_s: seconds without a word after which everything is ended.
        silent_s: seconds without a line of a job after which it is ended.
        owns_parent: whether the folder that it lies in was made for this as well.
    """

    def __init__(
        self, folder: Path, *, lease_s: float, silent_s: float, owns_parent: bool = False
    ) -> None:
        self._folder = folder
        self._owns_parent = owns_parent
        self._jobs = folder / "jobs"
        self._lease_s = lease_s
        self._silent_s = silent_s
        self._lease: object = None
        self._heard = time.monotonic()
        self._process: Process | None = None
        self._name = ""
        self._size = -1
        self._spoke = 0.0
        self.is_ending = False

    def run(self) -> None:
        """Carry out jobs until nobody wants any more."""
        while not self.is_ending and self._is_wanted():
            if self._process is None:
                self._start_next()
            else:
                self._watch(self._process)
            time.sleep(IDLE_S if self._process is None else BUSY_S)

    def end(self) -> None:
        """End what runs, and remove everything."""
        self._kill()
        for _ in range(50):
            shutil.rmtree(str(self._folder), ignore_errors=True)
            if not self._folder.exists():
                break
            time.sleep(0.1)
        token = self._folder.name.rpartition("-")[2]
        # Models that were on their way to those that are kept.
        for part in self._folder.parent.glob("models/*." + token):
            shutil.rmtree(str(part), ignore_errors=True)
        if self._owns_parent:
            # Others may be at work in it, or models be kept there.
            with contextlib.suppress(OSError):
                self._folder.parent.rmdir()

    def _is_wanted(self) -> bool:
        try:
            found = os.stat(str(self._folder / "lease"))  # noqa: PTH116 - the same for all versions
        except OSError:
            return False
        # The clock of who writes to it may differ from this one: what counts is that it changes.
        state = (found.st_mtime_ns, found.st_size)
        if state != self._lease:
            self._lease = state
            self._heard = time.monotonic()
        return time.monotonic() - self._heard < self._lease_s

    def _start_next(self) -> None:
        waiting = sorted(
            (
                path
                for path in self._jobs.glob("*.json")
                if not path.with_suffix(".jsonl").exists()
            ),
            key=lambda path: int(path.stem),
        )
        if not waiting:
            return
        job = waiting[0]
        self._name = job.stem
        self._size = -1
        self._spoke = time.monotonic()
        self._process = _start(self._folder / "sampler.py", job)
        (self._folder / "child").write_text(str(self._process.pid), encoding="ascii")

    def _watch(self, process: Process) -> None:
        """See whether the job has ended, or never will."""
        lines = self._jobs / (self._name + ".jsonl")
        try:
            size = lines.stat().st_size
        except OSError:
            return
        code = process.poll()
        if code is not None:
            self._kill()
            if not _is_complete(lines):
                self._report(lines, code)
            return
        now = time.monotonic()
        if size != self._size:
            self._size = size
            self._spoke = now
        elif now - self._spoke > self._silent_s:
            self._kill()
            self._add(lines, {"kind": "stuck", "seconds": round(now - self._spoke)})

    def _report(self, lines: Path, code: int) -> None:
        if code == DISK_FULL:
            self._add(lines, {"kind": "disk", "text": "its samples could not be written"})
            return
        said = ""
        with contextlib.suppress(OSError):
            said = lines.with_suffix(".err").read_text(encoding="utf-8", errors="replace")
        last = [line for line in said.splitlines() if line.strip()][-1:]
        ended = {"signal": -code} if code < 0 else {"code": code}
        self._add(lines, {"kind": "crash", "text": "".join(last)[:1000], **ended})

    def _add(self, lines: Path, event: dict[str, Any]) -> None:
        # Room for the last word, on a disk that is full as well.
        with contextlib.suppress(OSError):
            (self._folder / "reserve").unlink()
        with contextlib.suppress(OSError), lines.open("ab") as file:
            file.write(b"\n" + json.dumps({"event": "error", **event}).encode() + b"\n")

    def _kill(self) -> None:
        """End the job and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(sampler: Path, job: Path) -> Process:
    """Start a job; what it starts itself is ended with it."""
    lines = job.with_suffix(".jsonl").open("ab")
    errors = job.with_suffix(".err").open("wb")
    with lines, errors:
        return subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, str(sampler), str(job)],
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=errors,
            cwd=str(sampler.parent),
            # What a runtime keeps for itself, and what a job leaves when it is killed, goes with the rest.
            env={
                **os.environ,
                "XDG_CACHE_HOME": str(sampler.parent / "cache"),
                "TMPDIR": _made(sampler.parent / "tmp"),
            },
            start_new_session=True,
        )


def _made(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return str(folder)


def _is_complete(lines: Path) -> bool:
    """Whether the last thing that a job said is how it ended."""
    with lines.open("rb") as file:
        last = b""
        for line in file:
            last = line if line.strip() else last
    try:
        return json.loads(last.decode()).get("event") in {"end", "error"}
    except ValueError:
        return False


def main(arguments: Sequence[str]) -> int:
    """Keep a workspace until it is not wanted any more; the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python keeper.py FOLDER\n")
        return 2
    folder = Path(arguments[0])
    settings = json.loads((folder / "keeper.json").read_text(encoding="utf-8"))
    keeper = Keeper(folder, **settings)

    def end(number: int, frame: object) -> None:
        del number, frame
        keeper.is_ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        keeper.run()
    finally:
        keeper.end()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
