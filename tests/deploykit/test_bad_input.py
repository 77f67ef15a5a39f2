"""What happens to bad input: the documented exit code, one message, nothing written, and the source as it was.

One table, a row a case. Sound models that look bad are in it too: they have to work.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.deploykit import bad_models as bad
from tests.deploykit.bad_models import changed, external, fill, set_weight, text, weight


def added(*parts):
    """The network with these nodes, weights and outputs appended."""

    def change(model):
        for part in parts:
            field = {
                onnx.NodeProto: model.graph.node,
                onnx.TensorProto: model.graph.initializer,
                onnx.ValueInfoProto: model.graph.output,
            }[type(part)]
            field.append(part)

    return changed(change)


def constant(name, numbers, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(numbers, dtype), name)


def node(op, inputs, outputs="z", **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), f"the_{op}", **attributes)


def typed(kind, content, count):
    return TensorProto(name="odd", data_type=kind, dims=[count], raw_data=content)


def in_graph(field, index, **values):
    """The network with fields of one input, output or node set."""

    def change(model):
        thing = getattr(model.graph, field)[index]
        for name, value in values.items():
            if isinstance(value, list):
                getattr(thing, name)[:] = value
            else:
                setattr(thing, name, value)

    return changed(change)


def size_of_input(axis, size):
    return changed(
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[axis], "dim_value", size)
    )


def opset(domain, version):
    return lambda m: m.opset_import.append(helper.make_opsetid(domain, version))


def call(domain, *changes):
    def change(model):
        for each in changes:
            each(model)
        model.graph.node.append(helper.make_node("Foo", ["r"], ["z"], "foo", domain=domain))
        model.graph.output.append(Z)

    return changed(change)


def without_elements(model):
    fill(weight(model, "w1"), dims=[0, 256], raw_data=b"")
    fill(weight(model, "b1"), dims=[0], raw_data=b"")
    fill(weight(model, "w2"), dims=[4, 0], raw_data=b"")


def backwards(model):
    nodes = list(model.graph.node)[::-1]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


Z = bad.out("z")
Z_INTEGERS = helper.make_tensor_value_info("z", TensorProto.INT64, None)
EXPORT = "Export it again"
COPIED = "Was it copied whole?"
OUTSIDE = "outside the model's folder"
LARGE = 2**63 - 1

FILES = {
    "half of a file": (bad.cut(0.5), 3, "is not an ONNX model", COPIED),
    "all but the last byte": (bad.cut(0.99999), 3, "is not an ONNX model", COPIED),
    "text": (bad.of_bytes(b"no model at all"), 3, "is not an ONNX model"),
    "an empty file": (bad.of_bytes(b""), 3, "is not an ONNX model: it is empty"),
    "zeros": (bad.of_bytes(bytes(1000)), 3, "is not an ONNX model"),
    "an image": (bad.of_bytes(bad.PNG), 3, "but a PNG image"),
    "a photograph": (bad.of_bytes(b"\xff\xd8\xff\xe0" + bytes(50)), 3, "but a JPEG image"),
    "a web page": (bad.of_bytes(b"<!DOCTYPE html><html>404"), 3, "the download went wrong"),
    "a checkpoint": (bad.of_bytes(b"PK\x03\x04" + bytes(50)), 3, "torch.onnx.export"),
    "another protobuf": (bad.of_bytes(b"\x08\x08\x12\x02me"), 3, "it has no graph"),
    "damaged JSON": (bad.of_bytes(b"{", "m.json"), 3, "is not an ONNX model"),
    "deep JSON": (bad.of_bytes(b'{"graph":' * 3000, "m.json"), 3, "is not an ONNX model"),
    "damaged text form": (bad.of_bytes(b"<ir_version: 7", "m.onnxtxt"), 3, "is not an ONNX model"),
    "a folder": (lambda folder: folder, 2, "it is a folder"),
    "a pipe": (bad.pipe, 2, "it is no file"),
    "a device": (lambda _: Path("/dev/zero"), 2, "it is no file"),
    "nothing": (lambda folder: folder / "no.onnx", 2, "it does not exist", "Give the path"),
    "a name too long": (lambda folder: folder / ("x" * 5000), 2, "File name too long"),
    "a file for a folder": (lambda f: bad.of_bytes(b"x")(f) / "m.onnx", 2, "does not exist"),
}  # fmt: skip

DATA = {
    "sound data": (external({"location": "w.bin"}), 0),
    "data that is missing": (external({"location": "gone"}), 3, "'w1'", "which is missing"),
    "data above": (external({"location": "../w.bin"}), 3, OUTSIDE, "copy it there"),
    "data at an absolute path": (external({"location": "/etc/passwd"}), 3, OUTSIDE),
    "data behind a link": (
        external({"location": "l"}, lambda f: (f / "l").symlink_to("/etc/passwd")), 3, OUTSIDE),
    "data in a device": (
        external({"location": "l"}, lambda f: (f / "l").symlink_to("/dev/zero")), 3, OUTSIDE),
    "data nowhere": (external({"offset": "0"}), 3, "lies in ''"),
    "data in a folder": (external({"location": "d"}, lambda f: (f / "d").mkdir()), 3, "is no file"),
    "data in a pipe": (external({"location": "p"}, lambda f: os.mkfifo(f / "p")), 3, "is no file"),
    "data with a NUL": (external({"location": "w\0"}), 3, "no name of a file"),
    "data with a long name": (external({"location": "w" * 5000}), 3, "no name of a file"),
    "data too short": (
        external({"location": "w.bin"}, lambda f: os.truncate(f / "w.bin", 1000)),
        3, "takes 65536 bytes", "has only 1000 bytes", COPIED),
    "data in an empty file": (
        external({"location": "w.bin"}, lambda f: os.truncate(f / "w.bin", 0)), 3, "only 0 bytes"),
    "data beyond the end": (external({"location": "w.bin", "offset": "9999999"}), 3, "from byte 9999999"),
    "data before the beginning": (external({"location": "w.bin", "offset": "-8"}), 3, "no numbers"),
    "data of negative length": (external({"location": "w.bin", "length": "-8"}), 3, "no numbers"),
    "data of another length": (external({"location": "w.bin", "length": "16"}), 3, "and 16 of 'w.bin'"),
    "data at a word": (external({"location": "w.bin", "offset": "abc"}), 3, "no numbers"),
    "data at a huge offset": (external({"location": "w.bin", "offset": "1" * 40}), 3, "no numbers"),
}  # fmt: skip

WEIGHTS = {
    "too little data": (changed(lambda m: fill(weight(m, "w1"), raw_data=b"1234")), 3,
        "'w1'", "64x256 of float, which takes 65536 bytes, and holds 4"),
    "too much data": (changed(lambda m: fill(weight(m, "b2"), raw_data=bytes(17))), 3, "and holds 17"),
    "no data": (changed(lambda m: fill(weight(m, "b2"), raw_data=b"")), 3, "and holds 0"),
    "too few numbers": (changed(lambda m: (weight(m, "b1").ClearField("raw_data"),
        fill(weight(m, "b1"), float_data=[1.0, 2.0]))), 3, "holds 2 numbers, not 64"),
    "another shape": (changed(lambda m: fill(weight(m, "w1"), dims=[256, 64])), 3, "'hidden' (Gemm)", EXPORT),
    "another rank": (changed(lambda m: fill(weight(m, "b1"), dims=[4, 4, 4])), 3, "Gemm: Invalid bias"),
    "a negative size": (changed(lambda m: fill(weight(m, "w1"), dims=[-64, 256])), 3, "a negative size"),
    "a huge shape": (changed(lambda m: fill(weight(m, "w1"), dims=[2**40, 2**40])), 3, "'w1'", "and holds 65536"),
    "a shape that wraps": (changed(lambda m: fill(weight(m, "w1"), dims=[2**32, 2**32])), 3, "'w1'", "and holds 65536"),
    "no type": (changed(lambda m: setattr(weight(m, "w1"), "data_type", 0)), 3, "element type 0"),
    "an unknown type": (changed(lambda m: setattr(weight(m, "w1"), "data_type", 99)), 3, "element type 99"),
    "another type": (changed(lambda m: fill(weight(m, "w1"), data_type=3, raw_data=bytes(64 * 256))), 3, "node (hidden)"),
    "sparse weights": (changed(lambda m: m.graph.sparse_initializer.append(helper.make_sparse_tensor(
        constant("thin", [1, 2], np.float32), constant("where", [0, 3]), [4]))), 3, "Store them densely"),
    "two of one name": (added(constant("b1", np.ones(64), np.float32)), 3, "two weights", "the name 'b1'"),
    "too few strings": (added(TensorProto(name="s", data_type=8, dims=[3], string_data=[b"a"])), 3, "holds 1 strings"),
    "strings": (added(helper.make_tensor("s", 8, [2], [b"a", b"b"])), 0),
    "no elements": (added(constant("none", np.zeros((0, 4)), np.float32)), 0),
    "a layer without elements": (changed(without_elements), 0),
    "bfloat16": (added(typed(16, bytes(8), 4)), 0),
    "float8": (added(typed(17, bytes(4), 4)), 0),
    "4 bits": (added(typed(22, bytes(2), 3)), 0),
    "float8 in use": (added(typed(17, bytes(4), 4), node("Cast", "odd", to=1), Z), 3, "float8e4m3fn"),
    # A NaN or an infinity reaches the output in both models. What meets one is not cut: zero times NaN is no zero.
    "NaN": (set_weight("w1", lambda a: a.__setitem__((40, 3), np.nan)), 0),
    "infinity": (set_weight("w1", lambda a: a.__setitem__((40, 3), -np.inf)), 0),
    "NaN where channels are dead": (set_weight("w2", lambda a: a.__setitem__((0, 3), np.nan)), 0),
    "infinity where channels are dead": (set_weight("w2", lambda a: a.__setitem__((0, 3), np.inf)), 0),
    "a dead channel that is NaN": (set_weight("b1", lambda a: a.__setitem__(3, np.nan)), 0),
    "a dead channel that is huge": (set_weight("b1", lambda a: a.__setitem__(3, 3e38)), 0),
}  # fmt: skip

GRAPHS = {
    "an input from nowhere": (in_graph("node", 1, input=["q"]), 3, "'relu' (Relu)", "reads 'q'", EXPORT),
    "an output from nowhere": (added(Z), 3, "the output 'z'", "made by nothing"),
    "a cycle": (in_graph("node", 0, input=["y", "w1", "b1"]), 3, "has a cycle", "'head' (Gemm)"),
    "a node that reads itself": (in_graph("node", 1, input=["r"]), 3, "has a cycle"),
    "two inputs of one name": (changed(lambda m: m.graph.input.append(m.graph.input[0])), 3, "two inputs"),
    "two results of one name": (added(node("Relu", "h", "r")), 3, "two tensors", "the name 'r'"),
    "a result named like a weight": (added(node("Relu", "h", "b1")), 3, "two tensors"),
    "a name that is no text": (bad.raw_replace(b"hidden", b"h\xff\xfeden"), 3, "no text in UTF-8"),
    "no nodes": (changed(lambda m: m.graph.ClearField("node")), 3, "the output 'y'"),
    "no outputs": (changed(lambda m: m.graph.ClearField("output")), 3, "has no outputs"),
    "an empty graph": (changed(lambda m: m.graph.Clear()), 3, "has no outputs"),
    "nodes in no order": (changed(backwards), 0),
    "an output that is an input": (changed(lambda m: m.graph.output.append(m.graph.input[0])), 0),
    "IR version of the future": (changed(lambda m: setattr(m, "ir_version", 99)), 3, "has IR version 99"),
    "negative IR version": (changed(lambda m: setattr(m, "ir_version", -1)), 3, "no IR version"),
    "opset of the future": (changed(lambda m: setattr(m.opset_import[0], "version", 999)), 3, "operator set 999"),
    "opset 0": (changed(lambda m: setattr(m.opset_import[0], "version", 0)), 3, "count from 1"),
    "two opsets": (changed(opset("", 9)), 3, "operator set 9", "and 17, too"),
    "no opset": (changed(lambda m: setattr(m.opset_import[0], "domain", "q")), 3, "which operator set of 'ai.onnx'"),
    "unknown domain": (call("acme", opset("acme", 1)), 3, "acme:Foo"),
    "domain without opset": (call("acme"), 3, "which operator set of 'acme'"),
    "unknown operator": (added(node("Nonsense", "r"), Z), 3, "Nonsense"),
    "a loop without end": (text("""g (float[1,4] x) => (float[] y) <int64 m = {9223372036854775807}, bool c = {1}> {
        y = Loop (m, c, x) <body = b (int64 i, bool k, float[1,4] v) => (bool k2, float[1,4] v2) {
        k2 = Identity (k) v2 = Relu (v) }> }"""), 3, "did not end within", "loop for ever"),
    "an input described twice": (
        bad.text("g (float[1, 4] x) => (float[1, 6] x, float[1, 4] y) { y = Relu(x) }"),
        3,
        "describes the input 'x' twice, as float[1, 4] and as float[1, 6]",
    ),
    "a function that calls itself": (changed(bad.recursive_function), 3, "calls itself"),
    "deep subgraphs": (bad.nested(15), 3, "'if' (If)"),
    "a sound long chain": (bad.chain(300), 0),
    "an index out of bounds": (added(constant("i", [999]), node("Gather", "h i", axis=1), Z), 3, "out of"),
    "a shape that does not fit": (added(constant("i", [7, 7]), node("Reshape", "h i"), Z), 3, "Reshape"),
    "an axis too far": (added(node("Concat", "h r", axis=9), Z), 3, "'the_Concat'"),
    "an attribute of another type": (changed(lambda m: m.graph.node[0].attribute[0].CopyFrom(
        helper.make_attribute("transB", "yes"))), 3, "'hidden' (Gemm)"),
    "a tensor that no memory holds": (added(constant("s", [2**40, 64]), node("Expand", "b1 s"), Z), 3, "Expand"),
    "a tile that no memory holds": (added(constant("s", [2**30, 2**30]), node("Tile", "r s"), Z), 3, "Tile"),
    "an input that no memory holds": (size_of_input(0, 2**50), 3, "are generated at most"),
    "no group": (text("""g (float[1,4,8,8] x) => (float[] y) <float[1,1,1,1] w = {1}>
        { [c] y = Conv <group = 0> (x, w) }"""), 3, "'c' (Conv)"),
    "a division by zero": (added(constant("i", [0]), constant("j", [5]), node("Mod", "j i"), Z_INTEGERS), 3, "zero"),
}  # fmt: skip

CASES = {**FILES, **DATA, **WEIGHTS, **GRAPHS}


def fingerprint(folder):
    """Every file of a folder, with its content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_and_harms_nothing(run, tmp_path, monkeypatch, name):
    build, code, *words = CASES[name]
    monkeypatch.setattr("deploykit.runtimes.onnxruntime.RUN_LIMIT_S", 1.0)
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    path = build(source)
    before = fingerprint(source)
    inspected = run("inspect", path)
    optimized = run("optimize", path, "-o", tmp_path / "out", "--no-profile")
    assert optimized.exit_code == code, optimized.stderr
    # What a runtime alone finds out, an inspection may pass over.
    assert inspected.exit_code in {code, 0}, inspected.stderr
    results = [inspected, optimized]
    if code:
        results.append(
            run("profile", path, "--duration", "0.01", "--warmup", "0", "--rebuilds", 1)
        )
        assert results[-1].exit_code == code, results[-1].stderr
    for result in results:
        assert "Traceback" not in result.stderr
        if result.exit_code:
            assert result.stderr.startswith("Error: ")
            assert result.stderr.count("\n") == 1
            assert result.stdout == ""
        else:
            assert "Error: " not in result.stderr
    for word in words:
        assert word in optimized.stderr
    assert fingerprint(source) == before
    left = {each.name for each in tmp_path.iterdir()}
    assert left == ({"source"} if code else {"source", "out"})


HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07",
    "a\nError: b\r\x08",
    "\x9b31m\u202e",
    "[/bold] [red]x",
    "<script>alert(1)</script>",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_reach_neither_terminal_nor_page_as_commands(run, tmp_path, name):
    def change(model):
        for old in ("w1", "hidden", "y"):
            bad.rename_everywhere(old, f"{name}{old}")(model)

    path = changed(change)(tmp_path)
    for options in ([], ["-vv"], ["--json"]):
        shown = run("inspect", path, *options)
        assert shown.exit_code == 0, shown.stderr
        for stream in (shown.stdout, shown.stderr):
            assert not set(stream) & set("\x1b\x07\x08\r\x9b\u202e")
            assert "\nError" not in stream
    broken = run("inspect", in_a_cycle(path))
    assert broken.exit_code == 3
    assert broken.stderr.count("\n") == 1
    assert not set(broken.stderr) & set("\x1b\x07\x08\r\x9b\u202e")
    out = tmp_path / "out"
    result = run("optimize", path, "-o", out, "--no-profile")
    assert result.exit_code == 0, result.stderr
    assert "<script>alert" not in (out / "report.html").read_text(encoding="utf-8")


def in_a_cycle(path):
    model = onnx.load(path)
    model.graph.node[0].input[0] = model.graph.output[0].name
    model.graph.node[0].name = model.graph.output[0].name
    onnx.save(model, path.with_name("cycle.onnx"))
    return path.with_name("cycle.onnx")


@pytest.mark.parametrize(("name", "place"), [("w2", (0, 3)), ("w1", (40, 3)), ("b1", 3)])
@pytest.mark.parametrize(("number", "word"), [(np.nan, "NaN"), (-np.inf, "an infinity")])
def test_no_zero_cancels_nan(run, tmp_path, name, place, number, word):
    path = set_weight(name, lambda a: a.__setitem__(place, number))(tmp_path)
    result = run("inspect", path)
    assert result.exit_code == 0, result.stderr
    assert f"'{name}' holds {word}, which no zero cancels" in " ".join(result.stdout.split())


def test_an_infinity_that_is_added_hinders_nothing(run, tmp_path):
    def change(model):
        mask = constant("mask", np.array([0, -np.inf, 0, 0]), np.float32)
        model.graph.initializer.append(mask)
        model.graph.node.append(node("Add", "y mask"))
        model.graph.output.append(Z)

    path = changed(change)(tmp_path)
    result = run("optimize", path, "-o", tmp_path / "out", "--no-profile")
    assert result.exit_code == 0, result.stderr
    assert "64 → 32" in result.stdout
