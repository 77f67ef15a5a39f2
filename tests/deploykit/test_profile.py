import ast
import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from deploykit.errors import ModelError, UsageError
from deploykit.profile import Settings, device, measure, sampler

QUICK = Settings(warmup_s=0.0, duration_s=0.02, min_rounds=6, rebuilds=2)


@pytest.fixture
def write(tmp_path):
    def write(width):
        text = f"g (float[8,{width}] x) => (float[8,{width}] y) {{ t = MatMul(x, w) y = MatMul(t, w) }}"
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
        weight = np.random.default_rng(0).normal(size=(width, width)).astype("f")
        model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
        path = tmp_path / f"{width}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


def feeds(width):
    return {"x": np.ones((8, width), np.float32)}


class Fake:
    """A session that writes down when it ran."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def run(self, _outputs, _feeds):
        self.log.append(self.name)

    def get_providers(self):
        return ["CPUExecutionProvider"]


@pytest.fixture
def log(monkeypatch):
    log = []

    def open_session(model, _threads, _providers):
        log.append(f"open {model}")
        return Fake(log, model)

    monkeypatch.setattr(sampler, "open_session", open_session)
    monkeypatch.setattr(sampler, "SETTLE_S", 0.0)
    return log


def test_models_take_turns_in_changing_orders_over_several_builds(log):
    seen = []
    result = sampler.sample(
        ["a", "b", "c"],
        {},
        warmup_s=0.0,
        duration_s=0.0,
        min_rounds=10,
        rebuilds=3,
        on_round=lambda done, record: seen.append((done, record)),
    )
    # Ten rounds do not divide by three: the share of each build is rounded up.
    assert result["rebuild"] == [0] * 4 + [1] * 4 + [2] * 4
    columns = [result[key] for key in ("wall_s", "cpu_s", "switches", "faults")]
    assert [len(each) for column in columns for each in column] == [12] * 12
    assert [len(each) for each in result["load_s"]] == [3] * 3
    assert all(sorted(record["order"]) == [0, 1, 2] for _, record in seen)
    assert len({tuple(record["order"]) for _, record in seen}) > 2
    assert [log.count(f"open {name}") for name in "abc"] == [3, 3, 3]
    # Once to warm up each session; then untimed and timed in every round.
    assert [log.count(name) for name in "abc"] == [3 + 24] * 3
    first = seen[0][1]["order"]
    assert log[6:12] == ["abc"[index] for index in first for _ in (0, 1)]
    done = [share for share, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 1.0
    again = sampler.sample(["a", "b", "c"], {}, warmup_s=0.0, duration_s=0.0, min_rounds=10)
    assert again["seed"] == 0
    assert log[: len(log) // 2] == log[len(log) // 2 :]


@pytest.mark.usefixtures("log")
def test_a_time_limit_still_leaves_a_round():
    result = sampler.sample(["a"], {}, warmup_s=0.0, max_duration_s=0.0)
    assert result["truncated"] is True
    assert result["rebuild"] == [0]


def test_the_sampler_stands_alone_and_prints_while_it_measures(tmp_path, write):
    script = shutil.copy(sampler.__file__, tmp_path / "sampler.py")
    np.savez(tmp_path / "in.npz", **feeds(16))
    model = str(write(16))
    job = {"models": [model, model], "inputs": str(tmp_path / "in.npz"), "threads": 1}
    job |= {"warmup_s": 0, "duration_s": 0, "min_rounds": 4, "rebuilds": 2}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-I", script, str(tmp_path / "job.json")]
    done = subprocess.run(  # noqa: S603 - the file under test
        command, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [line for line in lines if line["event"] in {"open", "warm"}]
    rounds = [line for line in lines if line["event"] == "round"]
    assert [line["event"] for line in steps] == ["open", "open", "warm", "warm"] * 2
    assert {line["model"] for line in steps[:2]} == {0, 1}
    assert len(rounds) == 4
    assert [line["event"] for line in lines].count("end") == 1
    assert lines[-1]["rebuild"] == [0, 0, 1, 1]
    assert lines[-1]["wall_s"][1] == [line["wall_s"][1] for line in rounds]
    assert lines[-1]["cpu_clock"] == "thread"
    assert all(seconds > 0 for each in lines[-1]["wall_s"] for seconds in each)


def test_the_sampler_alone_measures_memory(tmp_path, write):
    script = shutil.copy(sampler.__file__, tmp_path / "sampler.py")
    np.savez(tmp_path / "in.npz", **feeds(512))
    job = {"models": [str(write(512))], "inputs": str(tmp_path / "in.npz"), "memory": True}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-I", script, str(tmp_path / "job.json")]
    done = subprocess.run(  # noqa: S603 - the file under test
        command, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["event"] == "end"
    assert found["peak_bytes"] is None or found["peak_bytes"] > found["before_bytes"] > 0


def test_the_sampler_alone_says_what_went_wrong(tmp_path, write):
    script = shutil.copy(sampler.__file__, tmp_path / "sampler.py")
    np.savez(tmp_path / "in.npz", **feeds(512))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    job = {
        "models": [str(write(512)), str(tmp_path / "broken.onnx")],
        "inputs": str(tmp_path / "in.npz"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-I", script, str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)  # noqa: S603
    *before, last = (json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 1
    assert (last["event"], last["kind"]) == ("error", "model")
    assert before[-1] == {"event": "open", "model": 1}
    assert last["runtime"].startswith("onnxruntime ")
    assert "broken.onnx" in last["text"]


def test_a_bad_job_is_a_usage_error(tmp_path, capsys):
    (tmp_path / "job.json").write_text('{"models": [], "inputs": "x", "threds": 1}')
    assert sampler.main([str(tmp_path / "job.json")]) == 2
    assert "threds" in capsys.readouterr().err
    assert sampler.main([]) == 2


def test_the_sampler_is_written_for_old_devices():
    source = Path(sampler.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in names
    assert {name.split(".")[0] for name in names} - {"numpy"} <= sys.stdlib_module_names


def test_models_that_do_not_take_the_inputs_are_named(write):
    with pytest.raises(ModelError, match=r"512.onnx' does not run on x \[8, 16\]"):
        measure({"small": write(16), "large": write(512)}, feeds(16), settings=QUICK)


def test_a_model_is_measured_as_fast_as_itself(write):
    large = write(512)
    seen = []
    same = dataclasses.replace(QUICK, rebuilds=3)
    found = measure(
        {"one": large, "two": large}, feeds(512), settings=same, progress=seen.append
    )
    assert found.baseline == "one"
    assert list(found.ratios) == ["two"]
    assert 0.5 < found.ratios["two"].median < 2
    assert found.ratio("one", "two").median == pytest.approx(
        1 / found.ratio("two", "one").median
    )
    assert found.ratios["two"].rebuilds == 3
    assert found.samples["one"].wall_s.size == found.latencies["one"].samples >= 6
    assert seen[-1] == 1.0


def test_the_baseline_must_be_among_the_models(write):
    with pytest.raises(UsageError, match=r"baseline 'dense' is not among the models \(a\)"):
        measure({"a": write(16)}, feeds(16), baseline="dense", settings=QUICK)
    with pytest.raises(UsageError, match="no model"):
        measure({}, feeds(16), settings=QUICK)


def test_ratios_are_relative_to_the_baseline(tmp_path):
    """The same input through little and through much work: at least a factor, whatever the machine does."""
    paths = {}
    for name, count in (("short", 1), ("long", 24)):
        steps = " ".join(f"t{i + 1} = MatMul(t{i}, x)" for i in range(count))
        text = f"g (float[96,96] x) => (float[96,96] y) {{ t0 = Identity(x) {steps} y = Identity(t{count}) }}"
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
        paths[name] = tmp_path / f"{name}.onnx"
        paths[name].write_bytes(model.SerializeToString())
    inputs = {"x": np.zeros((96, 96), np.float32)}
    found = measure(paths, inputs, baseline="long", settings=QUICK)
    assert found.ratios["short"].hi < 0.6
    assert list(found.ratios) == ["short"]


def test_the_device_is_described_without_naming_it():
    found = dataclasses.asdict(device.describe())
    text = json.dumps(found)
    assert platform.node() not in re.split(r"[^\w.-]+", text)
    assert str(Path.home()) not in text
    assert found["usable_cores"] > 0
    assert found["cores"] == os.cpu_count()
    assert found["packages"]["onnxruntime"]
    assert found["cpu"]


@pytest.fixture
def machine(tmp_path):
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name : Some CPU @ 2 GHz\nflags : fpu avx2 amx_tile avx512f sse\n",
        "proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB\n",
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/memory.max": "1048576\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_limits_of_a_container_count(machine):
    found = device.describe(machine)
    assert found.cpu == "Some CPU @ 2 GHz"
    assert found.flags == ("avx2", "avx512f", "amx_tile")
    assert found.usable_cores == 0.5
    assert found.memory_bytes == 1048576
    assert found.governor == "powersave"
    (machine / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert device.describe(machine).memory_bytes == 16384 * 1024


def test_a_machine_that_tells_nothing_is_still_described(tmp_path):
    found = device.describe(tmp_path / "nothing")
    assert found.flags == ()
    assert found.memory_bytes is None
    assert found.governor is None
    assert found.usable_cores >= 1
