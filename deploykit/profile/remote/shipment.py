"""Says what goes to a device of a model: its files, and the hash of their content that they are known by there."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
from pathlib import Path

from deploykit import refusals

__all__ = ["Shipment", "beside", "pack"]

MODEL = "model.onnx"


@dataclasses.dataclass(frozen=True)
class Shipment:
    """The files of a model.

    Attributes:
        sha256: hash of all of them; the model's own name is no part of it.
        files: each file by what it is called there, relative to the model's folder: the model itself first.
        bytes: of all of them.
    """

    sha256: str
    files: tuple[tuple[str, Path], ...]
    bytes: int


def pack(path: Path) -> Shipment:
    """The files of a model, its external data included.

    Raises:
        UsageError: there is no such file.
        UnsupportedModel: it is no model, or its data files are not whole.
    """
    path = path.absolute()
    return _pack(path, *_state(path))


def beside(file: Path, place: Path) -> None:
    """Make a file known at another place as well, without a copy where that is possible."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


@functools.lru_cache(maxsize=512)
def _pack(path: Path, *state: int) -> Shipment:
    del state  # another one is another model
    data_files = refusals.refuse_damaged_weights(refusals.parse(path), path)
    files = (
        (MODEL, path),
        *((file.relative_to(path.parent).as_posix(), file) for file in data_files),
    )
    lines = [f"{_hash(file)}  {name}" for name, file in files]
    return Shipment(
        hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        files,
        sum(file.stat().st_size for _, file in files),
    )


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
