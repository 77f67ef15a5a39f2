"""NVIDIA's `trtexec` as a runtime, and the JSON files that it writes: `--exportProfile` and `--exportTimes`.

`--exportLayerInfo` is the inspector's own JSON: see `inspector`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from deploykit.errors import RuntimeUnavailable, UsageError
from deploykit.runtimes import Capabilities, Claim
from deploykit.runtimes.probe import find_driver

if TYPE_CHECKING:
    from deploykit.runtimes.trtexec_runner import TrtexecRunner

__all__ = ["LayerMean", "Times", "capabilities", "read_profile", "read_times", "start"]


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


def capabilities() -> Capabilities:
    """Say what trtexec can do on this machine; never raises. A model is first tried when it is measured."""
    from deploykit.runtimes.trtexec_runner import TrtexecRunner

    version: str | None = None
    try:
        about = TrtexecRunner().about
        version = about.removeprefix("trtexec").strip() or "unknown"
        there = Claim(holds=True, reason=f"{about} answers")
    except RuntimeUnavailable as error:
        there = Claim(holds=False, reason=str(error).rstrip("."))
    driver = find_driver()
    if there and driver:
        works = Claim(holds=True, reason=f"{there.reason}, and there is {driver.reason}")
    else:
        missing = [claim.reason for claim in (there, driver) if not claim]
        works = Claim(holds=False, reason=". Besides, ".join(missing))
    return Capabilities(
        runtime="trtexec",
        version=version,
        importable=there,
        can_parse=works,
        can_build=works,
        can_run=works,
        reports_sparsity=works,
        providers=(driver.reason,) if works else (),
    )


def start() -> TrtexecRunner:
    """What runs models with it.

    Raises:
        RuntimeUnavailable: it or the GPU is not there.
    """
    from deploykit.runtimes.trtexec_runner import TrtexecRunner

    driver = find_driver()
    if not driver:
        raise RuntimeUnavailable(driver.reason)
    return TrtexecRunner()


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
