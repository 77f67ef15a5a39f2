"""Says what a measurement was taken on, so that figures are compared only where they can be.

Nothing here identifies a person or a network: no host name, user, path or address.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
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


def describe(root: Path = Path("/")) -> Device:
    """Describe this machine; what cannot be read is left out.

    Args:
        root: where /proc and /sys lie.
    """
    cpuinfo = _read(root / "proc/cpuinfo")
    return Device(
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
        governor=_read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
        or None,
    )


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
    quota = _read(root / "sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def _memory(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
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
