"""Profiles and comparisons as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.text import Text

from deploykit.report.console_text import plain_table, result_console
from deploykit.report.profile_records import (
    Comparison,
    LayerPair,
    ProfiledModel,
    ProfileReport,
    Relative,
)
from deploykit.report.profile_wording import outliers_text, seconds_text
from deploykit.report.sparse_text import sparse_parts, sparse_times_parts
from deploykit.report.state_text import state_text
from deploykit.report.what_if_text import what_if_parts
from deploykit.report.wording import bytes_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "conditions_text",
    "print_result",
    "render_comparison",
    "render_profile",
]

LAYERS_SHOWN = 25
WIDE = 100
"""Columns that a terminal has to have for a table with a row for each model."""
TEXT_COLUMNS = frozenset(
    {"", "model", "layer", "op", "done by", "in words", "note", "baseline"}
)


def print_result(
    result: ProfileReport | Comparison,
    *,
    console: Console | None = None,
    all_layers: bool = False,
) -> None:
    """Print a profile or a comparison to a console, by default to stdout."""
    console = result_console(console)
    if isinstance(result, ProfileReport):
        console.print(render_profile(result, all_layers=all_layers))
    else:
        console.print(render_comparison(result, all_layers=all_layers))


def render_profile(report: ProfileReport, *, all_layers: bool = False) -> RenderableType:
    """The tables of a profile."""
    parts: list[RenderableType] = [
        Text(conditions_text(report), "dim"),
        Text(""),
        _Latencies(report),
    ]
    parts += _state(report)
    for model in report.models:
        told = outliers_text(model.outliers, model.latency.samples)
        if told:
            parts.append(Text(f"{model.name}: {told}", "dim"))
    if report.relative:
        parts += [Text(""), _relative(report.relative)]
    # A roofline says more of the same layers.
    has_layers = bool(report.models[0].layers) and report.roofline is None
    if len(report.models) == 1 and has_layers:
        parts += [Text(""), *_layers(report.models[0], all_layers=all_layers)]
    elif has_layers:
        parts += [Text(""), *_layers_of_all(report.models, all_layers=all_layers)]
    parts += what_if_parts(report, all_layers=all_layers)
    parts += _sparse(report)
    parts += _warnings(report.warnings)
    return Group(*parts)


def render_comparison(comparison: Comparison, *, all_layers: bool = False) -> RenderableType:
    """The tables of a comparison."""
    parts: list[RenderableType] = [
        Text.assemble(("A: ", "bold"), comparison.a.path),
        Text.assemble(("B: ", "bold"), comparison.b.path),
        Text(""),
    ]
    table = plain_table("", "A", "B", "change", texts=TEXT_COLUMNS)
    for fact in comparison.facts:
        table.add_row(*(escape(cell) for cell in (fact.what, fact.a, fact.b, fact.change)))
    parts.append(table)
    if comparison.relative:
        parts += [Text("")]
        parts += [Text(_sentence(row), "bold") for row in comparison.relative]
    if comparison.outputs_differ is not None:
        parts.append(
            Text(f"outputs: they cannot be compared: {comparison.outputs_differ}", "bold")
        )
    elif comparison.validation is not None:
        found = comparison.validation
        parts.append(
            Text(
                f"outputs: {'equal' if found.verdict == 'equal' else 'they differ'} on {found.inputs} inputs; largest error "
                f"{found.max_rel_error:.2g} of what an output moves by (allowed {found.tolerance:.2g}), "
                f"{found.max_abs_error:.2g} absolute"
            )
        )
    if comparison.layers:
        parts += [Text(""), *_layer_pairs(comparison.layers, all_layers=all_layers)]
    if comparison.profile is not None:
        parts += [
            *_sparse(comparison.profile),
            Text(""),
            Text(conditions_text(comparison.profile), "dim"),
            *_state(comparison.profile),
        ]
    parts += _warnings(comparison.warnings)
    return Group(*parts)


def conditions_text(report: ProfileReport) -> str:
    """What was measured on what, and how, in a line."""
    inputs = ", ".join(f"{row.name} {row.dtype} {list(row.shape)}" for row in report.inputs)
    threads = (
        "the runtime's own threads" if report.threads is None else f"{report.threads} thread"
    )
    if report.threads is not None and report.threads > 1:
        threads += "s"
    clock = {
        "wall": "wall time",
        "device": "time by the clock of the device, without copies to it and back",
    }.get(report.clock, "processor time of the thread")
    where = str(report.device.get("cpu"))
    if report.clock == "device":
        where = f"{', '.join(report.providers)} beside {where}"
        threads = "all of it"
    rebuilds = report.settings.get("rebuilds")
    return (
        f"{where} ({report.device.get('fingerprint')}), {report.runtime}, {threads}; {clock}, "
        f"{rebuilds} builds of the sessions; {inputs}"
    )


def _state(report: ProfileReport) -> list[RenderableType]:
    """What the machine was like meanwhile, and which of its tools gave no answer."""
    if report.state is None:
        return []
    told = state_text(report.state)
    return [
        *([Text(f"meanwhile: {told}", "dim")] if told else []),
        *(Text(f"note: {note}", "dim") for note in report.state.notes),
    ]


def _sparse(report: ProfileReport) -> list[RenderableType]:
    """What is known of sparse kernels in each model."""
    parts: list[RenderableType] = []
    for model in report.models:
        parts += [
            *sparse_parts(model.sparse, model.name),
            *sparse_times_parts(model.sparse_times),
        ]
    return parts


class _Latencies:
    """What was measured of each model: a row each, or on a narrow terminal a column each, so that no name is broken to bits."""

    def __init__(self, report: ProfileReport) -> None:
        self._models = report.models

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        del console
        headers = ("p50", "p90", "p95", "p99", "samples", "load", "memory peak", "size")
        rows = [self._cells(model) for model in self._models]
        if options.max_width >= WIDE:
            table = plain_table("model", *headers, texts=TEXT_COLUMNS)
            for model, cells in zip(self._models, rows, strict=True):
                table.add_row(escape(model.name), *cells)
        else:
            table = plain_table("", *(model.name for model in self._models), texts=TEXT_COLUMNS)
            for line in zip(headers, *rows, strict=True):
                table.add_row(*line)
        yield table

    @staticmethod
    def _cells(model: ProfiledModel) -> tuple[str, ...]:
        latency = model.latency
        times = (latency.p50_s, latency.p90_s, latency.p95_s, latency.p99_s)
        return (
            *(seconds_text(seconds) for seconds in times),
            str(latency.samples),
            seconds_text(model.load_s),
            "-" if model.memory_bytes is None else bytes_text(model.memory_bytes),
            bytes_text(model.bytes),
        )


def _relative(rows: Sequence[Relative]) -> Table:
    table = plain_table(
        "model", f"time / {rows[0].baseline}", "95 % interval", "in words", texts=TEXT_COLUMNS
    )
    table.add_row(escape(rows[0].baseline), "1.000", "", "")
    for row in rows:
        lo, hi = row.ci95
        table.add_row(
            escape(row.model),
            f"{row.ratio:.3f}",
            f"{lo:.3f} to {hi:.3f}",
            row.said,
            style="bold" if row.proven else "",
        )
    return table


def _sentence(row: Relative) -> str:
    if not row.proven:
        return f"{row.model} against {row.baseline}: {row.said}"
    return f"{row.model} is {row.said} than {row.baseline}"


def _layers(model: ProfiledModel, *, all_layers: bool) -> list[RenderableType]:
    totals = model.layer_totals
    whole_s = totals.whole_s if totals is not None and totals.whole_s > 0 else 1.0
    rows = model.layers if all_layers else _slowest(model.layers)
    table = plain_table("layer", "op", "time", "share", "done by", texts=TEXT_COLUMNS)
    for row in rows:
        table.add_row(
            escape(row.name),
            row.op_type,
            seconds_text(row.seconds),
            f"{100 * row.seconds / whole_s:.1f} %",
            escape(_kernels(row.runtime_ops)),
        )
    parts: list[RenderableType] = [table]
    if totals is not None:
        parts.append(Text(_totals_text(model), "dim"))
    return [*parts, *_more(len(model.layers) - len(rows))]


def _totals_text(model: ProfiledModel) -> str:
    totals = model.layer_totals
    if totals is None:
        return ""
    text = (
        f"{model.name}: {len(model.layers)} layers take {seconds_text(totals.total_s)} in all; the whole model takes "
        f"{seconds_text(totals.whole_s)}"
    )
    if totals.unmapped_s > 0.0:
        text += f"; {seconds_text(totals.unmapped_s)} belong to no layer"
    return text


def _kernels(names: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(
        name if count == 1 else f"{count} {name}" for name, count in counts.items()
    )


def _slowest(rows: Sequence[Any]) -> list[Any]:
    """The rows that take the most time, in their own order."""
    if len(rows) <= LAYERS_SHOWN:
        return list(rows)
    most = sorted(rows, key=lambda row: -row.seconds)[:LAYERS_SHOWN]
    chosen = {id(row) for row in most}
    return [row for row in rows if id(row) in chosen]


def _layers_of_all(
    models: Sequence[ProfiledModel], *, all_layers: bool
) -> list[RenderableType]:
    """The layers of several models side by side, by name."""
    columns = [{row.name: row for row in model.layers} for model in models]
    names = list(dict.fromkeys(name for column in columns for name in column))
    weight = {
        name: max(column[name].seconds for column in columns if name in column)
        for name in names
    }
    shown = names
    if not all_layers and len(names) > LAYERS_SHOWN:
        chosen = set(sorted(names, key=lambda name: -weight[name])[:LAYERS_SHOWN])
        shown = [name for name in names if name in chosen]
    table = plain_table("layer", "op", *(model.name for model in models), texts=TEXT_COLUMNS)
    for name in shown:
        rows = [column.get(name) for column in columns]
        op_type = next(row.op_type for row in rows if row is not None)
        table.add_row(
            escape(name),
            op_type,
            *(seconds_text(None if row is None else row.seconds) for row in rows),
        )
    totals = [Text(_totals_text(model), "dim") for model in models]
    return [table, *totals, *_more(len(names) - len(shown))]


def _layer_pairs(pairs: Sequence[LayerPair], *, all_layers: bool) -> list[RenderableType]:
    def weight(pair: LayerPair) -> float:
        return max(pair.a_s or 0.0, pair.b_s or 0.0)

    shown = list(pairs)
    if not all_layers and len(pairs) > LAYERS_SHOWN:
        most = sorted(pairs, key=weight, reverse=True)[:LAYERS_SHOWN]
        shown = [pair for pair in pairs if pair in most]
    table = plain_table("layer", "op", "A", "B", "B / A", "note", texts=TEXT_COLUMNS)
    for pair in shown:
        ratio = "" if not pair.a_s or pair.b_s is None else f"{pair.b_s / pair.a_s:.2f}"
        table.add_row(
            escape(pair.name),
            pair.op_type,
            seconds_text(pair.a_s),
            seconds_text(pair.b_s),
            ratio,
            escape(pair.note),
        )
    return [table, *_more(len(pairs) - len(shown))]


def _more(count: int) -> list[RenderableType]:
    return [Text(f"... and {count} that take less: -v lists all", "dim")] if count > 0 else []


def _warnings(warnings: Sequence[str]) -> list[RenderableType]:
    told = [Text.assemble(("warning: ", "bold yellow"), warning) for warning in warnings]
    return [Text(""), *told] if told else []
