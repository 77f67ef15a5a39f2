"""Kills steps at random moments, and lets two run at once: `python -m tests.deploykit.step.kill_runs KILLS RACES SEED FOLDER`.

A program of its own, because it forks a process that has imported everything: a fork is killed while it works, and not
while it imports. Prints a JSON document of what was seen, and what was wrong.

Two recipes take turns on one result folder and one cache, so that every run has something to put in place. They are killed
while they work, while they write documents, around the exchange of the two folders, and while they clear away the old one.
After every kill the folder is that of one of them, whole, or not there; every kept result has the content that a run that
nobody killed gave it; and nothing is locked.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from deploykit.step.cache import Cache, key_of
from tests.deploykit.forks import start, wait
from tests.deploykit.step.conftest import make_step

MOST_TRIES = 4
POLL_S = 0.0002
FILES = [
    *("junit.xml", "manifest.json", "model.onnx", "recipe.toml"),
    *("report.html", "report.json", "summary.md"),
]
RECIPES = ("recipe.toml", "other.toml")
MOMENTS = ("work", "documents", "exchange", "end")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_project(folder):
    step = make_step(folder)
    text = step.recipe.read_text()
    (folder / "other.toml").write_text(text.replace('"carrier"', '"bias-map"'))
    return step


def look(step, models):
    """Which recipe the result folder is of, None if it is not there; an exception if it is not whole."""
    if not step.out.exists():
        return None
    held = sorted(each.name for each in step.out.iterdir())
    if held != FILES:
        raise ValueError(f"the folder holds {held}")
    manifest = json.loads((step.out / "manifest.json").read_text())
    for name, known in manifest["files"].items():
        if sha256(step.out / name) != known:
            raise ValueError(f"'{name}' is not what the manifest says")
    carry = manifest["recipe"]["options"]["remove-channels"]["carry"]
    if manifest["files"]["model.onnx"] != models[carry]:
        raise ValueError(f"the model is not that of {carry}")
    return carry


def check_kept(cache, models):
    """An exception if a kept result is not what its key says, or somebody holds a lock."""
    # A run that was killed before it made the folder has none.
    for folder in (cache / "objects").glob("*"):
        record = json.loads((folder / "object.json").read_text())
        if key_of(record["stage"], record["components"]) != folder.name:
            raise ValueError(f"{folder.name} is of another key")
        for name, known in record["files"].items():
            if sha256(folder / "files" / name) != known:
                raise ValueError(f"'{name}' of {record['stage']} has another content")
        carry = record["components"].get("option remove-channels.carry", "").strip("'")
        if (
            record["stage"] == "optimize"
            and record["files"]["result/model.onnx"] != models[carry]
        ):
            raise ValueError(f"a wrong model is kept for {carry}")


def check_left(step):
    """An exception if something is left behind of runs that have all ended."""
    with Cache(step.folder / ".deploykit" / "cache") as cache:
        for place in ("work", "locks"):
            left = [each.name for each in (cache.folder / place).iterdir()]
            if left:
                raise ValueError(f"left in {place}: {left}")
    hidden = [each.name for each in step.folder.iterdir() if each.name.startswith(".out")]
    if hidden:
        raise ValueError(f"left beside the result: {hidden}")


def wait_until(is_so, child):
    """Wait until something is so, or the process has ended."""
    while not is_so() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(POLL_S)


def wait_for_moment(moment, step, child, dice, whole):
    """Wait for a moment to kill a run that has just begun."""
    written, place = step.folder / ".out.deploykit" / "result", step.out
    if moment == "work":
        time.sleep(dice.uniform(0.0, 1.0) * whole)
    elif moment == "documents":
        wait_until((written / "report.html").exists, child)
        time.sleep(dice.uniform(0.0, 0.08))
    elif moment == "exchange":
        # The last document; the folder is put in its place next.
        wait_until((written / "manifest.json").exists, child)
        time.sleep(dice.uniform(0.0, 0.004))
    else:
        old = node(place)
        wait_until(lambda: node(place) != old, child)
        # Soon after it, above all: what is left to do takes little time.
        time.sleep(dice.uniform(0.0, 0.3) ** 3)


def node(path):
    """What tells a folder from another one in its place; None if there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def when_killed(step, before, after):
    """What a killed run had come to, as the folders tell."""
    written = step.folder / ".out.deploykit" / "result"
    if after != before:
        is_left = written.is_dir() and any(written.iterdir())
        return "after the exchange" if is_left else "after the old folder went"
    if (written / "manifest.json").exists():
        return "with all documents, before the exchange"
    return "amid the documents" if (written / "report.html").exists() else "before documents"


