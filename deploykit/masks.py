"""Applies masks to weights: what a mask drops becomes zero, which is what the passes look for."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import UsageError
from deploykit.foreign_tickets import PICKLED, no_mask_text

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["apply_masks", "read_masks"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def read_masks(path: Path) -> dict[str, Array]:
    """Read masks from an .npz file.

    Returns:
        bool arrays by the weight's name; True keeps.

    Raises:
        UsageError: the file cannot be read, or holds anything but zeros and ones.
    """
    advice = (
        "Masks come in an .npz file with one array for each weight, as numpy.savez writes it."
    )
    if path.suffix in {*PICKLED, ".safetensors"}:
        msg = (
            f"'{path}' is no .npz file. {advice} State dicts and tickets go with --ticket to a PyTorch model, given as "
            "package.module:object."
        )
        raise UsageError(msg)
    try:
        is_archive = zipfile.is_zipfile(path)
        if not is_archive:
            path.open("rb").close()
    except OSError as error:
        msg = f"cannot read the masks '{path}': {error.strerror}. {advice}"
        raise UsageError(msg) from error
    if not is_archive:
        msg = f"'{path}' is no .npz file. {advice}"
        raise UsageError(msg)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's own words would advise to load pickles, which can run anything.
        msg = f"'{path}' holds something other than plain arrays, or is damaged. {advice}"
        raise UsageError(msg) from error
    for name, array in arrays.items():
        if not np.isin(array, (0, 1)).all():
            msg = f"'{path}': {no_mask_text(name, array)}"
            raise UsageError(msg)
    if not arrays:
        msg = f"'{path}' holds no mask. {advice}"
        raise UsageError(msg)
    return {name: array.astype(np.bool_) for name, array in arrays.items()}


def apply_masks(model: ir.Model, masks: Mapping[str, Array]) -> int:
    """Zero what the masks drop, in place.

    Args:
        model: the model.
        masks: bool arrays of the weights' shapes, by the weight's name; True keeps. Names are also tried without a
            trailing `_mask`, as pruning libraries write them.

    Returns:
        how many weights that were not zero became zero.

    Raises:
        UsageError: a mask names no weight of the model, or has another shape.
    """
    from passes.weights import constant, set_tensor

    dropped = 0
    for key, mask in masks.items():
        name = key if key in model.graph.initializers else key.removesuffix("_mask")
        value = model.graph.initializers.get(name)
        weight = constant(value)
        if value is None or weight is None:
            there = ", ".join(list(model.graph.initializers)[:5])
            msg = (
                f"the mask '{key}' names no weight of the model, whose weights are {there}, ..."
            )
            raise UsageError(msg)
        if mask.shape != weight.shape:
            msg = f"the mask '{key}' has shape {list(mask.shape)}, its weight {list(weight.shape)}."
            raise UsageError(msg)
        dropped += int(np.count_nonzero(weight[~mask]))
        set_tensor(value, np.where(mask, weight, np.zeros((), weight.dtype)))
    return dropped
