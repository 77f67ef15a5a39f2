"""Reads what the builder of an engine logs on sparse kernels: versions 8 to 11 of TensorRT, and TensorRT-RTX."""

from __future__ import annotations

import re
from collections.abc import Iterable

from deploykit.report.sparse_records import SparseLayers

__all__ = ["read_sparsity"]

# Of 10 and 11. The names follow in verbose logs only.
FOUND = re.compile(
    r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics(?:: (.*))?"
)
CHOSE = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics(?:: (.*))?")
# Of 8, which only names them.
OLD_FOUND = re.compile(r"\(Sparsity\) Layers eligible for sparse math:(.*)")
OLD_CHOSE = re.compile(
    r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)"
)


def read_sparsity(
    lines: Iterable[str],
) -> tuple[SparseLayers | None, SparseLayers | None]:
    """The layers that a build found fit for sparse kernels, and those that it chose them for.

    A build may say it for each of its passes: the last pair counts. A line "found" opens a new pair, so that what an
    earlier pass chose is not taken for what the last one did.

    Args:
        lines: messages of the log; more than one line in a message is fine.

    Returns:
        found and chosen; None for what the log does not say.
    """
    found: SparseLayers | None = None
    chosen: SparseLayers | None = None
    for line in (part for message in lines for part in message.splitlines()):
        if match := FOUND.search(line):
            found, chosen = SparseLayers(int(match[1]), _names(match[2])), None
        elif match := OLD_FOUND.search(line):
            found, chosen = _named(match[1]), None
        elif match := CHOSE.search(line):
            chosen = SparseLayers(int(match[1]), _names(match[2]))
        elif match := OLD_CHOSE.search(line):
            chosen = _named(match[1])
    return found, chosen


def _names(text: str | None) -> tuple[str, ...] | None:
    """Names of layers, which may hold commas inside of brackets, but no comma and space between."""
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(", ") if name.strip())


def _named(text: str) -> SparseLayers:
    names = _names(text) or ()
    return SparseLayers(len(names), names)
