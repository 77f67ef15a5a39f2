"""Reads and writes models that are one file without holding their weights in memory.

A model file is a protobuf: a tree of fields, each with its length before it, in which the bytes of a weight lie in one
piece:

    Model(7: Graph(5: Tensor(1: shape, 8: name, 9: bytes of the weight), 5: Tensor(...), ...))

So it can be read as an *outline*, which says of large weights that they are external data of the model file itself, at
such an offset. Whatever reads external data then maps them into memory in place of copying them, twice or more.
Writing goes the other way: what is around the weights is made in memory, and the weights are streamed in between.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["LARGE_BYTES", "is_in_model", "load", "outline", "parse", "resolve", "save"]

LARGE_BYTES: Final = 1 << 20
"""Weights from this size on are left in their file."""

# Numbers of fields, in ModelProto, GraphProto, TensorProto and StringStringEntryProto of onnx.proto.
GRAPH: Final = 7
INITIALIZER: Final = 5
NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 8, 9, 13, 14
KEY, VALUE = 1, 2

# How the end of a field is found.
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
LONGEST_VARINT: Final = 10

Buffer: TypeAlias = "mmap.mmap | bytes"
Piece: TypeAlias = "bytes | ir.TensorProtocol"


class Malformed(ValueError):
    """The bytes are no protobuf."""


class Field(NamedTuple):
    """A field of a message: its number, its kind, and where in the buffer it, its content and what follows begin."""

    number: int
    kind: int
    start: int
    content: int
    end: int


def parse(path: Path) -> onnx.ModelProto:
    """Read a model, large weights as external data of the absolute path of the model itself.

    Raises:
        Exception: of many kinds, if it is no model; see `onnx.load`.
    """
    import onnx

    found = outline(path, str(path.resolve()))
    if found is not None:
        return onnx.load_model_from_string(found)
    return onnx.load(str(path), load_external_data=False)


def is_in_model(tensor: onnx.TensorProto, path: Path) -> bool:
    """Whether a tensor of what `parse` read of `path` is one of the large weights that it left in the file."""
    place = str(path.resolve())
    return any(
        entry.key == "location" and entry.value == place for entry in tensor.external_data
    )


def load(path: Path) -> ir.Model:
    """Read a model without looking whether it is sound; large weights stay on disk, memory-mapped.

    Raises:
        Exception: of many kinds, if it is no model.
    """
    import onnx_ir as ir

    model = ir.serde.deserialize_model(parse(path))
    resolve(model, path)
    return model


def resolve(model: ir.Model, path: Path) -> None:
    """Say where the weights of a model lie that were left on disk."""
    import onnx_ir as ir

    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        ir.external_data.set_base_dir(graph, str(path.parent))
    place = str(path.resolve())
    for value in model.graph.initializers.values():
        held = value.const_value
        if isinstance(held, ir.ExternalTensor) and held.location == place:
            # Data files have to lie in the model's folder; a model that is read through a link does not itself.
            held.base_dir = ""


def outline(path: Path, location: str) -> bytes | None:
    """Read a model without its large weights.

    Args:
        path: an ONNX file in binary form.
        location: what the outline calls the file that the weights lie in, which is `path` itself.

    Returns:
        the model, serialized, with external data in the place of large weights of its main graph; None if it has
        none, or if the file is no protobuf, of which the real parser knows more to tell.
    """
    if path.stat().st_size < LARGE_BYTES:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:

        def without_data(tensor: Field) -> list[Piece] | None:
            fields = list(_fields(whole, tensor.content, tensor.end))
            held = [field for field in fields if field.number == RAW_DATA]
            if len(held) != 1 or any(field.number == DATA_LOCATION for field in fields):
                return None
            (data,) = held
            length = data.end - data.content
            if data.kind != LENGTH or length < LARGE_BYTES:
                return None
            return [
                whole[tensor.content : data.start],
                whole[data.end : tensor.end],
                _entry("location", location),
                _entry("offset", str(data.content)),
                _entry("length", str(length)),
                _number(DATA_LOCATION, 1),
            ]

        def without_weights(graph: Field) -> list[Piece] | None:
            return _replaced(whole, graph.content, graph.end, INITIALIZER, without_data)

        try:
            found = _replaced(whole, 0, len(whole), GRAPH, without_weights)
        except Malformed:
            return None
    return (
        None
        if found is None
        else b"".join(piece for piece in found if isinstance(piece, bytes))
    )


def save(model: ir.Model, path: Path) -> None:
    """Write a model as one file, byte for byte as a serializer that holds all of it would.

    Args:
        model: the model; it is of no use afterwards.
        path: where to.

    Raises:
        Exception: of many kinds, if it cannot be serialized.
    """
    import onnx_ir as ir

    from passes.weights import hold

    large: dict[str, ir.TensorProtocol] = {}
    for value in model.graph.initializers.values():
        held = value.const_value
        if held is None or value.name is None or held.dtype == ir.DataType.STRING:
            continue
        if held.nbytes >= LARGE_BYTES:
            large[value.name] = held
            shape = ir.Shape(held.shape.numpy())
            described = ir.ExternalTensor("", 0, 0, held.dtype, shape=shape, name=value.name)
            described.doc_string = held.doc_string
            described.metadata_props.update(held.metadata_props)
            hold(value, described)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and value.name not in large:
                hold(value, ir.Tensor(value.const_value.numpy().copy(), name=value.name))
    proto = ir.serde.serialize_model(model)
    for tensor in proto.graph.initializer:
        if tensor.name in large:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = b""
    _write(proto.SerializeToString(), large, path)


def _write(frame: bytes, weights: Mapping[str, ir.TensorProtocol], path: Path) -> None:
    """Write a serialized model in which `weights`, initializers of its main graph, have an empty `raw_data`."""
    import onnx_ir as ir

    def with_data(tensor: Field) -> list[Piece] | None:
        fields = {field.number: field for field in _fields(frame, tensor.content, tensor.end)}
        if NAME not in fields or RAW_DATA not in fields:
            return None
        name, data = fields[NAME], fields[RAW_DATA]
        held = weights.get(frame[name.content : name.end].decode())
        if held is None:
            return None
        before, after = frame[tensor.content : data.start], frame[data.end : tensor.end]
        return [before, _head(RAW_DATA, held.nbytes), held, after]

    def with_weights(graph: Field) -> list[Piece] | None:
        return _replaced(frame, graph.content, graph.end, INITIALIZER, with_data)

    pieces = _replaced(frame, 0, len(frame), GRAPH, with_weights) or [frame]
    with path.open("wb") as file:
        for piece in pieces:
            if isinstance(piece, bytes):
                file.write(piece)
            elif isinstance(piece, ir.ExternalTensor | ir.LazyTensor | ir.Tensor):
                piece.tofile(file)
            else:
                file.write(piece.tobytes())


def _replaced(
    buffer: Buffer,
    start: int,
    end: int,
    number: int,
    replace: Callable[[Field], list[Piece] | None],
) -> list[Piece] | None:
    """The content of a message with some of its messages of one number replaced; None if none is."""
    pieces: list[Piece] = []
    done = start
    for field in _fields(buffer, start, end):
        new = replace(field) if field.number == number and field.kind == LENGTH else None
        if new is not None:
            pieces += [buffer[done : field.start], _head(number, _size(new)), *new]
            done = field.end
    return [*pieces, buffer[done:end]] if pieces else None


def _fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between two places.

    Raises:
        Malformed: there is something else.
    """
    at = start
    while at < end:
        key, content = _read_varint(buffer, at, end)
        kind = key & 7
        if kind == VARINT:
            _, after = _read_varint(buffer, content, end)
        elif kind == LENGTH:
            length, content = _read_varint(buffer, content, end)
            after = content + length
        elif kind in {EIGHT_BYTES, FOUR_BYTES}:
            after = content + (8 if kind == EIGHT_BYTES else 4)
        else:
            raise Malformed
        if after > end:
            raise Malformed
        yield Field(key >> 3, kind, at, content, after)
        at = after


def _read_varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    number = 0
    for index in range(min(LONGEST_VARINT, end - at)):
        byte = buffer[at + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, at + index + 1
    raise Malformed


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _head(number: int, length: int) -> bytes:
    """What stands before the content of a field that has a length."""
    return _varint(number << 3 | LENGTH) + _varint(length)


def _number(number: int, value: int) -> bytes:
    """A field that is a whole number."""
    return _varint(number << 3 | VARINT) + _varint(value)


def _entry(key: str, value: str) -> bytes:
    """An entry of a tensor's external data."""
    parts = [
        _head(number, len(text)) + text
        for number, text in ((KEY, key.encode()), (VALUE, value.encode()))
    ]
    content = b"".join(parts)
    return _head(EXTERNAL_DATA, len(content)) + content


def _size(pieces: list[Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)
