"""The search: train, prune, rewind, repeat; each round is saved, and taken up where an earlier run stopped.

Structures are applied to a copy of a round's mask, which is then trained from the rewound weights; pruning itself goes on
from the mask without structure (Chen et al., 2022, section 3), unless regrouping is asked for inside every round (Algorithm 4
there). Scores of a structure come from the trained weights that the round's mask was taken from.

Sources that train N:M masks go another way: see `deploykit.finder.nm`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import UsageError
from deploykit.finder.contrasts import NEW_WEIGHTS, RANDOM, REINIT, shuffle_masks
from deploykit.finder.engine import Engine, PlainEngine, deterministic
from deploykit.finder.nm import METHODS
from deploykit.finder.nm.search import NMSearch
from deploykit.finder.progress import Progress, silent
from deploykit.finder.ranking import count_kept, plan_counts
from deploykit.finder.rounds import CHECKPOINT_S, Result, Rounds
from deploykit.finder.seeds import derive
from deploykit.finder.settings import Settings, check_settings
from deploykit.finder.sources import SOURCES, Context
from deploykit.finder.structuring import Structured, apply_structure, check_counts
from deploykit.finder.task import Task
from deploykit.finder.training import Masks, Weights
from deploykit.ticket import Ticket

__all__ = ["Result", "Settings", "check_settings", "search"]


def search(
    task: Task,
    settings: Settings,
    folder: Path,
    *,
    engine: Engine | None = None,
    force: bool = False,
    progress: Progress = silent,
    checkpoint_s: float = CHECKPOINT_S,
) -> Result:
    """Find a ticket, or go on with a search that was interrupted.

    Args:
        task: what the network is to learn.
        settings: what to search for.
        folder: for the ticket, the rounds and the metrics.
        engine: where to train; one process on the CPU by default.
        force: whether another search in that folder may be replaced.
        progress: told after every epoch.
        checkpoint_s: seconds of training after which an epoch's end is saved.

    Raises:
        UsageError: settings or the task make no sense, the training diverged, or the folder holds something else.
        ModelError: a saved round is damaged, or memory ran out.
    """
    check_settings(settings)
    engine = PlainEngine("cpu") if engine is None else engine
    with deterministic(settings.deterministic):
        kind = NMSearch if settings.source in METHODS else _Search
        found = kind(
            task,
            settings,
            folder,
            engine=engine,
            progress=progress,
            checkpoint_s=checkpoint_s,
        )
        return found.run(force=force)


@dataclasses.dataclass(frozen=True, eq=False)
class _Last:
    """What the last round's mask was made from.

    Attributes:
        masks: without structure.
        scored: the weights that it was chosen by.
        start: the weights that it was trained from.
    """

    masks: Masks
    scored: Weights
    start: Weights


class _Search(Rounds):
    """Masks from a source, round by round."""

    _last = _Last({}, {}, {})

    def _plan_counts(self) -> tuple[int, ...]:
        self._source = SOURCES[self._settings.source]
        return plan_counts(
            self._total,
            rounds=self._settings.rounds,
            sparsity=self._settings.sparsity,
            rate=self._settings.rate,
            one_shot=self._source.one_shot,
        )

    def _find_rewind(self) -> int | None:
        asked, epochs = self._settings.rewind, self._trainer.epochs
        if asked == "none":
            if self._source.one_shot and self._source.weights == "start":
                msg = f"'{self._source.name}' scores weights before training: tickets start from them. Give an epoch to rewind to."
                raise UsageError(msg)
            return None
        if asked == "default":
            return min(epochs - 1, round(self._source.rewind_share * epochs))
        return self._check_rewind(asked)

    def _describe_method(self) -> dict[str, Any]:
        given = self._settings
        return {
            "structure": None if given.structure is None else given.structure.describe(),
            "every_round": given.every_round,
            "group_aware": given.group_aware,
        }

    def _has_structure(self, number: int) -> bool:
        given = self._settings
        return given.structure is not None and (
            given.every_round or given.group_aware or number == len(self._counts)
        )

    def _has_plain(self, number: int) -> bool:
        """Whether a round's mask without structure is trained: where it is the result, or the next round needs it."""
        given = self._settings
        if given.structure is None:
            return True
        return (
            not given.group_aware and not self._source.one_shot and number < len(self._counts)
        )

    def _count_trainings(self) -> int:
        return sum(
            self._has_plain(number) + self._has_structure(number)
            for number in range(1, len(self._counts) + 1)
        )

    def _find(self) -> Ticket:
        check_counts(self._trainer, self._settings.structure)
        dense = self._round(0, self._initial, {})
        found = previous = dense
        start = self._load_start()
        for number, kept in enumerate(self._counts, 1):
            masks = self._choose(number, kept, dense, previous, start)
            # The weights that the mask was taken from: what is large in them is worth a structure.
            scored = (
                start
                if self._source.weights == "start"
                else (dense if self._source.one_shot else previous).weights
            )
            first = start if self._rewind is not None else scored
            self._last = _Last(masks, scored, first)
            if self._has_structure(number):
                found = self._structured(number, masks, scored, first)
            if self._has_plain(number):
                previous = self._round(number, first, masks)
                found = previous if not self._has_structure(number) else found
            elif self._settings.group_aware:
                previous = found
        return found

    def _contrast(self, ticket: Ticket) -> None:
        last, number, seed = self._last, len(self._counts), self._settings.seed
        initial = self._trainer.initial(seed + NEW_WEIGHTS)
        self._arm = REINIT
        self._round(number, initial, ticket.masks, first=0)
        masks, scored = shuffle_masks(last.masks, last.scored, seed, number)
        self._arm = RANDOM
        if self._settings.structure is None:
            self._round(number, last.start, masks)
        else:
            self._structured(number, masks, scored, last.start)

    def _choose(
        self, number: int, kept: int, dense: Ticket, previous: Ticket, start: Weights
    ) -> dict[str, Any]:
        """The mask of a round."""
        self._tell("choosing weights", number, sparsity=1.0 - kept / self._total)
        source = self._source
        weights = {"start": start, "dense": dense.weights, "previous": previous.weights}[
            source.weights
        ]
        if self._settings.group_aware and number > 1:
            # Regrouping takes and gives: what a round drops is a part of what is really left.
            kept = round(count_kept(previous.masks) * kept / self._counts[number - 2])
        batches = self._trainer.sample(source.examples) if source.examples else ()
        left = {
            name: previous.masks.get(name, np.ones(self._initial[name].shape, np.bool_))
            for name in self._trainer.names
        }
        context = Context(
            self._task,
            self._trainer.model_with(weights),
            self._trainer.names,
            kept,
            left,
            batches,
            derive(self._settings.seed, "source"),
        )
        chosen = source.choose(context) if self._engine.rank == 0 else None
        shared: Masks | None = self._engine.share(chosen)
        return dict(shared or {})

    def _structured(
        self,
        number: int,
        masks: Masks,
        scored: Weights,
        start: Weights,
    ) -> Ticket:
        structure = self._settings.structure
        assert structure is not None  # noqa: S101 - only asked for where there is one
        self._tell(structure.name, number, sparsity=1.0 - count_kept(masks) / self._total)
        made: Structured | None = None
        if self._engine.rank == 0:
            made = apply_structure(self._trainer, structure, masks, scored)
        made = self._engine.share(made)
        assert made is not None  # noqa: S101 - the first process has made it
        return self._round(number, start, made.masks, made, structure.name)
