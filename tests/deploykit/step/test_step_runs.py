"""What a run does again, and what it does not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil

import numpy as np
import onnx
import pytest

import deploykit
from deploykit.errors import UsageError
from deploykit.profile.place import Here
from deploykit.step.cache import Cache, key_of
from tests.deploykit.step.conftest import Step, make_step

STAGES = ("optimize", "profile here", "accuracy")
ALL = set(STAGES)
FILES = [
    *("junit.xml", "manifest.json", "model.onnx", "recipe.toml"),
    *("report.html", "report.json", "summary.md"),
]


def states(result):
    return {stage.name: stage.state for stage in result.stages}


def again(result, state):
    return {stage.name for stage in result.stages if stage.state == state}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change_weight(step):
    model = onnx.load(step.folder / "network.onnx")
    weight = next(each for each in model.graph.initializer if each.name == "w1")
    raw = bytearray(weight.raw_data)
    raw[-1] ^= 1
    weight.raw_data = bytes(raw)
    onnx.save(model, step.folder / "network.onnx")


def change_masks(step):
    mask = np.ones((64, 256), bool)
    mask[16:25] = False
    np.savez(step.folder / "masks.npz", w1=mask)


def change_example(step):
    np.savez(step.folder / "example.npz", x=np.full((1, 256), 0.5, np.float32))


def change_labels(step):
    with np.load(step.folder / "labels.npz") as file:
        arrays = dict(file)
    arrays["labels"][0] = (arrays["labels"][0] + 1) % 4
    np.savez(step.folder / "labels.npz", **arrays)


def move_model(step):
    (step.folder / "models").mkdir()
    shutil.move(step.folder / "network.onnx", step.folder / "models" / "moved.onnx")
    step.edit('"network.onnx"', '"models/moved.onnx"')


CHANGES = {
    "one bit of a weight": (change_weight, ALL, "model has another content"),
    "masks": (change_masks, ALL, "masks has another content"),
    "an example": (change_example, ALL, "example 1 has another content"),
    "one bit of a named file": (
        lambda step: step.flip("notes.txt"),
        ALL,
        "file notes.txt has another content",
    ),
    "an option of a pass": (
        lambda step: step.edit('"carrier"', '"bias-map"'),
        ALL,
        "option remove-channels.carry was 'carrier', is 'bias-map'",
    ),
    "threads": (
        lambda step: step.edit("profile = false", "profile = false\nthreads = 2"),
        {"profile here"},
        "option threads was 1, is 2",
    ),
    "how long is measured": (
        lambda step: step.edit("0.02", "0.03"),
        {"profile here"},
        "measure duration was 0.02, is 0.03",
    ),
    "one label": (change_labels, {"accuracy"}, "data has another content"),
    "one bit of the metric": (
        lambda step: step.edit("axis=1", "axis=-1", "evaluate.py"),
        {"accuracy"},
        "source evaluate.py has another content",
    ),
    "what the metric imports": (
        lambda step: step.edit("mean()", "mean()  ", "helper.py"),
        {"accuracy"},
        "source helper.py has another content",
    ),
    "whether more is better": (
        lambda step: step.edit('"labels.npz"', '"labels.npz"\nhigher_is_better = false'),
        {"accuracy"},
        "higher_is_better was true, is false",
    ),
    "a module that nobody imports": (lambda step: step.flip("stranger.py", 5), set(), ""),
    "a gate": (lambda step: step.edit("1e-3", "2e-3"), set(), ""),
    "a comment": (lambda step: step.edit("[output]", "# where\n[output]"), set(), ""),
    "the same files, later": (
        lambda step: [os.utime(path, (1, 1)) for path in step.folder.glob("*.*")],
        set(),
        "",
    ),
    "the same model elsewhere": (move_model, set(), ""),
}


RUN = ("one bit of a weight", "an option of a pass")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_redoes_what_depends_on_it_and_nothing_else(first, change):
    make, expected, reason = CHANGES[change]
    make(first)
    explained = deploykit.run(first.recipe, explain=True)
    assert again(explained, "stale") == expected
    assert all(
        reason in stage.why for stage in explained.stages if stage.name == min_of(expected)
    )
    if expected == ALL and change not in RUN:
        return  # the runs of some of them show that a run does what was explained
    done = deploykit.run(first.recipe)
    assert again(done, "ran") == expected
    assert again(done, "cached") == ALL - expected
    assert not deploykit.run(first.recipe).is_new


def min_of(stages):
    """The first of some stages, whose reason is the change itself."""
    return next((name for name in STAGES if name in stages), None)


VERSIONS = {
    "onnx": ALL,
    "onnxruntime": ALL,
    "scipy": ALL,
    "click": {"accuracy"},  # only the metric imports it
    "rich": set(),
}


@pytest.mark.parametrize("package", VERSIONS)
def test_another_version_redoes_what_it_decides(first, package, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.0.7" if name == package else real(name)
    )
    found = deploykit.run(first.recipe, explain=True)
    assert again(found, "stale") == VERSIONS[package]
    for stage in found.stages[:1] if VERSIONS[package] == ALL else ():
        assert f"package {package} was {real(package)}, is 0.0.7" in stage.why


def test_another_machine_measures_again(first, monkeypatch):
    real = Here.describe
    monkeypatch.setattr(
        Here,
        "describe",
        lambda self: dataclasses.replace(real(self), fingerprint="another"),
    )
    assert again(deploykit.run(first.recipe, explain=True), "stale") == {"profile here"}
    # Where the form is chosen by measuring, the model depends on the machine, too.
    first.edit("profile = false", "profile = true")
    measured = deploykit.run(first.recipe, explain=True)
    assert (
        "device" in next(each for each in measured.stages if each.name == "optimize").components
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    step = make_step(tmp_path_factory.mktemp("step") / "project")
    result = deploykit.run(step.recipe)
    assert result.ok, result.gates
    assert set(states(result).values()) == {"ran"}
    assert set(states(result)) == ALL
    assert sorted(content(step.out)) == FILES
    return step


@pytest.fixture
def first(finished, tmp_path):
    """A copy of a project whose step was run once, cache included."""
    shutil.copytree(finished.folder, tmp_path / "project")
    return Step(tmp_path / "project")


def test_a_second_run_does_nothing(first):
    before = content(first.out)
    stamps = {path.name: path.stat().st_mtime_ns for path in first.out.iterdir()}
    again_ = deploykit.run(first.recipe)
    assert set(states(again_).values()) == {"cached"}
    assert not again_.is_new
    assert content(first.out) == before
    assert {path.name: path.stat().st_mtime_ns for path in first.out.iterdir()} == stamps


def test_documents_agree_with_each_other_and_the_files(first):
    manifest = json.loads((first.out / "manifest.json").read_text())
    report = json.loads((first.out / "report.json").read_text())
    assert manifest["verdict"] == report["step"]["verdict"] == "passed"
    assert [row["key"] for row in manifest["stages"]] == [
        row["key"] for row in report["step"]["stages"]
    ]
    for row in manifest["stages"]:
        assert row["key"] == key_of(row["name"], row["components"])
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert manifest["recipe"]["optimize"]["threads"] == 1, "defaults are filled in"
    assert report["model"] == "out/model.onnx"
    assert report["source"]["path"] == "network.onnx"
    assert ".deploykit" not in (first.out / "report.html").read_text()


def test_the_effective_recipe_repeats_the_step(first):
    shutil.copy(first.out / "recipe.toml", first.folder / "again.toml")
    found = deploykit.run(first.folder / "again.toml", explain=True)
    assert set(states(found).values()) == {"cached"}


def test_a_lost_or_altered_file_of_the_folder_is_put_back(first):
    before = content(first.out)
    (first.out / "model.onnx").unlink()
    (first.out / "summary.md").write_text("all is well")
    result = deploykit.run(first.recipe)
    assert set(states(result).values()) == {"cached"}
    assert result.is_new
    assert (first.out / "model.onnx").read_bytes() == before["model.onnx"]
    assert (first.out / "summary.md").read_text() != "all is well"


@pytest.mark.parametrize("how", ["altered", "gone", "added", "record"])
def test_a_damaged_result_is_thrown_away_and_made_anew(first, how):
    kept = next((first.folder / ".deploykit" / "cache" / "objects").glob("*/files/result"))
    if how == "altered":
        model = bytearray((kept / "model.onnx").read_bytes())
        model[len(model) // 2] ^= 1
        (kept / "model.onnx").write_bytes(bytes(model))
    elif how == "gone":
        (kept / "report.json").unlink()
    elif how == "added":
        (kept / "model.onnx.data").write_bytes(b"from elsewhere")
    else:
        (kept.parent.parent / "object.json").write_text("{")
    before = content(first.out)["model.onnx"]
    result = deploykit.run(first.recipe)
    assert again(result, "ran") == {"optimize"}
    assert any("'optimize' was damaged" in warning for warning in result.warnings)
    assert content(first.out)["model.onnx"] == before


def test_a_missed_gate_leaves_no_model_and_says_why(first, run):
    first.edit('"parameters <= 0.9 * baseline"', '"parameters <= 0.1 * baseline"')
    found = run("run", first.recipe)
    assert found.exit_code == 1, found.stderr
    words = " ".join(found.stdout.split())
    assert "parameters <= 0.1 * baseline" in words
    assert "FAILED" in words
    assert "No model was written" in words
    assert "kept" in words
    assert sorted(content(first.out)) == [name for name in FILES if name != "model.onnx"]
    second = run("run", first.recipe)
    assert second.exit_code == 1, "what was missed stays missed"
    first.edit("0.1 * baseline", "0.9 * baseline")
    assert run("run", first.recipe).exit_code == 0
    assert (first.out / "model.onnx").exists()


def test_without_the_cache_everything_is_done_and_nothing_kept(step, run):
    found = run("run", step.recipe, "--no-cache", "--json")
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    assert {row["state"] for row in document["step"]["stages"]} == {"ran"}
    assert not (step.folder / ".deploykit").exists()
    assert (
        sorted(path.name for path in step.folder.iterdir() if path.name.startswith(".")) == []
    )


def test_an_input_that_changes_while_it_is_read_is_not_kept(step, monkeypatch):
    from deploykit.step import work

    real = work.optimize

    def meddle(recipe, folder, **given):
        real(recipe, folder, **given)
        change_weight(step)

    monkeypatch.setattr(work, "optimize", meddle)
    with pytest.raises(UsageError, match=r"network.onnx' was changed while 'optimize'"):
        deploykit.run(step.recipe)
    assert not step.out.exists()
    assert not list((step.folder / ".deploykit" / "cache" / "objects").iterdir())


def test_a_module_that_was_imported_before_is_read_anew(first):
    """Same size, same second: neither the process nor Python's compiled files may hand out the old one."""
    path = first.folder / "helper.py"
    stamp = path.stat().st_mtime_ns
    first.edit("right.mean()", "right.sum() ", "helper.py")
    os.utime(path, ns=(stamp, stamp))
    result = deploykit.run(first.recipe)
    assert result.accuracy.optimized > 1.0


