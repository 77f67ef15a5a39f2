"""TensorRT 10 and 11: engines for the GPU of this machine."""

from __future__ import annotations

from deploykit.errors import RuntimeUnavailable
from deploykit.runtimes import Capabilities, Claim
from deploykit.runtimes.engine_runner import EngineRunner
from deploykit.runtimes.probe import find_driver, try_out
from deploykit.runtimes.tensorrt_family import FULL, version

__all__ = ["capabilities", "start"]


def capabilities() -> Capabilities:
    """Say what TensorRT can do on this machine; never raises, nor crashes."""
    driver = find_driver()
    # Without a driver its libraries end the process, or hand out null pointers.
    trial = try_out(FULL.name, ["run"] if driver else [])
    imported = trial.step("import")

    def needing_a_gpu(step: str) -> Claim:
        if driver:
            return trial.step(step)
        no_gpu = f"it builds and runs on a GPU only, and {driver.reason}"
        return Claim(
            holds=False, reason=no_gpu if imported else f"{imported.reason} Besides, {no_gpu}"
        )

    device = trial.facts.get("device")
    can_run = needing_a_gpu("run")
    return Capabilities(
        runtime=FULL.name,
        version=trial.facts.get("version", version(FULL)),
        importable=imported,
        can_parse=needing_a_gpu("parse"),
        can_build=needing_a_gpu("build"),
        can_run=can_run,
        reports_sparsity=Claim(
            holds=bool(can_run),
            reason="the build log counts sparse layers, and the engine names its kernels"
            if can_run
            else can_run.reason,
        ),
        providers=() if device is None else (device,),
    )


def start() -> EngineRunner:
    """What runs models as engines.

    Raises:
        RuntimeUnavailable: TensorRT or the GPU is not there.
    """
    driver = find_driver()
    if not driver:
        raise RuntimeUnavailable(driver.reason)
    return EngineRunner(FULL)
