"""The state of a machine at one moment.

`seen` says which files and tools are asked, one module each reads what they say, and this one puts it together; `during`
does the same for what was watched in the course of a measurement. What no
file and no tool tells is left out; a tool that should be there and gave no answer is a note.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploykit.profile.state import heat, power
from deploykit.profile.state.cores import Core, read_cores
from deploykit.profile.state.jetson import (
    Clock,
    PowerMode,
    are_fixed,
    fastest_mode,
    kept_mode,
    read_clocks,
    read_mode,
)
from deploykit.profile.state.memory import Memory, read_memory
from deploykit.profile.state.nvidia_smi import Gpu, read_gpus
from deploykit.profile.state.raspberry import read_throttled
from deploykit.profile.state.seen import COMMANDS, GPU_QUERY, Ran, Seen, is_gpu, look_here
from deploykit.profile.state.tegrastats import Tegrastats, read_line

__all__ = [
    "COMMANDS",
    "Ran",
    "Seen",
    "State",
    "look_here",
    "read_state",
    "watch_for",
]

MOST_WATCHED = 64
MOST_CORES = 16
"""Cores whose clocks are watched: reading them all would wake the cores of a large machine."""


@dataclasses.dataclass(frozen=True)
class State:
    """A machine at one moment.

    Attributes:
        cores: its cores.
        temperatures_c: degrees Celsius by sensor.
        power_w: watts by rail.
        energy_j: joules by domain, counted from some moment on.
        throttle_counts: how often clocks were held back since the start, by what did it.
        held_back_by: what holds clocks back at this moment, in words.
        held_back_before: what did so at any time since the start, where the machine remembers.
        gpus: GPUs with a driver of their own.
        gpu_clock: the clock of a GPU that is part of the chip; None where there is none.
        power_mode: how much a Jetson board may draw.
        fastest_mode: the mode without a limit that it has.
        is_clock_fixed: whether the clocks of cores and GPU may not change; None where it is unknown.
        memory: its memory.
        notes: what gave no answer, and why.
    """

    cores: tuple[Core, ...]
    temperatures_c: Mapping[str, float]
    power_w: Mapping[str, float]
    energy_j: Mapping[str, float]
    throttle_counts: Mapping[str, int]
    held_back_by: tuple[str, ...]
    held_back_before: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    gpu_clock: Clock | None
    power_mode: PowerMode | None
    fastest_mode: PowerMode | None
    is_clock_fixed: bool | None
    memory: Memory
    notes: tuple[str, ...] = ()

    @property
    def hottest(self) -> tuple[str, float] | None:
        """The hottest sensor and its degrees Celsius; None where there is none."""
        return max(self.temperatures_c.items(), key=lambda item: item[1], default=None)


def read_state(seen: Seen) -> State:
    """What a machine said of itself, understood."""
    cores = read_cores(seen)
    stats = read_line(seen.said("tegrastats"))
    shown = read_clocks(seen.said("jetson_clocks"))
    clocks = shown or _clocks(seen, cores)
    gpus = _latest(read_gpus(seen.said("nvidia-smi")))
    now, before = read_throttled(seen.said("vcgencmd"))
    held_back = (*now, *dict.fromkeys(text for gpu in gpus for text in gpu.held_back_by))
    return State(
        cores=cores,
        temperatures_c=heat.temperatures_c(seen.files)
        or (dict(stats.temperatures_c) if stats else {})
        or {f"GPU {gpu.number}": gpu.celsius for gpu in gpus if gpu.celsius is not None},
        power_w=_power_w(power.rails_w(seen.files), stats, gpus),
        energy_j=power.energy_j(seen.files),
        throttle_counts=heat.throttle_counts(seen.files),
        held_back_by=held_back,
        held_back_before=before,
        gpus=gpus,
        gpu_clock=clocks.get("GPU"),
        power_mode=read_mode(seen.said("nvpmodel"))
        or kept_mode(seen.text("/var/lib/nvpmodel/status"), seen.text("/etc/nvpmodel.conf")),
        fastest_mode=fastest_mode(seen.text("/etc/nvpmodel.conf")),
        is_clock_fixed=are_fixed(clocks),
        memory=read_memory(seen.text("/proc/meminfo"), seen.text("/proc/swaps")),
        notes=tuple(_notes(seen)),
    )


def watch_for(seen: Seen) -> dict[str, Any]:
    """What `sampler.sample` is to watch on a machine that said this of itself."""
    kinds = (
        "/sys/class/thermal/thermal_zone*/temp",
        "/sys/class/devfreq/*/cur_freq",
        "/sys/class/powercap/intel-rapl:*/energy_uj",
        "/sys/class/hwmon/hwmon*/oc*_event_cnt",
        "/sys/devices/system/cpu/cpu0/thermal_throttle/*_throttle_count",
    )
    paths = [path for kind in kinds for path, text in seen.matching(kind) if text]
    for path, chip in seen.matching("/sys/class/hwmon/hwmon*/name"):
        folder = path.rpartition("/")[0]
        if chip in heat.CHIPS:
            paths += [each for each, _ in seen.matching(f"{folder}/temp*_input")]
        elif chip == "ina3221":
            paths += [
                f"{folder}/{kind}{number}_input" for number in "123" for kind in ("in", "curr")
            ]
    paths += [
        path
        for path, _ in seen.matching(
            "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_power*_input"
        )
    ]
    clocks = seen.matching("/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")
    paths += [path for path, _ in clocks][:MOST_CORES]
    streams: list[list[str]] = []
    if seen.said("tegrastats"):
        streams.append(["tegrastats", "--interval", "1000"])
    elif seen.said("nvidia-smi"):
        query = next(
            (form for form in GPU_QUERY if _heads(seen.said("nvidia-smi"), form)), GPU_QUERY[0]
        )
        streams.append([*query, "--loop=1"])
    return {
        "files": [path for path in paths if path in seen.files][:MOST_WATCHED],
        "streams": streams,
    }


def _notes(seen: Seen) -> Iterator[str]:
    """Tools of this kind of machine that gave no answer. Others than those are nobody's loss."""
    is_jetson = bool(seen.text("/etc/nv_tegra_release"))
    model = seen.text("/proc/device-tree/model")
    expected = {
        "nvpmodel": is_jetson,
        "tegrastats": is_jetson,
        "vcgencmd": model.startswith("Raspberry Pi"),
    }
    for name, ran in seen.commands.items():
        if ran.worked or not (expected.get(name) or ran.text != "it is not there"):
            continue
        said = " ".join(ran.text.split()) or "it said nothing"
        if name == "jetson_clocks" and "root" in said:
            # Whether clocks are fixed stands in files as well.
            continue
        code = "" if ran.code is None else f" (exit code {ran.code})"
        yield f"{name} gave no answer{code}: {said[:200]}"


