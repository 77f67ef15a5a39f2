"""Times of layers: what is added up, and what is left out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from deploykit.errors import ModelError
from deploykit.profile import layer_times
from deploykit.profile.layer_times import profile_layers
from tests.deploykit.conftest import make_network


def event(name, ts, dur, *, index=0, op="Relu", reads=1):
    args = {
        "op_name": op,
        "node_index": str(index),
        "input_type_shape": [{"float": [1]}] * reads,
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def run_event(ts, dur):
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def test_kernels_of_a_subgraph_are_counted_once_and_warm_up_not_at_all():
    events = []
    for start in (0, 1000, 2000):
        # The profile lists what is inside before what is around it.
        events += [
            event("inner", start + 11, 30, index=0),
            event("inner2", start + 45, 50, index=1),
        ]
        events += [
            event("if", start + 10, 90, index=4),
            event("after", start + 101, 8, index=5),
        ]
        events.append(run_event(start + 5, 110))
    found = layer_times._kernels(events, [1, 2], np.zeros(2), [0.0] * 3)
    assert {key: round(kernel.seconds * 1e6) for key, kernel in found.items()} == {
        ("if", 4): 90,
        ("after", 5): 8,
    }


def test_the_profilers_own_time_is_subtracted_by_what_a_kernel_reads():
    events = [
        event("a", 10, 12, index=0, reads=1),
        event("b", 30, 12, index=1, reads=3),
        event("tiny", 50, 2, index=2, reads=3),
        run_event(0, 100),
    ]
    found = layer_times._kernels(events, [0], np.zeros(1), [2e-6, 3e-6, 5e-6])
    seconds = {key[0]: kernel.seconds for key, kernel in found.items()}
    assert seconds["a"] == pytest.approx(10e-6)
    assert seconds["b"] == pytest.approx(7e-6)
    # Nothing takes less than no time.
    assert seconds["tiny"] == 0.0
    assert sum(kernel.overhead_s for kernel in found.values()) == pytest.approx(9e-6)


def test_what_a_run_waited_is_taken_off_the_kernels_that_were_interrupted():
    """A short kernel that is interrupted now and then, and a long one that always is, by 3 ms for each 5 ms of its own."""
    dice = np.random.default_rng(0)
    events, waited = [], []
    for run in range(60):
        start = run * 100_000
        short_us = 500 + int(dice.integers(0, 5))
        long_us = 20_000 + int(dice.integers(0, 200))
        short_waits = 3000 if dice.random() < 0.3 else 0
        long_waits = 3000 * int(dice.integers(3, 6))
        waited.append((short_waits + long_waits) * 1e-6)
        events += [
            event("short", start + 1, short_us + short_waits, index=0),
            event("long", start + 10_000, long_us + long_waits, index=1),
            run_event(start, 10_000 + long_us + long_waits),
        ]
        # Between the two nothing was waited for: the run was all kernels.
        events[-1]["dur"] = short_us + short_waits + long_us + long_waits
        events[-2]["ts"] = start + 1 + short_us + short_waits
    found = layer_times._kernels(events, range(60), np.array(waited), [0.0] * 3)
    seconds = {key[0]: kernel.seconds for key, kernel in found.items()}
    assert seconds["long"] == pytest.approx(20.1e-3, rel=0.05)
    assert seconds["short"] == pytest.approx(0.502e-3, rel=0.05)
    alone = layer_times._kernels(events, range(60), np.zeros(60), [0.0] * 3)
    assert alone["long", 1].seconds > 1.4 * 20.1e-3


def test_a_real_model_is_timed_under_its_own_names(tmp_path):
    model = make_network(hidden=512, features=512, batch=32)
    for node in model.graph.node[:2]:
        node.name = ""
    onnx.save(model, tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)}
    found = profile_layers(tmp_path / "m.onnx", feeds, duration_s=0.02, warmup_s=0.0)
    names = {layer.name: layer for layer in found.layers}
    assert {"h", "head"} <= set(names) <= {"h", "r", "head"}
    assert names["h"].op_type == "Gemm"
    assert names["h"].seconds > names["head"].seconds > 0
    assert found.unmapped_s == 0.0
    assert found.mapped_share == 1.0
    assert sum(layer.seconds for layer in found.layers) == pytest.approx(found.total_s)
    # Nothing is scaled to fit, and yet it is no other order of magnitude, whatever the machine does.
    assert 0.2 < found.total_s / found.whole_s < 5
    assert not list(tmp_path.glob("*profile*"))


def test_weights_in_another_file_are_found(external_network):
    feeds = {"x": np.ones((2, 256), np.float32)}
    found = profile_layers(external_network, feeds, duration_s=0.0, warmup_s=0.0)
    assert {layer.name for layer in found.layers} >= {"hidden", "head"}


def test_what_does_not_run_is_an_error_of_the_model(tmp_path, network):
    with pytest.raises(ModelError, match=r"the layers of .*network\.onnx' cannot be timed"):
        profile_layers(network, {"x": np.ones((2, 3), np.float32)}, warmup_s=0.0)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="cannot be timed"):
        profile_layers(tmp_path / "text.onnx", {}, warmup_s=0.0)
