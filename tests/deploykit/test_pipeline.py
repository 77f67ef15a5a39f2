"""From a model to a result folder: with passes of known effect, and measurements of known outcome."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

import passes
from deploykit import pipeline
from deploykit.choice import ORIGINAL
from deploykit.errors import ModelError
from deploykit.profile import Measurement, Settings, Timings, paired_ratio, summarize
from deploykit.profile.layer_times import LayerProfile, LayerTime
from deploykit.report.records import Staircase, schema
from tests.deploykit import fakes
from tests.deploykit.conftest import make_network


@pytest.fixture
def measured(monkeypatch):
    """Replace measuring by costs: a time for every form by its name, with a noise of one percent."""
    costs = {ORIGINAL: 1.0}
    calls = []

    def measure(
        models, feeds, *, baseline, threads, settings, progress, runner, place, runtime
    ):
        assert runner is None
        assert place.is_local
        assert runtime == "onnxruntime"
        calls.append((list(models), settings))
        for path in models.values():
            onnx.checker.check_model(str(path), full_check=True)
        progress(0.5)
        rounds = np.repeat(np.arange(3), 10)
        samples = {}
        for seed, name in enumerate(models):
            noise = np.random.default_rng(seed).normal(0, 0.01, rounds.size)
            time = 1e-3 * costs[name] * np.exp(noise)
            samples[name] = Timings(rounds, time, time)
        ratios = {
            name: paired_ratio(samples[baseline], each)
            for name, each in samples.items()
            if name != baseline
        }
        return Measurement(
            baseline=baseline,
            samples=samples,
            latencies={name: summarize(each, "cpu") for name, each in samples.items()},
            ratios=ratios,
            clock="cpu",
            clean_share=1.0,
            threads=threads,
            runtime="fake 1.0",
            providers=("fake",),
            settings=settings,
            truncated=False,
            elapsed_s=1.0,
        )

    monkeypatch.setattr(pipeline, "measure", measure)
    monkeypatch.setattr(pipeline.closeups, "profile_layers", profile_layers)
    monkeypatch.setattr(pipeline.closeups, "sweep", sweep)
    return costs, calls


def profile_layers(path, feeds, *, threads, duration_s, place):
    """Every node takes as many microseconds as its output has elements."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    sizes = {value.name: value.type.tensor_type.shape.dim[-1].dim_value
             for value in (*model.graph.value_info, *model.graph.output)}  # fmt: skip
    layers = tuple(
        LayerTime(node.name, node.op_type, 1e-6 * sizes[node.output[0]], ())
        for node in model.graph.node
    )
    return LayerProfile(layers, 1.0, 1.0, 0.0)


def sweep(place, as_is, folder, *, multiples, threads, budget_s, progress, on):
    assert list(folder.iterdir()) == []
    progress(0.5)
    if place.layer.weight == "w2":
        raise ModelError("it does not run alone")
    counts = tuple(sorted({place.before, as_is, place.after, 1}))
    seconds = tuple(1e-6 * count for count in counts)
    return Staircase(
        place.layer.node, place.layer.weight, "Gemm", "output channels", "Gemm of 1 x 256", counts, seconds,
        seconds, seconds, place.before, as_is, place.after, tuple(multiples), "cpu", 9,
    )  # fmt: skip


@pytest.fixture
def built_in(monkeypatch):
    def choose(*kinds):
        monkeypatch.setattr(passes, "BUILTIN", kinds)

    choose(fakes.DropRows)
    return choose


def optimize(run, network, out, *arguments):
    result = run("optimize", network, "-o", out, "--json", *arguments)
    assert result.exit_code in {0, 1}, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema())
    assert json.loads((out / "report.json").read_text()) == document
    return document


def outputs(path, feeds):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )[0]


def same_function(one, other):
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 256)).astype(np.float32)}
    return np.allclose(outputs(one, feeds), outputs(other, feeds), rtol=1e-5, atol=1e-5)


def chosen(document):
    return [row["name"] for row in document["candidates"] if row["chosen"]]


