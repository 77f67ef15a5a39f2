"""`inspect --sparse`, forced 2:4 by the command line, and patterns that a run loses."""

from __future__ import annotations

import io
import json

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from deploykit.layers import compare
from deploykit.recipe import Recipe
from deploykit.report.eligibility_records import schema
from deploykit.report.eligibility_text import render
from deploykit.runtimes.eligible import eligible_nodes
from deploykit.sparse_layers import inspect_sparse, lost_patterns
from passes.analysis.patterns import Pattern, obeys, sparsify
from tests import oracle
from tests.deploykit.conftest import make_network

PASSES = ("--passes", "tidy,remove-channels,infer-shapes,sparse-2-4")
FORCE = (*PASSES, "--set", "sparse-2-4.force=magnitude")


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.onnx"
    onnx.save(make_network(dead=0), path)
    return path


@pytest.fixture
def obeying(tmp_path):
    """The network with weights that obey 2:4."""
    model = make_network(dead=0, classes=32)
    for tensor in model.graph.initializer:
        if tensor.name in {"w1", "w2"}:
            array = sparsify(numpy_helper.to_array(tensor), 1, Pattern(2, 4))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "obeying.onnx"
    onnx.save(model, path)
    return path


def weights_of(path):
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
    }


def test_the_table_as_a_document(run, dense):
    result = run("inspect", dense, "--sparse", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())
    assert run("schema", "inspect-sparse").exit_code == 0
    hidden, head = document["layers"]
    assert (hidden["weight"], hidden["axis"], hidden["shape"]) == ("w1", 1, [64, 256])
    assert (hidden["outputs"], hidden["inputs"], hidden["precision"]) == (64, 256, "fp32")
    assert hidden["share"] < 0.2
    assert 0.7 < hidden["kept"] < 0.8
    assert hidden["answer"] == head["answer"] == "no"
    assert document["target"] == "tensorrt"
    assert any(
        "ONNX Runtime on a CPU has no sparse kernels" in each for each in document["warnings"]
    )


def test_the_answer_depends_on_the_target(run, obeying):
    for target in ("onnxruntime-cpu", "generic"):
        result = run("inspect", obeying, "--sparse", "--target", target)
        assert result.exit_code == 0, result.stderr
        assert (
            "0 of 2 layers could run in sparse 2:4 kernels as they are; 2 obey it"
            in result.stdout
        )
    assert run("inspect", obeying, "--sparse", "--target", "nowhere").exit_code == 2


def test_masks_are_applied_first(run, dense, tmp_path):
    before = weights_of(dense)
    masks = tmp_path / "masks.npz"
    np.savez(masks, w1=sparsify(before["w1"], 1, Pattern(2, 4)) != 0)
    result = run("inspect", dense, "--sparse", "--json", "--masks", masks)
    shares = {row["weight"]: row["share"] for row in json.loads(result.stdout)["layers"]}
    assert shares["w1"] == 1.0
    assert shares["w2"] < 1


@pytest.mark.parametrize(
    "option",
    [("--passes", "tidy"), ("--set", "tidy.x=1"), ("--save-plan", "p.json"), ("--keep", "w1")],
)
def test_options_without_an_effect_are_refused(run, dense, option):
    result = run("inspect", dense, "--sparse", *option)
    assert result.exit_code == 2
    assert f"leave {option[0]} out" in result.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(dense, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(inspect_sparse(dense, Recipe(), "deploykit inspect --sparse")))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    row = next(line.split() for line in text.splitlines() if line.startswith("w1"))
    assert row[:4] == ["w1", "Gemm", "64x[256]", "fp32"]
    assert "no" in row
    # Every letter in the table has its note.
    notes = [
        line.split()[0]
        for line in text.splitlines()
        if line[:2].strip().isalpha() and line[1] == " "
    ]
    assert set(row[row.index("no") + 1 :]) <= set(notes)


