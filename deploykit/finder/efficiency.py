"""Parameter efficiency: how much a network does with each weight that it has left.

Two formulas, printed with every number they give, because the literature has several:

* "linear": accuracy / weights, in points per million weights (S. Bianco et al., "Benchmark Analysis of Representative
  Deep Neural Network Architectures", IEEE Access 2018, who call it accuracy density);
* "log": -log10(1 - accuracy) / weights, in decades of error per million weights. It counts the step from 99 % to 99.9 % as
  much as that from 0 to 90 %, where the linear one sees nothing.

T. Hoefler et al., "Sparsity in Deep Learning", JMLR 2021, ask for such a measure; these are not claimed to be theirs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

from deploykit.errors import UsageError

__all__ = ["Efficiency", "Mode", "find_efficiency"]

Mode: TypeAlias = Literal["linear", "log"]

FORMULAS = {
    "linear": "100 * accuracy / (weights / 1e6)",
    "log": "-log10(1 - accuracy) / (weights / 1e6)",
}


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """A number with what it is.

    Attributes:
        value: the efficiency.
        formula: how it is computed.
    """

    value: float
    formula: str

    def __str__(self) -> str:
        return f"{self.value:.4g} = {self.formula}"


def find_efficiency(accuracy: float, weights: int, mode: Mode = "linear") -> Efficiency:
    """The parameter efficiency of a network.

    Args:
        accuracy: from 0 to 1.
        weights: how many are not zero, 1 or more.
        mode: which formula.

    Raises:
        UsageError: an accuracy or a number of weights that cannot be, or no such formula.
    """
    if mode not in FORMULAS:
        msg = f"there is no efficiency '{mode}'. There are: {', '.join(FORMULAS)}."
        raise UsageError(msg)
    if not 0.0 <= accuracy <= 1.0 or weights < 1:
        msg = f"an accuracy lies between 0 and 1 and a network has weights, and these are {accuracy} and {weights}."
        raise UsageError(msg)
    if mode == "linear":
        merit = 100.0 * accuracy
    else:
        merit = -math.log10(1.0 - accuracy) if accuracy < 1.0 else math.inf
    return Efficiency(merit / (weights / 1e6), FORMULAS[mode])