def test_dead_rows_go_and_everything_is_reported(run, network, tmp_path, built_in, measured):
    measured[0]["as is"] = 0.5
    before = network.read_bytes()
    out = tmp_path / "out"
    document = optimize(run, network, out)
    assert document["verdict"] == "faster"
    assert {file.name for file in out.iterdir()} == {
        *("model.onnx", "report.json", "report.html", "recipe.toml")
    }
    assert document["size"]["parameters"] == {
        "before": 64 * 256 + 64 + 4 * 64 + 4,
        "after": 32 * 256 + 32 + 4 * 32 + 4,
    }
    assert document["size"]["bytes"]["after"] == (out / "model.onnx").stat().st_size
    assert document["size"]["macs"]["after"] * 2 == document["size"]["macs"]["before"]
    assert document["passes"][0]["changes"][0]["before"] == 64
    assert document["layers"][0]["outputs"] == {"before": 64, "after": 32}
    assert document["validation"]["verdict"] == "equal"
    assert document["validation"]["inputs"] >= 5
    low, high = document["profile"]["ratio"]["ci95"]
    assert low < 0.5 < high < 0.52
    assert same_function(network, out / "model.onnx")
    assert network.read_bytes() == before
    assert list(tmp_path.glob(".out*")) == [], "nothing is left beside the result"


def test_layers_are_looked_at_on_the_device(run, network, tmp_path, built_in, measured):
    measured[0]["as is"] = 0.5
    document = optimize(run, network, tmp_path / "out")
    assert document["layer_times"][0] == {
        "name": "hidden", "op_type": "Gemm", "before_s": 64e-6, "after_s": 32e-6,
    }  # fmt: skip
    (stairs,) = document["staircases"]
    assert (stairs["layer"], stairs["before"], stairs["as_is"], stairs["after"]) == (
        "hidden",
        64,
        32,
        32,
    )
    samples = document["profile"]["samples"]
    assert np.percentile(samples["optimized"]["cpu_s"], 90) == pytest.approx(
        document["profile"]["optimized"]["p90_s"], abs=2e-9
    )
    assert samples["baseline"]["rebuild"] == [0] * 10 + [1] * 10 + [2] * 10
    shown = (tmp_path / "out" / "report.html").read_text()
    assert "The staircase of this device" in shown
    assert f'data-value="{stairs["seconds"][-1]}"' in shown


def test_a_layer_that_cannot_be_timed_alone_costs_a_picture_only(
    run, tmp_path, built_in, measured
):
    path = tmp_path / "dense.onnx"
    onnx.save(make_network(dead=0, classes=16), path)
    measured[0]["as is"] = 1.0
    document = optimize(run, path, tmp_path / "out")
    assert [each["weight"] for each in document["staircases"]] == ["w1"]
    assert "no staircase of 'w2': it does not run alone" in document["warnings"]


