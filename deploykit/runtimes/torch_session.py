"""Runs the layers of a model in PyTorch on a GPU, each with its weight dense or in 2:4 form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import ModelError
from deploykit.report.sparse_records import SparseTime
from deploykit.runtimes import Array
from deploykit.runtimes.torch_products import Layer, limits, sparse_weight

if TYPE_CHECKING:
    from deploykit.profile.statistics import Timings

__all__ = ["LayerSession", "Machine", "Prepared", "measure_sparse", "prepare", "timed"]

BUILDS, ROUNDS, REPEAT = 3, 20, 10
"""Times that a layer's tensors are made anew, rounds of each, and runs in a round: one run of a small layer is as short as
the steps of the device's clock."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """PyTorch on a GPU.

    Attributes:
        torch: the module.
        device: the GPU, in words.
        backend: what multiplies 2:4 weights; None if nothing does.
        why_dense: why nothing does; empty if something does.
        dtype: "float16" or "bfloat16".
        place: PyTorch's word for the device.
    """

    torch: Any
    device: str
    backend: str | None
    why_dense: str
    dtype: str = "float16"
    place: str = "cuda"


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A layer on the device.

    Attributes:
        layer: what it is.
        dense: multiplies by the weight, as it is or reduced to 2:4.
        sparse: multiplies by the same weight in 2:4 form; None if it has none.
        obeys: whether the weight is 2:4 as it is.
        why_dense: why there is no sparse form; empty if there is one.
    """

    layer: Layer
    dense: Callable[[], Any]
    sparse: Callable[[], Any] | None
    obeys: bool
    why_dense: str


