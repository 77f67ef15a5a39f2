"""The report as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.console import Group as Rendered
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploykit.output_change import OutputChange
from deploykit.report.console_text import result_console
from deploykit.report.records import Group, Layer, Report
from deploykit.report.sparse_text import engine_parts, sparse_parts
from deploykit.report.wording import (
    block_text,
    error_text,
    group_skips,
    inputs_text,
    is_lossy,
    latency_note,
    metrics_text,
    original_text,
    pattern_text,
    ratio_text,
    reference_text,
    shown_warnings,
    size_rows,
    verdict_sentence,
)

__all__ = ["print_report", "render"]

STYLES = {
    "faster": "bold green",
    "smaller": "bold green",
    "changed": "bold",
    "unchanged": "bold",
    "differs": "bold red",
    "planned": "bold",
}
SUBJECTS_SHOWN = 3
LAYERS_SHOWN = 16


def print_report(
    report: Report, *, console: Console | None = None, all_layers: bool = False
) -> None:
    """Print a report to a console, by default to stdout.

    Args:
        report: the report.
        console: where to.
        all_layers: whether all layers are listed, or the first that changed or have dead channels.
    """
    result_console(console).print(render(report, all_layers=all_layers))


def render(report: Report, *, all_layers: bool = False) -> RenderableType:
    """The tables of a report."""
    parts: list[RenderableType] = [
        Text(verdict_sentence(report), style=STYLES[report.verdict]),
        *(
            Text(line)
            for line in (
                original_text(report),
                metrics_text(report.source.ticket),
                pattern_text(report),
            )
            if line
        ),
        Text(""),
        _sizes(report),
    ]
    if latency_note(report):
        parts.append(Text(latency_note(report), "dim"))
    if report.candidates:
        parts += [Text(""), _candidates(report)]
    layers = [layer for layer in report.layers if all_layers or _is_interesting(layer)]
    if layers:
        shown = layers if all_layers else layers[:LAYERS_SHOWN]
        parts += [Text(""), _layers(report, shown, len(layers))]
    if not all_layers and len(layers) > LAYERS_SHOWN:
        parts.append(
            Text(
                f"... and {len(layers) - LAYERS_SHOWN} more: -v lists all, and so does report.html",
                "dim",
            )
        )
    if report.groups:
        parts += [Text(""), _groups(report.groups)]
    if report.skips or report.no_blocks:
        parts += [Text(""), _skips(report)]
    if report.validation is not None:
        parts += [Text(""), Text(_validation_line(report))]
        if is_lossy(report) and report.validation.changes:
            parts.append(_changes(report.validation.changes))
    parts += [*sparse_parts(report.sparse), *engine_parts(report.engine)]
    for warning in shown_warnings(report):
        parts.append(Text.assemble(("warning: ", "bold yellow"), warning))
    return Rendered(*parts)


def _sizes(report: Report) -> Table:
    table = _table("", "before", "after", "change")
    for row in size_rows(report):
        table.add_row(*(escape(cell) for cell in row))
    return table


def _candidates(report: Report) -> Table:
    table = _table("candidate", "time / original", "95 % interval", "parameters", "")
    for candidate in report.candidates:
        ratio, interval = ratio_text(candidate)
        note = "chosen" if candidate.chosen else candidate.note
        parameters = "" if candidate.parameters is None else f"{candidate.parameters:,}"
        table.add_row(
            *(escape(cell) for cell in (candidate.name, ratio, interval, parameters, note)),
            style="bold" if candidate.chosen else "",
        )
    return table


def _is_interesting(layer: Layer) -> bool:
    return layer.zero_outputs > 0 or layer.shape_after != layer.shape_before


def _layers(report: Report, layers: Sequence[Layer], interesting: int) -> Table:
    blocks = {row.weight: row for row in report.block_layers}
    # A column of nothing would take room from the names.
    has_blocks = any(layer.form or layer.weight in blocks for layer in layers)
    headers = ["weight", "op", "outputs", "inputs", "zeros", "dead outputs"]
    table = _table(*headers, *(["blocks"] if has_blocks else []))
    total = len(report.layers)
    table.title = (
        f"layers: {interesting} of {total}"
        if interesting == total
        else f"layers: {interesting} of {total} changed or have dead channels"
    )
    table.title_justify = "left"
    for layer in layers:
        outputs = _arrow(layer.outputs.before, layer.outputs.after)
        inputs = _arrow(layer.inputs.before, layer.inputs.after)
        if layer.form is not None:
            outputs, inputs = f"{layer.outputs.before}", f"{layer.inputs.before}"
        elif layer.shape_after is None:
            outputs, inputs = f"{layer.outputs.before} → gone", ""
        cells = [
            layer.weight,
            layer.op_type,
            outputs,
            inputs,
            f"{100 * layer.zeros:.0f} %",
            str(layer.zero_outputs),
        ]
        if has_blocks:
            row = blocks.get(layer.weight)
            found = layer.form or "" if row is None else block_text(row)
            if row is not None and layer.form is not None:
                found = f"{row.form}, {found}"
            cells.append(found)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _groups(groups: Sequence[Group]) -> Table:
    table = _table("layers that share channels", "channels", "must stay", "why")
    for group in groups:
        names = ", ".join(group.layers[:SUBJECTS_SHOWN])
        if len(group.layers) > SUBJECTS_SHOWN:
            names += f" and {len(group.layers) - SUBJECTS_SHOWN} more"
        cells = (names, str(group.channels), str(group.pinned), group.reason)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _skips(report: Report) -> Table:
    table = _table("left alone", "why", "what to do")
    # Where `group-blocks` ran, it says of these layers the same.
    for group in group_skips(tuple(dict.fromkeys((*report.skips, *report.no_blocks)))):
        subjects = ", ".join(group.subjects[:SUBJECTS_SHOWN])
        if len(group.subjects) > SUBJECTS_SHOWN:
            subjects += f" and {len(group.subjects) - SUBJECTS_SHOWN} more"
        table.add_row(escape(subjects), escape(group.reason), escape(group.advice))
    return table


def _validation_line(report: Report) -> str:
    found = report.validation
    if found is None:
        return ""
    if is_lossy(report) and found.verdict == "differs":
        return f"outputs: {_compared(report)}, by design; errors are in standard deviations of the output:"
    return (
        f"outputs: {_compared(report)} on {found.inputs} inputs; largest error {found.max_rel_error:.2g} of what an output "
        f"moves by (allowed {found.tolerance:.2g}), {found.max_abs_error:.2g} absolute"
    )


def _changes(rows: Sequence[OutputChange]) -> Table:
    headers = ["output", "on", "mean error", "largest error", "mean absolute error"]
    is_classifier = any(row.agreement is not None for row in rows)
    table = _table(*headers, *(["same largest score"] if is_classifier else []))
    for row in rows:
        cells = [
            row.output,
            inputs_text(row),
            error_text(row.mean_rel_error),
            error_text(row.max_rel_error),
            f"{row.mean_abs_error:.2g}",
        ]
        if is_classifier:
            cells.append("" if row.agreement is None else f"{100 * row.agreement:.3g} %")
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _compared(report: Report) -> str:
    verdict = "" if report.validation is None else report.validation.verdict
    joint = {"equal": "equal to", "differs": "differ from"}.get(verdict, f"{verdict} with")
    return f"{joint} those of {reference_text(report)}"


def _arrow(before: int | None, after: int | None) -> str:
    return str(before) if before == after else f"{before} → {after}"


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, header in enumerate(headers):
        is_number = header in {
            "before",
            "after",
            "change",
            "time / original",
            "parameters",
            "zeros",
            "dead outputs",
            "channels",
            "must stay",
        }
        table.add_column(
            header,
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=index > 0 and is_number,
        )
    return table
