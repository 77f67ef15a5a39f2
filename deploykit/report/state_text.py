"""The state of a machine in a few words: what it was like while it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.report.wording import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.profile.state.during import Range
    from deploykit.report.state_records import CourseRecord

__all__ = ["state_text"]


def state_text(course: CourseRecord) -> str:
    """One line: temperature, clocks, power mode, power and memory, as far as they are known; empty if nothing is."""
    return ", ".join(_parts(course))


def _parts(course: CourseRecord) -> Iterator[str]:
    before, during = course.before, course.during
    hottest = max(during.temperatures_c.items(), key=lambda item: item[1].high, default=None)
    if hottest is not None:
        name, celsius = hottest
        yield f"{_span(celsius, 1.0, '.0f')} C ({name})"
    elif before.temperatures_c:
        name, degrees = max(before.temperatures_c.items(), key=lambda item: item[1])
        yield f"{degrees:.0f} C ({name})"
    cores = [each for name, each in during.clocks_hz.items() if name.startswith("cpu")]
    if cores:
        # The core that did the work is the fastest one.
        yield f"CPU at {_span(max(cores, key=lambda each: each.mean), 1e-9, '.2f')} GHz"
    yield from _gpus(during.clocks_hz, during.loads)
    if before.governors:
        yield f"governor {'/'.join(dict.fromkeys(before.governors.values()))}"
    if before.power_mode is not None:
        yield f"power mode {before.power_mode}"
    if before.clocks_fixed is not None:
        yield "clocks fixed" if before.clocks_fixed else "clocks not fixed"
    if during.energy_j is not None and during.elapsed_s > 0.0:
        yield f"{during.energy_j / during.elapsed_s:.1f} W ({during.energy_of})"
    if during.joules_per_run is not None:
        yield f"{during.joules_per_run:.3g} J a run"
    if before.memory_available_bytes is not None:
        yield f"{bytes_text(before.memory_available_bytes)} of memory free"
    if before.swap_used_bytes:
        yield f"{bytes_text(before.swap_used_bytes)} in swap"


def _gpus(clocks_hz: Mapping[str, Range], loads: Mapping[str, Range]) -> Iterator[str]:
    for name, clock in clocks_hz.items():
        if not name.startswith("cpu"):
            load = f", {loads[name].mean:.0%} busy" if name in loads else ""
            yield f"{name.replace('gpu', 'GPU')} at {_span(clock, 1e-6, '.0f')} MHz{load}"


def _span(each: Range, scale: float, form: str) -> str:
    """The lowest and the highest figure, or one where they read the same."""
    low, high = (format(value * scale, form) for value in (each.low, each.high))
    return low if low == high else f"{low} to {high}"
