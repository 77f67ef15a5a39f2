"""Runtimes that the sampler drives by itself on a device: TensorRT's package and trtexec, both as stand-ins.

This proves that what is called fits together, and that refusals are told. It proves nothing of TensorRT.
"""

import ast
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from deploykit.profile import layer_times, sampler
from deploykit.report.profile_records import schema
from deploykit.runtimes import Claim, capabilities
from tests.deploykit import fake_cuda, fake_tensorrt, fake_trtexec
from tests.deploykit.conftest import make_network

QUICK = {"warmup_s": 0.0, "duration_s": 0.02, "min_rounds": 6, "rebuilds": 2}
FEEDS = {"x": np.ones((2, 16), np.float32)}
OPTIONS_8 = [
    "verbose",
    "dumpProfile",
    "exportProfile",
    "help",
    "onnx",
    "saveEngine",
    "loadEngine",
    "buildOnly",
    "shapes",
    "sparsity",
    "fp16",
    "iterations",
    "warmUp",
    "duration",
    "exportTimes",
    "loadInputs",
    "noDataTransfers",
    "useSpinWait",
]
OPTIONS_10 = [*(set(OPTIONS_8) - {"buildOnly"}), "skipInference", "stronglyTyped"]
OPTIONS_11 = [*(set(OPTIONS_8) - {"buildOnly", "fp16"}), "skipInference", "stronglyTyped"]


# -- TensorRT ------------------------------------------------------------------------------------


@pytest.fixture(params=["10.3.0", "11.4.0.106"])
def fake(request, monkeypatch):
    driver = fake_cuda.FakeDriver()
    module, state = fake_tensorrt.make(request.param, driver)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    return state


def save(path, **changes):
    model = make_network(batch=2, **changes)
    onnx.save(model, path)
    (value,) = model.graph.input
    sizes = [part.dim_value or 2 for part in value.type.tensor_type.shape.dim]
    return path, {value.name: np.ones(sizes, np.float32)}


def test_engines_are_built_once_and_timed_by_the_clock_of_the_gpu(fake, tmp_path):
    path, feeds = save(tmp_path / "a.onnx")
    other, _ = save(tmp_path / "b.onnx", dead=0)
    found = sampler.sample([path, other], feeds, runtime="tensorrt", **QUICK)
    assert fake.builds == 2
    assert found["is_device"] is True
    assert found["providers"] == [fake_cuda.NAME]
    assert found["runtime"].startswith("tensorrt 1")
    # The fake's clock ticks a millisecond a run.
    assert set(found["wall_s"][0]) == {1e-3}
    assert len(set(found["rebuild"])) == 2
    # What was reserved was given back.
    assert fake.driver.blocks == {}


def test_what_an_engine_refuses_is_told(fake, tmp_path):
    path, feeds = save(tmp_path / "a.onnx")
    fake.refuse_build = "Error Code 10: no implementation for node conv"
    with pytest.raises(RuntimeError, match="builds no engine of the model: Error Code 10"):
        sampler.sample([path], feeds, runtime="tensorrt", **QUICK)
    fake.refuse_build, fake.refuse_engine = "", "the engine is for another GPU"
    with pytest.raises(
        RuntimeError, match="not take the engine on this GPU: the engine is for another"
    ):
        sampler.sample([path], feeds, runtime="tensorrt", **QUICK)
    fake.refuse_engine, fake.driver.memory = "", 8
    with pytest.raises(MemoryError, match="not enough memory"):
        sampler.sample([path], feeds, runtime="tensorrt", **QUICK)


def test_before_version_10_half_precision_is_allowed_where_the_model_has_it(
    monkeypatch, tmp_path
):
    driver = fake_cuda.FakeDriver()
    module, state = fake_tensorrt.make("8.5.2.2", driver)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    flags = types.SimpleNamespace(
        SPARSE_WEIGHTS=fake_tensorrt.BuilderFlag.SPARSE_WEIGHTS, FP16="FP16"
    )
    monkeypatch.setattr(module, "BuilderFlag", flags)
    kinds = types.SimpleNamespace(EXPLICIT_BATCH=0)
    monkeypatch.setattr(module, "NetworkDefinitionCreationFlag", kinds)
    taken = []
    monkeypatch.setattr(
        module.IBuilderConfig,
        "set_flag",
        lambda self, flag: (taken.append(flag), self._flags.add(flag)),
    )
    layer = types.SimpleNamespace(
        num_outputs=1, get_output=lambda _: types.SimpleNamespace(dtype=dtype)
    )
    network = fake_tensorrt.INetworkDefinition
    monkeypatch.setattr(network, "num_layers", 1, raising=False)
    monkeypatch.setattr(network, "get_layer", lambda self, number: layer, raising=False)
    path, feeds = save(tmp_path / "a.onnx")
    for dtype in (fake_tensorrt.DataType.HALF, fake_tensorrt.DataType.FLOAT):
        taken.clear()
        sampler.sample([path], feeds, runtime="tensorrt", **QUICK)
        assert ("FP16" in taken) is (dtype is fake_tensorrt.DataType.HALF)
    assert set(state.flags) == {1}


