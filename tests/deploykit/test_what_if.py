"""`profile --what-if`: what it tells is what is measured once it is so, and what it cannot tell it refuses with the reason."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import passes
from benchmarks import nets
from deploykit.errors import UsageError
from deploykit.profile import Settings, measure
from deploykit.report.profile_records import schema
from deploykit.what_if.asks import parse, parse_budget
from deploykit.what_if.network import Network
from deploykit.what_if.surrogates import Bench
from passes.analysis.macs import count_macs
from passes.targets import TARGETS
from tests.deploykit.narrow_nets import make_residual

FAST = ("--duration", "0.05", "--warmup", "0", "--rebuilds", "2")
CPU = TARGETS["onnxruntime-cpu-avx2"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "residual.onnx"
    onnx.save(make_residual(), path)
    return path


def bench(model=None, **options):
    loaded = ir.from_proto(model or make_residual(batch=1))
    return Bench(loaded, {"x": (1, 16, 16, 16)}, CPU, **options)


# ------------------------------------------------------------------------------- what is made


@pytest.mark.parametrize("name", ["resnet18-cifar", "mobilenetv2"])
def test_sizes_at_any_counts_are_those_of_the_network_cut_there(name):
    net = nets.build(name)
    size = 32 if name.endswith("cifar") else 224
    network = Network(net, {"input": (1, 3, size, size)})
    assert network.total("macs", network.full) == nets.macs(net)
    dice = np.random.default_rng(0)
    counts = tuple(int(dice.integers(1, full + 1)) for full in network.full)
    cut, pruning = network.cut(counts)
    assert network.total("macs", counts) == nets.macs(cut) == pruning.macs[1]
    held = {
        value.name: int(np.prod(value.shape.numpy()))
        for value in cut.graph.initializers.values()
        if len(value.shape) > 1
    }
    weights = {layer.weight for layer in network.layers}
    assert network.total("weights", counts) == sum(held[name] for name in weights if name)
    for weight, (keep, _) in network.by_weight(counts).items():
        assert cut.graph.initializers[weight].shape[0] == keep


def test_shares_become_the_nearest_multiples_and_named_layers_win():
    counts = bench().counts_at(parse("channels=0.5"))
    assert counts == (32, 32, 32)
    assert bench().counts_at(parse("channels=0.6")) == (40, 40, 40)
    assert bench(multiple=1).counts_at(parse("channels=0.6")) == (38, 38, 38)
    mixed = bench().build(parse("channels=0.5,channels=0.25@inner"))
    assert mixed.kept == {
        "first.weight": (32, 64),
        "inner.weight": (16, 64),
        "outer.weight": (32, 64),
        "last.weight": (32, 64),
    }
    # The head makes the outputs of the model, which are its interface.
    assert any(
        "head.weight" in skip.subject and "output" in skip.reason for skip in mixed.skips
    )


def test_one_layer_takes_along_what_is_tied_to_it_and_nothing_else():
    made = bench().build(parse("channels=0.5@first"))
    assert made.kept == {"first.weight": (32, 64), "outer.weight": (32, 64)}
    assert bench().build(parse("channels=0.5@out*")).kept == made.kept


def test_odd_counts_are_tried_aligned_as_well():
    forms = bench(multiple=1).build(parse("channels=0.6")).forms
    assert next(iter(forms)) == "as is"
    aligned = forms["align-channels multiple=8"]
    assert aligned.graph.initializers["inner.weight"].shape == (40, 40, 3, 3)
    assert forms["as is"].graph.initializers["inner.weight"].shape == (38, 38, 3, 3)


@pytest.mark.parametrize(("ask", "share"), [("blocks=4", 0.25), ("blocks=0.5", 0.5)])
def test_blocks_are_planted_and_computed_block_by_block(ask, share):
    made = bench().build(parse(ask))
    plain = count_macs(ir.from_proto(make_residual(batch=1)), {"x": (1, 16, 16, 16)})
    left = count_macs(made.forms["as is"], {"x": (1, 16, 16, 16)})
    first = 16 * 64 * 9 * 16 * 16
    head = 640
    assert left < plain
    # All but the first convolution, which reads the input, and the head can have blocks.
    assert left >= share * (plain - first - head) + first
    assert any(node.attributes.get_int("group", 1) > 1 for node in made.forms["as is"].graph)
    skipped = {skip.subject: skip.reason for skip in made.skips}
    assert "reads the input of the model" in skipped["first.weight"]
    assert "too small" in skipped["head.weight"]


def test_two_to_four_is_made_for_those_who_have_kernels_for_it():
    loaded = ir.from_proto(make_residual(batch=1))
    made = Bench(loaded, {"x": (1, 16, 16, 16)}, TARGETS["tensorrt"]).build(parse("2:4@inner"))
    (form, *_) = made.forms.values()

    def zeros(name):
        return float((form.graph.initializers[name].const_value.numpy() == 0).mean())

    assert zeros("inner.weight") == 0.5
    assert zeros("outer.weight") == 0.0
    assert "sparse kernels" in made.assumed[-1]


# ------------------------------------------------------------------------------- what is told


def test_a_prediction_is_what_a_pruned_model_then_takes(run, tmp_path):
    """Made independently: zeros are planted at random, and removed by the pass that removes what is dead."""
    dense = tmp_path / "dense.onnx"
    onnx.save(make_residual(width=96, size=32), dense)
    result = run("profile", dense, "--what-if", "channels=0.5", "--duration", "0.5", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema("profile"))
    (told,) = document["what_if"]["predictions"]
    zeroed = ir.from_proto(make_residual(width=96, size=32, zeroed=48))
    passes.Tidy()(zeroed)
    passes.RemoveChannels()(zeroed)
    passes.InferShapes()(zeroed)
    assert zeroed.graph.initializers["inner.weight"].shape == (48, 48, 3, 3)
    ir.save(zeroed, tmp_path / "pruned.onnx")
    feeds = {"x": np.ones((1, 16, 32, 32), np.float32)}
    paths = {"dense": dense, "pruned": tmp_path / "pruned.onnx"}
    taken = measure(paths, feeds, settings=Settings(duration_s=0.5, rebuilds=2))
    cpu = [np.median(taken.samples[name].cpu_s) for name in ("pruned", "dense")]
    assert 1 / 1.35 < told["ratio"] / (cpu[0] / cpu[1]) < 1.35
    assert told["ratio"] < 0.6
    assert told["parameters"][1] == passes.weights.parameter_count(zeroed)


def test_the_report_has_every_layer_before_and_after(run, model):
    asks = ("--what-if", "channels=0.5", "--what-if", "2:4")
    result = run("profile", model, *asks, *FAST, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema("profile"))
    assert [each["name"] for each in document["models"]] == ["residual.onnx", "channels=0.5"]
    for each in document["models"]:
        assert {"first", "inner", "outer", "last"} <= {row["name"] for row in each["layers"]}
    found = document["what_if"]
    (told,) = found["predictions"]
    (relative,) = document["relative"]
    assert (told["ratio"], told["ci95"]) == (relative["ratio"], relative["ci95"])
    before, after = told["macs"]
    assert after / before == pytest.approx(0.27, abs=0.03)
    # Zeros make nothing faster here, and no number is made up for them.
    (refused,) = found["refused"]
    assert refused["name"] == "2:4"
    assert "there are no sparse kernels" in refused["reason"]
    text = run("profile", model, *asks, *FAST).stdout
    for word in ("channels=0.5", "assumed", "no sparse kernels", "inner"):
        assert word in text


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("asks", "code", "said"),
    [
        (["channels=1.5"], 2, "above 0 and below 1"),
        (["channels=0"], 2, "above 0 and below 1"),
        (["channels=half"], 2, "is none. There are: channels=0.5"),
        (["blocks=1"], 2, "give 2 or more"),
        (["blocks=2.5"], 2, "give 2 or more"),
        (["rows=2"], 2, "is none"),
        (["channels=0.5@"], 2, "names no layers after '@'"),
        (["channels=0.5@nowhere*"], 2, "none of that name. It has 'first', 'inner'"),
        (["channels=0.5", "channels=0.5"], 2, "asked for twice"),
        (["channels=0.5@first,channels=0.25@outer"], 2, "which are tied"),
        (["channels=0.5,channels=0.25"], 2, "two things of the same layers"),
        (["counts=nowhere.json"], 2, "cannot read the counts 'nowhere.json'"),
        (["2:4"], 4, "no sparse kernels"),
        (["channels=0.5@head"], 3, "changes nothing in this model"),
        (["channels=0.97"], 3, "changes nothing in this model"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(run, model, asks, code, said):
    arguments = [part for ask in asks for part in ("--what-if", ask)]
    result = run("profile", model, *arguments, *FAST)
    assert result.exit_code == code, result.output
    assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--what-if", "channels=0.5", "--allocate", "macs=0.5"), "Ask for one at a time"),
        (("--least", "0.5"), "--least belongs to --allocate"),
        (("--html", "x.html"), "--html belongs to"),
        (("--save-plan", "x.json", "--roofline"), "--save-plan belongs to --allocate"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, model, arguments, said):
    result = run("profile", model, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_one_model_is_asked(run, model):
    result = run("profile", model, model, "--what-if", "channels=0.5")
    assert result.exit_code == 2
    assert "asked of one model, and 2 are given" in result.stderr


def test_commas_join_and_names_may_hold_them():
    (one, other) = parse("channels=0.5@a,b,blocks=4@c").asks
    assert (one.layers, other.layers) == ("a,b", "c")
    assert parse_budget("macs=0.5") == ("macs", 0.5)
    for text in ("macs", "time=0.5", "weights=2"):
        with pytest.raises(UsageError):
            parse_budget(text)
