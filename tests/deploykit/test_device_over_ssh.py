"""What a device says of itself, and its layers, over SSH: the same code as here, on a real server on the loopback."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import onnx
import pytest

from deploykit.errors import ModelError
from deploykit.profile import Settings, measure
from deploykit.profile.layer_times import profile_layers
from deploykit.profile.state import look_here, read_state, watch_for
from deploykit.report.profile_records import schema
from tests.deploykit.conftest import make_network
from tests.deploykit.sshd import device, make_device
from tests.deploykit.test_remote import assert_clean, at

__all__ = ["device", "make_device"]  # fixtures

pytestmark = pytest.mark.ssh

SETTINGS = Settings(warmup_s=0.0, duration_s=0.0, min_rounds=4, rebuilds=2)


def test_a_device_says_of_itself_what_this_machine_says(device, tmp_path):
    onnx.save(make_network(), tmp_path / "m.onnx")
    with at(device) as place:
        seen = place.look()
        taken = measure(
            {"m": tmp_path / "m.onnx"},
            {"x": np.zeros((1, 256), np.float32)},
            settings=SETTINGS,
            place=place,
            watch={**watch_for(seen), "files": ["/proc/loadavg"]},
        )
    assert_clean(device)
    here = look_here()
    assert (
        seen.files["/proc/cpuinfo"].splitlines()[0]
        == here.files["/proc/cpuinfo"].splitlines()[0]
    )
    assert (seen.cores, seen.architecture) == (here.cores, here.architecture)
    assert set(seen.commands) >= {"nvpmodel", "tegrastats", "nvidia-smi"}
    assert read_state(seen).memory.total_bytes == read_state(here).memory.total_bytes
    assert taken.states[-1]["files"]["/proc/loadavg"]


def test_layers_are_timed_on_a_device_under_the_same_names(device, external_network):
    feeds = {"x": np.ones((2, 256), np.float32)}
    options = {"duration_s": 0.05, "warmup_s": 0.0}
    here = profile_layers(external_network, feeds, **options)
    with at(device) as place:
        there = profile_layers(external_network, feeds, place=place, **options)
    assert_clean(device)
    assert [(layer.name, layer.op_type) for layer in there.layers] == [
        (layer.name, layer.op_type) for layer in here.layers
    ]
    assert there.mapped_share == 1.0
    assert there.runs >= 5
    assert sum(layer.seconds for layer in there.layers) == pytest.approx(there.total_s)


def test_a_model_that_does_not_run_there_is_called_by_its_name(device, tmp_path):
    onnx.save(make_network(), tmp_path / "mine.onnx")
    with at(device) as place, pytest.raises(ModelError, match=r"mine\.onnx") as caught:
        profile_layers(tmp_path / "mine.onnx", {"x": np.ones((2, 3), np.float32)}, place=place)
    assert "deploykit-trace" not in str(caught.value)
    assert_clean(device)


def test_the_command_times_layers_on_a_device(device, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(device.home))
    onnx.save(make_network(batch=1), tmp_path / "m.onnx")
    done = run(
        "profile",
        tmp_path / "m.onnx",
        "--on",
        device.on,
        "--layers",
        "--duration",
        "0.1",
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema("profile"))
    assert {row["name"] for row in document["models"][0]["layers"]} >= {"hidden", "head"}
    assert document["state"]["before"]["memory_total_bytes"] > 0
    assert_clean(device)
