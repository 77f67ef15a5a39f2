"""What runtimes say they can do here, and what a command does that asks for more."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from deploykit import runtimes
from deploykit.errors import RuntimeUnavailable, UsageError
from deploykit.runtimes import Claim, cuda, probe
from deploykit.runtimes import onnxruntime as ort
from tests.deploykit import fake_cuda

STARTED = subprocess.run
HAS_GPU = probe.find_driver().holds
no_gpu = pytest.mark.skipif(
    HAS_GPU, reason="a GPU is here, and these are about machines without"
)


# -- probing -------------------------------------------------------------------------------------


def child(monkeypatch, code):
    """A trial whose process runs that code."""

    def run(command, **options):
        assert command[1:4] == ["-P", "-m", "deploykit.runtimes.trials"]
        return STARTED([sys.executable, "-c", code], **options)

    monkeypatch.setattr(probe.subprocess, "run", run)
    return probe.try_out("anything", limit_s=2.0)


SAID = """
import json, os, sys, time
def say(**it): print(json.dumps(it), flush=True)
print('a library says hello'); print('[1]'); print('{"fact": 3}')
say(begins='import'); say(step='import', holds=True, reason='imported'); say(fact='version', value='1.2')
say(begins='run')
"""


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("os.abort()", "in a trial, at the step 'run', it crashed (SIGABRT)"),
        (
            "import ctypes; ctypes.string_at(0)",
            "in a trial, at the step 'run', it crashed (SIGSEGV)",
        ),
        ("time.sleep(60)", "in a trial, at the step 'run', it did not answer within 2 s"),
        ("sys.exit('no such thing')", "in a trial, at the step 'run', it ended with 1: no such thing"),
    ],
)  # fmt: skip
def test_a_crash_is_a_reason_and_has_a_place(monkeypatch, ending, reason):
    trial = child(monkeypatch, SAID + ending)
    assert trial.step("import") == Claim(holds=True, reason="imported")
    assert trial.facts == {"version": "1.2"}
    assert trial.step("run") == Claim(holds=False, reason=reason)


def test_what_was_not_tried_has_the_reason_of_what_failed(monkeypatch):
    code = SAID + "say(step='run', holds=False, reason='no room')"
    trial = child(monkeypatch, code)
    assert trial.step("never") == Claim(holds=False, reason="no room")
    trial = child(monkeypatch, "")
    assert not trial.step("run").holds
    assert trial.step("run").reason == "it was not tried"


def test_a_child_that_cannot_be_started_is_a_reason(monkeypatch):
    monkeypatch.setattr(probe.sys, "executable", "/nowhere/python")
    trial = probe.try_out("cuda")
    assert "no process for it" in trial.step("device").reason


def test_the_driver_is_looked_for_before_anything_is_called(monkeypatch):
    monkeypatch.setattr(probe, "LIBRARY", "libnothing-of-the-kind.so.1")
    found = probe.find_driver()
    assert not found
    assert found.reason.startswith("there is no NVIDIA driver: libnothing-of-the-kind.so.1")


def test_a_driver_that_fails_says_which_call_and_how(monkeypatch):
    with pytest.raises(RuntimeUnavailable, match=r"cuInit says CUDA_ERROR_FAKE \(999\)"):
        cuda.Gpu(fake_cuda.FakeDriver(errors={"cuInit": 999}))


def test_arrays_survive_the_way_to_the_device_and_back():
    driver = fake_cuda.FakeDriver()
    gpu = cuda.Gpu(driver)
    array = np.arange(24, dtype=np.int16).reshape(4, 6)[:, ::2]
    found = np.empty_like(np.ascontiguousarray(array))
    with gpu.upload(array) as buffer:
        gpu.download(buffer, found)
        with pytest.raises(ValueError, match="25 bytes for a buffer of 24"):
            gpu.fill(buffer, np.zeros(25, np.int8))
    np.testing.assert_array_equal(found, array)
    with gpu.upload(np.empty((0, 3), np.float32)) as nothing:
        assert nothing.address
    assert not driver.blocks
    gpu.close()
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


# -- the report ----------------------------------------------------------------------------------


@no_gpu
def test_the_report_says_what_runs_here_and_why_the_rest_does_not(run):
    done = run("runtimes", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, json.loads(run("schema", "runtimes").stdout))
    found = {row["runtime"]: row for row in document["runtimes"]}
    assert tuple(found) == runtimes.RUNTIMES
    assert found["onnxruntime"]["can_run"]["holds"]
    for name in ("tensorrt", "tensorrt-rtx", "torch"):
        assert not found[name]["can_run"]["holds"], name
        assert not found[name]["reports_sparsity"]["holds"], name
        assert "no NVIDIA driver" in found[name]["can_run"]["reason"]


def test_the_report_says_a_reason_once(run, monkeypatch):
    no = Claim(holds=False, reason="there is\x1b[31m no driver")
    found = runtimes.Capabilities(
        "made up", None, Claim(holds=True, reason="ok"), no, no, no, no
    )
    monkeypatch.setattr(runtimes, "capabilities", lambda _: found)
    text = run("runtimes").stdout
    assert text.count("not installed") == len(runtimes.RUNTIMES)
    assert text.count(r"no   there is\x1b[31m no driver") == len(runtimes.RUNTIMES)
    assert text.count("no   for the same reason") == 3 * len(runtimes.RUNTIMES)


@no_gpu
@pytest.mark.tensorrt
def test_the_sister_parses_and_builds_where_there_is_no_gpu():
    pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")
    found = runtimes.capabilities("tensorrt-rtx")
    assert (found.importable.holds, found.can_parse.holds, found.can_build.holds) == (True,) * 3
    assert not found.can_run.holds
    assert not found.reports_sparsity.holds


@no_gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "torch"])
def test_what_cannot_run_here_ends_every_command_before_it_begins(run, network, tmp_path, name, monkeypatch):  # fmt: skip
    # Trials of packages take seconds and have tests of their own.
    monkeypatch.setattr("deploykit.runtimes.tensorrt.try_out", lambda *_: probe.Trial({}, {}))
    monkeypatch.setattr(
        "deploykit.runtimes.tensorrt_rtx.try_out", lambda *_: probe.Trial({}, {})
    )
    monkeypatch.setattr("deploykit.runtimes.torch.try_out", lambda *_: probe.Trial({}, {}))
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ("profile", network),
        ("compare", network, network),
        ("optimize", network, "-o", tmp_path / "out"),
    ):
        done = run(*command, "--runtime", name)
        assert done.exit_code == 4, done.stderr
        assert f"{name} cannot run models on this machine" in done.stderr
        assert "'deploykit runtimes' says" in done.stderr
        assert not done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_runtime_is_a_mistake(run, network, tmp_path):
    with pytest.raises(
        UsageError, match="There are: onnxruntime, tensorrt, tensorrt-rtx, trtexec, torch"
    ):
        runtimes.capabilities("openvino")
    done = run("optimize", network, "-o", tmp_path / "out", "--engine", "torch")
    assert done.exit_code == 2
    assert "with tensorrt or tensorrt-rtx" in done.stderr
    done = run("optimize", network, "-o", tmp_path / "out", "--compute-capability", "8.6")
    assert done.exit_code == 2
    assert "--engine tensorrt-rtx" in done.stderr
    engine = ("--engine", "tensorrt-rtx", "--compute-capability", " , ")
    done = run("optimize", network, "-o", tmp_path / "out", *engine)
    assert done.exit_code == 2
    assert "names no GPU" in done.stderr


def test_claims_are_answers():
    assert Claim(holds=True, reason="it is there")
    assert not Claim(holds=False, reason="it is not")
    assert ort.capabilities().can_run


def test_nothing_that_is_tested_brings_what_only_nvidia_has():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert [re.split(r"[<>=; ]", each)[0] for each in extras["tensorrt"]] == ["tensorrt"]
    wanted, seen = ["dev"], set()
    while wanted:
        extra = wanted.pop()
        seen.add(extra)
        for requirement in extras[extra]:
            inner = re.fullmatch(r"deploykit-onnx\[(.*)\]", requirement)
            wanted += inner[1].split(",") if inner else []
    assert {"rtx", "torch"} < seen
    assert "tensorrt" not in seen


# -- engines -------------------------------------------------------------------------------------


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")


@pytest.mark.tensorrt
def test_an_engine_is_built_ahead_of_time_beside_the_result(rtx, run, network, tmp_path):
    out = tmp_path / "out"
    done = run(
        *("optimize", network, "-o", out, "--engine", "tensorrt-rtx", "--no-profile", "--json"),
        *(
            "--compute-capability",
            "8.6, 8.9",
            "--shape",
            "x:3x256",
            "--passes",
            "remove-channels",
        ),
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    engine = document["engine"]
    assert engine["runtime"] == f"tensorrt-rtx {rtx.__version__}"
    assert engine["compute_capabilities"] == ["8.6", "8.9"]
    assert engine["shapes"] == {"x": [3, 256]}
    assert (out / engine["file"]).stat().st_size == engine["bytes"] > 10_000
    # Built is not run, and what nobody says is unknown.
    assert engine["ran"] is False
    assert engine["sparse"] == {"eligible": [], "found": None, "chosen": None, "tactics": None}
    assert document["target"] == "tensorrt"
    assert "it was not run here" in (out / "report.html").read_text("utf-8")
    again = run("optimize", network, "-o", tmp_path / "again", "--recipe", out / "recipe.toml")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again" / engine["file"]).stat().st_size == engine["bytes"]
    forced = run(
        *(
            "optimize",
            network,
            "-o",
            out,
            "--no-profile",
            "--force",
            "--passes",
            "remove-channels",
        )
    )
    assert forced.exit_code == 0, forced.stderr
    assert not (out / engine["file"]).exists()


@pytest.mark.tensorrt
def test_gpus_that_it_does_not_build_for_are_listed(rtx, run, network, tmp_path):
    done = run(
        *("optimize", network, "-o", tmp_path / "out", "--engine", "tensorrt-rtx"),
        *("--compute-capability", "8.6,9.0,new"),
    )
    assert done.exit_code == 2
    assert (
        "no GPU of compute capability 9.0, new. It knows 7.5, 8.0, 8.6, 8.9, 12" in done.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.tensorrt
def test_a_model_that_the_parser_refuses_is_told_with_its_node(rtx, run, tmp_path):
    path = tmp_path / "odd.onnx"
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Det", ["x"], ["y"], "the-odd-one")],
        "odd",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)  # fmt: skip
    done = run(
        "optimize",
        path,
        "-o",
        tmp_path / "out",
        "--engine",
        "tensorrt-rtx",
        "--no-profile",
        "--passes",
        "remove-channels",
    )
    assert done.exit_code == 3, done.stderr
    assert "the-odd-one" in done.stderr
    assert not (tmp_path / "out").exists()
