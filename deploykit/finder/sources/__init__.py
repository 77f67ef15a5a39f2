"""Where masks come from: each source scores weights, and the best of all layers together are kept.

One file a source: a function that scores, on its own usable, and a `Source` that says what the search has to give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from deploykit.finder.sources import grasp, imp, omp, snip, synflow
from deploykit.finder.sources import random as random_source
from deploykit.finder.sources.source import Context, Source

__all__ = ["SOURCES", "Context", "Source"]

SOURCES: Final[Mapping[str, Source]] = {
    source.name: source
    for source in (
        imp.SOURCE,
        omp.SOURCE,
        random_source.SOURCE,
        snip.SOURCE,
        grasp.SOURCE,
        synflow.SOURCE,
    )
}
"""All sources by name."""
