"""Two processes that talk over gloo come to what one comes to."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

from deploykit.errors import RuntimeUnavailable, UsageError  # noqa: E402
from deploykit.finder.engine import PlainEngine, find_device, make_engine  # noqa: E402
from deploykit.finder.nm import NM  # noqa: E402
from deploykit.finder.search import Settings, search  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from deploykit.ticket import Ticket  # noqa: E402
from tests.deploykit.finder.toy import Clouds, lenet  # noqa: E402

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
# What `accelerate launch` sets before it starts processes as torchrun does; on CPUs alone it would start them by MPI.
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "true"}


def launch(more, folder):
    if more:
        pytest.importorskip("accelerate")
    folder.mkdir()
    command = [sys.executable, "-m", *TORCHRUN, "tests.deploykit.finder.ranks", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(  # noqa: S603 - ours
        command, capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        [Ticket.load(folder / f"rank-{rank}-{number}.safetensors") for rank in (0, 1)]
        for number in (0, 1)
    ], [Ticket.load(folder / f"pictures-{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize(
    ("more", "name"), [({}, "torch.distributed"), (ACCELERATE, "accelerate")]
)
def test_two_processes_find_the_ticket_of_one(tmp_path, more, name):
    (found, again), pictures = launch(more, tmp_path / "two")
    check_masked(tmp_path)
    alone = Ticket.load(search(lenet, Settings(rounds=2, rewind=1), tmp_path / "one").ticket)
    assert found[0].provenance["settings"]["processes"] == 2
    assert found[0].provenance["settings"]["engine"] == name
    for each in alone.masks:
        for ticket in (*found, *again):
            assert (ticket.masks[each] == alone.masks[each]).all()
    for each in alone.weights:
        # Identical on both, and what one process comes to but for the order of sums.
        assert found[0].weights[each].tobytes() == found[1].weights[each].tobytes()
        assert again[0].weights[each].tobytes() == again[1].weights[each].tobytes()
        assert found[0].weights[each].dtype == np.float64
        np.testing.assert_allclose(found[0].weights[each], alone.weights[each], atol=1e-12)
    metrics = [ticket.provenance["metrics"] for ticket in (*found, *again)]
    assert metrics == [metrics[0]] * 4
    assert metrics[0]["test"] == pytest.approx(alone.provenance["metrics"]["test"])
    # Statistics of normalizations, which each process counts by itself, are those of the first on both.
    for each in pictures[0].weights:
        assert pictures[0].weights[each].tobytes() == pictures[1].weights[each].tobytes()
    assert pictures[0].provenance == {**pictures[0].provenance, "name": name, "processes": 2}


def check_masked(folder):
    """Masks that are chosen at every step are the same on both, and those of one process."""
    settings = Settings(source="sr-ste", nm=NM(decay=0.01, permute=False))
    alone = Ticket.load(search(lenet, settings, folder / "masked").ticket)
    first, second = (
        Ticket.load(folder / "two" / f"masked-{rank}.safetensors") for rank in (0, 1)
    )
    assert first.provenance["epochs"] == second.provenance["epochs"]
    flips = [each["flips"] for each in alone.provenance["epochs"]]
    assert [each["flips"] for each in first.provenance["epochs"]] == flips
    for name, mask in alone.masks.items():
        assert (first.masks[name] == mask).all()
        assert (second.masks[name] == mask).all()
    for name in alone.weights:
        assert first.weights[name].tobytes() == second.weights[name].tobytes()
        np.testing.assert_allclose(first.weights[name], alone.weights[name], atol=1e-12)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_parts_of_a_batch_weigh_what_they_hold(processes):
    """The average over processes of each one's mean gradient is that of the whole batch, ragged or smaller than they are."""
    dice = torch.Generator().manual_seed(0)
    values = torch.randn(100, generator=dice, dtype=torch.float64)
    batches = [torch.arange(0, 37), torch.arange(37, 41), torch.arange(41, 43)]
    totals = [0.0] * 3
    for rank in range(processes):
        engine = PlainEngine("cpu")
        engine.processes, engine.rank = processes, rank
        trainer = Trainer(Clouds())
        trainer.engine = engine
        parts, shares = trainer._divide(batches)
        for step, (part, share) in enumerate(zip(parts, shares, strict=True)):
            assert len(part) > 0
            totals[step] += float(values[part].mean()) * share / processes
    for batch, total in zip(batches, totals, strict=True):
        assert total == pytest.approx(float(values[batch].mean()), abs=1e-14)


def test_devices_that_are_not_there_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(RuntimeUnavailable, match="has no GPU that torch"):
        make_engine("cuda")
    with pytest.raises(UsageError, match="there is no device 'gpu'"):
        make_engine("gpu")
    with pytest.raises(UsageError, match="on cpu and cuda, not on 'meta'"):
        make_engine("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(RuntimeUnavailable, match="has 2 GPUs"):
        find_device("cuda:2")
