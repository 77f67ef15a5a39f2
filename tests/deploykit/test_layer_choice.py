"""The form of each layer with blocks: chosen by measuring it alone, or by rules, and told layer by layer."""

from __future__ import annotations

import json
import types

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploykit import layer_choice
from deploykit.errors import ModelError
from deploykit.layer_choice import LayerChooser
from deploykit.profile.statistics import Ratio
from passes import TARGETS
from passes.analysis.blocks import Blocks, Part
from passes.analysis.matrices import read_layers
from passes.lowerings import DENSE
from passes.lowerings.alone import Case
from passes.lowerings.task import BlockedLayer
from passes.planners.block_choice import Chosen

SIZE, WIDTH, BLOCKS = 6, 32, 4


def blocked(seed, kernel=3):
    """A weight with four blocks, rows and columns in a hidden order."""
    dice = np.random.default_rng(seed)
    rows, columns = dice.permutation(WIDTH), dice.permutation(WIDTH)
    weight = np.zeros((WIDTH, WIDTH, kernel, kernel), np.float32)
    for at in range(BLOCKS):
        part = slice(at * WIDTH // BLOCKS, (at + 1) * WIDTH // BLOCKS)
        block = dice.normal(size=(WIDTH // BLOCKS, WIDTH // BLOCKS, kernel, kernel)) / 8
        weight[np.ix_(rows[part], columns[part])] = block
    return weight


@pytest.fixture
def network(tmp_path):
    """Three convolutions, two of them with blocks; the sums of the first stand in an Add with its input."""
    dice = np.random.default_rng(0)
    arrays = {
        "stem": dice.normal(size=(WIDTH, 3, 3, 3)).astype(np.float32) / 5,
        "first": blocked(1),
        "second": blocked(2),
        "head": dice.normal(size=(5, WIDTH, 1, 1)).astype(np.float32) / 5,
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["s"], name="stem", **pads),
        helper.make_node("Relu", ["s"], ["a"]),
        helper.make_node("Conv", ["a", "first"], ["f"], name="one", **pads),
        helper.make_node("Relu", ["f"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["g"], name="two", **pads),
        helper.make_node("Add", ["a", "g"], ["c"]),
        helper.make_node("Conv", ["c", "head"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5, SIZE, SIZE])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = tmp_path / "blocks.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def case_of(path, name):
    """The layer of a model with that weight, with four blocks side by side."""
    import onnx_ir as ir

    model = ir.load(path)
    layer = next(each for each in read_layers(model) if each.name == name)
    step = WIDTH // BLOCKS
    parts = tuple(
        Part(np.arange(at * step, (at + 1) * step), np.arange(at, WIDTH, BLOCKS))
        for at in range(BLOCKS)
    )
    target = TARGETS["generic"]
    task = BlockedLayer(layer, Blocks(parts, (WIDTH, WIDTH)), target.group_multiple, 4)
    return Case(task, (1, WIDTH, SIZE, SIZE), target)


def measured(times, spread=0.01):
    """What stands for a measurement: a time for each form, with intervals of that relative width."""

    def ratio(candidate, baseline):
        value = times[candidate] / times[baseline]
        ends = value * (1 - spread), value * (1 + spread)
        return Ratio(value, *ends, "cpu", noisy=False, clean_share=1.0, rounds=30, rebuilds=3)

    return types.SimpleNamespace(
        ratio=ratio, ratios={name: ratio(name, DENSE) for name in times if name != DENSE}
    )


@pytest.mark.parametrize(
    ("gathered", "split", "spread", "expected"),
    [
        (0.5, 0.49, 0.005, "gathered"),  # the simpler one, where another is hardly faster
        (0.5, 0.4, 0.005, "split"),
        (0.975, 0.975, 0.001, "gathered"),
        (0.985, 0.99, 0.001, DENSE),  # proven faster, and not worth it
        (0.9, 0.95, 0.2, DENSE),  # not proven
        (1.3, 1.2, 0.005, DENSE),
    ],
)
def test_a_form_has_to_be_proven_faster_and_the_simplest_stays(
    network, monkeypatch, gathered, split, spread, expected
):
    times = {DENSE: 1.0, "gathered": gathered, "split": split}
    monkeypatch.setattr(layer_choice, "measure", lambda *_, **__: measured(times, spread))
    (chosen,) = LayerChooser()([case_of(network, "first")])
    assert chosen.name == expected
    fastest = "gathered" if gathered <= split else "split"
    told = times[fastest if expected == DENSE else expected]
    assert f"{told:.2f} [" in chosen.reason
    assert bool(chosen.advice) == (expected == DENSE)


def test_layers_that_are_alike_are_measured_once(network, monkeypatch):
    seen, told = [], []

    def measure(models, feeds, **options):
        for path in models.values():
            onnx.checker.check_model(str(path), full_check=True)
        assert options["baseline"] == DENSE
        assert options["threads"] == 2
        seen.append(tuple(models))
        assert {array.shape for array in feeds.values()} == {(1, WIDTH, SIZE, SIZE)}
        return measured({DENSE: 1.0, "gathered": 0.5, "split": 0.6})

    monkeypatch.setattr(layer_choice, "measure", measure)
    choose = LayerChooser(2, progress=lambda stage, done=None: told.append((stage, done)))
    cases = [case_of(network, "first"), case_of(network, "second")]
    assert [each.name for each in choose(cases)] == ["gathered", "gathered"]
    assert choose([cases[1]])[0].name == "gathered"
    assert seen == [(DENSE, "gathered", "split")]
    assert told == [
        ("measuring 1 kinds of layers with blocks", 0.0),
        ("measuring 1 kinds of layers with blocks", 1.0),
    ]


def test_a_layer_that_cannot_be_measured_stays_and_says_why(network, monkeypatch):
    def measure(*_, **__):
        msg = "the runtime does not run it"
        raise ModelError(msg)

    monkeypatch.setattr(layer_choice, "measure", measure)
    (chosen,) = LayerChooser()([case_of(network, "first")])
    assert chosen.name == DENSE
    assert "the runtime does not run it" in chosen.reason


def test_a_layer_is_really_measured(network):
    (chosen,) = LayerChooser()([case_of(network, "first")])
    assert chosen.name in case_of(network, "first").names
    assert "of the dense time" in chosen.reason


def report(run, network, out, *options):
    result = run("optimize", network, "-o", out, "--json", *options)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads(run("schema", "report").stdout))
    return document


def forms(document):
    return {row["weight"]: row["form"] for row in document["layers"] if row["form"]}


def test_rules_choose_where_nothing_is_measured(run, network, tmp_path):
    document = report(run, network, tmp_path / "out", "--no-profile", "--choose", "static")
    assert forms(document).keys() == {"first", "second"}
    assert document["validation"]["verdict"] == "equal"
    operators = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
    assert operators.count("Conv") == 4
    recipe = (tmp_path / "out" / "recipe.toml").read_text()
    assert 'choose = "static"' in recipe
    plain = report(run, network, tmp_path / "plain", "--no-profile")
    assert not forms(plain)


def test_layers_that_stay_dense_are_told_although_no_form_came_of_it(
    run, network, tmp_path, monkeypatch
):
    def never(self, cases):
        del self
        return [Chosen(DENSE, "it takes 1.30 of the dense time", "cut channels") for _ in cases]

    monkeypatch.setattr(LayerChooser, "__call__", never)
    document = report(run, network, tmp_path / "out", "--duration", "0.2")
    (told,) = [each for each in document["passes"] if each["name"] == "group-blocks"]
    assert not told["modified"]
    assert {skip["subject"] for skip in told["skipped"]} == {"first", "second"}
    assert all("takes 1.30 of the dense time" in skip["reason"] for skip in told["skipped"])
    assert not forms(document)


def test_a_form_that_lost_as_a_whole_is_told_layer_by_layer(
    run, network, tmp_path, monkeypatch
):
    from deploykit import pipeline
    from deploykit.choice import Choice

    def always(self, cases):
        del self
        return [Chosen("gathered", "0.50 of the dense time") for _ in cases]

    monkeypatch.setattr(LayerChooser, "__call__", always)
    monkeypatch.setattr(
        pipeline, "choose", lambda plain, *_: Choice(plain.name, "it is the simplest")
    )
    document = report(run, network, tmp_path / "out", "--duration", "0.2")
    (told,) = [each for each in document["passes"] if each["name"] == "group-blocks"]
    assert not told["modified"]
    assert not told["changes"]
    assert all("0.50 of the dense time" in skip["reason"] for skip in told["skipped"])
    assert len(told["skipped"]) == 2


def test_orders_and_forms_are_saved_edited_and_carried_out(run, network, tmp_path):
    path = tmp_path / "plan.json"
    options = ("--no-profile", "--choose", "static")
    report(run, network, tmp_path / "one", *options, "--save-plan", path)
    plan = json.loads(path.read_text())
    jsonschema.validate(plan, json.loads(run("schema", "plan").stdout))
    steps = {step["name"]: step for step in plan["passes"]}
    assert {row["tensor"] for row in steps["permute-channels"]["orders"]} <= {"s", "f", "g"}
    assert {row["weight"] for row in steps["group-blocks"]["forms"]} == {"first", "second"}
    again = report(run, network, tmp_path / "two", "--no-profile", "--plan", path)
    assert forms(again).keys() == {"first", "second"}
    same = [(tmp_path / name / "model.onnx").read_bytes() for name in ("one", "two")]
    assert same[0] == same[1]
    # What is deleted is left alone.
    del steps["group-blocks"]["forms"][0]
    path.write_text(json.dumps(plan))
    fewer = report(run, network, tmp_path / "three", "--no-profile", "--plan", path)
    assert len(forms(fewer)) == 1
    assert fewer["validation"]["verdict"] == "equal"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda steps: steps["group-blocks"]["forms"][0].update(weight="third"), "'third'"),
        (lambda steps: steps["group-blocks"]["forms"][0].update(form="magic"), "'magic'"),
        (
            lambda steps: steps["group-blocks"]["forms"][0].update(form="products"),
            "it is no product with a matrix",
        ),
        (lambda steps: steps["permute-channels"]["orders"][0].update(order=[0, 0, 1]), "order"),
        (lambda steps: steps["permute-channels"]["orders"][0].update(tensor="z"), "'z'"),
        (
            lambda steps: steps["group-blocks"].update(
                orders=steps["permute-channels"]["orders"]
            ),
            "'group-blocks' takes 'forms', not 'orders'",
        ),
        (lambda steps: steps["group-blocks"]["forms"][0].update(from_="x"), "from_"),
    ],
)
def test_plans_that_do_not_fit_are_refused(run, network, tmp_path, change, said):
    path = tmp_path / "plan.json"
    options = ("--no-profile", "--choose", "static")
    report(run, network, tmp_path / "one", *options, "--save-plan", path)
    plan = json.loads(path.read_text())
    change({step["name"]: step for step in plan["passes"]})
    path.write_text(json.dumps(plan))
    result = run("optimize", network, "-o", tmp_path / "two", "--no-profile", "--plan", path)
    assert result.exit_code == 2, result.stderr
    assert said in result.stderr
    assert not (tmp_path / "two").exists()


def test_another_way_of_choosing_is_refused(run, network, tmp_path):
    result = run("optimize", network, "-o", tmp_path / "out", "--choose", "luck")
    assert result.exit_code == 2
    assert "'luck' is not one of" in result.stderr
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[optimize]\nchoose = "luck"\n')
    result = run("optimize", network, "-o", tmp_path / "out", "--recipe", recipe)
    assert result.exit_code == 2
    assert "measure, static" in result.stderr
