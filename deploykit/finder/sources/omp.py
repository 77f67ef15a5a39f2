"""One-shot magnitude pruning: the largest weights of the trained dense network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deploykit.finder.ranking import Array, Bools, keep_largest
from deploykit.finder.sources.source import Context, Source

__all__ = ["SOURCE", "magnitudes"]


@torch.no_grad()
def magnitudes(model: nn.Module, names: Sequence[str]) -> dict[str, Array]:
    """|w| of each of these weights, in their shapes and precision."""
    state = model.state_dict()
    return {name: state[name].abs().cpu().numpy() for name in names}


def _choose(context: Context) -> dict[str, Bools]:
    return keep_largest(magnitudes(context.model, context.names), context.kept)


SOURCE = Source(
    "omp",
    "one-shot magnitude pruning of the trained dense network",
    "dense",
    0,
    _choose,
    rewind_share=0.05,
)
