"""PyTorch on a GPU: the layers of a model dense and in 2:4 form, where TensorRT cannot be had.

It does not run models: it runs their Conv and Linear layers one by one, as products. See `torch_products`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import RuntimeUnavailable
from deploykit.runtimes import Array, Capabilities, Claim, LayerSeconds
from deploykit.runtimes.probe import find_driver, try_out
from deploykit.runtimes.torch_products import find_device, load, read_layers, try_sparse, use
from deploykit.runtimes.torch_session import (
    LayerSession,
    Machine,
    measure_sparse,
    prepare,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.report.sparse_records import SparseTime

__all__ = ["TorchRunner", "capabilities", "start"]

FEWEST_RUNS, MOST_RUNS = 10, 200
"""Runs of a layer: of a long one few, of a short one many."""


def capabilities() -> Capabilities:
    """Say what PyTorch can do on this machine; never raises, nor crashes."""
    driver = find_driver()
    trial = try_out("torch")
    imported = trial.step("import")
    device = trial.step("device")
    if imported and not driver:
        device = driver
    layers = (
        "its Conv and Linear layers are read from the ONNX graph, and nothing else of a model"
    )
    return Capabilities(
        runtime="torch",
        version=trial.facts.get("version"),
        importable=imported,
        can_parse=Claim(holds=bool(imported), reason=layers if imported else imported.reason),
        can_build=Claim(
            holds=bool(device),
            reason="the layers are run one by one, as they are" if device else device.reason,
        ),
        can_run=Claim(
            holds=bool(device),
            reason=f"Conv and Linear layers run on {trial.facts.get('device', '')}"
            if device
            else device.reason,
        ),
        reports_sparsity=trial.step("sparse") if device else device,
        providers=() if "device" not in trial.facts else (trial.facts["device"],),
    )


def start(dtype: str = "float16") -> TorchRunner:
    """What runs the layers of models.

    Args:
        dtype: "float16" or "bfloat16".

    Raises:
        RuntimeUnavailable: PyTorch or the GPU is not there.
    """
    torch = load()
    device = find_device(torch)
    try:
        backend, why = try_sparse(torch), ""
        use(torch, backend)
    except RuntimeUnavailable as error:
        backend, why = None, str(error)
    return TorchRunner(Machine(torch, device, backend, why, dtype))


class TorchRunner:
    """Runs the layers of models.

    Args:
        machine: PyTorch on a GPU.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def about(self) -> str:
        """Name and version of the runtime, and what of a model it runs."""
        sparse = (
            "every weight dense"
            if self._machine.backend is None
            else f"2:4 weights through {self._machine.backend}"
        )
        return (
            f"torch {self._machine.torch.__version__} (Conv and Linear layers only, as single products in "
            f"{self._machine.dtype}; {sparse})"
        )

    def open(self, path: Path, feeds: Mapping[str, Array]) -> LayerSession:
        """Make the layers of a model ready to run."""
        return LayerSession(self._machine, read_layers(path, _shapes(feeds)))

    def profile_layers(
        self, path: Path, feeds: Mapping[str, Array], *, duration_s: float
    ) -> LayerSeconds:
        """Time the layers of a model, one by one."""
        torch = self._machine.torch
        seconds, ran_as, fewest = {}, {}, MOST_RUNS
        for layer in read_layers(path, _shapes(feeds)):
            if layer.weight is None:
                continue
            ready = prepare(self._machine, layer)
            is_sparse = ready.obeys and ready.sparse is not None
            work = ready.sparse if ready.sparse is not None and is_sparse else ready.dense
            first = timed(torch, work)
            runs = max(FEWEST_RUNS, min(MOST_RUNS, int(duration_s / 100 / max(first, 1e-6))))
            fewest = min(fewest, runs)
            seconds[layer.name] = statistics.median(timed(torch, work) for _ in range(runs))
            ran_as[layer.name] = (
                f"{self._machine.backend} 2:4 product" if is_sparse else "dense product"
            )
        # Nothing but these layers is run, so that they are the whole.
        return LayerSeconds(seconds, ran_as, sum(seconds.values()), fewest)

    def sparse_verdict(self, path: Path, feeds: Mapping[str, Array]) -> None:
        """None: PyTorch chooses nothing by itself; what was timed in sparse form is in `sparse_times`."""
        del path, feeds

    def sparse_times(self, path: Path, feeds: Mapping[str, Array]) -> tuple[SparseTime, ...]:
        """Each layer timed dense and in 2:4 form; a weight that is not 2:4 is reduced to it for this."""
        return measure_sparse(self._machine, read_layers(path, _shapes(feeds)))


def _shapes(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in feeds.items()}
