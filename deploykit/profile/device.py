"""Says what a measurement was taken on, so that figures are compared only where they can be.

Nothing here identifies a person or a network: no host name, user, path or address.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Final

from deploykit.profile.state.cores import kinds_text, read_cores
from deploykit.profile.state.nvidia_smi import read_gpus
from deploykit.profile.state.seen import Seen, look_here
from deploykit.profile.state.soc import board, jetson_release, soc

__all__ = ["Device", "describe", "with_fingerprint"]

# What decides which kernels a runtime picks. Linux's names, for x86 and for Arm.
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "sme",
)


@dataclasses.dataclass(frozen=True)
class Device:
    """The machine that a measurement was taken on.

    Attributes:
        cpu: model name of the processor.
        architecture: its instruction set ("x86_64", "aarch64").
        flags: instruction set extensions that matter to the choice of kernels.
        cores: cores of the machine, as the operating system counts them.
        usable_cores: cores that this process may use: affinity and container limits count.
        memory_bytes: memory of the machine, or the container's limit if that is less; None where it is unknown.
        os: name and release of the operating system.
        python: version of Python.
        packages: versions of the installed runtimes and model libraries, by name.
        load_average: mean number of runnable processes over the last 1, 5 and 15 minutes; None where it is unknown.
        governor: how the clock frequency is chosen; None where it is unknown.
        frequency_hz: clock of the first core at that moment; None where it is unknown.
        max_frequency_hz: the highest clock of that core; None where it is unknown.
        throttled: how often heat or power held the clock back since the machine was started; None where it is unknown.
        on_battery: whether it ran on a battery; None where there is none, or it is unknown.
        quota_cores: cores' worth of time that a container limits this process to; None where there is no such limit.
        quota_pauses: how often that limit paused it so far; None where there is none.
        board: name of the board by its device tree; None where there is none.
        soc: the chip by its device tree, "tegra234"; None where there is none.
        release: NVIDIA's Linux for Jetson, "R36.4.3"; None elsewhere.
        core_kinds: kinds of cores in words, the fastest last; none where all are alike and the processor has a name.
        gpus: GPUs by name, each with the version of its driver; empty where none was asked for.
        fingerprint: twelve hexadecimal digits that are equal for machines, systems and runtimes of one kind, and do
            not change with load, clock or time.
    """

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    cores: int
    usable_cores: float
    memory_bytes: int | None
    os: str
    python: str
    packages: dict[str, str]
    load_average: tuple[float, float, float] | None
    governor: str | None
    frequency_hz: float | None = None
    max_frequency_hz: float | None = None
    throttled: int | None = None
    on_battery: bool | None = None
    quota_cores: float | None = None
    quota_pauses: int | None = None
    board: str | None = None
    soc: str | None = None
    release: str | None = None
    core_kinds: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    fingerprint: str = ""


# What decides how fast a model runs and does not change from one run to the next.
LASTING = (
    *("cpu", "architecture", "flags", "cores", "usable_cores", "os", "governor"),
    *("max_frequency_hz", "quota_cores"),
)
ALSO_LASTING: Final = ("board", "soc", "release", "core_kinds")
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def describe(seen: Seen | Path = Path("/")) -> Device:
    """Describe a machine; what it does not tell is left out.

    Args:
        seen: what it said of itself; or, for this machine, where /proc and /sys lie.
    """
    if isinstance(seen, Path):
        seen = look_here(seen)
    cpuinfo = seen.text("/proc/cpuinfo")
    clock = "/sys/devices/system/cpu/cpu0/cpufreq"
    kinds = kinds_text(read_cores(seen))
    found = Device(
        cpu=_cpu_name(seen, kinds),
        architecture=seen.architecture,
        flags=_flags(cpuinfo),
        cores=seen.cores,
        usable_cores=_usable_cores(seen),
        memory_bytes=_memory(seen),
        os=f"{seen.system} {seen.release}",
        python=seen.python,
        packages=dict(seen.packages),
        load_average=seen.load_average,
        governor=seen.text(f"{clock}/scaling_governor") or None,
        frequency_hz=_hertz(seen.text(f"{clock}/scaling_cur_freq")) or _listed_hertz(cpuinfo),
        max_frequency_hz=_hertz(seen.text(f"{clock}/cpuinfo_max_freq")),
        throttled=_throttled(seen),
        on_battery=_on_battery(seen),
        quota_cores=_quota(seen),
        quota_pauses=_quota_pauses(seen),
        board=board(seen),
        soc=soc(seen),
        release=jetson_release(seen),
        core_kinds=kinds,
        gpus=tuple(
            f"{gpu.name}, driver {gpu.driver}" for gpu in read_gpus(seen.said("nvidia-smi"))
        ),
    )
    return with_fingerprint(found)


def with_fingerprint(device: Device) -> Device:
    """The same device with the fingerprint of what it is."""
    return dataclasses.replace(device, fingerprint=_fingerprint(device))


def _fingerprint(device: Device) -> str:
    lasting: dict[str, object] = {name: getattr(device, name) for name in LASTING}
    # What the kernel keeps for itself differs from boot to boot by a few pages.
    lasting["memory"] = (
        None if device.memory_bytes is None else round(device.memory_bytes / 2**30)
    )
    lasting["packages"] = {
        name: version for name, version in device.packages.items() if name in RUNTIME_PACKAGES
    }
    # What few machines have does not change the fingerprint of the others.
    lasting |= {
        name: value
        for name in ALSO_LASTING
        if (value := getattr(device, name)) not in {None, ()}
    }
    text = json.dumps(lasting, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hertz(kilohertz: str) -> float | None:
    return float(kilohertz) * 1e3 if kilohertz.strip().isdecimal() else None


def _listed_hertz(cpuinfo: str) -> float | None:
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)
    return float(found.group(1)) * 1e6 if found else None


def _throttled(seen: Seen) -> int | None:
    folder = "/sys/devices/system/cpu/cpu0/thermal_throttle"
    counts = [
        text
        for kind in ("core", "package")
        if (text := seen.text(f"{folder}/{kind}_throttle_count")).isdecimal()
    ]
    return sum(map(int, counts)) if counts else None


def _on_battery(seen: Seen) -> bool | None:
    """Whether a battery is being emptied."""
    states = []
    for path, kind in seen.matching("/sys/class/power_supply/*/type"):
        folder = path.rpartition("/")[0]
        # The batteries of mice and keyboards say nothing about this machine.
        if kind == "Battery" and seen.text(f"{folder}/scope") != "Device":
            states.append(seen.text(f"{folder}/status"))
    return "Discharging" in states if states else None


def _quota(seen: Seen) -> float | None:
    """The container's limit in cores: of version 2 of control groups, or of version 1."""
    limit, period, *_ = (*seen.text("/sys/fs/cgroup/cpu.max").split(), "", "")
    if not limit:
        limit = seen.text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = seen.text("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if not (limit.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(limit) / int(period)


def _quota_pauses(seen: Seen) -> int | None:
    for path in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        found = re.search(r"^nr_throttled (\d+)$", seen.text(path), re.MULTILINE)
        if found:
            return int(found.group(1))
    return None


def _cpu_name(seen: Seen, kinds: tuple[str, ...]) -> str:
    cpuinfo = seen.text("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if found:
        return found.group(1).strip()
    if kinds:
        # Arm's processors have no name of their own; their cores have.
        return ", ".join(re.sub(r" up to .*", "", kind) for kind in kinds)
    for key in ("Hardware", "Model", "cpu"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return seen.processor or seen.architecture or "unknown"


def _flags(cpuinfo: str) -> tuple[str, ...]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return tuple(flag for flag in FLAGS if flag in present)


def _usable_cores(seen: Seen) -> float:
    quota = _quota(seen)
    return float(seen.affinity) if quota is None else min(float(seen.affinity), quota)


def _memory(seen: Seen) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB$", seen.text("/proc/meminfo"), re.MULTILINE)
    limit = seen.text("/sys/fs/cgroup/memory.max") or seen.text(
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    )
    found = [int(total.group(1)) * 1024] if total else []
    if limit.isdigit():
        found.append(int(limit))
    return min(found, default=None)
