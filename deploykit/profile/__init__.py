"""Measures models against each other, on this machine or on another one.

`sampler` takes the samples and stands alone, `place` is where it runs, `statistics` says what they mean, `device` what they
were taken on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import UsageError
from deploykit.profile.place import CPU, HERE, Here, Place
from deploykit.profile.statistics import (
    Clock,
    Latency,
    Ratio,
    Timings,
    adds_enough,
    choose_clock,
    paired_ratio,
    stands,
    summarize,
)
from deploykit.runtimes import DEFAULT

if TYPE_CHECKING:
    from deploykit.runtimes import Runner

__all__ = [
    "HERE",
    "SCREENING",
    "Clock",
    "Latency",
    "Measurement",
    "Place",
    "Ratio",
    "Settings",
    "Timings",
    "adds_enough",
    "measure",
    "stands",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Progress: TypeAlias = Callable[[float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and how often models are run; the defaults are those of trtexec, with several builds of the sessions.

    Attributes:
        warmup_s: seconds for which each new session runs before it is timed, at least once.
        duration_s: seconds that each model gets, untimed runs included, warm-up not.
        min_rounds: rounds that are taken even when they last longer than that.
        rebuilds: how often all sessions are built anew.
        max_duration_s: seconds after which it ends, whatever is missing.
        seed: of the random orders.
    """

    warmup_s: float = 0.2
    duration_s: float = 3.0
    min_rounds: int = 10
    rebuilds: int = 3
    max_duration_s: float = 300.0
    seed: int = 0


SCREENING = Settings(
    warmup_s=0.1, duration_s=0.5, min_rounds=6, rebuilds=2, max_duration_s=90.0
)
"""Enough to drop the candidates that are clearly behind; too little to decide between close ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """Models timed against each other.

    Attributes:
        baseline: name of the model that ratios are relative to.
        samples: all samples, by model.
        latencies: percentiles, by model.
        ratios: time of each other model over that of the baseline, by model.
        clock: the clock that latencies and ratios are by.
        clean_share: share of the samples in which the thread was hardly kept waiting, 0 to 1.
        threads: threads that the models ran with; None is the runtime's own number.
        runtime: name and version of the runtime.
        providers: the devices it ran on.
        settings: how it was measured.
        truncated: whether `settings.max_duration_s` cut it short.
        elapsed_s: how long it took, in seconds.
        load_s: seconds that opening a session took, one number a rebuild, by model.
        states: what was noted of the machine meanwhile, as the sampler noted it.
    """

    baseline: str
    samples: Mapping[str, Timings]
    latencies: Mapping[str, Latency]
    ratios: Mapping[str, Ratio]
    clock: Clock
    clean_share: float
    threads: int | None
    runtime: str
    providers: tuple[str, ...]
    settings: Settings
    truncated: bool
    elapsed_s: float
    load_s: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    states: tuple[Mapping[str, Any], ...] = ()

    def ratio(self, candidate: str, baseline: str) -> Ratio:
        """Time of any model over that of any other one."""
        return paired_ratio(
            self.samples[baseline],
            self.samples[candidate],
            threads=self.threads,
            clock=self.clock,
        )


def measure(
    models: Mapping[str, str | Path],
    feeds: Mapping[str, Array],
    *,
    baseline: str | None = None,
    threads: int | None = 1,
    settings: Settings | None = None,
    providers: Sequence[str] = (CPU,),
    progress: Progress | None = None,
    runner: Runner | None = None,
    place: Place = HERE,
    runtime: str = DEFAULT,
    watch: Mapping[str, Any] | None = None,
) -> Measurement:
    """Time models against each other, all with the same inputs.

    Args:
        models: path of each model, by name.
        feeds: an array for each input, by name.
        baseline: the model that ratios are relative to; None is the first.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        settings: how long and how often; None is the default.
        providers: devices that ONNX Runtime uses on this machine.
        progress: called with the share of the work that is done, 0 to 1.
        runner: what runs the models on this machine; None is ONNX Runtime, which alone heeds `threads` and `providers`.
        place: where they are measured.
        runtime: what runs them elsewhere.
        watch: what is noted of the machine meanwhile, see `state.watch_for`; None notes nothing.

    Returns:
        all samples, and what they say.

    Raises:
        UsageError: there is no model, or none named like the baseline.
        ModelError: a model does not run on these inputs.
        RuntimeUnavailable: the place, the runtime or a provider is not there.
    """
    if not models:
        msg = "there is no model to measure"
        raise UsageError(msg)
    names = list(models)
    base = names[0] if baseline is None else baseline
    if base not in models:
        msg = f"the baseline '{base}' is not among the models ({', '.join(names)})"
        raise UsageError(msg)
    settings = settings or Settings()
    where = Here(runner, tuple(providers)) if place.is_local else place
    result = where.sample(
        [models[name] for name in names],
        feeds,
        runtime=runtime,
        threads=threads,
        settings=settings,
        progress=progress,
        watch=watch,
    )
    samples = timings(result, names)
    if result["is_device"]:
        threads = None
    clock, share = choose_clock(list(samples.values()), threads)
    if result["is_device"]:
        # What waits on the host is in none of these times.
        clock, share = "device", 1.0
    return Measurement(
        baseline=base,
        samples=samples,
        latencies={name: summarize(each, clock) for name, each in samples.items()},
        ratios={
            name: paired_ratio(samples[base], each, threads=threads, clock=clock)
            for name, each in samples.items()
            if name != base
        },
        clock=clock,
        clean_share=share,
        threads=threads,
        runtime=str(result["runtime"]),
        providers=tuple(result["providers"]),
        settings=settings,
        truncated=bool(result["truncated"]),
        elapsed_s=float(result["elapsed_s"]),
        states=tuple(result.get("states", ())),
        load_s={name: tuple(each) for name, each in zip(names, result["load_s"], strict=True)},
    )


def timings(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, Timings]:
    """Samples of each model, by name, from what the sampler returned (here or on another machine)."""
    rebuild = np.asarray(result["rebuild"], dtype=np.int64)
    columns = (result[key] for key in ("wall_s", "cpu_s", "switches", "faults"))
    return {
        name: Timings(
            rebuild,
            np.asarray(wall, dtype=np.float64),
            np.asarray(cpu, dtype=np.float64),
            np.asarray(switches, dtype=np.int64),
            np.asarray(faults, dtype=np.int64),
        )
        for name, wall, cpu, switches, faults in zip(names, *columns, strict=True)
    }
