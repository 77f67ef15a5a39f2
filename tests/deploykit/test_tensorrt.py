"""TensorRT without TensorRT: the whole way from a model to a report is driven against a fake of its API and of the driver.

This proves that the calls fit together and that refusals are told. It proves nothing of TensorRT itself.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys

import jsonschema
import numpy as np
import onnx
import onnx.parser
import pytest

from deploykit.errors import ModelError, RuntimeUnavailable, UsageError
from deploykit.report import profile_records, records
from deploykit.runtimes import Claim, cuda, engine_session, engines, probe, tensorrt, trials
from deploykit.runtimes import capabilities as capabilities_of
from deploykit.runtimes.engine_runner import EngineRunner
from deploykit.runtimes.engines import Options, build_engine
from deploykit.runtimes.onnxruntime import Session
from deploykit.runtimes.tensorrt_family import FULL, RTX, load
from tests.deploykit import fake_cuda, fake_tensorrt
from tests.deploykit.conftest import make_network

NAMES = json.loads(
    (importlib.resources.files("tests.deploykit") / "tensorrt_names.json").read_text("utf-8")
)


def in_process(what, arguments=(), **_):
    """A trial as its child would do it, here, where the fake is."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        trials.main([what, *arguments])
    return probe._read(said.getvalue(), "")


@pytest.fixture(params=["10.13.2.6", "11.4.0.106"])
def fake(request, monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path, request.param)


@pytest.fixture
def fake11(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path, "11.4.0.106")


def install(monkeypatch, tmp_path, version):
    """A machine with a GPU and TensorRT, as far as the code can tell."""
    driver = fake_cuda.FakeDriver()
    module, state = fake_tensorrt.make(version, driver)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "_load", lambda: driver)
    monkeypatch.setattr(tensorrt, "find_driver", lambda: Claim(holds=True, reason="a fake"))
    monkeypatch.setattr(tensorrt, "try_out", in_process)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return state


@pytest.fixture
def fixed(tmp_path):
    path = tmp_path / "fixed.onnx"
    onnx.save(make_network(batch=2), path)
    return path


FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)}


# -- names ---------------------------------------------------------------------------------------


def listed(name):
    return {
        each
        for source in NAMES.values()
        if isinstance(source, dict)
        for each in source.get(name, ())
    }


def test_the_fake_has_no_name_that_is_not_listed():
    module, _ = fake_tensorrt.make("11.4.0.106", fake_cuda.FakeDriver())
    kinds = {name: kind for name, kind in vars(module).items() if not name.startswith("_")}
    assert len(kinds) > 15
    for name, kind in kinds.items():
        own = {each for each in vars(kind) if not each.startswith("_")}
        if issubclass(kind, fake_tensorrt.enum.Enum):
            own = set(kind.__members__)
        assert own <= listed(name), name


@pytest.mark.tensorrt
def test_the_listed_names_are_those_of_the_bindings():
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")
    for name, members in NAMES["tensorrt_rtx 1.7.1.116"].items():
        assert not set(members) - set(dir(getattr(rtx, name))), name
    # Of the names that the fake has, those of TensorRT 11 are in its smaller sister as well.
    module, _ = fake_tensorrt.make("11.4.0.106", fake_cuda.FakeDriver())
    for name, kind in vars(module).items():
        if name.startswith("_"):
            continue
        is_enum = issubclass(kind, fake_tensorrt.enum.Enum)
        own = kind.__members__ if is_enum else [each for each in vars(kind) if each[0] != "_"]
        assert not set(own) - set(dir(getattr(rtx, name))), name


# -- running -------------------------------------------------------------------------------------


def test_every_claim_is_from_a_trial(fake):
    found = capabilities_of("tensorrt")
    claims = (found.importable, found.can_parse, found.can_build, found.can_run)
    assert [claim.holds for claim in claims] == [True] * 4
    assert found.can_run.reason == (
        "it ran on Fake GPU, compute capability 9.0, CUDA 12.8, with the right result"
    )
    assert found.reports_sparsity.holds
    assert found.providers == ("Fake GPU, compute capability 9.0, CUDA 12.8",)
    assert found.version == ("10.13.2.6" if fake.flags[0] else "11.4.0.106")


