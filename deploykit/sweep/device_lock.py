"""One measurement at a time on a device.

Two models that are timed at once take each other's cores, caches and power: their times say how busy the device was, and
the ratios, though paired, lose their precision. So whoever measures on a device holds its lock meanwhile: a file on the
machine from which it is measured, locked by `flock`, which ends with its process, whatever ended that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where cells have to be run one after the other
    fcntl = None  # type: ignore[assignment]  # a module or nothing

__all__ = ["hold"]


@contextlib.contextmanager
def hold(devices: Sequence[str]) -> Iterator[None]:
    """Hold the locks of devices; waits for whoever has them.

    Args:
        devices: as they are written after `--on`. All of them are locked in the same order everywhere, so that two who want
            the same two do not wait for each other.
    """
    folder = Path(tempfile.gettempdir()) / f"deploykit-devices-{os.getuid() if fcntl else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for device in sorted(set(devices)):
            name = hashlib.sha256(device.encode()).hexdigest()[:16]
            file = stack.enter_context((folder / f"{name}.lock").open("a"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
