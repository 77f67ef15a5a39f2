"""Iterative magnitude pruning: each round drops the smallest of what the round before has left and trained.

Source: Frankle and Carbin (2019); rewinding to an early epoch: Frankle et al. (2020), Chen et al. (2022), Algorithm 1.
"""

from __future__ import annotations

from deploykit.finder.ranking import Bools, keep_largest
from deploykit.finder.sources.omp import magnitudes
from deploykit.finder.sources.source import Context, Source

__all__ = ["SOURCE"]


def _choose(context: Context) -> dict[str, Bools]:
    return keep_largest(
        magnitudes(context.model, context.names), context.kept, among=context.masks
    )


SOURCE = Source(
    "imp",
    "iterative magnitude pruning: train, drop the smallest, rewind, repeat",
    "previous",
    0,
    _choose,
    rewind_share=0.05,
)
