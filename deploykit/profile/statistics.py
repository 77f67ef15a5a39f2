"""What samples of two models say: percentiles, the paired ratio with its interval, and the two decisions it serves.

The baseline and a candidate were timed in the same rounds, so that each round gives one ratio and whatever the machine
did in that round falls out of it. Everything is computed on logarithms of ratios: twice as fast and half as fast are
then equally far from 1.

Models that were timed on different occasions share no rounds. `unpaired_ratio` compares them all the same, and knows
nothing of what the machine did differently.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from deploykit.profile.sampler import CLEAN_S, CLEAN_SHARE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Clock",
    "Latency",
    "Outliers",
    "Ratio",
    "Timings",
    "adds_enough",
    "change_of_ratio",
    "choose_clock",
    "find_outliers",
    "outlier_share",
    "paired_ratio",
    "slowdown",
    "stands",
    "summarize",
    "unpaired_ratio",
]

Clock: TypeAlias = Literal["wall", "cpu", "device"]
"""What seconds are by: elapsed time, processor time, or the clock of a GPU."""
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

FEWEST_CLEAN = 5
WORTH = 0.98
"""An added structure must win at least this much: 2 % is what two sessions of one model can differ by."""

OUTLIER_Z = 3.5
NOISY_OUTLIERS = 0.1

SESSION_SD = 0.005
"""How much the log ratio of one model's sessions varies (standard deviation): 0.2 to 0.8 % between sessions of ONNX
Runtime's CPU provider in one process, from where the weights come to lie in memory."""

SESSION_WEIGHT = 2
"""How many rebuilds the value above counts as, next to the few that a measurement has."""


@dataclasses.dataclass(frozen=True, eq=False)
class Timings:
    """All samples of one model, one a round; models of one measurement share their rounds.

    Attributes:
        rebuild: int, shape `(rounds,)`; which build of the sessions a round belongs to.
        wall_s: float, shape `(rounds,)`; elapsed seconds, or those of the device that ran the model.
        cpu_s: float, shape `(rounds,)`; processor seconds of the thread (of the process, with several threads).
        switches: int, shape `(rounds,)`; how often the thread lost its core; None if that was not counted.
        faults: int, shape `(rounds,)`; page faults; None if they were not counted.
    """

    rebuild: Ints
    wall_s: Floats
    cpu_s: Floats
    switches: Ints | None = None
    faults: Ints | None = None

    def __post_init__(self) -> None:
        sizes = {array.shape for array in (self.rebuild, self.wall_s, self.cpu_s)}
        if len(sizes) != 1 or self.rebuild.ndim != 1 or not self.rebuild.size:
            msg = f"timings need one wall and one processor time for each of at least one round, got {sizes}"
            raise ValueError(msg)

    @property
    def is_clean(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Samples in which the thread was hardly ever kept waiting: bool, shape `(rounds,)`."""
        clean: np.ndarray[Any, np.dtype[np.bool_]] = (
            self.wall_s - self.cpu_s < CLEAN_SHARE * self.wall_s + CLEAN_S
        )
        return clean

    def on(self, clock: Clock) -> Floats:
        """The seconds by one of the clocks, shape `(rounds,)`."""
        return self.cpu_s if clock == "cpu" else self.wall_s


@dataclasses.dataclass(frozen=True)
class Latency:
    """Latency of one model.

    Attributes:
        clock: which clock the figures are by.
        p50_s: median, in seconds.
        p90_s: 90th percentile, in seconds.
        p95_s: 95th percentile, in seconds.
        p99_s: 99th percentile, in seconds.
        samples: how many runs were timed.
        outlier_share: share of the samples that lie far out, 0 to 1.
    """

    clock: Clock
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    samples: int
    outlier_share: float


@dataclasses.dataclass(frozen=True)
class Outliers:
    """Samples that lie far out, for one reason.

    Attributes:
        source: the reason, as far as it can be known.
        count: how many there are.
    """

    source: str
    count: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Time of a candidate over time of the baseline.

    Attributes:
        median: the ratio; below 1 the candidate is faster.
        lo: lower end of the 95 % interval.
        hi: upper end of the 95 % interval.
        clock: which clock it is by.
        noisy: whether the machine was too busy for wall time (one thread), or had many outliers (several).
        clean_share: share of the samples in which the thread was hardly kept waiting, 0 to 1.
        rounds: how many pairs it rests on.
        rebuilds: how many builds of the sessions they come from.
    """

    median: float
    lo: float
    hi: float
    clock: Clock
    noisy: bool
    clean_share: float
    rounds: int
    rebuilds: int


def stands(ratio: Ratio) -> bool:
    """Whether an exact removal is kept: unless it is proven slower than the baseline."""
    return ratio.lo <= 1.0


def adds_enough(ratio: Ratio, worth: float = WORTH) -> bool:
    """Whether a candidate that adds structure is kept: only if it is proven to win at least `worth`."""
    return ratio.hi < worth


def choose_clock(timings: Sequence[Timings], threads: int | None) -> tuple[Clock, float]:
    """Choose the clock that a set of models is compared by.

    One thread: wall time if at least half of all samples are clean, else processor time, which a busy machine hardly
    changes. Several threads: wall time, because processor time adds up what runs side by side.

    Args:
        timings: the models' samples.
        threads: what the models ran with; None is the runtime's own number.

    Returns:
        the clock and the share of clean samples.
    """
    share = float(np.mean([each.is_clean.mean() for each in timings]))
    return ("wall" if threads != 1 or share >= 0.5 else "cpu"), share


def summarize(timings: Timings, clock: Clock) -> Latency:
    """Percentiles of one model's samples."""
    seconds = timings.on(clock)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 95, 99)))
    return Latency(clock, p50, p90, p95, p99, int(seconds.size), outlier_share(seconds))


