"""What README says of devices works as it stands there, against a device on the loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx

from tests.deploykit.conftest import make_network
from tests.deploykit.sshd import device, make_device

__all__ = ["device", "make_device"]

ROOT = Path(__file__).parents[2]
ADDRESS = "ssh://me@192.168.0.7"


def test_what_readme_says_works_as_pasted(device, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^### On a device\n\n```\n(.+?)```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = found[1].splitlines()
    assert len(lines) < 10
    assert lines[0].startswith("pip install")
    assert found[1].count(ADDRESS) == 1
    monkeypatch.chdir(tmp_path)
    onnx.save(make_network(), "model.onnx")
    onnx.save(make_network(hidden=32, dead=8), "small.onnx")
    # The same program, with less patience.
    program = tmp_path / "bin" / "deploykit"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m deploykit "$@" --duration 0.05\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = "set -e\n" + "\n".join(lines[1:]).replace(ADDRESS, device.on)
    done = subprocess.run(  # noqa: S603 - what README says
        ["/bin/sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path("out/model.onnx").is_file()
    for words in ("this machine  model.onnx", "board", "small.onnx", "channels=0.5"):
        assert words in done.stdout
    assert not list(device.cache.glob("**/run-*"))
