import sys

import numpy as np
import onnx.parser
import pytest

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.runtimes import TensorSpec
from deploykit.runtimes import onnxruntime as runtime

ADD = "g (float[N,3] x, int64[2] i, float16 s) => (float[N,3] y) { y = Add(x, x) }"


def model(graph):
    header = '<ir_version: 8, opset_import: ["" : 18]>'
    return onnx.parser.parse_model(f"{header} {graph}").SerializeToString()


def test_the_interface_is_read_with_types_and_symbols():
    with runtime.Session(model(ADD), threads=1) as session:
        assert session.inputs == (
            TensorSpec("x", "float32", ("N", 3)),
            TensorSpec("i", "int64", (2,)),
            TensorSpec("s", "float16", ()),
        )
        assert [spec.is_dynamic for spec in session.inputs] == [True, False, False]
        assert session.outputs == (TensorSpec("y", "float32", ("N", 3)),)
        assert session.providers == ("CPUExecutionProvider",)


def test_a_session_runs_by_name_and_ends_with_its_block():
    feeds = {"x": np.ones((2, 3), np.float32), "i": np.zeros(2, np.int64), "s": np.float16(0)}
    feeds["s"] = np.asarray(feeds["s"])
    with runtime.Session(model(ADD)) as session:
        outputs = session.run(feeds)
    assert list(outputs) == ["y"]
    np.testing.assert_array_equal(outputs["y"], np.full((2, 3), 2, np.float32))
    with pytest.raises(RuntimeError, match="after close"):
        session.run(feeds)


def test_idle_threads_sleep_and_the_level_is_what_was_asked_for():
    loaded = runtime.load()
    options = runtime._options(loaded, 3, "none")
    assert options.intra_op_num_threads == 3
    assert options.graph_optimization_level == loaded.GraphOptimizationLevel.ORT_DISABLE_ALL
    for pool in ("intra", "inter"):
        assert options.get_session_config_entry(f"session.{pool}_op.allow_spinning") == "0"
    assert runtime._options(loaded, None, "all").intra_op_num_threads == 0


def test_bad_feeds_name_the_model_the_shapes_and_the_reason():
    with (
        runtime.Session(model(ADD)) as session,
        pytest.raises(
            ModelError, match=r"does not run on x \[2, 4\]: Required inputs .*'i', 's'"
        ),
    ):
        session.run({"x": np.ones((2, 4), np.float32)})


@pytest.mark.parametrize("source", [b"no model", "/nowhere/m.onnx"])
def test_what_the_runtime_refuses_is_a_short_model_error(source):
    with pytest.raises(ModelError, match=r"ONNX Runtime .* refuses") as caught:
        runtime.Session(source)
    assert len(str(caught.value)) < 400
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_an_absent_provider_is_an_error_and_not_a_silent_fallback():
    with pytest.raises(RuntimeUnavailable, match=r"CUDAExecutionProvider here \(it has .*CPU"):
        runtime.Session(model(ADD), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_a_provider_that_fell_back_while_loading_is_an_error(monkeypatch):
    # The list of available providers says what was compiled in, not what works.
    loaded = runtime.load()
    monkeypatch.setattr(loaded, "get_available_providers", lambda: ["Tensorrt", "CPU"])
    monkeypatch.setattr(loaded, "InferenceSession", lambda *_, **__: Fallen())
    with pytest.raises(RuntimeUnavailable, match="does not run on Tensorrt"):
        runtime.Session(model(ADD), providers=["Tensorrt"])


class Fallen:
    get_providers = staticmethod(lambda: ["CPU"])
    get_inputs = get_outputs = staticmethod(list)


def test_every_capability_has_a_reason():
    found = runtime.capabilities()
    assert found.importable
    assert found.can_run
    assert not found.reports_sparsity
    claims = (
        found.importable,
        found.can_parse,
        found.can_build,
        found.can_run,
        found.reports_sparsity,
    )
    assert all(claim.reason for claim in claims)


def test_a_missing_runtime_is_reported_and_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = runtime.capabilities()
    assert not any((found.importable, found.can_parse, found.can_build, found.can_run))
    assert "pip install onnxruntime" in found.can_run.reason
    with pytest.raises(RuntimeUnavailable, match="pip install onnxruntime"):
        runtime.Session(model(ADD))
