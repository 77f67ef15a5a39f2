"""Rooflines: what limits a layer follows from what it does and what the device gives, and the page shows what the document says."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit.report import plots
from deploykit.report.profile_records import LayerRow, schema
from deploykit.what_if.roofline import Limits, Work, _bytes, _chain, _layer, judge
from passes.analysis.macs import sized
from tests.deploykit.narrow_nets import make_residual

FAST = ("--duration", "0.05", "--warmup", "0", "--rebuilds", "2")
LIMITS = Limits(1e11, {2**16: 1e11, 2**20: 1e11, 2**26: 1e10}, overhead_s=1e-6)


def row(seconds):
    return LayerRow("layer", "Conv", seconds, (), ())


@pytest.mark.parametrize(
    ("macs", "count", "seconds", "limit", "attainable_s", "said"),
    [
        (10**9, 10**6, 0.0125, "compute", 0.01, "reaches 80 % of the peak"),
        (10**9, 10**6, 0.05, "compute", 0.01, "suits these counts badly"),
        (10**6, 2**26, 0.01, "memory", 2**26 / 1e10, "smaller tensors help"),
        (10**6, 2**20, 1e-4, "memory", 2**20 / 1e11, "far from that"),
        (100, 100, 1.5e-6, "overhead", 1e-9, "are what any node costs"),
        # A layer may be faster than what was found to be possible: that is no more than all of it.
        (10**9, 10**6, 0.008, "compute", 0.01, "reaches 100 %"),
    ],
)
def test_what_limits_a_layer(macs, count, seconds, limit, attainable_s, said):
    found = judge(row(seconds), Work(macs, count), LIMITS)
    assert found.limit == limit
    assert found.attainable_s == pytest.approx(attainable_s)
    assert found.share == pytest.approx(min(1.0, attainable_s / seconds))
    assert said in found.said


def test_bandwidth_depends_on_how_much_is_moved():
    assert LIMITS.bandwidth(10) == LIMITS.bandwidth(2**20) == LIMITS.cache_bytes_s == 1e11
    assert LIMITS.bandwidth(2**30) == LIMITS.memory_bytes_s == 1e10
    assert LIMITS.bandwidth(2**23) == pytest.approx(5.5e10)
    assert LIMITS.cache_bytes == 2**20


def test_bytes_are_those_that_cross_the_border_of_a_kernel():
    model, sizes = sized(ir.from_proto(make_residual(batch=1)), {"x": (1, 16, 16, 16)})
    nodes = {node.name: node for node in model.graph}
    maps, weight = 4 * 64 * 256, 4 * (64 * 64 * 9 + 64)
    assert _bytes([nodes["inner"]], sizes.shape) == 2 * maps + weight
    # Done in one kernel, what goes from one to the other is not moved; what the sum reads besides is.
    assert _bytes([nodes["inner"], nodes["relu2"]], sizes.shape) == 2 * maps + weight
    assert _bytes([nodes["outer"], nodes["sum"]], sizes.shape) == 3 * maps + weight


def test_probes_are_sound_models():
    for model in (
        _chain(5, (1, 64), np.dtype(np.float32)),
        _layer("Conv", (1, 8, 6, 6), (8, 8, 3, 3), np.dtype(np.float32)),
        _layer("MatMul", (4, 4), (4, 4), np.dtype(np.float16)),
    ):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_a_roof_is_called_covers_no_layer_and_stays_in_the_picture():
    drawing = plots.Drawing(270, "roofline")
    axes = drawing.axes(44, 12, 10, 38)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.15, 23)
    axes.set_ylim(1, 90)
    points = [
        (0.25, 5.5),
        (0.43, 10.6),
        (0.44, 12.2),
        (0.45, 14.4),
        (1.1, 15),
        (1.1, 18),
        (1, 10),
    ]
    for word, ends, rate in (("memory", (0.15, 2.9), 15.0), ("caches", (0.15, 0.35), 125.0)):
        plots._name_roof(axes, word, ends, rate, points)
    for text in axes.texts:
        box = text.get_window_extent()
        assert axes.get_window_extent().count_contains(box.corners()) == 4, text
        assert box.count_contains(axes.transData.transform(points)) == 0, text


def test_a_roofline_is_measured_and_drawn(run, tmp_path):
    path, page = tmp_path / "residual.onnx", tmp_path / "page.html"
    onnx.save(make_residual(), path)
    result = run("profile", path, "--roofline", *FAST, "--json", "--html", page)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema("profile"))
    found = document["roofline"]
    assert found["peak_macs_s"] == max(
        each["per_s"] for each in found["peaks"] if "elementwise" not in each["what"]
    )
    assert found["cache_bytes_s"] >= found["memory_bytes_s"] > 0
    layers = {each["name"]: each for each in found["layers"]}
    assert layers["inner"]["macs"] == 64 * 64 * 9 * 256
    assert layers["inner"]["limit"] == "compute"
    assert layers["pool"]["macs"] == 0
    text = page.read_text("utf-8")
    shown = re.findall(r'data-key="([^"]+)" data-value="([^"]+)"', text)
    assert shown
    for keys, values in shown:
        for key, value in zip(keys.split(), values.split(), strict=True):
            place = document
            for part in key.split("."):
                place = place[int(part)] if part.isdigit() else place[part]
            assert json.loads(value) == pytest.approx(place), key
    # Nothing comes from elsewhere.
    assert not re.search(r'(src|href)="(?!#)', text)
