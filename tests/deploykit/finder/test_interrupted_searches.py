"""Killed at any moment and started again, a search comes to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("kills", "options"), [(6, []), (3, ["--source", "sr-ste", "--no-permute"])]
)
def test_a_killed_search_goes_on_to_the_same_bytes_and_leaves_no_file_in_half(
    tmp_path, kills, options
):
    command = [sys.executable, "-m", "tests.deploykit.finder.kill_searches", str(kills), "0"]
    done = subprocess.run(  # noqa: S603 - ours
        [*command, str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["seen"]["killed"] >= kills
    assert found["seen"]["searches"] >= 1