def test_without_a_driver_or_a_gpu_it_is_missing(monkeypatch):
    module, _ = fake_tensorrt.make("11.4.0.106", fake_cuda.FakeDriver(devices=0))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(ImportError, match="shows no GPU"):
        sampler.Engines(FEEDS, fake_cuda.FakeDriver(devices=0))

    def absent(name):
        raise OSError("cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", absent)
    with pytest.raises(ImportError, match="no NVIDIA driver: cannot open") as caught:
        sampler.Engines(FEEDS)
    assert caught.value.name


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ValueError, match="no runtime 'openvino' to sample with"):
        sampler.sample([], FEEDS, runtime="openvino")


# -- trtexec -------------------------------------------------------------------------------------


@pytest.fixture
def trtexec(tmp_path, monkeypatch):
    """A trtexec on the path; sets what it is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    source = Path(fake_trtexec.__file__).read_text()
    (folder / "trtexec").write_text(f"#!{sys.executable}\n{source}")
    (folder / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def become(version, options):
        (folder / "fake.json").write_text(json.dumps({"version": version, "options": options}))
        return folder / "calls.jsonl"

    become("100300", OPTIONS_10)
    return become


def calls(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def write(tmp_path, name, content):
    path = tmp_path / f"{name}.onnx"
    path.write_text(content)
    return path


def test_launches_are_sessions_and_their_runs_are_samples(trtexec, tmp_path):
    slow, fast = write(tmp_path, "a", "dynamic 800us"), write(tmp_path, "b", "dynamic 400us")
    log = trtexec("100300", OPTIONS_10)
    steps = []
    found = sampler.sample(
        [slow, fast],
        FEEDS,
        runtime="trtexec",
        on_step=lambda *step: steps.append(step),
        **QUICK,
    )
    ratio = np.median(found["wall_s"][1]) / np.median(found["wall_s"][0])
    assert ratio == pytest.approx(0.5)
    assert found["runtime"] == "trtexec 10.3.0"
    assert found["is_device"] is True
    assert sorted(set(found["rebuild"])) == [0, 1]
    assert len(found["rebuild"]) == 40
    assert [len(each) for each in found["load_s"]] == [2, 2]
    assert steps[:2] == [("open", 0), ("open", 1)]
    asked, *rest = calls(log)
    assert "help" in asked
    builds = [each for each in rest if "saveEngine" in each]
    assert [Path(each["onnx"]).name for each in builds] == ["a.onnx", "b.onnx"]
    assert all("skipInference" in each and each["sparsity"] == "enable" for each in builds)
    runs = [each for each in rest if "loadEngine" in each]
    assert len(runs) == 4
    assert all(each["shapes"] == "x:2x16" and "noDataTransfers" in each for each in runs)
    # Engines are of no use afterwards.
    assert not Path(runs[0]["loadEngine"]).exists()


@pytest.mark.parametrize(
    ("version", "options", "about"),
    [("8502", OPTIONS_8, "trtexec 8.5.2"), ("110100", OPTIONS_11, "trtexec 11.1.0")],
)
def test_every_version_is_given_the_options_that_it_has(
    trtexec, tmp_path, version, options, about
):
    log = trtexec(version, options)
    found = sampler.sample(
        [write(tmp_path, "a", "static half 500us")], FEEDS, runtime="trtexec", **QUICK
    )
    assert found["runtime"] == about
    builds = [each for each in calls(log) if "saveEngine" in each]
    # A static model takes no shapes; before version 10 half precision has to be allowed.
    assert "shapes" not in builds[-1]
    assert ("fp16" in builds[-1]) is (version == "8502")
    assert all("shapes" not in each for each in calls(log) if "loadEngine" in each)


def test_what_trtexec_refuses_is_told(trtexec, tmp_path):
    with pytest.raises(
        RuntimeError,
        match=r"builds no engine of the model: Error\[4\]: .*node 'conv' is broken",
    ):
        sampler.sample([write(tmp_path, "a", "broken")], FEEDS, runtime="trtexec", **QUICK)


def test_trtexec_that_is_not_there_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sampler, "TRTEXEC_PLACES", (str(tmp_path / "trtexec"),))
    with pytest.raises(ImportError, match="neither on the path nor where") as caught:
        sampler.sample([], FEEDS, runtime="trtexec")
    assert caught.value.name == "trtexec"


@pytest.fixture
def on_a_gpu(monkeypatch):
    claim = Claim(holds=True, reason="a fake GPU")
    monkeypatch.setattr("deploykit.runtimes.trtexec.find_driver", lambda: claim)


def test_trtexec_is_a_runtime_of_this_machine(trtexec, on_a_gpu, run, tmp_path):
    trtexec("100300", OPTIONS_10)
    found = capabilities("trtexec")
    assert (found.version, found.can_run.holds) == ("10.3.0", True)
    path, _ = save(tmp_path / "a.onnx")
    other, _ = save(tmp_path / "b.onnx", hidden=16, dead=0)
    done = run(
        "profile",
        path,
        other,
        "--runtime",
        "trtexec",
        "--layers",
        "--duration",
        "0.1",
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema("profile"))
    assert document["runtime"] == "trtexec 10.3.0"
    assert document["clock"] == "device"
    # The fake takes a microsecond a kilobyte.
    expected = (other.stat().st_size + 10) / (path.stat().st_size + 10)
    assert document["relative"][0]["ratio"] == pytest.approx(expected, rel=1e-3)
    assert document["relative"][0]["proven"]
    (first, _) = document["models"]
    assert [row["name"] for row in first["layers"]] == ["hidden", "head"]
    assert first["sparse"]["found"]["count"] == 2
    assert first["sparse"]["chosen"]["names"] == ["hidden"]
    assert first["memory_bytes"] is None


def test_trtexec_that_cannot_run_says_what_is_missing(trtexec, run, tmp_path, monkeypatch):
    claim = Claim(holds=False, reason="there is no NVIDIA driver: it is absent")
    monkeypatch.setattr("deploykit.runtimes.trtexec.find_driver", lambda: claim)
    found = capabilities("trtexec")
    assert found.importable.holds
    assert "no NVIDIA driver" in found.can_run.reason
    path, _ = save(tmp_path / "a.onnx")
    done = run("profile", path, "--runtime", "trtexec")
    assert done.exit_code == 4
    assert "trtexec cannot run models on this machine: there is no NVIDIA driver" in done.stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sampler, "TRTEXEC_PLACES", ())
    assert "neither on the path" in capabilities("trtexec").importable.reason


# -- what runs beside ----------------------------------------------------------------------------


def is_alive(number):
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_streams_are_read_and_ended(tmp_path, monkeypatch):
    tool = tmp_path / "tegrastats"
    tool.write_text(
        '#!/bin/sh\necho $$ > "$0.pid"\nwhile :; do echo "RAM 1/2MB"; sleep 0.05; done\n'
    )
    tool.chmod(0o755)
    (tmp_path / "temp").write_text("51000\n")
    path, feeds = save(tmp_path / "a.onnx")
    monkeypatch.setattr(sampler, "WATCH_EVERY_S", 0.05)
    found = sampler.sample(
        [path],
        feeds,
        watch={
            "files": [str(tmp_path / "t*p"), "/nowhere/temp"],
            "streams": [[str(tool)], ["nowhere"]],
        },
        **{**QUICK, "duration_s": 0.6},
    )
    texts = [state["files"] for state in found["states"] if "files" in state]
    assert len(texts) >= 3
    assert texts[0] == {str(tmp_path / "temp"): "51000"}
    lines = [line for state in found["states"] for line in state.get("lines", ())]
    assert set(lines) == {"RAM 1/2MB"}
    assert len(lines) >= 3
    number = int((tmp_path / "tegrastats.pid").read_text())
    assert not is_alive(number)


def test_a_profile_on_a_jetson_says_what_it_drew_and_what_to_do(tmp_path, monkeypatch, run):
    """Everything from the tools of a board, which are scripts here that print recorded texts, to the table."""
    states = Path(__file__).parent / "states"
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "nvpmodel": f'cat "{states}/nvpmodel-orinnano-r36-verbose.txt"',
        "jetson_clocks": f'cat "{states}/jetson_clocks-orinnano-r36.txt"',
        "tegrastats": f'echo $$ > "{tmp_path}/pid"; while :; do cat "{states}/tegrastats-orinnano-r35.txt"; sleep 0.02; done',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    path, _ = save(tmp_path / "a.onnx")
    done = run("profile", path, "--duration", "0.3", "-o", tmp_path / "p.json")
    assert done.exit_code == 0, done.stderr
    assert "power mode 25W, clocks not fixed, 4.9 W (VDD_IN)" in done.stdout
    assert "J a run" in done.stdout
    assert "run 'sudo nvpmodel -m 0'" in done.stdout
    assert "fix them with 'sudo jetson_clocks'" in done.stdout
    document = json.loads((tmp_path / "p.json").read_text())
    jsonschema.validate(document, schema("profile"))
    during = document["state"]["during"]
    drawn = during["power_w"]["VDD_IN"]
    assert drawn["mean"] == pytest.approx(4.915)
    assert drawn["readings"] >= 3
    assert during["energy_j"] == pytest.approx(4.915 * during["elapsed_s"])
    assert during["clocks_hz"]["gpu"]["low"] == 305e6
    assert document["state"]["after"]["power_mode"] == "25W"
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_streams_are_ended_when_a_model_fails(tmp_path):
    tool = tmp_path / "tegrastats"
    tool.write_text(
        '#!/bin/sh\necho $$ > "$0.pid"\ntrap "" TERM\nwhile :; do sleep 0.05; done\n'
    )
    tool.chmod(0o755)

    def refuse(model):
        deadline = 200
        while not (tmp_path / "tegrastats.pid").exists() and deadline:
            deadline -= 1
            sampler.time.sleep(0.01)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        sampler.sample(["m"], FEEDS, opener=refuse, watch={"streams": [[str(tool)]]})
    assert not is_alive(int((tmp_path / "tegrastats.pid").read_text()))


# -- Python 3.8 ----------------------------------------------------------------------------------


def test_the_sampler_is_python_3_8():
    ast.parse(Path(sampler.__file__).read_text(), feature_version=(3, 8))


def python_3_8():
    """A Python 3.8 with numpy and onnxruntime, if there is one: DEPLOYKIT_PYTHON38, or python3.8 on the path."""
    for name in (os.environ.get("DEPLOYKIT_PYTHON38"), "python3.8"):
        if not name:
            continue
        try:
            done = subprocess.run(  # noqa: S603 - a Python
                [
                    name,
                    "-c",
                    "import sys, numpy, onnxruntime; assert sys.version_info[:2] == (3, 8)",
                ],
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return name
    return None


def test_the_sampler_runs_in_python_3_8(tmp_path):
    python = python_3_8()
    if python is None:
        pytest.skip(
            "there is no Python 3.8 with numpy and onnxruntime: name one in DEPLOYKIT_PYTHON38"
        )
    path, feeds = save(tmp_path / "a.onnx")
    np.savez(tmp_path / "x.npz", **feeds)
    job = {
        "models": [str(path)],
        "inputs": str(tmp_path / "x.npz"),
        **QUICK,
        "watch": {"files": ["/proc/loadavg"]},
    }
    look = {"look": {"files": ["/proc/meminfo"], "commands": {"none": [["/nowhere"]]}}}
    chains = [tmp_path / "short.onnx", tmp_path / "long.onnx"]
    for chain, length in zip(chains, (1, 5), strict=True):
        chain.write_bytes(layer_times._chain(length, 2))
    trace = {
        **{key: job[key] for key in ("inputs",)},
        "models": [str(path), *map(str, chains)],
        "trace": {"duration_s": 0.0, "warmup_s": 0.0},
    }
    for name, document in (("job", job), ("look", look), ("trace", trace)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    ends = []
    for name in ("job", "look", "trace"):
        done = subprocess.run(  # noqa: S603 - our own file
            [python, str(sampler.__file__), str(tmp_path / f"{name}.json")],
            capture_output=True,
            text=True,
            check=True,
        )
        ends.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(ends[0]["wall_s"][0]) >= 6
    assert ends[0]["states"][-1]["files"]["/proc/loadavg"]
    assert ends[1]["python"].startswith("3.8")
    assert "MemTotal" in ends[1]["files"]["/proc/meminfo"]
    assert len(ends[2]["profile"]["runs"]) > 10
    assert ends[2]["profile"]["kernels"]
    assert len(ends[2]["chains"][0]["long_s"]) == len(ends[2]["wall_s"][1]) == 10
