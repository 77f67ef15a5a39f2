"""What a source of masks is given, and what it says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from torch import nn

from deploykit.finder.examples import Batch
from deploykit.finder.ranking import Bools
from deploykit.finder.task import Task

__all__ = ["Context", "Source"]


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What a source may look at.

    Attributes:
        task: for its loss.
        model: the network with the weights that are scored, on its device; a source may do with it what it likes.
        names: weights that may be pruned.
        kept: how many of them stay.
        masks: what is left of them so far; sources that start over do not look at it.
        batches: training examples on the model's device; empty for a source that needs none.
        seed: for sources that draw.
    """

    task: Task
    model: nn.Module
    names: tuple[str, ...]
    kept: int
    masks: Mapping[str, Bools]
    batches: tuple[Batch, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Source:
    """A way to choose what stays.

    Attributes:
        name: how it is asked for.
        summary: what it does, for help.
        weights: which weights are scored: those that tickets start from, those of the trained dense network, or those of
            the round before.
        examples: how many training examples it wants to see, at most.
        choose: the masks, by weight.
        rewind_share: part of the epochs after which weights are taken to start tickets from, if nothing else is asked for.
    """

    name: str
    summary: str
    weights: Literal["start", "dense", "previous"]
    examples: int
    choose: Callable[[Context], dict[str, Bools]]
    rewind_share: float = 0.0

    @property
    def one_shot(self) -> bool:
        """Whether a mask needs no rounds before it."""
        return self.weights != "previous"