def test_a_slower_removal_leaves_the_original_to_the_byte(
    run, network, tmp_path, built_in, measured
):
    measured[0]["as is"] = 1.3
    document = optimize(run, network, tmp_path / "out")
    assert document["verdict"] == "unchanged"
    assert chosen(document) == [ORIGINAL]
    assert "slower than the original" in document["reason"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == network.read_bytes()
    assert document["profile"]["ratio"]["median"] == 1.0


def test_a_model_without_zeros_is_unchanged(run, tmp_path, built_in, measured):
    path = tmp_path / "dense.onnx"
    onnx.save(make_network(dead=0), path)
    measured[0]["as is"] = 1.0
    document = optimize(run, path, tmp_path / "out")
    assert document["verdict"] == "unchanged"
    assert "nothing worth while could be removed" in document["reason"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("named", [(), ("--passes", "permute-channels,group-blocks")])
def test_what_is_there_leaves_a_model_without_zeros_to_the_byte(run, tmp_path, measured, named):
    path = tmp_path / "dense.onnx"
    onnx.save(make_network(dead=0), path)
    measured[0]["as is"] = 1.0
    document = optimize(run, path, tmp_path / "out", *named)
    assert document["verdict"] == "unchanged"
    assert "permute-channels" in {each["name"] for each in document["passes"]}
    # No form with blocks either: nothing but the original and what the passes make of it is measured.
    assert set().union(*(names for names, _ in measured[1])) <= {ORIGINAL, "as is"}
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("given", "purpose", "pattern"),
    [
        ([], "group-blocks", "2:4"),
        (["--passes", "permute-channels"], "sparse-2-4", "2:4"),
        (["--passes", "permute-channels,group-blocks,sparse-2-4"], "group-blocks", "2:4"),
        (["--passes", "permute-channels,sparse-2-4"], "sparse-2-4", "2:4"),
        (["--set", "sparse-2-4.force=magnitude"], "sparse-2-4", "2:4"),
        (
            ["--set", "sparse-2-4.force=magnitude", "--set", "sparse-2-4.pattern=1:4"],
            "sparse-2-4",
            "1:4",
        ),
        (["--set", "permute-channels.purpose=sparse-2-4"], "sparse-2-4", "2:4"),
    ],
)
def test_channels_are_put_in_order_for_what_follows(
    run, network, tmp_path, monkeypatch, given, purpose, pattern
):
    made = []

    class Told(passes.PermuteChannels):
        def call(self, model):
            made.append((self.purpose, self.pattern))
            return super().call(model)

    builtin = tuple(Told if each is passes.PermuteChannels else each for each in passes.BUILTIN)
    monkeypatch.setattr(passes, "BUILTIN", builtin)
    optimize(run, network, tmp_path / "out", "--no-profile", *given)
    assert set(made) == {(purpose, pattern)}


@pytest.mark.parametrize("wrong", ["4:2", "2", "2:1000000"])
def test_a_wrong_pattern_is_that_of_the_pass_that_it_was_given_to(
    run, network, tmp_path, wrong
):
    given = ("--no-profile", "--set", f"sparse-2-4.pattern={wrong}")
    result = run("optimize", network, "-o", tmp_path / "out", *given)
    assert result.exit_code == 2
    assert f"an option of 'sparse-2-4' is wrong: '{wrong}' is no pattern" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("one", "forty", "expected"),
    [(0.499, 0.6, "as is"), (0.45, 0.6, "repeat times=1"), (0.45, 0.3, "repeat times=40")],
)
def test_structure_is_chosen_only_for_a_gain(
    run, network, tmp_path, built_in, measured, one, forty, expected
):
    built_in(fakes.DropRows, fakes.Repeat)
    measured[0].update({"as is": 0.5, "repeat times=1": one, "repeat times=40": forty})
    document = optimize(run, network, tmp_path / "out")
    assert chosen(document) == [expected]
    assert document["validation"]["verdict"] == "equal"
    assert (
        len(onnx.load(tmp_path / "out" / "model.onnx").graph.node)
        == document["size"]["nodes"]["after"]
    )


def test_many_forms_are_screened_before_few_are_measured(
    run, network, tmp_path, built_in, measured, monkeypatch
):
    built_in(fakes.DropRows, fakes.Repeat)
    variants = tuple({"times": times} for times in range(1, 6))
    monkeypatch.setattr(fakes.Repeat, "variants", classmethod(lambda cls, target: variants))
    costs, calls = measured
    costs.update(
        {"as is": 0.5, **{f"repeat times={times}": 0.5 - times / 25 for times in range(1, 6)}}
    )
    document = optimize(run, network, tmp_path / "out", "--duration", 7)
    assert chosen(document) == ["repeat times=5"]
    (screened, quick), (final, long) = calls
    assert len(screened) == 7
    assert final == [ORIGINAL, "as is", "repeat times=3", "repeat times=4", "repeat times=5"]
    assert quick.duration_s < long.duration_s == 7
    notes = {row["name"]: row["note"] for row in document["candidates"]}
    assert notes["repeat times=1"] == "behind in the screening"


def test_a_wrong_removal_writes_no_model(run, network, tmp_path, built_in, measured):
    built_in(fakes.Break)
    out = tmp_path / "out"
    document = optimize(run, network, out)
    assert document["verdict"] == "differs"
    assert document["validation"]["verdict"] == "differs"
    assert document["model"] is None
    assert not (out / "model.onnx").exists()
    assert "bug" in document["reason"]
    assert run("optimize", network, "-o", tmp_path / "again").exit_code == 1


class BreakMore(fakes.Repeat):
    """Break the function in one variant, and raise in the other."""

    name = "break-more"

    def call(self, model):
        if self.times == 40:
            raise ZeroDivisionError("forty")
        report = fakes.Break.call(fakes.Break(), model)
        return fakes.report_of(self, modified=report.modified)


