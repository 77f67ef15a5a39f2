"""What is known of sparse kernels, as frozen data: four things that must not be taken for each other.

*Eligible* is what our own rules say of the weights, *found* what the builder of an engine says could be sparse, *chosen*
what it says it took, and *tactics* are the kernels that the engine names. Each is None where nobody said it. That sparse
kernels were allowed says nothing, and none of the four is inferred from it or from another one.
"""

from __future__ import annotations

import dataclasses

__all__ = ["EngineRecord", "SparseLayers", "SparseTime", "SparseVerdict", "Tactic"]


@dataclasses.dataclass(frozen=True)
class SparseLayers:
    """Layers that a build log speaks of.

    Attributes:
        count: how many.
        names: which, in the log's words; None where it only counts them.
    """

    count: int
    names: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Tactic:
    """The kernel that an engine names for a layer."""

    layer: str
    tactic: str


@dataclasses.dataclass(frozen=True)
class SparseVerdict:
    """Whether layers run in a sparse form, as far as anybody says.

    Attributes:
        eligible: nodes whose weights obey the pattern and the rules of the target, by our own analysis.
        found: what the builder says could be sparse.
        chosen: what the builder says it took in a sparse form.
        tactics: layers of the engine whose kernel has a name of a sparse one; empty if the engine names kernels and none is.
    """

    eligible: tuple[str, ...] | None = None
    found: SparseLayers | None = None
    chosen: SparseLayers | None = None
    tactics: tuple[Tactic, ...] | None = None


@dataclasses.dataclass(frozen=True)
class SparseTime:
    """A layer timed with its weight dense and in 2:4 form.

    Attributes:
        layer: the node.
        op_type: its operator.
        computed_as: what was timed, and how that stands to the layer.
        product: rows, depth and columns of the matrix product: weight rows, what is summed over, columns of data.
        dense_s: seconds with the dense weight; None if it was not timed.
        sparse_s: seconds with the weight in 2:4 form; None if it has none.
        ratio: sparse over dense; None if one is missing.
        ci95: the 95 % interval of that.
        obeys_2_4: whether the weight has the pattern as it is. Where it has not, its largest two of each four were timed.
        error: largest difference of the two results over the largest result; None if it was not compared.
        reason: why there is no sparse time; empty if there is one.
    """

    layer: str
    op_type: str
    computed_as: str
    product: tuple[int, int, int]
    dense_s: float | None
    sparse_s: float | None
    ratio: float | None
    ci95: tuple[float, float] | None
    obeys_2_4: bool
    error: float | None
    reason: str


@dataclasses.dataclass(frozen=True)
class EngineRecord:
    """An engine that was built of the written model.

    Attributes:
        runtime: name and version of what built it.
        file: its file in the result folder.
        bytes: its size.
        seconds: how long the build took.
        compute_capabilities: the GPUs it was built for; empty for that of this machine.
        shapes: the sizes of the inputs it was built for, by input.
        sparse: what is known of sparse kernels in it.
        ran: whether it was run here; if not, nothing is known of its outputs and its speed.
    """

    runtime: str
    file: str
    bytes: int
    seconds: float
    compute_capabilities: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    sparse: SparseVerdict
    ran: bool = False
