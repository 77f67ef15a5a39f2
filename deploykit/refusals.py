"""Refuses models that are broken in themselves, in words that say where: before anything reads them half-way.

Runtimes refuse most of this, too, but later, and not before `inspect` has read the model. What they alone can know
(operators, types) is left to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import one_file
from deploykit.errors import UnsupportedModel, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "graphs",
    "nodes",
    "parse",
    "refuse_damaged_weights",
    "refuse_functions",
    "refuse_names",
    "refuse_versions",
    "subgraphs",
    "tensors",
    "title",
]

ONE_FILE_BYTES = 2**31 - 1
"""What protobuf puts into one file at most."""

WHOLE = "Was the file copied whole?"
CHECKPOINT = "export it with torch.onnx.export first"
NO_MODEL = "was it picked by mistake?"

# What people hand over by mistake, known by its first bytes, or by those after the first four.
LOOKALIKES = {
    b"PK\x03\x04": f"a zip archive, perhaps a PyTorch checkpoint: {CHECKPOINT}",
    b"\x80\x02": f"a pickle, perhaps an old PyTorch checkpoint: {CHECKPOINT}",
    b"\x89HDF": "an HDF5 file, perhaps from Keras: convert it with tf2onnx first",
    b"ftrt": "a TensorRT engine: deploykit needs the ONNX file it was built from",
    b"TFL3": "a TensorFlow Lite model: convert it with tf2onnx first",
    b"ORTM": "a model in ONNX Runtime's own format: deploykit needs the ONNX file it was made from",
    b"version https://git-lfs": "a Git LFS pointer: fetch the real file with 'git lfs pull'",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x89PNG": f"a PNG image: {NO_MODEL}",
    b"\xff\xd8\xff": f"a JPEG image: {NO_MODEL}",
    b"GIF8": f"a GIF image: {NO_MODEL}",
    b"%PDF": f"a PDF document: {NO_MODEL}",
    b"\x93NUMPY": f"a numpy array: {NO_MODEL}",
    b"<!DOCTYPE": "a web page: the download went wrong, get the file itself",
    b"<!doctype": "a web page: the download went wrong, get the file itself",
    b"<html": "a web page: the download went wrong, get the file itself",
}

FIELDS = {
    **dict.fromkeys((1,), ("float_data", 1)),
    **dict.fromkeys((14,), ("float_data", 2)),
    **dict.fromkeys((11,), ("double_data", 1)),
    **dict.fromkeys((15,), ("double_data", 2)),
    **dict.fromkeys((7,), ("int64_data", 1)),
    **dict.fromkeys((12, 13), ("uint64_data", 1)),
    **dict.fromkeys((2, 3, 4, 5, 6, 9, 10, 16), ("int32_data", 1)),
}
"""The field that holds the elements of a type where `raw_data` does not, and how many numbers an element is."""


def parse(path: Path) -> onnx.ModelProto:
    """Read a file as a protobuf.

    Raises:
        UsageError: there is no such file.
        UnsupportedModel: it is no ONNX model.
    """
    import warnings

    _refuse_place(path)
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        msg = f"'{path}' is not an ONNX model: it is empty. Was it copied whole?"
        raise UnsupportedModel(msg)
    for magic, what in LOOKALIKES.items():
        if head.startswith(magic) or head[4:].startswith(magic):
            msg = f"'{path}' is not an ONNX model but {what}."
            raise UnsupportedModel(msg)
    if path.stat().st_size > ONE_FILE_BYTES:
        msg = (
            f"'{path}' has {path.stat().st_size} bytes, and an ONNX file has {ONE_FILE_BYTES} at most. "
            "Export it with external data."
        )
        raise UnsupportedModel(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its text form is experimental
            proto = one_file.parse(path)
    except OSError:
        raise
    except Exception as error:  # four formats, each with errors of its own, all of them about the file's content
        msg = f"'{path}' is not an ONNX model: {_first(str(error))}. Was it copied whole?"
        raise UnsupportedModel(msg) from error
    # Almost any bytes can be read as *some* protobuf; a model has a graph and says which operators it uses.
    if not proto.HasField("graph") or proto.ir_version < 1 or not proto.opset_import:
        msg = (
            f"'{path}' is not an ONNX model: it has no graph, no IR version or no operator set. "
            "Was it copied whole?"
        )
        raise UnsupportedModel(msg)
    if not proto.graph.output:
        msg = f"'{path}' has no outputs, so there is nothing that it computes. Export it again."
        raise UnsupportedModel(msg)
    return proto


def _refuse_place(path: Path) -> None:
    """Refuse what is no file that can be opened."""
    advice = "Give the path of an .onnx file."
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        msg = f"the name of '{path}' is no text in UTF-8, and the runtimes cannot open it. Rename it."
        raise UsageError(msg) from error
    try:
        if path.is_file():
            path.open("rb").close()
            return
        kind = (
            "is a folder"
            if path.is_dir()
            else "is no file"
            if path.exists()
            else "does not exist"
        )
    except OSError as error:
        msg = f"cannot read the model '{path}': {error.strerror}. {advice}"
        raise UsageError(msg) from error
    msg = f"cannot read the model '{path}': it {kind}. {advice}"
    raise UsageError(msg)


def refuse_versions(proto: onnx.ModelProto, path: Path, *, ir_version: int, opset: int) -> None:
    """Refuse versions that are too new, make no sense, or are missing.

    Args:
        proto: the model.
        path: its file, for the message.
        ir_version: the newest IR version that can be read.
        opset: the newest operator set of the standard that is known.
    """
    if proto.ir_version > ir_version:
        msg = (
            f"'{path}' has IR version {proto.ir_version}, and ONNX Runtime reads {ir_version} at most. "
            f"Export it for an older version, or set 'model.ir_version = {ir_version}' and save it again."
        )
        raise UnsupportedModel(msg)
    known: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        words = f"operator set {entry.version}" + (f" of '{domain}'" if domain else "")
        if entry.version < 1:
            msg = f"'{path}' uses {words}, which there is not: they count from 1. Export it again."
            raise UnsupportedModel(msg)
        if domain == "" and entry.version > opset:
            msg = (
                f"'{path}' uses {words}, and the installed onnx knows {opset} at most. "
                "Update onnx and onnxruntime, or export with a lower opset_version."
            )
            raise UnsupportedModel(msg)
        if known.setdefault(domain, entry.version) != entry.version:
            msg = (
                f"'{path}' uses {words}, and {known[domain]}, too. Name one in 'opset_import'."
            )
            raise UnsupportedModel(msg)
    for node in nodes(proto):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in known and not _is_of_function(proto, node):
            msg = (
                f"'{path}' does not say which operator set of '{domain or 'ai.onnx'}' it uses, of which node "
                f"{title(node)} is. Add it to 'opset_import', or export it again."
            )
            raise UnsupportedModel(msg)


def _is_of_function(proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a domain is named by one of the functions, which say for themselves what they use."""
    return any(
        node.domain == function.domain
        or any(node.domain == each.domain for each in function.opset_import)
        for function in proto.functions
    )


