"""`optimize package.module:factory --ticket T`: what a ticket drops is gone, and PyTorch's outputs stay."""

from __future__ import annotations

import hashlib
import json

import jsonschema
import numpy as np
import pytest

import passes
from deploykit import one_file
from deploykit.report.records import schema
from deploykit.runtimes.onnxruntime import Session
from deploykit.ticket import Block, Ticket
from passes.weights import constant
from tests.deploykit import fakes

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.torch

from deploykit.foreign_tickets import read_ticket  # noqa: E402
from deploykit.torch_source import TorchSource, apply_ticket  # noqa: E402
from tests.deploykit import torch_models as nets  # noqa: E402

HERE = "tests.deploykit.torch_models"
IMAGES = "images:1x1x12x12"


def optimize(run, reference, out, *arguments):
    result = run(
        "optimize", f"{HERE}:{reference}", "-o", out, "--no-profile", "--json", *arguments
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema())
    return document


def weights_of(path):
    model = one_file.load(path)
    return {name: constant(value) for name, value in model.graph.initializers.items()}


def expected_of(model, ticket, inputs):
    """What PyTorch computes with the ticket."""
    apply_ticket(model, ticket, of="here", path="there")
    model.eval()
    with torch.no_grad():
        return model(inputs)


def assert_same(path, inputs, expected):
    with Session(path, threads=1) as session:
        found = session.run({session.inputs[0].name: inputs.numpy()})
    scale = float(expected.abs().max())
    assert np.abs(found["output"] - expected.numpy()).max() <= 1e-5 * scale


@pytest.mark.parametrize(
    ("source", "form"), [("Shapes", "columns"), ("Residual", "norms"), ("Residual", "rows")]
)
def test_every_dropped_channel_of_a_residual_network_goes(run, tmp_path, source, form):
    ticket = nets.residual_ticket(form)
    path = tmp_path / "ticket.safetensors"
    ticket.save(path)
    shape = ["--shape", IMAGES] if source == "Residual" else []
    document = optimize(run, source, tmp_path / "out", "--ticket", path, *shape)
    assert document["verdict"] == "smaller"
    found = weights_of(tmp_path / "out" / "model.onnx")
    channels = {"stem": 8, "one.conv1": 8, "one.conv2": 8, "two.conv1": 16, "two.conv2": 16}
    for layer, kept in channels.items():
        weight = found[f"{layer}.weight"]
        dead = ~weight.reshape(len(weight), -1).any(axis=1)
        assert len(weight) - dead.sum() == kept
        # Of channels that are constants, and that somebody reads, one stays to carry the others where a border would tell.
        assert dead.sum() <= (1 if form == "rows" else 0)
    for batch in (1, 3):
        images = torch.randn(batch, 1, 12, 12)
        assert_same(
            tmp_path / "out" / "model.onnx",
            images,
            expected_of(nets.Residual(), ticket, images),
        )
    assert document["source"] == {
        "path": f"{HERE}:{source}",
        "factory": f"{HERE}:{source}",
        "sha256": document["source"]["sha256"],
        "ticket": {
            "path": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "test_metric": 0.75,
            "dense_test_metric": 0.875,
        },
    }
    # The examples of a task say of which sizes its inputs are, and --shape does where there is no task.
    assert not any("leaves sizes open" in each for each in document["warnings"])
    assert "torch" in document["versions"]
    # The two examples of a task come before the generated ones.
    assert document["validation"]["inputs"] == (7 if source == "Shapes" else 5)
    # The original is the dense network with the masks in it.
    assert document["size"]["parameters"]["before"] > 19_000


@pytest.mark.parametrize("form", ["pairs.pt", "masks.safetensors", "zeros.pth"])
def test_state_dicts_are_tickets_too(run, tmp_path, form):
    from safetensors.torch import save_file

    ticket = nets.residual_ticket()
    path = tmp_path / form
    state = {name: torch.from_numpy(array) for name, array in ticket.weights.items()}
    masks = {name: torch.from_numpy(mask) for name, mask in ticket.masks.items()}
    if form == "pairs.pt":
        noise = {f"{name}_orig": state[name] + ~mask * 7.0 for name, mask in masks.items()}
        rest = {name: each for name, each in state.items() if name not in masks}
        torch.save({**rest, **noise, **{f"{n}_mask": m for n, m in masks.items()}}, path)
    elif form == "zeros.pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file({f"{name}_mask": mask.float() for name, mask in masks.items()}, str(path))
    optimize(run, "Residual", tmp_path / "out", "--ticket", path, "--shape", IMAGES)
    assert weights_of(tmp_path / "out" / "model.onnx")["stem.weight"].shape[0] == 8
    model = nets.Residual()
    if form == "masks.safetensors":
        # Masks alone leave the weights to the model, which is made with the same seed each time.
        torch.manual_seed(0)
        model = nets.Residual()
    images = torch.randn(2, 1, 12, 12)
    expected = expected_of(model, read_ticket(path), images)
    assert_same(tmp_path / "out" / "model.onnx", images, expected)


