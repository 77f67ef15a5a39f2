"""Measures how much memory a model needs, in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import ModelError
from deploykit.profile import sampler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["memory_peak", "save_inputs"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def memory_peak(
    path: str | Path,
    feeds: Mapping[str, Array],
    *,
    threads: int | None = 1,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> int | None:
    """The most memory that opening and running a model takes, in bytes.

    A fresh process imports the runtime and reads the inputs, then opens the model and runs it. What counts is the most
    that it ever held in memory, beyond the most that it held before the model was opened. Weights that the runtime
    reads from a data file through the page cache count as long as they are mapped.

    Args:
        path: the model.
        feeds: an array for each input, by name.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        providers: devices to run on.

    Returns:
        the bytes; None where the system does not tell.

    Raises:
        ModelError: the model does not run in a process of its own.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-memory-") as folder:
        inputs = Path(folder) / "inputs.npz"
        save_inputs(inputs, feeds)
        job = {
            "models": [str(Path(path).resolve())],
            "inputs": str(inputs),
            "threads": threads,
            "providers": list(providers),
            "memory": True,
        }
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        # -P: the folder of the sampler holds a `statistics` that is not Python's.
        command = [sys.executable, "-P", str(sampler.__file__), str(file)]
        done = subprocess.run(  # noqa: S603 - our own file
            command, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        msg = f"the memory of '{path}' cannot be measured: in a process of its own it ended with {done.returncode}: {last}"
        raise ModelError(msg)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["peak_bytes"] is None or found["before_bytes"] is None:
        return None
    return int(found["peak_bytes"]) - int(found["before_bytes"])


def save_inputs(path: Path, feeds: Mapping[str, Array]) -> None:
    """Write an .npz file. numpy.savez takes names as keywords, and an input may be called like one of its own."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in feeds.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
