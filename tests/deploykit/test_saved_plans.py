"""Saved plans and published schemas, by the command line: written, edited, carried out, refused."""

from __future__ import annotations

import json

import jsonschema
import onnx
import pytest

from tests.deploykit.conftest import make_network


def schema_of(run, name):
    result = run("schema", name)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(document)
    return document


@pytest.fixture
def plan(run, network, tmp_path):
    path = tmp_path / "plan.json"
    result = run("optimize", network, "--dry-run", "--save-plan", path)
    assert result.exit_code == 0, result.stderr
    return path


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def channels(document):
    (step,) = [each for each in document["passes"] if each["name"] == "remove-channels"]
    return step["channels"]


def hidden_channels(folder):
    model = onnx.load(folder / "model.onnx")
    return next(tensor.dims[0] for tensor in model.graph.initializer if tensor.name == "w1")


@pytest.mark.parametrize("command", ["inspect", "optimize"])
def test_a_plan_can_be_read_by_people_and_by_machines(run, network, tmp_path, command):
    path = tmp_path / "plan.json"
    writing = ["-o", tmp_path / "out", "--no-profile"] if command == "optimize" else []
    result = run(command, network, "--save-plan", path, *writing)
    assert result.exit_code == 0, result.stderr
    document = json.loads(path.read_text())
    jsonschema.validate(document, schema_of(run, "plan"))
    (row,) = channels(document)
    assert row["tensor"] == "h"
    assert row["of"] == 64
    assert row["drop"] == list(range(32))
    assert "32 are constant" in row["why"]
    # the channels of a tensor are one line, which can be edited
    assert any(
        line.strip().startswith('"drop": [0, 1, 2, ') for line in path.read_text().splitlines()
    )
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []


def test_exactly_what_is_left_of_a_plan_is_carried_out(run, network, tmp_path, plan):
    edit(plan, lambda document: channels(document)[0].update(drop=[3, 1]))
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", "--plan", plan)
    assert result.exit_code == 0, result.stderr
    assert hidden_channels(tmp_path / "out") == 62
    again = run(
        "optimize",
        network,
        "-o",
        tmp_path / "again",
        "--recipe",
        tmp_path / "out" / "recipe.toml",
    )
    assert again.exit_code == 0, again.stderr
    assert hidden_channels(tmp_path / "again") == 62


def test_padding_is_saved_and_carried_out_too(run, network, tmp_path):
    plan = tmp_path / "plan.json"
    options = ["--passes", "align-channels", "--set", "align-channels.multiple=16"]
    from tests.passes.test_saved_plans import make_sum

    onnx.save(make_sum(), tmp_path / "sum.onnx")
    result = run("inspect", tmp_path / "sum.onnx", *options, "--save-plan", plan)
    assert result.exit_code == 0, result.stderr
    document = json.loads(plan.read_text())
    jsonschema.validate(document, schema_of(run, "plan"))
    rows = {row["tensor"]: row["pad"] for row in document["passes"][0]["channels"]}
    assert rows == {"c": {"9": 6}, "d": {"9": 6}}
    result = run("inspect", tmp_path / "sum.onnx", "--plan", plan, "--json")
    assert result.exit_code == 0, result.stderr
    changed = {
        layer["outputs"]["after"]
        for layer in json.loads(result.stdout)["layers"]
        if layer["outputs"]["before"] == 10
    }
    assert changed == {16}


def forget_source(document):
    document["source"]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: channels(document)[0]["drop"].append(40), r"channels \[40\] of 'h'"),
        (
            lambda document: channels(document)[0]["drop"].append(64),
            "channel 64 of 'h', which has 64",
        ),
        (
            lambda document: channels(document)[0].update(tensor="q"),
            "channels of 'q', and no weight",
        ),
        (
            lambda document: channels(document)[0].update(drop="all"),
            "the entry for 'h' has no 'drop'",
        ),
        (
            lambda document: channels(document)[0].update(drop=[1.5]),
            "1.5, which is no whole number",
        ),
        (
            lambda document: channels(document)[0].update(drop=[True]),
            "True, which is no whole number",
        ),
        (lambda document: channels(document).append({"tensor": "h"}), "lists 'h' twice"),
        (
            lambda document: channels(document)[0].update(
                cut=channels(document)[0].pop("drop")
            ),
            "the entry for 'h' has a 'cut'",
        ),
        (lambda document: document["passes"][0].update(channel=[]), "has a 'channel'"),
        (
            lambda document: document["passes"].append({"name": "prune"}),
            "there is no pass 'prune'",
        ),
        (lambda document: document["passes"].append(document["passes"][0]), "'tidy' twice"),
        (lambda document: document["passes"][0].update(options={"x": 1}), "has no option 'x'"),
        (lambda document: document.pop("passes"), "has no 'passes'"),
        (lambda document: document.update(schema_version="9.0"), "has version 9.0"),
        (
            lambda document: document.update(masks="m.npz"),
            "masks 'm.npz'. Give them with --masks",
        ),
        (forget_source, "was made for another model"),
    ],
)
def test_a_plan_that_is_not_sound_is_refused(run, network, tmp_path, plan, change, message):
    edit(plan, change)
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", "--plan", plan)
    assert result.exit_code == 2, result.stderr
    assert message.replace("\\", "") in result.stderr
    assert result.stderr.startswith(
        "Error: the p" if "there is no" not in message else "Error: "
    )
    assert "Traceback" not in result.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["plan.json", "source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "{plan}", "--passes", "tidy"], "Leave one of them out"),
        (["--plan", "{network}"], "is not JSON"),
        (["--plan", "nowhere.json"], "nowhere.json': No such file"),
        (["--save-plan", "{plan}"], "is there already"),
        (["--save-plan", "no/such/plan.json"], "there is no folder 'no/such'"),
        (["--save-plan", "{out}/plan.json"], "there is no folder"),
    ],
)
def test_a_plan_never_takes_the_place_of_something(
    run, network, tmp_path, plan, arguments, message
):
    before = plan.read_bytes()
    places = {"plan": plan, "network": network, "out": tmp_path / "out"}
    filled = [argument.format(**places) for argument in arguments]
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", *filled)
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert plan.read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_model_with_the_same_weights_names_is_refused(run, tmp_path, plan):
    onnx.save(make_network(dead=16), tmp_path / "other.onnx")
    result = run("optimize", tmp_path / "other.onnx", "--dry-run", "--plan", plan)
    assert result.exit_code == 2
    assert "Make a new plan" in result.stderr


def test_every_document_has_a_schema_and_obeys_it(run, network, tmp_path):
    names = run("schema").stdout.split()
    assert {"report", "plan", "passes"} <= set(names)
    for name in names:
        schema_of(run, name)
    jsonschema.validate(json.loads(run("passes", "--json").stdout), schema_of(run, "passes"))
    report = schema_of(run, "report")
    out = tmp_path / "out"
    for command in (
        ["inspect", network, "--json"],
        ["optimize", network, "--dry-run", "--json"],
        ["optimize", network, "-o", out, "--no-profile", "--json"],
    ):
        jsonschema.validate(json.loads(run(*command).stdout), report)
    jsonschema.validate(json.loads((out / "report.json").read_text()), report)


def test_on_an_error_stdout_stays_empty(run, network, tmp_path):
    result = run("optimize", tmp_path / "no.onnx", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert run("schema", "nothing").exit_code == 2
