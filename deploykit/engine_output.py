"""Builds the engine that was asked for beside a model: a file that a device loads without seeing the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import runtimes
from deploykit.errors import RuntimeUnavailable, UsageError
from deploykit.report.sparse_records import EngineRecord

if TYPE_CHECKING:
    from deploykit.runtimes import Runner

__all__ = ["check", "write"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def check(engine: str, compute_capability: tuple[str, ...]) -> None:
    """Refuse an engine that cannot be built here, before any work is done.

    Args:
        engine: what builds it, one of `runtimes.ENGINES`.
        compute_capability: the GPUs it is for.

    Raises:
        RuntimeUnavailable: the builder is not there, or does not build here.
        UsageError: a GPU that it does not build for.
    """
    from deploykit.runtimes.engines import find_compute_capabilities
    from deploykit.runtimes.tensorrt_family import FAMILY, RTX, load

    found = runtimes.capabilities(engine)
    if not found.can_build:
        msg = (
            f"{engine} cannot build engines on this machine: {found.can_build.reason.rstrip('.')}; 'deploykit runtimes' says what "
            "each runtime can do here."
        )
        raise RuntimeUnavailable(msg)
    if not compute_capability:
        return
    # A library of this kind is only loaded here once a process of its own has shown that it can be.
    known = find_compute_capabilities(load(FAMILY[engine]))
    unknown = [name for name in compute_capability if name not in known]
    if not known or engine != RTX.name:
        msg = f"{engine} builds for the GPU of this machine only: leave --compute-capability out, or give --engine tensorrt-rtx."
        raise UsageError(msg)
    if unknown:
        msg = f"{engine} builds for no GPU of compute capability {', '.join(unknown)}. It knows {', '.join(known)}."
        raise UsageError(msg)


def write(
    model: Path,
    feeds: Mapping[str, Array],
    engine: str,
    compute_capability: tuple[str, ...],
    runner: Runner | None,
) -> EngineRecord:
    """Build an engine of a model and write it beside it, as `model.ENGINE.engine`.

    Args:
        model: the model's file.
        feeds: inputs of the sizes that the engine is for.
        engine: what builds it.
        compute_capability: the GPUs it is for.
        runner: what the models were timed with.

    Raises:
        ModelError: the builder refuses the model.
    """
    from deploykit.runtimes.engine_runner import EngineRunner, judge
    from deploykit.runtimes.tensorrt_family import FULL

    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    inspected, ran = None, False
    if engine == FULL.name:
        own = runner if isinstance(runner, EngineRunner) else None
        if own is None or own.family is not FULL:
            own = EngineRunner(FULL)
        built = own.build(model, shapes)
        inspected = own.inspect(model, feeds)
        # It is run as what is in the file, whatever was timed before.
        own.run_once(model, feeds)
        ran = True
    else:
        from deploykit.runtimes import tensorrt_rtx

        built = tensorrt_rtx.build(model, shapes, compute_capability)
    file = model.with_name(f"model.{engine}.engine")
    file.write_bytes(built.engine)
    return EngineRecord(
        runtime=built.about,
        file=file.name,
        bytes=len(built.engine),
        seconds=built.seconds,
        compute_capabilities=built.options.compute_capabilities,
        shapes=dict(shapes),
        sparse=judge(built, model, inspected),
        ran=ran,
    )