def test_a_model_that_is_pruned_in_memory_needs_no_ticket(run, tmp_path):
    document = optimize(run, "pruned", tmp_path / "out", "--shape", "input:2x12")
    assert document["source"]["ticket"] is None
    assert weights_of(tmp_path / "out" / "model.onnx")["0.weight"].shape == (8, 12)


class SeeBlocks(fakes.DropRows):
    """See the blocks.

    Args:
        blocks: what a ticket brings.
    """

    name = "see-blocks"
    seen = None

    def __init__(self, *, blocks):
        type(self).seen = blocks

    def call(self, model):
        return fakes.report_of(self, modified=False)


def test_blocks_reach_the_passes_under_the_names_of_the_graph(run, tmp_path, monkeypatch):
    state = {name: each.numpy() for name, each in nets.Perceptron().state_dict().items()}
    rows, columns = np.arange(0, 8, 2), np.arange(1, 8)
    blocks = {
        "tokens.weight": (Block(rows, columns), Block(rows + 1, columns - 1)),
        "rows.weight": (Block(np.array([0, 5]), np.array([2, 3])),),
    }
    masks = {name: np.zeros(state[name].shape, bool) for name in blocks}
    for name, parts in blocks.items():
        for part in parts:
            masks[name][np.ix_(part.rows, part.columns)] = True
    weights = {name: array * masks.get(name, np.True_) for name, array in state.items()}
    ticket = tmp_path / "t.safetensors"
    Ticket(masks, weights, blocks).save(ticket)
    arguments = ("Perceptron", tmp_path / "out", "--ticket", ticket, "--shape", "words:2x5x12")
    # Where no pass takes them, the report says that they gain nothing.
    told = optimize(run, *arguments, "--passes", "tidy,remove-channels")["warnings"]
    assert sum("dense blocks in 2 weights" in each for each in told) == 1
    monkeypatch.setattr(passes, "BUILTIN", (SeeBlocks,))
    told = optimize(run, *arguments, "--force")["warnings"]
    assert not any("dense blocks" in each for each in told)
    found = weights_of(tmp_path / "out" / "model.onnx")
    assert SeeBlocks.seen.keys() == blocks.keys()
    assert SeeBlocks.seen["tokens.weight"].is_transposed
    assert not SeeBlocks.seen["rows.weight"].is_transposed
    for name, placed in SeeBlocks.seen.items():
        matrix = found[name].T if placed.is_transposed else found[name]
        inside = np.zeros(matrix.shape, bool)
        for block in placed.blocks:
            inside[np.ix_(block.rows, block.columns)] = True
        np.testing.assert_array_equal(matrix != 0, inside)


def test_the_same_ticket_gives_the_same_model_so_that_plans_fit(run, tmp_path):
    path = tmp_path / "ticket.safetensors"
    nets.residual_ticket().save(path)
    plan = ["--save-plan", tmp_path / "plan.json"]
    dry = run("optimize", f"{HERE}:Shapes", "--ticket", path, "--dry-run", "--json", *plan)
    assert dry.exit_code == 0, dry.stderr
    assert not any("leaves sizes open" in each for each in json.loads(dry.stdout)["warnings"])
    document = optimize(
        run,
        "Shapes",
        tmp_path / "out",
        *("--ticket", path, "--plan", tmp_path / "plan.json"),
    )
    assert document["source"]["sha256"] == json.loads(dry.stdout)["source"]["sha256"]
    repeated = optimize(
        run, "Shapes", tmp_path / "two", "--recipe", tmp_path / "out" / "recipe.toml"
    )
    assert repeated["source"] == document["source"]


