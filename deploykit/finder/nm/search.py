"""A search that trains one N:M mask: a dense network, then another under masks, from the same weights or from the trained ones.

What `asp` retrains starts from the trained dense weights, and goes through the whole schedule once more. `ste` and `sr-ste`
start where the dense network does. `--rewind` changes both.

Channels are put in order by the trained dense weights, which tell where the large ones come to lie; the order is then given to
the weights that training starts from, which compute the same as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from deploykit.finder.contrasts import NEW_WEIGHTS, RANDOM, REINIT
from deploykit.finder.nm import DECAY, NM
from deploykit.finder.nm.layers import find_eligible
from deploykit.finder.nm.ordering import Ordered, order_channels
from deploykit.finder.nm.straight_through import StraightThrough, choose_masks
from deploykit.finder.ranking import Array, Bools
from deploykit.finder.rounds import Rounds
from deploykit.finder.seeds import derive
from deploykit.finder.training import Weights
from deploykit.ticket import Ticket

__all__ = ["NMSearch"]

ORDERED = "ordered"
NUMBER = 1


class NMSearch(Rounds):
    """One N:M mask, in one round."""

    _start: Weights

    def _plan_counts(self) -> tuple[int, ...]:
        self._nm = self._settings.nm or NM()
        self._eligible = find_eligible(
            self._trainer.fresh_model(),
            self._trainer.names,
            self._nm.pattern,
            task=self._task.name,
        )
        self._masked = sum(int(self._initial[name].size) for name in self._eligible.names)
        pattern = self._nm.pattern
        return (self._total - self._masked // pattern.group * (pattern.group - pattern.kept),)

    def _find_rewind(self) -> int | None:
        asked = self._settings.rewind
        if asked == "default":
            return None if self._settings.source == "asp" else 0
        return None if asked == "none" else self._check_rewind(asked)

    @property
    def _decay(self) -> float:
        if self._settings.source != "sr-ste":
            return 0.0
        return DECAY if self._nm.decay is None else self._nm.decay

    def _describe_method(self) -> dict[str, Any]:
        return {
            "structure": None,
            "every_round": False,
            "group_aware": False,
            **self._nm.pattern.describe(),
            "decay": self._decay,
            "permute": self._nm.permute,
        }

    def _count_trainings(self) -> int:
        return 1

    def _find(self) -> Ticket:
        dense = self._round(0, self._initial, {})
        scored = dict(dense.weights)
        start = scored if self._rewind is None else self._load_start()
        ordered = self._order(start, scored)
        start, scored = dict(ordered.weights), dict(ordered.scored)
        self._start = start
        masks, masking = {}, None
        if self._settings.source == "asp":
            masks = self._masks_of(scored)
        else:
            masking = StraightThrough(self._eligible.names, self._nm.pattern, self._decay)
        about = {
            "nm": {
                "method": self._settings.source,
                **self._nm.pattern.describe(),
                "decay": self._decay,
                "masked": self._masked,
                "weights": list(self._eligible.names),
                "ordered": ordered.changed,
                # Of the magnitude of the dense weights, what the best masks keep.
                "kept_magnitude": {
                    "before": self._kept_magnitude(dense.weights),
                    "after": self._kept_magnitude(scored),
                },
            }
        }
        return self._round(
            NUMBER,
            start,
            masks,
            structure=str(self._nm.pattern),
            masking=masking,
            about=about,
            notes=[*self._eligible.notes, *ordered.notes],
        )

    def _order(self, start: Weights, scored: Weights) -> Ordered:
        """The weights in an order that suits the mask; made once, because a planner may look at the clock."""
        if not self._nm.permute:
            return Ordered(start, scored)
        held = self._store.load(ORDERED) if self._store is not None else None
        if held is None and self._engine.rank == 0:
            self._tell("ordering channels", NUMBER, sparsity=0.0)
            made = order_channels(
                self._task,
                self._trainer.fresh_model(),
                start,
                scored,
                self._nm.pattern,
                self._eligible.names,
            )
            held = made.as_ticket()
            if self._store is not None:
                self._store.save(ORDERED, held)
        held = self._engine.share(held)
        assert held is not None  # noqa: S101 - the first process has made it
        return Ordered.from_ticket(held)

    def _masks_of(self, weights: Mapping[str, Array]) -> dict[str, Bools]:
        names = self._eligible.names
        tensors = [torch.from_numpy(np.ascontiguousarray(weights[name])) for name in names]
        return choose_masks(tensors, names, self._nm.pattern)

    def _kept_magnitude(self, weights: Weights) -> float:
        masks = self._masks_of(weights)
        sizes = {name: np.abs(weights[name].astype(np.float64)) for name in masks}
        kept = math.fsum(float(sizes[name][mask].sum()) for name, mask in masks.items())
        return kept / (math.fsum(float(each.sum()) for each in sizes.values()) or 1.0)

    def _contrast(self, ticket: Ticket) -> None:
        """The ticket's mask on new weights, and a random mask that obeys the pattern."""
        form, seed = str(self._nm.pattern), self._settings.seed
        self._arm = REINIT
        initial = self._trainer.initial(seed + NEW_WEIGHTS)
        self._round(NUMBER, initial, ticket.masks, structure=form, first=0)
        self._arm = RANDOM
        dice = np.random.default_rng(derive(seed, "random N:M mask"))
        drawn = {
            name: np.asarray(dice.random(self._initial[name].shape))
            for name in self._eligible.names
        }
        self._round(NUMBER, self._start, self._masks_of(drawn), structure=form)
