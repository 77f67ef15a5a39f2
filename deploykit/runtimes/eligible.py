"""Which layers of a model sparse kernels could take, by our own rules."""

from __future__ import annotations

from pathlib import Path

__all__ = ["eligible_nodes"]


def eligible_nodes(model: Path) -> tuple[str, ...] | None:
    """Nodes whose weights obey 2:4, and against which no rule of TensorRT stands; some of them may not be picked.

    Args:
        model: the file.
    """
    from deploykit import one_file
    from passes.analysis.eligibility import find_eligibility
    from passes.targets import TARGETS

    return tuple(
        found.node
        for found in find_eligibility(one_file.load(model), TARGETS["tensorrt"])
        if found.verdict in {"eligible", "doubtful"}
    )