def test_a_fixed_batch_and_an_idle_ticket_are_told(run, tmp_path):
    torch.save(nets.Fixed().state_dict(), tmp_path / "dense.pt")
    document = optimize(
        *(run, "Fixed", tmp_path / "out", "--shape", "x:2x8"),
        *("--ticket", tmp_path / "dense.pt"),
    )
    told = " ".join(document["warnings"])
    assert "takes batches of 2 only, because Fixed fixes the size" in told
    assert "drops nothing" in told
    assert document["verdict"] == "unchanged"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{here}:Nothing"], 2, "has no 'Nothing'"),
        (["{here}:number"], 2, "gives a int, and no PyTorch model"),
        (["{here}:needs_width"], 2, "missing 1 required positional argument: 'width'"),
        (["{here}:Broken"], 2, "no such file: weights.bin"),
        (["nowhere.at_all:Net"], 2, "there is no module 'nowhere'"),
        (["{here}:Residual"], 2, "as --shape images:1x3x32x32"),
        (["{here}:Residual", "--shape", "image:1x1x8x8"], 2, "its forward: images"),
        (["{here}:Residual", "--shape", "images:1x3x8x8"], 2, "does not run on its example"),
        (["{here}:Fixed", "--shape", "x:4x8"], 2, "does not run on its example inputs [4, 8]"),
        (["{here}:Chance", "--shape", "x:2x8"], 3, "does not compute in ONNX Runtime"),
        (["{here}:Shapes", "--ticket", "{none}"], 2, "it does not exist"),
        (["{here}:Shapes", "--ticket", "{cut}"], 3, "cut short"),
        (
            ["{here}:Perceptron", "--shape", "words:1x5x12", "--ticket", "{good}"],
            2,
            f"'stem.weight', which is not in '{HERE}:Perceptron'; there are 'tokens.weight', 'mix.weight'",
        ),
        (
            ["{here}:wide", "--shape", IMAGES, "--ticket", "{good}"],
            2,
            "shape [16, 1, 3, 3] for 'stem.weight', which has [24, 1, 3, 3]",
        ),
        (
            ["{here}:Shapes", "--ticket", "{part}"],
            2,
            f"has no weight for 'head.bias' of '{HERE}:Shapes'; 37 others fit. Save the whole",
        ),
        (
            ["{here}:headless", "--shape", IMAGES, "--ticket", "{good}"],
            2,
            f"has 'head.weight', 'head.bias', which '{HERE}:headless' lacks; 36 others fit",
        ),
        (
            ["{here}:Shapes", "--ticket", "{soft}"],
            2,
            "the mask 'head.weight_mask' holds values other than 0 and 1, such as 0.5",
        ),
        (["{good}", "--ticket", "{good}"], 2, "is a model file, and --ticket goes with"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(run, tmp_path, arguments, code, message):
    ticket = nets.residual_ticket()
    paths = {
        name: tmp_path / f"{name}.safetensors"
        for name in ("good", "cut", "part", "soft", "none")
    }
    ticket.save(paths["good"])
    paths["cut"].write_bytes(paths["good"].read_bytes()[:-9])
    weights = {name: each for name, each in ticket.weights.items() if name != "head.bias"}
    Ticket(ticket.masks, weights).save(paths["part"])
    soft = {"head.weight_mask": np.full((10, 32), 0.5, np.float32)}
    Ticket({}, {**ticket.weights, **soft}).save(paths["soft"])
    filled = [argument.format(here=HERE, **paths) for argument in arguments]
    result = run("optimize", *filled, "-o", tmp_path / "out")
    assert result.exit_code == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_source_is_opened_once_and_the_ticket_is_no_prey(run, tmp_path):
    path = tmp_path / "out" / "ticket.safetensors"
    path.parent.mkdir()
    nets.residual_ticket().save(path)
    before = path.read_bytes()
    reference = f"{HERE}:Shapes"
    result = run("optimize", reference, "--ticket", path, "-o", path.parent, "--force")
    assert result.exit_code == 2
    assert "'ticket.safetensors' lies there" in result.stderr
    assert path.read_bytes() == before


def test_a_class_an_instance_and_a_wrapped_module_are_the_same_to_it(tmp_path):
    written = []
    for reference, shapes in (
        ("Shapes", {}),
        ("instance", {}),
        ("parallel", {"images": (1, 1, 12, 12)}),
    ):
        folder = tmp_path / reference
        folder.mkdir()
        source = TorchSource(f"{HERE}:{reference}", shapes=shapes)
        written.append(source.write(folder))
    assert len({each.path.read_bytes() for each in written}) == 1
    assert [len(each.examples) for each in written] == [2, 2, 0]
