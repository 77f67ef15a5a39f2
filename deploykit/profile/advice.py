"""What a measurement was disturbed by, in words, and what to do about it next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.profile.state_advice import advise_on_state
from deploykit.profile.statistics import slowdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.profile import Measurement
    from deploykit.profile.device import Device
    from deploykit.profile.layer_times import LayerProfile
    from deploykit.profile.state.during import Course

__all__ = ["advise", "advise_on_layers"]

STEADY_GOVERNORS = frozenset({"performance"})
SLOWDOWN = 1.05
P99_SAMPLES = 100
WIDE = 1.05
LAYERS_OFF = 0.1
MAPPED = 0.95


def advise(
    measured: Measurement, before: Device, after: Device, course: Course | None = None
) -> tuple[str, ...]:
    """Warnings about a measurement, each with what to do next; none if nothing is wrong with it.

    Args:
        measured: the measurement.
        before: the machine just before it.
        after: the machine just after it.
        course: what its sensors said before, during and after; None where they were not asked.
    """
    of_state = () if course is None else advise_on_state(course)
    if measured.clock == "device":
        # What else the host does is in none of these times.
        return (*of_state, *_about_precision(measured))
    # A Jetson's clocks are fixed by its own tool, and may be fixed under any governor.
    tells_clocks = course is not None and (
        course.before.is_clock_fixed is True or course.before.power_mode is not None
    )
    return (
        *_about_others(measured, before),
        *_about_the_clock(measured, before, after, heeds_governor=not tells_clocks),
        *of_state,
        *_about_precision(measured),
    )


def _about_others(measured: Measurement, before: Device) -> list[str]:
    found = []
    load = None if before.load_average is None else before.load_average[0]
    if load is not None and load > before.cores:
        found.append(
            f"{load:.1f} processes wanted {_cores_text(before)} of this machine before the measurement began: stop them, or "
            "measure again when they are done"
        )
    if measured.threads == 1 and measured.clean_share < 0.5:
        found.append(
            f"in {1 - measured.clean_share:.0%} of the runs the thread was kept waiting, so figures are processor time, "
            "which others disturb the least: for wall time, stop what else is running and measure again"
        )
    if before.usable_cores < 2:
        found.append(
            f"only {before.usable_cores:g} core{'' if before.usable_cores == 1 else 's'} may be used, and whatever else runs "
            "here shares it: give the process, or its container, a second one"
        )
    elif measured.threads is not None and measured.threads > before.usable_cores:
        found.append(
            f"{measured.threads} threads share {before.usable_cores:g} cores: give --threads {int(before.usable_cores)}, or less"
        )
    return found


def _cores_text(device: Device) -> str:
    return f"the {device.cores} cores" if device.cores > 1 else "the one core"


def _about_the_clock(
    measured: Measurement, before: Device, after: Device, *, heeds_governor: bool
) -> list[str]:
    found = []
    if (
        heeds_governor
        and before.governor is not None
        and before.governor not in STEADY_GOVERNORS
    ):
        found.append(
            f"the clock follows the load (governor '{before.governor}'): fix it with 'sudo cpupower frequency-set -g "
            "performance' for figures that repeat"
        )
    if before.on_battery or after.on_battery:
        found.append("the machine runs on its battery and may save power: plug it in")
    slower = slowdown(list(measured.samples.values()))
    throttled = (after.throttled or 0) - (before.throttled or 0)
    if throttled > 0 or slower > SLOWDOWN:
        found.append(
            f"heat or power held the clock back {throttled} times while it was measured: let the machine cool, or cool it "
            "better, and measure again"
            if throttled > 0
            else f"the same runs took {slower:.2f} times as long at the end as at the beginning: the machine grew warm, or "
            "other work began; let it cool and rest, and measure again"
        )
    pauses = (after.quota_pauses or 0) - (before.quota_pauses or 0)
    if pauses > 0:
        found.append(
            f"the container's limit of {before.quota_cores or before.usable_cores:g} cores paused this process {pauses} times: "
            "raise the limit, or use fewer --threads"
        )
    return found


def _about_precision(measured: Measurement) -> list[str]:
    found = []
    if measured.truncated:
        found.append(
            f"the measurement was cut short after {measured.settings.max_duration_s:g} s: measure fewer models at a time"
        )
    fewest = min(each.samples for each in measured.latencies.values())
    if fewest < P99_SAMPLES:
        found.append(
            f"of {fewest} samples p99 is little more than the longest: give a longer --duration"
        )
    wide = [name for name, ratio in measured.ratios.items() if ratio.hi / ratio.lo > WIDE**2]
    if wide:
        found.append(
            f"the interval of {', '.join(wide)} is wider than 5 % either way: give a longer --duration and more --rebuilds"
        )
    return found


def advise_on_layers(name: str, profile: LayerProfile) -> Sequence[str]:
    """Warnings about the layers of a model, each with what to do next."""
    found = []
    share = profile.total_s / profile.whole_s if profile.whole_s > 0.0 else 1.0
    if abs(share - 1.0) > LAYERS_OFF:
        found.append(
            f"the layers of {name} add up to {share:.2f} of the whole model's time, because they are timed on the wall "
            "clock and were interrupted: trust their order, and measure again on a quiet machine"
        )
    if profile.mapped_share < MAPPED:
        found.append(
            f"{1 - profile.mapped_share:.0%} of the time of {name} is in kernels of the runtime of which it is not known which "
            "nodes they do the work of: please report the model"
        )
    return found
