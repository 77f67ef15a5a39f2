"""Random weights of all layers together: what every other source has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploykit.finder.ranking import Array, Bools, keep_largest
from deploykit.finder.sources.source import Context, Source

__all__ = ["SOURCE", "draws"]


def draws(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Scores between 0 and 1, the same for the same seed: lower densities keep a part of what higher ones keep."""
    dice = np.random.default_rng(seed)
    return {name: dice.random(shape) for name, shape in shapes.items()}


def _choose(context: Context) -> dict[str, Bools]:
    state = context.model.state_dict()
    shapes = {name: tuple(state[name].shape) for name in context.names}
    return keep_largest(draws(shapes, context.seed), context.kept)


SOURCE = Source("random", "random weights of all layers together", "start", 0, _choose)
