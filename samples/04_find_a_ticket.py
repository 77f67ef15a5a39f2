"""From a network in PyTorch to a smaller and faster ONNX model, in two commands: the task is in `stripes.py`.

It needs the extra `torch`: pip install 'deploykit-onnx[torch]'.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

HERE = Path(__file__).resolve().parent
TASK = "stripes:Stripes"


def deploykit(*arguments: str) -> None:
    """Run a command where `stripes.py` lies: that is where it is looked for."""
    print("\n$ deploykit", *arguments)
    subprocess.run([sys.executable, "-m", "deploykit", *arguments], cwd=HERE, check=True)


with tempfile.TemporaryDirectory() as folder:
    found, out = Path(folder) / "found", Path(folder) / "out"
    ticket = found / "ticket.safetensors"
    # The mask drops half of the weights. refill keeps as many of the channels, so that fewer weights are left: it says so.
    # Killed and started again, it goes on where it was.
    deploykit("find", TASK, "-o", str(found), "--structure", "refill", "--sparsity", "0.5")
    deploykit("optimize", TASK, "--ticket", str(ticket), "-o", str(out), "--duration", "0.3")

    from stripes import draw

    pictures, directions = draw(500, seed=1)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (scores,) = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
    accuracy = (scores.argmax(axis=1) == directions.numpy()).mean()
    parameters = json.loads((out / "report.json").read_text())["size"]["parameters"]
    print(
        f"\naccuracy in ONNX Runtime: {accuracy:.3f}, with {parameters['after']:,} parameters"
    )
    print(f"of the {parameters['before']:,} of the dense network")
    if parameters["after"] > 0.6 * parameters["before"]:
        sys.exit("the channels are still there")
