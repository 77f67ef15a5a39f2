"""Counts that save the most time: the search against brute force, and counts on their way into `optimize` and `find`."""

from __future__ import annotations

import itertools
import json

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploykit import channel_counts
from deploykit.channel_counts import ChannelCounts
from deploykit.errors import ModelError, UsageError
from deploykit.report.profile_records import schema
from deploykit.what_if.allocation import Problem, Term, allocate, uniform
from deploykit.what_if.latency_table import LayerTable, _spread, resized
from tests.deploykit.narrow_nets import make_residual

FAST = ("--duration", "0.05", "--warmup", "0", "--rebuilds", "2")


# ------------------------------------------------------------------------------- the search


def steps(count, block):
    """Time of a runtime that computes channels in blocks."""
    return -(-count // block) * block


def problem_of(seed, groups=4):
    """A chain of layers, each between two groups, with stairs in their times."""
    dice = np.random.default_rng(seed)
    choices = [tuple(range(8, 8 * int(dice.integers(3, 6)) + 1, 8)) for _ in range(groups)]
    pairs = [(index, index + 1) for index in range(groups - 1)]
    pairs += [tuple(sorted(dice.choice(groups, 2, replace=False).tolist()))]
    terms = []
    for one, other in pairs:
        cost, size, block = (
            dice.uniform(0.2, 5),
            dice.uniform(0.2, 5),
            int(dice.choice([8, 16])),
        )
        terms.append(
            Term(
                (one, other),
                lambda c, one=one, other=other, cost=cost, block=block: (
                    1e-6 * cost * steps(c[one], block) * steps(c[other], block) + 1e-5
                ),
                lambda c, one=one, other=other, size=size: size * c[one] * c[other],
            )
        )
    return Problem(choices, terms, fixed_s=1e-4, fixed=10.0)


def best_of_all(problem, least):
    """The least time of all combinations that leave enough."""
    fitting = (
        each for each in itertools.product(*problem.choices) if problem.sums(each)[1] >= least
    )
    return min(problem.sums(each)[0] for each in fitting)


@pytest.mark.parametrize("share", [0.3, 0.42, 0.7, 0.95])
def test_the_search_finds_what_trying_everything_finds(share):
    exact = 0
    for seed in range(25):
        problem = problem_of(seed)
        least = share * problem.sums(problem.full)[1]
        counts = allocate(problem, least)
        assert counts == allocate(problem_of(seed), least)
        seconds, left = problem.sums(counts)
        assert left >= least
        best_s = best_of_all(problem, least)
        assert best_s - 1e-12 <= seconds <= 1.1 * best_s
        exact += seconds <= best_s * (1 + 1e-9)
        even = uniform(problem, least)
        assert problem.sums(even)[1] >= least
        assert seconds <= problem.sums(even)[0] + 1e-12
    assert exact >= 24


def test_edges_of_the_search():
    problem = problem_of(0)
    most = problem.sums(problem.full)[1]
    assert problem.sums(allocate(problem, most))[1] == pytest.approx(most)
    assert allocate(problem, 0.0) == problem.floor
    with pytest.raises(ModelError, match="Ask for less"):
        allocate(problem, 1.01 * most)


def test_channels_stay_where_they_cost_little_time():
    """Two layers of equal size, one of which takes ten times as long."""
    choices = [tuple(range(8, 65, 8))] * 2
    terms = [
        Term((group,), lambda c, g=group, s=slow: s * c[g], lambda c, g=group: float(c[g]))
        for group, slow in ((0, 10.0), (1, 1.0))
    ]
    assert allocate(Problem(choices, terms), 0.6 * 128) == (16, 64)


# ------------------------------------------------------------------------------- the table


def test_times_between_counts_of_the_grid_are_interpolated():
    table = LayerTable(None, ("a",), (8, 16), (16, 32, 64), np.array([[1.0, 2, 4], [3, 4, 6]]))
    assert table.at(8, 16) == 1
    assert table.at(12, 24) == pytest.approx((1.5 + 3.5) / 2)
    assert table.at(16, 48) == pytest.approx(5)
    assert (table.at(4, 8), table.at(99, 99)) == (1, 6)
    assert table.ratio(16, 64) == 1
    assert _spread([16, 24, 32], 16, 32, 4) == [16, 24, 32]
    spread = _spread(list(range(16, 513, 16)), 128, 512, 4)
    assert spread[0] == 16
    assert spread[-1] == 512
    assert _spread([], 100, 1000, 4)[1:-1] == [
        each for each in _spread([], 100, 1000, 4)[1:-1] if each % 16 == 0
    ]


def test_a_layer_is_built_at_other_inputs():
    from deploykit.what_if.latency_table import _find_kinds
    from deploykit.what_if.network import Network

    network = Network(ir.from_proto(make_residual(batch=1)), {"x": (1, 16, 16, 16)})
    kinds = {
        layers[0].name: (place, layers)
        for place, layers in _find_kinds(network, {"x": (1, 16, 16, 16)})
    }
    assert {"first", "inner", "last", "head"} == set(kinds)
    # Both are 3x3 convolutions of 64 channels on the same sizes: they are timed once.
    assert [layer.name for layer in kinds["inner"][1]] == ["inner", "outer"]
    place = resized(kinds["inner"][0], 24)
    assert place.weight_shape(40) == (40, 24, 3, 3)
    assert place.input_shape == (1, 24, 16, 16)
    assert resized(kinds["head"][0], 24).weight_shape(10) == (10, 24)


# ------------------------------------------------------------------------------- counts on disk


def test_counts_come_back_from_disk(tmp_path):
    counts = ChannelCounts({"a": 8, "b": 3}, {"a": 16}, {"path": "m.onnx"}, {"weights": 0.42})
    channel_counts.write(counts, tmp_path / "c.json")
    assert channel_counts.read(tmp_path / "c.json") == counts
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "are not JSON"),
        ("[]", "holds no counts of channels"),
        ('{"kind": "plan"}', "goes with --plan"),
        ('{"kind": "channel-counts", "schema_version": "2.0"}', "have the version '2.0'"),
        ('{"kind": "channel-counts", "schema_version": "1.0", "counts": []}', "name no weight"),
        (
            '{"kind": "channel-counts", "schema_version": "1.0", "counts": [{"weight": "a", "keep": 0}]}',
            "a number from 1 on",
        ),
        (
            '{"kind": "channel-counts", "schema_version": "1.0", "counts": [{"weight": "a", "keep": true}]}',
            "a number from 1 on",
        ),
        (
            '{"kind": "channel-counts", "schema_version": "1.0", "counts": [{"weight": "a", "keep": 9, "of": 8}]}',
            "keep 9 of the 8 channels of 'a'",
        ),
        (
            '{"kind": "channel-counts", "schema_version": "1.0", "counts": [{"weight": "a", "keep": 1}, {"weight": "a", "keep": 1}]}',
            "name 'a' twice",
        ),
    ],
)
def test_files_that_hold_no_counts_are_refused(tmp_path, text, said):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        channel_counts.read(path)


