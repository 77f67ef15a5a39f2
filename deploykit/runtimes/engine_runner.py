"""Runs models as engines of TensorRT or TensorRT-RTX, to be measured like any other.

An engine is built once for a model and its sizes; sessions that are built anew read it again. Two builds may take different
kernels: the timing cache makes the second one take those of the first.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.runtimes import Array, LayerSeconds
from deploykit.runtimes.cuda import Gpu
from deploykit.runtimes.engine_session import EngineSession
from deploykit.runtimes.engines import Built, Options, build_engine
from deploykit.runtimes.sparsity_log import read_sparsity
from deploykit.runtimes.tensorrt_family import Family, load

if TYPE_CHECKING:
    from deploykit.report.sparse_records import SparseTime, SparseVerdict

__all__ = ["EngineRunner", "cache_folder", "judge"]

KEPT = 8
"""Engines that are kept in memory: those of one measurement, and not of all layers that were ever tried."""
FEWEST_RUNS, MOST_RUNS = 10, 200


class EngineRunner:
    """Runs models as engines.

    Args:
        family: what builds and runs them.
        gpu: where; None opens the first one.

    Raises:
        RuntimeUnavailable: the package or the GPU is not there.
    """

    def __init__(self, family: Family, gpu: Gpu | None = None) -> None:
        self._api = load(family)
        self._gpu = gpu or Gpu()
        self._built: OrderedDict[tuple[Any, ...], Built] = OrderedDict()

    @property
    def about(self) -> str:
        """Name and version of the runtime."""
        return self._api.about

    @property
    def gpu(self) -> Gpu:
        """Where engines run."""
        return self._gpu

    @property
    def family(self) -> Family:
        """What builds and runs the engines."""
        return self._api.family

    def open(self, path: Path, feeds: Mapping[str, Array]) -> EngineSession:
        """Make a model ready to run on inputs of these shapes."""
        shapes = {name: array.shape for name, array in feeds.items()}
        return EngineSession(self._api, self.build(path, shapes), self._gpu, shapes)

    def build(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Built:
        """The engine of a model, built unless it is known.

        Raises:
            ModelError: the builder refuses the model.
        """
        path = Path(path)
        found = path.stat()
        key = (path.resolve(), found.st_mtime_ns, found.st_size, tuple(sorted(shapes.items())))
        if key not in self._built:
            options = Options(shapes, timing_cache=self._timing_cache())
            self._built[key] = build_engine(self._api, path, options)
            while len(self._built) > KEPT:
                self._built.popitem(last=False)
        self._built.move_to_end(key)
        return self._built[key]

    def profile_layers(
        self, path: Path, feeds: Mapping[str, Array], *, duration_s: float
    ) -> LayerSeconds:
        """Time the layers of the engine of a model."""
        with contextlib.closing(self.open(path, feeds)) as session:
            whole = [session.device_s(feeds) for _ in range(FEWEST_RUNS)]
            runs = int(
                np.clip(duration_s / max(np.median(whole), 1e-6), FEWEST_RUNS, MOST_RUNS)
            )
            whole = [session.device_s(feeds) for _ in range(runs)]
            rows = session.layer_times(feeds, runs)
        names = list(dict.fromkeys(name for row in rows for name in row))
        seconds = {
            name: float(np.median([row.get(name, 0.0) for row in rows])) for name in names
        }
        return LayerSeconds(
            seconds, {name: name for name in names}, float(np.median(whole)), runs
        )

    def sparse_verdict(self, path: Path, feeds: Mapping[str, Array]) -> SparseVerdict:
        """What is known of sparse kernels in the engine of a model."""
        shapes = {name: array.shape for name, array in feeds.items()}
        return judge(self.build(path, shapes), path, self.inspect(path, feeds))

    def run_once(self, path: Path, feeds: Mapping[str, Array]) -> list[Array]:
        """Run the engine of a model; its outputs, in the engine's order."""
        with contextlib.closing(self.open(path, feeds)) as session:
            return session.run(None, feeds)

    def inspect(self, path: Path, feeds: Mapping[str, Array]) -> str:
        """What the engine of a model says of itself, as JSON."""
        with contextlib.closing(self.open(path, feeds)) as session:
            return session.inspect()

    def sparse_times(self, path: Path, feeds: Mapping[str, Array]) -> tuple[SparseTime, ...]:
        """None: the builder times its kernels itself, and tells only what it took."""
        del path, feeds
        return ()

    def _timing_cache(self) -> Path | None:
        """The file of what builds timed on this device with this version."""
        if not self._api.family.has_timing_cache:
            return None
        device = self._gpu.device
        slug = re.sub(
            r"[^A-Za-z0-9.]+", "-", f"{device.name}-{device.compute_capability}-{device.driver}"
        )
        name = f"{self._api.family.name}-{self._api.version}-{slug}.cache"
        return cache_folder() / "timing" / name


def judge(built: Built, model: Path | None, inspected: str | None) -> SparseVerdict:
    """What is known of sparse kernels in an engine; what nobody says stays None.

    Args:
        built: the engine, with the log of its build.
        model: file of the model; None to leave our own rules out.
        inspected: what the engine says of itself; None where it cannot be asked.
    """
    from deploykit.report.sparse_records import SparseVerdict
    from deploykit.runtimes.eligible import eligible_nodes
    from deploykit.runtimes.inspector import read_engine_info, sparse_tactics

    found, chosen = read_sparsity(line.text for line in built.log)
    return SparseVerdict(
        eligible=(
            None if model is None else eligible_nodes(model, built.options.compute_capabilities)
        ),
        found=found,
        chosen=chosen,
        tactics=None if inspected is None else sparse_tactics(read_engine_info(inspected)),
    )


def cache_folder() -> Path:
    """Where deploykit keeps what it can do without."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "deploykit"
