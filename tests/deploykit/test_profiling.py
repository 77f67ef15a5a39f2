"""`deploykit profile` and `deploykit compare`: what they say, what they refuse, and what they leave on disk."""

from __future__ import annotations

import io
import json

import jsonschema
import numpy as np
import onnx
import pytest
from rich.console import Console

from deploykit import profiling
from deploykit.errors import UsageError
from deploykit.profile import Measurement, Settings, Timings, advice, device
from deploykit.profile.layer_times import LayerProfile
from deploykit.profile.memory import memory_peak
from deploykit.profile.statistics import Latency, Ratio
from deploykit.report.profile_records import schema
from deploykit.report.profile_text import print_result
from deploykit.report.profile_wording import labels, seconds_text, speed_text
from deploykit.runtimes import TensorSpec
from tests.deploykit.conftest import make_network

FAST = ("--duration", "0.02", "--warmup", "0", "--rebuilds", "2")


@pytest.fixture
def pair(tmp_path):
    """The same function with and without its dead rows; the larger one has much more to do."""
    paths = []
    for name, hidden, dead in (("large", 4096, 4064), ("small", 32, 0)):
        model = make_network(hidden=hidden, dead=dead, features=256)
        arrays = {
            each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer
        }
        paths.append(tmp_path / f"{name}.onnx")
        if name == "large":
            kept = {
                key: array[..., dead:] if key == "w2" else array[dead:]
                for key, array in arrays.items()
                if key != "b2"
            }
        else:
            for tensor in model.graph.initializer:
                if tensor.name in kept:
                    tensor.CopyFrom(
                        onnx.numpy_helper.from_array(
                            np.ascontiguousarray(kept[tensor.name]), tensor.name
                        )
                    )
        onnx.save(model, paths[-1])
    return paths


def read(result, kind):
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema(kind))
    return document


def test_one_model_is_described_by_all_that_was_measured(run, network, tmp_path):
    out = tmp_path / "p.json"
    result = run("profile", network, "--batch", "3", *FAST, "--layers", "--json", "-o", out)
    assert result.exit_code == 0, result.stderr
    document = read(result, "profile")
    assert json.loads(out.read_text()) == document
    assert not list(tmp_path.glob(".*"))
    (model,) = document["models"]
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": [3, 256]}]
    assert len(model["samples"]["wall_s"]) == model["latency"]["samples"] >= 10
    assert set(model["samples"]["rebuild"]) == {0, 1}
    assert len(model["samples"]["load_s"]) == 2
    assert {layer["name"] for layer in model["layers"]} >= {"hidden", "head"}
    assert model["layer_totals"]["unmapped_s"] == 0
    assert document["relative"] == []
    assert model["bytes"] == network.stat().st_size
    # Lists of samples are one line each.
    assert len(out.read_text().splitlines()) < 400
    table = run("profile", network, "--batch", "3", *FAST, "--layers").stdout
    for word in ("p50", "p99", "memory peak", "network.onnx", "hidden", "Gemm", "whole model"):
        assert word in table


def test_models_are_told_apart_in_words_and_never_from_themselves(run, pair):
    large, small = pair
    result = run("profile", large, small, large, *FAST, "--batch", "16", "--json")
    assert result.exit_code == 0, result.stderr
    document = read(result, "profile")
    assert [model["name"] for model in document["models"]] == [
        "large.onnx",
        "small.onnx",
        "large.onnx (2)",
    ]
    faster, same = document["relative"]
    assert faster["proven"]
    assert faster["ci95"][1] < 0.9
    assert faster["said"].endswith("times faster")
    lo, hi = same["ci95"]
    assert same["proven"] == (not lo <= 1 <= hi)
    assert ("no difference proven" in same["said"]) == (not same["proven"])


@pytest.mark.parametrize(
    ("ratio", "lo", "hi", "said"),
    [
        (1 / 1.42, 1 / 1.45, 1 / 1.39, "1.42 ± 0.03 times faster"),
        (1.10, 1.08, 1.12, "1.10 ± 0.02 times slower"),
        (0.99, 0.97, 1.01, "no difference proven: 0.99 [0.97, 1.01]"),
        (0.5, 0.2, 1.0, "no difference proven: 0.50 [0.20, 1.00]"),
        # What is proven is not rounded to nothing.
        (0.9985, 0.998, 0.999, "1.002 ± 0.001 times faster"),
        (2.0, 1.9999, 2.0001, "2.0000 ± 0.0001 times slower"),
    ],
)
def test_ratios_in_words(ratio, lo, hi, said):
    assert speed_text(ratio, lo, hi) == said