def test_settings_and_devices_of_the_command_line_win(first, run):
    found = run("run", first.recipe, "--explain", "--set", "remove-channels.carry=bias-map")
    assert found.exit_code == 0, found.stderr
    assert "is 'bias-map'" in " ".join(found.stdout.split())
    assert "Nothing was run or written" in " ".join(found.stdout.split())
    found = run("run", first.recipe, "--explain", "--set", "measure.duration=0.5", "--json")
    stale = [
        row["name"]
        for row in json.loads(found.stdout)["step"]["stages"]
        if row["state"] == "stale"
    ]
    assert stale == ["profile here"]


def test_what_was_not_used_for_long_is_pruned(tmp_path):
    def write(folder):
        (folder / "data").write_bytes(b"x" * 1000)

    for name in ("old", "new"):
        with Cache(tmp_path) as cache:
            cache.take(key_of(name, {}), name, {}, write)
    os.utime(tmp_path / "objects" / key_of("old", {}) / "object.json", (1, 1))
    with Cache(tmp_path) as cache:
        assert cache.find(key_of("old", {})) is not None
        assert cache.prune(1500) >= 1000
        assert cache.find(key_of("old", {})) is None
        assert cache.find(key_of("new", {})) is not None
    assert not list((tmp_path / "locks").iterdir())
