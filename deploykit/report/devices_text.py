"""Models on several devices, as one table on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploykit.report.console_text import result_console
from deploykit.report.devices_records import DeviceProfile, DevicesReport
from deploykit.report.profile_records import ProfileReport
from deploykit.report.profile_text import conditions_text
from deploykit.report.profile_wording import seconds_text
from deploykit.report.wording import bytes_text

__all__ = ["print_devices", "render"]

TEXT_COLUMNS = frozenset({"device", "model", "clock", "in words"})


def print_devices(report: DevicesReport, *, console: Console | None = None) -> None:
    """Print it to a console, by default to stdout."""
    result_console(console).print(render(report))


def render(report: DevicesReport) -> RenderableType:
    """The table, what it was measured on, and what is to be known about it."""
    parts: list[RenderableType] = [
        Text(f"{each.name}: {conditions_text(each.profile)}", "dim")
        for each in report.devices
        if each.profile is not None
    ]
    parts += [Text(""), _table(report)] if parts else []
    told = list(_told(report))
    return Group(*parts, *([Text("")] if parts and told else []), *told)


def _table(report: DevicesReport) -> Table:
    measured = [each.profile for each in report.devices if each.profile is not None]
    first = measured[0].models[0].name
    is_relative = any(profile.relative for profile in measured)
    columns = ["device", "model", "p50", "p95", "p99", "clock", "load", "memory peak"]
    if is_relative:
        columns += [f"time / {first}", "95 % interval", "in words"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(columns):
        is_text = name in TEXT_COLUMNS
        table.add_column(
            escape(name),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=index > 1 and name != "in words",
        )
    for each in report.devices:
        if each.profile is not None:
            for row in _rows(each, each.profile, is_relative=is_relative):
                table.add_row(*row)
    return table


def _rows(
    device: DeviceProfile, profile: ProfileReport, *, is_relative: bool
) -> Iterator[tuple[str, ...]]:
    ratios = {row.model: row for row in profile.relative}
    for number, model in enumerate(profile.models):
        memory = model.memory_bytes
        cells: tuple[str, ...] = (
            escape(device.name) if number == 0 else "",
            escape(model.name),
            seconds_text(model.latency.p50_s),
            seconds_text(model.latency.p95_s),
            seconds_text(model.latency.p99_s),
            profile.clock,
            seconds_text(model.load_s),
            "-" if memory is None else bytes_text(memory),
        )
        ratio = ratios.get(model.name)
        if ratio is not None:
            lo, hi = ratio.ci95
            cells += (f"{ratio.ratio:.3f}", f"{lo:.3f} to {hi:.3f}", ratio.said)
        elif is_relative:
            cells += ("1.000", "", "")
        yield cells


def _told(report: DevicesReport) -> Iterator[Text]:
    for each in report.devices:
        if each.error is not None:
            yield Text.assemble((f"{each.name}: ", "bold red"), each.error)
        for warning in () if each.profile is None else each.profile.warnings:
            yield Text.assemble(("warning: ", "bold yellow"), f"{each.name}: {warning}")
