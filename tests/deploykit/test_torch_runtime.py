"""The `torch` runtime: its products are those of the layers, and its way is driven on a CPU.

A stand-in for what needs CUDA (events, graphs, sparse weights) proves that the calls fit together; times and sparse kernels
are for a GPU to show.
"""

from __future__ import annotations

import io
import re
import types

import numpy as np
import onnx
import pytest
from rich.console import Console, Group

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.profile.engine_layers import EngineNode, map_layers
from deploykit.report.sparse_text import sparse_times_parts
from deploykit.report.sparse_wording import sparse_times_text
from deploykit.runtimes import LayerSeconds
from deploykit.runtimes.torch_products import find_device, limits, read_layers, try_sparse
from tests.graphs import Graph

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs the extra `torch`")
torch.set_num_threads(1)

from deploykit.runtimes.torch import TorchRunner  # noqa: E402 - needs torch
from deploykit.runtimes.torch_session import Machine, prepare  # noqa: E402 - needs torch


def save(graph, path, *outputs):
    onnx.save(graph.model(*outputs), path)
    return path


@pytest.fixture
def layers_of(tmp_path):
    def read(graph, output, **shapes):
        return read_layers(save(graph, tmp_path / "model.onnx", output), shapes)

    return read


def test_the_matrix_of_a_convolution_computes_it(layers_of):
    g = Graph()
    x = g.input("x", (2, 8, 7, 6))
    y = g.conv(x, 16, 3, pads=[1, 1, 1, 1], strides=[2, 1])
    (layer,) = layers_of(g, y)
    assert layer.product == (16, 72, 2 * 4 * 6)
    assert "patches that lie there already" in layer.computed_as
    data = torch.randn(2, 8, 7, 6)
    weight = torch.from_numpy(g.constants[g.layers[0].weight])
    patches = torch.nn.functional.unfold(data, 3, padding=1, stride=(2, 1))
    # From channels first to channels last, as in the matrix: fours are then of input channels.
    patches = patches.reshape(2, 8, 9, -1).transpose(1, 2).reshape(2, 72, -1)
    found = torch.from_numpy(layer.weight) @ patches
    expected = torch.nn.functional.conv2d(data, weight, padding=1, stride=(2, 1))
    torch.testing.assert_close(found, expected.reshape(2, 16, -1), atol=1e-4, rtol=1e-4)


def test_the_matrices_of_products_have_an_output_a_row(layers_of):
    g = Graph()
    x = g.input("x", (4, 6, 32))
    y = g.dense(x, 48)
    (layer,) = layers_of(g, y)
    weight = g.constants[g.layers[0].weight]
    np.testing.assert_array_equal(layer.weight, weight.T)
    assert layer.product == (48, 32, 24)
    g = Graph()
    y = g.gemm(g.input("x", (5, 32)), 16)
    (layer,) = layers_of(g, y)
    assert layer.product == (16, 32, 5)
    assert layer.is_linear


def test_layers_that_are_no_single_product_say_so(layers_of):
    g = Graph()
    x = g.input("x", (1, 8, 6, 6))
    x = g.conv(x, 8, 3, group=2, pads=[1] * 4)
    x = g.conv(x, 16, 1)
    first, second = layers_of(g, x)
    assert "each of its 2 groups is a product of its own" in first.refusal
    assert second.computed_as.startswith("the convolution itself")


def test_open_sizes_are_asked_for(layers_of):
    g = Graph()
    x = g.input("x", (2, 32), symbols=("N", 32))
    y = g.gemm(x, 16)
    assert layers_of(g, y, x=(3, 32))[0].product == (16, 32, 3)
    assert "give --shape" in layers_of(g, y)[0].refusal


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_build_for_cpus_is_told():
    why = "for CPUs" if torch.version.cuda is None else "finds no GPU"
    with pytest.raises(RuntimeUnavailable, match=why):
        find_device(torch)
    with pytest.raises(RuntimeUnavailable, match=r"no backend .* multiplies 2:4 weights here"):
        try_sparse(torch)


def test_limits_are_those_of_the_installed_pytorch():
    assert limits(torch, "cusparselt", torch.float16) == (16, 16)
    assert limits(torch, "cutlass", torch.float16) == (32, 64)


# -- the way, on a CPU ---------------------------------------------------------------------------


class Event:
    clock_ms = 0.0

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        Event.clock_ms += 1.0
        self.at = Event.clock_ms

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at - self.at


class Stream:
    def wait_stream(self, other):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Packed:
    """A weight that says how it was made."""

    def __init__(self, weight, algorithm):
        self.packed, self.algorithm = weight, algorithm


def stand_in(search):
    """What stands for the module `torch` where CUDA is needed."""
    made = []

    def pack(weight, *, alg_id):
        groups = weight.reshape(-1, 4)
        assert ((groups != 0).sum(1) <= 2).all(), "not 2:4"
        made.append(Packed(weight, alg_id))
        return made[-1]

    def linear(data, weight):
        return torch.nn.functional.linear(data, getattr(weight, "packed", weight))

    def mm(weight, data):
        return torch.mm(getattr(weight, "packed", weight), data)

    fake = types.SimpleNamespace(**{name: getattr(torch, name) for name in ("float16", "from_numpy", "randn", "Generator")})  # fmt: skip
    fake.__version__ = torch.__version__
    fake.mm, fake._cslt_sparse_mm_search = mm, search
    fake.nn = types.SimpleNamespace(functional=types.SimpleNamespace(linear=linear))
    sparse = torch.sparse
    fake.sparse = types.SimpleNamespace(
        to_sparse_semi_structured=pack,
        SparseSemiStructuredTensorCUSPARSELT=sparse.SparseSemiStructuredTensorCUSPARSELT,
        SparseSemiStructuredTensorCUTLASS=sparse.SparseSemiStructuredTensorCUTLASS,
    )
    fake.cuda = types.SimpleNamespace(
        Event=Event,
        Stream=Stream,
        current_stream=Stream,
        stream=lambda stream: stream,
        CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: None),
        graph=lambda graph: Stream(),
    )
    return fake, made


