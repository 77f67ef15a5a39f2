"""NVIDIA apex's channel permutation, from a checkout: its search on a CPU, and how many layers its graph analysis reaches.

Nothing of apex is in this project; `--apex FOLDER` of `benchmarks.permutation` says where a checkout is. Its package is opened
without running its `__init__`, which wants CUDA extensions.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
import time
import types
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["open_checkout", "permuted_layers", "search"]

PACKAGES = ("apex", "apex.contrib", "apex.contrib.sparsity")
SPARSE = ("Conv1d", "Conv2d", "Conv3d", "Linear", "NonDynamicallyQuantizableLinear")


def open_checkout(folder: Path) -> None:
    """Make `apex.contrib.sparsity` importable; what it would write into the working directory goes elsewhere."""
    os.environ["APEX_ASP_CACHE_DIR"] = tempfile.mkdtemp()
    for name in PACKAGES:
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module


def search(magnitudes: np.ndarray[Any, Any], *, repaired: bool) -> dict[str, Any]:
    """Its default search on the CPU.

    Args:
        magnitudes: shape `(rows, channels)`.
        repaired: whether the modules get the `import time` that they lack, from now on.

    Returns:
        the order and the seconds of CPU, or the error.
    """
    name = "apex.contrib.sparsity.permutation_search_kernels"
    with contextlib.redirect_stdout(io.StringIO()):
        package = importlib.import_module(name)
    modules = [module for key, module in sys.modules.items() if key.startswith(name)]
    if repaired:
        for module in modules:
            module.time = time  # type: ignore[attr-defined]
    import torch

    began = time.thread_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            order = package.accelerated_search_for_good_permutation(torch.tensor(magnitudes))
    except NameError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"order": np.asarray(order), "seconds": time.thread_time() - began}


def permuted_layers(model: Any) -> dict[str, Any]:
    """How many layers its graph analysis permutes the inputs of, and of how many that it takes for prunable.

    The search is replaced by a rotation, so that what counts is the graph alone.

    Args:
        model: a PyTorch module; permuted in place.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        library: Any = importlib.import_module("apex.contrib.sparsity.permutation_lib")
    library.accelerated_search_for_good_permutation = lambda matrix, **_: list(
        np.roll(np.arange(matrix.shape[1]), 1)
    )
    permutation = library.Permutation
    everything, sparse = [], []
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            everything.append((module_name, module, name, parameter))
            is_sparse = type(module).__name__ in SPARSE and name == "weight"
            is_fit = (
                parameter.ndim > 1
                and not parameter.shape[0] % 8
                and not parameter.shape[1] % 16
            )
            if is_sparse and is_fit:
                sparse.append((module_name, module, name, parameter, None, None))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            permutation.set_identical_seed(1)
            permutation.set_permutation_params_from_asp(model, sparse, everything, 0)
            was_traced = permutation.permute_model(model)
    except Exception as error:  # noqa: BLE001 - whatever it fails with is the result
        return {"error": f"{type(error).__name__}: {error}", "prunable": len(sparse)}
    if not was_traced:
        return {"error": "torch.fx cannot trace the model", "prunable": len(sparse)}
    done = permutation._Permutation__params_permuted_in_C  # noqa: SLF001 - it tells nobody else
    return {"permuted": len(set(done)), "prunable": len(sparse)}
