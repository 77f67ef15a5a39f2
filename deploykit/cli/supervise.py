"""Runs the program in a child process, so that a crash of a library ends in a message and an exit code.

ONNX Runtime and onnx are written in C++: a model that is broken in a way they did not think of ends the process there
and then. The parent imports nothing, waits, and hands on what asks it to end: Ctrl-C reaches both, `kill` the parent alone.
If the parent is killed, Linux kills the child with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from deploykit.errors import ModelError

__all__ = ["supervise"]

PR_SET_PDEATHSIG = 1

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""What asks a program to end."""

ENDED = b"."
"""What the child says when it is at its end."""

ECHO_S = 3.0
"""Seconds in which a second request is taken for the first one again, which came here and was handed on as well."""


def supervise(work: Callable[[], object]) -> None:
    """Run `work` in a child process and end as it ends.

    Being asked to end (Ctrl-C, SIGTERM, SIGHUP) is a KeyboardInterrupt in `work`, once. What was ignored when the program
    was started, as `nohup` and a shell's background jobs do, stays ignored.

    Args:
        work: ends by SystemExit, or returns.

    Raises:
        SystemExit: in the parent, with the child's exit code; that of ModelError if a signal ended it, or a library that ended
            the process past us.
    """
    if not hasattr(os, "fork"):
        work()
        return
    heeded = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    parent = os.getpid()
    ended, ending = os.pipe()
    os.set_blocking(ended, False)
    # A request between here and the handlers waits, and is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    child = os.fork()
    if child == 0:
        _handle(heeded, _interrupt_once())
        _die_with(parent)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
            work()
        finally:
            os.write(ending, ENDED)
            # It is ending: an exception in what Python still does would only be a traceback after the last line.
            _handle(heeded, signal.SIG_IGN)
        return

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    _handle(heeded, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)
    _, status = os.waitpid(child, 0)
    _handle(heeded, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        sys.stderr.write(f"Error: {_crash_text(-code)}\n")
        code = ModelError.exit_code
    elif not _has_ended(ended):
        sys.stderr.write(f"Error: {_gone_text(code)}\n")
        code = ModelError.exit_code
    raise SystemExit(code)


def _has_ended(ended: int) -> bool:
    """Whether the child came to its end, and was not left in the middle by some `_exit`."""
    try:
        return os.read(ended, len(ENDED)) == ENDED
    except BlockingIOError:
        return False


def _handle(
    numbers: list[signal.Signals],
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> None:
    for number in numbers:
        signal.signal(number, handler)


def _interrupt_once() -> Callable[[int, FrameType | None], None]:
    """A handler that tells a request to end as Ctrl-C is told, so that it is cleaned up after.

    One that reaches a whole group of processes comes twice, the second time while that is being done.
    """
    told_s = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        nonlocal told_s
        if time.monotonic() - told_s > ECHO_S:
            told_s = time.monotonic()
            raise KeyboardInterrupt

    return interrupt


def _die_with(parent: int) -> None:
    """Let the system kill this process when `parent` ends, where it can."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _crash_text(number: int) -> str:
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return (
            f"the run was killed ({name}), most likely because memory ran out. Nothing was written. "
            "Run it on a larger machine, or end other programs first."
        )
    return (
        f"a library crashed ({name}) while it read or ran the model, most likely because the model is broken in a way that "
        "it does not expect. Nothing was written. Check the model with onnx.checker, or export it again."
    )


def _gone_text(code: int) -> str:
    return (
        f"a library, or code that was called, ended the process with exit code {code} before there was a result. Nothing was "
        "written. Look for 'exit' in what the model and the metric run."
    )