def test_a_wrong_form_is_told_and_not_chosen(run, network, tmp_path, built_in, measured):
    built_in(fakes.DropRows, BreakMore)
    measured[0].update({"as is": 0.5, "break-more times=1": 0.1})
    document = optimize(run, network, tmp_path / "out")
    assert chosen(document) == ["as is"]
    assert same_function(network, tmp_path / "out" / "model.onnx")
    told = "\n".join(document["warnings"])
    assert (
        "'break-more times=1' was not considered: bug in deploykit: its outputs differ" in told
    )
    assert (
        "'break-more times=40' was not considered: bug in deploykit: ZeroDivisionError: forty"
        in told
    )


def test_a_refusing_pass_writes_nothing(run, network, tmp_path, built_in, measured):
    built_in(fakes.DropRows, fakes.Refuse)
    result = run("optimize", network, "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert "pass 'refuse' failed (after drop-rows): cannot handle 'network'" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_lossy_passes_run_by_name_only_and_show_the_change(
    run, network, tmp_path, built_in, measured
):
    built_in(fakes.DropRows, fakes.Halve)
    measured[0]["as is"] = 0.5
    document = optimize(run, network, tmp_path / "exact")
    assert [record["name"] for record in document["passes"]] == ["drop-rows"]
    document = optimize(run, network, tmp_path / "lossy", "--passes", "halve,drop-rows")
    assert [record["name"] for record in document["passes"]] == ["halve", "drop-rows"]
    assert document["validation"]["verdict"] == "differs"
    assert document["verdict"] == "faster"
    assert not same_function(network, tmp_path / "lossy" / "model.onnx")


def test_without_measuring_only_the_plain_form_is_made(
    run, network, tmp_path, built_in, measured
):
    built_in(fakes.DropRows, fakes.Repeat)
    document = optimize(run, network, tmp_path / "out", "--no-profile")
    assert measured[1] == []
    assert document["verdict"] == "smaller"
    assert document["profile"] is None
    assert any("'repeat' did not run" in warning for warning in document["warnings"])


def test_a_set_option_is_not_varied(run, network, tmp_path, built_in, measured):
    built_in(fakes.DropRows, fakes.Repeat)
    measured[0]["as is"] = 0.5
    document = optimize(run, network, tmp_path / "out", "--set", "repeat.times=3")
    assert [row["name"] for row in document["candidates"]] == [ORIGINAL, "as is"]
    assert document["size"]["nodes"]["after"] == 6


def test_masks_define_the_original(run, tmp_path, built_in, measured):
    dense = tmp_path / "dense.onnx"
    onnx.save(make_network(dead=0), dense)
    zeroed = tmp_path / "zeroed.onnx"
    model = make_network(dead=0)
    masks = {"w1": np.ones((64, 256), bool), "b1_mask": np.ones(64)}
    masks["w1"][10:20] = 0
    masks["b1_mask"][10:20] = 0
    for array in model.graph.initializer:
        mask = masks.get(array.name, masks.get(f"{array.name}_mask"))
        if mask is not None:
            values = onnx.numpy_helper.to_array(array) * mask
            array.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), array.name))
    onnx.save(model, zeroed)
    np.savez(tmp_path / "masks.npz", **masks)
    measured[0]["as is"] = 0.9
    document = optimize(run, dense, tmp_path / "out", "--masks", tmp_path / "masks.npz")
    assert document["layers"][0]["outputs"] == {"before": 64, "after": 54}
    assert document["validation"]["verdict"] == "equal"
    assert same_function(zeroed, tmp_path / "out" / "model.onnx")
    assert not same_function(dense, tmp_path / "out" / "model.onnx")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w1": np.ones((2, 2))}, "the mask 'w1' has shape [2, 2], its weight [64, 256]"),
        ({"w1": np.full((64, 256), 0.5)}, "'w1' holds values other than 0 and 1, such as 0.5"),
        (
            {"w1": np.full((64, 256), "yes")},
            "'w1' holds values other than 0 and 1, such as yes",
        ),
        ({}, "holds no mask"),
    ],
)
def test_a_mask_that_does_not_fit_is_told(run, network, tmp_path, built_in, masks, message):
    np.savez(tmp_path / "masks.npz", **masks)
    result = run("optimize", network, "-o", tmp_path / "out", "--masks", tmp_path / "masks.npz")
    assert result.exit_code == 2
    assert message in result.stderr


