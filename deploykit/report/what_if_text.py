"""What-ifs, rooflines and sweeps as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from deploykit.report.console_text import plain_table
from deploykit.report.profile_records import ProfileReport
from deploykit.report.profile_wording import seconds_text
from deploykit.report.what_if_records import (
    AllocationRecord,
    RooflineLayer,
    RooflineRecord,
    SweepRecord,
    WhatIfRecord,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["what_if_parts"]

SHOWN = 25
MOST_NAMES = 2
LEFT_ALIGNED = frozenset({"network", "form", "layer", "op", "limit", "channels of"})

MEANING = {
    "compute": "only less arithmetic helps, as fewer channels; far from the peak a kernel suits these counts badly",
    "memory": "smaller tensors help, faster arithmetic does not",
    "overhead": "most of the time is what any node costs: fewer nodes help, less work does not",
}


def what_if_parts(report: ProfileReport, *, all_layers: bool = False) -> list[RenderableType]:
    """What there is to say beyond the times of the models."""
    parts: list[RenderableType] = []
    if report.what_if is not None:
        parts += [Text(""), *_networks(report.what_if)]
        if report.what_if.allocation is not None:
            parts += [Text(""), *_allocation(report.what_if.allocation)]
    if report.roofline is not None:
        parts += [Text(""), *_roofline(report.roofline, all_layers=all_layers)]
    for each in report.sweeps:
        parts += [Text(""), *_sweep(each)]
    return parts


def _networks(record: WhatIfRecord) -> list[RenderableType]:
    table = plain_table(
        "network",
        "time / original",
        "95 % interval",
        "parameters",
        "MACs",
        "form",
        texts=LEFT_ALIGNED,
    )
    for row in record.predictions:
        before, after = row.parameters
        macs = "?" if row.macs is None else f"{100 * row.macs[1] / max(row.macs[0], 1):.1f} %"
        table.add_row(
            escape(row.name),
            f"{row.ratio:.3f}",
            f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}",
            f"{100 * after / max(before, 1):.1f} %",
            macs,
            escape(row.form),
        )
    parts: list[RenderableType] = [table]
    for said in dict.fromkeys(said for row in record.predictions for said in row.assumed):
        who = [row.name for row in record.predictions if said in row.assumed]
        parts.append(Text(f"assumed for {', '.join(who)}: {said}", "dim"))
    parts += [
        Text.assemble((f"{refused.name}: ", "bold yellow"), refused.reason)
        for refused in record.refused
    ]
    return parts


def _allocation(record: AllocationRecord) -> list[RenderableType]:
    table = plain_table("channels of", "there are", "uniform", "allocated", texts=LEFT_ALIGNED)
    for row in record.groups:
        names = ", ".join(row.weights[:MOST_NAMES])
        more = len(row.weights) - MOST_NAMES
        table.add_row(
            escape(names + (f" and {more} more" if more > 0 else "")),
            str(row.size),
            str(row.uniform),
            str(row.keep),
        )
    what = "weights of its products" if record.budget == "weights" else "multiply-accumulates"
    parts: list[RenderableType] = [
        table,
        Text(record.said, "bold"),
        Text(
            f"{100 * record.left:.1f} % of the {what} are left ({100 * record.share:g} % were asked for; uniform: "
            f"{100 * record.uniform_left:.1f} %); from the table of {len(record.table)} kinds of layers: "
            + ", ".join(f"{name} {ratio:.3f}" for name, ratio in record.expected.items()),
            "dim",
        ),
    ]
    if record.saved_as is not None:
        parts.append(
            Text(
                f"counts ({record.chosen}): {record.saved_as}, for --set prune-channels.counts=FILE and find --counts FILE",
                "dim",
            )
        )
    return parts


def _roofline(record: RooflineRecord, *, all_layers: bool) -> list[RenderableType]:
    rows: Sequence[RooflineLayer] = record.layers
    if not all_layers and len(rows) > SHOWN:
        most = sorted(rows, key=lambda row: -row.seconds)[:SHOWN]
        rows = [row for row in rows if row in most]
    table = plain_table(
        "layer",
        "op",
        "MACs",
        "MB",
        "MAC/byte",
        "time",
        "attainable",
        "reached",
        "limit",
        "why",
        texts=LEFT_ALIGNED,
    )
    for row in rows:
        table.add_row(
            escape(row.name),
            row.op_type,
            f"{row.macs / 1e6:,.1f} M",
            f"{row.bytes / 1e6:.2f}",
            f"{row.macs / max(row.bytes, 1):.1f}",
            seconds_text(row.seconds),
            seconds_text(row.attainable_s),
            f"{100 * row.share:.0f} %",
            row.limit,
        )
    parts: list[RenderableType] = [
        Text(
            f"device, {record.dtype}: {record.peak_macs_s / 1e9:.4g} G multiply-accumulates/s, {record.memory_bytes_s / 1e9:.3g} GB/s from "
            f"memory, {record.cache_bytes_s / 1e9:.3g} GB/s from caches (up to {record.cache_bytes / 2**20:g} MiB), "
            f"{seconds_text(record.overhead_s)} a node",
            "dim",
        ),
        table,
    ]
    more = len(record.layers) - len(rows)
    if more > 0:
        parts.append(Text(f"... and {more} that take less: -v lists all", "dim"))
    limits = dict.fromkeys(row.limit for row in rows)
    parts += [Text(f"{limit}: {MEANING[limit]}", "dim") for limit in limits]
    return [*parts, Text(record.said, "bold")]


def _sweep(record: SweepRecord) -> list[RenderableType]:
    table = plain_table(
        record.what, "p50", "p95", "items/s", "speed-up", "efficiency", texts=LEFT_ALIGNED
    )
    for row in record.rows:
        table.add_row(
            str(row.setting),
            seconds_text(row.p50_s),
            seconds_text(row.p95_s),
            f"{row.items_s:,.4g}",
            f"{row.speedup:.2f}",
            f"{100 * row.efficiency:.0f} %",
        )
    clocks = " and ".join(dict.fromkeys(row.clock for row in record.rows))
    return [table, Text(record.said, "bold"), Text(f"by {clocks} time", "dim")]
