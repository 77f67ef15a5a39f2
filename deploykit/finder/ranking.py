"""Keeps the largest scores of all weights together: an exact number of them, and the same ones every time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from deploykit.errors import UsageError

__all__ = ["Array", "Bools", "count_kept", "keep_largest", "plan_counts"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


def keep_largest(
    scores: Mapping[str, Array], kept: int, *, among: Mapping[str, Bools] | None = None
) -> dict[str, Bools]:
    """Masks that keep the `kept` weights of largest score, over all layers.

    Of equal scores the first one wins, in the order of the names and of the elements in memory, so that neither the count
    nor the choice depends on how a machine sorts.

    Args:
        scores: by weight, in its shape; finite.
        kept: how many weights stay, over all.
        among: True where a weight is left; all others stay dropped.

    Returns:
        by weight, in its shape; True keeps.

    Raises:
        UsageError: a score is not finite, or fewer than `kept` weights are left.
    """
    for name, score in scores.items():
        if not np.isfinite(score).all():
            msg = (
                f"scores of the weight '{name}' are not finite: it cannot be ranked. The training diverged, or its gradients "
                "overflow. Lower the learning rate."
            )
            raise UsageError(msg)
    flat = np.concatenate([score.reshape(-1) for score in scores.values()])
    if among is None:
        places = np.arange(flat.size)
    else:
        places = np.flatnonzero(np.concatenate([among[name].reshape(-1) for name in scores]))
    if not 0 <= kept <= places.size:
        msg = f"{kept:,} weights cannot be kept of {places.size:,} that are left."
        raise UsageError(msg)
    chosen = np.zeros(flat.size, np.bool_)
    if kept:
        left = flat[places]
        threshold = np.partition(left, left.size - kept)[left.size - kept]
        above = left > threshold
        chosen[places[above]] = True
        equal = places[left == threshold]
        chosen[equal[: kept - np.count_nonzero(above)]] = True
    masks, start = {}, 0
    for name, score in scores.items():
        masks[name] = chosen[start : start + score.size].reshape(score.shape)
        start += score.size
    return masks


def count_kept(masks: Mapping[str, Bools]) -> int:
    """How many weights masks keep."""
    return sum(int(np.count_nonzero(mask)) for mask in masks.values())


def plan_counts(
    total: int, *, rounds: int | None, sparsity: float | None, rate: float, one_shot: bool
) -> tuple[int, ...]:
    """How many weights stay after each round.

    Each round keeps the same part of what was left. With a sparsity the last round reaches it exactly: in the given
    number of rounds, else in as few as take no more than `rate` each, or in one where the source needs one only.

    Args:
        total: weights that may be pruned.
        rounds: of pruning.
        sparsity: part of `total` that is dropped in the end.
        rate: part of the remaining weights that a round drops.
        one_shot: whether the source is as good at any density without the rounds before.

    Raises:
        UsageError: neither rounds nor a sparsity is given, or they leave nothing to keep or to prune.
    """
    if sparsity is None:
        if rounds is None:
            msg = "how sparse should the ticket be? Give a number of rounds, or a sparsity."
            raise UsageError(msg)
        density = (1.0 - rate) ** rounds
    else:
        density = 1.0 - sparsity
        if rounds is None:
            # A sparsity of exactly three rounds must not become four by rounding.
            exact = math.log(density) / math.log(1.0 - rate)
            rounds = 1 if one_shot else max(1, math.ceil(exact - 1e-9))
    counts = [round(total * density ** (number / rounds)) for number in range(1, rounds + 1)]
    check_counts(counts, total)
    return tuple(counts)


def check_counts(counts: Sequence[int], total: int) -> None:
    """Refuse counts that keep nothing, or that a round does not change.

    Raises:
        UsageError: so it is.
    """
    if not counts or counts[-1] < 1:
        msg = f"nothing of the {total:,} weights would be left. Take fewer rounds, or a lower sparsity."
        raise UsageError(msg)
    if any(after >= before for before, after in zip((total, *counts), counts, strict=False)):
        msg = f"there are rounds that would prune nothing of the {total:,} weights. Take fewer rounds, or a higher sparsity."
        raise UsageError(msg)
