"""Writes files that are there whole or not at all, whatever ends the process in between."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in its place in one step: who reads `path` sees the old content or the new one.

    It is written beside its place, as `.NAME.part`, to the disk, and renamed. What a killed process left there is
    written over, so that nothing piles up.

    Args:
        path: the file; its folder exists.
        content: all of it.

    Raises:
        OSError: the disk refuses; `path` is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            # Without this a crash of the machine could leave the new name with nothing in it.
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
