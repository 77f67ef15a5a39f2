"""Finds counts of channels that save time, and checks them: from a model and a budget to a report.

groups -> table of latencies -> search -> the network at these counts, timed against the original and uniform pruning
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from deploykit import channel_counts, profiling
from deploykit.channel_counts import ChannelCounts
from deploykit.errors import ModelError, UsageError
from deploykit.report.what_if_records import (
    AllocationRecord,
    GroupRow,
    Prediction,
    WhatIfRecord,
)
from deploykit.what_if.allocation import Problem, Term, allocate, uniform
from deploykit.what_if.latency_table import measure_table
from deploykit.what_if.prediction import Options, Studio, measure_all, open_studio

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.profiling import Progress, Request
    from deploykit.report.profile_records import ProfileReport
    from deploykit.what_if.latency_table import LatencyTable, LayerTable
    from deploykit.what_if.network import Layer, Network

__all__ = ["Budget", "allocation"]

ALLOCATED = "allocated"
UNIFORM = "uniform"
MOST_CHOICES = 33
"""Counts that a group can choose from: multiples of what the target likes, of twice that where there are more."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is to be left.

    Attributes:
        what: weights (of convolutions and products) or multiply-accumulates.
        share: the share of them that is left, at least.
        least: the smallest share of a group's channels that may be kept.
    """

    what: Literal["weights", "macs"]
    share: float
    least: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            msg = f"a budget leaves a share above 0 and below 1, not {self.share:g}."
            raise UsageError(msg)
        if not 0.0 < self.least <= 1.0:
            msg = f"a group keeps a share above 0 and up to 1 of its channels, not {self.least:g}."
            raise UsageError(msg)


def allocation(
    request: Request,
    budget: Budget,
    options: Options | None = None,
    *,
    save: Path | None = None,
    progress: Progress = profiling.silent,
) -> ProfileReport:
    """Find the counts that save the most time at a budget, and measure them.

    Args:
        request: the model, and how it is measured.
        budget: what is to be left.
        options: how counts are rounded.
        save: where the counts are written to.
        progress: told what is going on.

    Raises:
        UsageError: several models, or a file that cannot be written.
        ModelError: the model cannot be read or does not run, or has no channels that can go.
        RuntimeUnavailable: the runtime is not there.
    """
    with open_studio(request, options or Options(), progress) as studio:
        network = studio.bench.network
        choices = choices_of(studio, budget.least)
        if all(len(each) < 2 for each in choices):
            why = "; ".join(f"'{skip.subject}': {skip.reason}" for skip in network.stuck()[:3])
            msg = (
                f"no channels of '{studio.name}' can go: {why or 'its layers are too narrow for these multiples'}. "
                "Give a smaller --multiple or --least."
            )
            raise ModelError(msg)
        least = budget.share * network.total(budget.what, network.full)
        progress("timing layers at other counts", 0.0)
        table = measure_table(
            network,
            studio.shapes,
            choices,
            studio.folder,
            on=studio.where,
            threads=request.threads,
            runtime=request.runtime,
            progress=lambda done: progress("timing layers at other counts", done),
        )
        layer_s, whole_s = _layer_times(studio)
        problem = make_problem(network, choices, table, layer_s, whole_s, budget.what)
        progress("looking for the best counts")
        counts = allocate(problem, least)
        even = uniform(problem, least)
        surrogates = [studio.bench.at_counts(ALLOCATED, counts, _assumed(budget))]
        if even != counts:
            surrogates.append(studio.bench.at_counts(UNIFORM, even, _assumed(budget)))
        report, predictions = measure_all(studio, surrogates)
        chosen, said = _judge(predictions)
        record = AllocationRecord(
            budget=budget.what,
            share=budget.share,
            left=_left(network, budget, counts if chosen == ALLOCATED else even),
            uniform_left=_left(network, budget, even),
            least=budget.least,
            chosen="allocated" if chosen == ALLOCATED else "uniform",
            expected={
                each.name: problem.sums(its)[0] / problem.sums(problem.full)[0]
                for each, its in zip(surrogates, (counts, even), strict=False)
            },
            said=said,
            groups=tuple(
                GroupRow(_makers(network, index), group.size, even[index], counts[index])
                for index, group in enumerate(network.groups)
            ),
            table=tuple(each.row for each in table.tables),
            saved_as=None if save is None else str(save),
        )
        if save is not None:
            best = counts if chosen == ALLOCATED else even
            channel_counts.write(_as_file(studio, best, record, predictions), save)
    what_if = WhatIfRecord(studio.name, predictions, allocation=record)
    return dataclasses.replace(report, what_if=what_if)


def choices_of(studio: Studio, least: float) -> list[tuple[int, ...]]:
    """The counts that each group may have: multiples of what the target likes, and all of its channels."""
    network = studio.bench.network
    found = []
    for index, group in enumerate(network.groups):
        step = studio.bench.rounding
        while group.size / step > MOST_CHOICES:
            step *= 2
        low = max(network.least(index), -(-round(least * group.size * 1e6) // 10**6))
        counts = [each for each in range(step, group.size, step) if each >= low]
        found.append((*counts, group.size))
    return found


def make_problem(  # noqa: PLR0917 - what the sums are made of
    network: Network,
    choices: Sequence[Sequence[int]],
    table: LatencyTable,
    layer_s: Mapping[str, float],
    whole_s: float,
    what: str,
) -> Problem:
    """The sums to search: what each layer takes in the network, times the ratio of its kind alone.

    Args:
        network: the network.
        choices: the counts that each group may have.
        table: times of kinds of layers alone.
        layer_s: what each layer takes in the network, by name; empty if that is not known.
        whole_s: what the whole network takes.
        what: "weights" or "macs".
    """
    tables = table.by_layer()
    if not layer_s:
        # What alone is known then is each layer's time by itself, which is more than it takes among others.
        layer_s = {name: float(each.seconds[-1, -1]) for name, each in tables.items()}
    terms = []
    moving_s = moving = 0.0
    for layer in network.layers:
        if not layer.groups:
            continue
        amount = float(layer.weights if what == "weights" else layer.macs)
        seconds = layer_s.get(layer.name, 0.0)
        moving_s, moving = moving_s + seconds, moving + amount
        if not seconds and not amount:
            continue
        terms.append(
            Term(
                tuple(sorted(layer.groups)),
                functools.partial(_seconds, layer, tables.get(layer.name), seconds),
                functools.partial(_amount, layer, amount),
            )
        )
    fixed = network.total(what, network.full) - moving
    return Problem(choices, terms, fixed_s=max(0.0, whole_s - moving_s), fixed=fixed)


def _seconds(
    layer: Layer, table: LayerTable | None, seconds: float, counts: Sequence[int]
) -> float:
    if table is None:
        return (
            seconds * layer.scale(counts)
            if layer.weight
            else seconds * layer.outputs.share(counts)
        )
    return seconds * table.ratio(layer.inputs.at(counts), layer.outputs.at(counts))


def _amount(layer: Layer, amount: float, counts: Sequence[int]) -> float:
    return amount * layer.scale(counts)


def _layer_times(studio: Studio) -> tuple[dict[str, float], float]:
    """What each layer of the original takes in the network, and the whole of it."""
    request = dataclasses.replace(studio.request, layers=True)
    (model,) = profiling.profile(request, progress=studio.progress).models
    return {row.name: row.seconds for row in model.layers}, (
        model.latency.p50_s if model.layer_totals is None else model.layer_totals.whole_s
    )


def _left(network: Network, budget: Budget, counts: Sequence[int]) -> float:
    return network.total(budget.what, counts) / network.total(budget.what, network.full)


def _makers(network: Network, index: int) -> tuple[str, ...]:
    known = {layer.weight for layer in network.layers}
    return tuple(name for name in network.names[index] if name in known)


def _assumed(budget: Budget) -> tuple[str, ...]:
    what = "weights" if budget.what == "weights" else "multiply-accumulates"
    said = (
        f"at least {budget.share:g} of the {what} are left, and {budget.least:g} of the channels of each group; what it costs on the "
        "task is not asked"
    )
    return (said,)


def _judge(predictions: Sequence[Prediction]) -> tuple[str, str]:
    """Which counts to hand out, and why."""
    (mine, *others) = predictions
    if not others:
        return ALLOCATED, (
            f"The allocation is what the same share everywhere gives, too: {mine.ratio:.3f} of the original's time."
        )
    (even,) = others
    if adds_enough_of(mine, even):
        return ALLOCATED, (
            f"{mine.ratio:.3f} of the original's time, where the same share of channels everywhere takes {even.ratio:.3f}."
        )
    if mine.ratio <= even.ratio:
        return ALLOCATED, (
            f"{mine.ratio:.3f} of the original's time; that this is less than the {even.ratio:.3f} of the same share of channels "
            "everywhere is not proven."
        )
    return UNIFORM, (
        f"The allocation takes {mine.ratio:.3f} of the original's time and is no faster than the same share of channels everywhere, "
        f"{even.ratio:.3f}: that is the result."
    )


def adds_enough_of(mine: Prediction, other: Prediction) -> bool:
    """Whether one's interval is below that of the other, both against the original."""
    return mine.ci95[1] < other.ci95[0]


def _as_file(
    studio: Studio,
    counts: Sequence[int],
    record: AllocationRecord,
    predictions: Sequence[Prediction],
) -> ChannelCounts:
    rows = studio.bench.network.by_weight(counts)
    ratios = {each.name: round(each.ratio, 4) for each in predictions}
    return ChannelCounts(
        keep={weight: keep for weight, (keep, _) in rows.items()},
        sizes={weight: size for weight, (_, size) in rows.items()},
        source={"path": str(studio.request.models[0]), "sha256": studio.source.sha256},
        made={
            record.budget: record.share,
            "left": round(record.left, 4),
            "least": record.least,
            "counts": record.chosen,
            "time": ratios,
        },
    )