def test_an_order_that_was_asked_for_is_written(run, dense, tmp_path):
    plan, out, again = tmp_path / "plan.json", tmp_path / "out", tmp_path / "again"
    order = ("--passes", "permute-channels", "--save-plan", plan)
    result = run("optimize", dense, "-o", out, "--no-profile", *order)
    assert result.exit_code == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    assert (report["verdict"], report["validation"]["verdict"]) == ("changed", "equal")
    assert "The outputs changed" not in result.stdout
    before, after = weights_of(dense), weights_of(out / "model.onnx")
    (orders,) = json.loads(plan.read_text())["passes"][0]["orders"]
    np.testing.assert_array_equal(after["w2"], before["w2"][:, orders["order"]])
    result = run("optimize", dense, "-o", again, "--no-profile", "--plan", plan)
    assert result.exit_code == 0, result.stderr
    assert (again / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_forced_weights_are_written_and_the_change_is_shown(run, dense, tmp_path):
    out = tmp_path / "out"
    result = run("optimize", dense, "-o", out, "--no-profile", *FORCE, "--target", "tensorrt")
    assert result.exit_code == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"] == "changed"
    (record,) = [each for each in report["passes"] if each["name"] == "sparse-2-4"]
    assert (record["exact"], record["modified"]) == (False, True)
    assert report["validation"]["changes"]
    after = weights_of(out / "model.onnx")
    for name, array in weights_of(dense).items():
        if name in {"w1", "w2"}:
            np.testing.assert_array_equal(after[name], sparsify(array, 1, Pattern(2, 4)))
        else:
            np.testing.assert_array_equal(after[name], array)
    assert "The outputs changed" in result.stdout
    told = "2 weights obey 2:4; all of them were made to, by magnitude or by masks."
    assert told in " ".join(result.stdout.split())
    assert told in (out / "report.html").read_text()


def test_what_obeys_comes_back_byte_for_byte(run, obeying, tmp_path):
    out = tmp_path / "out"
    result = run(
        "optimize", obeying, "-o", out, "--no-profile", "--target", "tensorrt", *PASSES
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads((out / "report.json").read_text())
    (record,) = [each for each in report["passes"] if each["name"] == "sparse-2-4"]
    assert [change["subject"] for change in record["changes"]] == ["w1", "w2"]
    assert (record["exact"], record["modified"], record["skipped"]) == (True, False, [])
    assert report["verdict"] == "unchanged"
    assert not [each for each in report["warnings"] if "2:4" in each]
    assert (out / "model.onnx").read_bytes() == obeying.read_bytes()


def test_a_saved_plan_says_which_weights(run, dense, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    options = (*FORCE, "--target", "tensorrt")
    assert run("optimize", dense, "--dry-run", "--save-plan", plan, *options).exit_code == 0
    document = json.loads(plan.read_text())
    plan_schema = json.loads(run("schema", "plan").stdout)
    jsonschema.validate(document, plan_schema)
    (step,) = [each for each in document["passes"] if each["name"] == "sparse-2-4"]
    first, second = step["patterns"]
    assert {key: first[key] for key in ("weight", "axis", "pattern")} == {
        "weight": "w1",
        "axis": 1,
        "pattern": "2:4",
    }
    step["patterns"] = [second]
    plan.write_text(json.dumps(document))
    result = run(
        "optimize", dense, "-o", out, "--plan", plan, "--no-profile", "--target", "tensorrt"
    )
    assert result.exit_code == 0, result.stderr
    after, before = weights_of(out / "model.onnx"), weights_of(dense)
    np.testing.assert_array_equal(after["w1"], before["w1"])
    assert obeys(after["w2"], 1, Pattern(2, 4))
    step["patterns"] = [{**second, "axis": 0}]
    plan.write_text(json.dumps(document))
    refused = run("optimize", dense, "-o", tmp_path / "no", "--plan", plan, "--no-profile")
    assert refused.exit_code == 2
    assert "along axis 0 of 'w2'" in refused.stderr


def test_a_lost_pattern_is_told(obeying, run, tmp_path):
    # Half of the hidden rows die: their columns go from w2, and what is left of its fours is no pattern any more.
    model = onnx.load(obeying)
    for tensor in model.graph.initializer:
        if tensor.name in {"w1", "b1"}:
            array = numpy_helper.to_array(tensor).copy()
            array[np.arange(64) % 8 < 3] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path, out = tmp_path / "half.onnx", tmp_path / "out"
    onnx.save(model, path)
    result = run("optimize", path, "-o", out, "--no-profile", *PASSES)
    assert result.exit_code == 0, result.stderr
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    (warning,) = [each for each in warnings if "2:4" in each]
    assert warning.startswith("'w2' obeys 2:4 in the original and no longer in the result")
    assert "--keep" in warning
    inspected = json.loads(run("inspect", path, "--json", *PASSES).stdout)
    assert warning in inspected["warnings"]


def test_zeros_that_were_whole_channels_are_no_loss():
    first = make_network(dead=0)
    # Half of the columns of w2 are zero, two of each four: a pattern by chance.
    arrays = {
        tensor.name: numpy_helper.to_array(tensor).copy() for tensor in first.graph.initializer
    }
    arrays["w2"][:, np.arange(64) % 4 < 2] = 0
    cut = {
        "w2": arrays["w2"][:, np.arange(64) % 4 >= 2],
        "w1": arrays["w1"][np.arange(64) % 4 >= 2],
    }
    models = []
    for found in (arrays, {**arrays, **cut}):
        graph = helper.make_graph(
            [
                helper.make_node("Gemm", ["x", "w1"], ["h"], "hidden", transB=1),
                helper.make_node("Gemm", ["h", "w2"], ["y"], "head", transB=1),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
            [numpy_helper.from_array(found[name], name) for name in ("w1", "w2")],
        )
        models.append(oracle.from_proto(helper.make_model(graph)))
    rows = compare(*models)
    assert [row.obeys_2_4 for row in rows] == [False, True]
    assert lost_patterns(rows, models[1]) == ()


@pytest.mark.parametrize(
    ("capabilities", "eligible"),
    [((), 2), (("7.5",), 0), (("7.5", "8.6"), 2), (("8.0",), 2), (("12.0",), 2)],
)
def test_gpus_without_sparse_kernels_have_no_eligible_layers(
    run, dense, tmp_path, capabilities, eligible
):
    out = tmp_path / "out"
    typed = (
        "--passes",
        "set-precision,sparse-2-4",
        "--set",
        "sparse-2-4.force=magnitude",
        "--target",
        "tensorrt",
    )
    run("optimize", dense, "-o", out, "--no-profile", *typed)
    assert len(eligible_nodes(out / "model.onnx", capabilities)) == eligible
