"""Recipes that are broken: each is told with its file and line, why, and what to do, before anything is run."""

from __future__ import annotations

import socket

import pytest

from tests.deploykit.step.conftest import make_step


def text(step, content):
    step.recipe.write_text(content, encoding="utf-8")


def line_of(step, what):
    """The line of the recipe that holds a text, from 1."""
    lines = step.recipe.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if what in line)


def circle(step):
    for name, other in (("recipe", "base"), ("base", "other"), ("other", "recipe")):
        path = step.folder / f"{name}.toml"
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(f'extends = "{other}.toml"\n{old}', encoding="utf-8")


def wrong_base(step):
    (step.folder / "base.toml").write_text("[optimize]\n\nthreads = 0\n", encoding="utf-8")
    step.edit('name = "small"', 'extends = "base.toml"')


def change(old, new, name="recipe.toml"):
    return lambda step: step.edit(old, new, name)


def gate(written):
    """A gate in an array that has one line for each."""
    return change(
        'gates = ["max_error <= 1e-3", "parameters <= 0.9 * baseline", "accuracy >= 0.5"]',
        f'gates = [\n  "max_error <= 1e-3",\n  # the next one\n  "{written}",\n]',
    )


def output_of_itself(step):
    (step.folder / "out").mkdir()
    (step.folder / "network.onnx").rename(step.folder / "out" / "model.onnx")
    step.edit('"network.onnx"', '"out/model.onnx"')


