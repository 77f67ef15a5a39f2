"""A plain search for a good order of channels, to hold the real one against: assignment of one column a group, nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["kept", "search"]


def kept(magnitudes: npt.NDArray[Any]) -> float:
    """Magnitude that 2:4 keeps of `(rows, channels)`: the two largest of each aligned four."""
    fours = np.sort(magnitudes.reshape(len(magnitudes), -1, 4), 2)
    return float(fours[:, :, 2:].sum(dtype=np.float64))


def search(
    magnitudes: npt.NDArray[Any], *, seconds: float = 60, patience: int = 60, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Take a random column out of every group, put all back by the best assignment; until that gains nothing `patience` times.

    Args:
        magnitudes: shape `(rows, channels)`.
        seconds: the longest it may take.
        patience: rounds without a gain.
        seed: of the random columns.
    """
    dice = np.random.default_rng(seed)
    groups = np.arange(magnitudes.shape[1]).reshape(-1, 4)
    best, still, began = kept(magnitudes), 0, time.perf_counter()
    while still < patience and time.perf_counter() - began < seconds:
        out = dice.integers(0, 4, len(groups))
        free = groups[np.arange(len(groups)), out]
        staying = np.stack(
            [np.delete(group, at) for group, at in zip(groups, out, strict=True)]
        )
        rest = np.sort(magnitudes[:, staying], 2)
        first, second = rest[:, :, 2], rest[:, :, 1]
        worth = np.stack(
            [(first + np.maximum(second, magnitudes[:, [column]])).sum(0) for column in free], 1
        )
        rows, columns = linear_sum_assignment(-worth)
        groups[rows, out[rows]] = free[columns]
        now = kept(magnitudes[:, groups.ravel()])
        still = 0 if now > best * (1 + 1e-9) else still + 1
        best = max(best, now)
    return groups.ravel()
