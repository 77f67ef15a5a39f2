"""Reads and writes model files, and refuses early what would go wrong silently later.

The protobuf is looked at before onnx_ir sees it, because onnx_ir drops sparse initializers without a word. Large weights
stay on disk, memory-mapped, in data files or in the model itself (see `one_file`). A file is never written over one that the model was read from: weights
that have not been read yet would silently change.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import one_file, refusals
from deploykit.background import Later
from deploykit.errors import ModelError, UnsupportedModel, UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = [
    "MAX_IR_VERSION",
    "Source",
    "check_shapes",
    "content_hash",
    "data_file",
    "load",
    "save",
    "saved_bytes",
]

MAX_IR_VERSION = 13
"""The newest IR version that ONNX Runtime 1.31 reads; newer `onnx` packages write newer ones by default."""

FREE_INITIALIZERS = 4
"""The first IR version in which an initializer need not be an input as well."""

ONE_FILE_LIMIT_BYTES = 2**31 - 2**24
"""protobuf's limit of 2 GiB, less room for everything that is not a weight."""

SMALL_BYTES = 256
"""Weights up to this size stay in the model even if the others get a file of their own: sizes and axes have to."""

CHANNEL_AXES = {"Conv": 1, "ConvTranspose": 0}
"""The axis of their first weight that meets the channels of their input."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A model as it was read.

    Attributes:
        model: the model, its large weights still on disk.
        path: the file it was read from.
        data_files: the external data files that belong to it, sorted.
    """

    model: ir.Model
    path: Path
    data_files: tuple[Path, ...]
    _hash: Later[str] | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the content.

        Of the file, or where there are data files, of the lines `<sha256>  <name>` of all files, as `sha256sum` prints
        them, the model's first.
        """
        return (
            content_hash(self.path, self.data_files)
            if self._hash is None
            else self._hash.result()
        )

    @property
    def is_external(self) -> bool:
        """Whether weights lie in files of their own."""
        return bool(self.data_files)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return (self.path, *self.data_files)


def load(path: Path, *, hash_ahead: bool = False) -> Source:
    """Read a model.

    Args:
        path: the file.
        hash_ahead: whether to hash its files in the background from now on, because the hash will be wanted.

    Raises:
        UsageError: there is no such file.
        UnsupportedModel: it is no ONNX model, or one that deploykit does not handle; the message says why.
    """
    import onnx
    import onnx_ir as ir

    proto = refusals.parse(path)
    refusals.refuse_names(proto, path)
    refusals.refuse_versions(
        proto, path, ir_version=MAX_IR_VERSION, opset=onnx.defs.onnx_opset_version()
    )
    _refuse_sparse(proto, path)
    refusals.refuse_functions(proto, path)
    data_files = refusals.refuse_damaged_weights(proto, path)
    hashing = None
    if hash_ahead:
        # Hashing leaves the interpreter to others, and takes a second for a gigabyte.
        hashing = Later(lambda _: content_hash(path, data_files))
    is_sorted = _refuse_unbound(proto.graph, frozenset(), path)
    if is_sorted:
        # What comes before its inputs cannot be inferred; runtimes sort such graphs first, and so do we, below.
        _refuse_misshapen(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
        if not is_sorted:
            inner = [function.graph for function in model.functions.values()]
            for graph in (model.graph, *inner):
                graph.sort()
    except (
        Exception
    ) as error:  # onnx_ir raises many kinds, all of them about the file's content
        msg = f"'{path}' is damaged: {_root(error)}. Check it with onnx.checker, or export it again."
        raise UnsupportedModel(msg) from error
    _trust_weights(model)
    one_file.resolve(model, path)
    return Source(model, path, data_files, hashing)


def check_shapes(source: Source, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check sizes that were given for inputs against the model.

    Raises:
        UsageError: they name no input, have another rank, or contradict a size that is fixed.
    """
    inputs = {
        str(value.name): value
        for value in source.model.graph.inputs
        if value.name not in source.model.graph.initializers
    }
    for name, shape in shapes.items():
        if name not in inputs:
            msg = f"a shape is given for '{name}', which is no input of the model. Its inputs: {', '.join(inputs)}."
            raise UsageError(msg)
        declared = inputs[name].shape
        if declared is None:
            continue
        fits = len(declared) == len(shape) and all(
            not isinstance(size, int) or size == given
            for size, given in zip(declared, shape, strict=True)
        )
        if not fits:
            text = "x".join(
                "?" if not isinstance(size, int) else str(size) for size in declared
            )
            msg = f"the shape {'x'.join(map(str, shape))} does not fit the input '{name}', which is {text}."
            raise UsageError(msg)