class LayerSession:
    """The layers of a model, one after the other: those whose weights are 2:4 in their sparse form, the others dense.

    Raises:
        ModelError: the model has no layer that could be run.
    """

    def __init__(self, machine: Machine, layers: Sequence[Layer]) -> None:
        self._machine = machine
        prepared = [prepare(machine, layer) for layer in layers if layer.weight is not None]
        if not prepared:
            why = "; ".join(dict.fromkeys(layer.refusal for layer in layers)) or "it has none"
            msg = f"no layer of the model multiplies by a weight that torch could run by itself: {why}."
            raise ModelError(msg)
        self._work = [
            each.sparse if each.obeys and each.sparse is not None else each.dense
            for each in prepared
        ]

    def run(self, names: None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run all layers once; they are not joined to a network, so that nothing comes out."""
        del names
        self.device_s(feeds)
        return []

    def device_s(self, feeds: Mapping[str, Array]) -> float:
        """Run all layers once; seconds by the device's clock."""
        del feeds
        return timed(self._machine.torch, self._run_all)

    def get_providers(self) -> list[str]:
        """The GPU."""
        return [self._machine.device]

    def close(self) -> None:
        """Give the memory back."""
        self._work = []

    def _run_all(self) -> None:
        for work in self._work:
            work()


def prepare(machine: Machine, layer: Layer, *, reduce: bool = False) -> Prepared:
    """Bring a layer to the device.

    Args:
        machine: what runs it.
        layer: one with a matrix.
        reduce: whether a weight that is not 2:4 is made so, by dropping the smaller two of each four, to be timed.
    """
    from passes.analysis.patterns import TWO_OF_FOUR, best_mask, obeys

    torch = machine.torch
    dtype = getattr(torch, machine.dtype)
    matrix, (_, depth, columns) = layer.weight, layer.product
    assert matrix is not None, "only layers with a matrix are prepared"  # noqa: S101
    fits = depth % 4 == 0
    is_obeying = fits and obeys(matrix, 1, TWO_OF_FOUR)
    why = _why_dense(machine, layer, dtype)
    if fits and not is_obeying:
        if reduce:
            matrix = matrix * best_mask(matrix, 1, TWO_OF_FOUR)
        else:
            why = why or "its weight is not 2:4"
    weight = (
        torch.from_numpy(np.ascontiguousarray(matrix)).to(machine.place, dtype).contiguous()
    )
    dice = torch.Generator(device=machine.place).manual_seed(0)
    size = (columns, depth) if layer.is_linear else (depth, columns)
    data = torch.randn(size, device=machine.place, dtype=dtype, generator=dice)
    multiply = _linear if layer.is_linear else _product
    packed = None if why else _fastest(machine, weight, data, layer)
    return Prepared(
        layer,
        lambda: multiply(torch, weight, data),
        None if packed is None else lambda: multiply(torch, packed, data),
        is_obeying,
        why,
    )


def measure_sparse(machine: Machine, layers: Sequence[Layer]) -> tuple[SparseTime, ...]:
    """Time each layer with its weight dense and in 2:4 form, in turns."""
    return tuple(_measure(machine, layer) for layer in layers)


def _measure(machine: Machine, layer: Layer) -> SparseTime:
    from deploykit.profile.statistics import Timings, paired_ratio

    if layer.weight is None:
        return SparseTime(
            *(layer.name, layer.op_type, layer.computed_as, layer.product),
            *(None, None, None, None),
            obeys_2_4=False,
            error=None,
            reason=layer.refusal,
        )
    torch = machine.torch
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    rebuild: list[int] = []
    error: float | None = None
    prepared = None
    for build in range(BUILDS):
        # What the weights come to lie beside of changes from one build to the next.
        prepared = prepare(machine, layer, reduce=True)
        forms = {"dense": prepared.dense}
        if prepared.sparse is not None:
            forms["sparse"] = prepared.sparse
            error = max(error or 0.0, _error(prepared.dense(), prepared.sparse()))
        replays = {name: _captured(torch, work) for name, work in forms.items()}
        for turn in range(ROUNDS):
            order = list(replays) if turn % 2 else list(replays)[::-1]
            for name in order:
                replays[name]()
                seconds[name].append(timed(torch, replays[name]) / REPEAT)
            rebuild.append(build)
    assert prepared is not None, "there is at least one build"  # noqa: S101

    def timings(name: str) -> Timings:
        samples = np.asarray(seconds[name])
        return Timings(np.asarray(rebuild), samples, samples)

    dense_s = float(np.median(seconds["dense"]))
    common = (layer.name, layer.op_type, layer.computed_as, layer.product, dense_s)
    if prepared.sparse is None:
        return SparseTime(
            *common,
            *(None, None, None),
            obeys_2_4=prepared.obeys,
            error=None,
            reason=prepared.why_dense,
        )
    ratio = paired_ratio(timings("dense"), timings("sparse"), threads=None, clock="device")
    return SparseTime(
        *common,
        float(np.median(seconds["sparse"])),
        ratio.median,
        (ratio.lo, ratio.hi),
        obeys_2_4=prepared.obeys,
        error=error,
        reason="",
    )


def _why_dense(machine: Machine, layer: Layer, dtype: Any) -> str:  # noqa: ANN401 - of a module
    """Why a layer has no sparse form; empty if it may have one."""
    if machine.backend is None:
        return machine.why_dense
    rows, depth, _ = layer.product
    by_rows, by_depth = limits(machine.torch, machine.backend, dtype)
    if depth % 4:
        return f"its {depth} inputs are no multiple of 4"
    if rows % by_rows or depth % by_depth:
        return (
            f"{machine.backend} takes {machine.dtype} weights whose rows are a multiple of {by_rows} and whose columns are one of "
            f"{by_depth}; this one is {rows} x {depth}"
        )
    return ""


def _fastest(machine: Machine, weight: Any, data: Any, layer: Layer) -> Any:  # noqa: ANN401 - tensors
    """The weight in its sparse form, with the algorithm that cuSPARSELt finds the fastest for these sizes."""
    torch = machine.torch
    packed = sparse_weight(torch, weight)
    if machine.backend != "cusparselt":
        return packed
    other = data.t() if layer.is_linear else data
    try:
        best = torch._cslt_sparse_mm_search(packed.packed, other)  # noqa: SLF001 - what PyTorch's documentation names
    except RuntimeError:
        # Without the search, the first algorithm is what a user gets, too.
        return packed
    return sparse_weight(torch, weight, algorithm=int(best))


def _linear(torch: Any, weight: Any, data: Any) -> Any:  # noqa: ANN401 - tensors
    return torch.nn.functional.linear(data, weight)


def _product(torch: Any, weight: Any, data: Any) -> Any:  # noqa: ANN401 - tensors
    return torch.mm(weight, data)


def _captured(torch: Any, work: Callable[[], Any]) -> Callable[[], None]:  # noqa: ANN401 - a module
    """Several runs of some work as one CUDA graph, so that the device and not the host sets the pace."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEAT):
            work()
    replay: Callable[[], None] = graph.replay
    return replay


def timed(torch: Any, work: Callable[[], Any]) -> float:  # noqa: ANN401 - a module
    """Seconds that some work takes, by the device's clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def _error(dense: Any, sparse: Any) -> float:  # noqa: ANN401 - tensors
    """Largest difference over the largest element."""
    scale = float(dense.float().abs().max())
    return float((dense.float() - sparse.float()).abs().max()) / (scale or 1.0)