def test_figures_have_three_digits_and_names_what_tells_them_apart(tmp_path):
    texts = [seconds_text(each) for each in (12.34, 0.999, 0.01234, 1.2345e-3, 123e-6, 2e-6)]
    assert texts == ["12.3 s", "999 ms", "12.3 ms", "1.23 ms", "123 us", "2.00 us"]
    paths = [tmp_path / "a/model.onnx", tmp_path / "b/model.onnx", tmp_path / "c.onnx"]
    assert labels([*paths, paths[2]]) == (
        "a/model.onnx",
        "b/model.onnx",
        "c.onnx",
        "c.onnx (2)",
    )


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name, dtype, shape)


def test_what_one_model_fixes_is_fixed_for_all():
    merged = profiling.merge_inputs(
        {
            "a": [spec("x", "n", 3, None), spec("y", 4)],
            "b": [spec("y", "m"), spec("x", 2, 3, "w")],
        }
    )
    assert merged == (spec("x", 2, 3, None), spec("y", 4))


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        ([spec("z", 1, 3)], "they have other names"),
        ([spec("x", 1, 4)], "'x' has another shape"),
        ([spec("x", 1, 3, 1)], "'x' has another shape"),
        ([spec("x", 1, 3, dtype="int64")], "'x' has another type"),
    ],
)
def test_models_with_other_inputs_are_refused_by_both_names(theirs, why):
    with pytest.raises(UsageError) as error:
        profiling.merge_inputs({"first.onnx": [spec("x", "n", 3)], "second.onnx": theirs})
    text = str(error.value)
    assert why in text
    assert "'first.onnx' takes x float32 [n, 3]" in text
    assert "'second.onnx' takes" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{network}", "nowhere.onnx"], 2, "'nowhere.onnx': it does not exist"),
        (["{text}"], 3, "is not an ONNX model"),
        (["{fixed}", "--batch", "3"], 2, "the first axis of x float32 [1, 256] is fixed"),
        (["{network}", "--shape", "x:2x9"], 2, "does not fit the input 'x'"),
        (["{network}", "--shape", "y:2x9"], 2, "'y', which is no input"),
        (["{network}", "--shape", "x:2x256", "--batch", "3"], 2, "leave one of them out"),
        (["{network}", "--inputs", "{text}"], 2, "cannot be read as inputs"),
        (["{network}", "--inputs", "{text}", "--batch", "2"], 2, "leave out --inputs"),
        (
            ["{network}", "--inputs", "{ones}", "--shape", "x:2x256"],
            2,
            "it has the shape [3, 256]",
        ),
        (["{network}", "--runtime", "tvm"], 2, "there is no runtime 'tvm'"),
        (["{network}", "-o", "{network}"], 2, "it is what was to be read"),
        (["{network}", "-o", "{network}/x"], 2, "there is no folder"),
        (["{network}", "--threads", "-1"], 2, "threads"),
        ([], 2, "Missing argument"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    run, network, tmp_path, arguments, code, message
):
    (tmp_path / "text.onnx").write_text("no model at all")
    onnx.save(make_network(batch=1), tmp_path / "fixed.onnx")
    before = network.read_bytes()
    places = {
        "network": network,
        "text": tmp_path / "text.onnx",
        "fixed": tmp_path / "fixed.onnx",
        "ones": tmp_path / "ones.npz",
    }
    np.savez(places["ones"], x=np.ones((3, 256), np.float32))
    result = run("profile", *(argument.format(**places) for argument in arguments), *FAST)
    assert result.exit_code == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert network.read_bytes() == before


def test_real_inputs_are_measured_with(run, network, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.ones((2, 5, 256), np.float32))
    result = run("profile", network, "--inputs", tmp_path / "in.npz", *FAST, "--json")
    document = read(result, "profile")
    assert document["inputs"][0]["shape"] == [5, 256]
    assert any("holds 2 inputs" in warning for warning in document["warnings"])


def test_sizes_that_one_model_fixes_are_those_that_all_run_with(run, network, tmp_path):
    onnx.save(make_network(batch=7), tmp_path / "fixed.onnx")
    document = read(
        run("compare", network, tmp_path / "fixed.onnx", *FAST, "--json"), "compare"
    )
    assert document["profile"]["inputs"][0]["shape"] == [7, 256]
    assert document["validation"]["verdict"] == "equal"
    assert not any("left open" in warning for warning in document["warnings"])


