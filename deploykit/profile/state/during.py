"""What became of the state of a machine while models were timed on it: what `sampler.sample` watched, understood."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploykit.profile.state import State, heat, power, read_state
from deploykit.profile.state.nvidia_smi import Gpu, read_gpus
from deploykit.profile.state.seen import Seen, is_gpu, matching
from deploykit.profile.state.tegrastats import Tegrastats, read_line

__all__ = ["Course", "During", "Range", "read_during"]


@dataclasses.dataclass(frozen=True)
class Range:
    """What a sensor said in the course of a measurement.

    Attributes:
        low: the smallest figure.
        mean: the mean over time.
        high: the largest.
        readings: how many there are.
    """

    low: float
    mean: float
    high: float
    readings: int


@dataclasses.dataclass(frozen=True)
class During:
    """What was noted while a measurement went on; everything is by name of the sensor.

    Attributes:
        temperatures_c: degrees Celsius.
        clocks_hz: clocks of cores, "gpu" and "memory".
        power_w: watts by rail; of counters of energy, their mean.
        loads: share of the time that "gpu" was busy, 0 to 1.
        throttled: how often clocks were held back meanwhile, by what did it.
        held_back_by: what held the clocks of a busy GPU back at any moment, in words.
        energy_j: joules that the whole machine took, as far as its rails tell; None where they do not.
        energy_of: the rails that this is of.
        elapsed_s: how long it went on.
    """

    temperatures_c: Mapping[str, Range]
    clocks_hz: Mapping[str, Range]
    power_w: Mapping[str, Range]
    loads: Mapping[str, Range]
    throttled: Mapping[str, int]
    held_back_by: tuple[str, ...]
    energy_j: float | None
    energy_of: str
    elapsed_s: float


@dataclasses.dataclass(frozen=True)
class Course:
    """A machine before, during and after a measurement."""

    before: State
    during: During
    after: State

    @classmethod
    def of(
        cls, before: Seen, states: Sequence[Mapping[str, Any]], after: Seen, *, elapsed_s: float
    ) -> Course:
        """Understand what it said of itself.

        Args:
            before: what it said before.
            states: "states" of what `sampler.sample` returned.
            after: what it said after.
            elapsed_s: how long the measurement took.
        """
        return cls(
            read_state(before), read_during(states, before, elapsed_s), read_state(after)
        )


def read_during(states: Sequence[Mapping[str, Any]], seen: Seen, elapsed_s: float) -> During:
    """Put together what was watched.

    Args:
        states: "states" of what `sampler.sample` returned.
        seen: the machine before, which says what the files are.
        elapsed_s: how long the measurement took.
    """
    labels = {
        path: text
        for path, text in seen.files.items()
        if not re.search(r"(temp|_input|cur_freq|energy_uj|_count|_event_cnt)$", path)
    }
    temperatures: dict[str, list[float]] = {}
    clocks: dict[str, list[float]] = {}
    watts: dict[str, list[float]] = {}
    loads: dict[str, list[float]] = {}
    held_back: dict[str, None] = {}
    joules: list[tuple[float, dict[str, float]]] = []
    counts: list[dict[str, int]] = []
    for state in states:
        if "files" in state:
            files = {**labels, **state["files"]}
            _gather(temperatures, heat.temperatures_c(files))
            _gather(clocks, dict(_file_clocks(files)))
            _gather(watts, power.rails_w(files))
            joules.append((float(state["at_s"]), power.energy_j(files)))
            counts.append(heat.throttle_counts(files))
    for stats in _stats(states):
        _gather(temperatures, stats.temperatures_c)
        _gather(watts, stats.power_w)
        _gather(loads, {} if stats.gpu_load is None else {"gpu": stats.gpu_load})
        _gather(clocks, {} if stats.gpu_hz is None else {"gpu": stats.gpu_hz})
    for gpu in _gpu_stream(states, seen):
        name = f"GPU {gpu.number}"
        for into, value in (
            (temperatures, gpu.celsius),
            (clocks, gpu.hz),
            (watts, gpu.power_w),
            (loads, gpu.load),
        ):
            _gather(into, {} if value is None else {name: value})
        if gpu.load:
            held_back.update(dict.fromkeys(gpu.held_back_by))
    power_w = {name: _range(values) for name, values in watts.items()}
    power_w |= _from_counters(joules, power.wraps_at_j(seen.files))
    total = power.total_w({name: each.mean for name, each in power_w.items()})
    return During(
        temperatures_c={name: _range(values) for name, values in temperatures.items()},
        clocks_hz={name: _range(values) for name, values in clocks.items()},
        power_w=power_w,
        loads={name: _range(values) for name, values in loads.items()},
        throttled=_increase(counts),
        held_back_by=tuple(held_back),
        energy_j=None if total is None else total[1] * elapsed_s,
        energy_of="" if total is None else total[0],
        elapsed_s=elapsed_s,
    )


def _file_clocks(files: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    for path, text in matching(files, "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"):
        if text.isdecimal():
            yield path.split("/")[5], float(text) * 1e3
    for path, text in matching(files, "/sys/class/devfreq/*/cur_freq"):
        if is_gpu(path.rpartition("/")[0]) and text.isdecimal():
            yield "gpu", float(text)


def _stats(states: Sequence[Mapping[str, Any]]) -> Iterator[Tegrastats]:
    for line in _lines(states, "tegrastats"):
        found = read_line(line)
        if found is not None:
            yield found


def _gpu_stream(states: Sequence[Mapping[str, Any]], seen: Seen) -> tuple[Gpu, ...]:
    # A stream that was cut may have lost its header: that of the look before is the same.
    header = seen.said("nvidia-smi").partition("\n")[0]
    return read_gpus("\n".join([header, *_lines(states, "nvidia-smi")]))


def _lines(states: Sequence[Mapping[str, Any]], stream: str) -> Iterator[str]:
    for state in states:
        if state.get("stream") == stream:
            yield from state["lines"]


def _gather(into: dict[str, list[float]], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        into.setdefault(name, []).append(value)


def _range(values: Sequence[float]) -> Range:
    return Range(min(values), sum(values) / len(values), max(values), len(values))


def _from_counters(
    joules: Sequence[tuple[float, Mapping[str, float]]], wraps_at: Mapping[str, float]
) -> dict[str, Range]:
    """Watts by domain, from what counters of energy said at several moments."""
    watts: dict[str, list[tuple[float, float]]] = {}
    for (begin_s, before), (end_s, after) in itertools.pairwise(joules):
        for name in before.keys() & after.keys():
            taken = after[name] - before[name]
            if taken < 0.0:
                taken += wraps_at.get(name, 0.0)
            if end_s > begin_s and taken >= 0.0:
                watts.setdefault(name, []).append((taken, end_s - begin_s))
    return {
        name: Range(
            min(energy / seconds for energy, seconds in parts),
            sum(energy for energy, _ in parts) / sum(seconds for _, seconds in parts),
            max(energy / seconds for energy, seconds in parts),
            len(parts),
        )
        for name, parts in watts.items()
    }


def _increase(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """By how much counters grew from the first look to the last."""
    if len(counts) < 2:
        return {}
    return {
        name: last - counts[0][name]
        for name, last in counts[-1].items()
        if name in counts[0] and last > counts[0][name]
    }
