"""What-ifs as text: `channels=0.5`, `blocks=4@layer3.*`, `2:4`; several parts of one network are joined by commas."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from deploykit.errors import UsageError

__all__ = ["EVERYWHERE", "Ask", "Kind", "WhatIf", "parse", "parse_budget"]

Kind: TypeAlias = Literal["channels", "blocks", "2:4", "counts"]
EVERYWHERE = "*"
FORMS = (
    "channels=0.5 (the share of channels to keep), blocks=4 (blocks in each layer), blocks=0.75 (the share of weights outside "
    "of blocks), 2:4, or counts=FILE (as --allocate writes it); each may end in @LAYERS, as channels=0.5@layer3.*"
)


@dataclasses.dataclass(frozen=True)
class Ask:
    """One change to some layers.

    Attributes:
        kind: what is changed.
        value: the share of the channels to keep, the number of blocks, or the share of weights outside of them; 0 if it has none.
        layers: which layers, by name of the node or the weight, as a shell pattern.
        file: the counts to keep.
    """

    kind: Kind
    value: float = 0.0
    layers: str = EVERYWHERE
    file: Path | None = None

    def meets(self, *names: str) -> bool:
        """Whether it is about a layer of these names (its node's, its weight's)."""
        return any(
            name == self.layers or fnmatch.fnmatchcase(name, self.layers) for name in names
        )


@dataclasses.dataclass(frozen=True)
class WhatIf:
    """A network as it would be.

    Attributes:
        name: as it was asked for.
        asks: what is changed; one at least.
    """

    name: str
    asks: tuple[Ask, ...]

    def of(self, kind: Kind) -> tuple[Ask, ...]:
        """The asks of a kind."""
        return tuple(ask for ask in self.asks if ask.kind == kind)


def parse(text: str) -> WhatIf:
    """Read a what-if.

    Raises:
        UsageError: it has another form, or a number is out of its range.
    """
    asks = tuple(_parse_one(part.strip(), text) for part in _parts(text))
    if len({(ask.kind, ask.layers) for ask in asks}) < len(asks):
        msg = f"the what-if '{text}' asks for two things of the same layers. Give each part other layers, or two what-ifs."
        raise UsageError(msg)
    if any(ask.kind == "counts" for ask in asks) and len(asks) > 1:
        msg = f"the what-if '{text}' joins counts with something else. Counts say it all: give them alone."
        raise UsageError(msg)
    return WhatIf(text, asks)


def _parts(text: str) -> Sequence[str]:
    """What stands between commas that begin another part; names of layers may hold commas themselves."""
    return re.split(r",(?=\s*(?:channels=|blocks=|2:4|counts=))", text)


def _parse_one(part: str, text: str) -> Ask:
    what, at, layers = part.partition("@")
    kind, _, value = what.partition("=")
    if at and not layers:
        msg = f"the what-if '{text}' names no layers after '@'. Leave '@' out for all of them."
        raise UsageError(msg)
    where = layers or EVERYWHERE
    match kind:
        case "2:4" if not value:
            return Ask("2:4", layers=where)
        case "counts" if value and not at:
            return Ask("counts", file=Path(value))
        case "channels" if (share := _number(value)) is not None:
            if not 0.0 < share < 1.0:
                msg = f"the what-if '{text}' keeps {value} of the channels: give a share above 0 and below 1, as 0.5 for half."
                raise UsageError(msg)
            return Ask("channels", share, where)
        case "blocks" if (number := _number(value)) is not None:
            is_count = number >= 2.0 and number == int(number)
            if not (is_count or 0.0 < number < 1.0):
                msg = (
                    f"the what-if '{text}' wants {value} blocks: give 2 or more, as 4, or the share of weights outside of them, "
                    "above 0 and below 1, as 0.75."
                )
                raise UsageError(msg)
            return Ask("blocks", number, where)
    msg = f"the what-if '{text}' is none. There are: {FORMS}."
    raise UsageError(msg)


def parse_budget(text: str) -> tuple[Literal["weights", "macs"], float]:
    """Read `weights=0.42` or `macs=0.5`: of what, and the share that is left.

    Raises:
        UsageError: it has another form, or is no share.
    """
    what, _, value = text.partition("=")
    share = _number(value)
    if what not in {"weights", "macs"} or share is None:
        msg = f"an allocation is asked for as weights=0.42 or macs=0.5 (the share that is left), not '{text}'."
        raise UsageError(msg)
    if not 0.0 < share < 1.0:
        msg = f"'{text}' leaves {value} of the {what}: give a share above 0 and below 1, as 0.42 to prune 58 %."
        raise UsageError(msg)
    return ("weights" if what == "weights" else "macs"), share


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