def test_a_batch_is_not_set_where_another_axis_is_dynamic():
    images = [spec("x", 1, 3, "h", "w")]
    request = profiling.Request(models=(), command="", batch=4)
    with pytest.raises(
        UsageError, match=r"the first axis of x float32 \[1, 3, h, w\] is fixed"
    ):
        profiling._with_batch(images, {"x": (1, 3, 9, 9)}, request)
    named = [spec("x", "t", "batch_size", 5), spec("y", 2, 5)]
    changed = profiling._with_batch(named, {"x": (32, 1, 5), "y": (2, 5)}, request)
    assert changed == {"x": (32, 4, 5), "y": (2, 5)}


def test_two_models_are_compared_by_outputs_size_and_time(run, pair):
    large, small = pair
    result = run("compare", large, small, *FAST, "--batch", "16", "--layers", "--json")
    assert result.exit_code == 0, result.stderr
    document = read(result, "compare")
    jsonschema.validate(document["profile"], schema("profile"))
    assert document["compared"] == "models"
    assert document["validation"]["verdict"] == "equal"
    assert document["relative"][0]["paired"]
    assert document["relative"][0]["ci95"][1] < 1
    pairs = {pair["name"]: pair for pair in document["layers"]}
    assert pairs["hidden"]["b_s"] < pairs["hidden"]["a_s"]
    facts = {fact["what"]: fact for fact in document["facts"]}
    assert facts["parameters"]["change"].startswith("-")
    held = [
        sum(np.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)
        for path in (large, small)
    ]
    assert facts["parameters"]["values"] == held
    p50_s = [model["latency"]["p50_s"] for model in document["profile"]["models"]]
    assert next(row for name, row in facts.items() if "p50" in name)["values"] == p50_s
    table = run("compare", large, small, *FAST, "--batch", "16").stdout
    assert "times faster than large.onnx" in table
    assert "outputs: equal" in table


def test_models_that_differ_are_compared_all_the_same(run, network, tmp_path):
    other = make_network()
    other.graph.output[0].name = other.graph.node[-1].output[0] = "z"
    onnx.save(other, tmp_path / "renamed.onnx")
    document = read(
        run("compare", network, tmp_path / "renamed.onnx", *FAST, "--json"), "compare"
    )
    assert document["validation"] is None
    assert "'z'" in document["outputs_differ"]
    assert document["relative"]


def test_a_node_that_the_runtime_fused_in_one_model_only_is_explained():
    from deploykit.comparison import pair_layers
    from deploykit.report.profile_records import LayerRow

    a = [
        LayerRow("conv", "Conv", 3e-3, ("Conv",), ("relu",)),
        LayerRow("end", "Add", 1e-3, ("Add",), ()),
    ]
    b = [
        LayerRow("conv", "Conv", 1e-3, ("Conv",), ()),
        LayerRow("relu", "Relu", 1e-4, ("Relu",), ()),
    ]
    found = {pair.name: pair for pair in pair_layers(a, b)}
    assert (found["conv"].a_s, found["conv"].b_s, found["conv"].note) == (3e-3, 1e-3, "")
    assert (found["relu"].a_s, found["relu"].note) == (None, "A: in conv")
    assert (found["end"].b_s, found["end"].note) == (None, "not in B")


# -- documents -----------------------------------------------------------------------------------


@pytest.fixture
def profiled(run, network, tmp_path):
    """A function that writes a profile document, changed by another one."""

    def write(name, change=lambda document: None):
        result = run("profile", network, *FAST, "--json")
        document = json.loads(result.stdout)
        dice = np.random.default_rng(len(name))
        model = document["models"][0]
        # Known times: the machine has no part in what is tested.
        count = 30
        times = (1e-3 * np.exp(dice.normal(0, 0.01, count))).tolist()
        model["samples"] |= {"wall_s": times, "cpu_s": times, "rebuild": [0, 1, 2] * 10}
        model["samples"] |= {"switches": [0] * count, "faults": [0] * count}
        change(document)
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return path

    return write


def slower(document):
    for key in ("wall_s", "cpu_s"):
        samples = document["models"][0]["samples"]
        samples[key] = [2 * seconds for seconds in samples[key]]


def test_two_profiles_are_compared_without_pairing_and_say_so(run, profiled):
    first, second = profiled("a.json"), profiled("b.json", slower)
    document = read(run("compare", first, second, "--json"), "compare")
    assert document["compared"] == "reports"
    (row,) = document["relative"]
    assert not row["paired"]
    assert row["ci95"][0] < 2 < row["ci95"][1]
    text = " ".join(document["warnings"])
    assert "different occasions" in text
    # It is one model: what changed is the machine.
    assert "the same model in both" in text
    assert "fingerprints" not in text


