"""A step that begins with a PyTorch model and its ticket: the export is a stage of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

import deploykit
from deploykit.ticket import Ticket

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.torch

MODEL = """\
import torch
from torch import nn
import sizes
from deploykit.finder.task import Data, Task

torch.set_num_threads(1)

class Small(Task):
    def model(self):
        return nn.Sequential(nn.Linear(8, sizes.WIDTH), nn.ReLU(), nn.Linear(sizes.WIDTH, 3))

    def data(self):
        examples = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        return Data(train=(examples, torch.zeros(8, dtype=torch.long)), test=(examples, torch.zeros(8, dtype=torch.long)))
"""
RECIPE = """\
gates = ["parameters <= 0.8 * baseline", "max_error <= 1e-4"]
[inputs]
model = "nets:Small"
ticket = "ticket.safetensors"
[output]
folder = "out"
[optimize]
profile = false
[measure]
duration = 0.02
warmup = 0.0
rebuilds = 1
"""


def make_ticket(path, dropped):
    """The ticket of `Small` with some hidden channels dropped."""
    torch.manual_seed(0)
    shapes = {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (3, 16), "2.bias": (3,)}
    weights = {name: torch.randn(shape).numpy() for name, shape in shapes.items()}
    masks = {name: np.ones(shapes[name], bool) for name in ("0.weight", "2.weight")}
    masks["0.weight"][:dropped] = False
    masks["2.weight"][:, :dropped] = False
    weights = {
        name: np.asarray(array * masks.get(name, np.True_)) for name, array in weights.items()
    }
    Ticket(masks, weights, provenance={"task": "nets:Small"}).save(path)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "nets.py").write_text(MODEL)
    (tmp_path / "sizes.py").write_text("WIDTH = 16\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    make_ticket(tmp_path / "ticket.safetensors", 8)
    return tmp_path


def stale(folder):
    found = deploykit.run(folder / "recipe.toml", explain=True)
    return [stage.name for stage in found.stages if stage.state == "stale"], found


def test_a_ticket_is_exported_once(project):
    first = deploykit.run(project / "recipe.toml")
    assert first.ok, first.gates
    assert [stage.name for stage in first.stages] == ["export", "optimize", "profile here"]
    report = json.loads((project / "out" / "report.json").read_text())
    assert report["source"]["factory"] == "nets:Small"
    assert report["source"]["ticket"]["path"] == "ticket.safetensors"
    assert report["ticket_layers"], "what the ticket keeps is told of a kept export, too"
    assert report["validation"]["inputs"] > 2

    # What comes after the export does not touch it.
    recipe = (project / "recipe.toml").read_text()
    (project / "recipe.toml").write_text(
        recipe + "[options.remove-channels]\ncarry = 'bias-map'\n"
    )
    assert stale(project)[0] == ["optimize", "profile here"]
    second = deploykit.run(project / "recipe.toml")
    assert [stage.state for stage in second.stages] == ["cached", "ran", "ran"]
    assert second.ok
    (project / "recipe.toml").write_text(recipe)
    assert stale(project)[0] == []

    # Everything that it is made of does.
    everything = ["export", "optimize", "profile here"]
    make_ticket(project / "ticket.safetensors", 9)
    names, found = stale(project)
    assert names == everything
    assert found.stages[0].why.startswith("ticket has another content")
    make_ticket(project / "ticket.safetensors", 8)
    assert stale(project)[0] == [], "the same ticket is the same bytes"
    (project / "sizes.py").write_text("WIDTH = 17\n")
    names, found = stale(project)
    assert names == everything
    assert "source sizes.py has another content" in found.stages[0].why


def test_the_model_is_what_its_files_are_now(project, run):
    """A module of the same process, of the same size and second, is another one if its file is."""
    assert run("run", project / "recipe.toml").exit_code == 0
    (project / "sizes.py").write_text("WIDTH = 18\n")
    found = run("run", project / "recipe.toml")
    assert found.exit_code == 2
    assert "ticket" in found.stderr
    assert "[18, 8]" in found.stderr


def test_a_ticket_of_nobody_is_told(project, run):
    (project / "ticket.safetensors").write_bytes(b"no ticket")
    found = run("run", project / "recipe.toml")
    assert found.exit_code in {2, 3}
    assert "ticket.safetensors" in found.stderr
    assert not (project / "out").exists()
