"""How much time lowering saves where blocks are certain: `python -m benchmarks.headline --layers`.

- ResNet-18, all 3x3 convolutions in four blocks but the first one: input channels drawn for each layer ("random"), which takes a
  Gather, or permutations that fold completely ("diagonal");
- linear layers in four blocks, under a hidden permutation of their inputs: "diagonal"; and "windows", which overlap by 8.

A row passes if its median saves what graphs written by hand saved, less 2 to 4 points: TARGETS.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import blocks, nets
from benchmarks.saving import percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

    from benchmarks.saving import Bench, Row

__all__ = ["Planted", "cases", "run"]

TARGETS: Mapping[str, float] = {
    "resnet18-cifar/random/75": 0.64,
    "resnet18-cifar/random/58": 0.41,
    "resnet18-cifar/diagonal/75": 0.67,
    "resnet18/random/75": 0.61,
    "resnet18/random/58": 0.40,
    "resnet18/diagonal/75": 0.63,
    "linear-768x768/diagonal/75": 0.60,
    "linear-768x768/windows/74": 0.60,
    "linear-768x3072/diagonal/75": 0.66,
    "linear-768x3072/windows/74": 0.66,
}
"""Share of the time that has to be saved. What was saved by hand was measured on a CPU with AVX512, with counts that are multiples
of 16."""

CONVOLUTIONS: tuple[tuple[blocks.Pattern, float], ...] = (
    ("random", 0.25),
    ("random", 0.42),
    ("diagonal", 0.25),
)
"""Patterns, and the share of the input channels that a block reads."""

CHAINS = {"linear-768x768": (768, 768, 768), "linear-768x3072": (768, 3072)}
LINEARS: tuple[tuple[blocks.Pattern, int], ...] = (("diagonal", 75), ("windows", 74))


@dataclasses.dataclass(frozen=True)
class Planted:
    """A network with blocks that are certain to be there.

    Attributes:
        label: how it is asked for: network, pattern, sparsity of the layers with blocks in percent.
        dense: makes it dense.
        zeroed: makes it with blocks; and the share of zeros in all convolutions, or in the linear layers with blocks.
    """

    label: str
    dense: Callable[[], ir.Model]
    zeroed: Callable[[], tuple[ir.Model, float]]


def cases() -> Iterator[Planted]:
    """All of them."""
    for network in ("resnet18-cifar", "resnet18"):
        for pattern, share in CONVOLUTIONS:
            yield _convolutions(network, pattern, share)
    for name in CHAINS:
        for pattern, sparsity in LINEARS:
            yield _linear(name, pattern, sparsity)


def _convolutions(network: str, pattern: blocks.Pattern, share: float) -> Planted:
    def zeroed() -> tuple[ir.Model, float]:
        made = blocks.planted(network, pattern, share)
        return made.model, made.sparsity

    label = f"{network}/{pattern}/{100 * (1 - share):.0f}"
    return Planted(label, lambda: nets.build(network), zeroed)


def _linear(name: str, pattern: blocks.Pattern, sparsity: int) -> Planted:
    sizes = CHAINS[name]

    def zeroed() -> tuple[ir.Model, float]:
        model = blocks.linear(sizes, pattern)
        weights = [
            model.graph.initializers[f"linear{index}.weight"].const_value
            for index in range(1, len(sizes))
        ]
        zeros = [weight.numpy().ravel() == 0 for weight in weights if weight is not None]
        return model, float(np.concatenate(zeros).mean())

    label = f"{name}/{pattern}/{sparsity}"
    return Planted(label, lambda: blocks.linear(sizes, "dense"), zeroed)


def run(case: Planted, bench: Bench, scratch: Path | None) -> Row:
    """Optimize and time one of them, at batch 1."""
    target = TARGETS.get(case.label)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        model, reached = case.zeroed()
        row = bench.run(case.dense(), model, Path(folder))
    row = {"reached": round(reached, 4), "target": target, **row, "failures": []}
    if "saved" not in row:
        row["failures"] = [f"the outputs differ: error {row['error']}"]
    elif target is not None and row["saved"][0] < target:
        row["failures"] = [f"saves {percent(row['saved'])} %, and has to save {target:.0%}"]
    return row
