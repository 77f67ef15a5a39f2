"""How figures and skips are put into words, the same on a terminal and on a page."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence

from deploykit.output_change import OutputChange
from deploykit.report.records import (
    BlockLayer,
    Candidate,
    Count,
    Report,
    Skip,
    Staircase,
    TicketRecord,
)

__all__ = [
    "SkipGroup",
    "block_text",
    "bytes_text",
    "change_sentence",
    "change_text",
    "count_text",
    "error_text",
    "group_skips",
    "is_lossy",
    "latency_note",
    "latency_text",
    "marks_of",
    "metrics_text",
    "original_text",
    "outcome_text",
    "pattern_text",
    "ratio_text",
    "reference_text",
    "shown_warnings",
    "size_rows",
    "time_text",
    "verdict_sentence",
]


DETAIL = re.compile(r"'[^']*'|\b\d+\b")
"""What sets reasons of one kind apart: a quoted name, or a number."""

P99_SAMPLES = 100
"""Fewer samples than this have no 99th percentile to speak of."""


@dataclasses.dataclass(frozen=True)
class SkipGroup:
    """Skips for one kind of reason.

    Attributes:
        reason: why; where the reasons differ in names and numbers, the first name and the range of the numbers.
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
    for (_, advice), members in groups.items():
        reasons = tuple(dict.fromkeys(skip.reason for skip in members))
        made.append(SkipGroup(_common_reason(reasons), _as_typed(advice), tuple(members)))
    return tuple(sorted(made, key=lambda group: -len(group.skips)))


def _kind_of(reason: str) -> str:
    """What reasons have in common that differ in the names and numbers of their cases only."""
    return DETAIL.sub("…", reason)


def _as_typed(advice: str) -> str:
    """Advice of a pass, its options as they are given on a command line."""
    return advice.replace("carry='bias-map'", "--set remove-channels.carry=bias-map")


def _common_reason(reasons: Sequence[str]) -> str:
    """Reasons of one kind as one: where they differ, the first name and how many more, or the range of a number."""
    cases = [DETAIL.findall(reason) for reason in reasons]
    told = []
    for found in zip(*cases, strict=True):
        values = list(dict.fromkeys(found))
        if len(values) == 1:
            told.append(values[0])
        elif all(value.isdecimal() for value in values):
            numbers = [int(value) for value in values]
            told.append(f"{min(numbers)} to {max(numbers)}")
        else:
            told.append(f"{values[0]} and {len(values) - 1} more")
    rest = iter(told)
    return DETAIL.sub(lambda _: next(rest), reasons[0])


def block_text(row: BlockLayer) -> str:
    """The blocks of a layer and their share: "4 of 64x32 in 256x128, 25 % of it"."""
    return f"{row.text}, {100 * row.share:.0f} % of it"


def outcome_text(row: BlockLayer) -> str:
    """What became of a layer with blocks, and why; nothing where that was not decided."""
    if row.form in {"", "dense"}:
        return row.reason
    return f"computed as {row.form}, {row.reason}" if row.reason else f"computed as {row.form}"


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
        if min(profile.baseline.samples, profile.optimized.samples) >= P99_SAMPLES:
            rows.append(
                (
                    f"latency p99 ({profile.clock})",
                    latency_text(profile.baseline.p99_s),
                    latency_text(profile.optimized.p99_s),
                    "",
                )
            )
    return rows


def latency_note(report: Report) -> str:
    """Why the change of latency is not its quotient; nothing where nothing was measured."""
    if report.profile is None:
        return ""
    return (
        "The change of latency compares the models round by round, and the columns are medians of all rounds: "
        "their quotient can differ from it."
    )


def reference_text(report: Report) -> str:
    """What outputs were compared with."""
    return "the masked model" if _has_masks(report) else "the original"


def original_text(report: Report) -> str:
    """What "the original" is, where a ticket was put into it; nothing where it is what the user gave."""
    if report.source.ticket is None:
        return ""
    return "The original is the exported network with the ticket's masks in it."


def pattern_text(report: Report) -> str:
    """How many weights obey a pattern of zeros now; nothing where none does, or nobody looked."""
    record = next((each for each in report.passes if each.name == "sparse-2-4"), None)
    if record is None or not record.changes:
        return ""
    made = sum(change.before != change.after for change in record.changes)
    count = len(record.changes)
    pattern = record.options.get("pattern", "2:4")
    obey = f"{count} weights obey" if count > 1 else "1 weight obeys"
    if not made:
        return f"{obey} {pattern}, as before."
    which = "all" if made == count else str(made)
    return f"{obey} {pattern}; {which} of them {'were' if made > 1 else 'was'} made to, by magnitude or by masks."