def outlier_share(samples: Floats) -> float:
    """Share of the samples whose modified z-score exceeds 3.5.

    The score is 0.6745 |x - median| / MAD; where more than half of the samples are equal, the mean absolute deviation
    takes the place of the MAD.

    Source: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, ASQC Quality Press, 1993.
    """
    return float(_is_outlier(samples).mean())


def _is_outlier(samples: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    away = np.abs(samples - np.median(samples))
    scale = float(np.median(away)) / 0.6745
    if scale == 0.0:
        scale = 1.253314 * float(away.mean())
    far: np.ndarray[Any, np.dtype[np.bool_]] = (
        away > OUTLIER_Z * scale if scale > 0.0 else np.zeros(samples.shape, np.bool_)
    )
    return far


WAITED = "kept waiting by other processes"
FAULTED = "page faults: memory was mapped or read anew"
FIRST = "first runs after the session was built"
BUSY_CORE = "slower at the same work: a lower clock, or a neighbour in the caches"
ASLEEP = "waited for something that is no other process: interrupts, a virtual machine's host"
FAST = "faster than most"

FIRST_RUNS = 2


def find_outliers(timings: Timings) -> tuple[Outliers, ...]:
    """Outliers of wall time by source, the most frequent first.

    Whatever a sample took beyond the median is explained by what explains most of it: time in which the thread did
    not run (with or without being pushed off its core), else its own time, which page faults or the first runs of a
    session make longer. Garbage collection is none of them: it is switched off while samples are taken.
    """
    wall_s = timings.wall_s
    typical_s = float(np.median(wall_s))
    usual_faults = 0.0 if timings.faults is None else float(np.median(timings.faults))
    waits_s = timings.wall_s - timings.cpu_s
    usual_wait_s = float(np.median(waits_s))
    counts: dict[str, int] = {}
    for index in np.flatnonzero(_is_outlier(wall_s)):
        beyond_s = wall_s[index] - typical_s
        place = int((timings.rebuild[:index] == timings.rebuild[index]).sum())
        if beyond_s < 0.0:
            source = FAST
        elif waits_s[index] - usual_wait_s > beyond_s / 2:
            pushed = timings.switches is None or timings.switches[index] > 0
            source = WAITED if pushed else ASLEEP
        elif timings.faults is not None and timings.faults[index] > 2 * usual_faults + 10:
            source = FAULTED
        else:
            source = FIRST if place < FIRST_RUNS else BUSY_CORE
        counts[source] = counts.get(source, 0) + 1
    return tuple(
        Outliers(source, count)
        for source, count in sorted(counts.items(), key=lambda item: -item[1])
    )


def slowdown(timings: Sequence[Timings]) -> float:
    """How much longer the same runs took at the end of a measurement than at its beginning.

    Processor time of all models, that of the last third of the rounds over that of the first; 1 where there are too
    few rounds to tell.
    """
    logs = np.mean(
        [np.log(each.cpu_s) - np.log(np.median(each.cpu_s)) for each in timings], axis=0
    )
    third = logs.size // 3
    if third < FEWEST_CLEAN:
        return 1.0
    return math.exp(float(np.median(logs[-third:]) - np.median(logs[:third])))


def paired_ratio(
    baseline: Timings,
    candidate: Timings,
    *,
    threads: int | None = 1,
    clock: Clock | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """Time of `candidate` over time of `baseline`, with a 95 % interval.

    The figure is the mean over the rebuilds of the median log ratio of their rounds. The interval is a bootstrap on
    two levels. *Rounds* are resampled within each rebuild. *Rebuilds* are too few to resample (of three, resampling
    yields the range of three values, which misses the truth one time in four); instead each resample adds a draw from
    a t distribution whose variance is that between the rebuilds beyond what their rounds explain, moderated by what
    is known of sessions in general.

    Args:
        baseline: samples of what is compared with.
        candidate: samples of the same rounds.
        threads: what the models ran with; None is the runtime's own number.
        clock: the clock to use; None chooses it from these two.
        resamples: how many bootstrap samples are drawn.
        seed: of those draws.

    Returns:
        the ratio.

    Raises:
        ValueError: the two were not taken in the same rounds.

    Source: moderated variances: G. Smyth, Linear models and empirical Bayes methods, Stat. Appl. Genet. Mol. Biol.
        3(1), 2004.
    """
    chosen, share = choose_clock((baseline, candidate), threads)
    clock = clock or chosen
    groups = _paired_logs(baseline, candidate, threads, clock)
    if threads == 1:
        noisy = share < 0.5
    else:
        noisy = (
            max(outlier_share(each.wall_s) for each in (baseline, candidate)) > NOISY_OUTLIERS
        )
    middle, draws = _bootstrap(groups, resamples, np.random.default_rng(seed))
    lo, hi = (float(value) for value in np.percentile(draws, (2.5, 97.5)))
    return Ratio(
        median=math.exp(middle),
        lo=math.exp(lo),
        hi=math.exp(hi),
        clock=clock,
        noisy=noisy,
        clean_share=share,
        rounds=sum(group.size for group in groups),
        rebuilds=len(groups),
    )


def unpaired_ratio(
    baseline: Timings,
    candidate: Timings,
    *,
    threads: int | None = 1,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """Time of `candidate` over that of `baseline`, which was timed on another occasion, with a 95 % interval.

    The interval covers what differs from run to run and from session to session, as that of `paired_ratio` does, for
    each side by itself. It does not cover what differed between the two occasions: another device, another clock,
    another load. With one thread it is by processor time, which a busy machine changes the least.

    Args:
        baseline: samples of what is compared with.
        candidate: the other samples.
        threads: what both ran with; None is the runtime's own number.
        resamples: how many bootstrap samples are drawn.
        seed: of those draws.
    """
    clock: Clock = "cpu" if threads == 1 else "wall"
    dice = np.random.default_rng(seed)
    middles, draws, shares, rebuilds = [], [], [], []
    for each in (baseline, candidate):
        logs = np.log(each.on(clock))
        groups = [logs[each.rebuild == which] for which in np.unique(each.rebuild)]
        middle, drawn = _bootstrap(groups, resamples, dice)
        middles.append(middle)
        draws.append(drawn)
        shares.append(float(each.is_clean.mean()))
        rebuilds.append(len(groups))
    lo, hi = (float(value) for value in np.percentile(draws[1] - draws[0], (2.5, 97.5)))
    return Ratio(
        median=math.exp(middles[1] - middles[0]),
        lo=math.exp(lo),
        hi=math.exp(hi),
        clock=clock,
        noisy=min(shares) < 0.5 if threads == 1 else False,
        clean_share=min(shares),
        rounds=min(baseline.wall_s.size, candidate.wall_s.size),
        rebuilds=min(rebuilds),
    )


def change_of_ratio(
    before: tuple[Timings, Timings],
    after: tuple[Timings, Timings],
    *,
    threads: int | None = 1,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """How a paired ratio changed from one occasion to another: the later ratio over the earlier one, with a 95 % interval.

    On both occasions the same baseline was timed in the rounds of the candidate, so that what the machine did differently
    falls out, as far as it did it to both. With several threads that is by wall time, otherwise by the clock that suits the
    busier of the two occasions.

    Args:
        before: samples of the baseline and of the candidate on the first occasion, in the same rounds.
        after: the same on the second.
        threads: what all ran with; None is the runtime's own number.
        resamples: how many bootstrap samples are drawn.
        seed: of those draws.

    Raises:
        ValueError: the two of an occasion were not taken in the same rounds.
    """
    chosen = [choose_clock(pair, threads) for pair in (before, after)]
    clock: Clock = "cpu" if any(each == "cpu" for each, _ in chosen) else "wall"
    dice = np.random.default_rng(seed)
    found = [
        (groups, *_bootstrap(groups, resamples, dice))
        for groups in (_paired_logs(*pair, threads, clock) for pair in (before, after))
    ]
    (old, old_middle, old_draws), (new, new_middle, new_draws) = found
    lo, hi = (float(value) for value in np.percentile(new_draws - old_draws, (2.5, 97.5)))
    share = min(each for _, each in chosen)
    return Ratio(
        median=math.exp(new_middle - old_middle),
        lo=math.exp(lo),
        hi=math.exp(hi),
        clock=clock,
        noisy=share < 0.5 if threads == 1 else False,
        clean_share=share,
        rounds=min(sum(group.size for group in groups) for groups in (old, new)),
        rebuilds=min(len(old), len(new)),
    )


def _paired_logs(
    baseline: Timings, candidate: Timings, threads: int | None, clock: Clock
) -> list[Floats]:
    """Log ratios of the rounds, one array a rebuild; with one thread and wall time only of rounds in which neither waited.

    Raises:
        ValueError: the two were not taken in the same rounds.
    """
    if not np.array_equal(baseline.rebuild, candidate.rebuild):
        msg = "only samples of the same rounds can be paired: measure the two models together"
        raise ValueError(msg)
    log_ratio: Floats = np.log(candidate.on(clock)) - np.log(baseline.on(clock))
    rebuild = baseline.rebuild
    if clock == "wall" and threads == 1:
        both = baseline.is_clean & candidate.is_clean
        if both.sum() >= max(FEWEST_CLEAN, rebuild.size // 4):
            log_ratio, rebuild = log_ratio[both], rebuild[both]
    return [log_ratio[rebuild == which] for which in np.unique(rebuild)]


def _bootstrap(
    groups: Sequence[Floats], resamples: int, dice: np.random.Generator
) -> tuple[float, Floats]:
    """Mean of the groups' medians, and `resamples` draws of what it might have been."""
    count = len(groups)
    medians = np.array([np.median(group) for group in groups])
    redrawn = np.stack([_resampled_medians(group, resamples, dice) for group in groups])
    # What the rounds leave unexplained is what the sessions themselves differ by.
    within = float(redrawn.var(axis=1).mean())
    between = max(0.0, float(medians.var(ddof=1)) - within) if count > 1 else 0.0
    freedom = SESSION_WEIGHT + count - 1
    moderated = (SESSION_WEIGHT * SESSION_SD**2 + (count - 1) * between) / freedom
    # What is known in general may widen the interval; it never talks down what was seen here.
    variance = max(moderated, between)
    sessions = math.sqrt(variance / count) * dice.standard_t(freedom, resamples)
    middle = float(medians.mean())
    draws: Floats = middle + (redrawn.mean(axis=0) - redrawn.mean()) + sessions
    return middle, draws


def _resampled_medians(group: Floats, resamples: int, dice: np.random.Generator) -> Floats:
    """Medians of bootstrap samples of `group`, without drawing the samples.

    A bootstrap sample is the empirical quantile function at n uniform numbers, so its median is that function at the
    median of n uniform numbers, which follows the Beta((n+1)/2, (n+1)/2) distribution (exactly so for odd n).
    """
    half = (group.size + 1) / 2
    position = dice.beta(half, half, resamples) * group.size
    medians: Floats = np.sort(group)[np.minimum(position.astype(np.int64), group.size - 1)]
    return medians
