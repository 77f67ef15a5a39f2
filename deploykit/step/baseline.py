"""Holds a result against the last accepted one: its `report.json`.

Both were timed against the same original in the same rounds, each on its own occasion. The ratio of their two ratios is
free of what the machine did differently between the occasions, as far as it did it to both models; its interval is a
bootstrap. Worse is only what is proven so: a time whose whole interval lies above 1, an accuracy whose interval lies on the
wrong side of the accepted figure, a size that grew by more than names and padding explain.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import UsageError
from deploykit.profile.statistics import Timings, change_of_ratio
from deploykit.report import records as report_records
from deploykit.report.profile_wording import speed_text
from deploykit.report.wording import bytes_text, count_text
from deploykit.step.records import BaselineComparison, BaselineRow

if TYPE_CHECKING:
    from deploykit.report.profile_records import ProfileReport
    from deploykit.report.records import Report
    from deploykit.step.records import AccuracyRecord

__all__ = ["Accepted", "compare", "read"]

Document: TypeAlias = Mapping[str, Any]

ADVICE = "Give the report.json of a result folder of 'deploykit run' or 'deploykit optimize'."

SIZE_WORTH = 1.01
"""A model is larger from here on: names and the padding of external data move its size by less."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Original and accepted result on a device.

    Attributes:
        original: hash of the original model.
        fingerprint: of the device; None if the report does not say.
        threads: of the sessions.
        runtime: what ran the models.
        inputs: what they were measured with; None if the report does not say.
        ratio: time of the result over that of the original.
        timings: samples of the original and of the result, in the same rounds.
    """

    original: str
    fingerprint: str | None
    threads: int | None
    runtime: str
    inputs: frozenset[tuple[str, tuple[int, ...]]] | None
    ratio: float
    timings: tuple[Timings, Timings]


@dataclasses.dataclass(frozen=True, eq=False)
class Accepted:
    """What the report of an accepted result says.

    Attributes:
        path: the file, as it was named.
        sha256: hash of its content.
        source: hash of the model that was optimized.
        counts: parameters, bytes and multiply-adds of the result; None what could not be counted.
        measured: by device. A report of `optimize` has one device, whose name it does not know: it is under None.
        accuracy: as in the document; None if it was not looked at.
        passed: whether its own gates were met; None if it had none.
    """

    path: str
    sha256: str
    source: str
    counts: Mapping[str, int | None]
    measured: Mapping[str | None, Measured]
    accuracy: Document | None
    passed: bool | None


def read(path: Path) -> Accepted:
    """Read the report of an accepted result; its folder stands for it.

    Raises:
        UsageError: it cannot be read, or is no such report.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
        document = json.loads(content)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        msg = f"the baseline '{path}' cannot be read as a report: {why}. {ADVICE}"
        raise UsageError(msg) from error
    if (
        not isinstance(document, dict)
        or "candidates" not in document
        or "source" not in document
    ):
        msg = f"the baseline '{path}' is no report of a result. {ADVICE}"
        raise UsageError(msg)
    version = str(document.get("schema_version"))
    own = report_records.SCHEMA_VERSION
    if version.partition(".")[0] != own.partition(".")[0]:
        msg = f"the baseline '{path}' has schema version {version}, which this deploykit does not read: it reads {own}. Make it anew."
        raise UsageError(msg)
    try:
        return _accepted(path, hashlib.sha256(content).hexdigest(), document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        msg = f"the baseline '{path}' is not a whole report: {type(error).__name__} at {error}. Make it anew."
        raise UsageError(msg) from error


def compare(
    accepted: Accepted,
    report: Report,
    profiles: Mapping[str, ProfileReport],
    accuracy: AccuracyRecord | None = None,
) -> BaselineComparison:
    """Hold a result against an accepted one.

    Args:
        accepted: what was accepted.
        report: of the optimization of the result.
        profiles: original and result measured in turns, by device.
        accuracy: how good the result is; None if that was not looked at.
    """
    rows: list[BaselineRow] = []
    notes: list[str] = []
    if accepted.passed is False:
        notes.append("the gates of the accepted result itself: some of them were missed")
    for device, profile in profiles.items():
        known = accepted.measured.get(device)
        if known is None and len(profiles) == 1:
            known = accepted.measured.get(None)
        found = _time_row(device, known, profile)
        (notes if isinstance(found, str) else rows).append(found)  # type: ignore[arg-type]  # each takes its own
    notes += [
        f"the time on '{device}', where only the accepted result was measured"
        for device in accepted.measured
        if device is not None and device not in profiles
    ]
    good = _accuracy_row(accepted.accuracy, accuracy)
    if good is not None:
        (notes if isinstance(good, str) else rows).append(good)  # type: ignore[arg-type]  # each takes its own
    if accepted.source != report.source.sha256:
        notes.append(
            "the same model: the accepted result was made of another one, and sizes and accuracy are those of two models"
        )
    rows += _size_rows(accepted, report)
    return BaselineComparison(accepted.path, accepted.sha256, tuple(rows), tuple(notes))


# -- the accepted report -------------------------------------------------------------------------


def _accepted(path: Path, sha256: str, document: Document) -> Accepted:
    size = document["size"]
    step = document.get("step") or {}
    measured: dict[str | None, Measured] = {
        str(name): _of_profile(profile)
        for name, profile in (step.get("profiles") or {}).items()
    }
    own = document.get("profile")
    if not measured and own is not None and (own.get("samples") or {}).get("baseline"):
        measured[None] = Measured(
            original=str(document["source"]["sha256"]),
            fingerprint=own["device"].get("fingerprint"),
            threads=own["threads"],
            runtime=str(own["runtime"]),
            inputs=None,
            ratio=float(own["ratio"]["median"]),
            timings=(
                _timings(own["samples"]["baseline"]),
                _timings(own["samples"]["optimized"]),
            ),
        )
    gates = step.get("gates") or ()
    return Accepted(
        path=str(path),
        sha256=sha256,
        source=str(document["source"]["sha256"]),
        counts={
            name: None if size[name]["after"] is None else int(size[name]["after"])
            for name in ("parameters", "bytes", "macs")
        },
        measured=measured,
        accuracy=step.get("accuracy"),
        passed=all(bool(row["passed"]) for row in gates) if gates else None,
    )


def _of_profile(profile: Document) -> Measured:
    original, result = profile["models"]
    return Measured(
        original=str(original["sha256"]),
        fingerprint=profile["device"].get("fingerprint"),
        threads=profile["threads"],
        runtime=str(profile["runtime"]),
        inputs=frozenset((str(row["name"]), tuple(row["shape"])) for row in profile["inputs"]),
        ratio=float(profile["relative"][0]["ratio"]),
        timings=(_timings(original["samples"]), _timings(result["samples"])),
    )


def _timings(samples: Document) -> Timings:
    return Timings(
        np.asarray(samples["rebuild"], dtype=np.int64),
        np.asarray(samples["wall_s"], dtype=np.float64),
        np.asarray(samples["cpu_s"], dtype=np.float64),
    )


# -- rows ----------------------------------------------------------------------------------------


def _time_row(device: str, known: Measured | None, profile: ProfileReport) -> BaselineRow | str:
    """The times on a device; else what keeps them from being compared."""
    if known is None:
        return f"the time on '{device}', where the accepted result was not measured"
    original, result = profile.models
    fingerprint = profile.device.get("fingerprint")
    inputs = frozenset((row.name, row.shape) for row in profile.inputs)
    differs = [
        what
        for what, is_other in (
            ("another original model was measured", known.original != original.sha256),
            (
                f"the devices or runtimes differ (fingerprints {known.fingerprint} and {fingerprint})",
                known.fingerprint != fingerprint,
            ),
            (f"the runtime was '{known.runtime}'", known.runtime != profile.runtime),
            (f"threads were {known.threads or 'all'}", known.threads != profile.threads),
            ("the inputs had other sizes", known.inputs is not None and known.inputs != inputs),
        )
        if is_other
    ]
    if differs:
        return f"the time on '{device}': {' and '.join(differs)} for the accepted result. Accept a new one"
    now = tuple(
        Timings(
            np.asarray(model.samples.rebuild, dtype=np.int64),
            np.asarray(model.samples.wall_s, dtype=np.float64),
            np.asarray(model.samples.cpu_s, dtype=np.float64),
        )
        for model in (original, result)
    )
    found = change_of_ratio(known.timings, (now[0], now[1]), threads=profile.threads)
    row = profile.relative[0]
    said = (
        f"time on {device}: {row.ratio:.3f} of the original's, accepted {known.ratio:.3f}; "
        f"{speed_text(found.median, found.lo, found.hi)}"
    )
    ends = (found.lo, found.hi)
    return BaselineRow(
        "time", device, known.ratio, row.ratio, found.median, ends, found.lo > 1.0, said
    )


def _accuracy_row(
    known: Document | None, accuracy: AccuracyRecord | None
) -> BaselineRow | str | None:
    if known is None and accuracy is None:
        return None
    if known is None or accuracy is None:
        return f"the accuracy, which was looked at of {'this' if known is None else 'the accepted'} result only"
    if known["metric"] != accuracy.metric:
        return f"the accuracy: the accepted result's is by '{known['metric']}', and this one's by '{accuracy.metric}'"
    if known.get("examples") != accuracy.examples:
        return f"the accuracy: it was found on {known.get('examples')} examples, and is now on {accuracy.examples}"
    before, after = float(known["optimized"]), accuracy.optimized
    # The end of the interval that is the best for the result: worse is only what is worse even so.
    lo, hi = accuracy.ci95 or (after, after)
    regressed = hi < before if accuracy.higher_is_better else lo > before
    change = "the same" if after == before else f"{after - before:+.4g}"
    is_better = (after > before) == accuracy.higher_is_better
    if after != before and not is_better and not regressed:
        change += ", within its 95 % interval"
    said = f"{accuracy.metric}: {after:.4g}, accepted {before:.4g}: {change}"
    ratio = after / before if before else None
    return BaselineRow("accuracy", None, before, after, ratio, None, regressed, said)


def _size_rows(accepted: Accepted, report: Report) -> list[BaselineRow]:
    rows = []
    counts = {
        "bytes": report.size.bytes.after,
        "parameters": report.size.parameters.after,
        "macs": report.size.macs.after,
    }
    for what, after in counts.items():
        before = accepted.counts[what]
        if before is None or after is None:
            continue
        show = bytes_text if what == "bytes" else count_text
        change = "the same" if after == before else "changed"
        if before and after != before:
            change = f"{100 * (after / before - 1):+.2f} %"
        said = f"{what}: {show(after)}, accepted {show(before)}: {change}"
        ratio = after / before if before else None
        is_larger = after > SIZE_WORTH * before
        rows.append(BaselineRow(what, None, before, after, ratio, None, is_larger, said))
    return rows
