"""Runs the program in a child process, so that a crash of a library ends in a message and an exit code.

ONNX Runtime and onnx are written in C++: a model that is broken in a way they did not think of ends the process there
and then. The parent imports nothing and waits. Ctrl-C reaches both, and is the child's business; if the parent is
killed, Linux kills the child with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from deploykit.errors import ModelError

__all__ = ["supervise"]

PR_SET_PDEATHSIG = 1


def supervise(work: Callable[[], object]) -> None:
    """Run `work` in a child process and end as it ends.

    Args:
        work: ends by SystemExit, or returns.

    Raises:
        SystemExit: in the parent, with the child's exit code; that of ModelError if a signal ended it.
    """
    if not hasattr(os, "fork"):
        work()
        return
    at_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, at_interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        _die_with(parent)
        work()
        return

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        sys.stderr.write(f"Error: {_crash_text(-code)}\n")
        code = ModelError.exit_code
    raise SystemExit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Being asked to end is told and cleaned up after like Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt


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