def kill(kills, dice, step, models, seen, wrong):
    cache = step.folder / ".deploykit" / "cache"
    whole = math.inf
    for _ in range(2):
        shutil.rmtree(cache, ignore_errors=True)
        began = time.monotonic()
        if wait(start(["run", str(step.recipe)])):
            wrong.append("a run that nobody killed failed")
        whole = min(whole, time.monotonic() - began)
    for number in range(MOST_TRIES * kills):
        if seen["killed"] == kills:
            break
        # Now and then there is nothing to take, so that kills meet stages that work.
        if number % 5 == 0:
            shutil.rmtree(cache / "objects", ignore_errors=True)
        before = look(step, models)
        # The other one than is there.
        child = start(["run", str(step.folder / RECIPES[before == "carrier"])])
        wait_for_moment(MOMENTS[number % len(MOMENTS)], step, child, dice, whole)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        seen["killed" if code < 0 else "ended before"] += 1
        try:
            after = look(step, models)
            check_kept(cache, models)
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"kill {number}: {error!r}")
            break
        if code < 0:
            seen["old result" if after == before else "new result"] += 1
            seen[when_killed(step, before, after)] += 1
    for name in RECIPES:
        code = wait(start(["run", str(step.folder / name)]))
        if code:
            wrong.append(f"the run after the kills ended with {code}")
    try:
        check_left(step)
    except ValueError as error:
        wrong.append(str(error))


def race(races, dice, step, models, seen, wrong):
    """Two runs on one result folder, and two on one cache: one is told or waits, and none of them is wrong."""
    for number in range(races):
        shutil.rmtree(step.folder / ".deploykit", ignore_errors=True)
        is_shared = number % 2 == 1
        second = ["--set", f"output.folder={step.folder / 'elsewhere'}"] if is_shared else []
        runs = [start(["run", str(step.recipe)])]
        time.sleep(dice.uniform(0.0, 0.05))
        runs.append(start(["run", str(step.recipe), *second]))
        codes = sorted(wait(each) for each in runs)
        seen[f"{'two folders' if is_shared else 'one folder'}: exit codes {codes}"] += 1
        try:
            look(step, models)
            check_kept(step.folder / ".deploykit" / "cache", models)
            check_left(step)
        except (OSError, ValueError, KeyError) as error:
            wrong.append(f"race {number}: {error!r}")


def main():
    kills, races, seed = (int(each) for each in sys.argv[1:4])
    folder = Path(sys.argv[4])
    models = {}
    for name, carry in zip(RECIPES, ("carrier", "bias-map"), strict=True):
        step = make_project(folder / f"warm-{carry}")
        # In this process, so that forks have everything imported.
        from deploykit import run

        result = run(step.folder / name)
        models[carry] = sha256(result.model)
    step = make_project(folder / "project")
    inputs = {path: sha256(path) for path in step.folder.iterdir()}
    dice = random.Random(seed)  # noqa: S311 - no secret
    seen, wrong = collections.Counter(), []
    kill(kills, dice, step, models, seen, wrong)
    race(races, dice, step, models, seen, wrong)
    if {path: sha256(path) for path in inputs} != inputs:
        wrong.append("an input was touched")
    print(json.dumps({"seen": seen, "wrong": wrong}))  # noqa: T201 - a program


if __name__ == "__main__":
    main()
