"""A program that takes trtexec's options and writes its files: it computes nothing, and proves nothing of TensorRT.

What it knows is set beside it in `fake.json`: the version, the options it has, and how long models take. The times that it
exports are SYNTHETIC, in the form of trtexec's source (11.1): milliseconds, warm-up left out.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent


def say(text):
    sys.stdout.write(text + "\n")


def main(arguments):
    known = json.loads((HERE / "fake.json").read_text())
    options = dict(part.removeprefix("--").partition("=")[::2] for part in arguments)
    with (HERE / "calls.jsonl").open("a") as log:
        log.write(json.dumps(options) + "\n")
    say(
        f"&&&& RUNNING TensorRT.trtexec [TensorRT v{known['version']}] # trtexec {' '.join(arguments)}"
    )
    if "help" in options:
        say("\n".join(f"  --{name}   what it does" for name in known["options"]))
        return 0
    unknown = [name for name in options if name not in known["options"]]
    if unknown:
        say(f"[11/21/2026-10:00:00] [E] Unknown option: --{unknown[0]}")
        return 1
    if "saveEngine" in options:
        return build(known, options)
    return run(known, options)


def build(known, options):
    model = Path(options["onnx"]).read_bytes()
    if model == b"broken":
        say(
            "[11/21/2026-10:00:00] [E] Error[4]: [graphShapeAnalyzer.cpp::analyze] node 'conv' is broken"
        )
        return 1
    if model.startswith(b"static") and "shapes" in options:
        say(
            "[11/21/2026-10:00:00] [E] Static model does not take explicit shapes since the shape of inference tensors will be "
            "determined by the model itself"
        )
        return 1
    if b"half" in model and "stronglyTyped" not in known["options"] and "fp16" not in options:
        say(
            "[11/21/2026-10:00:00] [E] Error[9]: the network has half types, and fp16 is not allowed"
        )
        return 1
    say(
        "[11/21/2026-10:00:00] [I] [TRT] (Sparsity) Found 2 layer(s) eligible to use sparse tactics: hidden, head"
    )
    say(
        "[11/21/2026-10:00:00] [I] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: hidden"
    )
    Path(options["saveEngine"]).write_bytes(b"engine of " + model)
    return 0


def run(known, options):
    engine = Path(options["loadEngine"]).read_bytes()
    told = re.search(rb"(\d+)us", engine)
    # A model that does not say how long it takes takes a microsecond a kilobyte.
    mean_ms = (float(told[1]) if told else len(engine) / 1e3) / 1e3
    if "exportProfile" in options:
        layers = [
            {"name": name, "timeMs": mean_ms * 5, "averageMs": mean_ms / 2}
            for name in ("hidden", "head")
        ]
        Path(options["exportProfile"]).write_text(json.dumps([{"count": 10}, *layers]))
        return 0
    for part in filter(None, options.get("loadInputs", "").split(",")):
        assert Path(part.partition(":")[2]).stat().st_size > 0
    runs = max(int(options["iterations"]), 20)
    rows = []
    for number in range(runs):
        compute = mean_ms * (1 + 0.01 * (number % 3 - 1))
        begin = number * 2 * mean_ms
        rows.append(
            {
                "startEnqMs": begin,
                "endEnqMs": begin,
                "startComputeMs": begin,
                "endComputeMs": begin + compute,
                "h2dMs": 0.0,
                "computeMs": compute,
                "d2hMs": 0.0,
                "latencyMs": compute,
            }
        )
    Path(options["exportTimes"]).write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
