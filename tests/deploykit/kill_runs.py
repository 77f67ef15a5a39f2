"""Kills runs at random moments, and lets two run at once: `python -m tests.deploykit.kill_runs KILLS RACES SEED FOLDER`.

A program of its own, because it forks a process that has imported everything: a fork is killed while it works, and not
while it imports. Prints a JSON document of what was seen, and what was wrong.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import onnx

from tests.deploykit.conftest import make_network
from tests.deploykit.forks import start, wait

MOST_TRIES = 4
FILES = ["model.onnx", "recipe.toml", "report.html", "report.json"]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def look(out, results):
    """Which source a result folder is of; an exception if it is not one whole result of one of them."""
    held = sorted(each.name for each in out.iterdir())
    if held != FILES:
        raise ValueError(f"the folder holds {held}")
    report = json.loads((out / "report.json").read_text())
    if not (out / "report.html").read_text().rstrip().endswith("</html>"):
        raise ValueError("half a page")
    name = results[sha256(out / "model.onnx")]
    if report["source"]["sha256"] != name:
        raise ValueError("model and report of different runs")
    return name


def kill(kills, dice, folder, sources, results, seen, wrong):
    out = folder / "out"
    command = ["optimize", "-o", str(out), "--no-profile", "--force"]
    whole = math.inf
    for _ in range(3):
        began = time.monotonic()
        wait(start([*command, str(sources[0])]))
        whole = min(whole, time.monotonic() - began)
    for number in range(MOST_TRIES * kills):
        if seen["killed"] == kills:
            break
        before = look(out, results)
        child = start([*command, str(sources[number % 2])])
        # Over the whole run, and a third of them in its last part, where the result is put in place.
        late = number % 3 == 0
        time.sleep(dice.uniform(0.8 if late else 0.0, 1.05) * whole)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        seen["killed" if code < 0 else "ended before"] += 1
        try:
            after = look(out, results)
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"kill {number}: {error!r}")
            break
        seen["old result" if after == before else "new result"] += code < 0
    code = wait(start([*command, str(sources[0])]))
    if code:
        wrong.append(f"the run after the kills ended with {code}")


def race(races, dice, folder, sources, results, seen, wrong):
    for number in range(races):
        out = folder / f"race{number}"
        runs = []
        for source in sources:
            runs.append(start(["optimize", str(source), "-o", str(out), "--no-profile"]))
            time.sleep(dice.uniform(0.0, 0.02))
        codes = sorted(wait(each) for each in runs)
        seen[f"race: exit codes {codes}"] += 1
        try:
            look(out, results)
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"race {number}: {error!r}")


def main():
    kills, races, seed = (int(each) for each in sys.argv[1:4])
    folder = Path(sys.argv[4])
    sources, results = [], {}
    from deploykit.cli import main as command

    for dead in (16, 32):
        path = folder / "sources" / f"dead{dead}.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(make_network(dead=dead), path)
        warm = folder / "sources" / f"warm{dead}"
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
            command(
                ["optimize", str(path), "-o", str(warm), "--no-profile", "-q"],
                standalone_mode=False,
            )
        results[sha256(warm / "model.onnx")] = sha256(path)
        sources.append(path)
    dice = random.Random(seed)  # noqa: S311 - no secret
    seen, wrong = collections.Counter(), []
    kill(kills, dice, folder, sources, results, seen, wrong)
    race(races, dice, folder, sources, results, seen, wrong)
    left = sorted(each.name for each in folder.iterdir())
    expected = ["out", *(f"race{number}" for number in range(races)), "sources"]
    if left != sorted(expected):
        wrong.append(f"left behind: {left}")
    if [sha256(path) for path in sources] != list(results.values()):
        wrong.append("a source was touched")
    print(json.dumps({"seen": seen, "wrong": wrong}))  # noqa: T201 - a program


if __name__ == "__main__":
    main()
