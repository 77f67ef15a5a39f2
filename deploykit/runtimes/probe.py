"""Finds out what a runtime of a GPU can do here without ever taking this process along when it crashes.

Libraries of this kind end a process where a driver is missing (the lean runtime of TensorRT hands out an object around
a null pointer), so that everything but looking for the driver's file is done in a child process with a time limit. The
child says what it is about to do before it does it: a crash has a place, and is a reason.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from deploykit.runtimes import Claim

__all__ = ["LIBRARY", "Trial", "find_driver", "try_out"]

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
LIMIT_S = 120.0
"""A first build of an engine may load gigabytes of kernels from a cold disk."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a child process found out.

    Attributes:
        steps: what became of each step it came to, by name.
        facts: what else it said, by name ("version", "device").
    """

    steps: Mapping[str, Claim]
    facts: Mapping[str, str]

    def step(self, name: str) -> Claim:
        """What became of a step; where the child did not come to it, why."""
        if name in self.steps:
            return self.steps[name]
        failed = next((claim for claim in self.steps.values() if not claim), None)
        reason = "it was not tried" if failed is None else failed.reason
        return Claim(holds=False, reason=reason)


def find_driver() -> Claim:
    """Whether there is a driver for CUDA, and a GPU with it."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return Claim(
            holds=False, reason=f"there is no NVIDIA driver: {error}. Use a machine with a GPU"
        )
    trial = try_out("cuda")
    return trial.step("device")


def try_out(what: str, arguments: Sequence[str] = (), *, limit_s: float = LIMIT_S) -> Trial:
    """Run a trial in a child process; never raises.

    Args:
        what: a trial of `deploykit.runtimes.trials`.
        arguments: what it is told.
        limit_s: seconds after which it is ended.
    """
    command = [sys.executable, "-P", "-m", "deploykit.runtimes.trials", what, *arguments]
    # The child finds the same packages, however this process came to find them.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    ended = ""
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=limit_s,
            env=environment,
        )
        said, code, noise = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or b""
        said = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
        code, noise = 0, ""
        ended = f"it did not answer within {limit_s:.0f} s"
    except OSError as error:
        return Trial({"start": Claim(holds=False, reason=f"no process for it: {error}")}, {})
    return _read(said, ended or _ending(code, noise))


def _ending(code: int, noise: str) -> str:
    """How a child ended, in words; empty if as it should."""
    if code == 0:
        return ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"it crashed ({name})"
    last = (noise.strip().splitlines() or ["it said nothing"])[-1]
    return f"it ended with {code}: {last}"


def _read(said: str, ended: str) -> Trial:
    steps: dict[str, Claim] = {}
    facts: dict[str, str] = {}
    begun: str | None = None
    for line in said.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            # What a library prints is not for us.
            continue
        match found:
            case {"begins": str(step)}:
                begun = step
            case {"step": str(step), "holds": bool(holds), "reason": str(reason)}:
                steps[step] = Claim(holds=holds, reason=reason)
                begun = None
            case {"fact": str(name), "value": str(value)}:
                facts[name] = value
    if ended:
        step = begun or "start"
        steps[step] = Claim(holds=False, reason=f"in a trial, at the step '{step}', {ended}")
    return Trial(steps, facts)
