"""TensorRT-RTX: engines for listed GPUs, built on a machine that has none of them.

It parses and builds without a driver, so that whoever has no GPU can still prove that a compiler of this family takes a
model. What it builds runs, and names its kernels, on a GPU only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import RuntimeUnavailable
from deploykit.runtimes import Capabilities, Claim
from deploykit.runtimes.engine_runner import EngineRunner
from deploykit.runtimes.engines import Built, Options, build_engine
from deploykit.runtimes.probe import find_driver, try_out
from deploykit.runtimes.tensorrt_family import RTX, load, version

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["build", "capabilities", "start"]


def capabilities() -> Capabilities:
    """Say what TensorRT-RTX can do on this machine; never raises, nor crashes."""
    driver = find_driver()
    trial = try_out(RTX.name, ["run"] if driver else [])
    imported = trial.step("import")
    can_run = trial.step("run") if driver or not imported else driver
    return Capabilities(
        runtime=RTX.name,
        version=trial.facts.get("version", version(RTX)),
        importable=imported,
        can_parse=trial.step("parse"),
        can_build=trial.step("build"),
        can_run=can_run,
        reports_sparsity=Claim(
            holds=False,
            reason="no version was seen to say which layers are sparse; what its log and its engine do say is read all the same"
            if can_run
            else "a build ahead of time logs nothing on sparse kernels, and its engine can only be asked on a GPU",
        ),
        providers=() if "device" not in trial.facts else (trial.facts["device"],),
    )


def start() -> EngineRunner:
    """What runs models as engines.

    Raises:
        RuntimeUnavailable: TensorRT-RTX or the GPU is not there.
    """
    driver = find_driver()
    if not driver:
        raise RuntimeUnavailable(driver.reason)
    return EngineRunner(RTX)


def build(
    model: Path | bytes,
    shapes: Mapping[str, tuple[int, ...]],
    compute_capabilities: tuple[str, ...] = (),
) -> Built:
    """Build an engine ahead of time.

    Args:
        model: the model's file, or its bytes.
        shapes: sizes of its inputs.
        compute_capabilities: the GPUs it is for, as "8.6"; none for those that the package builds for by itself.

    Raises:
        RuntimeUnavailable: TensorRT-RTX is not there.
        UsageError: a compute capability that it does not know; the message lists those it does.
        ModelError: it refuses the model.
    """
    return build_engine(load(RTX), model, Options(shapes, compute_capabilities))
