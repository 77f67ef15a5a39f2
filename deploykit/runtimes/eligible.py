"""Which layers of a model sparse kernels could take, by our own rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["eligible_nodes"]


FIRST_SPARSE: Final = (8, 0)
"""The first compute capability with sparse tensor cores: Ampere, as NVIDIA's documentation of 2:4 says."""


def eligible_nodes(model: Path, capabilities: Sequence[str] = ()) -> tuple[str, ...]:
    """Nodes whose weights obey 2:4, and against which no rule of TensorRT stands; some of them may not be picked.

    Args:
        model: the file.
        capabilities: compute capabilities of the GPUs that it is built for, as "8.6"; none if that is not known.

    Returns:
        names of nodes; none if no GPU among those has sparse tensor cores.
    """
    if capabilities and all(
        tuple(int(part) for part in name.split(".")) < FIRST_SPARSE for name in capabilities
    ):
        return ()
    from deploykit import one_file
    from passes.analysis.eligibility import find_eligibility
    from passes.targets import TARGETS

    return tuple(
        found.node
        for found in find_eligibility(one_file.load(model), TARGETS["tensorrt"])
        if found.verdict in {"eligible", "doubtful"}
    )
