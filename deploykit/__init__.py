"""Turns the zeros of a pruned network into speed, and proves both the speed and the function.

The application around `passes`: pipeline, validation, runtimes, measuring, reports and the command line. Importing
this package imports nothing heavy; runtimes and model libraries are imported where they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from deploykit.errors import (
        DeploykitError,
        GateFailed,
        ModelError,
        PassFailed,
        RuntimeUnavailable,
        UnsupportedModel,
        UsageError,
    )
    from deploykit.step.records import (
        AccuracyRecord,
        BaselineComparison,
        GateResult,
        StageRecord,
        StepRecipe,
        StepResult,
    )
    from deploykit.step.runner import Progress

__version__ = "0.1.0"

__all__ = [
    "AccuracyRecord",
    "BaselineComparison",
    "DeploykitError",
    "GateFailed",
    "GateResult",
    "ModelError",
    "PassFailed",
    "RuntimeUnavailable",
    "StageRecord",
    "StepRecipe",
    "StepResult",
    "UnsupportedModel",
    "UsageError",
    "__version__",
    "run",
]

_HOMES = {
    **dict.fromkeys(
        (
            *("DeploykitError", "GateFailed", "ModelError", "PassFailed"),
            *("RuntimeUnavailable", "UnsupportedModel", "UsageError"),
        ),
        "deploykit.errors",
    ),
    **dict.fromkeys(
        (
            *("AccuracyRecord", "BaselineComparison", "GateResult"),
            *("StageRecord", "StepRecipe", "StepResult"),
        ),
        "deploykit.step.records",
    ),
}
"""Where public names are defined; they are imported when they are first used."""


def __getattr__(name: str) -> object:
    """Import a public name."""
    if name not in _HOMES:
        msg = f"module 'deploykit' has no attribute '{name}'"
        raise AttributeError(msg)
    found: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, used or not."""
    return sorted({*globals(), *__all__})


def run(
    recipe: str | os.PathLike[str],
    *,
    baseline: str | os.PathLike[str] | None = None,
    settings: Sequence[str] = (),
    on: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    force: bool = False,
    explain: bool = False,
    progress: Progress | None = None,
) -> StepResult:
    """Run a step of a pipeline from a recipe, as `deploykit run` does.

    Args:
        recipe: the recipe, a file in TOML.
        baseline: the `report.json` of the last accepted result, or its folder; None if there is none.
        settings: values that take the place of the recipe's, as `TABLE.KEY=VALUE` or `PASS.OPTION=VALUE`.
        on: devices that take the place of the recipe's.
        cache: where results are kept; None is `.deploykit/cache` beside the recipe.
        use_cache: whether results are kept and taken at all.
        force: whether a result folder is replaced that another command wrote.
        explain: whether to say only what would be done again and why: nothing is run or written.
        progress: called with what is going on, and how far it is (0 to 1, or None).

    Returns:
        what came of it. A gate that is missed is no error, but `ok` is False, and then the result folder holds no model.

    Raises:
        deploykit.errors.UsageError: the recipe, or something that it names, makes no sense.
        deploykit.errors.ModelError: the model cannot be handled.
        deploykit.errors.RuntimeUnavailable: a runtime or a device is not there.
    """
    from pathlib import Path

    from deploykit.step import runner

    request = runner.Request(
        Path(recipe),
        settings=tuple(settings),
        on=tuple(on),
        baseline=None if baseline is None else Path(baseline),
        cache=None if cache is None else Path(cache),
        use_cache=use_cache,
        force=force,
    )
    do = runner.explain if explain else runner.run
    return do(request, progress=progress or runner.silent)
