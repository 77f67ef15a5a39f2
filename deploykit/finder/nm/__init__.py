"""N:M training: of every M consecutive input channels N weights stay, which sparse tensor cores read as they are.

- `asp`: train dense, choose the mask in one shot, and train once more from there;
- `ste`: choose the mask anew at every step of a dense network's training;
- `sr-ste`: the same, with a decay of what is dropped, so that masks settle.

They are no sources of masks in the sense of `deploykit.finder.sources`, which score weights once: two of them change how the
network is trained.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from deploykit.finder.nm.pattern import Pattern

__all__ = ["DECAY", "METHODS", "NM", "Pattern"]

METHODS: Final = ("asp", "ste", "sr-ste")

DECAY = 2e-4
"""Lambda of SR-STE, as its authors trained with."""


@dataclasses.dataclass(frozen=True)
class NM:
    """How N:M masks are trained.

    Attributes:
        pattern: how many weights of how many stay.
        decay: of what is dropped, for sr-ste; None: 2e-4.
        permute: whether channels are put in the order in which the mask keeps the most, before it is chosen.
    """

    pattern: Pattern = dataclasses.field(default_factory=Pattern)
    decay: float | None = None
    permute: bool = True
