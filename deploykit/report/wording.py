"""How figures and skips are put into words, the same on a terminal and on a page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from deploykit.report.records import Candidate, Count, Report, Skip

__all__ = [
    "SkipGroup",
    "bytes_text",
    "change_text",
    "count_text",
    "group_skips",
    "latency_text",
    "ratio_text",
    "size_rows",
    "verdict_sentence",
]


@dataclasses.dataclass(frozen=True)
class SkipGroup:
    """Skips for one kind of reason.

    Attributes:
        reason: why; where the reasons differ in names and numbers, those are left out.
        advice: what can be done about it.
        skips: the skips.
    """

    reason: str
    advice: str
    skips: tuple[Skip, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """What it is about."""
        return tuple(skip.subject for skip in self.skips)

    @property
    def is_uniform(self) -> bool:
        """Whether all of them have the very same reason."""
        return all(skip.reason == self.reason for skip in self.skips)


def group_skips(skips: Sequence[Skip]) -> tuple[SkipGroup, ...]:
    """Group skips by kind of reason and advice, the most frequent first."""
    groups: dict[tuple[str, str], list[Skip]] = {}
    for skip in skips:
        groups.setdefault((_kind_of(skip.reason), skip.advice), []).append(skip)
    made = []
    for (kind, advice), members in groups.items():
        reasons = {skip.reason for skip in members}
        made.append(
            SkipGroup(reasons.pop() if len(reasons) == 1 else kind, advice, tuple(members))
        )
    return tuple(sorted(made, key=lambda group: -len(group.skips)))


def _kind_of(reason: str) -> str:
    """A reason without the names and numbers of its case."""
    return re.sub(r"'[^']*'|\b\d+\b", "…", reason)


def size_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Rows (what, before, after, change) of the before/after table."""
    size = report.size
    rows = [
        ("parameters", *_pair(size.parameters, count_text)),
        ("bytes", *_pair(size.bytes, bytes_text)),
        ("multiply-adds", *_pair(size.macs, count_text)),
        ("nodes", *_pair(size.nodes, str)),
    ]
    if report.profile is not None:
        profile = report.profile
        lo, hi = profile.ratio.ci95
        before, after = (
            latency_text(profile.baseline.p50_s),
            latency_text(profile.optimized.p50_s),
        )
        rows.append(
            (
                f"latency p50 ({profile.clock})",
                before,
                after,
                f"x{profile.ratio.median:.3f} [{lo:.3f}, {hi:.3f}]",
            )
        )
        rows.append(
            (
                f"latency p99 ({profile.clock})",
                latency_text(profile.baseline.p99_s),
                latency_text(profile.optimized.p99_s),
                "",
            )
        )
    return rows


def verdict_sentence(report: Report) -> str:
    """The result in one sentence, with the figures that support it."""
    size, reason = report.size, report.reason.rstrip(".")
    match report.verdict:
        case "faster" if report.profile is not None:
            ratio = report.profile.ratio
            lo, hi = ratio.ci95
            return (
                f"{1 / ratio.median:.2f} times as fast: {ratio.median:.3f} of the original's time "
                f"(95 % interval {lo:.3f} to {hi:.3f}), with {_fewer(size.parameters)} parameters."
            )
        case "smaller":
            speed = (
                "speed not measured" if report.profile is None else "no proven change of speed"
            )
            return f"Smaller, {speed}: {_fewer(size.parameters)} parameters, {_fewer(size.bytes)} bytes."
        case "differs":
            return f"No model was written: {reason}."
        case "planned":
            return (
                f"Exact removal would leave {count_text(size.parameters.after)} of "
                f"{count_text(size.parameters.before)} parameters ({change_text(size.parameters)})."
            )
        case _:
            return f"Unchanged: {reason}."


def count_text(number: int | None) -> str:
    """A count as people read it: 2,241,536 becomes "2.24 M"."""
    if number is None:
        return "?"
    for scale, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def bytes_text(number: int | None) -> str:
    """Bytes in binary units."""
    if number is None:
        return "?"
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"


def latency_text(seconds: float) -> str:
    """Seconds in milliseconds."""
    return f"{seconds * 1e3:.3g} ms"


def change_text(count: Count) -> str:
    """The relative change: "-57.9 %"."""
    ratio = count.ratio
    if ratio is None:
        return "?"
    return "±0 %" if ratio == 1.0 else f"{100 * (ratio - 1):+.1f} %"


def ratio_text(candidate: Candidate) -> tuple[str, str]:
    """Ratio and interval of a candidate."""
    ratio = "-" if candidate.ratio is None else f"{candidate.ratio:.3f}"
    interval = (
        "" if candidate.ci95 is None else f"{candidate.ci95[0]:.3f} to {candidate.ci95[1]:.3f}"
    )
    return ratio, interval


def _fewer(count: Count) -> str:
    ratio = count.ratio
    if ratio is None:
        return "an unknown number of"
    if ratio == 1.0:
        return "as many"
    return f"{100 * abs(1 - ratio):.1f} % {'fewer' if ratio < 1 else 'more'}"


def _pair(count: Count, show: object) -> tuple[str, str, str]:
    text = show if callable(show) else str
    before = "?" if count.before is None else str(text(count.before))
    after = "?" if count.after is None else str(text(count.after))
    return before, after, change_text(count)
