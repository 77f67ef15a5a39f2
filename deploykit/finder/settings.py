"""What a search is asked for."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

from deploykit.errors import UsageError
from deploykit.finder.nm import METHODS, NM
from deploykit.finder.sources import SOURCES
from deploykit.finder.structuring import Structure

__all__ = ["Rewind", "Settings", "check_settings"]

Rewind: TypeAlias = int | Literal["default", "none"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is searched for, and how.

    Attributes:
        reference: where the task comes from, `package.module:object`; for the record.
        source: where masks come from, one of `deploykit.finder.sources.SOURCES` or of `deploykit.finder.nm.METHODS`.
        structure: what they are made into; None for scattered weights.
        rounds: of pruning; None: as many as the sparsity takes.
        sparsity: part of the prunable weights that the last round drops; None: what the rounds come to.
        rate: part of the remaining weights that a round drops.
        epochs: length of a training run; None: the task's.
        rewind: epoch whose weights tickets start from; `none` goes on from the weights of the round before; `default` is
            what suits the source.
        seed: of everything random.
        every_round: whether each round gets the structure, or only the last.
        group_aware: whether pruning goes on from the structured mask.
        deterministic: whether torch may only use operations that compute the same every time.
        nm: of a source that trains N:M masks: which, and how; None: 2:4.
        contrasts: whether the ticket's mask is trained on new weights as well, and a random mask of its structure.
    """

    reference: str = ""
    source: str = "imp"
    structure: Structure | None = None
    rounds: int | None = None
    sparsity: float | None = None
    rate: float = 0.2
    epochs: int | None = None
    rewind: Rewind = "default"
    seed: int = 0
    every_round: bool = False
    group_aware: bool = False
    deterministic: bool = True
    nm: NM | None = None
    contrasts: bool = False


def check_settings(settings: Settings) -> None:
    """Refuse settings that make no sense, before anything is loaded.

    Raises:
        UsageError: so it is.
    """
    if settings.source in METHODS:
        _check_nm(settings)
        return
    if settings.source not in SOURCES:
        msg = f"there is no source '{settings.source}'. There are: {', '.join((*SOURCES, *METHODS))}."
        raise UsageError(msg)
    if settings.nm is not None:
        msg = f"an N:M pattern belongs to the sources {', '.join(METHODS)}, and this is '{settings.source}'. Take one of them."
        raise UsageError(msg)
    if not 0.0 < settings.rate < 1.0:
        msg = f"a round can drop a part between 0 and 1 of what is left, not {settings.rate:g}."
        raise UsageError(msg)
    if settings.sparsity is not None and not 0.0 < settings.sparsity < 1.0:
        msg = f"the sparsity is a part between 0 and 1, not {settings.sparsity:g}: 0.8 drops four of five weights."
        raise UsageError(msg)
    if settings.rounds is not None and settings.rounds < 1:
        msg = f"a search has 1 round or more, not {settings.rounds}."
        raise UsageError(msg)
    if settings.group_aware and (
        settings.structure is None
        or settings.structure.name != "regroup"
        or SOURCES[settings.source].one_shot
    ):
        msg = (
            "regrouping inside every round needs the structure 'regroup' and the source 'imp'."
        )
        raise UsageError(msg)
    if settings.every_round and settings.structure is None:
        msg = "every round can only get a structure if there is one: say which."
        raise UsageError(msg)


def _check_nm(settings: Settings) -> None:
    """Refuse what means nothing to a source that trains N:M masks: the pattern says how many weights stay.

    Raises:
        UsageError: it was asked for.
    """
    given = {
        "a structure": settings.structure is not None,
        "rounds": settings.rounds is not None,
        "a sparsity": settings.sparsity is not None,
        "a ticket for every round": settings.every_round or settings.group_aware,
    }
    for what, is_given in given.items():
        if is_given:
            msg = (
                f"the source '{settings.source}' trains one N:M mask, and takes no {what.removeprefix('a ')}: the pattern says how "
                "many weights stay. Leave that out, or take another source."
            )
            raise UsageError(msg)
    if settings.nm is not None and settings.nm.decay is not None:
        if settings.source != "sr-ste":
            msg = f"a decay belongs to the source sr-ste, and this is '{settings.source}'. Leave it out, or change that."
            raise UsageError(msg)
        if not 0.0 < settings.nm.decay < math.inf:
            msg = f"the decay is a number above 0, as 0.0002, not {settings.nm.decay:g}. Without one, take the source ste."
            raise UsageError(msg)
