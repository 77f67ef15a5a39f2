"""Runs models with NVIDIA's `trtexec`, where TensorRT's Python package is not there: the sampler's own code for it.

Each launch is a process of its own, so that there is no session to hold on to: models are measured through
`sampler.sample(runtime="trtexec")`, and this adds what is asked of single models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.profile import sampler
from deploykit.runtimes import Array, DeviceSession, LayerSeconds
from deploykit.runtimes.trtexec import read_profile

if TYPE_CHECKING:
    from deploykit.report.sparse_records import SparseTime, SparseVerdict

__all__ = ["TrtexecRunner"]

FEWEST_RUNS = 10


class TrtexecRunner:
    """Runs models as engines that `trtexec` builds and times.

    Raises:
        RuntimeUnavailable: it is not there, or does not answer.
    """

    def __init__(self) -> None:
        tool = _open({})
        self._about = tool.about
        tool.close()

    @property
    def about(self) -> str:
        """Name and version of the runtime."""
        return self._about

    def open(self, path: Path, feeds: Mapping[str, Array]) -> DeviceSession:
        """There are no sessions: `Here.sample` launches it."""
        del feeds
        msg = f"trtexec keeps no session of '{path}' open: sample it by launches"
        raise NotImplementedError(msg)

    def profile_layers(
        self, path: Path, feeds: Mapping[str, Array], *, duration_s: float
    ) -> LayerSeconds:
        """Time the layers of the engine of a model, in a launch with its profiler after one without."""
        tool = _open(feeds)
        try:
            engine = tool.build(path, 0, _wait)
            whole = tool.launch(
                engine, warmup_s=0.2, duration_s=duration_s, runs=FEWEST_RUNS, wait=_wait
            )
            text = tool.profile(engine, warmup_s=0.2, duration_s=duration_s, wait=_wait)
        except RuntimeError as error:
            _refuse(path, error)
        finally:
            tool.close()
        layers = read_profile(text)
        seconds: dict[str, float] = {}
        for layer in layers:
            # Names may repeat.
            taken_s = layer.mean_s if layer.median_s is None else layer.median_s
            seconds[layer.name] = seconds.get(layer.name, 0.0) + taken_s
        return LayerSeconds(
            seconds, {name: name for name in seconds}, float(np.median(whole)), len(whole)
        )

    def sparse_verdict(self, path: Path, feeds: Mapping[str, Array]) -> SparseVerdict:
        """What is known of sparse kernels in the engine of a model: what the log of its build says."""
        from deploykit.report.sparse_records import SparseVerdict
        from deploykit.runtimes.eligible import eligible_nodes
        from deploykit.runtimes.sparsity_log import read_sparsity

        tool = _open(feeds)
        try:
            tool.build(path, 0, _wait)
        except RuntimeError as error:
            _refuse(path, error)
        finally:
            tool.close()
        found, chosen = read_sparsity(tool.said.splitlines())
        return SparseVerdict(
            eligible=eligible_nodes(path, ()), found=found, chosen=chosen, tactics=None
        )

    def sparse_times(self, path: Path, feeds: Mapping[str, Array]) -> tuple[SparseTime, ...]:
        """None: the builder times its kernels itself, and tells only what it took."""
        del path, feeds
        return ()


def _open(feeds: Mapping[str, Array]) -> sampler.Trtexec:
    try:
        return sampler.Trtexec(dict(feeds))
    except ImportError as error:
        msg = f"{error}. It comes with the archives and Debian packages of TensorRT, not with its Python packages."
        raise RuntimeUnavailable(msg) from error


def _refuse(path: Path, error: Exception) -> NoReturn:
    msg = f"'{os.fspath(path)}': {error}"
    raise ModelError(msg) from error


def _wait(process: Any) -> None:  # noqa: ANN401 - a process
    process.wait()
