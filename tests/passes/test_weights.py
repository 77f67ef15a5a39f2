"""The only door to constants: every form is read, and what is written stays consistent."""

from __future__ import annotations

import pathlib
import re

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from passes import weights
from passes.errors import PassError

FORMS = """
<ir_version: 10, opset_import: ["": 20]>
g (float[2] x, float[2] given) => (float[2] y)
<float[2] given = {1, 2}, float[2] w = {3, 4}>
{
    a = Constant <value = float[2] {5, 6}> ()
    b = Constant <value_float = 7.5> ()
    c = Constant <value_ints = [8, 9]> ()
    d = Constant <value_floats = [1.5]> ()
    e = Constant <value_string = "text"> ()
    f = Identity (w)
    y = Sum (x, given, w, a, b, d)
}
"""

SHARED = """
<ir_version: 10, opset_import: ["": 20]>
g (float[2] x, bool p) => (float[2] y)
<float[2] w = {1, 2}>
{
    a = Add (x, w)
    b = Mul (a, w)
    y = If (p) <
        then_branch = t () => (float[2] w_1) { w_1 = Add (b, w) },
        else_branch = e () => (float[2] z) { z = Identity (b) }
    >
}
"""


def values(model: ir.Model) -> dict[str | None, ir.Value]:
    found = {v.name: v for v in (*model.graph.inputs, *model.graph.initializers.values())}
    return found | {v.name: v for node in model.graph for v in node.outputs}


def test_every_numeric_form_of_constant_is_read_and_nothing_else() -> None:
    found = values(ir.from_onnx_text(FORMS))
    expected = {"w": [3, 4], "a": [5, 6], "b": 7.5, "c": [8, 9], "d": [1.5]}
    for name, value in found.items():
        array = weights.constant(value)
        assert weights.is_constant(value) == (array is not None) == (name in expected), name
        if array is not None:
            np.testing.assert_array_equal(array, expected[name])
    assert weights.constant(found["b"]).shape == ()
    assert weights.constant(found["c"]).dtype == np.int64
    assert weights.constant(None) is None


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.int4, np.float16, np.uint8])
def test_set_tensor_keeps_data_shape_and_type_together_through_a_file(dtype, tmp_path) -> None:
    model = ir.from_onnx_text(SHARED)
    twin = model.clone()
    value = model.graph.initializers["w"]
    array = np.arange(3).astype(dtype)
    weights.set_tensor(value, array)
    ir.save(model, tmp_path / "m.onnx")
    again = ir.load(tmp_path / "m.onnx").graph.initializers["w"]
    for held in (value, again):
        assert (held.name, held.shape, held.dtype.numpy()) == ("w", [3], np.dtype(dtype))
        np.testing.assert_array_equal(weights.constant(held), array)
    # The clone shares tensors and may share types: it must not notice.
    assert twin.graph.initializers["w"].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(weights.constant(twin.graph.initializers["w"]), [1, 2])


def test_set_tensor_refuses_what_is_no_constant() -> None:
    found = values(ir.from_onnx_text(FORMS))
    for name in ("x", "given", "a"):
        with pytest.raises(PassError, match=f"cannot replace the data of '{name}'"):
            weights.set_tensor(found[name], np.zeros(2, np.float32))


def test_new_names_avoid_those_of_subgraphs_and_copies_serve_one_use() -> None:
    model = ir.from_onnx_text(SHARED)
    graph = model.graph
    add, mul, branch = graph
    own = weights.copy_for(mul, 1, np.float32([5, 6, 7]))
    # w is taken by the original, w_1 by a value inside of the If.
    assert own.name == "w_2"
    assert graph.initializers["w_2"] is mul.inputs[1] is own
    assert add.inputs[1] is graph.initializers["w"]
    then = branch.attributes["then_branch"].as_graph()
    assert then[0].inputs[1] is graph.initializers["w"]
    assert weights.new_initializer(graph, "fresh", np.float32([1])).name == "fresh"


def test_parameters_are_counted_wherever_they_are_kept() -> None:
    model = ir.from_onnx_text(FORMS)
    # given 2, w 2, a 2, b 1, d 1; neither the whole numbers of c nor the text of e
    assert weights.parameter_count(model) == 8
    # 8 floats, 2 of int64, 4 characters
    assert weights.size_bytes(model) - 8 * 4 - 2 * 8 in {0, 4}
    inner = ir.from_onnx_text(
        SHARED.replace("{ w_1 = Add (b, w) }", "<float[2] k = {1, 2}> { w_1 = Add (b, k) }")
    )
    assert weights.parameter_count(inner) == 4


def test_nothing_else_assigns_const_value() -> None:
    root = pathlib.Path(weights.__file__).parents[1]
    files = [*(root / "passes").rglob("*.py"), *(root / "deploykit").rglob("*.py")]
    guilty = {
        file.relative_to(root).as_posix()
        for file in files
        if re.search(r"\.const_value\s*=[^=]|const_value=", file.read_text())
    }
    assert guilty == {"passes/weights.py"}


def test_what_is_derived_from_a_large_file_is_made_when_wanted(tmp_path: pathlib.Path) -> None:
    rows = weights.LARGE_BYTES // 32
    array = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    array.tofile(tmp_path / "data")

    def on_disk(name: str, count: int) -> ir.Value:
        shape = ir.Shape((count, 16))
        held = ir.ExternalTensor(
            "data", 0, count * 64, ir.DataType.FLOAT, shape=shape, name=name, base_dir=tmp_path
        )
        return ir.Value(
            name=name, shape=shape, type=ir.TensorType(held.dtype), const_value=held
        )

    large, small = on_disk("large", rows), on_disk("small", rows // 2 - 1)
    graph = ir.Graph([], [], nodes=[], initializers=[large, small], name="g")
    made: list[int] = []

    def cut(held: np.ndarray, rows: slice) -> np.ndarray:
        made.append(len(held))
        return held[rows, :12]

    weights.set_derived(large, cut, (rows, 12))
    weights.set_derived(small, cut, (rows // 2 - 1, 12))
    assert made == [rows // 2 - 1], "the small one at once, the large one later"
    assert weights.size_bytes(ir.Model(graph, ir_version=10)) == (rows + rows // 2 - 1) * 48
    # again, from what is not there yet
    weights.set_derived(large, lambda held, some: held[1:][some] * 2, (rows - 1, 12))
    assert made == [rows // 2 - 1]
    np.testing.assert_array_equal(weights.constant(large), array[1:, :12] * 2)
    assert large.shape == (rows - 1, 12)
    assert large.dtype == ir.DataType.FLOAT
    with (tmp_path / "out").open("wb") as file:
        large.const_value.tofile(file)
    assert (tmp_path / "out").read_bytes() == (array[1:, :12] * 2).tobytes(), "in slices"
    weights.set_derived(large, lambda held, _: held[:1], (2, 12))
    with pytest.raises(PassError, match=r"was to get the shape \(2, 12\), not \(1, 12\)"):
        weights.constant(large)
