"""Blocks in an inspection, and their pictures in a report."""

from __future__ import annotations

import base64
import json

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import layers
from deploykit.block_layers import COLUMNS, ROWS, inspect_blocks, order_columns
from deploykit.report.records import schema
from passes.analysis.blocks import Blocks, Part

GROUPED = ("--set", "group-blocks.lowering=grouped", "--target", "generic")


def block_weight(dice, rows, columns, parts, kernel=3):
    """Zero outside of `parts` blocks along the diagonal, rows and columns shuffled; and the mask of that."""
    mask = np.kron(np.eye(parts), np.ones((rows // parts, columns // parts))).astype(bool)
    mask = mask[dice.permutation(rows)][:, dice.permutation(columns)]
    weight = dice.standard_normal((rows, columns, kernel, kernel)).astype(np.float32)
    return weight * mask[:, :, None, None], mask


def make_network(*, dead=0):
    """Four convolutions: dense, with blocks, with scattered zeros, dense but for dead channels."""
    dice = np.random.default_rng(0)
    blocked, mask = block_weight(dice, 32, 32, 4)
    scattered = dice.standard_normal((32, 32, 3, 3)).astype(np.float32)
    # Every channel is read by something: none is dead.
    scattered *= ((dice.random((32, 32)) < 0.3) | np.eye(32, dtype=bool))[:, :, None, None]
    last = dice.standard_normal((24, 32, 1, 1)).astype(np.float32)
    head = dice.standard_normal((4, 24, 1, 1)).astype(np.float32)
    last[:dead], head[:, :dead] = 0, 0
    arrays = {
        "first": dice.standard_normal((32, 3, 3, 3)).astype(np.float32),
        "blocked": blocked,
        "scattered": scattered,
        "last": last,
        "head": head,
    }
    nodes, data = [], "x"
    for name, array in arrays.items():
        pads = [array.shape[-1] // 2] * 4
        nodes.append(
            helper.make_node("Conv", [data, name], [f"{name}_out"], f"/{name}", pads=pads)
        )
        nodes.append(helper.make_node("Relu", [f"{name}_out"], [f"{name}_r"]))
        data = f"{name}_r"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(data, TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return model, mask


@pytest.fixture
def network(tmp_path):
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "blocks.onnx"
    onnx.save(make_network(dead=12)[0], path)
    return path


def test_inspect_shows_blocks_and_why_sparse_layers_have_none(run, network):
    shown = run("inspect", network)
    assert shown.exit_code == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if "4 of 8x8 in 32x32" in line]
    assert line.split()[0] == "blocked"
    assert line.rstrip().endswith("4 of 8x8 in 32x32, 25 % of it")
    document = json.loads(run("inspect", network, "--json").stdout)
    jsonschema.validate(document, schema())
    (row,) = document["block_layers"]
    assert (row["weight"], row["node"], row["op_type"]) == ("blocked", "/blocked", "Conv")
    assert (row["outputs"], row["inputs"], row["kernel"]) == (32, 32, [3, 3])
    assert row["blocks"] == [[8, 8]] * 4
    assert (row["share"], row["form"], row["picture"]) == (0.25, "", None)
    # Channels that are dead are cut, and say nothing of blocks.
    (skip,) = document["no_blocks"]
    assert skip["subject"] == "scattered"
    assert "no dense blocks" in skip["reason"]
    assert skip["advice"]
    assert "no dense blocks" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("form", ["grouped", "split", "dense"])
def test_inspect_says_what_blocks_are_computed_as(run, network, form):
    options = ("--set", f"group-blocks.lowering={form}", "--target", "generic")
    document = json.loads(run("inspect", network, *options, "--json").stdout)
    (row,) = document["block_layers"]
    assert (row["form"], row["text"]) == (form, "4 of 8x8 in 32x32")
    assert "it was asked for" in row["reason"] or form == "dense"
    assert "8x8" not in row["reason"]
    plain = run("inspect", network, *options).stdout
    assert (f"{form}, 4 of 8x8 in 32x32, 25 % of it" in plain) == (form != "dense")
    assert "gone" not in plain


def test_layers_without_zeros_are_not_read():
    def unread():
        raise AssertionError

    model = ir.from_proto(make_network()[0])
    rows = layers.compare(model, model)
    for name in ("first", "last", "head"):
        value = model.graph.initializers[name]
        shape = ir.Shape(value.const_value.shape)
        value.const_value = ir.LazyTensor(
            unread, dtype=ir.DataType.FLOAT, shape=shape, name=name
        )
    found, skips = inspect_blocks(model, (), rows, (), result=model)
    assert [row.weight for row in found] == ["blocked"]
    assert [skip.subject for skip in skips] == ["scattered"]


def test_kernels_that_are_smaller_in_all_filters_are_told_with_the_blocks():
    model, _ = make_network()
    for index, value in enumerate(model.graph.initializer):
        if value.name == "blocked":
            weight = numpy_helper.to_array(value).copy()
            weight[..., 0] = 0
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(weight, "blocked"))
    model = ir.from_proto(model)
    (row,), _ = inspect_blocks(model, (), layers.compare(model, model), (), result=model)
    assert row.text == "4 of 8x8 in 32x32, 3x2 of the 3x3 kernel"
    assert row.share == pytest.approx(np.count_nonzero(weight) / weight.size)


def cells(picture):
    found = np.frombuffer(base64.b64decode(picture["cells"]), np.uint8)
    return found.reshape(picture["height"], picture["width"])


def test_the_report_shows_weights_as_they_came_and_in_the_order_of_their_blocks(
    run, network, tmp_path
):
    out = tmp_path / "out"
    result = run("optimize", network, "-o", out, "--no-profile", *GROUPED)
    assert result.exit_code == 0, result.stderr
    document = json.loads((out / "report.json").read_text())
    jsonschema.validate(document, schema())
    (row,) = document["block_layers"]
    mask = make_network()[1]
    assert row["form"] == "grouped"
    # A small matrix is drawn element by element, and nothing that is not zero is drawn as zero.
    np.testing.assert_array_equal(cells(row["picture"]) > 0, mask)
    assert cells(row["picture"])[mask].min() > 50
    inside = np.zeros_like(mask)
    assert len(row["outlines"]) == 4
    for box in row["outlines"]:
        assert (box["rows"], box["columns"]) == (8, 8)
        inside[box["row"] :, box["column"] :][: box["rows"], : box["columns"]] = True
    np.testing.assert_array_equal(cells(row["picture_ordered"]) > 0, inside)
    page = (out / "report.html").read_text()
    assert page.count("<rect ") >= 4
    assert "4 of 8x8 in 32x32, 25 % of it: computed as grouped" in page


def test_a_report_without_blocks_says_nothing_of_them(run, tmp_path):
    model = make_network()[0]
    weight = next(value for value in model.graph.initializer if value.name == "blocked")
    dense = np.ones((32, 32, 3, 3), np.float32)
    weight.CopyFrom(numpy_helper.from_array(dense, "blocked"))
    onnx.save(model, tmp_path / "m.onnx")
    result = run(
        "optimize", tmp_path / "m.onnx", "-o", tmp_path / "out", "--no-profile", *GROUPED
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["block_layers"] == []
    assert "Blocks</h2>" not in (tmp_path / "out" / "report.html").read_text()


def test_large_weights_have_small_pictures(run, tmp_path):
    dice = np.random.default_rng(1)
    model = make_network()[0]
    weight, _ = block_weight(dice, 2 * ROWS + 64, COLUMNS * 2, 2)
    wide = dice.standard_normal((COLUMNS * 2, 4, 1, 1)).astype(np.float32)
    model.graph.node.append(helper.make_node("Conv", ["head_r", "wide"], ["w"], "/wide"))
    model.graph.node.append(helper.make_node("Conv", ["w", "large"], ["y"], "/large"))
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in (("wide", wide), ("large", weight))
    )
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(weight), 6, 6])
    )
    onnx.save(model, tmp_path / "m.onnx")
    result = run(
        "optimize", tmp_path / "m.onnx", "-o", tmp_path / "out", "--no-profile", *GROUPED
    )
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["block_layers"]
    row = next(row for row in rows if row["weight"] == "large")
    assert row["form"] == "grouped"
    for name in ("picture", "picture_ordered"):
        assert cells(row[name]).shape == (ROWS, COLUMNS)
    # Half of the ordered picture is empty, whatever its resolution; in the shuffled one every cell has something.
    assert (cells(row["picture_ordered"]) == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert (cells(row["picture"]) == 0).mean() < 0.1


def part(rows, columns):
    return Part(np.array(rows), np.array(columns))


def test_columns_of_blocks_that_share_none_stand_together():
    blocks = Blocks((part([0, 3], [5, 1]), part([1, 2], [0, 4])), (4, 6))
    assert order_columns(blocks).tolist() == [1, 5, 0, 4, 2, 3]


def test_columns_that_blocks_share_stand_between_their_others():
    blocks = Blocks(
        (part([0], [0, 1, 2, 3]), part([1], [2, 3, 4, 5]), part([2], [5, 6])), (3, 8)
    )
    order = order_columns(blocks)
    assert sorted(order) == list(range(8))
    for each in blocks.parts:
        place = np.sort(np.argsort(order)[each.columns])
        assert np.diff(place).max() == 1, order
    assert order[-1] == 7
