"""One model at several batches or numbers of threads: latency, throughput, and how well it scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from deploykit import profiling
from deploykit.errors import UsageError
from deploykit.profile import Clock, measure
from deploykit.profile.statistics import summarize
from deploykit.report.profile_wording import labels
from deploykit.report.what_if_records import SweepRecord, SweepRow
from deploykit.runtimes import start

if TYPE_CHECKING:
    from deploykit.profile import Measurement
    from deploykit.profiling import Feeds, Progress, Request
    from deploykit.report.profile_records import ProfileReport

__all__ = ["Sweep", "parse_sweep", "sweep"]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is varied, and over which settings, in order."""

    what: Literal["batch", "threads"]
    settings: tuple[int, ...]


def parse_sweep(text: str) -> Sweep:
    """Read `batch=1,2,4` or `threads=1,2`.

    Raises:
        UsageError: it has another form, or a number below 1.
    """
    what, _, values = text.partition("=")
    try:
        settings = tuple(int(value) for value in values.split(","))
    except ValueError:
        settings = ()
    if what not in {"batch", "threads"} or not settings or min(settings) < 1:
        msg = f"a sweep is asked for as batch=1,2,4,8 or threads=1,2,4, with numbers from 1 on, not '{text}'."
        raise UsageError(msg)
    if len(set(settings)) < len(settings):
        msg = f"the sweep '{text}' names a number twice. Name each once."
        raise UsageError(msg)
    return Sweep("batch" if what == "batch" else "threads", settings)


def sweep(
    request: Request, sweeps: Sequence[Sweep], *, progress: Progress = profiling.silent
) -> ProfileReport:
    """Profile a model as it is asked for, and at other batches or numbers of threads.

    Raises:
        UsageError: several models, a batch axis that is fixed, or more threads than the device has cores.
        ModelError: the model cannot be read, or does not run.
        RuntimeUnavailable: the runtime is not there.
    """
    if len(request.models) != 1:
        msg = f"a sweep is of one model, and {len(request.models)} are given. Give one of them."
        raise UsageError(msg)
    (name,) = labels(request.models)
    cores = request.place.describe().usable_cores
    for each in sweeps:
        if each.what == "threads" and max(each.settings) > cores:
            msg = (
                f"the sweep goes up to {max(each.settings)} threads, and {request.place.name} has {cores} cores: more threads than "
                f"cores only wait for each other. Ask for {cores} or fewer."
            )
            raise UsageError(msg)
    feeds = {
        each: [_feeds(request, each, setting, name) for setting in each.settings]
        for each in sweeps
    }
    report = profiling.profile(request, progress=progress)
    records = tuple(_run(request, each, feeds[each], name, progress) for each in sweeps)
    return dataclasses.replace(report, sweeps=records)


def _feeds(request: Request, each: Sweep, setting: int, name: str) -> Feeds:
    """What the model reads at a setting.

    Raises:
        UsageError: its batch is fixed.
    """
    if each.what == "threads":
        return profiling.find_feeds(request, (name,))[0]
    if request.batch is not None:
        msg = "--batch and a sweep over batches were given. Leave one out."
        raise UsageError(msg)
    return profiling.find_feeds(dataclasses.replace(request, batch=setting), (name,))[0]


def _run(
    request: Request, each: Sweep, feeds: Sequence[Feeds], name: str, progress: Progress
) -> SweepRecord:
    runner = start(request.runtime) if request.place.is_local else None
    taken: list[Measurement] = []
    for number, (setting, mine) in enumerate(zip(each.settings, feeds, strict=True)):
        progress(f"sweeping over {each.what}", number / len(each.settings))
        taken.append(
            measure(
                {name: request.models[0]},
                mine,
                threads=setting if each.what == "threads" else request.threads,
                settings=request.settings,
                runner=runner,
                place=request.place,
                runtime=request.runtime,
            )
        )
    clock = _clock(each, taken)
    rows: list[SweepRow] = []
    for setting, measured, mine in zip(each.settings, taken, feeds, strict=True):
        latency = summarize(measured.samples[name], clock)
        p50_s, p95_s = latency.p50_s, latency.p95_s
        items = setting if each.what == "batch" else _items(mine)
        rate = items / p50_s
        speedup = rate / rows[0].items_s if rows else 1.0
        more = setting / each.settings[0] if each.what == "threads" else 1.0
        rows.append(SweepRow(setting, p50_s, p95_s, rate, speedup, speedup / more, clock))
    return SweepRecord(each.what, name, tuple(rows), _said(each.what, rows))


def _clock(each: Sweep, taken: Sequence[Measurement]) -> Clock:
    """The clock that all settings are compared by."""
    clocks = {measured.clock for measured in taken}
    if "device" in clocks:
        return "device"
    # Processor time of several threads adds up what runs side by side: with threads only elapsed time compares.
    is_wall = each.what == "threads" and max(each.settings) > 1
    return "cpu" if "cpu" in clocks and not is_wall else "wall"


def _items(feeds: Feeds) -> int:
    """Items in a run: the size of the first axis of the first input, which is its batch."""
    first = next(iter(feeds.values()))
    return int(first.shape[0]) if first.ndim else 1


def _said(what: str, rows: Sequence[SweepRow]) -> str:
    best = max(rows, key=lambda row: row.items_s)
    first = rows[0]
    threads = "1 thread" if best.setting == 1 else f"{best.setting} threads"
    setting = f"a batch of {best.setting}" if what == "batch" else threads
    more = (
        "no other of these gives more"
        if best is first
        else f"{best.speedup:.2f} times those of {first.setting}"
    )
    return f"Most items in a second with {setting}: {best.items_s:,.4g}, {more}."
