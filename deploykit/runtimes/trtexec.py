"""Reads the JSON files that NVIDIA's `trtexec` writes: `--exportProfile` and `--exportTimes`.

`--exportLayerInfo` is the inspector's own JSON: see `inspector`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from deploykit.errors import UsageError

__all__ = ["LayerMean", "Times", "read_profile", "read_times"]


@dataclasses.dataclass(frozen=True)
class LayerMean:
    """A layer's time in one run.

    Attributes:
        name: of the layer.
        mean_s: mean over the runs.
        median_s: median over the runs; None in files that have none.
    """

    name: str
    mean_s: float
    median_s: float | None


@dataclasses.dataclass(frozen=True)
class Times:
    """What each run took; warm-up runs are not in it.

    Attributes:
        compute_s: the network alone, on the device's clock.
        latency_s: with the copies to the device and back.
    """

    compute_s: tuple[float, ...]
    latency_s: tuple[float, ...]


def read_profile(text: str) -> tuple[LayerMean, ...]:
    """Read `--exportProfile`: a list whose first element counts the runs, and whose others are layers.

    Raises:
        UsageError: it is something else.
    """
    rows = _rows(text, "--exportProfile")
    counts = [row["count"] for row in rows if "count" in row and "name" not in row]
    layers = [row for row in rows if "name" in row]
    if len(counts) != 1 or not isinstance(counts[0], int) or counts[0] < 1:
        msg = "a file of 'trtexec --exportProfile' begins with the number of runs, and this one does not."
        raise UsageError(msg)
    try:
        return tuple(
            LayerMean(
                str(row["name"]),
                # The key timeMs is the sum over all runs.
                float(row["averageMs"] if "averageMs" in row else row["timeMs"] / counts[0])
                * 1e-3,
                float(row["medianMs"]) * 1e-3 if "medianMs" in row else None,
            )
            for row in layers
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"a layer in this file of 'trtexec --exportProfile' has no time: {error}."
        raise UsageError(msg) from error


def read_times(text: str) -> Times:
    """Read `--exportTimes`: a list with the milliseconds of each run.

    Raises:
        UsageError: it is something else.
    """
    rows = _rows(text, "--exportTimes")
    try:
        return Times(
            tuple(float(row["computeMs"]) * 1e-3 for row in rows),
            tuple(float(row["latencyMs"]) * 1e-3 for row in rows),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"a run in this file of 'trtexec --exportTimes' has no {error}."
        raise UsageError(msg) from error


def _rows(text: str, option: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = _with_names_escaped(text)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        msg = f"this is no file that 'trtexec {option}' wrote: it is no JSON list of objects."
        raise UsageError(msg)
    return found


def _with_names_escaped(text: str) -> Any:  # noqa: ANN401 - JSON
    """The document, with names of layers escaped, which trtexec writes as they are."""

    def escaped(match: re.Match[str]) -> str:
        return f'"name" : {json.dumps(match[1])}, "timeMs"'

    try:
        return json.loads(re.sub(r'"name"\s*:\s*"(.*?)"\s*,\s*"timeMs"', escaped, text))
    except ValueError:
        return None