def save(model: ir.Model, path: Path, *, external: bool, sources: Sequence[Path] = ()) -> None:
    """Write a model, as one file, or with its weights beside it as `<name>.data`.

    The IR version stays that of the model, lowered to `MAX_IR_VERSION` where it is newer.

    Args:
        model: the model; unchanged afterwards.
        path: where to; the folder exists.
        external: whether the weights get a file of their own; above 2 GiB they do in any case.
        sources: files that the model may still be reading weights from.

    Raises:
        UsageError: the destination is one of the sources.
        ModelError: the model cannot be serialized.
    """
    import onnx_ir as ir

    data = data_file(path)
    taken = {file.resolve() for file in sources} & {path.resolve(), data.resolve()}
    if taken:
        msg = f"cannot write '{path}': the model was read from {taken.pop()}. Choose another place."
        raise UsageError(msg)
    external = external or _weights_bytes(model) > ONE_FILE_LIMIT_BYTES
    written = _without_small_views(model)
    written.ir_version = min(_version_for(model), MAX_IR_VERSION)
    try:
        if external:
            ir.save(written, path, external_data=data.name, size_threshold_bytes=SMALL_BYTES)
        else:
            one_file.save(written, path)
    except (ValueError, RuntimeError, TypeError) as error:
        msg = f"cannot serialize the model for '{path}': {error}"
        raise ModelError(msg) from error


def _version_for(model: ir.Model) -> int:
    """The IR version of the model, or the first one that allows what it holds.

    Before version 4 every initializer is an input too. Runtimes forgive one that is not, unless only a subgraph reads it.
    """
    listed = all(value.is_graph_input() for value in model.graph.initializers.values())
    return model.ir_version if listed else max(model.ir_version, FREE_INITIALIZERS)


def data_file(path: Path) -> Path:
    """Where `save` puts the weights of a model that does not hold them itself."""
    return path.with_name(path.name + ".data")


def saved_bytes(path: Path) -> int:
    """Bytes on disk of a model that `save` wrote, its data file included."""
    data = data_file(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _trust_weights(model: ir.Model) -> None:
    """Give initializers the shapes of their data, whatever `value_info` says about them.

    Runtimes do the same; files in which the two disagree run, and would fail in shape inference later.
    """
    import onnx_ir as ir

    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and value.shape != value.const_value.shape:
                value.shape = ir.Shape(value.const_value.shape.numpy())


def _refuse_sparse(proto: onnx.ModelProto, path: Path) -> None:
    for graph in refusals.graphs(proto):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            msg = (
                f"'{path}' stores {len(graph.sparse_initializer)} weights ('{name}' first) as sparse_initializer, "
                "which most runtimes do not read. Store them densely: deploykit finds the zeros by itself."
            )
            raise UnsupportedModel(msg)
    for node in refusals.nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                msg = (
                    f"node '{node.name}' ({node.op_type}) of '{path}' holds a sparse tensor in '{attribute.name}'. "
                    "Store it densely: deploykit finds the zeros by itself."
                )
                raise UnsupportedModel(msg)


def _refuse_unbound(graph: onnx.GraphProto, outer: frozenset[str], path: Path) -> bool:
    """Refuse nodes that can never run: an input is made nowhere, or only by what waits for the node itself.

    Args:
        graph: the graph, or a subgraph of it.
        outer: names that the graphs around it give.
        path: the file, for the message.

    Returns:
        whether every node comes after what it reads, subgraphs included.

    Raises:
        UnsupportedModel: there is such a node.
    """
    given = {*outer, *(value.name for value in graph.input)}
    given |= {tensor.name for tensor in graph.initializer}
    makers = {
        name: index for index, node in enumerate(graph.node) for name in node.output if name
    }
    everything = frozenset(given | makers.keys())
    needs: list[set[int]] = []
    is_sorted = True
    for index, node in enumerate(graph.node):
        read = [name for name in node.input if name]
        inner = [name for each in refusals.subgraphs(node) for name in _free_names(each)]
        for name in read:
            if name not in everything:
                msg = f"node {refusals.title(node)} of '{path}' reads '{name}', which nothing in the model makes. Export it again."
                raise UnsupportedModel(msg)
        for each in refusals.subgraphs(node):
            is_sorted &= _refuse_unbound(each, everything, path)
        needs.append(
            {makers[name] for name in [*read, *inner] if name in makers and name not in given}
        )
        is_sorted &= all(maker < index for maker in needs[-1])
    for value in graph.output:
        if value.name not in everything:
            msg = f"the output '{value.name}' of '{path}' is made by nothing in the model. Export it again."
            raise UnsupportedModel(msg)
    if not is_sorted:
        _refuse_cycle(graph, needs, path)
    return is_sorted


def _refuse_cycle(graph: onnx.GraphProto, needs: Sequence[set[int]], path: Path) -> None:
    from graphlib import CycleError, TopologicalSorter

    try:
        TopologicalSorter(dict(enumerate(needs))).prepare()
    except CycleError as error:
        later, earlier = (graph.node[index] for index in error.args[1][-2:])
        tensor = next((name for name in later.input if name in earlier.output), "")
        tensor = tensor or next((name for name in earlier.input if name in later.output), "")
        msg = (
            f"'{path}' has a cycle: node {refusals.title(later)} waits for its own result, by way of '{tensor}'. "
            "Export it again."
        )
        raise UnsupportedModel(msg) from error


def _free_names(graph: onnx.GraphProto) -> set[str]:
    """What a subgraph reads from the graphs around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    read = {name for node in graph.node for name in node.input if name}
    read |= {value.name for value in graph.output}
    for node in graph.node:
        for inner in refusals.subgraphs(node):
            read |= _free_names(inner)
    return read - own


def _refuse_misshapen(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse what no runtime loads: nodes whose inputs have shapes or types that their operator does not take.

    Shapes in `value_info` and of outputs are not looked at: runtimes correct those, and only warn.
    """
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(proto), strict_mode=True)
    except Exception as error:  # onnx raises many kinds, all of them about the model
        msg = f"'{path}' is no valid model: {_inference_text(error)}. Export it again."
        raise UnsupportedModel(msg) from error
    channels = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in (*inferred.graph.value_info, *inferred.graph.input)
        if len(value.type.tensor_type.shape.dim) > 1
    }
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        # Shape inference does not compare these, and runtimes only notice when the node runs.
        if node.op_type not in CHANNEL_AXES or len(node.input) < 2:
            continue
        weight, there = weights.get(node.input[1]), channels.get(node.input[0], 0)
        if weight is None or not there or len(weight.dims) <= CHANNEL_AXES[node.op_type]:
            continue
        parts = [each.i for each in node.attribute if each.name == "group"]
        wanted = weight.dims[CHANNEL_AXES[node.op_type]]
        wanted *= parts[0] if parts and node.op_type == "Conv" else 1
        if wanted != there:
            msg = (
                f"'{path}' is no valid model: weight '{weight.name}' of node {refusals.title(node)} takes {wanted} "
                f"channels, and '{node.input[0]}' has {there}. Export it again."
            )
            raise UnsupportedModel(msg)


