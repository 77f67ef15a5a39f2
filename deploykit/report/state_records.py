"""The state of a machine before, during and after a measurement, as frozen data for documents.

Names of sensors, rails and cores are the machine's own; nothing in here tells it apart from others of its kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.profile.state import State
    from deploykit.profile.state.during import During, Range

__all__ = ["CourseRecord", "DuringRecord", "GpuRecord", "MomentRecord", "course_record"]


@dataclasses.dataclass(frozen=True)
class GpuRecord:
    """A GPU at one moment; what it does not tell is None. Clocks in hertz, what holds it back in words."""

    name: str
    driver: str
    hz: float | None
    max_hz: float | None
    celsius: float | None
    power_w: float | None
    power_limit_w: float | None
    load: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    held_back_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MomentRecord:
    """A machine at one moment.

    Attributes:
        temperatures_c: degrees Celsius by sensor.
        clocks_hz: clocks by core ("cpu0") and of a GPU that is part of the chip ("gpu").
        governors: how they are chosen, by core.
        clocks_fixed: whether they may not change; None where it is unknown.
        power_mode: that of a Jetson board, "MAXN"; None elsewhere.
        power_w: watts by rail.
        throttle_counts: how often clocks were held back since the start, by what did it.
        held_back_by: what holds clocks back at this moment, in words.
        memory_total_bytes: memory of the machine.
        memory_available_bytes: what of it a process could have.
        swap_used_bytes: what was moved out of it.
        gpus: GPUs with a driver of their own.
    """

    temperatures_c: Mapping[str, float]
    clocks_hz: Mapping[str, float]
    governors: Mapping[str, str]
    clocks_fixed: bool | None
    power_mode: str | None
    power_w: Mapping[str, float]
    throttle_counts: Mapping[str, int]
    held_back_by: tuple[str, ...]
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    swap_used_bytes: int | None
    gpus: tuple[GpuRecord, ...]


@dataclasses.dataclass(frozen=True)
class DuringRecord:
    """What sensors said in the course of it: each has "low", "mean", "high" and "readings".

    Attributes:
        elapsed_s: how long it took.
        temperatures_c: degrees Celsius by sensor.
        clocks_hz: clocks by core, and of GPUs.
        loads: share of the time that GPUs were busy, 0 to 1.
        power_w: watts by rail.
        throttled: how often clocks were held back meanwhile, by what did it.
        held_back_by: what held back the clock of a GPU while it was busy, in words.
        energy_j: joules that the machine took, as far as its rails tell; None where they do not.
        energy_of: the rails that this is of.
        joules_per_run: mean watts times the median time of a run: what the whole machine takes meanwhile, idle or not.
            None where several models took turns, or nothing is known.
    """

    elapsed_s: float
    temperatures_c: Mapping[str, Range]
    clocks_hz: Mapping[str, Range]
    loads: Mapping[str, Range]
    power_w: Mapping[str, Range]
    throttled: Mapping[str, int]
    held_back_by: tuple[str, ...]
    energy_j: float | None
    energy_of: str
    joules_per_run: float | None


@dataclasses.dataclass(frozen=True)
class CourseRecord:
    """A machine before, during and after a measurement, and what gave no answer."""

    before: MomentRecord
    during: DuringRecord
    after: MomentRecord
    notes: tuple[str, ...]


def course_record(
    before: State, during: During, after: State, *, run_s: float | None
) -> CourseRecord:
    """What is kept of it.

    Args:
        before: the machine before.
        during: what was watched.
        after: the machine after.
        run_s: median seconds of a run, if one model alone was measured.
    """
    return CourseRecord(
        _moment(before),
        DuringRecord(
            elapsed_s=during.elapsed_s,
            temperatures_c=during.temperatures_c,
            clocks_hz=during.clocks_hz,
            loads=during.loads,
            power_w=during.power_w,
            throttled=during.throttled,
            held_back_by=during.held_back_by,
            energy_j=during.energy_j,
            energy_of=during.energy_of,
            joules_per_run=None
            if run_s is None or during.energy_j is None
            else during.energy_j / during.elapsed_s * run_s,
        ),
        _moment(after),
        tuple(dict.fromkeys((*before.notes, *after.notes))),
    )


def _moment(state: State) -> MomentRecord:
    clocks = {f"cpu{core.number}": core.hz for core in state.cores if core.hz is not None}
    if state.gpu_clock is not None:
        clocks["gpu"] = state.gpu_clock.hz
    return MomentRecord(
        temperatures_c=state.temperatures_c,
        clocks_hz=clocks,
        governors={
            f"cpu{core.number}": core.governor
            for core in state.cores
            if core.governor is not None
        },
        clocks_fixed=state.is_clock_fixed,
        power_mode=None if state.power_mode is None else state.power_mode.name,
        power_w=state.power_w,
        throttle_counts=state.throttle_counts,
        held_back_by=state.held_back_by,
        memory_total_bytes=state.memory.total_bytes,
        memory_available_bytes=state.memory.available_bytes,
        swap_used_bytes=state.memory.swap_used_bytes,
        gpus=tuple(
            GpuRecord(
                gpu.name,
                gpu.driver,
                gpu.hz,
                gpu.max_hz,
                gpu.celsius,
                gpu.power_w,
                gpu.power_limit_w,
                gpu.load,
                gpu.memory_used_bytes,
                gpu.memory_total_bytes,
                gpu.held_back_by,
            )
            for gpu in state.gpus
        ),
    )
