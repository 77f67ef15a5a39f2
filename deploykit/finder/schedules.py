"""Learning rates over the steps of a training run; both are stepped after every step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["cosine", "steps"]


def cosine(
    optimizer: Optimizer, epochs: int, steps_per_epoch: int, *, warmup_epochs: float = 0.0
) -> LambdaLR:
    """From the optimizer's learning rate down to 0 along half a cosine.

    Args:
        optimizer: what is scheduled.
        epochs: length of the run.
        steps_per_epoch: steps of the optimizer in an epoch.
        warmup_epochs: a linear rise before that, part of `epochs`.
    """
    total = max(1, epochs * steps_per_epoch)
    warmup = min(total, round(warmup_epochs * steps_per_epoch))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        # The scheduler asks once more after the last step.
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def steps(
    optimizer: Optimizer,
    epochs: int,
    steps_per_epoch: int,
    *,
    at: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> LambdaLR:
    """The learning rate is multiplied at parts of the run; 80 and 120 of 160 epochs are the usual ones.

    Args:
        optimizer: what is scheduled.
        epochs: length of the run.
        steps_per_epoch: steps of the optimizer in an epoch.
        at: where, as parts of the run between 0 and 1.
        factor: what it is multiplied by each time.
    """
    total = max(1, epochs * steps_per_epoch)
    marks = [math.ceil(part * total) for part in at]
    return LambdaLR(optimizer, lambda step: factor ** sum(step >= mark for mark in marks))
