"""The command line: what a user can do wrong, and what scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import onnx
import pytest

import passes
from deploykit.cli import COMMANDS
from deploykit.report.records import schema
from tests.deploykit import fakes
from tests.deploykit.conftest import make_network

HEAVY = (
    "asyncssh",
    "matplotlib",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "rich",
    "scipy",
    "torch",
)


def run_python(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours


@pytest.mark.parametrize(
    "arguments", [["--help"], *([each, "--help"] for each in COMMANDS), ["--version"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom deploykit.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    assert result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_as_a_program(command):
    result = run_python("-m", "deploykit", command, "-h")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: deploykit {command}")


def test_inspect_shows_every_layer_and_writes_nothing(run, network):
    before = sorted(network.parent.iterdir())
    result = run("inspect", network)
    assert result.exit_code == 0, result.stderr
    assert "64 → 32" in result.stdout
    assert "w2" in result.stdout
    assert sorted(network.parent.iterdir()) == before


def test_inspect_says_why_channels_stay(run, tmp_path):
    model = make_network()
    # The hidden channels become an output of the model: nobody may cut them.
    model.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, ["batch", 64]))
    onnx.save(model, tmp_path / "m.onnx")
    document = json.loads(run("inspect", tmp_path / "m.onnx", "--json").stdout)
    jsonschema.validate(document, schema())
    assert document["verdict"] == "planned"
    (group,) = [group for group in document["groups"] if "hidden" in group["layers"]]
    assert group["channels"] == group["pinned"] == 64
    skips = [skip for record in document["passes"] for skip in record["skipped"]]
    assert any("output" in skip["reason"] and "'r'" in skip["reason"] for skip in skips), skips
    assert all(skip["advice"] for skip in skips)


def test_a_dry_run_writes_nothing(run, network, tmp_path):
    result = run("optimize", network, "--dry-run", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["size"]["parameters"]["after"] < 9000
    assert not (tmp_path / "out").exists()


def test_passes_are_listed(run):
    document = json.loads(run("passes", "--json").stdout)
    rows = {row["name"]: row for row in document["passes"]}
    assert rows["remove-channels"]["exact"]
    assert any(option["name"] == "multiple" for option in rows["align-channels"]["options"])
    plain = run("passes").stdout
    for kind in passes.BUILTIN:
        assert kind.name in plain


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{network}"], 2, "Give a folder with -o OUT"),
        (["nowhere.onnx", "-o", "{out}"], 2, "'nowhere.onnx': it does not exist"),
        (["{network}", "-o", "{network}"], 2, "is a file"),
        (["{network}", "-o", "{source}"], 2, "the model 'network.onnx' lies there"),
        (["{network}", "-o", "{full}"], 2, "holds 'thesis.txt'"),
        (["{network}", "-o", "{full}", "--force"], 2, "holds 'thesis.txt'"),
        (["{network}", "-o", "{done}"], 2, "Give --force"),
        (
            ["{network}", "-o", "{out}", "--set", "multiple=8"],
            2,
            "--set takes PASS.OPTION=VALUE",
        ),
        (["{network}", "-o", "{out}", "--passes", "prune"], 2, "there is no pass 'prune'"),
        (["{network}", "-o", "{out}", "--shape", "x:9x9"], 2, "does not fit the input 'x'"),
        (["{network}", "-o", "{out}", "--inputs", "no.npz"], 2, "cannot be read as inputs"),
        (["{network}", "-o", "{out}", "--keep", "w9"], 2, "cannot keep 'w9'"),
        (
            ["{network}", "-o", "{out}", "--set", "align-channels.multiple=0"],
            2,
            "multiples of 0",
        ),
        (["{network}", "-o", "{out}", "--passes", ""], 2, "no passes are named"),
        (["{network}", "-o", "{out}", "--passes", "tidy,tidy"], 2, "'tidy' is named twice"),
        (["{network}", "-o", "{out}", "--dump-dir", "{network}/x"], 2, "is a file"),
        (["{network}", "-o", "{network}/x"], 2, "network.onnx' is a file"),
        (["{network}", "-o", "{out}", "--masks", "{text}"], 2, "is no .npz file"),
        (
            ["{network}", "-o", "{out}", "--masks", "m.pt"],
            2,
            "go with --ticket to a PyTorch model",
        ),
        (["{network}", "-o", "{out}", "--inputs", "{network}"], 2, "is no .npz file"),
        (["{network}", "--dry-run", "--shape", "x:9x9"], 2, "does not fit the input 'x'"),
        (["{network}", "--dry-run", "--shape", "y:9x9"], 2, "'y', which is no input"),
        (["{text}", "-o", "{out}"], 3, "is not an ONNX model"),
        (["{network}", "-o", "{out}", "--wrong"], 2, "No such option"),
        (
            ["{network}", "-o", "{out}", "--log-file", "{network}"],
            2,
            "its name is none of a log",
        ),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    run, network, tmp_path, arguments, code, message
):
    full, done, words = tmp_path / "full", tmp_path / "done", tmp_path / "text.onnx"
    untouched = network.read_bytes()
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    done.mkdir()
    (done / "report.json").write_text("{}")
    words.write_text("no model at all")
    places = {
        "network": network,
        "source": network.parent,
        "full": full,
        "done": done,
        "text": words,
    }
    filled = [argument.format(out=tmp_path / "out", **places) for argument in arguments]
    result = run("optimize", *filled)
    assert result.exit_code == code, result.stderr
    # click breaks lines where a terminal ends
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()
    assert (full / "thesis.txt").read_text() == "years of work"
    assert network.read_bytes() == untouched


def test_force_replaces_an_earlier_result(run, network, tmp_path):
    done = tmp_path / "done"
    done.mkdir()
    (done / "report.json").write_text("{}")
    result = run("optimize", network, "-o", done, "--no-profile", "--force")
    assert result.exit_code == 0, result.stderr
    assert json.loads((done / "report.json").read_text())["verdict"] == "smaller"
    assert (done / "model.onnx").exists()


class Crash(fakes.DropRows):
    """Crash."""

    name = "crash"

    def call(self, model):
        raise IndexError("list index out of range")


def test_a_bug_is_told_as_one(run, network, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "BUILTIN", (Crash,))
    result = run("optimize", network, "-o", tmp_path / "out")
    assert result.exit_code == 70
    assert "This is a bug in deploykit. Run again with -vv" in result.stderr
    assert "Traceback" not in result.stderr
    loud = run("optimize", network, "-o", tmp_path / "out", "-vv")
    assert loud.exit_code == 70
    assert "Traceback" in loud.stderr
    assert "in call" in loud.stderr


def test_results_and_narration_do_not_mix(run, network, tmp_path):
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", "--json", "-v")
    json.loads(result.stdout)
    assert "comparing outputs" in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("PASSED | ")
    quiet = run("optimize", network, "-o", tmp_path / "two", "--no-profile", "-q")
    assert "PASSED" not in quiet.stderr


def test_the_log_tells_what_every_pass_did(run, network, tmp_path):
    log = tmp_path / "run.log"
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", "--log-file", log)
    assert result.exit_code == 0, result.stderr
    assert "remove-channels: w1: " in log.read_text()
    assert "remove-channels: w1: " not in result.stderr
