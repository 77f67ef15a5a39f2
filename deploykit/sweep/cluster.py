"""Runs cells on a Ray cluster: one that is started on this machine, or one that is there.

Cells that measure on a device take turns: the driver starts no second one while the first is at it, and each of them has
its node to itself, because whatever else ran there would be in its times. Cells that measure nothing run side by side.

A cell whose worker died is begun again. That is done here, and not left to Ray, so that it can be told; what the killed
run left behind, its lock included, is nothing that the next one minds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from deploykit.errors import RuntimeUnavailable
from deploykit.sweep.cells import died_rows, run_cell
from deploykit.sweep.records import Cell, Row

__all__ = ["LOCAL", "run_on_ray"]

Done: TypeAlias = Callable[[Cell, tuple[Row, ...]], None]

LOCAL = "local"
HERE = "here"
KNOCK_S = 10.0
TRIES = 3
"""How often a cell is begun before it is given up: a model that crashes a library does so each time."""


def run_on_ray(cells: Sequence[Cell], cache: Path, address: str, done: Done) -> int:
    """Run cells, in any order.

    Args:
        cells: the cells.
        cache: results of stages; on a cluster of several machines a folder that all of them see, as those of the cells are.
        address: "local" to start a cluster on this machine, "auto", or "ray://host:port".
        done: told of each cell that is done, with its rows.

    Returns:
        how often a cell was begun anew because its process had died.

    Raises:
        RuntimeUnavailable: Ray is not installed, no cluster is at the address, or it has died.
    """
    # Ray tells of workers that died on stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        ray = _start(address)
        try:
            return _Driver(ray, cache, done).run(cells)
        finally:
            ray.shutdown()


def _start(address: str) -> Any:  # noqa: ANN401 - the module of Ray, which may not be there
    # No telemetry; and GPUs stay visible to workers that asked for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        msg = "a sweep on Ray needs the extra 'ray': pip install 'deploykit-onnx[ray]'. Or give --serial."
        raise RuntimeUnavailable(msg) from error
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"include_dashboard": False}
    try:
        _knock(address)
        with _own_handlers():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ImportError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        msg = f"cannot reach the Ray cluster '{address}': {error}. Give another --address, or --serial."
        raise RuntimeUnavailable(msg) from error
    return ray


def _knock(address: str) -> None:
    """See whether anybody listens at `host:port`: Ray itself would wait there for many minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), KNOCK_S):
            pass


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep what asks this program to end what it was: Ray would have it exit as if that were an error of its own."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Driver:
    """Hands cells to workers, one a device at a time."""

    def __init__(self, ray: Any, cache: Path, done: Done) -> None:  # noqa: ANN401 - a module
        self._ray = ray
        self._cache = cache
        self._done = done
        nodes = [node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["Alive"]]
        self._nodes = max(1, len(nodes))
        self._cores = max(1, int(min(nodes, default=1)))
        # Retried by hand; see above.
        self._task = ray.remote(max_retries=0)(run_cell)

    def run(self, cells: Sequence[Cell]) -> int:
        """Run all cells; returns how often one was begun anew.

        Raises:
            RuntimeUnavailable: the cluster has died, and not only a worker of it.
        """
        waiting = list(cells)
        running: dict[Any, Cell] = {}
        begun: Counter[str] = Counter()
        retried = 0
        while waiting or running:
            for cell in list(waiting):
                if self._fits(cell, running.values()):
                    waiting.remove(cell)
                    begun[cell.name] += 1
                    running[self._submit(cell)] = cell
            (ready,), _ = self._ray.wait(list(running), num_returns=1)
            cell = running.pop(ready)
            try:
                rows = self._ray.get(ready)
            except self._ray.exceptions.LocalRayletDiedError as error:
                msg = (
                    f"Ray ended on this machine while '{cell.name}' ran: it was killed, or memory ran out. What is done is "
                    "kept: give the same command again, or --serial."
                )
                raise RuntimeUnavailable(msg) from error
            except self._ray.exceptions.RayError:
                # The process or its node is gone: what a cell itself raises comes back in its rows.
                if begun[cell.name] < TRIES:
                    retried += 1
                    waiting.insert(0, cell)
                    continue
                rows = died_rows(cell, begun[cell.name])
            self._done(cell, rows)
        return retried

    def _fits(self, cell: Cell, running: Any) -> bool:  # noqa: ANN401 - cells
        used = Counter(device for other in running for device in other.measures)
        return all(
            used[device] < (self._nodes if device == HERE else 1) for device in cell.measures
        )

    def _submit(self, cell: Cell) -> Any:  # noqa: ANN401 - a reference of Ray's
        cores = self._cores if HERE in cell.measures else 1
        return self._task.options(num_cpus=cores, name=cell.name).remote(cell, self._cache)
