"""Counts of channels from a file: the ticket that `find` finds has exactly these, whatever names the file knows weights by."""

from __future__ import annotations

import pytest

from deploykit.channel_counts import ChannelCounts, write
from deploykit.errors import UsageError
from deploykit.export import export
from deploykit.finder.coupling import find_coupling
from deploykit.finder.search import search
from deploykit.finder.settings import Settings
from deploykit.finder.structures.counted import find_counts
from deploykit.finder.structuring import Structure
from deploykit.ticket import Ticket
from deploykit.what_if.network import Network
from tests.deploykit.finder.toy import Pictures

NAMES = ("first.weight", "one.weight", "two.weight")


def coupling():
    from deploykit.export import export_for_analysis

    task = Pictures()
    return find_coupling(export_for_analysis(task.model().eval(), task.example_inputs()), NAMES)


def alive(ticket, name):
    return int(ticket.masks[name].reshape(ticket.masks[name].shape[0], -1).any(axis=1).sum())


def test_a_ticket_has_the_counts_that_a_file_says(tmp_path):
    structure = Structure("refill", counts=(("first.weight", 10), ("one.weight", 3)))
    settings = Settings(source="random", structure=structure, sparsity=0.5, epochs=1)
    result = search(Pictures(), settings, tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    # The residual sum ties the first convolution to the second one of the block.
    assert {name: alive(ticket, name) for name in NAMES} == {
        "first.weight": 10,
        "one.weight": 3,
        "two.weight": 10,
    }
    assert not any("--match weights" in note for note in result.rows[-1].notes)
    assert ticket.provenance["settings"]["structure"]["counts"] == {
        "first.weight": 10,
        "one.weight": 3,
    }


def test_counts_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path):
    settings = Settings(rounds=1, structure=Structure("refill", counts=(("other.weight", 1),)))
    with pytest.raises(UsageError, match=r"other\.weight"):
        search(Pictures(), settings, tmp_path / "found")
    assert not list((tmp_path / "found").rglob("*.safetensors"))
    assert not (tmp_path / "found" / "metrics.csv").exists()


def test_counts_that_were_made_of_the_exported_model_fit_the_network():
    task = Pictures()
    model = export(task.model().eval(), task.example_inputs())
    inputs = {
        value.name: tuple(1 if not isinstance(size, int) else size for size in value.shape)
        for value in model.graph.inputs
    }
    network = Network(model, inputs)
    half = tuple(size // 2 for size in network.full)
    counts = {name: keep for name, (keep, _) in network.by_weight(half).items()}
    assert set(counts.values()) == {8}
    assert find_counts(coupling(), counts) == (8, 8)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            {"third.weight": 4},
            "name 'third.weight', and the network has no weight of that name",
        ),
        ({"one.weight": 17}, "keep 17 channels of 'one.weight', which makes 16"),
        ({"first.weight": 4, "two.weight": 5}, "are tied"),
        ({"head.weight": 2}, "none of its channels can be dropped"),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts, said):
    with pytest.raises(UsageError, match=said):
        find_counts(coupling(), counts)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "refill+"},
        {"name": "refill", "multiple": 4},
        {"name": "refill", "match": "weights"},
    ],
)
def test_counts_say_it_all(options):
    with pytest.raises(UsageError, match="counts of channels belong to the structure 'refill'"):
        Structure(**options, counts=(("a", 1),))


def test_the_command_reads_the_file(run, tmp_path):
    file = tmp_path / "counts.json"
    write(ChannelCounts({"one.weight": 5}), file)
    task = "tests.deploykit.finder.toy:Pictures"
    options = ("--source", "random", "--sparsity", "0.5", "--epochs", "1", "--device", "cpu")
    result = run(
        "find",
        task,
        "-o",
        tmp_path / "out",
        "--structure",
        "refill",
        "--counts",
        file,
        *options,
    )
    assert result.exit_code == 0, result.stderr
    assert alive(Ticket.load(tmp_path / "out" / "ticket.safetensors"), "one.weight") == 5
    wrong = run(
        "find", task, "-o", tmp_path / "b", "--structure", "regroup", "--counts", file, *options
    )
    assert wrong.exit_code == 2
    assert "--counts belongs to --structure refill" in wrong.stderr
