"""A short run of the fuzzer, always the same; `python -m tests.fuzz --minutes 30 --seed N` looks for new findings."""

from __future__ import annotations

import subprocess
import sys

CASES = 60


def test_a_short_run_finds_nothing(tmp_path):
    command = ["--cases", str(CASES), "--seed", "0", "--folder", str(tmp_path)]
    done = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", "tests.fuzz", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CASES} cases, 0 findings" in done.stdout
    # most of what is tried is told to be broken, and some of it works all the same
    assert "optimize: exit code 3" in done.stdout
    assert "optimize: exit code 0" in done.stdout