def machine(backend="cusparselt", search=lambda *_: 3):
    fake, made = stand_in(search)
    why = "" if backend else "no backend multiplies 2:4 weights"
    return Machine(fake, "a stand-in", backend, why, place="cpu"), made


def network():
    """A dense layer, one that is 2:4, and one that no backend takes."""
    g = Graph()
    x = g.input("x", (2, 32))
    x = g.gemm(x, 32)
    x = g.gemm(x, 32)
    g.constants[g.layers[1].weight][:, ::2] = 0
    x = g.gemm(x, 12)
    return g, x


FEEDS = {"x": np.zeros((2, 32), np.float32)}


def test_layers_are_timed_dense_and_in_sparse_form(tmp_path):
    path = save(*reversed_arguments(tmp_path))
    fake, made = machine()
    dense, sparse, odd = TorchRunner(fake).sparse_times(path, FEEDS)
    assert (dense.obeys_2_4, sparse.obeys_2_4) == (False, True)
    for row in (dense, sparse):
        # Ten runs between two steps of the stand-in's clock.
        assert row.dense_s == row.sparse_s == pytest.approx(1e-4)
        assert row.ratio == pytest.approx(1.0)
        assert row.error == 0.0
        assert row.reason == ""
    assert odd.sparse_s is None
    assert odd.dense_s == pytest.approx(1e-4)
    assert (
        "rows are a multiple of 16 and whose columns are one of 16; this one is 12 x 32"
        in odd.reason
    )
    # The algorithm that was searched for is what was timed.
    assert {each.algorithm for each in made[1::2]} == {3}
    assert "2 of 3 layers have a 2:4 form" in sparse_times_text((dense, sparse, odd))
    shown = io.StringIO()
    Console(file=shown, width=200).print(Group(*sparse_times_parts((dense, sparse, odd))))
    assert len(re.findall(r"reduced to 2:4 for this", shown.getvalue())) == 1
    assert f"dense: {odd.layer}: cusparselt takes float16 weights" in shown.getvalue()
    assert sparse_times_parts(()) == []


def reversed_arguments(tmp_path):
    g, y = network()
    return g, tmp_path / "model.onnx", y


def test_only_weights_that_obey_run_sparse_in_a_model(tmp_path):
    path = save(*reversed_arguments(tmp_path))
    fake, made = machine(search=lambda *_: (_ for _ in ()).throw(RuntimeError("no search")))
    runner = TorchRunner(fake)
    session = runner.open(path, FEEDS)
    assert len(made) == 1
    assert session.run(None, FEEDS) == []
    assert session.device_s(FEEDS) == pytest.approx(1e-3)
    assert session.get_providers() == ["a stand-in"]
    found = runner.profile_layers(path, FEEDS, duration_s=0.01)
    assert sorted(found.ran_as.values()) == [
        "cusparselt 2:4 product",
        "dense product",
        "dense product",
    ]
    assert "Conv and Linear layers only" in runner.about
    assert runner.sparse_verdict(path, FEEDS) is None
    session.close()


def test_without_a_backend_everything_is_dense_and_says_why(tmp_path):
    path = save(*reversed_arguments(tmp_path))
    fake, made = machine(backend=None)
    rows = TorchRunner(fake).sparse_times(path, FEEDS)
    assert {row.reason for row in rows} == {"no backend multiplies 2:4 weights"}
    assert not made


def test_what_has_no_layer_is_refused(tmp_path):
    g = Graph()
    y = g.add("Relu", [g.input("x", (1, 4))])
    with pytest.raises(ModelError, match="no layer of the model multiplies by a weight"):
        TorchRunner(machine()[0]).open(save(g, tmp_path / "m.onnx", y), {"x": np.zeros((1, 4))})


def test_a_weight_keeps_its_two_largest_of_four_when_it_is_reduced(layers_of):
    g = Graph()
    y = g.gemm(g.input("x", (1, 32)), 16)
    (layer,) = layers_of(g, y)
    fake, made = machine()
    prepare(fake, layer, reduce=True)
    groups = layer.weight.reshape(-1, 4)
    order = np.argsort(np.abs(groups), axis=1)
    np.put_along_axis(groups, order[:, :2], 0, axis=1)
    np.testing.assert_array_equal(made[0].packed.float().numpy(), groups.reshape(16, 32).astype(np.float16))  # fmt: skip


# -- names ---------------------------------------------------------------------------------------


def test_layers_of_an_engine_are_given_to_the_nodes_they_do_the_work_of():
    nodes = (
        EngineNode("conv1", "Conv", 100),
        EngineNode("relu1", "Relu", 0),
        EngineNode("q", "MatMul", 10),
        EngineNode("k", "MatMul", 20),
        EngineNode("idle", "Reshape", 0),
    )
    seconds = {"conv1 + relu1": 3.0, "q || k": 2.0, "k": 0.5, "Reformatting CopyNode for Input Tensor 0 to conv1": 0.25}  # fmt: skip
    found = map_layers(nodes, LayerSeconds(seconds, {name: name for name in seconds}, 6.0, 9))
    assert [(each.name, each.seconds, each.covers) for each in found.layers] == [
        ("conv1", 3.0, ("relu1",)),
        ("k", 2.5, ("q",)),
    ]
    assert found.layers[1].runtime_ops == ("q || k", "k")
    assert (found.unmapped_s, found.total_s, found.whole_s, found.clock) == (0.25, 5.75, 6.0, "device")  # fmt: skip
