"""The benchmark for GPUs: without one it says why and writes nothing; its way is driven against fakes of TensorRT and the driver."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx_ir as ir
import pytest

import passes
from benchmarks import results
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import encoders, forms, measuring, tables
from deploykit.runtimes import Capabilities, Claim, cuda, onnxruntime, probe, tensorrt
from tests import oracle
from tests.deploykit import fake_cuda, fake_tensorrt
from tests.deploykit.conftest import make_network
from tests.deploykit.test_tensorrt import in_process

NO = Claim(holds=False, reason="it is not here")


@pytest.mark.skipif(probe.find_driver().holds, reason="a GPU is here")
def test_without_a_gpu_it_reports_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    found = Capabilities("made up", None, NO, NO, NO, NO, NO)
    monkeypatch.setattr(gpu.runtimes, "capabilities", lambda _: found)
    assert gpu.main(["--quick"]) == 4
    said = capsys.readouterr()
    assert "tensorrt-rtx (not installed): does not run: it is not here" in said.out
    assert "there is no NVIDIA driver" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "alexnet"], "there is no alexnet. There are: resnet18"),
        (["--runtimes", "openvino"], "there is no openvino. There are: tensorrt,"),
        (["--batches", "0"], "takes whole numbers"),
    ],
)
def test_mistakes_are_told(capsys, arguments, said):
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert said in capsys.readouterr().err


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A GPU and TensorRT 11, as far as the code can tell, and a network that is small."""
    driver = fake_cuda.FakeDriver()
    module, state = fake_tensorrt.make("11.4.0.106", driver)
    here = Claim(holds=True, reason="Fake GPU, compute capability 9.0, CUDA 12.8")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "_load", lambda: driver)
    monkeypatch.setattr(gpu, "find_driver", lambda: here)
    monkeypatch.setattr(tensorrt, "find_driver", lambda: here)
    monkeypatch.setattr(tensorrt, "try_out", in_process)
    # Packages that are not asked for are not tried.
    known = {
        "onnxruntime": onnxruntime.capabilities,
        "tensorrt": tensorrt.capabilities,
    }
    nothing = Capabilities("nothing", None, NO, NO, NO, NO, NO)
    monkeypatch.setattr(
        gpu.runtimes, "capabilities", lambda name: known.get(name, lambda: nothing)()
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(measuring, "FULL", measuring.QUICK)
    made = []

    def make(network, form, batch):
        made.append((network, form, batch))
        model = oracle.from_proto(make_network(batch=batch))
        if form == "2:4":
            passes.Sparse24(force="magnitude")(model)
        return model

    monkeypatch.setattr(forms, "make", make)
    state.made = made
    return state


def read(folder):
    return json.loads((folder / "results" / "gpu.json").read_text())["rows"]


def test_rows_say_what_ran_where_and_what_did_not(machine, tmp_path, capsys):
    arguments = ["--only", "vit-b", "--batches", "1"]
    assert gpu.main(arguments) == 0
    rows = read(tmp_path)
    assert {row["gpu"] for row in rows} == {"Fake GPU, compute capability 9.0, CUDA 12.8"}
    ran = [row for row in rows if row["runtime"] == "tensorrt 11.4.0.106"]
    assert [row["form"] for row in ran] == list(forms.FORMS)
    for row in ran:
        assert row["clock"] == "device"
        assert row["device"].startswith("Fake GPU")
        # Half precision against fp32: not nothing, and little.
        assert 0 < row["error"] < 0.01
        assert row["sparse"]["chosen"]["count"] == 1
    assert "ratio" not in ran[0]
    assert ran[3]["ratio"] == pytest.approx(1.0)
    # The four answers differ: our rules take 2:4 weights only.
    assert len(ran[0]["sparse"]["eligible"]) == 0 < len(ran[3]["sparse"]["eligible"])
    refused = {row["runtime"]: row["reason"] for row in rows if "reason" in row}
    assert refused["tensorrt-rtx"] == refused["torch"] == "it is not here"
    assert refused["onnxruntime-cuda"].startswith("this build of onnxruntime has no CUDA")
    assert refused["trtexec"].startswith("trtexec is not on the path")
    text = (tmp_path / "results" / "gpu.md").read_text()
    assert "Fake GPU" in text
    assert "| vit-b | 1 | 2:4 | tensorrt 11.4.0.106 | 1.000 ms (device) | 1.000 [" in text
    assert "| torch | everything | it is not here |" in text
    # What is done is not done again, and half a line of a killed run is no row.
    (state,) = (tmp_path / "build" / "benchmarks").iterdir()
    with state.open("a") as file:
        file.write('{"network": "vit-b", "ba')
    machine.made.clear()
    assert gpu.main(arguments) == 0
    assert machine.made == []
    assert read(tmp_path) == rows
    capsys.readouterr()


def test_outputs_that_are_off_are_an_exit_code(machine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "error", lambda *_: 0.5)
    assert gpu.main(["--only", "vit-b", "--batches", "1", "--runtimes", "tensorrt"]) == 1
    assert "WRONG: vit-b dense in tensorrt 11.4.0.106: 0.5" in capsys.readouterr().out


def test_a_form_that_a_builder_refuses_is_a_row(machine, tmp_path, capsys):
    machine.refuse_build = "Could not find any implementation"
    assert (
        gpu.main(["--only", "vit-b", "--batches", "1", "--runtimes", "tensorrt", "--quick"])
        == 0
    )
    said = capsys.readouterr().out
    assert "Nothing ran." in said
    assert "Could not find any implementation" in said
    # A quick run proves nothing and leaves no results.
    assert not (tmp_path / "results").exists()


def test_tables_have_a_mark_for_what_nobody_said():
    sparse = {"eligible": ["a"], "found": {"count": 2}, "chosen": None, "tactics": None}
    row = {"network": "n", "batch": 1, "form": "2:4", "runtime": "r", "p50_ms": 1.0, "clock": "device", "sparse": sparse}  # fmt: skip
    assert tables.write_tables([row]).endswith("| no outputs | 1 | 2 | ? | ? |")


# -- forms ---------------------------------------------------------------------------------------


def test_layers_of_encoders_lose_half_of_their_heads_and_units(monkeypatch):
    monkeypatch.setattr(encoders, "LAYERS", 1)
    monkeypatch.setitem(encoders.TOKENS, "vit-b", 6)
    model = encoders.build("vit-b")
    encoders.prune(model)
    zeroed = oracle.to_proto(model)
    for step in (passes.Tidy(), passes.RemoveChannels(), passes.InferShapes()):
        step(model)
    weights = {value.name: tuple(value.shape) for value in model.graph.initializers.values()}
    assert weights["layer0.query.weight"] == weights["layer0.value.weight"] == (768, 384)
    assert weights["layer0.up.weight"] == (768, 1536)
    assert weights["layer0.down.weight"] == (1536, 768)
    oracle.assert_same_function(zeroed, model, oracle.make_inputs(zeroed, {}))


def test_blocks_are_planted_and_found(monkeypatch):
    monkeypatch.setattr(encoders, "LAYERS", 1)
    monkeypatch.setitem(encoders.TOKENS, "bert-base", 6)
    model = forms.make("bert-base", "blocks", 1)
    dense = forms.make("bert-base", "dense", 1)

    def elements(each):
        return sum(value.const_value.size for value in each.graph.initializers.values())

    assert elements(model) < 0.3 * elements(dense)
    halved = forms.halve(model)
    assert {value.dtype for value in halved.graph.inputs} == {ir.DataType.FLOAT}
    assert any(
        value.dtype == ir.DataType.FLOAT16 for value in halved.graph.initializers.values()
    )
    assert np.isfinite(measuring.error(np.ones(3), np.arange(3.0)))
