"""From `package.module:object` and a ticket to an ONNX file: what `optimize` takes in the place of a model.

    object -> module and example inputs -> the ticket's weights and masks put in -> exported, compared -> original.onnx

The exported model is dense: its weights are zero where the masks drop them, and it takes as long as if they were not. It
is the original that everything else is held against.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import model_io
from deploykit.errors import DeploykitError, UsageError
from deploykit.foreign_tickets import load_torch, no_mask_text, read_ticket

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from deploykit.export import Exported, Tensors
    from deploykit.ticket import Block, Ticket

__all__ = ["Feeds", "PlacedBlocks", "TorchSource", "Written", "apply_ticket", "is_reference"]

Feeds: TypeAlias = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

MOST_NAMED = 5
MOST_EXAMPLES = 5
"""How many example inputs the optimized model is compared on, one at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlacedBlocks:
    """The dense blocks of an initializer.

    Attributes:
        blocks: rows are outputs and columns inputs of the layer, as in the ticket.
        is_transposed: whether the initializer is the transpose of the matrix that they speak of: (inputs, outputs).
    """

    blocks: tuple[Block, ...]
    is_transposed: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """A PyTorch model, exported.

    Attributes:
        path: the ONNX file.
        blocks: the ticket's blocks, by initializer.
        notes: what a user should know, in words.
        examples: the task's example inputs, one at a time where the batch is open; none for a model without a task.
        ticket: the ticket that is in it; None without one.
        ticket_sha256: of its file.
    """

    path: Path
    blocks: Mapping[str, PlacedBlocks]
    notes: tuple[str, ...]
    examples: tuple[Feeds, ...] = ()
    ticket: Ticket | None = None
    ticket_sha256: str = ""


@dataclasses.dataclass(frozen=True)
class TorchSource:
    """A PyTorch model, as the command line names it.

    Attributes:
        reference: `package.module:object`, where the object is a Task (or its class), a module of PyTorch, or a function
            that returns one of them.
        ticket: a ticket, or a state dict; None to export the model as it is made.
        shapes: sizes of inputs, by parameter of `forward`: for models without a task, which has example inputs.
    """

    reference: str
    ticket: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path) -> Written:
        """Export the model to a folder.

        Raises:
            UsageError: there is no such object, it does not run, or the ticket is of another model.
            ModelError: the ticket is damaged, or the model cannot be exported.
        """
        torch = load_torch()
        # What is wrong with the ticket is told before the user's code has run for minutes.
        ticket = None if self.ticket is None else read_ticket(self.ticket)
        # What the user's code prints is no result of ours.
        with torch.random.fork_rng(), contextlib.redirect_stdout(sys.stderr):
            # A model that is not trained is the same one in every run.
            torch.manual_seed(0)
            model, inputs, is_real = self._make()
        _settle_masks(model)
        notes: list[str] = []
        if ticket is not None:
            apply_ticket(model, ticket, of=self.reference, path=str(self.ticket))
            if all(mask.all() for mask in ticket.masks.values()):
                notes.append(f"the ticket '{self.ticket}' drops nothing: it has no zero")
        from deploykit.export import export_tracked

        exported = export_tracked(model, inputs)
        path = folder / "exported.onnx"
        model_io.save(exported.model, path, external=False)
        blocks, lost = _place_blocks(exported, ticket)
        sha256 = ""
        if self.ticket is not None:
            with self.ticket.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        examples = _feeds(exported.model, inputs) if is_real else ()
        notes += [*exported.notes, *lost]
        return Written(path, blocks, tuple(notes), examples, ticket, sha256)

    def _make(self) -> tuple[torch.nn.Module, Tensors, bool]:
        """The module, what it is exported with, and whether that is data of a task, and not noise."""
        from deploykit.finder.task import Task, asking, load_object

        torch = load_torch()
        found: Any = load_object(self.reference)
        if callable(found) and not isinstance(found, torch.nn.Module | Task):
            found = _called(found, self.reference)
        if isinstance(found, Task):
            with asking(found, "model()"):
                model = found.model()
            with asking(found, "example_inputs()"):
                examples = tuple(found.example_inputs())
        else:
            model, examples = found, ()
        model = _unwrapped(model)
        if not isinstance(model, torch.nn.Module):
            msg = (
                f"'{self.reference}' gives a {type(model).__name__}, and no PyTorch model. Name a torch.nn.Module, a "
                "deploykit.finder.task.Task, or a function that returns one of them."
            )
            raise UsageError(msg)
        inputs = _inputs(model, examples, self.shapes, self.reference)
        real = {id(each) for each in examples}
        return model, inputs, all(id(each) in real for each in inputs)