# ------------------------------------------------------------------------------- from end to end


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "residual.onnx"
    onnx.save(make_residual(), path)
    return path


def test_an_allocation_is_measured_and_cut_by_prune_channels(run, model, tmp_path):
    file = tmp_path / "counts.json"
    asked = ("--allocate", "weights=0.5", "--least", "0.125", "--save-plan", file, *FAST)
    result = run("profile", model, *asked, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, schema("profile"))
    found = document["what_if"]["allocation"]
    assert found["left"] >= 0.5
    assert found["uniform_left"] >= 0.5
    assert [row["size"] for row in found["groups"]] == [64, 64, 64]
    assert found["groups"][0]["weights"] == ["first.weight", "outer.weight"]
    told = {row["name"]: row["ratio"] for row in document["what_if"]["predictions"]}
    assert told[found["chosen"]] == min(told.values())
    key = "keep" if found["chosen"] == "allocated" else "uniform"
    keep = {row["weights"][0]: row[key] for row in found["groups"]}
    counts = channel_counts.read(file)
    assert {name: counts.keep[name] for name in keep} == keep
    out = tmp_path / "out"
    setting = f"prune-channels.counts={file}"
    result = run(
        "optimize",
        model,
        "-o",
        out,
        "--passes",
        "prune-channels",
        "--set",
        setting,
        "--no-profile",
    )
    assert result.exit_code == 0, result.stderr
    made = ir.load(out / "model.onnx").graph.initializers
    assert {name: made[name].shape[0] for name in counts.keep} == counts.keep
    # The counts are in the recipe: the file may go.
    file.unlink()
    again = run("optimize", model, "-o", tmp_path / "b", "--recipe", out / "recipe.toml")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "b" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    # A file that is there already is not replaced.
    file.write_text("mine")
    assert run("profile", model, *asked).exit_code == 2
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("keep", "code", "said"),
    [
        ({"nobody.weight": 8}, 2, "name 'nobody.weight', and no weight of that name"),
        ({"inner.weight": 65}, 2, "keep 65 channels of 'inner.weight', which makes 64"),
        ({"first.weight": 8, "outer.weight": 16}, 2, "are tied"),
        ({"head.weight": 5}, 2, "cannot go: they reach the graph output 'y'"),
    ],
)
def test_counts_of_another_model_are_refused(run, model, tmp_path, keep, code, said):
    file = tmp_path / "counts.json"
    channel_counts.write(ChannelCounts(keep), file)
    options = ("--passes", "prune-channels", "--set", f"prune-channels.counts={file}")
    result = run("optimize", model, "-o", tmp_path / "out", *options, "--no-profile")
    assert result.exit_code == code, result.output
    assert said in result.stderr
    what_if = run("profile", model, "--what-if", f"counts={file}", *FAST)
    assert what_if.exit_code == code
    assert not (tmp_path / "out").exists()


def test_what_is_tied_follows_and_the_rest_stays(run, model, tmp_path):
    file = tmp_path / "counts.json"
    channel_counts.write(ChannelCounts({"outer.weight": 24}), file)
    options = ("--passes", "prune-channels", "--set", f"prune-channels.counts={file}")
    result = run("optimize", model, "-o", tmp_path / "out", *options, "--no-profile")
    assert result.exit_code == 0, result.stderr
    made = ir.load(tmp_path / "out" / "model.onnx").graph.initializers
    shapes = {
        name: tuple(made[f"{name}.weight"].shape.numpy())[:2]
        for name in ("first", "inner", "outer", "last")
    }
    assert shapes == {"first": (24, 16), "inner": (64, 24), "outer": (24, 64), "last": (64, 24)}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--allocate", "weights"), 2, "is asked for as weights=0.42"),
        (("--allocate", "weights=1.5"), 2, "above 0 and below 1"),
        (
            ("--allocate", "macs=0.5", "--multiple", "64"),
            3,
            "no channels of 'residual.onnx' can go",
        ),
        (("--allocate", "macs=0.5", "--save-plan", "nowhere/c.json"), 2, "there is no folder"),
    ],
)
def test_allocations_that_cannot_be_are_refused(run, model, arguments, code, said):
    result = run("profile", model, *arguments, *FAST)
    assert result.exit_code == code, result.output
    assert said in result.stderr