def test_another_device_is_named(run, profiled):
    def move(document):
        document["device"]["fingerprint"] = "0123456789ab"

    first, second = profiled("a.json"), profiled("b.json", move)
    document = read(run("compare", first, second, "--json"), "compare")
    assert any("0123456789ab" in warning for warning in document["warnings"])


def test_other_threads_are_not_compared(run, profiled):
    def spread(document):
        document["threads"] = 4

    document = read(
        run("compare", profiled("a.json"), profiled("b.json", spread), "--json"), "compare"
    )
    assert document["relative"] == []
    assert any("--threads" in warning for warning in document["warnings"])


def test_results_of_optimize_are_compared(run, network, tmp_path):
    done = run("optimize", network, "-o", tmp_path / "one", "--duration", "0.02")
    assert done.exit_code == 0, done.stderr
    # A result folder stands for its report.
    result = run("compare", tmp_path / "one", tmp_path / "one" / "report.json", "--json")
    assert result.exit_code == 0, result.stderr
    document = read(result, "compare")
    facts = {fact["what"]: fact for fact in document["facts"]}
    assert facts["parameters"]["change"] == "±0 %"
    assert facts["verdict"]["change"] == "the same"
    assert facts["verdict"]["values"] == [None, None]
    samples = json.loads((tmp_path / "one" / "report.json").read_text())["profile"]["samples"]
    assert len(document["relative"]) == (2 if samples else 0)
    assert all(row["ratio"] == 1.0 and not row["proven"] for row in document["relative"])
    bare = run("optimize", network, "-o", tmp_path / "bare", "--no-profile")
    assert bare.exit_code == 0
    other = read(run("compare", tmp_path / "one", tmp_path / "bare", "--json"), "compare")
    assert other["relative"] == []
    assert any("no samples" in warning for warning in other["warnings"])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("network", "is a model and"),
        ("future", "schema version 9.0"),
        ("broken", "cannot be read as a report"),
        ("foreign", "is no report of 'optimize' or 'profile'"),
        ("partial", "is not a whole report"),
    ],
)
def test_documents_that_cannot_be_compared(run, profiled, network, tmp_path, second, message):
    first = profiled("a.json")
    texts = {
        "future": '{"schema_version": "9.0", "kind": "profile"}',
        "broken": '{"schema_version": "1.0", ',
        "foreign": '{"schema_version": "1.0", "kind": "recipe"}',
        "partial": '{"schema_version": "1.0", "kind": "profile", "models": [{}]}',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    other = network if second == "network" else tmp_path / f"{second}.json"
    result = run("compare", first, other)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert result.stdout == ""


# -- memory, device, advice ----------------------------------------------------------------------


def test_memory_is_that_of_the_model_and_not_of_the_runtime(tmp_path):
    onnx.save(make_network(hidden=8192, dead=0, features=1024), tmp_path / "m.onnx")
    feeds = {"x": np.ones((1, 1024), np.float32)}
    taken = memory_peak(tmp_path / "m.onnx", feeds)
    if taken is None:
        pytest.skip("the system does not tell how much memory a process held")
    # 32 MiB of weights; reading and packing them takes them a few times.
    assert 2**25 < taken < 2**25 * 12


def test_the_fingerprint_lasts_as_long_as_the_machine(machine_files):
    first = device.describe(machine_files)
    assert len(first.fingerprint) == 12
    clock = machine_files / "sys/devices/system/cpu/cpu0/cpufreq"
    (clock / "scaling_cur_freq").write_text("900000\n")
    (machine_files / "proc/meminfo").write_text("MemTotal:       16777100 kB\n")
    again = device.describe(machine_files)
    assert again.frequency_hz == 900e6
    assert again.fingerprint == first.fingerprint
    (clock / "scaling_governor").write_text("performance\n")
    assert device.describe(machine_files).fingerprint != first.fingerprint


def test_batteries_and_limits_are_seen(machine_files):
    found = device.describe(machine_files)
    assert found.on_battery is True
    assert found.quota_cores == 1.5
    assert found.quota_pauses == 7
    assert found.throttled == 5
    assert found.max_frequency_hz == 3e9
    (machine_files / "sys/class/power_supply/BAT0/status").write_text("Charging\n")
    assert device.describe(machine_files).on_battery is False


@pytest.fixture
def machine_files(tmp_path):
    files = {
        "proc/cpuinfo": "model name : Some CPU\nflags : avx2\n",
        "proc/meminfo": "MemTotal:       16777216 kB\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 12\nnr_throttled 7\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3000000\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "2\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/mouse/type": "Battery\n",
        "sys/class/power_supply/mouse/scope": "Device\n",
        "sys/class/power_supply/mouse/status": "Discharging\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def make_device(**changes):
    quiet = {"cores": 4, "usable_cores": 4.0, "load_average": (0.1, 0.1, 0.1), "governor": None}
    described = {"cpu": "c", "architecture": "a", "flags": (), "memory_bytes": None, "os": "o"}
    return device.Device(**{**described, "python": "3", "packages": {}, **quiet, **changes})


def make_measurement(*, drift=1.0, clean_share=1.0, hi=1.01, samples=300, threads=1, **changes):
    seconds = np.linspace(1e-3, 1e-3 * drift, samples)
    timings = Timings(np.zeros(samples, np.int64), seconds, seconds)
    latency = Latency("wall", 1e-3, 1e-3, 1e-3, 1e-3, samples, 0.0)
    ratio = Ratio(1.0, 0.99, hi, "wall", noisy=False, clean_share=1.0, rounds=9, rebuilds=3)
    fields = {"truncated": False, "threads": threads, "clean_share": clean_share, **changes}
    return Measurement(
        baseline="a",
        samples={"a": timings, "b": timings},
        latencies={"a": latency, "b": latency},
        ratios={"b": ratio},
        clock="wall",
        runtime="onnxruntime 1",
        providers=("CPUExecutionProvider",),
        settings=Settings(),
        elapsed_s=1.0,
        **fields,
    )


def test_nothing_is_advised_where_nothing_is_wrong():
    assert advice.advise(make_measurement(), make_device(), make_device()) == ()


@pytest.mark.parametrize(
    ("measured", "before", "after", "advised"),
    [
        ({}, {"load_average": (5.8, 1.0, 1.0)}, {}, "5.8 processes wanted the 4 cores"),
        ({"clean_share": 0.3}, {}, {}, "in 70% of the runs the thread was kept waiting"),
        ({}, {"usable_cores": 1.0}, {}, "only 1 core may be used"),
        ({"threads": 8}, {}, {}, "give --threads 4"),
        ({}, {"governor": "powersave"}, {}, "frequency-set -g performance"),
        ({}, {"on_battery": True}, {}, "plug it in"),
        ({}, {"throttled": 3}, {"throttled": 9}, "held the clock back 6 times"),
        ({"drift": 1.2}, {}, {}, "times as long at the end"),
        ({}, {"quota_pauses": 1}, {"quota_pauses": 4}, "paused this process 3 times"),
        ({"truncated": True}, {}, {}, "cut short after 300 s"),
        ({"samples": 40}, {}, {}, "of 40 samples p99"),
        ({"hi": 1.3}, {}, {}, "the interval of b is wider than 5 %"),
    ],
)
def test_each_disturbance_is_named_with_what_to_do(measured, before, after, advised):
    found = advice.advise(
        make_measurement(**measured), make_device(**before), make_device(**after)
    )
    assert len(found) == 1
    assert advised in found[0]


def test_layers_that_do_not_add_up_are_not_passed_over():
    fine = LayerProfile((), total_s=1.04, whole_s=1.0, unmapped_s=0.0)
    assert advice.advise_on_layers("m", fine) == []
    (off,) = advice.advise_on_layers("m", LayerProfile((), 1.3, 1.0, 0.01))
    assert "1.30 of the whole" in off
    (unknown,) = advice.advise_on_layers("m", LayerProfile((), 1.0, 1.0, 0.1))
    assert "10% of the time" in unknown


@pytest.mark.parametrize("width", [80, 140])
def test_names_of_models_are_whole_on_any_terminal(network, width):
    console = Console(width=width, file=io.StringIO())
    with console.capture() as shown:
        report = profiling.profile(
            profiling.Request(
                (network, network),
                "test",
                settings=Settings(warmup_s=0.0, duration_s=0.02, rebuilds=2),
            )
        )
        print_result(report, console=console)
    lines = shown.get().splitlines()
    # On a narrow terminal the names are headers, side by side.
    heads = [line for line in lines if line.split() == ["network.onnx", "network.onnx", "(2)"]]
    assert len(heads) == (width == 80)
    assert any(line.startswith("p99" if heads else "network.onnx (2)") for line in lines)