def test_a_wrong_result_is_no_claim(fake11, monkeypatch):
    monkeypatch.setattr(
        engine_session.EngineSession, "run", lambda *_: [np.zeros((1, 16, 6, 6), np.float32)]
    )
    found = capabilities_of("tensorrt")
    assert found.can_build.holds
    assert not found.can_run.holds
    assert "result is wrong on Fake GPU" in found.can_run.reason


def test_networks_are_strongly_typed_by_a_flag_in_10_and_by_themselves_in_11(fake, fixed):
    EngineRunner(FULL).open(fixed, FEEDS).close()
    assert set(fake.flags) == ({2} if load(FULL).version.startswith("10") else {0})


def test_an_engine_computes_what_the_model_does(fake, fixed):
    session = EngineRunner(FULL).open(fixed, FEEDS)
    (found,) = session.run(None, FEEDS)
    with Session(fixed) as reference:
        expected = reference.run(FEEDS)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Other inputs are copied, the same ones are not.
    copied = fake.driver.calls.count("cuMemcpyHtoD_v2")
    session.run(None, FEEDS)
    assert fake.driver.calls.count("cuMemcpyHtoD_v2") == copied
    other = {"x": FEEDS["x"] * 2}
    assert not np.allclose(session.run(None, other)[0], expected)
    # One run is one step of the fake's clock.
    assert session.device_s(other) == pytest.approx(1e-3)
    session.close()
    assert not fake.driver.blocks


def test_open_sizes_are_fixed_by_a_profile_and_missing_ones_asked_for(fake11, network):
    session = EngineRunner(FULL).open(network, FEEDS)
    assert fake11.profiles == [{"x": (2, 256)}]
    assert session.run(None, FEEDS)[0].shape == (2, 4)
    with pytest.raises(
        UsageError, match=r"leaves some of 'x' \(\?x256\) open: give --shape x:"
    ):
        build_engine(load(FULL), network)
    with pytest.raises(ModelError, match=r"built for 'x' of \[2, 256\], not \[3, 256\]"):
        session.run(None, {"x": np.zeros((3, 256), np.float32)})


def test_what_was_timed_is_kept_for_the_next_build(fake11, fixed, tmp_path):
    (place,) = (EngineRunner(FULL).build(fixed, {"x": (2, 256)}).options.timing_cache,)
    assert place.parent == tmp_path / "cache" / "deploykit" / "timing"
    assert place.name == "tensorrt-11.4.0.106-Fake-GPU-9.0-12.8.cache"
    assert place.read_bytes() == b"timed "
    EngineRunner(FULL).build(fixed, {"x": (2, 256)})
    assert fake11.caches == [b"", b"timed "]
    place.write_bytes(b"cut")
    EngineRunner(FULL).build(fixed, {"x": (2, 256)})
    assert fake11.caches[2:] == [b"cut", b""]
    assert place.read_bytes() == b"timed "


def test_an_engine_is_built_once_for_a_model_and_its_sizes(fake11, network):
    runner = EngineRunner(FULL)
    for batch in (1, 1, 2, 1):
        runner.open(network, {"x": np.zeros((batch, 256), np.float32)}).close()
    assert fake11.builds == 2
    network.write_bytes(network.read_bytes() + b"")
    onnx.save(make_network(hidden=32), network)
    runner.open(network, FEEDS).close()
    assert fake11.builds == 3


# -- refusals ------------------------------------------------------------------------------------


