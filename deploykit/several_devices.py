"""Profiles models on several devices at the same time: one process for each, one report of all.

A process each, because what is measured on this machine must not share Python's lock with whoever talks to a device, and
because one that is ended ends by itself. What goes wrong on one device is told of that device, and spoils nothing of the
others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from deploykit.errors import DeploykitError
from deploykit.report.devices_records import DeviceProfile, DevicesReport

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from deploykit.profile.remote.named_places import NamedPlace
    from deploykit.profiling import Request
    from deploykit.report.profile_records import ProfileReport

__all__ = ["Progress", "profile_on"]

CLEANING_S: Final = 60.0
"""How long a process that is told to end may take to leave nothing behind on its device."""

BUG: Final = 70


class Progress(Protocol):
    """Told what is going on where, and how far it is."""

    def __call__(self, device: str, stage: str, done: float | None = None) -> None:
        """A stage begins on a device, or is `done` (0 to 1) of the way."""


def silent(device: str, stage: str, done: float | None = None) -> None:
    """Progress that nobody watches."""
    del device, stage, done


def profile_on(
    request: Request,
    places: Sequence[NamedPlace],
    *,
    given: Collection[str] = (),
    progress: Progress = silent,
) -> DevicesReport:
    """Measure the same models on several devices.

    Args:
        request: what to measure, and how; its place is not looked at.
        places: the devices, each under a name of its own.
        given: which of "runtime" and "threads" hold for all devices, whatever `devices.toml` says of one.
        progress: told what is going on.
    """
    from deploykit.profiling import versions

    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, Worker] = {}
    found: dict[str, DeviceProfile] = {}
    try:
        for place in places:
            mine, theirs = context.Pipe(duplex=False)
            wanted = dataclasses.replace(request, **place.settings(given))
            process = context.Process(target=_work, args=(wanted, place, theirs))
            process.start()
            theirs.close()
            running[mine] = Worker(place.name, process)
        while running:
            for ready in multiprocessing.connection.wait(list(running)):
                # What `wait` returns are those that it was given.
                pipe = next(each for each in running if each is ready)
                outcome = _hear(pipe, running[pipe], progress)
                if outcome is not None:
                    found[outcome.name] = outcome
                    running.pop(pipe).process.join()
                    pipe.close()
    finally:
        _end([worker.process for worker in running.values()])
    return DevicesReport(
        command=request.command,
        versions=versions(),
        devices=tuple(found[place.name] for place in places),
        elapsed_s=time.perf_counter() - began,
    )


@dataclasses.dataclass(frozen=True)
class Worker:
    """The process that measures on a device."""

    device: str
    process: SpawnProcess


def _hear(pipe: Connection, worker: Worker, progress: Progress) -> DeviceProfile | None:
    """Take the next thing that a process has to say; what came of its device if that was the last."""
    try:
        said: Mapping[str, Any] = pipe.recv()
    except EOFError:
        worker.process.join()
        text = (
            f"the process that measured on {worker.device} ended with {worker.process.exitcode} before it had a result. "
            "Measure on that device alone, with -vv."
        )
        return DeviceProfile(worker.device, None, text, BUG)
    if "stage" in said:
        progress(worker.device, said["stage"], said["done"])
        return None
    profile: ProfileReport | None = said["profile"]
    return DeviceProfile(worker.device, profile, said["error"], said["exit_code"])


def _end(processes: Sequence[SpawnProcess]) -> None:
    """Tell processes to end, and wait until they have cleaned up."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGINT)
    until = time.monotonic() + CLEANING_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(request: Request, named: NamedPlace, pipe: Connection) -> None:
    """Measure on one device, and say what came of it; what a process of `profile_on` does."""
    from deploykit import profiling

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)

    def tell(stage: str, done: float | None = None) -> None:
        pipe.send({"stage": stage, "done": done})

    error, code, profile = None, 0, None
    try:
        with named.open(tell) as place:
            profile = profiling.profile(
                dataclasses.replace(request, place=place), progress=tell
            )
    except DeploykitError as told:
        error, code = str(told), told.exit_code
    except KeyboardInterrupt:
        # Who asked for it knows, and waits for this process to end.
        return
    except Exception as bug:  # noqa: BLE001 - a bug of ours on one device is told of that device
        error, code = f"{type(bug).__name__}: {bug}. This is a bug in deploykit.", BUG
    with contextlib.suppress(BrokenPipeError):
        pipe.send({"profile": profile, "error": error, "exit_code": code})


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C reaches the whole group, and whoever started this process hands it on: the second one must not stop the cleaning."""
    del number, frame
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
