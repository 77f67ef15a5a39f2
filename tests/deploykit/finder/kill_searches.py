"""Kills searches at random moments and goes on: `python -m tests.deploykit.finder.kill_searches KILLS SEED FOLDER [OPTION ...]`.

Options are those of `deploykit find`.

A program of its own, because it forks a process that has imported everything: a fork is killed while it works, and not
while it imports. Prints a JSON document of what was seen, and what was wrong.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 - a fork is not to spend its time with it
import torch
import torch._dynamo

from deploykit.errors import DeploykitError
from deploykit.finder import search as searching
from deploykit.ticket import Ticket
from tests.deploykit.forks import start, wait

MOST_TRIES = 20
TASK = "tests.deploykit.finder.toy:slow"
OPTIONS = sys.argv[4:] or ["--rounds", "3", "--rewind", "2"]


def command(out, *more):
    return ["find", TASK, "-o", str(out), *OPTIONS, "--threads", "1", *more]


def held(out):
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def look(out):
    """Load whatever lies there; an exception if a file is not whole."""
    for file in out.rglob("*.safetensors"):
        if not file.name.startswith("."):
            Ticket.load(file)
    for file in out.glob("*.json"):
        json.loads(file.read_text())
    for table in out.glob("*.csv"):
        if not table.read_text().endswith("\n"):
            raise ValueError("half a table")


def search_and_kill(number, whole_s, dice, folder, reference, seen):
    """One search that is killed until it is through; raises if it comes to something else."""
    out = folder / f"killed{number}"
    kills = 0
    for _ in range(MOST_TRIES):
        # Every other search replaces one with other settings, and may be killed while it does.
        if number % 2 and not out.exists():
            wait(start([*command(out), "--epochs", "3"]))
        force = ["--force"] if number % 2 and not kills else []
        child = start([*command(out), *force])
        time.sleep(dice.uniform(0.0, 0.9) * whole_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        if code == 0:
            break
        kills += 1
        seen["killed"] += 1
        seen["checkpoint left"] += (out / "rounds" / "checkpoint.safetensors").exists()
        look(out) if out.exists() else None
        if number % 2 and (out / "search.json").exists():
            # Killed before it had replaced the other one: only --force goes on.
            epochs = json.loads((out / "search.json").read_text())["settings"]["epochs"]
            kills -= epochs == 3
    else:
        code = wait(start(command(out)))
    if code:
        raise ValueError(f"it ended with {code}")
    if held(out) != reference:
        different = [name for name in reference if held(out).get(name) != reference[name]]
        raise ValueError(f"other bytes: {different}, {sorted(set(held(out)) ^ set(reference))}")
    seen["searches"] += 1


def run():
    kills, seed = (int(each) for each in sys.argv[1:3])
    folder = Path(sys.argv[3])
    torch.set_num_threads(1)
    # A checkpoint after every epoch, so that there is much to be killed in.
    searching.search.__kwdefaults__["checkpoint_s"] = 0.0
    dice = random.Random(seed)  # noqa: S311 - no secret
    seen, wrong = collections.Counter(), []
    whole_s = math.inf
    for number in range(2):
        began = time.monotonic()
        wait(start(command(folder / f"whole{number}")))
        whole_s = min(whole_s, time.monotonic() - began)
    reference = held(folder / "whole0")
    if "ticket.safetensors" not in reference or reference != held(folder / "whole1"):
        wrong.append("two searches that nobody disturbed differ")
    number = 0
    while seen["killed"] < kills and not wrong:
        try:
            search_and_kill(number, whole_s, dice, folder, reference, seen)
        except (OSError, ValueError, KeyError, DeploykitError) as error:
            wrong.append(f"search {number}: {error!r}")
        number += 1
    json.dump({"seen": seen, "whole_s": whole_s, "wrong": wrong}, sys.stdout, indent=1)


if __name__ == "__main__":
    run()
