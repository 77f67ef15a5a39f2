"""Runs a sweep: what is done already is kept, the rest is run, and all of it becomes one table."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from deploykit.atomic import write_whole
from deploykit.errors import UsageError
from deploykit.step.secrets import Secrets
from deploykit.sweep.cells import finished_rows, keep_rows, run_cell
from deploykit.sweep.cluster import LOCAL, run_on_ray
from deploykit.sweep.plot import write_plot
from deploykit.sweep.records import Cell, Row, SweepResult
from deploykit.sweep.sweep_file import read_sweep
from deploykit.sweep.table import check_writable, write_table

try:
    import fcntl
except ImportError:  # not on Windows, where two runs on one folder are not told apart
    fcntl = None  # type: ignore[assignment]  # a module or nothing

__all__ = ["Progress", "sweep"]

TABLE, PLOT, DOCUMENT = "results.parquet", "plot.svg", "results.json"


class Progress(Protocol):
    """Told what is going on, and how far it is."""

    def __call__(self, stage: str, done: float | None = None) -> None:
        """A stage begins, or is `done` (0 to 1) of the way."""


def silent(stage: str, done: float | None = None) -> None:
    """Progress that nobody watches."""
    del stage, done


def sweep(
    path: Path,
    out: Path,
    *,
    address: str | None = LOCAL,
    cache: Path | None = None,
    progress: Progress = silent,
) -> SweepResult:
    """Run every recipe with every model on every device.

    Killed at any moment, it goes on where it was when it is called again.

    Args:
        path: the sweep, in TOML.
        out: where results go: a folder for each cell, `results.parquet`, `results.json` and `plot.svg`.
        address: of a Ray cluster: "local" to start one on this machine, "auto", or "ray://host:port"; None to run one cell
            after the other in this process.
        cache: results of stages; default: in `out`.
        progress: told what is going on.

    Raises:
        UsageError: the sweep makes no sense, or another run is at it.
        RuntimeUnavailable: Ray or pyarrow is not installed, or the cluster is not there.
    """
    began = time.monotonic()
    check_writable()
    found = read_sweep(path, out)
    kept, cache = out.resolve() / "rows", (cache or out / "cache").resolve()
    with _claim(out):
        rows: dict[str, tuple[Row, ...]] = {}
        for cell in found.cells:
            progress("looking for results that are there", len(rows) / len(found.cells))
            known = finished_rows(cell, kept, cache)
            if known is not None:
                rows[cell.name] = known
        reused = len(rows)

        def done(cell: Cell, new: tuple[Row, ...]) -> None:
            keep_rows(cell, new, kept)
            rows[cell.name] = new
            progress("running cells", len(rows) / len(found.cells))

        left = [cell for cell in found.cells if cell.name not in rows]
        progress("running cells", reused / len(found.cells))
        retried = 0
        if left and address is not None:
            retried = run_on_ray(left, cache, address, done)
        else:
            for cell in left:
                done(cell, run_cell(cell, cache))
        result = SweepResult(
            sweep=found,
            folder=out.resolve(),
            rows=tuple(row for cell in found.cells for row in rows[cell.name]),
            reused=reused,
            retried=retried,
            elapsed_s=time.monotonic() - began,
        )
        _write(result)
    return result


def _write(result: SweepResult) -> None:
    write_table(result.rows, result.folder / TABLE)
    document = Secrets().cleaned(result.to_document())
    text = json.dumps(document, indent=1, ensure_ascii=False)
    write_whole(result.folder / DOCUMENT, (text + "\n").encode())
    if not write_plot(result.rows, result.folder / PLOT, result.sweep.name):
        # One of an earlier sweep would be of other rows.
        (result.folder / PLOT).unlink(missing_ok=True)


@contextlib.contextmanager
def _claim(out: Path) -> Iterator[None]:
    """Hold the folder of a sweep; the lock ends with its process.

    Raises:
        UsageError: another sweep holds it, or it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a")
    except OSError as error:
        msg = f"cannot write to '{out}': {error.strerror}. Choose another place."
        raise UsageError(msg) from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                msg = (
                    f"another sweep is writing to '{out}'. Wait for it, or give another folder."
                )
                raise UsageError(msg) from error
        yield
