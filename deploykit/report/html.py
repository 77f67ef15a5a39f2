"""The report as one page that needs nothing else: no scripts, no fonts, nothing from the network.

Everything that comes from a model is escaped: names of tensors are whatever an exporter wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from deploykit.report.records import Candidate, Layer, Report
from deploykit.report.wording import (
    group_skips,
    latency_note,
    ratio_text,
    reference_text,
    shown_warnings,
    size_rows,
    verdict_sentence,
)

__all__ = ["render"]

STYLE = """
:root { color-scheme: light dark; --fg: #1c1e21; --bg: #fff; --soft: #6a7076; --line: #dcdfe3; --bar: #c3c9d0;
  --good: #1a7f4b; --bad: #b3261e; --kept: #2f6fb5; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e6e9; --bg: #16181b; --soft: #9aa1a9; --line: #33373c;
  --bar: #4a5058; --good: #5bd08f; --bad: #ff8a80; --kept: #74aeee; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 66rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.1rem; font-weight: 500; color: var(--soft); margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem; }
.verdict { font-size: 1.5rem; line-height: 1.3; margin: .3rem 0 1rem; }
.faster, .smaller { color: var(--good); } .differs { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.chosen td { font-weight: 600; }
td.name { overflow-wrap: anywhere; min-width: 9rem; }
@media (max-width: 40rem) { p { overflow-wrap: anywhere; } td.name { min-width: 5rem; }
  th, td { padding-right: .5rem; } svg { width: 6rem; } body { margin: 1rem auto; } }
svg { display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.all { fill: var(--bar); } .kept { fill: var(--kept); } .good { fill: var(--good); stroke: var(--good); }
.plain { fill: var(--kept); stroke: var(--kept); } .rule { stroke: var(--soft); stroke-dasharray: 3 3; }
.warning { border-left: 3px solid var(--bad); padding-left: .8rem; }
.soft, footer { color: var(--soft); } footer { margin-top: 3rem; font-size: .85rem; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); }
"""

BAR_WIDTH = 180
SUBJECTS_SHOWN = 4


def render(report: Report) -> str:
    """The page, as HTML text."""
    verdict = (
        f'<p class="verdict {escape(report.verdict)}">{escape(verdict_sentence(report))}</p>'
    )
    body = [
        f"<h1>deploykit: {escape(report.source.path)}</h1>",
        verdict,
        *(f'<p class="warning">{escape(warning)}</p>' for warning in shown_warnings(report)),
        _sizes(report),
        _validation(report),
        _candidates(report),
        _skips(report),
        _layers(report.layers),
        _passes(report),
        _footer(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>deploykit: {escape(report.verdict)}: {escape(report.source.path)}</title>"
        f"<style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _sizes(report: Report) -> str:
    rows = [
        [_cell(what), _number(before), _number(after), _number(change)]
        for what, before, after, change in size_rows(report)
    ]
    note = latency_note(report)
    return (
        "<h2>Before and after</h2>"
        + _table(["", "#before", "#after", "#change"], rows)
        + (f'<p class="soft">{escape(note)}</p>' if note else "")
    )


def _validation(report: Report) -> str:
    found = report.validation
    if found is None:
        return ""
    return (
        "<h2>Same function?</h2><p>"
        f"Outputs {_compared(found.verdict)} those of {reference_text(report)} on {found.inputs} inputs. "
        f"Largest error: {found.max_rel_error:.2g} of "
        f"what an output moves by (allowed: {found.tolerance:.2g}), {found.max_abs_error:.2g} absolute"
        + (f", in '{escape(found.worst_output)}'" if found.worst_output else "")
        + ".</p>"
    )


def _compared(verdict: str) -> str:
    words = {"equal": "are <b>equal</b> to", "differs": "<b>differ</b> from"}
    return words.get(verdict, f"are <b>{escape(verdict)}</b> with")


def _candidates(report: Report) -> str:
    if not report.candidates:
        return ""
    highest = max(
        [
            1.0,
            *(row.ci95[1] for row in report.candidates if row.ci95),
            *(row.ratio or 0 for row in report.candidates),
        ]
    )
    rows = []
    for row in report.candidates:
        ratio, interval = ratio_text(row)
        rows.append(
            [
                _cell(row.name, "name"),
                _number(ratio),
                _number(interval),
                f"<td>{_interval_bar(row, highest)}</td>",
                _number("" if row.parameters is None else f"{row.parameters:,}"),
                _cell("chosen" if row.chosen else row.note),
            ]
        )
    chosen = [" class=chosen" if row.chosen else "" for row in report.candidates]
    clock = (
        ""
        if report.profile is None
        else (
            f'<p class="soft">Time over that of the original, with its 95 % interval, by {escape(report.profile.clock)} time, '
            f"{report.profile.threads} thread(s), {escape(report.profile.runtime)} on "
            f"{escape(str(report.profile.device.get('cpu', 'this machine')))}. "
            + ("The machine was busy. " if report.profile.noisy else "")
            + "The dashed line is the original.</p>"
        )
    )
    headers = ["candidate", "#time / original", "#95 % interval", "", "#parameters", ""]
    return (
        "<h2>Candidates</h2>"
        f"<p>{escape(report.reason)}.</p>" + _table(headers, rows, chosen) + clock
    )


def _interval_bar(row: Candidate, highest: float) -> str:
    if row.ratio is None:
        return ""
    scale = BAR_WIDTH / highest
    lo, hi = row.ci95 or (row.ratio, row.ratio)
    kind = "good" if row.chosen else "plain"
    return (
        f'<svg width="{BAR_WIDTH + 8}" height="18" viewBox="0 0 {BAR_WIDTH + 8} 18" role="img" aria-label="{row.ratio:.3f}">'
        f'<line class="rule" x1="{scale:.1f}" x2="{scale:.1f}" y1="0" y2="18"/>'
        f'<line class="{kind}" stroke-width="3" x1="{lo * scale:.1f}" x2="{hi * scale:.1f}" y1="9" y2="9"/>'
        f'<line class="{kind}" stroke-width="2" x1="{lo * scale:.1f}" x2="{lo * scale:.1f}" y1="3" y2="15"/>'
        f'<line class="{kind}" stroke-width="2" x1="{hi * scale:.1f}" x2="{hi * scale:.1f}" y1="3" y2="15"/>'
        f'<circle class="{kind}" cx="{row.ratio * scale:.1f}" cy="9" r="3"/></svg>'
    )


def _layers(layers: Sequence[Layer]) -> str:
    if not layers:
        return ""
    rows = [
        [
            _cell(layer.weight, "name"),
            _cell(layer.op_type),
            f"<td>{_channel_bar(layer)}</td>",
            _number(_arrow(layer.outputs.before, layer.outputs.after)),
            _number(_arrow(layer.inputs.before, layer.inputs.after)),
            _number(f"{100 * layer.zeros:.0f} %"),
            _number(str(layer.zero_outputs)),
        ]
        for layer in layers
    ]
    headers = [
        "weight",
        "op",
        "output channels",
        "#outputs",
        "#inputs",
        "#zeros",
        "#dead outputs",
    ]
    return "<h2>Layers</h2>" + _table(headers, rows)


def _channel_bar(layer: Layer) -> str:
    before, after = layer.outputs.before or 0, layer.outputs.after or 0
    scale = BAR_WIDTH / max(before, after, 1)
    label = f"{before} before, {after} after"
    return (
        f'<svg width="{BAR_WIDTH}" height="14" viewBox="0 0 {BAR_WIDTH} 14" role="img" aria-label="{label}">'
        f'<rect class="all" x="0" y="2" height="10" width="{before * scale:.1f}"/>'
        f'<rect class="kept" x="0" y="2" height="10" width="{after * scale:.1f}"/></svg>'
    )


def _skips(report: Report) -> str:
    groups = group_skips(report.skips)
    if not groups:
        return ""
    rows = []
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
        rows.append(
            [_cell(group.reason), f'<td class="name">{shown}</td>', _cell(group.advice)]
        )
    return "<h2>Left alone, and why</h2>" + _table(["why", "what", "what to do"], rows)


def _passes(report: Report) -> str:
    rows = []
    for record in report.passes:
        options = ", ".join(f"{name}={value}" for name, value in record.options.items())
        changes = "".join(
            f"<div>{escape(change.subject)}: {escape(change.what)} {change.before} → {change.after}</div>"
            for change in record.changes
        )
        told = (
            f"<details><summary>{len(record.changes)} changes</summary>{changes}</details>"
            if changes
            else "no changes"
        )
        kind = "exact" if record.exact else "lossy"
        rows.append(
            [
                _cell(record.name),
                _cell(kind),
                _cell(options),
                _number(f"{record.seconds:.2f} s"),
                f'<td class="name">{told}</td>',
            ]
        )
    return "<h2>Passes</h2>" + _table(["pass", "", "options", "#time", "changes"], rows)


def _footer(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"<footer><code>{escape(report.command)}</code><br>sha256 of the source: {escape(report.source.sha256)}<br>"
        f"target: {escape(report.target)}; {escape(versions)}; {report.elapsed_s:.1f} s</footer>"
    )


def _table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] | None = None
) -> str:
    """A table; a header that begins with # is that of a column of numbers."""
    head = "".join(
        f'<th class="number">{escape(header[1:])}</th>'
        if header.startswith("#")
        else f"<th>{escape(header)}</th>"
        for header in headers
    )
    lines = list(rows)
    kinds = classes or [""] * len(lines)
    body = "".join(
        f"<tr{kind}>{''.join(row)}</tr>\n" for kind, row in zip(kinds, lines, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _number(text: str) -> str:
    return _cell(text, "number")


def _arrow(before: int | None, after: int | None) -> str:
    if after is None:
        return f"{before} → gone"
    return str(before) if before == after else f"{before} → {after}"