def is_reference(source: Path) -> bool:
    """Whether what was given as a model names a Python object: it has a colon, and is no file."""
    head, colon, _ = str(source).partition(":")
    # A single letter is a drive of Windows.
    return bool(colon) and len(head) > 1 and not source.exists()


def apply_ticket(model: torch.nn.Module, ticket: Ticket, *, of: str, path: str) -> None:
    """Put a ticket's weights into a module, in place, and zero what its masks drop.

    Args:
        model: the module.
        ticket: the ticket; without weights, the module keeps its own.
        of: what a message calls the module.
        path: what it calls the ticket.

    Raises:
        UsageError: the ticket is of another model; the message names both.
    """
    torch = load_torch()
    state = {name: each for name, each in model.state_dict().items() if torch.is_tensor(each)}
    _check_names(ticket, state, of=of, path=path)
    for what, arrays in (("mask", ticket.masks), ("weight", ticket.weights)):
        for name, array in arrays.items():
            if tuple(state[name].shape) != array.shape:
                msg = (
                    f"the ticket '{path}' has a {what} of shape {list(array.shape)} for '{name}', which has "
                    f"{list(state[name].shape)} in '{of}'. {_other_model(ticket)}"
                )
                raise UsageError(msg)
    with torch.no_grad():
        for name, array in ticket.weights.items():
            state[name].copy_(torch.from_numpy(np.array(array)))
        for name, mask in ticket.masks.items():
            dropped = torch.from_numpy(~mask).to(state[name].device)
            state[name].masked_fill_(dropped, 0)


def _check_names(
    ticket: Ticket, state: Mapping[str, torch.Tensor], *, of: str, path: str
) -> None:
    """Check that a ticket has the weights of a state dict, and no others.

    Raises:
        UsageError: it has not. Where most of them fit, the message names those that do not.
    """
    names = {**ticket.masks, **ticket.weights}
    unknown = [name for name in names if name not in state]
    missing = [
        name
        for name in state
        # How many batches a BatchNorm saw has no part in what it computes.
        if ticket.weights and name not in ticket.weights and "num_batches" not in name
    ]
    if not unknown and not missing:
        return
    for name in unknown:
        if name.removesuffix("_mask") in state and not np.isin(names[name], (0, 1)).all():
            raise UsageError(f"in the ticket '{path}', {no_mask_text(name, names[name])}")
    fitting = len(names) - len(unknown)
    if fitting > len(unknown) and len(state) - len(missing) > len(missing):
        wrong = []
        if missing:
            wrong.append(f"has no weight for {_listed(missing)} of '{of}'")
        if unknown:
            wrong.append(f"has {_listed(unknown)}, which '{of}' lacks")
        msg = (
            f"the ticket '{path}' {', and '.join(wrong)}; {fitting} others fit. Save the whole state dict, or give the model as "
            "it was then."
        )
        raise UsageError(msg)
    there = _listed(list(state)) if state else "none"
    if unknown:
        what = "mask" if unknown[0] in ticket.masks else "weight"
        msg = (
            f"the ticket '{path}' has a {what} for '{unknown[0]}', which is not in '{of}'; there are {there}. "
            f"{_other_model(ticket)}"
        )
        raise UsageError(msg)
    msg = f"the ticket '{path}' has no weight for {_listed(missing)} of '{of}'. {_other_model(ticket)}"
    raise UsageError(msg)


def _other_model(ticket: Ticket) -> str:
    """That a ticket is of another model, of which one, and what to do."""
    task = ticket.provenance.get("task")
    found_on = f" It was found on '{task}'." if isinstance(task, str) else ""
    return (
        f"It is the ticket of another model.{found_on} Give the model that it was found with."
    )


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:MOST_NAMED]) + more


def _called(function: Any, reference: str) -> object:  # noqa: ANN401 - whatever the user put there
    try:
        return function()
    except DeploykitError:
        raise
    except Exception as error:
        from deploykit.finder.task import error_text

        msg = f"'{reference}' failed when it was called for a model: {error_text(error)}. Correct it."
        raise UsageError(msg) from error


