"""What a machine with a GPU shows; skipped elsewhere, with the reason."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest

from deploykit import runtimes
from deploykit.runtimes import cuda, probe
from deploykit.runtimes.onnxruntime import Session
from tests.deploykit.conftest import make_network
from tests.graphs import Graph

DRIVER = probe.find_driver()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DRIVER, reason=f"needs a GPU: {DRIVER.reason}"),
]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_engines_compute_what_models_do(name, tmp_path):
    found = runtimes.capabilities(name)
    if not found.can_run:
        pytest.skip(found.can_run.reason)
    path = tmp_path / "model.onnx"
    onnx.save(make_network(), path)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)}
    runner = runtimes.start(name)
    with contextlib.closing(runner.open(path, feeds)) as session:
        (output,) = session.run(None, feeds)
        assert 0 < session.device_s(feeds) < 1
    with Session(path) as reference:
        np.testing.assert_allclose(output, reference.run(feeds)["y"], atol=0.2)
    assert sum(runner.profile_layers(path, feeds, duration_s=0.1).seconds.values()) > 0
    assert runner.sparse_verdict(path, feeds).eligible == ()


@pytest.mark.torch
def test_sparse_layers_compute_what_dense_ones_do(tmp_path):
    found = runtimes.capabilities("torch")
    if not found.reports_sparsity:
        pytest.skip(found.reports_sparsity.reason)
    g = Graph()
    y = g.gemm(g.input("x", (64, 256)), 256)
    path = tmp_path / "model.onnx"
    onnx.save(g.model(y), path)
    feeds = {"x": np.zeros((64, 256), np.float32)}
    (row,) = runtimes.start("torch").sparse_times(path, feeds)
    assert row.reason == ""
    assert row.error < 0.01
    assert row.dense_s > 0
    assert row.sparse_s > 0


def test_arrays_come_back():
    gpu = cuda.Gpu()
    array = np.arange(1000, dtype=np.float32)
    found = np.zeros_like(array)
    with gpu.upload(array) as buffer:
        gpu.download(buffer, found)
    np.testing.assert_array_equal(found, array)
    gpu.begin_clock()
    assert gpu.end_clock() < 1
    gpu.close()
