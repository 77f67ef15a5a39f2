"""What a search says of itself while it runs, and an estimate of how long it still takes."""

from __future__ import annotations

import dataclasses
import time
from typing import Protocol

__all__ = ["Clock", "Progress", "Status", "silent"]


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a search is.

    Attributes:
        stage: what is being done, in words.
        round: number of the round; 0 is the dense network.
        rounds: number of the last round.
        epoch: epochs of this training that are done.
        epochs: its length; 0 where nothing is trained.
        sparsity: part of the prunable weights that is dropped.
        metric: the validation metric after the last epoch; None before.
        done: part of the whole search that is done, 0 to 1.
        left_s: seconds that the rest will take; None before there is a guess.
        seed: which of several searches this is; empty where there is one.
        arm: what is trained, where it is not part of the search itself.
    """

    stage: str
    round: int
    rounds: int
    epoch: int
    epochs: int
    sparsity: float
    metric: float | None
    done: float
    left_s: float | None
    seed: str = ""
    arm: str = ""


class Progress(Protocol):
    """Told where a search is, after every epoch and when something else begins."""

    def __call__(self, status: Status) -> None:
        """The search is here now."""
        ...


def silent(status: Status) -> None:
    """A Progress that says nothing."""
    del status


class Clock:
    """Counts epochs, of all that there will be, and guesses when they are through.

    Args:
        total: epochs of the whole search.
        done: of them done by an earlier run.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = max(1, total)
        self.done = done
        self._here = 0
        self._began_s = time.monotonic()

    def tick(self, epochs: int = 1) -> None:
        """So many epochs were trained now."""
        self.done += epochs
        self._here += epochs

    def skip(self, epochs: int) -> None:
        """So many epochs need no training: an earlier run did it."""
        self.done += epochs

    @property
    def part(self) -> float:
        """The part that is done."""
        return min(1.0, self.done / self.total)

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest will take, at the pace so far."""
        if not self._here:
            return None
        pace_s = (time.monotonic() - self._began_s) / self._here
        return pace_s * max(0, self.total - self.done)