def refuse_names(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse names that are no text, or that several things of one graph have."""
    _refuse_bytes(
        path,
        (("a node", [node.op_type, node.domain, node.name]) for node in nodes(proto)),
    )
    for graph in graphs(proto):
        inputs = [value.name for value in graph.input]
        weights = [tensor.name for tensor in graph.initializer]
        made = [name for node in graph.node for name in node.output if name]
        read = [name for node in graph.node for name in node.input]
        outputs = [value.name for value in graph.output]
        values = [value.name for value in graph.value_info]
        names = (*inputs, *weights, *made, *read, *outputs, *values)
        _refuse_bytes(path, [("a tensor", names)])
        for what, several in (
            ("inputs", inputs),
            ("weights", [name for name in weights if name]),
            ("tensors", [*made, *{*inputs, *weights}]),
        ):
            twice = _first_twice(several)
            if twice is not None:
                msg = (
                    f"two {what} of '{path}' have the name '{twice}', so nobody knows which is meant. "
                    "Rename one, or export it again."
                )
                raise UnsupportedModel(msg)
        _refuse_contradictions(graph, path)
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                msg = (
                    f"attribute '{attribute.name}' of node {title(node)} of '{path}' stands for one of a function, "
                    "and the node is in none. Export it again."
                )
                raise UnsupportedModel(msg)


def _refuse_contradictions(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse an input that is described once more, as an output for example, and differently."""
    said = {value.name: value.type for value in graph.input}
    for value in (*graph.output, *graph.value_info):
        first = said.get(value.name)
        if first is not None and not _agree(first, value.type):
            msg = (
                f"'{path}' describes the input '{value.name}' twice, as {_words(first)} and as {_words(value.type)}. "
                "Export it again, or give one of the two tensors another name."
            )
            raise UnsupportedModel(msg)


def _agree(first: onnx.TypeProto, other: onnx.TypeProto) -> bool:
    """Whether one tensor can be of both types; what is left open agrees with everything."""
    if first.WhichOneof("value") != "tensor_type" or other.WhichOneof("value") != "tensor_type":
        return not (first.WhichOneof("value") and other.WhichOneof("value")) or first == other
    one, two = first.tensor_type, other.tensor_type
    if one.elem_type and two.elem_type and one.elem_type != two.elem_type:
        return False
    if not (one.HasField("shape") and two.HasField("shape")):
        return True
    sizes = [
        tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        for kind in (one, two)
    ]
    return len(sizes[0]) == len(sizes[1]) and all(
        size == again or size is None or again is None
        for size, again in zip(*sizes, strict=True)
    )


def _words(kind: onnx.TypeProto) -> str:
    """A type in words, as in 'float[1, ?, 8]'."""
    import onnx

    found = kind.WhichOneof("value")
    if found != "tensor_type":
        return str(found).removesuffix("_type")
    tensor = kind.tensor_type
    kinds = {number: each.lower() for each, number in onnx.TensorProto.DataType.items()}
    name: str = kinds.get(tensor.elem_type, f"type {tensor.elem_type}")
    if not tensor.HasField("shape"):
        return name
    sizes = [
        str(dim.dim_value) if dim.HasField("dim_value") else "?" for dim in tensor.shape.dim
    ]
    return f"{name}[{', '.join(sizes)}]"


def _refuse_bytes(path: Path, several: Iterable[tuple[str, Iterable[object]]]) -> None:
    for what, names in several:
        for name in names:
            # protobuf gives bytes where a text is no UTF-8
            if isinstance(name, bytes):
                msg = f"the name {name!r} of {what} in '{path}' is no text in UTF-8. Rename it, or export it again."
                raise UnsupportedModel(msg)


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def refuse_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, and calls with more than a function takes or gives."""
    from graphlib import CycleError, TopologicalSorter

    functions = {
        (function.domain, function.name, function.overload): function
        for function in proto.functions
    }
    calls: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {
        key: set() for key in functions
    }
    for key, function in functions.items():
        for node in _all_nodes(function.node):
            called = (node.domain, node.op_type, node.overload)
            if called in functions:
                calls[key].add(called)
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        domain, name, _ = error.args[1][0]
        msg = f"function '{name}' of '{domain}' in '{path}' calls itself, so it would never end. Export it again."
        raise UnsupportedModel(msg) from error
    for node in nodes(proto):
        called_function = functions.get((node.domain, node.op_type, node.overload))
        if called_function is None:
            continue
        taken, given = len(called_function.input), len(called_function.output)
        if len(node.input) > taken or len(node.output) > given:
            msg = (
                f"node {title(node)} of '{path}' has {len(node.input)} inputs and {len(node.output)} outputs, and its "
                f"function takes {taken} and gives {given}. Export it again."
            )
            raise UnsupportedModel(msg)


def refuse_damaged_weights(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Refuse weights whose data is not there, not whole, or not theirs.

    Returns:
        the data files that the model names, sorted: all of them there, inside its folder and long enough.
    """
    from onnx_ir import DataType

    sizes: dict[str, int] = {}
    for tensor in tensors(proto):
        shape = "x".join(map(str, tensor.dims)) or "scalar"
        what = f"weight '{tensor.name}' of '{path}'"
        if any(size < 0 for size in tensor.dims):
            msg = f"{what} has the shape {shape}, with a negative size. Export it again."
            raise UnsupportedModel(msg)
        if tensor.HasField("segment"):
            msg = f"{what} is stored in segments, which no runtime reads. Export it again."
            raise UnsupportedModel(msg)
        count = math.prod(tensor.dims)
        if tensor.data_type == DataType.STRING:
            if tensor.external_data or len(tensor.string_data) != count:
                msg = f"{what} has the shape {shape}, and holds {len(tensor.string_data)} strings. Export it again."
                raise UnsupportedModel(msg)
            continue
        try:
            kind = DataType(tensor.data_type)
            expected = -(-count * int(kind.bitwidth) // 8)
        except (ValueError, TypeError) as error:
            msg = f"{what} has the element type {tensor.data_type}, which there is not. Export it again."
            raise UnsupportedModel(msg) from error
        words = (
            f"{what} has the shape {shape} of {kind.name.lower()}, which takes {expected} bytes"
        )
        if one_file.is_in_model(tensor, path):
            held = next(each.value for each in tensor.external_data if each.key == "length")
            if int(held) != expected:
                msg = f"{words}, and holds {held}. {WHOLE}"
                raise UnsupportedModel(msg)
        elif tensor.external_data:
            _refuse_data(tensor, path, what, words, expected=expected, sizes=sizes)
        else:
            _refuse_content(tensor, words, expected)
    return tuple(sorted(path.parent / location for location in sizes))


def _refuse_data(
    tensor: onnx.TensorProto,
    path: Path,
    what: str,
    words: str,
    *,
    expected: int,
    sizes: dict[str, int],
) -> None:
    """Refuse data in a file that is not there, outside, or too short; `sizes` gathers the files by name."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(
        number.isascii() and number.isdigit() and len(number) < 20 for number in numbers
    ):
        msg = f"{what} lies at byte '{numbers[0]}', '{numbers[1]}' bytes long, which are no numbers. Export it again."
        raise UnsupportedModel(msg)
    offset, length = (int(number) for number in numbers)
    if location not in sizes:
        sizes[location] = _data_size(path, location, what)
    if length not in {0, expected}:
        msg = f"{words}, and {length} of '{location}' are said to be its own. Export it again."
        raise UnsupportedModel(msg)
    if offset + expected > sizes[location]:
        msg = (
            f"{words}, from byte {offset} of '{location}' on, which has only {sizes[location]} bytes. "
            "Was it copied whole?"
        )
        raise UnsupportedModel(msg)


def _data_size(path: Path, location: str, what: str) -> int:
    """The size of a data file that a model may read."""
    folder = path.parent.resolve()
    try:
        data = (path.parent / location).resolve()
        is_inside = bool(location) and data.is_relative_to(folder)
        is_file = is_inside and data.is_file()
        kind = "is no file" if is_inside and data.exists() else "is missing"
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a NUL in it, a link to itself
        msg = f"{what} lies in '{location}', which is no name of a file. Export it again."
        raise UnsupportedModel(msg) from error
    if not is_inside:
        msg = (
            f"{what} lies in '{location}', outside the model's folder. "
            "For safety only files beside the model are read: copy it there, and name it by its relative path."
        )
        raise UnsupportedModel(msg)
    if not is_file:
        msg = f"{what} lies in '{location}', which {kind}. Copy it beside the model."
        raise UnsupportedModel(msg)
    return data.stat().st_size


def _refuse_content(tensor: onnx.TensorProto, words: str, expected: int) -> None:
    """Refuse data in the model that is not as long as its shape says."""
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != expected:
            msg = f"{words}, and holds {len(tensor.raw_data)}. {WHOLE}"
            raise UnsupportedModel(msg)
    elif tensor.data_type in FIELDS:
        field, each = FIELDS[tensor.data_type]
        count = math.prod(tensor.dims) * each
        if len(getattr(tensor, field)) != count:
            msg = f"{words}, and holds {len(getattr(tensor, field))} numbers, not {count}. {WHOLE}"
            raise UnsupportedModel(msg)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, and all subgraphs, those of functions included."""
    waiting = [proto.graph]
    for function in proto.functions:
        waiting += [graph for node in function.node for graph in subgraphs(node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in subgraphs(node)]


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    found = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all graphs and functions."""
    for graph in graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _all_nodes(several: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those in their subgraphs."""
    for node in several:
        yield node
        for graph in subgraphs(node):
            yield from _all_nodes(graph.node)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All constants: initializers, and those in attributes."""
    for graph in graphs(proto):
        yield from graph.initializer
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def title(node: onnx.NodeProto) -> str:
    """What a node is called in a message; many have no name."""
    name = node.name or (node.output[0] if node.output else "")
    return f"'{name}' ({node.op_type})"


def _first(text: str, longest: int = 200) -> str:
    """The beginning of somebody else's message, in one line, to be followed by a full stop."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= longest else line[:longest] + "..."
