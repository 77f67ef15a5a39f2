"""Turns a PyTorch module into an ONNX model in memory, and proves that both compute the same.

    module -> torch.export -> raw graph, export_for_analysis -> weights transposed, simplified, compared -> export

Weights keep the names of the state dict. What a Linear layer transposes keeps its name too, so that a mask or a block of a
ticket is found again; `Exported.origins` says which way round it lies. Both forms are of the module in evaluation mode,
and leave it as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import ModelError, UsageError
from deploykit.foreign_tickets import load_torch

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = [
    "Exported",
    "Origin",
    "Tensors",
    "export",
    "export_for_analysis",
    "export_tracked",
    "fold_transposes",
]

logger = logging.getLogger(__name__)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Tensors: TypeAlias = "tuple[torch.Tensor, ...]"

LOGGERS = ("torch", "onnxscript", "onnx_ir")
REASON_LIMIT = 400
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an initializer comes from.

    Attributes:
        name: the weight's name in the state dict.
        is_transposed: whether it is the transpose of the weight: its rows are the weight's columns.
    """

    name: str
    is_transposed: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A module as an ONNX model.

    Attributes:
        model: the model.
        origins: the weights of the state dict that are still there, by initializer; scaled, where a BatchNorm was folded.
        notes: what could not be done as it should, in words.
    """

    model: ir.Model
    origins: Mapping[str, Origin]
    notes: tuple[str, ...] = ()


def export_for_analysis(model: torch.nn.Module, example_inputs: Tensors) -> ir.Model:
    """Export a module as it is written, for analyses that speak of its weights by name.

    Nothing is simplified: every parameter that is used is an initializer under its name and in its shape, a BatchNorm is a
    node of its own, and a Linear layer transposes its weight first. `passes.Tidy` folds that, and loses such names.

    Args:
        model: the module.
        example_inputs: what its `forward` is called with.

    Raises:
        UsageError: the module does not run on the inputs, or the extra `torch` is not installed.
        ModelError: the module cannot be exported.
    """
    _run(model, example_inputs)
    return _export_raw(model, example_inputs, dynamic_batch=True)[0]


def export(
    model: torch.nn.Module, example_inputs: Tensors, *, dynamic_batch: bool = True
) -> ir.Model:
    """Export a module to be deployed; see `export_tracked`. Where the batch had to be fixed, a logged warning says so."""
    found = export_tracked(model, example_inputs, dynamic_batch=dynamic_batch)
    for note in found.notes:
        logger.warning("%s", note)
    return found.model


def export_tracked(
    model: torch.nn.Module, example_inputs: Tensors, *, dynamic_batch: bool = True
) -> Exported:
    """Export a module to be deployed, and compare what the model computes with what the module does.

    BatchNorm is folded where that is exact. Inputs have the names of the parameters of `forward`, outputs the keys of the
    dict that it returns, or `output` (`output_0`, `output_1`, ...).

    Args:
        model: the module.
        example_inputs: what its `forward` is called with.
        dynamic_batch: whether to leave the first axis open of all inputs that are as long there as the first one. Where that
            cannot be, it gets the size of the examples, and a note says why.

    Returns:
        the model, with where its weights come from.

    Raises:
        UsageError: the module does not run on the inputs, or the extra `torch` is not installed.
        ModelError: the module cannot be exported, or the exported model computes something else.
    """
    names = [name for name, _ in _run(model, example_inputs)]
    found, notes = _export_raw(model, example_inputs, dynamic_batch=dynamic_batch)
    graph = found.graph
    inputs = [str(value.name) for value in graph.inputs]
    state = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name in graph.initializers
    }
    origins = {name: Origin(name, is_transposed=False) for name in state}
    origins |= fold_transposes(graph, list(state))
    with _captured():
        from onnxscript import optimizer

        optimizer.optimize(found)
    _settle_names(found, inputs, names)
    # What the simplification made of a weight in another shape is not that weight any more.
    origins = {
        name: origin
        for name, origin in origins.items()
        if name in graph.initializers
        and graph.initializers[name].shape
        == (state[origin.name][::-1] if origin.is_transposed else state[origin.name])
    }
    _name_nodes(graph, origins)
    _compare(found, model, example_inputs, is_open=dynamic_batch and not notes)
    return Exported(found, origins, notes)


def _export_raw(
    model: torch.nn.Module, example_inputs: Tensors, *, dynamic_batch: bool
) -> tuple[ir.Model, tuple[str, ...]]:
    """The module as the exporter writes it down, and notes."""
    torch = load_torch()
    try:
        import onnxscript  # noqa: F401 - the exporter needs it, and would tell so in many lines
    except ImportError as error:
        msg = f"the export needs onnxscript, which is not installed ({error}). Run: pip install 'deploykit-onnx[torch]'"
        raise UsageError(msg) from error
    notes: tuple[str, ...] = ()
    inputs = _on_device(model, example_inputs)
    batch = inputs[0].shape[0] if inputs[0].ndim else 0
    with _evaluating(model), _in_rows(model), torch.no_grad(), _captured() as told:
        try:
            # The exporter takes an axis of size 1 for a fixed one.
            open_inputs = _resized(inputs, max(batch, 2)) if dynamic_batch else inputs
            program = _convert(model, open_inputs, dynamic_batch=dynamic_batch)
        except Exception as error:  # the exporter raises many kinds, and the user's code any
            logger.debug("the exporter said: %s\n%s", error, told.getvalue())
            if not dynamic_batch:
                raise _not_exported(model, error) from error
            try:
                program = _convert(model, inputs, dynamic_batch=False)
            except Exception as second:
                raise _not_exported(model, second) from second
            note = (
                f"the exported model takes batches of {batch} only, because {type(model).__name__} fixes the size: "
                f"{_reason(error)}. Change the model, or export it with example inputs of the batch you deploy with"
            )
            notes = (note,)
    _own(program.model)
    return program.model, notes


def _convert(
    model: torch.nn.Module, inputs: Tensors, *, dynamic_batch: bool
) -> torch.onnx.ONNXProgram:
    import torch

    open_axes: Any = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        axes = [{0: batch} if _has_batch(tensor, inputs) else {} for tensor in inputs]
        open_axes = dict(inspect.signature(model.forward).bind(*axes).arguments)
    exported = torch.export.export(model, inputs, dynamic_shapes=open_axes, strict=False)
    program = torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False)
    if program is None:
        msg = "Pass developer: the exporter returned nothing"
        raise ModelError(msg)
    return program


def _has_batch(tensor: torch.Tensor, inputs: Tensors) -> bool:
    """Whether the first axis of an input is as long as that of the first input, and so the batch."""
    return tensor.ndim > 0 and inputs[0].ndim > 0 and tensor.shape[0] == inputs[0].shape[0]


def _resized(inputs: Tensors, batch: int) -> Tensors:
    """The inputs with their examples repeated until there are so many."""
    import torch

    return tuple(
        tensor[torch.arange(batch, device=tensor.device) % tensor.shape[0]]
        if _has_batch(tensor, inputs)
        else tensor
        for tensor in inputs
    )


def _run(model: torch.nn.Module, inputs: Tensors) -> list[tuple[str, torch.Tensor]]:
    """What a module computes in evaluation mode: its tensors, each with a name.

    Raises:
        UsageError: it does not run.
    """
    torch = load_torch()
    if (
        not isinstance(inputs, tuple)
        or not inputs
        or not all(isinstance(each, torch.Tensor) for each in inputs)
    ):
        msg = (
            f"the example inputs of {type(model).__name__} are no tuple of tensors. Give one tensor for each parameter of "
            "its forward, as (images,)."
        )
        raise UsageError(msg)
    with _evaluating(model), torch.no_grad(), _captured():
        try:
            outputs = model(*_on_device(model, inputs))
        except Exception as error:  # whatever the user's code raises
            shapes = ", ".join(str(list(each.shape)) for each in inputs)
            msg = (
                f"{type(model).__name__} does not run on its example inputs {shapes}: {_reason(error)}. Correct the model, "
                "its example inputs, or the sizes given with --shape."
            )
            raise UsageError(msg) from error
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(outputs)  # noqa: SLF001 - that is how the exporter sees them
    found = [(_output_name(path), leaf) for path, leaf in leaves if torch.is_tensor(leaf)]
    if not found:
        msg = f"{type(model).__name__} returns no tensor, but a {type(outputs).__name__}. Return its outputs from forward."
        raise UsageError(msg)
    return found


def _output_name(path: Sequence[Any]) -> str:
    """The name of an output at this place of what a module returns: `output`, `output_1`, or keys."""
    parts = [str(getattr(part, "key", getattr(part, "idx", part))) for part in path]
    is_named = parts and not parts[0].isdecimal()
    return "_".join(parts if is_named else ["output", *parts])


def _on_device(model: torch.nn.Module, inputs: Tensors) -> Tensors:
    """The inputs where the parameters of a module lie, in rows: see `_in_rows`."""
    parameter = next(model.parameters(), None)
    device = None if parameter is None else parameter.device
    return tuple(_rows(each.to(device)) for each in inputs)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor laid out row by row.

    `contiguous()` is not enough: where a size is 1, strides of `channels_last` pass for contiguous, and are passed on.
    """
    import torch

    if tensor.stride() == torch.empty(tensor.shape, device="meta").stride():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def _in_rows(model: torch.nn.Module) -> Iterator[None]:
    """Lay the weights of a module out as they are counted; afterwards they lie as they did.

    Of a module in `channels_last` the exporter writes down how its tensors lie in memory, as Gathers with computed indices,
    where all that was meant is a Reshape.
    """
    tensors = [*model.parameters(), *model.buffers()]
    before = [(tensor, tensor.data) for tensor in tensors]
    for tensor, data in before:
        tensor.data = _rows(data)
    try:
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A module in evaluation mode; afterwards every part of it is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Keep what libraries and the user's model print, warn of and log: it is of interest only when something fails."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for name in list(logging.root.manager.loggerDict):
        each = logging.getLogger(name)
        if each.handlers and name.partition(".")[0] in LOGGERS and each not in loggers:
            loggers.append(each)
    before = [(each, each.handlers[:], each.propagate) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [handler], False
    try:
        with (
            contextlib.redirect_stdout(told),
            contextlib.redirect_stderr(told),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield told
    finally:
        for each, handlers, propagate in before:
            each.handlers, each.propagate = handlers, propagate


def _not_exported(model: torch.nn.Module, error: Exception) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be exported to ONNX: {_reason(error)}. The exporter follows one path through forward, "
        "so what that path depends on must be no tensor's value; --log-file keeps all that it says."
    )


def _reason(error: BaseException) -> str:
    """What the innermost of a chain of errors says, and where, in one line."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    texts: list[str] = []
    for each in chain:
        lines = [line.strip() for line in COLOURS.sub("", str(each)).splitlines()]
        lines = [line for line in lines if line] or [type(each).__name__]
        listed = [line.removeprefix("- ").split(". ")[0] for line in lines if line[:2] == "- "]
        # Where there is a list, the line above it only announces it.
        said = listed[0] if listed and not lines[0].startswith("Failed to ") else lines[0]
        if not said.startswith("Failed to ") and said not in texts:
            texts.append(said.rstrip("."))
    return ": ".join(texts[-2:])[:REASON_LIMIT]


def _own(model: ir.Model) -> None:
    """Copy the weights, which the module may change later, and drop which line of the user's files each node is from."""
    from passes import weights

    graph = model.graph
    for value in graph.initializers.values():
        held = weights.constant(value)
        if held is not None:
            weights.set_tensor(value, np.array(held))
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    graph.metadata_props.clear()


def fold_transposes(graph: ir.Graph, names: Sequence[str]) -> dict[str, Origin]:
    """Carry out what Linear layers do to their weights; the result gets the weight's name, where nobody else reads that.

    Args:
        graph: as the exporter writes it down; changed.
        names: initializers to look at.

    Returns:
        where the transposes come from, by initializer.
    """
    from passes import weights

    found: dict[str, Origin] = {}
    for name in names:
        value = graph.initializers[name]
        array = weights.constant(value)
        turned = [
            use.node
            for use in value.uses()
            if use.node.op_type == "Transpose"
            and not use.node.outputs[0].is_graph_output()
            and list(use.node.attributes.get_ints("perm", [1, 0])) == [1, 0]
        ]
        if array is None or array.ndim != 2 or not turned:
            continue
        if len(turned) == len(value.uses()) and not value.is_graph_output():
            graph.initializers.pop(name)
        new = weights.new_initializer(graph, name, np.ascontiguousarray(array.T))
        for node in turned:
            node.outputs[0].replace_all_uses_with(new)
            graph.remove(node, safe=True)
        found[str(new.name)] = Origin(name, is_transposed=True)
    return found


def _settle_names(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs, the outputs and the open axis the names that a user can work with."""
    import onnx_ir as ir

    from passes import weights

    graph = model.graph
    made = [
        value
        for value in graph.outputs
        if not value.is_graph_input() and not value.is_initializer()
    ]
    for value in made:
        value.name = weights.free_name(graph, f"deploykit.{value.name}")
    # An input that is returned as it is loses its name to the output in the simplification.
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=False):
        if value in made:
            value.name = weights.free_name(graph, name)
    symbols = {
        size.value
        for value in graph.inputs
        for size in value.shape or ()
        if isinstance(size, ir.SymbolicDim) and size.value is not None
    }
    if len(symbols) != 1:
        return
    symbol = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if value.shape and isinstance(size, ir.SymbolicDim) and size.value is not None:
                value.shape[axis] = ir.SymbolicDim(symbol.sub("batch", size.value))


def _name_nodes(graph: ir.Graph, origins: Mapping[str, Origin]) -> None:
    """Call a node that has a weight by the module that it comes from, as far as that is only one node's."""
    makers: dict[str, list[ir.Node]] = {}
    for node in graph:
        for value in node.inputs[1:2]:
            origin = origins.get(str(value.name)) if value is not None else None
            if origin is not None and origin.name.endswith(".weight"):
                makers.setdefault(origin.name.removesuffix(".weight"), []).append(node)
    taken = {node.name for node in graph}
    for name, nodes in makers.items():
        if len(nodes) == 1 and name not in taken:
            nodes[0].name = name


def _compare(
    exported: ir.Model, model: torch.nn.Module, example_inputs: Tensors, *, is_open: bool
) -> None:
    """Hold what an exported model computes in ONNX Runtime against what its module does.

    Args:
        exported: the model.
        model: the module.
        example_inputs: what both are run on, in their order and backwards.
        is_open: whether to try another batch size as well.

    Raises:
        ModelError: they differ, or the runtime does not take the model.
    """
    from deploykit import model_io, validate

    names = [str(value.name) for value in exported.graph.inputs]
    outputs = [str(value.name) for value in exported.graph.outputs]
    what = f"the exported {type(model).__name__}"
    if len(names) != len(example_inputs):
        msg = f"{what} has the inputs {', '.join(names)}, and {len(example_inputs)} example inputs were given. Give one each."
        raise ModelError(msg)
    batch = example_inputs[0].shape[0] if example_inputs[0].ndim else 0
    backwards = tuple(
        tensor.flip(0) if _has_batch(tensor, example_inputs) else tensor
        for tensor in example_inputs
    )
    tried = [example_inputs, backwards]
    if is_open:
        tried.append(_resized(example_inputs, 2 * batch + 1))
    feeds, expected = [], []
    for inputs in tried:
        returned = [tensor.detach().cpu() for _, tensor in _run(model, inputs)]
        if len(returned) != len(outputs):
            msg = f"{what} has {len(outputs)} outputs, and the module returns {len(returned)}. Return tensors only."
            raise ModelError(msg)
        feeds.append(dict(zip(names, map(_array, inputs), strict=True)))
        expected.append(dict(zip(outputs, map(_array, returned), strict=True)))
    with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
        path = Path(folder) / "exported.onnx"
        model_io.save(exported, path, external=False)
        reference = validate.Reference(
            str(path),
            tuple(feeds),
            tuple(expected),
            validate.find_precision(path),
            threads=None,
            given=len(feeds),
        )
        found = validate.compare(reference, path)
    if found.verdict != "equal":
        why = found.failure or (
            f"output '{found.worst}' is off by {found.max_rel_error:.2g} of what it moves by, and {found.tolerance:.2g} is allowed"
        )
        msg = (
            f"{what} does not compute in ONNX Runtime what the module does in PyTorch: {why}. Does its forward depend on "
            "chance, or on what it was called with before?"
        )
        raise ModelError(msg)


def _array(tensor: torch.Tensor) -> Array:
    """A tensor as an array.

    Raises:
        ModelError: numpy has no such type.
    """
    try:
        array: Array = tensor.detach().cpu().numpy()
    except TypeError as error:
        msg = f"the model works on {tensor.dtype}, which cannot be run here: {error}. Convert it to float32 first."
        raise ModelError(msg) from error
    return array
