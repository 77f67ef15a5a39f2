"""Tickets: what is written comes back, bit for bit, and what is not whole is told."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from deploykit.errors import DeploykitError, ModelError, UsageError
from deploykit.ticket import KEY, Block, Ticket

safetensors = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.torch

KILLS = 20


def indices(*numbers):
    return np.array(numbers, dtype=np.int64)


def make_ticket(**changes):
    mask = np.zeros((4, 3, 3), bool)
    mask[np.ix_([0, 2], [0, 1])] = True
    mask[np.ix_([1], [2])] = True
    weight = np.arange(36, dtype=np.float32).reshape(4, 3, 3) * mask
    blocks = (
        Block(indices(0, 2), indices(0, 1, 2, 3, 4, 5)),
        Block(indices(1), indices(6, 7, 8)),
    )
    parts = {
        "masks": {"conv.weight": mask},
        "weights": {
            "conv.weight": weight,
            "fc.weight": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "seen": np.array(5, np.int64),
        },
        "blocks": {"conv.weight": blocks},
        "provenance": {"task": "digits", "seeds": [1, 2], "metrics": {"accuracy": 0.5}},
        "found": {"conv.weight": np.arange(36).reshape(mask.shape) % 3 == 0},
    }
    return Ticket(**{**parts, **changes})


def test_what_is_saved_comes_back_and_twice_gives_the_same_bytes(tmp_path):
    path = tmp_path / "ticket.safetensors"
    ticket = make_ticket()
    ticket.save(path)
    found = Ticket.load(path)
    for name, array in ticket.weights.items():
        assert found.weights[name].dtype == array.dtype
        np.testing.assert_array_equal(found.weights[name], array)
    assert found.weights.keys() == ticket.weights.keys()
    assert found.weights["seen"].shape == ()
    for theirs, mine in ((found.masks, ticket.masks), (found.found, ticket.found)):
        np.testing.assert_array_equal(theirs["conv.weight"], mine["conv.weight"])
    for mine, theirs in zip(
        ticket.blocks["conv.weight"], found.blocks["conv.weight"], strict=True
    ):
        np.testing.assert_array_equal(mine.rows, theirs.rows)
        np.testing.assert_array_equal(mine.columns, theirs.columns)
    assert found.provenance == ticket.provenance
    assert list(tmp_path.iterdir()) == [path]
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_no_cut_and_no_changed_byte_goes_unnoticed(tmp_path):
    path, other = tmp_path / "ticket.safetensors", tmp_path / "other.safetensors"
    make_ticket().save(path)
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        for damaged in (content[:place], bytes(changed)):
            other.write_bytes(damaged)
            with pytest.raises(DeploykitError, match=r"other\.safetensors"):
                Ticket.load(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"masks": {"conv.kernel": np.ones(3, bool)}, "blocks": {}, "found": {}},
            "'conv.kernel', which is none of the 3 weights",
        ),
        (
            {"masks": {"conv.weight": np.ones((4, 9), bool)}, "blocks": {}, "found": {}},
            r"shape \[4, 9\], its weight \[4, 3, 3\]",
        ),
        ({"masks": {"seen": np.array(1)}, "blocks": {}, "found": {}}, "holds int64, not bools"),
        (
            {"found": {"conv.weight": np.ones(3, bool)}},
            "found for 'conv.weight' is none of its",
        ),
        (
            {"weights": {"conv.weight": np.ones((4, 3, 3))}},
            "'conv.weight' is not zero in 21 places",
        ),
        ({"weights": {"w": np.array([1, np.nan, np.inf])}}, "NaN or infinity in 2 of 3"),
        ({"weights": {"w": np.array([1j])}}, "'w' holds complex128"),
        ({"blocks": {"fc.weight": ()}}, "blocks for 'fc.weight', which has no mask"),
        (
            {"blocks": {"conv.weight": (Block(indices(0, 9), indices(0)),)}},
            "rows 0 to 9, and the weight has 4: 0 to 3",
        ),
        (
            {"blocks": {"conv.weight": (Block(indices(0), indices(-1, 2)),)}},
            "columns -1 to 2, and the weight has 9",
        ),
        (
            {"blocks": {"conv.weight": (Block(indices(2, 0), indices(0)),)}},
            "not one or more ascending",
        ),
        (
            {"blocks": {"conv.weight": (Block(indices(0), indices()),)}},
            "not one or more ascending",
        ),
        (
            {"blocks": {"conv.weight": (Block(indices(1), indices(6, 7, 8)),)}},
            "differ from it in 12 of 36 places",
        ),
        (
            {
                "blocks": {
                    "conv.weight": (
                        *make_ticket().blocks["conv.weight"],
                        Block(indices(1), indices(7)),
                    )
                }
            },
            "overlap in 1 places",
        ),
        ({"provenance": {"loss": float("nan")}}, "what JSON does not"),
        ({"provenance": {"task": object()}}, "what JSON does not"),
    ],
)
def test_parts_that_do_not_fit_are_not_saved(tmp_path, changes, message):
    path = tmp_path / "ticket.safetensors"
    with pytest.raises(ModelError, match=message):
        make_ticket(**changes).save(path)
    assert list(tmp_path.iterdir()) == []


def rewritten(path, change, *, sign=True):
    """Change the document of a ticket; with a digest that fits, as another program would."""
    from deploykit.ticket import _digest

    with safetensors.safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        document = json.loads(file.metadata()[KEY])
    change(document, arrays)
    if sign:
        document.pop("digest", None)
        document["digest"] = _digest(document, arrays)
    path.write_bytes(safetensors.save(arrays, metadata={KEY: json.dumps(document)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a: d.update(schema_version="2.0"), "has schema 2.0, .* reads 1.0"),
        (lambda d, a: d["masks"].update(other=[2]), "no ticket of schema 1.0: KeyError"),
        (lambda d, a: d["masks"].update({"conv.weight": [9, 9]}), "5 bytes hold no mask"),
        (lambda d, a: d["blocks"].update({"conv.weight": [[1, 1]]}), r"have 3 and 9"),
        (
            lambda d, a: a["weights/conv.weight"].fill(np.nan),
            "cannot be used: weight 'conv.weight' has NaN",
        ),
        (lambda d, a: a.pop("weights/conv.weight"), "none of the 2 weights"),
    ],
)
def test_a_file_that_another_program_wrote_wrong_is_told(tmp_path, change, message):
    path = tmp_path / "ticket.safetensors"
    make_ticket().save(path)
    rewritten(path, change)
    with pytest.raises(ModelError, match=message):
        Ticket.load(path)


def test_a_later_minor_schema_is_read_and_an_unsigned_change_is_not(tmp_path):
    path = tmp_path / "ticket.safetensors"
    make_ticket().save(path)
    rewritten(path, lambda d, a: d.update(schema_version="1.9", more={"key": 1}))
    assert Ticket.load(path).provenance["task"] == "digits"
    rewritten(path, lambda d, a: d["provenance"].update(task="mnist"), sign=False)
    with pytest.raises(ModelError, match="was altered"):
        Ticket.load(path)


def test_what_is_no_ticket_is_told(tmp_path):
    (tmp_path / "ticket.safetensors").write_bytes(safetensors.save({"a": np.ones(2)}))
    for place, message in (
        (tmp_path / "none.safetensors", "it does not exist"),
        (tmp_path, r"is a folder. Give '.*ticket\.safetensors'"),
        (tmp_path / "ticket.safetensors", "is no ticket of deploykit"),
    ):
        with pytest.raises(UsageError, match=message):
            Ticket.load(place)


def test_without_the_extra_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (make_ticket().save, Ticket.load):
        with pytest.raises(UsageError, match=r"pip install 'deploykit-onnx\[torch\]'"):
            call(tmp_path / "ticket.safetensors")


SAVE_FOR_EVER = """
import itertools, sys, numpy as np
from pathlib import Path
from deploykit.ticket import Ticket
for number in itertools.count(1):
    weight = np.full((1000, 1000), number, np.float32)
    Ticket({"w": weight > 0}, {"w": weight}, provenance={"number": number}).save(Path(sys.argv[1]))
    print(number, flush=True)
"""


def test_a_killed_save_leaves_the_old_ticket_or_the_new_one(tmp_path):
    path = tmp_path / "ticket.safetensors"
    dice = random.Random(0)  # noqa: S311 - when to kill
    torn = 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
            child.stdout.readline()
            time.sleep(dice.uniform(0, 0.05))
            os.kill(child.pid, signal.SIGKILL)
            saved = max(map(int, ["1", *child.stdout.read().split()]))
        torn += (tmp_path / f".{path.name}.part").exists()
        found = Ticket.load(path)
        assert found.provenance["number"] in {saved, saved + 1}
        assert (found.weights["w"] == found.provenance["number"]).all()
    # Some kills hit a save, or this would prove nothing; what they left is one file, which the next save takes.
    assert torn > 0
    assert len(list(tmp_path.iterdir())) <= 2