def _clocks(seen: Seen, cores: Sequence[Core]) -> dict[str, Clock]:
    """Clocks by their files, which everybody may read: what `jetson_clocks --show` says to administrators."""
    found = {
        f"cpu{core.number}": Clock(core.low_hz, core.high_hz, core.hz or core.high_hz)
        for core in cores
        if core.is_online and core.low_hz is not None and core.high_hz is not None
    }
    for path, text in seen.matching("/sys/class/devfreq/*/cur_freq"):
        folder = path.rpartition("/")[0]
        low, high = (seen.text(f"{folder}/{name}_freq") for name in ("min", "max"))
        if is_gpu(folder) and text.isdecimal() and low.isdecimal() and high.isdecimal():
            found["GPU"] = Clock(float(low), float(high), float(text))
    return found


def _power_w(
    rails: dict[str, float], stats: Tegrastats | None, gpus: Sequence[Gpu]
) -> dict[str, float]:
    found = rails or (dict(stats.power_w) if stats else {})
    return found | {f"GPU {gpu.number}": gpu.power_w for gpu in gpus if gpu.power_w is not None}


def _latest(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    return tuple({gpu.number: gpu for gpu in gpus}.values())


def _heads(text: str, form: Sequence[str]) -> bool:
    """Whether a table has the columns that this form asks for."""
    reasons = next(part for part in form[1].split(",") if part.endswith("_reasons.active"))
    return reasons in text.partition("\n")[0]