def test_external_data_stays_external(run, external_network, tmp_path, built_in, measured):
    measured[0]["as is"] = 0.5
    before = (external_network.parent / "weights.bin").read_bytes()
    document = optimize(run, external_network, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size < len(before)
    assert same_function(external_network, tmp_path / "out" / "model.onnx")
    assert (external_network.parent / "weights.bin").read_bytes() == before
    measured[0]["as is"] = 2.0
    document = optimize(run, external_network, tmp_path / "slower")
    assert document["verdict"] == "unchanged"
    assert same_function(external_network, tmp_path / "slower" / "model.onnx")


def test_real_inputs_are_what_is_measured(run, network, tmp_path, built_in, monkeypatch):
    real = np.full((7, 256), 3, np.float32)
    np.savez(tmp_path / "real.npz", x=real)
    seen = {}

    def measure(models, feeds, **_):
        seen.update(feeds)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "measure", measure)
    result = run("optimize", network, "-o", tmp_path / "out", "--inputs", tmp_path / "real.npz")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    np.testing.assert_array_equal(seen["x"], real)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*")) == []


def test_the_dump_shows_every_step(run, network, tmp_path, built_in, measured):
    measured[0]["as is"] = 0.5
    optimize(run, network, tmp_path / "out", "--dump-dir", tmp_path / "dump")
    files = sorted(file.name for file in (tmp_path / "dump").iterdir())
    assert files == ["000_source.txt", "010_drop-rows.txt"]
    assert "[64,256]" in (tmp_path / "dump" / files[0]).read_text()
    assert "[32,256]" in (tmp_path / "dump" / files[1]).read_text()
    (tmp_path / "dump" / "thesis.txt").write_text("years of work")
    result = run("optimize", network, "-o", tmp_path / "two", "--dump-dir", tmp_path / "dump")
    assert result.exit_code == 2
    assert (tmp_path / "dump" / "thesis.txt").read_text() == "years of work"


def test_the_recipe_repeats_the_run(run, network, tmp_path, built_in, measured, monkeypatch):
    measured[0]["as is"] = 0.5
    optimize(run, network, tmp_path / "one", "--keep", "w1", "--threads", 2)
    document = optimize(
        run, network, tmp_path / "two", "--recipe", tmp_path / "one" / "recipe.toml"
    )
    assert document["passes"][0]["skipped"][0]["subject"] == "w1"
    assert document["profile"]["threads"] == 2


def test_real_passes_and_real_measurements(run, network, tmp_path):
    document = optimize(
        run, network, tmp_path / "out", "--duration", 0.01, "--shape", "x:2x256"
    )
    assert [record["name"] for record in document["passes"]][:2] == ["tidy", "remove-channels"]
    assert document["validation"]["verdict"] == "equal"
    assert same_function(network, tmp_path / "out" / "model.onnx")
    if document["verdict"] != "unchanged":
        assert document["layers"][0]["outputs"]["after"] < 64


def test_settings_reach_the_final_measurement(run, network, tmp_path, built_in, measured):
    measured[0]["as is"] = 0.5
    optimize(run, network, tmp_path / "out", "--duration", 0.25)
    assert measured[1] == [([ORIGINAL, "as is"], Settings(duration_s=0.25))]


def test_what_is_added_to_a_pruned_form_must_compute_what_it_computes(
    run, network, tmp_path, built_in, measured
):
    class BreakMore(fakes.Break):
        """Add structure that changes the function, and claim that it does not."""

        adds_structure = True

        def __init__(self, *, hard: bool) -> None:
            super().__init__()
            self.hard = hard

        @classmethod
        def variants(cls, target):
            del target
            return ({"hard": True},)

    built_in(fakes.Halve, BreakMore)
    measured[0].update({"as is": 0.9, "break hard=True": 0.2})
    document = optimize(run, network, tmp_path / "out", "--passes", "halve,break")
    assert chosen(document) == ["as is"]
    notes = {row["name"]: row["note"] for row in document["candidates"]}
    assert "its outputs differ from those of 'as is'" in notes["break hard=True"]
