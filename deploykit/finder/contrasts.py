"""What a ticket is held against: its own mask on newly drawn weights, and a random mask of the same structure."""

from __future__ import annotations

import numpy as np

from deploykit.finder.ranking import Array, Bools
from deploykit.finder.training import Masks, Weights

__all__ = ["NEW_WEIGHTS", "RANDOM", "REINIT", "shuffle_masks"]

REINIT = "re-initialised"
RANDOM = "random mask"

NEW_WEIGHTS = 10_000
"""Added to the seed of a search for the weights of a re-initialised network."""


def shuffle_masks(
    masks: Masks, weights: Weights, seed: int, number: int
) -> tuple[dict[str, Bools], dict[str, Array]]:
    """Masks and the weights that they are scored by, in another order within each layer.

    What a structure makes of them is a random mask of that structure, with as many weights of the same sizes in each layer.

    Args:
        masks: by the names of their weights.
        weights: the state dict.
        seed: of the search.
        number: of the round.
    """
    dice = np.random.default_rng([seed % 2**32, number])
    shuffled, scored = {}, dict(weights)
    for name, mask in masks.items():
        order = dice.permutation(mask.size)
        shuffled[name] = mask.ravel()[order].reshape(mask.shape)
        scored[name] = weights[name].ravel()[order].reshape(mask.shape)
    return shuffled, scored
