"""The report as one page that needs nothing else: nothing comes from the network, and without scripts nothing is lost.

The result comes first, as a sentence and as a picture; then what it rests on; then everything there is, in tables.
Everything that comes from a model is escaped: names of tensors are whatever an exporter wrote.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from deploykit.report import block_section, layer_sections, sparse_section, ticket_section
from deploykit.report.markup import (
    Cell,
    Column,
    Shown,
    below,
    both,
    cell,
    folded,
    noted,
    picture,
    span,
    table,
)
from deploykit.report.records import Candidate, Count, Report
from deploykit.report.wording import (
    P99_SAMPLES,
    bytes_text,
    change_sentence,
    change_text,
    count_text,
    error_text,
    group_skips,
    is_lossy,
    latency_note,
    latency_text,
    pattern_text,
    ratio_text,
    reference_text,
    shown_warnings,
    verdict_sentence,
)

if TYPE_CHECKING:
    from deploykit.report.plots import Bar

__all__ = ["render"]

SUBJECTS_SHOWN = 4
CONTROL_CODE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def render(report: Report) -> str:
    """The page, as HTML text."""
    # Drawing costs half a second to import: only what draws pays for it.
    from deploykit.report import plots

    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    with plots.settings():
        body = [
            f"<h1>deploykit: {escape(report.source.path)}</h1>",
            f'<p class="verdict {escape(report.verdict)}">{escape(verdict_sentence(report))}</p>',
            ticket_section.ticket_metrics(report),
            f"<p>{escape(pattern_text(report))}</p>" if pattern_text(report) else "",
            _gain(report),
            *(f'<p class="warning">{escape(text)}</p>' for text in shown_warnings(report)),
            _side_by_side(_sizes(report), _validation(report)),
            _latencies(report),
            ticket_section.ticket_layers(report),
            block_section.block_layers(report),
            sparse_section.sparse_kernels(report),
            layer_sections.staircases(report),
            layer_sections.layers(report),
            _skips(report),
            _side_by_side(_candidates(report), _passes(report)),
            _footer(report),
        ]
    written = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>deploykit: {escape(report.verdict)}: {escape(report.source.path)}</title>"
        f"<style>{_resource('page.css')}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{script}</script>\n</body></html>\n"
    )
    # Names may hold anything; a page may hold no control codes, and nothing that turns the direction of writing.
    return CONTROL_CODE.sub("·", written)


def _side_by_side(*sections: str) -> str:
    """Sections beside one another where the screen has room for it."""
    there = [f"<section>{section}</section>" for section in sections if section]
    return f'<div class="grid wide">{"".join(there)}</div>' if there else ""


def _resource(name: str) -> str:
    return resources.files("deploykit.report").joinpath(name).read_text("utf-8")


def _gain(report: Report) -> str:
    """What is left of the original, and what else was tried."""
    from deploykit.report import plots

    rows: list[Bar] = []
    profile = report.profile
    if profile is not None:
        ratio = Shown("profile.ratio.median", profile.ratio.median)
        rows.append(
            plots.Bar(
                f"time, median ({profile.clock})",
                f"{latency_text(profile.baseline.p50_s)} → {latency_text(profile.optimized.p50_s)}",
                1.0,
                profile.ratio.median,
                _latency(report, "p50_s"),
                after_figures=(ratio,),
                interval=profile.ratio.ci95,
                label=_percent(profile.ratio.median),
            )
        )
    for what, count, place in _counts(report):
        show = bytes_text if place == "bytes" else count_text
        if count.ratio is not None and place != "nodes":
            rows.append(
                plots.Bar(
                    what,
                    f"{show(count.before)} → {show(count.after)}",
                    1.0,
                    count.ratio,
                    both(f"size.{place}", count),
                    after_figures=both(f"size.{place}", count),
                    label=_percent(count.ratio),
                )
            )
    if all(row.after == 1.0 for row in rows):
        rows = []  # four full bars say nothing
    label = "; ".join(f"{row.name}: {row.text}, {row.label} of the original" for row in rows)
    told = "What is left of the original (100 %)"
    if profile is not None:
        lo, hi = profile.ratio.ci95
        told += "; the mark at the end of the first bar is its 95 % interval, " + span(
            f"{_percent(lo)} to {_percent(hi)}", *_interval("profile.ratio.ci95", (lo, hi))
        )
    first = picture("What is left", plots.gains(rows, label), f"{told}.") if rows else ""
    measured = [
        (index, row) for index, row in enumerate(report.candidates) if row.ratio is not None
    ]
    if len(measured) < 2:
        return f'<div class="grid">{first}</div>' if first else ""
    drawn = [
        plots.Bar(row.name, ratio_text(row)[0], None, row.ratio, figures, (), figures, row.ci95)
        for index, row in measured
        for figures in [(Shown(f"candidates.{index}.ratio", row.ratio),)]
    ]
    text = "; ".join(f"{row.name}: {' '.join(ratio_text(row))}" for _, row in measured)
    second = picture(
        "Forms that were measured",
        plots.intervals(drawn, text, [row.chosen for _, row in measured]),
        '<span class="key good">chosen</span> Left of the dashed line is faster than the original; the lines are 95 % intervals.',
    )
    return f'<div class="grid">{first}{second}</div>'


def _counts(report: Report) -> list[tuple[str, Count, str]]:
    size = report.size
    return [
        ("parameters", size.parameters, "parameters"),
        ("bytes", size.bytes, "bytes"),
        ("multiply-adds", size.macs, "macs"),
        ("nodes", size.nodes, "nodes"),
    ]


def _sizes(report: Report) -> str:
    rows = []
    for what, count, place in _counts(report):
        show = {"bytes": bytes_text, "nodes": _plain}.get(place, count_text)
        rows.append(
            [
                cell(what),
                cell(show(count.before), Shown(f"size.{place}.before", count.before)),
                cell(show(count.after), Shown(f"size.{place}.after", count.after)),
                cell(change_text(count)),
            ]
        )
    classes = [""] * len(rows)
    if report.profile is not None:
        profile = report.profile
        lo, hi = profile.ratio.ci95
        rows.insert(
            0,
            [
                cell(f"time, median ({profile.clock})"),
                *(
                    cell(latency_text(shown.value or 0.0), shown)
                    for shown in _latency(report, "p50_s")
                ),
                Cell(
                    f'x{profile.ratio.median:.3f}<br><span class="soft">{lo:.3f} to {hi:.3f}</span>',
                    (
                        Shown("profile.ratio.median", profile.ratio.median),
                        *_interval("profile.ratio.ci95", (lo, hi)),
                    ),
                ),
            ],
        )
        classes.insert(0, "chosen")
    columns = [
        Column(""),
        *(Column(each, is_number=True) for each in ("before", "after", "change")),
    ]
    note = latency_note(report)
    return (
        "<h2>Before and after</h2>"
        + table(columns, rows, classes=classes)
        + (f'<p class="soft">{escape(note)}</p>' if note else "")
    )


def _validation(report: Report) -> str:
    found = report.validation
    if found is None:
        return ""
    words = {"equal": "are <b>equal</b> to", "differs": "<b>differ</b> from"}
    compared = words.get(found.verdict, f"are <b>{escape(found.verdict)}</b> with")
    figures = [
        span(text, Shown(f"validation.{key}", value))
        for text, key, value in (
            (str(found.inputs), "inputs", found.inputs),
            (f"{found.max_rel_error:.2g}", "max_rel_error", found.max_rel_error),
            (f"{found.tolerance:.2g}", "tolerance", found.tolerance),
            (f"{found.max_abs_error:.2g}", "max_abs_error", found.max_abs_error),
        )
    ]
    rows = [
        [
            cell(row.name, kind="name"),
            cell(row.dtype),
            cell(
                f"{row.max_rel_error:.2g}", Shown(f"{place}.max_rel_error", row.max_rel_error)
            ),
            cell(f"{row.tolerance:.2g}", Shown(f"{place}.tolerance", row.tolerance)),
            cell(
                f"{row.max_abs_error:.2g}", Shown(f"{place}.max_abs_error", row.max_abs_error)
            ),
            cell("equal" if row.equal else "differs"),
        ]
        for index, row in enumerate(found.outputs)
        for place in [f"validation.outputs.{index}"]
    ]
    columns = [
        Column("output"),
        Column("type"),
        Column("error", is_number=True),
        Column("allowed", is_number=True),
        Column("absolute", is_number=True),
        Column(""),
    ]
    changed = _changes(report) if is_lossy(report) else ""
    exact = (
        f"<p>Outputs {compared} those of {reference_text(report)} on {figures[0]} inputs. Largest error: {figures[1]} of "
        f"what an output moves by (allowed: {figures[2]}), {figures[3]} absolute"
        + (f", in '{escape(found.worst_output)}'" if found.worst_output else "")
        + ".</p>"
    )
    each = folded(f"each output ({len(rows)})", table(columns, rows)) if rows else ""
    return f"<h2>{'How far the outputs moved' if changed else 'Same function?'}</h2>" + (
        f"<p>{escape(change_sentence(report))}</p>{changed}" if changed else exact + each
    )


def _changes(report: Report) -> str:
    """How far the outputs of a lossy run moved, in standard deviations of the output."""
    found = report.validation
    changes = () if found is None else found.changes
    is_classifier = any(row.agreement is not None for row in changes)
    rows = [
        [
            cell(row.output, kind="name"),
            cell(f"{row.inputs} {row.on}", Shown(f"{place}.inputs", row.inputs)),
            cell(
                error_text(row.mean_rel_error),
                Shown(f"{place}.mean_rel_error", row.mean_rel_error),
            ),
            cell(
                error_text(row.max_rel_error),
                Shown(f"{place}.max_rel_error", row.max_rel_error),
            ),
            cell(
                f"{row.mean_abs_error:.2g}",
                Shown(f"{place}.mean_abs_error", row.mean_abs_error),
            ),
            *([_agreement(row.agreement, place)] if is_classifier else []),
        ]
        for index, row in enumerate(changes)
        for place in [f"validation.changes.{index}"]
    ]
    columns = [
        Column("output"),
        Column("inputs", is_number=True),
        Column("mean", is_number=True),
        Column("largest", is_number=True),
        Column("mean, absolute", is_number=True),
        *([Column("same largest score", is_number=True)] if is_classifier else []),
    ]
    return table(columns, rows) if rows else ""


def _agreement(share: float | None, place: str) -> Cell:
    """How often the largest score is where it was."""
    if share is None:
        return cell("")
    return cell(f"{100 * share:.3g} %", Shown(f"{place}.agreement", share))


def _latencies(report: Report) -> str:
    profile = report.profile
    if profile is None:
        return ""
    from deploykit.report import plots

    models = (("baseline", profile.baseline), ("optimized", profile.optimized))
    rows = [
        [
            cell(word),
            *(
                cell(
                    latency_text(getattr(row, key)),
                    Shown(f"profile.{name}.{key}", getattr(row, key)),
                )
                for name, row in models
            ),
        ]
        for word, key in (
            ("median", "p50_s"),
            ("p90", "p90_s"),
            ("p95", "p95_s"),
            ("p99", "p99_s"),
        )
    ]
    rows.append(
        [
            cell("runs"),
            *(
                cell(f"{row.samples:,}", Shown(f"profile.{name}.samples", row.samples))
                for name, row in models
            ),
        ]
    )
    columns = [
        Column(""),
        Column("original", is_number=True),
        Column("optimized", is_number=True),
    ]
    few = (
        f" With fewer than {P99_SAMPLES} runs the last percentiles are hardly more than the slowest run."
        if min(profile.baseline.samples, profile.optimized.samples) < P99_SAMPLES
        else ""
    )
    busy = (
        " The machine was busy: processor time is what other processes hardly change."
        if profile.clock == "cpu"
        else " The machine was busy, so that single figures may be off; the ratio suffers least."
    )
    count = profile.threads
    threads = (
        "threads as the runtime chose"
        if count is None
        else span(
            "1 thread" if count == 1 else f"{count} threads", Shown("profile.threads", count)
        )
    )
    how = (
        f"By {profile.clock} time of {escape(profile.runtime)}, {threads}, on "
        f"{escape(str(profile.device.get('gpu') or profile.device.get('cpu', 'this machine')))}; both models took turns, in random order."
        + (busy if profile.noisy else "")
        + few
    )
    spread = ""
    samples = {
        word: found.cpu_s if profile.clock == "cpu" else found.wall_s
        for word, name in (("original", "baseline"), ("optimized", "optimized"))
        if (found := profile.samples.get(name)) is not None
    }
    if len(samples) == 2:
        medians = _latency(report, "p50_s")
        drawn = [
            (word, values, median)
            for (word, values), median in zip(samples.items(), medians, strict=True)
        ]
        if samples["original"] == samples["optimized"]:
            drawn = drawn[:1]
        svg, beyond, end = plots.histogram(drawn, "How the times of single runs are spread")
        told = (
            f"{beyond:,} of {sum(len(values) for _, values, _ in drawn):,} runs were slower than the axis is long "
            f"({latency_text(end)})."
            if beyond
            else ""
        )
        spread = picture("", svg, told)
    return (
        '<h2>Latency</h2><div class="grid">'
        + spread
        + f'<div>{table(columns, rows)}<p class="soft">{how}</p></div></div>'
    )


def _skips(report: Report) -> str:
    groups = group_skips(report.skips)
    if not groups:
        return ""
    parts = []
    for group in groups:
        told = [
            escape(skip.subject if group.is_uniform else f"{skip.subject}: {skip.reason}")
            for skip in group.skips
        ]
        shown = "".join(f"<div>{line}</div>" for line in told[:SUBJECTS_SHOWN])
        rest = told[SUBJECTS_SHOWN:]
        if rest:
            lines = "".join(f"<div>{line}</div>" for line in rest)
            shown += f"<details><summary>and {len(rest)} more</summary>{lines}</details>"
        parts.append(
            f'<div class="skip"><h3>{escape(group.reason)}</h3>'
            + (f"<p>{escape(group.advice)}</p>" if group.advice else "")
            + f'<div class="subjects">{shown}</div></div>'
        )
    return "<h2>Left alone, why, and what to do</h2>" + "".join(parts)


def _candidates(report: Report) -> str:
    if not report.candidates:
        return ""
    rows = [_candidate(index, row) for index, row in enumerate(report.candidates)]
    columns = [
        Column("form"),
        Column("time / original", is_number=True),
        Column("parameters", is_number=True),
    ]
    reason = escape(report.reason.rstrip("."))
    return f"<h2>The choice</h2><p>{reason}.</p>" + table(
        columns, rows, classes=["chosen" if row.chosen else "" for row in report.candidates]
    )


def _candidate(index: int, row: Candidate) -> list[Cell]:
    place = f"candidates.{index}"
    ratio, interval = ratio_text(row)
    figures = [] if row.ratio is None else [Shown(f"{place}.ratio", row.ratio)]
    if row.ci95 is not None:
        figures += _interval(f"{place}.ci95", row.ci95)
    parameters = [
        Shown(f"{place}.parameters", each) for each in (row.parameters,) if each is not None
    ]
    return [
        noted(row.name, "chosen" if row.chosen else row.note),
        Cell(below(ratio, interval), tuple(figures)),
        cell("".join(f"{each.value:,}" for each in parameters), *parameters),
    ]


def _passes(report: Report) -> str:
    rows = []
    for at, record in enumerate(report.passes):
        options = ", ".join(f"{name}={value}" for name, value in record.options.items())
        changes = "".join(
            f"<div>{escape(change.subject)}: {escape(change.what)} "
            + span(
                f"{change.before} → {change.after}",
                Shown(f"passes.{at}.changes.{index}.before", change.before),
                Shown(f"passes.{at}.changes.{index}.after", change.after),
            )
            + "</div>"
            for index, change in enumerate(record.changes)
        )
        told = (
            f"<details><summary>{_several(len(record.changes), 'change')}</summary>{changes}</details>"
            if changes
            else "no changes"
        )
        rows.append(
            [
                noted(
                    record.name,
                    ", ".join(filter(None, ("exact" if record.exact else "lossy", options))),
                ),
                cell(f"{record.seconds:.2f} s", Shown(f"passes.{at}.seconds", record.seconds)),
                Cell(told, kind="name"),
            ]
        )
    columns = [
        Column("pass"),
        Column("time", is_number=True),
        Column("changes"),
    ]
    return "<h2>Passes</h2>" + table(columns, rows) if rows else ""


def _footer(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    elapsed = span(f"{report.elapsed_s:.1f} s", Shown("elapsed_s", report.elapsed_s))
    held = report.source.ticket
    ticket = (
        "" if held is None else f"<br>ticket: {escape(held.path)}, sha256 {escape(held.sha256)}"
    )
    return (
        f"<footer><code>{escape(report.command)}</code><br>sha256 of the source: {escape(report.source.sha256)}{ticket}<br>"
        f"target: {escape(report.target)}; {escape(versions)}; {elapsed}</footer>"
    )


def _latency(report: Report, key: str) -> tuple[Shown, ...]:
    """A percentile of both models."""
    profile = report.profile
    if profile is None:
        return ()
    return (
        Shown(f"profile.baseline.{key}", getattr(profile.baseline, key)),
        Shown(f"profile.optimized.{key}", getattr(profile.optimized, key)),
    )


def _interval(place: str, ends: Iterable[float]) -> tuple[Shown, ...]:
    return tuple(Shown(f"{place}.{index}", end) for index, end in enumerate(ends))


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def _plain(number: int | None) -> str:
    return "?" if number is None else str(number)
