"""What a machine says of itself, as texts: which files and tools are asked, and what they said.

The texts come from `sampler.look`, here or on a device; what they mean is read by the other modules of this package.
None of them names a person, a network or one machine among its like: serial numbers and identifiers are not asked for.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploykit.profile import sampler

__all__ = ["COMMANDS", "FILES", "GPU_QUERY", "Ran", "Seen", "is_gpu", "look_here", "matching"]

CPUS: Final = "/sys/devices/system/cpu/cpu[0-9]*"
FILES: Final = (
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/swaps",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/etc/nv_tegra_release",
    "/etc/nvpmodel.conf",
    "/var/lib/nvpmodel/status",
    f"{CPUS}/online",
    f"{CPUS}/cpufreq/scaling_governor",
    f"{CPUS}/cpufreq/scaling_cur_freq",
    f"{CPUS}/cpufreq/scaling_min_freq",
    f"{CPUS}/cpufreq/scaling_max_freq",
    f"{CPUS}/cpufreq/cpuinfo_max_freq",
    f"{CPUS}/thermal_throttle/*_throttle_count",
    "/sys/class/devfreq/*/cur_freq",
    "/sys/class/devfreq/*/min_freq",
    "/sys/class/devfreq/*/max_freq",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/hwmon/hwmon*/name",
    "/sys/class/hwmon/hwmon*/temp*_label",
    "/sys/class/hwmon/hwmon*/temp*_input",
    "/sys/class/hwmon/hwmon*/in*_label",
    "/sys/class/hwmon/hwmon*/in*_input",
    "/sys/class/hwmon/hwmon*/curr*_input",
    "/sys/class/hwmon/hwmon*/power*_label",
    "/sys/class/hwmon/hwmon*/power*_input",
    "/sys/class/hwmon/hwmon*/oc*_event_cnt",
    "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*",
    "/sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_power*_input",
    "/sys/class/powercap/intel-rapl:*/name",
    "/sys/class/powercap/intel-rapl:*/energy_uj",
    "/sys/class/powercap/intel-rapl:*/max_energy_range_uj",
    "/sys/class/power_supply/*/type",
    "/sys/class/power_supply/*/status",
    "/sys/class/power_supply/*/scope",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu.stat",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "/sys/fs/cgroup/cpu/cpu.stat",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
"""Files that are read. Those of a tool that is not there, or of another kind of machine, are left out by `look`."""

GPU_FIELDS: Final = (
    *("index", "name", "driver_version", "pstate", "clocks.current.sm", "clocks.max.sm"),
    *("clocks.current.memory", "clocks.max.memory", "temperature.gpu", "power.draw"),
    *("enforced.power.limit", "power.default_limit", "utilization.gpu"),
    *("memory.total", "memory.used"),
)


def _gpu_query(reasons: str) -> tuple[str, ...]:
    fields = ",".join((*GPU_FIELDS, f"{reasons}.active"))
    return ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,nounits")


# Driver 535 called throttle reasons event reasons. The old name is the one that more drivers know.
GPU_QUERY: Final = (_gpu_query("clocks_throttle_reasons"), _gpu_query("clocks_event_reasons"))

COMMANDS: Final[dict[str, tuple[tuple[str | int, ...], ...]]] = {
    "nvpmodel": (("nvpmodel", "-q"),),
    "jetson_clocks": (("jetson_clocks", "--show"),),
    # It goes on until it is ended: the first line is enough.
    "tegrastats": ((1, "tegrastats", "--interval", "100"),),
    "nvidia-smi": GPU_QUERY,
    "vcgencmd": (("vcgencmd", "get_throttled"),),
}


@dataclasses.dataclass(frozen=True)
class Ran:
    """What became of a tool: its exit code, None where it is not there or took too long, and what it said."""

    code: int | None
    text: str

    @property
    def worked(self) -> bool:
        """Whether what it said is an answer."""
        return self.code == 0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a machine said of itself.

    Attributes:
        files: texts by path.
        commands: what tools said, by name; those that were not asked are missing.
        architecture: its instruction set ("aarch64").
        system: its operating system ("Linux").
        release: the release of that.
        processor: what Python knows of the processor; often nothing.
        cores: cores that it counts.
        affinity: cores that the process there may use.
        python: version of Python there.
        packages: versions of runtimes and libraries there, by name.
        load_average: mean number of runnable processes over 1, 5 and 15 minutes; None where it is unknown.
    """

    files: Mapping[str, str]
    commands: Mapping[str, Ran]
    architecture: str
    system: str
    release: str
    processor: str
    cores: int
    affinity: int
    python: str
    packages: Mapping[str, str]
    load_average: tuple[float, float, float] | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Seen:
        """What `sampler.look` returned, here or elsewhere."""
        load = document["load_average"]
        return cls(
            files=dict(document["files"]),
            commands={
                name: Ran(each["code"], str(each["text"]))
                for name, each in document["commands"].items()
            },
            architecture=str(document["architecture"]),
            system=str(document["system"]),
            release=str(document["release"]),
            processor=str(document["processor"]),
            cores=int(document["cores"]),
            affinity=int(document["affinity"]),
            python=str(document["python"]),
            packages=dict(document["packages"]),
            load_average=None if load is None else (load[0], load[1], load[2]),
        )

    def text(self, path: str) -> str:
        """The text of a file, without spaces around it; empty if it is not there."""
        return self.files.get(path, "").strip()

    def matching(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Paths that a pattern names and their texts, in the order of their numbers."""
        return matching(self.files, pattern)

    def said(self, command: str) -> str:
        """What a tool said; empty if it gave no answer."""
        ran = self.commands.get(command)
        return ran.text if ran is not None and ran.worked else ""


def matching(files: Mapping[str, str], pattern: str) -> Iterator[tuple[str, str]]:
    """Paths that a pattern names and their texts, without spaces around them, in the order of their numbers."""
    for path in sorted(fnmatch.filter(files, pattern), key=_by_number):
        yield path, files[path].strip()


def is_gpu(folder: str) -> bool:
    """Whether a folder of devfreq is that of a GPU: 17000000.gpu, 57000000.gpu, 17000000.gv11b, 17000000.gp10b, ga10b."""
    return re.search(r"(gpu|gv11b|gp10b|ga10b|gpc\d*)$", folder) is not None


def _by_number(path: str) -> list[tuple[int, str]]:
    """A key by which cpu10 comes after cpu9."""
    parts: list[tuple[int, str]] = []
    digits = word = ""
    for letter in f"{path}\0":
        if letter.isdecimal():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), word))
            digits = word = ""
        word += letter
    return [*parts, (-1, word)]


def look_here(
    root: Path = Path("/"),
    *,
    commands: Mapping[str, Sequence[Sequence[str | int]]] | None = None,
) -> Seen:
    """Look at this machine.

    Args:
        root: where /proc and /sys lie.
        commands: tools that are asked; None asks none, which takes a few milliseconds.
    """
    return Seen.of(sampler.look(FILES, commands or {}, root=str(root)))
