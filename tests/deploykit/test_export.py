"""PyTorch models as ONNX: named as in the state dict, and computing the same in ONNX Runtime."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

from deploykit import model_io
from deploykit.errors import ModelError, UsageError
from deploykit.runtimes.onnxruntime import Session
from passes.weights import constant

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.torch

from deploykit.export import Origin, export, export_for_analysis, export_tracked  # noqa: E402
from tests.deploykit import torch_models as nets  # noqa: E402


def run(model, path, *inputs):
    model_io.save(model, path, external=False)
    with Session(path, threads=1) as session:
        names = [spec.name for spec in session.inputs]
        return session.run(dict(zip(names, (each.numpy() for each in inputs), strict=True)))


def same(found, expected):
    return np.allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def weights_of(model):
    return {name: constant(value) for name, value in model.graph.initializers.items()}


def test_how_weights_lie_in_memory_makes_no_difference():
    model = torch.nn.Sequential(
        # A size of 1 makes both layouts look alike.
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.MaxPool2d(4),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    )
    image = torch.randn(2, 1, 4, 4)
    plain = [node.op_type for node in export(model, (image,)).graph]
    model = model.to(memory_format=torch.channels_last)
    image = image.to(memory_format=torch.channels_last)
    assert [node.op_type for node in export(model, (image,)).graph] == plain
    assert model[0].weight.stride() == (9, 1, 3, 1), "it lies as it did"
    raw = [node.op_type for node in export_for_analysis(model, (image,)).graph]
    assert "Gather" not in raw


def test_a_network_is_exported_with_an_open_batch_and_left_as_it_was(tmp_path, capfd):
    model = nets.Residual()
    model.two.eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    exported = export(model, (torch.randn(1, 1, 12, 12),))
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert model.one.bn1.training
    assert not model.two.bn1.training
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])
    (inputs,), (outputs,) = exported.graph.inputs, exported.graph.outputs
    assert (inputs.name, [str(size) for size in inputs.shape]) == (
        "images",
        ["batch", "1", "12", "12"],
    )
    assert (outputs.name, [str(size) for size in outputs.shape]) == ("output", ["batch", "10"])
    operators = [node.op_type for node in exported.graph]
    assert operators.count("Conv") == 6
    assert "BatchNormalization" not in operators
    assert {"stem", "one.conv1", "two.short.0", "head"} <= {
        node.name for node in exported.graph
    }
    model.eval()
    for batch in (1, 2, 5):
        images = torch.randn(batch, 1, 12, 12)
        (found,) = run(exported, tmp_path / "m.onnx", images).values()
        assert same(found, model(images))
    # Where the lines of the user's program lie is nobody's business.
    assert str(nets.__file__).encode() not in (tmp_path / "m.onnx").read_bytes()


def test_the_form_for_analysis_keeps_every_parameter_by_name():
    model = nets.Residual()
    exported = export_for_analysis(model, (torch.randn(2, 1, 12, 12),))
    found = weights_of(exported)
    for name, each in model.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(found[name], each.numpy())
    with torch.no_grad():
        model.stem.weight.zero_()
    assert constant(exported.graph.initializers["stem.weight"]).any()


def test_transposed_weights_are_found_again(tmp_path):
    model = nets.Perceptron()
    words = torch.randn(3, 5, 12)
    exported = export_tracked(model, (words,))
    assert exported.notes == ()
    found = weights_of(exported.model)
    state = model.state_dict()
    for name, is_transposed in (
        ("tokens.weight", True),
        ("mix.weight", True),
        ("rows.weight", False),
        ("head.weight", False),
    ):
        assert exported.origins[name] == Origin(name, is_transposed)
        expected = state[name].numpy()
        np.testing.assert_array_equal(found[name], expected.T if is_transposed else expected)
    outputs = run(exported.model, tmp_path / "m.onnx", words)
    for name, tensor in model(words).items():
        assert same(outputs[name], tensor)


def test_a_weight_with_two_readers_is_in_the_graph_twice(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(7, 4)

        def forward(self, ids):
            return self.words(ids) @ self.words.weight.T, ids

    ids = torch.tensor([[1, 2, 3]])
    model = Tied()
    exported = export_tracked(model, (ids,))
    assert set(exported.origins.values()) == {
        Origin("words.weight", is_transposed=False),
        Origin("words.weight", is_transposed=True),
    }
    # An input that is returned as it is keeps its name.
    assert [value.name for value in exported.model.graph.inputs] == ["ids"]
    found = run(exported.model, tmp_path / "m.onnx", ids)
    assert list(found) == ["output_0", "output_1"]
    assert same(found["output_0"], model(ids)[0])


def test_a_batch_that_the_model_fixes_is_told(tmp_path, caplog):
    model, x = nets.Fixed(), torch.randn(2, 8)
    with caplog.at_level(logging.WARNING, "deploykit"):
        exported = export(model, (x,))
    assert "takes batches of 2 only, because Fixed fixes the size" in caplog.text
    assert list(exported.graph.inputs[0].shape) == [2, 8]
    assert same(run(exported, tmp_path / "m.onnx", x)["output"], model(x))


@pytest.mark.parametrize(
    ("model", "inputs", "kind", "message"),
    [
        (nets.Chance(), (torch.ones(2, 8),), ModelError, "not compute in ONNX Runtime what"),
        (nets.Branching(), (torch.ones(2, 8),), ModelError, "Branching cannot be exported"),
        (nets.Fixed(), (torch.ones(3, 7),), UsageError, r"inputs \[3, 7\]: shape '\[2, 8\]'"),
        (nets.Fixed(), [torch.ones(2, 8)], UsageError, "no tuple of tensors"),
        (torch.nn.Identity(), (), UsageError, "no tuple of tensors"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_line(model, inputs, kind, message, capfd):
    with pytest.raises(kind, match=message) as told:
        export(model, inputs)
    assert "\n" not in str(told.value)
    assert capfd.readouterr().out == ""


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'deploykit-onnx\[torch\]'"):
        export(nets.Fixed(), (torch.ones(2, 8),))
