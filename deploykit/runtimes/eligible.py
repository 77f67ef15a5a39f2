"""Which layers of a model sparse kernels could take, by our own rules."""

from __future__ import annotations

from pathlib import Path

__all__ = ["eligible_nodes"]


def eligible_nodes(model: Path) -> tuple[str, ...] | None:
    """Nodes whose weights obey 2:4 and the rules of the target; None if that is not known."""
    del model
    return None