# What is broken: how; the exit code; what the line that is told holds; what is told.
BROKEN = {
    "no TOML": (change("[output]", "[output"), 2, "[output", "is not TOML"),
    "no text": (
        lambda step: step.recipe.write_bytes(b'name = "a"\n# \xff\n'),
        2,
        None,
        "recipe.toml:2: this is no text in UTF-8",
    ),
    "no file": (lambda step: step.recipe.unlink(), 2, None, "recipe.toml': it does not exist"),
    "no model": (
        change('model = "network.onnx"\n', ""),
        2,
        "[inputs]",
        "[inputs] has no 'model'. Add it",
    ),
    "no output": (
        change('folder = "out"\n', ""),
        2,
        "[output]",
        "[output] has no 'folder'. Add it",
    ),
    "an unknown table": (
        change("[optimize]", "[optimise]"),
        2,
        "[optimise]",
        "no key or table 'optimise'. Did you mean 'optimize'?",
    ),
    "an unknown key": (
        change("profile = false", "profile = false\nthread = 2"),
        2,
        "thread = 2",
        "[optimize] has no key 'thread'. Did you mean 'threads'?",
    ),
    "a key in another's table": (
        change("profile = false", 'profile = false\nplan = "plan.json"'),
        2,
        'plan = "plan.json"',
        "[optimize] has no 'plan': it goes to [inputs]",
    ),
    "gates behind a table": (
        change('data = "labels.npz"', 'data = "labels.npz"\ngates = ["load <= 1 s"]'),
        2,
        '["load <= 1 s"]',
        "'gates' is in [accuracy] here: keys of the whole recipe come before the first table",
    ),
    "gates as a table": (
        lambda step: (
            step.edit(
                'gates = ["max_error <= 1e-3", "parameters <= 0.9 * baseline", "accuracy >= 0.5"]',
                "",
            ),
            step.edit("[output]", '[gates]\nrules = ["load <= 1 s"]\n[output]'),
        ),
        2,
        "[gates]",
        'as gates = ["p95 <= 4 ms"]',
    ),
    "a wrong type": (
        change("profile = false", 'profile = false\nthreads = "two"'),
        2,
        'threads = "two"',
        "'threads' is 'two', and has to be a whole number",
    ),
    "a wrong type in an array": (
        change('files = ["notes.txt"]', 'files = [\n  "notes.txt",\n  7,\n]'),
        2,
        "  7,",
        "each of 'files' is 7, and has to be text in quotes",
    ),
    "a number out of range": (
        change("rebuilds = 1", "rebuilds = 0"),
        2,
        "rebuilds = 0",
        "'rebuilds' must be at least 1, not 0",
    ),
    "a number that is none": (
        change("duration = 0.02", "duration = nan"),
        2,
        "duration = nan",
        "'duration' cannot be nan. Give a finite number",
    ),
    "an option of another command": (
        change("profile = false", 'profile = false\ncompute_capability = ["8.6"]'),
        2,
        "compute_capability",
        "optimize.engine",
    ),
    "an unknown pass": (
        change("profile = false", 'profile = false\npasses = ["tidy", "remove-chanels"]'),
        2,
        "remove-chanels",
        "there is no pass 'remove-chanels'",
    ),
    "an unknown option": (
        change('carry = "carrier"', 'cary = "carrier"'),
        2,
        "cary",
        "no option 'cary'. Did you mean 'carry'?",
    ),
    "an option's value": (
        change('carry = "carrier"', 'carry = "luck"'),
        2,
        "luck",
        "'remove-channels.carry' takes carrier | bias-map, not 'luck'",
    ),
    "options of what does not run": (
        change(
            "[options.remove-channels]\ncarry",
            "[options.prune-channels]\nratio = 0.5\n[options.remove-channels]\ncarry",
        ),
        2,
        "[options.prune-channels]",
        "'prune-channels', which does not run",
    ),
    "a target": (
        change("profile = false", 'profile = false\ntarget = "moon"'),
        2,
        "moon",
        "there is no target 'moon'",
    ),
    "a circle of recipes": (circle, 2, None, "base.toml' -> 'other.toml' -> 'recipe.toml'"),
    "a base that is not there": (
        change('name = "small"', 'extends = "bases.toml"'),
        2,
        "bases.toml",
        "bases.toml': it does not exist",
    ),
    "a base that is wrong": (wrong_base, 2, None, "base.toml:3: 'threads' must be at least 1"),
    "an output that is an input": (
        output_of_itself,
        2,
        'folder = "out"',
        "a result would be made of itself",
    ),
    "an output that holds the recipe": (
        change('folder = "out"', 'folder = "."'),
        2,
        'folder = "."',
        "a result would be made of itself",
    ),
    "an output of somebody else": (
        lambda step: (
            (step.folder / "out").mkdir(),
            (step.folder / "out" / "thesis.txt").write_text(""),
        ),
        2,
        None,
        "holds 'thesis.txt', which is no result of deploykit",
    ),
    "an output in the cache": (
        change('folder = "out"', 'folder = ".deploykit/cache/work/out"'),
        2,
        None,
        "whose content may go at any time",
    ),
    "a missing file": (
        change('"masks.npz"', '"mask.npz"'),
        2,
        '"mask.npz"',
        "mask.npz' does not exist",
    ),
    "a missing model": (
        change('"network.onnx"', '"net.onnx"'),
        2,
        '"net.onnx"',
        "net.onnx' does not exist",
    ),
    "a folder for a file": (
        change('["example.npz"]', '["."]'),
        2,
        '["."]',
        "is a folder, and a file is wanted",
    ),
    "a ticket for a file": (
        change('masks = "masks.npz"', 'ticket = "masks.npz"'),
        2,
        "ticket =",
        "a ticket goes with a PyTorch model",
    ),
    "no module": (
        change('"network.onnx"', '"netze:net"'),
        2,
        "netze:net",
        "there is no module 'netze'",
    ),
    "no gate": (gate("fast enough"), 2, "fast enough", "there is no metric 'fast'"),
    "an unknown metric": (
        gate("p96 <= 4 ms"),
        2,
        "p96",
        "there is no metric 'p96' in the gate 'p96 <= 4 ms'. Did you mean 'p9",
    ),
    "an unknown unit": (
        gate("p95 <= 4 sec"),
        2,
        "4 sec",
        "has the unit 'sec', and 'p95' is in one of us, ms, s",
    ),
    "no unit": (gate("p95 <= 4"), 2, "p95 <= 4", "has no unit"),
    "a unit of a plain number": (
        gate("ratio <= 1 ms"),
        2,
        "ratio <= 1 ms",
        "'ratio' is a plain number",
    ),
    "an unknown operator": (gate("p95 = 4 ms"), 2, "p95 = 4", "'=' does not compare"),
    "a gate that nothing meets": (gate("bytes <= 0 MB"), 2, "bytes <= 0", "can never be met"),
    "gates that exclude each other": (
        gate("max_error > 0.5"),
        2,
        "max_error > 0.5",
        "no figure can meet both 'max_error <= 1e-3' and 'max_error > 0.5'",
    ),
    "a share of what has no baseline": (
        gate("max_error <= 2 * baseline"),
        2,
        "2 * baseline",
        "the original, which has no such figure",
    ),
    "a gate on an unknown device": (
        gate("nano: p95 <= 4 ms"),
        2,
        "nano:",
        "names no device of this recipe",
    ),
    "a gate on what is not measured": (
        lambda step: (
            gate("p95 <= 4 ms")(step),
            step.edit('name = "small"', 'name = "small"\ndevices = []'),
        ),
        2,
        "p95 <= 4 ms",
        "on what is not measured: 'devices' is empty",
    ),
    "accuracy of nothing": (
        change('[accuracy]\nmetric = "evaluate:accuracy"\ndata = "labels.npz"\n', ""),
        2,
        "accuracy >= 0.5",
        "needs a table [accuracy]",
    ),
    "an unknown built-in metric": (
        change('"evaluate:accuracy"', '"top2"'),
        2,
        "top2",
        "there is no metric 'top2'. Did you mean 'top",
    ),
    "no function of that name": (
        change('"evaluate:accuracy"', '"evaluate:accurate"'),
        2,
        "evaluate:accurate",
        "has no 'accurate'. Did you mean 'accuracy'?",
    ),
    "an accuracy above 1": (
        lambda step: (
            step.edit('"evaluate:accuracy"', '"top1"'),
            step.edit("accuracy >= 0.5", "accuracy >= 95"),
        ),
        2,
        "accuracy >= 95",
        "a share of right answers, from 0 to 1",
    ),
    "a password": (
        change("[measure]", '[[devices]]\non = "ssh://me:hunter2@10.0.0.1"\n\n[measure]'),
        2,
        "on =",
        "given with a password",
    ),
    "two devices of one name": (
        change(
            "[measure]",
            '[[devices]]\non = "here"\n[[devices]]  # again\non = "here"\n\n[measure]',
        ),
        2,
        "[[devices]]  # again",
        "two devices are called 'here'",
    ),
    "a model that is none": (
        lambda step: (step.folder / "network.onnx").write_text("no model"),
        3,
        None,
        "is not an ONNX model",
    ),
    "masks that are none": (
        lambda step: (step.folder / "masks.npz").write_text("no masks"),
        2,
        None,
        "masks.npz' is no .npz file",
    ),
    "a metric that fails": (
        change("import numpy as np", "raise KeyError('top')", "evaluate.py"),
        2,
        None,
        "failed on the original model: KeyError: 'top' (evaluate.py, line 5)",
    ),
    "a metric that ends the program": (
        change("import numpy as np", "raise SystemExit(0)", "evaluate.py"),
        2,
        None,
        "failed on the original model: SystemExit: 0 (evaluate.py, line 5)",
    ),
    "a module that ends the program": (
        change("import helper", "raise SystemExit(0)", "evaluate.py"),
        2,
        None,
        "cannot be loaded: SystemExit: 0 (evaluate.py, line 2)",
    ),
    "a metric of no number": (
        change("float(right.mean())", "'much'", "helper.py"),
        2,
        None,
        "returned a str for the original model, and no number",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_recipe_is_told_with_its_line(step, run, broken):
    how, code, place, message = BROKEN[broken]
    how(step)
    found = run("run", step.recipe)
    said = " ".join(found.stderr.split())
    assert found.exit_code == code, said
    assert message in said
    if place is not None:
        assert f"{step.recipe}:{line_of(step, place.strip())}: " in said
    assert "hunter2" not in said
    assert "Traceback" not in said
    assert found.stdout == ""
    assert not (step.out / "report.json").exists()


def test_each_message_is_its_own():
    assert len({message for *_, message in BROKEN.values()}) >= len(BROKEN) - 1
    assert len(BROKEN) >= 30


def test_a_device_that_is_down_is_told_before_any_work(step, run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    step.edit("[measure]", f'[[devices]]\non = "ssh://127.0.0.1:{port}"\n\n[measure]')
    found = run("run", step.recipe)
    said = " ".join(found.stderr.split())
    assert found.exit_code == 4, said
    assert f"127.0.0.1:{port}" in said
    assert not (step.folder / ".deploykit" / "cache" / "objects").exists() or not list(
        (step.folder / ".deploykit" / "cache" / "objects").iterdir()
    )


def test_a_mark_at_the_beginning_and_ends_of_lines_of_windows_are_read(step, run):
    content = step.recipe.read_bytes().replace(b"\n", b"\r\n")
    step.recipe.write_bytes(b"\xef\xbb\xbf" + content)
    found = run("run", step.recipe, "--explain")
    assert found.exit_code == 0, found.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_step(tmp_path_factory.mktemp("lines") / "project")


@pytest.mark.parametrize(
    "setting", ["threads=2", "optimize.threads", "optimize.thread=2", "optimize.threads=two"]
)
def test_a_wrong_setting_is_told_as_one(project, run, setting):
    found = run("run", project.recipe, "--explain", "--set", setting)
    assert found.exit_code == 2
    assert setting in " ".join(found.stderr.split())