def test_nothing_that_is_handed_out_as_none_is_taken_for_an_engine(fake11, fixed):
    runner = EngineRunner(FULL)
    fake11.refuse_build = "Error Code 10: Internal Error (Could not find any implementation)"
    with pytest.raises(ModelError, match=r"builds no engine of .*Could not find any impl"):
        runner.open(fixed, FEEDS)
    fake11.refuse_build, fake11.refuse_engine = "", "engine was built for another GPU"
    with pytest.raises(ModelError, match=r"does not take the engine on Fake GPU.*another GPU"):
        runner.open(fixed, FEEDS)
    fake11.refuse_engine = ""
    session = runner.open(fixed, FEEDS)
    fake11.refuse_run = "no"
    with pytest.raises(
        ModelError, match=r"the engine of tensorrt 11.* does not run on Fake GPU"
    ):
        session.run(None, FEEDS)


def test_a_parser_that_refuses_names_the_node(fake11):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "zz" : 1]> '
        "g (float[1] x) => (float[1] y) { [odd] y = zz.Wave(x) }"
    )
    with pytest.raises(
        ModelError, match="refuses the model: node 'odd': Plugin not found: Wave"
    ):
        build_engine(load(FULL), model.SerializeToString())


@pytest.mark.parametrize(
    ("graph", "change", "match"),
    [
        ("float[2] x) => (float[2] y) { y = Relu(x)", {"host_tensors": ("x",)}, "on the host"),
        ("float8e4m3fn[2] x) => (float8e4m3fn[2] y) { y = Identity(x)", {}, "type FP8"),
        (
            "float[2] x) => (int64[1, n] y) { y = NonZero(x)",
            {},
            "sizes of 'y' depend on the data",
        ),
    ],
)
def test_what_cannot_be_handed_over_is_refused(fake11, tmp_path, graph, change, match):
    vars(fake11).update(change)
    path = tmp_path / "model.onnx"
    header = '<ir_version: 10, opset_import: ["" : 19]>'
    onnx.save(onnx.parser.parse_model(f"{header} g ({graph} }}"), path)
    with pytest.raises(ModelError, match=match):
        EngineRunner(FULL).open(path, {"x": np.zeros(2, np.float32)})


def test_an_engine_that_does_not_fit_the_memory_is_refused(fake11, fixed):
    fake11.driver.memory = 100
    with pytest.raises(ModelError, match="needs more memory than Fake GPU has free"):
        EngineRunner(FULL).open(fixed, FEEDS)


def test_a_builder_without_a_driver_is_a_runtime_that_is_not_there(fake11, fixed):
    fake11.driver.devices = 0
    with pytest.raises(RuntimeUnavailable, match=r"no builder .* failure with error: 35"):
        build_engine(load(FULL), fixed)
    with pytest.raises(RuntimeUnavailable, match="the NVIDIA driver shows no GPU"):
        cuda.Gpu()


def test_versions_that_nobody_looked_at_are_refused(monkeypatch):
    module, _ = fake_tensorrt.make("8.6.1", fake_cuda.FakeDriver())
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(RuntimeUnavailable, match=r"8.6.1 is none of the versions .*10 and 11"):
        load(FULL)


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_package_without_its_libraries_is_a_reason(monkeypatch, kind):
    def refuse(name):
        raise kind("libnvonnxparser.so.11: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(
        RuntimeUnavailable, match=r"imported: libnvonnxparser.so.11: cannot open"
    ):
        load(RTX)


def test_building_for_other_gpus_is_for_the_sister(fake11, fixed):
    with pytest.raises(UsageError, match="builds for the GPU of this machine only"):
        build_engine(load(FULL), fixed, Options(compute_capabilities=("8.6",)))


# -- commands ------------------------------------------------------------------------------------


