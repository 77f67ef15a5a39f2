"""A step that takes a second: a small network, masks, examples, a metric with a helper, and a recipe for all of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.deploykit.conftest import make_network

RECIPE = """\
name = "small"
gates = ["max_error <= 1e-3", "parameters <= 0.9 * baseline", "accuracy >= 0.5"]

[inputs]
model = "network.onnx"
masks = "masks.npz"
examples = ["example.npz"]
files = ["notes.txt"]

[output]
folder = "out"

[optimize]
profile = false

[options.remove-channels]
carry = "carrier"

[measure]
duration = 0.02
warmup = 0.0
rebuilds = 1

[accuracy]
metric = "evaluate:accuracy"
data = "labels.npz"
"""

METRIC = """\
import click
import helper

def accuracy(model, data):
    import numpy as np
    import onnxruntime
    with np.load(data) as file:
        examples, labels = file["x"], file["labels"]
    session = onnxruntime.InferenceSession(model)
    scores = session.run(None, {"x": examples})[0]
    return helper.share(scores.argmax(axis=1) == labels)
"""
HELPER = "def share(right):\n    return float(right.mean())\n"


@dataclasses.dataclass(frozen=True)
class Step:
    """A folder with a recipe and all that it reads."""

    folder: Path

    @property
    def recipe(self):
        return self.folder / "recipe.toml"

    @property
    def out(self):
        return self.folder / "out"

    def edit(self, old, new, name="recipe.toml"):
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old} is not in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def flip(self, name, offset=-1):
        """Change one byte of a file; the size stays."""
        path = self.folder / name
        content = bytearray(path.read_bytes())
        content[offset] ^= 1
        path.write_bytes(bytes(content))


def make_step(folder):
    folder.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(0)
    onnx.save(make_network(dead=16), folder / "network.onnx")
    mask = np.ones((64, 256), bool)
    mask[16:24] = False
    np.savez(folder / "masks.npz", w1=mask)
    examples = dice.standard_normal((40, 256)).astype(np.float32)
    np.savez(folder / "example.npz", x=examples[:1])
    network = make_network(dead=16)
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in network.graph.initializer}
    hidden = np.maximum(examples @ arrays["w1"].T + arrays["b1"], 0)
    labels = (hidden @ arrays["w2"].T + arrays["b2"]).argmax(axis=1)
    np.savez(folder / "labels.npz", x=examples, labels=labels)
    (folder / "evaluate.py").write_text(METRIC, encoding="utf-8")
    (folder / "helper.py").write_text(HELPER, encoding="utf-8")
    (folder / "stranger.py").write_text("# nobody imports this\n", encoding="utf-8")
    (folder / "notes.txt").write_text("whatever\n", encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return Step(folder)


@pytest.fixture
def step(tmp_path):
    return make_step(tmp_path / "project")