def _unwrapped(model: Any) -> Any:  # noqa: ANN401 - whatever the user put there
    """The module that torch.compile or a parallel wrapper is put around, whose names are those of the ticket."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # noqa: SLF001 - what torch.compile calls it, in state dicts too
        else:
            return model


def _settle_masks(model: torch.nn.Module) -> None:
    """Make masks of torch.nn.utils.prune part of the weights, which then have their own names again."""
    from torch.nn.utils import prune

    for module in model.modules():
        hooks = [
            hook
            for hook in module._forward_pre_hooks.values()  # noqa: SLF001 - prune.remove finds them so
            if isinstance(hook, prune.BasePruningMethod)
        ]
        for hook in hooks:
            prune.remove(module, hook._tensor_name)  # noqa: SLF001 - the only place of that name


def _inputs(
    model: torch.nn.Module,
    examples: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    reference: str,
) -> Tensors:
    """Example inputs: those of the task, and generated ones where sizes are given that these do not have.

    Raises:
        UsageError: a size is given for no input, or none for one that has no example.
    """
    torch = load_torch()
    parameters = inspect.signature(model.forward).parameters.values()
    several = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    names = [
        each.name
        for each in parameters
        if each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD}
    ]
    needed = [each.name for each in parameters if each.default is each.empty]
    if several and examples:
        return examples
    for name in shapes:
        if name not in names:
            msg = (
                f"a shape is given for '{name}', which is no input of '{reference}'. The parameters of its forward: "
                f"{', '.join(names)}."
            )
            raise UsageError(msg)
    kind = next(
        (each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32
    )
    dice = torch.Generator().manual_seed(0)
    found = []
    for index, name in enumerate(names):
        example = examples[index] if index < len(examples) else None
        wanted = shapes.get(name)
        if example is None and wanted is None:
            if examples or name not in needed:
                break
            msg = (
                f"'{reference}' is a model without a task, so nothing says what it reads. Give the size of its input "
                f"'{name}', as --shape {name}:1x3x32x32, or a deploykit.finder.task.Task with example_inputs()."
            )
            raise UsageError(msg)
        if example is None or (
            wanted is not None and tuple(example.shape[1:]) != tuple(wanted[1:])
        ):
            if example is not None and not example.is_floating_point():
                msg = f"the input '{name}' holds {example.dtype}, for which no sizes can be given. Change the example inputs."
                raise UsageError(msg)
            drawn = torch.randn(wanted, generator=dice)
            example = drawn.to(kind if example is None else example.dtype)
        found.append(example)
    return tuple(found)


def _feeds(exported: ir.Model, inputs: Tensors) -> tuple[Feeds, ...]:
    """Example inputs by the names of an exported model: one by one where it takes any batch, else as they are."""
    arrays = {
        str(value.name): tensor.detach().cpu().numpy()
        for value, tensor in zip(exported.graph.inputs, inputs, strict=True)
    }
    is_open = {
        str(value.name)
        for value in exported.graph.inputs
        if value.shape is not None
        and value.shape.rank()
        and not isinstance(value.shape[0], int)
    }
    if not is_open:
        return (arrays,)
    return tuple(
        {
            name: array[index : index + 1] if name in is_open else array
            for name, array in arrays.items()
        }
        for index in range(min(MOST_EXAMPLES, *(len(arrays[name]) for name in is_open)))
    )


def _place_blocks(
    exported: Exported, ticket: Ticket | None
) -> tuple[dict[str, PlacedBlocks], tuple[str, ...]]:
    """The ticket's blocks by initializer, and a note for each weight whose blocks have no place any more."""
    from passes.weights import constant

    placed: dict[str, PlacedBlocks] = {}
    lost = dict.fromkeys(ticket.blocks if ticket else ())
    for initializer, origin in exported.origins.items():
        if ticket is None or origin.name not in ticket.blocks:
            continue
        array = constant(exported.model.graph.initializers[initializer])
        mask = ticket.masks[origin.name]
        # A BatchNorm scales rows; whatever else was done to a weight would show outside of the blocks.
        if array is not None and not (array.T if origin.is_transposed else array)[~mask].any():
            placed[initializer] = PlacedBlocks(ticket.blocks[origin.name], origin.is_transposed)
            lost.pop(origin.name, None)
    return placed, tuple(
        f"the blocks of '{name}' are not used: the exported model has no such weight any more"
        for name in lost
    )
