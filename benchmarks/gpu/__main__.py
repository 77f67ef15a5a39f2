"""Everything that CPUs cannot show, on any machine with an NVIDIA GPU.

    python -m benchmarks.gpu [--only resnet50,vit-b] [--batches 1,8] [--quick]

ResNet-18 and -50, VGG-16, MobileNetV2 and layers of ViT-B and BERT-base, in fp16: dense, with channels removed, in blocks and
2:4; in TensorRT and TensorRT-RTX (engines, and what is known of sparse kernels), ONNX Runtime on CUDA, PyTorch (layers dense
and semi-structured), and trtexec if it is on the path. Outputs are compared with ONNX Runtime on the CPU in fp32. What is
missing is a row with the reason. Without any GPU it prints what each runtime can do here and ends with exit code 4; nothing
is written then.

Rows go to a state file of this GPU and these versions; a run that is started again does what is missing. The tables go to
results/gpu.json and results/gpu.md. Weights are random and nothing is downloaded. Nothing passes or fails but outputs: exit
code 1 means that one is further off than TOLERANCE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import results
from benchmarks.gpu import forms, measuring, tables
from deploykit import runtimes
from deploykit.errors import DeploykitError, RuntimeUnavailable
from deploykit.runtimes import onnxruntime as ort
from deploykit.runtimes.probe import find_driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.gpu.measuring import Row, Saved
    from deploykit.runtimes import Capabilities, Runner

TOLERANCE = 0.05
"""Largest error of an output that half precision explains, as a share of what the output moves by: on CPUs these networks
are off by 0.001 to 0.005 in fp16."""
ENGINES = ("tensorrt", "tensorrt-rtx", "torch")
OTHERS = ("onnxruntime-cuda", "trtexec")


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    found = {name: runtimes.capabilities(name) for name in runtimes.RUNTIMES}
    driver = find_driver()
    if not driver:
        _print(found)
        print(
            f"error: {driver.reason}. Nothing was run, and nothing is written.", file=sys.stderr
        )
        return RuntimeUnavailable.exit_code
    _print(found)
    state = (
        options.state or Path("build/benchmarks") / f"gpu-{_key(found, options.quick)}.jsonl"
    )
    rows = _run(options, found, state)
    device = driver.reason
    title = f"On a GPU: {device}" + (" (quick: proves nothing)" if options.quick else "")
    versions = {name: each.version for name, each in found.items()}
    rows = [{"gpu": device, "versions": versions, **row} for row in rows]
    text = tables.write_tables(rows)
    print(text)
    if not options.quick:
        results.save("gpu", rows, title, text)
    wrong = [row for row in rows if row.get("error", 0.0) > TOLERANCE]
    for row in wrong:
        print(f"WRONG: {row['network']} {row['form']} in {row['runtime']}: {row['error']:.3g}")
    return 1 if wrong else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    def names(text: str) -> tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--only", type=names, default=forms.NETWORKS, metavar="NETWORK,...")
    parser.add_argument(
        "--runtimes", type=names, default=(*ENGINES, *OTHERS), metavar="NAME,..."
    )
    parser.add_argument("--batches", type=names, default=("1", "8"), metavar="N,...")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a moment for each; proves nothing, and is not saved",
    )
    parser.add_argument(
        "--state",
        type=Path,
        help="where rows are kept [default: build/benchmarks/gpu-....jsonl]",
    )
    options = parser.parse_args(arguments)
    for given, known in (
        (options.only, forms.NETWORKS),
        (options.runtimes, (*ENGINES, *OTHERS)),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"there is no {', '.join(unknown)}. There are: {', '.join(known)}")
    if not all(text.isdecimal() and int(text) for text in options.batches):
        parser.error("--batches takes whole numbers, such as 1,8")
    return options


def _run(options: argparse.Namespace, found: dict[str, Capabilities], state: Path) -> list[Row]:
    """Do what the state file does not have yet; all rows, in order."""
    state.parent.mkdir(parents=True, exist_ok=True)
    done: dict[tuple[str, int, str], list[Row]] = {}
    for line in state.read_text().splitlines() if state.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            # Half a line, of a run that was killed.
            continue
        done[row["network"], row["batch"], row["asked"]] = row["rows"]
    runners: dict[str, Runner | str] = {}
    rows: list[Row] = []
    for name in (name for name in options.runtimes if name in ENGINES):
        runners[name] = _start(name, found[name])
    for network in options.only:
        for batch in map(int, options.batches):
            missing = [name for name in options.runtimes if (network, batch, name) not in done]
            with tempfile.TemporaryDirectory() as folder:
                saved = measuring.save(network, batch, Path(folder)) if missing else None
                for name in missing:
                    print(f"{network}, batch {batch}, {name}", file=sys.stderr, flush=True)
                    made = _rows(name, runners, saved, quick=options.quick)
                    done[network, batch, name] = made
                    with state.open("a") as file:
                        row = {"network": network, "batch": batch, "asked": name, "rows": made}
                        file.write(json.dumps(row) + "\n")
            for name in options.runtimes:
                rows += [
                    {"network": network, "batch": batch, **row}
                    for row in done[network, batch, name]
                ]
    return rows


def _start(name: str, found: Capabilities) -> Runner | str:
    """What runs models in a runtime, or why nothing does."""
    if not found.can_run:
        return found.can_run.reason
    try:
        return runtimes.start(name) or ""
    except DeploykitError as error:
        return str(error)


def _rows(
    name: str, runners: dict[str, Runner | str], saved: Saved | None, *, quick: bool
) -> list[Row]:
    assert saved is not None
    if name == "trtexec":
        return measuring.time_trtexec(saved, quick=quick)
    if name == "onnxruntime-cuda":
        if measuring.CUDA not in ort.capabilities().providers:
            reason = "this build of onnxruntime has no CUDA: install onnxruntime-gpu"
            return [{"runtime": name, "reason": reason}]
        return measuring.time_in_onnxruntime(saved, quick=quick)
    runner = runners[name]
    if isinstance(runner, str):
        return [{"runtime": name, "reason": runner}]
    return measuring.time_in_runner(saved, runner, quick=quick)


def _key(found: dict[str, Capabilities], quick: bool) -> str:
    """Tells GPUs and versions apart, so that rows of one are not taken for those of another."""
    text = json.dumps(
        [[name, each.version, each.providers, quick] for name, each in found.items()]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _print(found: dict[str, Capabilities]) -> None:
    """What each runtime can do here."""
    for name, each in found.items():
        print(f"{name} {each.version or '(not installed)'}: ", end="")
        print(
            f"runs ({each.can_run.reason})"
            if each.can_run
            else f"does not run: {each.can_run.reason}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
