"""Steps that are killed, interrupted or doubled: the folder is the old one or the new one, and no kept result is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deploykit.step import runner
from tests.deploykit.step.kill_runs import FILES

KILLS, RACES = 8, 2


def test_kills_and_races_leave_whole_results_only(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.deploykit.step.kill_runs",
        str(KILLS),
        str(RACES),
        "0",
    ]
    done = subprocess.run(  # noqa: S603 - ours
        [*command, str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["seen"]["killed"] == KILLS
    assert found["seen"]["old result"], "some kills are before the folders are exchanged"
    assert found["seen"]["new result"], "and some after it"
    assert found["seen"]["one folder: exit codes [0, 2]"] == 1, "the second one is refused"
    assert found["seen"]["two folders: exit codes [0, 0]"] == 1, "the second one waits"


@pytest.mark.parametrize("where", ["stage", "documents"])
def test_an_interrupted_run_leaves_nothing_half_done(step, run, monkeypatch, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    target = (runner.work, "profile") if where == "stage" else (runner, "_documents")
    with monkeypatch.context() as patch:
        patch.setattr(*target, interrupt)
        found = run("run", step.recipe)
        assert found.exit_code == 130, found.stderr
    assert not step.out.exists()
    cache = step.folder / ".deploykit" / "cache"
    assert not list((cache / "work").iterdir())
    assert not list((cache / "locks").iterdir())
    assert not [path for path in step.folder.iterdir() if path.name.startswith(".out")]
    # What was finished before is not done again.
    found = run("run", step.recipe, "--json")
    assert found.exit_code == 0, found.stderr
    rows = {row["name"]: row["state"] for row in json.loads(found.stdout)["step"]["stages"]}
    assert rows["optimize"] == "cached"
    assert rows["profile here"] == ("ran" if where == "stage" else "cached")
    assert sorted(path.name for path in step.out.iterdir()) == FILES
