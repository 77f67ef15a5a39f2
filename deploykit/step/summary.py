"""The answer of a step as Markdown, for the page of a CI run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError
from deploykit.report.wording import bytes_text, change_text, count_text
from deploykit.step.gates import value_text
from deploykit.step.junit import limit_text
from deploykit.step.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.report.profile_records import ProfileReport
    from deploykit.report.records import Report
    from deploykit.step.records import StepResult

__all__ = ["append", "error_to_markdown", "to_markdown"]

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&])")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

STATES = {
    "cached": "taken from the cache",
    "ran": "ran",
    "failed": "failed",
    "stale": "would run",
}


def to_markdown(result: StepResult, secrets: Secrets | None = None) -> str:
    """The result as a document that begins with its answer.

    Args:
        result: what came of a step.
        secrets: what must not be told. Default: what the environment holds.
    """
    shown = (secrets or Secrets()).cleaned(result)
    parts = [f"## {_text(shown.recipe.name)}: {shown.verdict}", _answer(shown)]
    parts += [_gates(shown), _measured(shown), _baseline(shown)]
    if shown.report is not None:
        parts.append(_sizes(shown.report, shown))
    if shown.warnings:
        parts.append("\n".join(f"- {_text(warning)}" for warning in shown.warnings))
    parts.append(_stages(shown))
    return "\n\n".join(part for part in parts if part) + "\n"


def error_to_markdown(name: str, error: Exception, secrets: Secrets | None = None) -> str:
    """What a step that came to no result has to say: why there is none.

    Args:
        name: what the step is called.
        error: why there is none.
        secrets: what must not be told. Default: what the environment holds.
    """
    redact = (secrets or Secrets()).redact
    said = redact(str(error)) or type(error).__name__
    return f"## {_text(redact(name))}: no result\n\n{_text(said)}\n"


def append(path: Path, text: str) -> None:
    """Add a summary to a file, as to the one that a CI system shows.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        msg = f"cannot write the summary to '{path}': {error.strerror}. Give another file with --summary."
        raise UsageError(msg) from error


def _answer(result: StepResult) -> str:
    missed = [row for row in result.gates if not row.passed]
    worse = [row for row in (result.baseline.rows if result.baseline else ()) if row.regressed]
    report = result.report
    said = []
    if report is not None and report.verdict == "differs":
        said.append(f"The outputs differ: {_text(report.reason)}")
    if missed:
        count = f"{len(missed)} of {len(result.gates)} gates"
        said.append(f"{count} {'is' if len(missed) == 1 else 'are'} missed.")
    elif result.gates:
        said.append(
            "The gate is met."
            if len(result.gates) == 1
            else f"All {len(result.gates)} gates are met."
        )
    if worse:
        said.append(f"Worse than the accepted result: {', '.join(row.what for row in worse)}.")
    return " ".join(said) or "No gates were given."


def _gates(result: StepResult) -> str:
    if not result.gates:
        return ""
    has_device = any(row.device is not None for row in result.gates)
    rows = []
    for row in result.gates:
        interval = (
            "" if row.ci95 is None else " to ".join(value_text(v, row.unit) for v in row.ci95)
        )
        rows.append(
            [
                "met" if row.passed else "**missed**",
                f"`{_code(row.gate.text)}`",
                *([_text(row.device or "")] if has_device else []),
                value_text(row.figure, row.unit),
                interval,
                _text(limit_text(row)),
                _text(row.note),
            ]
        )
    device = ["device"] if has_device else []
    return _table(["", "gate", *device, "figure", "95 % interval", "limit", "note"], rows)


def _measured(result: StepResult) -> str:
    rows = [_measured_row(name, profile) for name, profile in result.profiles.items()]
    if not rows:
        return ""
    columns = ["device", "original p50", "result p50", "p95", "time / original", "in words"]
    return _table(columns, rows)


def _measured_row(name: str, profile: ProfileReport) -> list[str]:
    original, optimized = profile.models[0].latency, profile.models[1].latency
    relative = profile.relative[0]
    lo, hi = relative.ci95
    return [
        _text(name),
        value_text(original.p50_s, "s"),
        value_text(optimized.p50_s, "s"),
        value_text(optimized.p95_s, "s"),
        f"{relative.ratio:.3f} ({lo:.3f} to {hi:.3f})",
        _text(relative.said),
    ]


def _sizes(report: Report, result: StepResult) -> str:
    size = report.size
    rows = [
        ["parameters", *_pair(size.parameters.before, size.parameters.after)],
        ["multiply-adds", *_pair(size.macs.before, size.macs.after)],
        ["bytes", bytes_text(size.bytes.before), bytes_text(size.bytes.after)],
    ]
    counts = (size.parameters, size.macs, size.bytes)
    rows = [[*row, change_text(count)] for row, count in zip(rows, counts, strict=True)]
    accuracy = result.accuracy
    if accuracy is not None:
        change = f"{accuracy.optimized - accuracy.original:+.4g}"
        figures = [f"{accuracy.original:.4g}", f"{accuracy.optimized:.4g}", change]
        rows.append([_text(accuracy.metric), *figures])
    if report.validation is not None:
        rows.append(["largest error", "", f"{report.validation.max_rel_error:.2g}", ""])
    return _table(["", "original", "result", "change"], rows)


def _pair(before: int | None, after: int | None) -> tuple[str, str]:
    return count_text(before), count_text(after)


def _baseline(result: StepResult) -> str:
    found = result.baseline
    if found is None:
        return ""
    lines = [f"Against the accepted result `{_code(found.path)}`:", ""]
    lines += [
        f"- {'**worse**: ' if row.regressed else ''}{_text(row.said)}" for row in found.rows
    ]
    lines += [f"- not compared: {_text(note)}" for note in found.notes]
    return "\n".join(lines)


def _stages(result: StepResult) -> str:
    rows = [
        [
            _text(stage.name),
            STATES[stage.state],
            "" if stage.state == "stale" else f"{stage.seconds:.1f} s",
            _text(stage.why),
            f"`{stage.key[:12]}`",
        ]
        for stage in result.stages
    ]
    table = _table(["stage", "", "took", "why", "key"], rows)
    versions = ", ".join(f"{_text(k)} {_text(v)}" for k, v in result.versions.items())
    head = "<details><summary>Stages and versions</summary>"
    return "\n\n".join(part for part in (head, table, versions, "</details>") if part)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Text in which nothing is taken for Markdown or HTML."""
    return SPECIAL.sub(r"\\\1", CONTROL.sub(" ", text))


def _code(text: str) -> str:
    """Text between backticks in a table, where only these and bars mean something."""
    return CONTROL.sub(" ", text).replace("`", "'").replace("|", "\\|")
