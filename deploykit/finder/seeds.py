"""Random numbers that depend on what they are for and on nothing that ran before: so a search can go on anywhere."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = ["derive", "seed_all"]


def derive(seed: int, *words: object) -> int:
    """A seed for one purpose: the same for the same words, unrelated for others.

    Args:
        seed: the seed of the search.
        words: what it is for, e.g. `"order", 3, 17`.

    Returns:
        below 2 ** 32, which every generator takes.
    """
    text = "\x00".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def seed_all(seed: int) -> None:
    """Seed the generators that models, data sets and torch itself draw from."""
    torch.manual_seed(seed)
    # A user's data set may still use the old generator.
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
