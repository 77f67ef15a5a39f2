"""Files that are no models, broken models, and strange but sound ones, each written to a folder by a function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.deploykit.conftest import make_network

Build = Callable[[Path], Path]
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(64)
FLOAT = TensorProto.FLOAT


def of_bytes(content: bytes, name: str = "m.onnx") -> Build:
    def build(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return build


def changed(change: Callable[[onnx.ModelProto], object]) -> Build:
    """The small network of the tests, after `change`."""

    def build(folder):
        model = make_network()
        change(model)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        return folder / "m.onnx"

    return build


def text(body: str, *, opset: str = '"" : 17', ir_version: int = 8) -> Build:
    """A model from ONNX's text form, not checked."""
    source = f"<ir_version: {ir_version}, opset_import: [{opset}]> {body}"

    def build(folder):
        (folder / "m.onnx").write_bytes(onnx.parser.parse_model(source).SerializeToString())
        return folder / "m.onnx"

    return build


def cut(share: float) -> Build:
    def build(folder):
        content = make_network().SerializeToString()
        (folder / "m.onnx").write_bytes(content[: int(len(content) * share)])
        return folder / "m.onnx"

    return build


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def set_weight(name: str, edit: Callable[[np.ndarray], object]) -> Build:
    def change(model):
        tensor = weight(model, name)
        array = numpy_helper.to_array(tensor).copy()
        edit(array)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return changed(change)


def external(
    entries: dict[str, str], prepare: Callable[[Path], object] = lambda folder: None
) -> Build:
    """The network with `w1` said to lie in another file."""

    def build(folder):
        model = make_network()
        tensor = weight(model, "w1")
        (folder / "w.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        prepare(folder)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        return folder / "m.onnx"

    return build


def fill(tensor: onnx.TensorProto, **fields: object) -> None:
    for name in ("raw_data", "dims", "float_data"):
        if name in fields:
            tensor.ClearField(name)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)


def rename_everywhere(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model):
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new
            if node.name == old:
                node.name = new
        for tensor in (*model.graph.initializer, *model.graph.input, *model.graph.output):
            if tensor.name == old:
                tensor.name = new

    return change


def raw_replace(old: bytes, new: bytes) -> Build:
    """Bytes of the file changed where protobuf's own setters would refuse."""

    def build(folder):
        content = make_network().SerializeToString()
        assert content.count(old)
        assert len(old) == len(new)
        (folder / "m.onnx").write_bytes(content.replace(old, new))
        return folder / "m.onnx"

    return build


def nested(depth: int) -> Build:
    def change(model):
        inner = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["z0"])], "g", [], [out("z0")]
        )
        for level in range(1, depth):
            node = helper.make_node(
                "If", ["c"], [f"z{level}"], then_branch=inner, else_branch=inner
            )
            if level > 8:  # two branches each time would be 2**depth nodes
                del node.attribute[1]
            inner = helper.make_graph([node], "g", [], [out(f"z{level}")])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
        model.graph.node.append(
            helper.make_node("If", ["c"], ["z"], "if", then_branch=inner, else_branch=inner)
        )

    return changed(change)


def out(name: str, shape: list[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def chain(length: int) -> Build:
    def change(model):
        nodes = [
            helper.make_node("Relu", [f"r{i}" if i else "h"], [f"r{i + 1}"])
            for i in range(length)
        ]
        head = model.graph.node[2]
        head.input[0] = f"r{length}"
        del model.graph.node[1:]
        model.graph.node.extend([*nodes, head])

    return changed(change)


def recursive_function(model: onnx.ModelProto) -> None:
    body = helper.make_node("Loop_", ["a"], ["b"], domain="mine")
    model.functions.append(
        helper.make_function(
            "mine", "Loop_", ["a"], ["b"], [body], [helper.make_opsetid("mine", 1)]
        )
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node.append(helper.make_node("Loop_", ["r"], ["zz"], "again", domain="mine"))


def write_json(change: Callable[[dict], object]) -> Build:
    def build(folder):
        document = {"irVersion": "8", "opsetImport": [{"version": "17"}], "graph": {}}
        change(document)
        (folder / "m.json").write_text(json.dumps(document))
        return folder / "m.json"

    return build


def deep_text(folder: Path) -> Path:
    body = "graph { node { attribute { g { " * 400 + "} } } } " * 400
    (folder / "m.textproto").write_text(f"ir_version: 8 opset_import {{ version: 17 }} {body}")
    return folder / "m.textproto"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"