def _inference_text(error: Exception) -> str:
    """The first complaint of shape inference, in one line."""
    lines = [line for line in str(error).splitlines() if "(op_type:" in line]
    line = lines[0] if lines else " ".join(str(error).split())
    found = re.search(r"\(op_type:([^,)]*)(?:, node name: ([^)]*))?\):\s*(.*)", line)
    text = re.sub(r"\[\w+Error\]\s*", "", found[3] if found else line).strip().rstrip(".")
    if not found:
        return text
    return (
        f"node '{found[2] or ''}' ({found[1]}): {text}" if found[2] else f"{found[1]}: {text}"
    )


def _root(error: BaseException) -> str:
    """What the innermost of a chain of errors says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".")


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large weights as inputs, so that inferring shapes costs the same whatever they weigh."""
    import onnx

    slim = onnx.ModelProto(
        ir_version=max(proto.ir_version, 4),
        opset_import=proto.opset_import,
        functions=proto.functions,
    )
    graph = slim.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    # An initializer that is an input as well is described by its own data.
    graph.input.extend(value for value in proto.graph.input if value.name not in weights)
    for value in proto.graph.output:
        graph.output.add(name=value.name)
    for tensor in weights.values():
        if tensor.external_data or math.prod(tensor.dims) > SMALL_BYTES:
            described = graph.input.add(name=tensor.name).type.tensor_type
            described.elem_type = tensor.data_type
            described.shape.SetInParent()
            for size in tensor.dims:
                described.shape.dim.add(dim_value=size)
        else:
            graph.initializer.append(tensor)
    return slim


def content_hash(path: Path, data_files: Sequence[Path]) -> str:
    """The hash that `Source.sha256` describes."""
    first = _file_hash(path)
    if not data_files:
        return first
    lines = [f"{first}  {path.name}"]
    lines += [
        f"{_file_hash(file)}  {file.relative_to(path.parent).as_posix()}" for file in data_files
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_small_views(model: ir.Model) -> ir.Model:
    """A clone whose small weights are in memory.

    onnx_ir moves small weights from a data file into the model by itself, but then closes that file's mapping, which
    fails as long as anybody still looks at the weight.
    """
    import onnx_ir as ir

    from passes.weights import fill

    copy = model.clone()
    for graph in (copy.graph, *copy.graph.subgraphs()):
        for value in graph.initializers.values():
            held = value.const_value
            if isinstance(held, ir.ExternalTensor) and held.nbytes <= SMALL_BYTES:
                fill(value, held.numpy().copy())
    return copy


def _weights_bytes(model: ir.Model) -> int:
    from passes.weights import size_bytes

    return size_bytes(model)