def metrics_text(ticket: TicketRecord | None) -> str:
    """How good a ticket is, and the dense network that it was found in; nothing where its file does not say."""
    if ticket is None or ticket.test_metric is None:
        return ""
    dense = ticket.dense_test_metric
    of_dense = "" if dense is None else f", that of the dense network {dense:.4f}"
    return f"The ticket's test metric is {ticket.test_metric:.4f}{of_dense} (measured by the search, in PyTorch)."


def shown_warnings(report: Report) -> tuple[str, ...]:
    """The warnings, without those about what the user asked for with --no-profile."""
    asked = {"--no-profile", "--dry-run"} & set(_words(report))
    return tuple(
        warning
        for warning in report.warnings
        if not (asked and warning.startswith("'align-channels' did not run"))
    )


def _has_masks(report: Report) -> bool:
    return any(word == "--masks" or word.startswith("--masks=") for word in _words(report))


def _words(report: Report) -> list[str]:
    try:
        return shlex.split(report.command)
    except ValueError:
        return report.command.split()


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
            ) + _at_what_price(report)
        case "smaller":
            speed = (
                "speed not measured" if report.profile is None else "no proven change of speed"
            )
            return (
                f"Smaller, {speed}: {_fewer(size.parameters)} parameters, {_fewer(size.bytes)} bytes."
                + _at_what_price(report)
            )
        case "changed":
            return f"Changed: {reason}." + _at_what_price(report)
        case "differs":
            return f"No model was written: {reason.removesuffix('. No model was written')}."
        case "planned":
            what = "This pruning" if is_lossy(report) else "Exact removal"
            return (
                f"{what} would leave {count_text(size.parameters.after)} of "
                f"{count_text(size.parameters.before)} parameters ({change_text(size.parameters)})."
            )
        case _:
            return f"Unchanged: {reason}."


def is_lossy(report: Report) -> bool:
    """Whether a pass that does not claim to preserve the function changed the model that is handed out."""
    return report.verdict != "unchanged" and any(
        record.modified and not record.exact for record in report.passes
    )


def change_sentence(report: Report) -> str:
    """How far the outputs of a lossy run moved, on the inputs that tell the most; nothing of an exact one."""
    found = report.validation
    if found is None or not found.changes or not is_lossy(report):
        return ""
    # the user's own inputs, where there are any, come first
    on = found.changes[0].on
    rows = [row for row in found.changes if row.on == on]
    worst = max(rows, key=lambda row: row.mean_rel_error)
    names = [record.name for record in report.passes if record.modified and not record.exact]
    text = (
        f"The outputs changed, as {' and '.join(names)} {'do' if len(names) > 1 else 'does'}: on average by {error_text(worst.mean_rel_error)} of their "
        f"standard deviation, at most by {error_text(worst.max_rel_error)}, on {inputs_text(worst)}"
    )
    agreed = [row.agreement for row in rows if row.agreement is not None]
    if agreed:
        text += f"; the largest score is where it was on {100 * min(agreed):.3g} % of them"
    return f"{text}."


def inputs_text(change: OutputChange) -> str:
    """How many inputs a change was seen on, and of which kind."""
    return f"{change.inputs} {change.on} input{'' if change.inputs == 1 else 's'}"


def _at_what_price(report: Report) -> str:
    sentence = change_sentence(report)
    return f" {sentence}" if sentence else ""


def error_text(error: float) -> str:
    """A relative error in percent."""
    return f"{100 * error:.2g} %" if error < 1 else f"{100 * error:.0f} %"


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


def time_text(seconds: float) -> str:
    """Seconds with three digits, in the unit that leaves one to three of them before the point."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        value = seconds / scale
        # What rounds to a thousand of a unit is one of the next.
        if value >= 0.9995 or unit == "µs":
            places = 2 if value < 9.995 else 1 if value < 99.95 else 0
            break
    return f"{value:.{places}f} {unit}"


def marks_of(stair: Staircase) -> dict[str, str]:
    """The counts of a staircase that matter, by field, and what they are called; equal ones are named once."""
    if stair.before == stair.after:
        return {"before": "in the model"}
    named = {"before": "original", "as_is": "removal alone", "after": "chosen"}
    if stair.as_is in {stair.after, stair.before}:
        del named["as_is"]
    return named


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
