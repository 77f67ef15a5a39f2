"""N:M patterns: of every M consecutive input channels, N weights stay."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Final

import numpy as np

from deploykit.errors import UsageError
from deploykit.finder.ranking import Bools
from passes.analysis import patterns

__all__ = ["Pattern", "block_patterns"]

ENUMERATED: Final = 4
"""The largest M whose square patterns are all tried: 4:8 has 117 billion of them."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """N of M weights stay.

    Attributes:
        kept: N.
        group: M.
        transposable: whether every block of M outputs by M inputs obeys along both, so that its transpose, which the
            backward pass multiplies with, obeys as well.

    Raises:
        UsageError: there is no such pattern.
    """

    kept: int = 2
    group: int = 4
    transposable: bool = False

    def __post_init__(self) -> None:
        try:
            patterns.Pattern(self.kept, self.group)
        except ValueError as error:
            msg = f"{error}."
            raise UsageError(msg) from error
        if self.transposable and self.group > ENUMERATED:
            msg = (
                f"transposable masks are exact for groups of up to {ENUMERATED}, whose patterns can all be tried, and "
                f"'{self.kept}:{self.group}' has too many. Take 2:4, or leave --transposable out."
            )
            raise UsageError(msg)

    @classmethod
    def parse(cls, text: str, *, transposable: bool = False) -> Pattern:
        """The pattern that `2:4` names.

        Raises:
            UsageError: it is written in another way, or there is no such pattern.
        """
        try:
            found = patterns.Pattern.parse(text)
        except ValueError as error:
            msg = f"{error}."
            raise UsageError(msg) from error
        return cls(found.kept, found.group, transposable=transposable)

    @property
    def density(self) -> float:
        """Part of the weights that stays."""
        return self.kept / self.group

    def __str__(self) -> str:
        """As on a command line."""
        return f"{self.kept}:{self.group}" + (" transposable" if self.transposable else "")

    def describe(self) -> dict[str, Any]:
        """In JSON's types."""
        return {"pattern": f"{self.kept}:{self.group}", "transposable": self.transposable}


def block_patterns(pattern: Pattern) -> Bools:
    """All masks of an M x M block with N in every row and every column.

    Returns:
        bool, shape `(patterns, M * M)`, rows one after the other; 90 of them for 2:4. In lexicographic order of the kept
        columns, row by row: of equally good ones the first is taken.
    """
    size = pattern.group
    rows = [
        np.isin(np.arange(size), kept)
        for kept in itertools.combinations(range(size), pattern.kept)
    ]
    found = [
        np.concatenate(block)
        for block in itertools.product(rows, repeat=size)
        if (np.sum(block, axis=0) == pattern.kept).all()
    ]
    return np.array(found)
