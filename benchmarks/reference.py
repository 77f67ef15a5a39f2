"""Run models in ONNX Runtime with every optimisation off, and judge whether two agree.

The yardstick is an output's *spread across inputs*: how far it moves when the input changes. An
output that hardly moves agrees with anything, and proves nothing; a comparison on it is reported
as collapsed, never as passed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Agreement", "Array", "Feed", "Reference", "compare", "draw", "stretch"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feed: TypeAlias = dict[str, Array]

COLLAPSED = 0.01
"""Spread over magnitude below which an output says nothing."""

_DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Reference:
    """A session on one thread, without spinning and without any rewriting of the graph."""

    def __init__(self, model: bytes | Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # what it holds back hurts a machine in use
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
        )
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """The outputs for one input, by name."""
        return dict(zip(self.names, self.session.run(None, feed), strict=True))

    def inputs(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[Any, list[int]]]:
        """Type and shape of each input, where `shapes` tells what the model leaves open.

        Raises:
            ValueError: an open shape that `shapes` does not tell.
        """
        found = {}
        for value in self.session.get_inputs():
            shape = list(shapes.get(value.name, value.shape))
            if not all(isinstance(dim, int) and dim >= 0 for dim in shape):
                msg = f"input '{value.name}' is {value.shape}: give its shape"
                raise ValueError(msg)
            found[value.name] = (_DTYPES[value.type], shape)
        return found


def draw(
    specs: Mapping[str, tuple[Any, list[int]]],
    *,
    seed: int,
    count: int = 4,
    below: int = 100,
) -> list[Feed]:
    """Random inputs, the last of them constant.

    Each has a scale of its own, and an offset for each index of its second axis: noise alone
    would have the same averages in every input, and averages are what most classifiers see.

    Args:
        specs: type and shape by name, see `Reference.inputs`.
        seed: of the draws.
        count: how many, the constant one included.
        below: integers are drawn from 0 to this, exclusive.
    """
    random = np.random.default_rng(seed)
    feeds: list[Feed] = []
    for index in range(count):
        feed = {}
        for name, (dtype, shape) in specs.items():
            if index == count - 1:
                feed[name] = np.ones(shape, dtype)
            elif np.issubdtype(dtype, np.floating):
                noise = random.standard_normal(shape) * random.uniform(0.5, 1.5)
                offsets = [1] * len(shape)
                offsets[1:2] = shape[1:2]
                feed[name] = (noise + random.standard_normal(offsets)).astype(dtype)
            else:
                feed[name] = random.integers(
                    0, 2 if dtype is np.bool_ else below, shape
                ).astype(dtype)
        feeds.append(feed)
    return feeds


def stretch(
    reference: Reference, feed: Feed, *, below: int = 100, most: int = 300
) -> tuple[Feed, int]:
    """The largest multiple by a power of ten of `feed` whose outputs are all finite.

    Integer inputs have no scale: they take the largest value there is, `below - 1`.

    Args:
        reference: the model.
        feed: an ordinary input.
        below: integers are below this.
        most: the largest power to be tried.

    Returns:
        the input, and the power of ten.
    """
    floats = {name for name, array in feed.items() if np.issubdtype(array.dtype, np.floating)}
    if not floats:
        return {
            name: np.full_like(array, 1 if array.dtype == np.bool_ else below - 1)
            for name, array in feed.items()
        }, 0
    largest = min(float(np.finfo(feed[name].dtype).max) for name in floats)
    low, high = 0, min(most, int(np.log10(largest)) - 1)
    with np.errstate(over="ignore"):
        while low < high:  # finite at 10**low as far as we know
            middle = (low + high + 1) // 2
            if _finite(reference(_times(feed, floats, middle))):
                low = middle
            else:
                high = middle - 1
        return _times(feed, floats, low), low


def _times(feed: Feed, floats: set[str], power: int) -> Feed:
    return {
        name: (array.astype(np.float64) * 10.0**power).astype(array.dtype)
        if name in floats
        else array
        for name, array in feed.items()
    }


def _finite(outputs: Mapping[str, Array]) -> bool:
    return all(
        bool(np.isfinite(array).all())
        for array in outputs.values()
        if np.issubdtype(array.dtype, np.floating)
    )


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two models agree on one output, the worst of all.

    Attributes:
        output: name of that output.
        error: largest difference over the spread.
        stretched: the part of the stretched input in it.
        magnitude_error: largest difference over the largest magnitude, ordinary inputs only.
        spread: spread across the ordinary inputs over the largest magnitude.
        tolerance: what `error` may come to.
    """

    output: str
    error: float
    stretched: float
    magnitude_error: float
    spread: float
    tolerance: float

    @property
    def collapsed(self) -> bool:
        """Whether the output moves too little to say anything."""
        return not self.spread >= COLLAPSED

    @property
    def passed(self) -> bool:
        """Whether the two agree; false also for what is not a number."""
        return self.error <= self.tolerance


def compare(
    wanted: Sequence[Mapping[str, Array]], got: Sequence[Mapping[str, Array]]
) -> Agreement:
    """Compare the outputs of two models on ordinary inputs followed by one stretched input.

    The difference on an ordinary input counts against the spread across the ordinary inputs
    only; that on the stretched one against the spread across all. Otherwise the one huge input
    would excuse any difference on the others.

    Returns:
        the worst output; a collapsed one is worse than any that is not.

    Raises:
        ValueError: the models do not have the same outputs, or shapes differ.
    """
    rows = []
    for name in wanted[0]:
        pairs = [(a[name], b[name]) for a, b in zip(wanted, got, strict=True)]
        if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
            msg = f"output '{name}' changed its shape or type"
            raise ValueError(msg)
        rows.append(_agreement(name, pairs))
    if list(wanted[0]) != list(got[0]):
        msg = f"outputs changed: {list(wanted[0])} became {list(got[0])}"
        raise ValueError(msg)
    return max(rows, key=lambda row: (not row.passed, row.collapsed, row.error / row.tolerance))


def _agreement(name: str, pairs: Sequence[tuple[Array, Array]]) -> Agreement:
    half = pairs[0][0].dtype == np.float16
    exact = not np.issubdtype(pairs[0][0].dtype, np.floating)
    tolerance = 5e-3 if half else 1e-4
    if (
        len({a.shape for a, _ in pairs}) > 1
    ):  # sizes that depend on values: compare what is left
        exact = True
    if exact:
        same = all(np.array_equal(a, b) for a, b in pairs)
        return Agreement(name, *[0.0 if same else np.inf] * 3, 1.0, tolerance)
    wanted = np.stack([a.astype(np.float64) for a, _ in pairs])
    got = np.stack([b.astype(np.float64) for _, b in pairs])
    ordinary = wanted[:-1]
    magnitude = float(np.abs(ordinary).max(initial=0))
    spread = float(np.ptp(ordinary, axis=0).max(initial=0))
    overall = float(np.ptp(wanted, axis=0).max(initial=0))
    difference = np.abs(got - wanted).reshape(len(pairs), -1).max(axis=1, initial=0)
    tiny = np.finfo(np.float64).tiny
    stretched = float(difference[-1] / max(overall, tiny))
    error = max(float(difference[:-1].max() / max(spread, tiny)), stretched)
    return Agreement(
        output=name,
        # not a number compares false with everything: make it the worst
        error=error if np.isfinite(error) else np.inf,
        stretched=stretched if np.isfinite(stretched) else np.inf,
        magnitude_error=float(difference[:-1].max() / max(magnitude, tiny)),
        spread=spread / max(magnitude, tiny),
        tolerance=tolerance,
    )
