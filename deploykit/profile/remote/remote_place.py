"""Measures models on a device that is reached by SSH.

What runs there is `sampler.py`, the same file that measures here. A run has one folder there, its workspace:

    arrive: a script finds Python and a folder, writes sampler.py and keeper.py, and starts the keeper
    sample: models and inputs go up, once by content -> jobs/N.json -> the keeper runs it -> jobs/N.jsonl is followed
    leave:  a script ends the keeper, and removes the workspace

The keeper hangs on no connection. When that breaks it is made anew and the file of samples is read on where it was left; when
the host stays away, the device ends the run by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.profile import sampler
from deploykit.profile.remote import arrival, failures, keeper
from deploykit.profile.remote.connection import Connection, ConnectionBroken, NoSpace, NotThere
from deploykit.profile.remote.sending import Sender
from deploykit.profile.remote.shipment import beside, pack
from deploykit.runtimes import DEFAULT

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from deploykit.profile import Settings
    from deploykit.profile.device import Device
    from deploykit.profile.place import Share, Watch
    from deploykit.profile.remote.address import Host, Tell
    from deploykit.profile.state.seen import Seen

__all__ = ["RemotePlace"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feeds: TypeAlias = Mapping[str, Array]
Record: TypeAlias = dict[str, Any]

PACKAGES = ("numpy", "onnxruntime", "tensorrt")
"""What is looked for on a device; which of them a job needs depends on the runtime."""

FIRST_LOOK_S, LAST_LOOK_S = 0.1, 1.0
"""How often the samples are fetched: rarely once it goes on for long, because that takes time from what is measured."""

QUIET_S = 15.0
"""After so long without a line it is asked whether the keeper is still there."""

LATE_S = 60.0
"""What is waited for beyond the time after which the keeper should have given up itself."""


def _silent(stage: str, done: float | None = None) -> None:
    del stage, done


class RemotePlace:
    """A device, as a context manager: `Place`.

    Args:
        host: the device, and how it is used.
        tell: told what is going on: connecting, uploading.

    Attributes:
        notes: what a user should know afterwards, in words.
    """

    def __init__(self, host: Host, *, tell: Tell | None = None) -> None:
        self.host = host
        self.notes: list[str] = []
        self._tell = tell or _silent
        self._token = secrets.token_hex(8)
        self._link: Connection | None = None
        self._there: Record = {}
        self._is_begun = False
        self._jobs = 0
        self._sender: Sender | None = None

    @property
    def name(self) -> str:
        """What users call it."""
        return self.host.name

    @property
    def is_local(self) -> bool:
        """It is another machine."""
        return False

    # -- coming and going --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Connect, and make a workspace there.

        Raises:
            RuntimeUnavailable: the device cannot be reached, or lacks what is needed.
        """
        self._tell(f"connecting to {self.name}", None)
        self._link = Connection(self.host, self._tell)
        try:
            self._link.open()
            self._arrive()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what runs there, and remove the workspace."""
        self._leave()

    def _arrive(self) -> None:
        link, host = self._connection, self.host
        files = {
            f"{module.__name__.rpartition('.')[2]}.py": Path(str(module.__file__)).read_text(
                encoding="utf-8"
            )
            for module in (sampler, keeper)
        }
        script = arrival.arrive(
            token=self._token,
            base=host.folder,
            files=files,
            packages=PACKAGES,
            lease_s=host.lease_s,
            silent_s=host.timeout_s,
        )
        # What it makes may be there although its answer is not.
        self._is_begun = True
        done = link.run(f"{_in_shell(host.python)} -", script=script)
        found = arrival.read_answer(done.output)
        self._is_begun = found is not None and "problem" not in found
        if found is None:
            raise failures.no_python(host, done)
        if "problem" in found:
            raise failures.no_workspace(host, found)
        self._there = found
        self._sender = Sender(
            host,
            link,
            folder=found["folder"],
            store=str(found["store"]),
            token=self._token,
            tell=self._tell,
        )
        link.keep_writing(f"{found['folder']}/lease", min(15.0, host.lease_s / 5))

    def _leave(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        try:
            if self._is_begun:
                self._clean(link)
        finally:
            self.notes += link.notes
            link.close()
            self._there, self._is_begun = {}, False
            self._sender = None

    def _clean(self, link: Connection) -> None:
        """End what runs there; a device that cannot be reached does it by itself."""
        script = arrival.leave(token=self._token, base=self.host.folder)
        why = ""
        for wait_s in (0.5, 2.0, 0.0):
            try:
                done = link.run(f"{_in_shell(self.host.python)} -", script=script)
            except RuntimeUnavailable as error:
                why = str(error)
                if not isinstance(error, ConnectionBroken):
                    # A Python there that did not answer would only be waited for again.
                    break
                time.sleep(wait_s)
                continue
            found = arrival.read_answer(done.output)
            left = [] if found is None else found["left"]
            if found is not None and not left:
                return
            why = f"'{left[0]}' could not be removed." if left else done.errors.strip()
            break
        folder = self._there.get("folder", self.host.folder or "~/.cache/deploykit")
        self.notes.append(
            f"{self.name} could not be cleaned up: {why} What is in '{folder}' there is removed by the device itself in "
            f"{self.host.lease_s:g} s"
        )

    @property
    def _connection(self) -> Connection:
        if self._link is None:
            msg = f"{self.name} is not connected: enter the place first"
            raise RuntimeError(msg)
        return self._link

    @property
    def _outbox(self) -> Sender:
        if self._sender is None:
            msg = f"{self.name} is not connected: enter the place first"
            raise RuntimeError(msg)
        return self._sender

    # -- what a place does -------------------------------------------------------------------------

    def describe(self) -> Device:
        """The device as it is now: `Place.describe`."""
        from deploykit.profile import device
        from deploykit.profile.state.seen import FILES, Seen

        return device.describe(Seen.of(self.run({"look": {"files": FILES}})))

    def look(self) -> Seen:
        """What the device says of itself now: `Place.look`."""
        from deploykit.profile.state.seen import COMMANDS, FILES, Seen

        return Seen.of(self.run({"look": {"files": FILES, "commands": COMMANDS}}))

    def sample(
        self,
        models: Sequence[str | Path],
        feeds: Feeds,
        *,
        runtime: str = DEFAULT,
        threads: int | None = 1,
        settings: Settings,
        progress: Share | None = None,
        watch: Watch | None = None,
    ) -> Record:
        """Time models against each other there: `Place.sample`."""
        job: Record = {**dataclasses.asdict(settings), "threads": threads}
        if watch is not None:
            job["watch"] = dict(watch)
        return self.run(job, models, feeds, runtime=runtime, progress=progress)

    def memory_peak(
        self, model: str | Path, feeds: Feeds, *, threads: int | None = 1
    ) -> int | None:
        """The most memory that a model takes there: `Place.memory_peak`."""
        found = self.run({"threads": threads, "memory": True}, [model], feeds)
        if found["peak_bytes"] is None or found["before_bytes"] is None:
            return None
        return int(found["peak_bytes"]) - int(found["before_bytes"])

    def trace(
        self,
        path: Path,
        source: bytes,
        chains: Sequence[bytes],
        feeds: Feeds,
        *,
        threads: int | None,
        duration_s: float,
        warmup_s: float,
        most_runs: int,
    ) -> Record:
        """Run a model there with the profiler and without: `Place.trace`."""
        job = {
            "threads": threads,
            "trace": {"duration_s": duration_s, "warmup_s": warmup_s, "most_runs": most_runs},
        }
        with tempfile.TemporaryDirectory(prefix="deploykit-trace-") as folder:
            tagged = Path(folder) / path.name
            tagged.write_bytes(source)
            for name, file in pack(path).files[1:]:
                beside(file, Path(folder) / name)
            files = [tagged]
            for number, chain in enumerate(chains):
                files.append(Path(folder) / f"chain{number}" / "chain.onnx")
                files[-1].parent.mkdir()
                files[-1].write_bytes(chain)
            try:
                return self.run(job, files, feeds)
            except ModelError as error:
                # Users know the model by its own name.
                raise ModelError(str(error).replace(str(tagged), str(path))) from error

    def run(
        self,
        job: Mapping[str, Any],
        models: Sequence[str | Path] = (),
        feeds: Feeds | None = None,
        *,
        runtime: str = DEFAULT,
        progress: Share | None = None,
    ) -> Record:
        """Run a job of the sampler there.

        Args:
            job: what to do, without "models" and "inputs".
            models: files of the models; none for a job that is about the machine.
            feeds: an array for each input, by name.
            runtime: what runs the models.
            progress: called with the share of the work that is done, 0 to 1.

        Returns:
            what the sampler says at the end.

        Raises:
            ModelError: a model does not run there on these inputs.
            RuntimeUnavailable: the device cannot be reached, lacks what is needed, or got stuck.
        """
        try:
            return self._run(
                dict(job), [Path(model) for model in models], feeds, runtime, progress
            )
        except NotThere as error:
            raise failures.gone(self.host) from error

    def _run(
        self,
        job: Record,
        paths: Sequence[Path],
        feeds: Feeds | None,
        runtime: str,
        progress: Share | None,
    ) -> Record:
        if paths:
            self._check_packages(runtime)
            packed = [pack(path) for path in paths]
            job["models"] = self._outbox.models(paths, packed)
            job["inputs"] = self._outbox.inputs(feeds or {})
            if runtime != DEFAULT:
                job["runtime"] = runtime
        number = self._jobs
        self._jobs += 1
        place = f"{self._there['folder']}/jobs/{number}.json"
        text = json.dumps(job).encode()
        try:
            self._connection.send(text, place)
        except NoSpace as error:
            raise failures.no_space(
                self.host, "the job", len(text), self._outbox.free_bytes(), str(error)
            ) from error
        return self._follow(f"{place}l", paths, progress)

    def _check_packages(self, runtime: str) -> None:
        """Refuse to send anything where nothing could run it."""
        needed = ("numpy", *((runtime,) if runtime in PACKAGES else ()))
        missing = [name for name in needed if not self._there["present"].get(name)]
        if missing:
            raise failures.no_package(self.host, missing, self._there["version"])

    # -- following ---------------------------------------------------------------------------------

    def _follow(self, place: str, models: Sequence[Path], progress: Share | None) -> Record:
        """Read what a job says while it runs, until it has said how it ended."""
        link = self._connection
        offset, rest = 0, b""
        step: Record = {}
        wait_s = FIRST_LOOK_S
        heard = asked = time.monotonic()
        while True:
            try:
                new = link.read(place, offset)
            except NotThere:
                new = b""
                if "lease" not in link.sizes(str(self._there["folder"])):
                    raise failures.gone(self.host) from None
            now = time.monotonic()
            if new:
                heard = asked = now
                offset += len(new)
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                event = _event(line)
                if event.get("event") == "end":
                    if progress is not None:
                        progress(1.0)
                    return {key: value for key, value in event.items() if key != "event"}
                if event.get("event") == "error":
                    free = self._outbox.free_bytes() if event.get("kind") == "disk" else None
                    raise failures.failed(self.host, event, step, models, free)
                if event.get("event") == "round" and progress is not None:
                    progress(float(event["done"]))
                step = event or step
            if now - heard > self.host.timeout_s + LATE_S:
                stuck = {"kind": "stuck", "seconds": round(now - heard)}
                raise failures.failed(self.host, stuck, step, models, None)
            if now - asked > QUIET_S:
                asked = now
                self._check_keeper()
            time.sleep(wait_s)
            wait_s = min(1.3 * wait_s, LAST_LOOK_S)

    def _check_keeper(self) -> None:
        """Find out whether the device was started anew, or its processes were ended.

        Raises:
            RuntimeUnavailable: they were.
        """
        with contextlib.suppress(ConnectionBroken):
            done = self._connection.run(f"kill -0 {int(self._there['pid'])}")
            if done.code != 0:
                raise failures.gone(self.host)


def _event(line: bytes) -> Record:
    """An event; nothing where a job was ended in the middle of a line."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_shell(python: str) -> str:
    """The path of a program for a shell; `~/` stays what it is."""
    if python.startswith("~/"):
        return f'"$HOME"/{shlex.quote(python[2:])}'
    return shlex.quote(python)
