"""Optimize a model from the command line, and use what it reports in a script."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx_ir as ir
from network import make_network

with tempfile.TemporaryDirectory() as folder:
    source, out = Path(folder) / "pruned.onnx", Path(folder) / "out"
    ir.save(make_network(), source)
    command = [
        sys.executable,
        "-m",
        "deploykit",
        "optimize",
        str(source),
        "-o",
        str(out),
        "--duration",
        "0.3",
    ]
    subprocess.run(command, check=True)

    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    # A gate in a pipeline is a comparison: the keys are those of deploykit/report/report.schema.json.
    low, high = report["profile"]["ratio"]["ci95"]
    print(f"\nverdict: {report['verdict']}; time ratio between {low:.3f} and {high:.3f}")
    if report["validation"]["verdict"] != "equal" or low > 1.0:
        sys.exit("not good enough to deploy")