def test_profile_times_engines_and_keeps_four_answers_apart(fake, run, network, tmp_path):
    done = run(
        *("profile", network, network, "--runtime", "tensorrt", "--batch", "2", "--layers"),
        *("--duration", "0", "--warmup", "0", "--json", "-o", tmp_path / "out.json"),
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, profile_records.schema("profile"))
    assert document["clock"] == "device"
    assert document["runtime"].startswith("tensorrt 1")
    assert document["providers"] == ["Fake GPU, compute capability 9.0, CUDA 12.8"]
    model = document["models"][0]
    assert model["latency"]["p50_s"] == pytest.approx(1e-3)
    assert model["memory_bytes"] is None
    times = {row["name"]: (row["seconds"], row["covers"]) for row in model["layers"]}
    assert times == {
        "hidden": (pytest.approx(0.5e-3), []),
        "head": (pytest.approx(0.25e-3), ["relu"]),
    }
    assert model["layer_totals"]["unmapped_s"] == pytest.approx(0.125e-3)
    assert model["sparse"] == {
        # Dense weights are not eligible by our rules, whatever a builder says.
        "eligible": [],
        "found": {"count": 2, "names": ["hidden", "head"]},
        "chosen": {"count": 1, "names": ["hidden"]},
        "tactics": [{"layer": "hidden", "tactic": fake_tensorrt.TACTIC}],
    }
    assert model["sparse_times"] == []


def test_compare_holds_two_engines_against_each_other(fake11, run, network):
    done = run(
        *("compare", network, network, "--runtime", "tensorrt", "--batch", "2", "--layers"),
        *("--duration", "0", "--warmup", "0", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, profile_records.schema("compare"))
    jsonschema.validate(document["profile"], profile_records.schema("profile"))
    (relative,) = document["relative"]
    assert (relative["clock"], relative["proven"]) == ("device", False)
    assert document["validation"]["verdict"] == "equal"


def test_tactics_are_unknown_where_the_engine_only_names_layers(fake11, run, fixed):
    fake11.is_detailed = False
    done = run(
        *("profile", fixed, "--runtime", "tensorrt", "--duration", "0", "--warmup", "0"),
    )
    assert done.exit_code == 0, done.stderr
    assert re.search(r"sparse kernels that the engine names +unknown", done.stdout)
    assert re.search(r"chosen by the builder +1 +hidden", done.stdout)
    assert "time by the clock of the device" in done.stdout
    assert "Fake GPU" in done.stdout


def test_optimize_chooses_by_the_engine_and_writes_one(fake11, run, network, tmp_path):
    out = tmp_path / "out"
    done = run(
        *("optimize", network, "-o", out, "--runtime", "tensorrt", "--engine", "tensorrt"),
        *("--duration", "0", "--passes", "remove-channels", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, records.schema())
    assert document["target"] == "tensorrt"
    assert document["verdict"] == "smaller"
    assert document["profile"]["clock"] == "device"
    assert document["profile"]["device"]["gpu"].startswith("Fake GPU")
    assert document["staircases"] == []
    assert [row["name"] for row in document["layer_times"]] == ["hidden", "head"]
    assert document["sparse"]["chosen"] == {"count": 1, "names": ["hidden"]}
    engine = document["engine"]
    assert engine["ran"]
    assert engine["bytes"] == (out / "model.tensorrt.engine").stat().st_size
    assert engine["sparse"] == document["sparse"]
    page = (out / "report.html").read_text("utf-8")
    assert "sparse kernels that the engine names" in page
    assert "on Fake GPU" in page


def test_a_builder_that_builds_nothing_leaves_nothing_behind(fake11, run, network, tmp_path):
    fake11.refuse_build = "Could not find any implementation"
    done = run(
        "optimize",
        network,
        "-o",
        tmp_path / "out",
        "--runtime",
        "tensorrt",
        "--passes",
        "remove-channels",
    )
    assert done.exit_code == 4
    assert "Could not find any implementation" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_logger_keeps_what_is_wrong_once(fake11):
    log = []
    logger = engines.make_logger(load(FULL), log)
    for text in ("one\n  two", "one\n  two", "three"):
        logger.log(fake_tensorrt.Severity.ERROR, text)
    logger.log(fake_tensorrt.Severity.INFO, "all is well")
    assert engines.reasons(log) == "one two; three"
    assert engines.reasons(log[-1:]) == "all is well"
    assert engines.reasons([]) == "it does not say why"
