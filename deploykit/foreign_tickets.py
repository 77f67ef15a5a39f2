"""Reads tickets, and what other tools leave of a pruned network: a state dict with masks, masks alone, or zeros.

a ticket of deploykit                       as it is
NAME_orig and NAME_mask                     weight and mask, as torch.nn.utils.prune keeps them
NAME and NAME_mask                          the same, with other words
zeros and ones only, as NAME or NAME_mask   masks; the weights are those of the model
anything else                               weights, whose zeros are the mask
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import ModelError, UsageError
from deploykit.ticket import KEY, Ticket, find_metadata

if TYPE_CHECKING:
    import torch

__all__ = ["PICKLED", "load_torch", "no_mask_text", "read_ticket"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of what torch.save writes."""
INSIDE = ("state_dict", "model_state_dict", "model", "net")
"""What training scripts call the state dict in a checkpoint that holds more."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before all names."""


def read_ticket(path: Path) -> Ticket:
    """Read a ticket, or a state dict as one.

    Args:
        path: `.safetensors`, or what `torch.save` wrote of tensors (`.pt`, `.pth`, `.bin`, `.ckpt`).

    Returns:
        the ticket, checked. Its weights are empty where the file holds masks only.

    Raises:
        UsageError: the file cannot be read, is no such file, or the extra `torch` is not installed.
        ModelError: it is damaged, of a newer schema, or its parts do not fit together.
    """
    if path.suffix == ".safetensors":
        if KEY in find_metadata(path):
            return Ticket.load(path)
        state = _read_safetensors(path)
    elif path.suffix in PICKLED:
        state = _read_pickled(path)
    else:
        msg = (
            f"'{path}' is no ticket by its name. Tickets and state dicts end in .safetensors, or in "
            f"{', '.join(PICKLED[:-1])} or {PICKLED[-1]}."
        )
        raise UsageError(msg)
    try:
        _check_state(state)
        return _from_state(path, _unwrapped(state)).check()
    except ModelError as error:
        msg = f"'{path}' cannot be used as a ticket: {error}"
        raise ModelError(msg) from error


def load_torch() -> Any:  # noqa: ANN401 - a module
    """Import PyTorch.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        msg = f"PyTorch models need the extra 'torch', which is not installed ({error}). Run: pip install 'deploykit-onnx[torch]'"
        raise UsageError(msg) from error
    return torch


def _read_safetensors(path: Path) -> dict[str, Array]:
    load_torch()
    import safetensors
    import safetensors.torch

    try:
        # numpy has no bfloat16, PyTorch does
        tensors = safetensors.torch.load_file(str(path))
    except (safetensors.SafetensorError, OSError) as error:
        msg = f"'{path}' is cut short, or no .safetensors file: {error}. Save it again."
        raise ModelError(msg) from error
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _read_pickled(path: Path) -> dict[str, Array]:
    torch = load_torch()
    save = "Save the state dict: torch.save(model.state_dict(), 'ticket.pt')."
    try:
        path.open("rb").close()
    except OSError as error:
        msg = f"cannot read the ticket '{path}': {error.strerror}."
        raise UsageError(msg) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"'{path}' holds more than tensors, or is damaged. Python objects are not loaded, because loading one can run "
            f"anything. {save}"
        )
        raise ModelError(msg) from error
    except (
        Exception
    ) as error:  # a damaged file makes torch raise many kinds, OSError among them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        msg = f"'{path}' is cut short, or not what torch.save writes ({lines[0].rstrip('.')}). {save}"
        raise ModelError(msg) from error
    for key in INSIDE:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        msg = f"'{path}' holds a {type(loaded).__name__}, not a dict of tensors by name. {save}"
        raise UsageError(msg)
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            msg = f"'{name}' in '{path}' is no dense tensor, but a {type(tensor).__name__}. {save}"
            raise UsageError(msg)
    return {str(name): _array(tensor) for name, tensor in loaded.items()}


def _array(tensor: torch.Tensor) -> Array:
    found = tensor.detach().cpu()
    if (
        found.is_floating_point()
        and found.element_size() < 4
        and found.dtype != load_torch().float16
    ):
        found = found.float()  # exact: bfloat16 and the types of 8 bits
    array: Array = found.numpy()
    return array


def _unwrapped(state: dict[str, Array]) -> dict[str, Array]:
    """The state dict without what wrappers put before its names."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def _from_state(path: Path, state: dict[str, Array]) -> Ticket:
    masks: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    if all(map(_is_mask, state.values())):
        form = "masks"
        masks = {name.removesuffix("_mask"): array for name, array in state.items()}
    else:
        form = "weights and masks"
        for name, array in state.items():
            base = name.removesuffix("_mask")
            # A network may well have a buffer that is called a mask, and is none of a weight.
            if base != name and _is_mask(array) and {base, f"{base}_orig"} & state.keys():
                masks[base] = array
        for name, array in state.items():
            base = name.removesuffix("_orig")
            if name.removesuffix("_mask") not in masks or name in masks:
                weights[base if base in masks else name] = array
    if not masks:
        form = "weights with zeros"
        masks = {
            name: array != 0
            for name, array in weights.items()
            if array.dtype.kind == "f" and array.ndim > 1 and not array.all()
        }
    kept = {name: array.astype(np.bool_) for name, array in masks.items()}
    for name, mask in kept.items():
        if name in weights and weights[name].shape == mask.shape:
            # No product: what a mask drops may be NaN.
            weights[name] = np.where(mask, weights[name], np.zeros((), weights[name].dtype))
    return Ticket(kept, weights, provenance={"file": path.name, "form": form})


def _check_state(state: Mapping[str, Array]) -> None:
    """Refuse masks that are none: taken for weights, they would be found to be those of another model.

    Raises:
        ModelError: an array that can only be a mask holds more than zeros and ones; or there are no arrays.
    """
    if not state:
        msg = "it holds no tensor. Save the state dict of the pruned network."
        raise ModelError(msg)
    only_masks = all(name.endswith("_mask") for name in state)
    for name, array in state.items():
        base = name.removesuffix("_mask")
        if base != name and not _is_mask(array) and (only_masks or f"{base}_orig" in state):
            raise ModelError(no_mask_text(name, array))


def no_mask_text(name: str, array: Array) -> str:
    """What is to be said of a mask that holds more than zeros and ones."""
    other = array[~np.isin(array, (0, 1))].flat[0]
    return (
        f"the mask '{name}' holds values other than 0 and 1, such as {other}. A mask has 1 where a weight stays and 0 where it "
        "goes: compare it with a threshold first."
    )


def _is_mask(array: Array) -> bool:
    return bool(np.isin(array, (0, 1)).all())
