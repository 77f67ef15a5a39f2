"""Reads and writes model files, and refuses early what would go wrong silently later.

The protobuf is looked at before onnx_ir sees it, because onnx_ir drops sparse initializers without a word. Weights in
external data files stay on disk, memory-mapped. A file is never written over one that the model was read from: weights
that have not been read yet would silently change.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ModelError, UnsupportedModel, UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = [
    "MAX_IR_VERSION",
    "Source",
    "content_hash",
    "data_file",
    "load",
    "save",
    "saved_bytes",
]

MAX_IR_VERSION = 13
"""The newest IR version that ONNX Runtime 1.31 reads; newer `onnx` packages write newer ones by default."""

ONE_FILE_LIMIT_BYTES = 2**31 - 2**24
"""protobuf's limit of 2 GiB, less room for everything that is not a weight."""

SMALL_BYTES = 256
"""Weights up to this size stay in the model even if the others get a file of their own: sizes and axes have to."""

# What people hand over by mistake, known by its first bytes.
LOOKALIKES = {
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch checkpoint: export it with torch.onnx.export first",
    b"\x80\x02": "a pickle, perhaps an old PyTorch checkpoint: export it with torch.onnx.export first",
    b"\x89HDF": "an HDF5 file, perhaps from Keras: convert it with tf2onnx first",
    b"ftrt": "a TensorRT engine: deploykit needs the ONNX file it was built from",
    b"version https://git-lfs": "a Git LFS pointer: fetch the real file with 'git lfs pull'",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model as it was read.

    Attributes:
        model: the model, its external weights still on disk.
        path: the file it was read from.
        data_files: the external data files that belong to it, sorted.
        sha256: hash of the content: of the file, or where there are data files, of the lines `<sha256>  <name>`
            of all files, as `sha256sum` prints them, the model's first.
    """

    model: ir.Model
    path: Path
    data_files: tuple[Path, ...]
    sha256: str

    @property
    def is_external(self) -> bool:
        """Whether weights lie in files of their own."""
        return bool(self.data_files)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return (self.path, *self.data_files)


def load(path: Path) -> Source:
    """Read a model.

    Raises:
        UsageError: there is no such file.
        UnsupportedModel: it is no ONNX model, or one that deploykit does not handle; the message says why.
    """
    import onnx
    import onnx_ir as ir

    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        msg = f"cannot read the model '{path}': it {kind}. Give the path of an .onnx file."
        raise UsageError(msg)
    proto = _parse(path)
    _refuse_new(proto, path, onnx.defs.onnx_opset_version())
    _refuse_sparse(proto, path)
    data_files = _check_data_files(proto, path)
    try:
        model = ir.serde.deserialize_model(proto)
    except (
        Exception
    ) as error:  # onnx_ir raises many kinds, all of them about the file's content
        msg = f"'{path}' is damaged: {error}. Check it with onnx.checker, or export it again."
        raise UnsupportedModel(msg) from error
    _trust_weights(model)
    ir.external_data.set_base_dir(model.graph, str(path.parent))
    for function in model.functions.values():
        ir.external_data.set_base_dir(function.graph, str(path.parent))
    return Source(model, path, data_files, content_hash(path, data_files))


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
    written.ir_version = min(model.ir_version, MAX_IR_VERSION)
    try:
        ir.save(
            written,
            path,
            external_data=data.name if external else None,
            size_threshold_bytes=SMALL_BYTES,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        msg = f"cannot serialize the model for '{path}': {error}"
        raise ModelError(msg) from error


def data_file(path: Path) -> Path:
    """Where `save` puts the weights of a model that does not hold them itself."""
    return path.with_name(path.name + ".data")


def saved_bytes(path: Path) -> int:
    """Bytes on disk of a model that `save` wrote, its data file included."""
    data = data_file(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError
    from google.protobuf.text_format import ParseError

    with path.open("rb") as file:
        head = file.read(32)
    for magic, what in LOOKALIKES.items():
        if head.startswith(magic) or head[4:].startswith(magic):
            msg = f"'{path}' is not an ONNX model but {what}."
            raise UnsupportedModel(msg)
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ParseError, UnicodeDecodeError, ValueError) as error:
        msg = f"'{path}' is not an ONNX model: {error}. Was it copied whole?"
        raise UnsupportedModel(msg) from error
    # Almost any bytes can be read as *some* protobuf; a model has a graph and says which operators it uses.
    if not proto.HasField("graph") or not proto.ir_version or not proto.opset_import:
        msg = (
            f"'{path}' is not an ONNX model: it has no graph, no IR version or no operator set."
        )
        raise UnsupportedModel(msg)
    return proto


def _trust_weights(model: ir.Model) -> None:
    """Give initializers the shapes of their data, whatever `value_info` says about them.

    Runtimes do the same; files in which the two disagree run, and would fail in shape inference later.
    """
    import onnx_ir as ir

    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None and value.shape != value.const_value.shape:
                value.shape = ir.Shape(value.const_value.shape.numpy())


def _refuse_new(proto: onnx.ModelProto, path: Path, newest_opset: int) -> None:
    if proto.ir_version > MAX_IR_VERSION:
        msg = (
            f"'{path}' has IR version {proto.ir_version}, and ONNX Runtime reads {MAX_IR_VERSION} at most. "
            f"Export it for an older version, or set 'model.ir_version = {MAX_IR_VERSION}' and save it again."
        )
        raise UnsupportedModel(msg)
    for opset in proto.opset_import:
        if opset.domain in {"", "ai.onnx"} and opset.version > newest_opset:
            msg = (
                f"'{path}' uses operator set {opset.version}, and the installed onnx knows {newest_opset} at "
                "most. Update onnx and onnxruntime, or export with a lower opset_version."
            )
            raise UnsupportedModel(msg)


def _refuse_sparse(proto: onnx.ModelProto, path: Path) -> None:
    for graph in _graphs(proto):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            msg = (
                f"'{path}' stores {len(graph.sparse_initializer)} weights ('{name}' first) as sparse_initializer, "
                "which most runtimes do not read. Store them densely: deploykit finds the zeros by itself."
            )
            raise UnsupportedModel(msg)
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                msg = (
                    f"node '{node.name}' ({node.op_type}) of '{path}' holds a sparse tensor in '{attribute.name}'. "
                    "Store it densely: deploykit finds the zeros by itself."
                )
                raise UnsupportedModel(msg)


def _check_data_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The data files that the model names, all of them there, inside its folder and long enough."""
    folder = path.parent.resolve()
    found: set[Path] = set()
    for tensor in _tensors(proto):
        if not tensor.external_data:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        data = (path.parent / location).resolve()
        if not location or not data.is_relative_to(folder):
            msg = (
                f"weight '{tensor.name}' of '{path}' lies in '{location}', outside the model's folder. "
                "For safety only files beside the model are read: copy it there, and name it by its relative path."
            )
            raise UnsupportedModel(msg)
        if not data.is_file():
            msg = f"'{path}' keeps weight '{tensor.name}' in '{location}', which is missing. Copy it beside the model."
            raise UnsupportedModel(msg)
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        if end > data.stat().st_size:
            msg = (
                f"weight '{tensor.name}' of '{path}' ends at byte {end} of '{location}', which has only "
                f"{data.stat().st_size} bytes. Was it copied whole?"
            )
            raise UnsupportedModel(msg)
        found.add(path.parent / location)
    return tuple(sorted(found))


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [proto.graph]
    for function in proto.functions:
        waiting += [graph for node in function.node for graph in _subgraphs(node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in _subgraphs(node)]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return graphs + [graph for attribute in node.attribute for graph in attribute.graphs]


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(proto):
        yield from graph.initializer
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


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
