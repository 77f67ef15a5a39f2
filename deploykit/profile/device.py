"""Says what a measurement was taken on, so that figures are compared only where they can be.

Nothing here identifies a person or a network: no host name, user, path or address.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

__all__ = ["Device", "describe"]

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "onnx",
    "onnx-ir",
)

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
    fingerprint: str = ""


# What decides how fast a model runs and does not change from one run to the next.
LASTING = (
    *("cpu", "architecture", "flags", "cores", "usable_cores", "os", "governor"),
    *("max_frequency_hz", "quota_cores"),
)
RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def describe(root: Path = Path("/")) -> Device:
    """Describe this machine; what cannot be read is left out.

    Args:
        root: where /proc and /sys lie.
    """
    cpuinfo = _read(root / "proc/cpuinfo")
    clock = root / "sys/devices/system/cpu/cpu0/cpufreq"
    found = Device(
        cpu=_cpu_name(cpuinfo),
        architecture=platform.machine(),
        flags=_flags(cpuinfo),
        cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(root),
        memory_bytes=_memory(root),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_versions(),
        load_average=_load_average(),
        governor=_read(clock / "scaling_governor").strip() or None,
        frequency_hz=_hertz(_read(clock / "scaling_cur_freq")) or _listed_hertz(cpuinfo),
        max_frequency_hz=_hertz(_read(clock / "cpuinfo_max_freq")),
        throttled=_throttled(root),
        on_battery=_on_battery(root),
        quota_cores=_quota(root),
        quota_pauses=_quota_pauses(root),
    )
    return dataclasses.replace(found, fingerprint=_fingerprint(found))


def _fingerprint(device: Device) -> str:
    lasting: dict[str, object] = {name: getattr(device, name) for name in LASTING}
    # What the kernel keeps for itself differs from boot to boot by a few pages.
    lasting["memory"] = (
        None if device.memory_bytes is None else round(device.memory_bytes / 2**30)
    )
    lasting["packages"] = {
        name: version for name, version in device.packages.items() if name in RUNTIME_PACKAGES
    }
    text = json.dumps(lasting, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hertz(kilohertz: str) -> float | None:
    return float(kilohertz) * 1e3 if kilohertz.strip().isdecimal() else None


def _listed_hertz(cpuinfo: str) -> float | None:
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)
    return float(found.group(1)) * 1e6 if found else None


def _throttled(root: Path) -> int | None:
    folder = root / "sys/devices/system/cpu"
    counts = [
        text
        for kind in ("core", "package")
        if (
            text := _read(folder / f"cpu0/thermal_throttle/{kind}_throttle_count").strip()
        ).isdecimal()
    ]
    return sum(map(int, counts)) if counts else None


def _on_battery(root: Path) -> bool | None:
    """Whether a battery is being emptied."""
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        return None
    states = [
        _read(supply / "status").strip()
        for supply in supplies
        if _read(supply / "type").strip() == "Battery"
        # The batteries of mice and keyboards say nothing about this machine.
        and _read(supply / "scope").strip() != "Device"
    ]
    return "Discharging" in states if states else None


def _quota(root: Path) -> float | None:
    """The container's limit in cores: of version 2 of control groups, or of version 1."""
    limit, period, *_ = (*_read(root / "sys/fs/cgroup/cpu.max").split(), "", "")
    if not limit:
        limit = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if not (limit.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(limit) / int(period)


def _quota_pauses(root: Path) -> int | None:
    for path in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):
        found = re.search(r"^nr_throttled (\d+)$", _read(root / path), re.MULTILINE)
        if found:
            return int(found.group(1))
    return None


def _cpu_name(cpuinfo: str) -> str:
    for key in ("model name", "Hardware", "Model", "cpu"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine() or "unknown"


def _flags(cpuinfo: str) -> tuple[str, ...]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return tuple(flag for flag in FLAGS if flag in present)


def _usable_cores(root: Path) -> float:
    # os.sched_getaffinity is Linux's own; elsewhere every core counts.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    quota = _quota(root)
    if quota is not None:
        cores = min(cores, quota)
    return cores


def _memory(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    limit = (
        _read(root / "sys/fs/cgroup/memory.max").strip()
        or _read(root / "sys/fs/cgroup/memory/memory.limit_in_bytes").strip()
    )
    found = [int(total.group(1)) * 1024] if total else []
    if limit.isdigit():
        found.append(int(limit))
    return min(found, default=None)


def _load_average() -> tuple[float, float, float] | None:
    try:
        return os.getloadavg()
    except (AttributeError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
