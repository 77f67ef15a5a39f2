"""A search with several seeds, and the verdict on what it finds: whether the tickets are winning ones.

For each seed the whole search is made: a dense network, the rounds and the ticket; then the ticket's mask is trained on new
weights, and a random mask of the same structure. The first seed's search lies in the folder itself, the others' in `seeds/`.
Killed and started again, it goes on where it was, as a search does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.atomic import write_whole
from deploykit.errors import UsageError
from deploykit.finder.contrasts import RANDOM, REINIT
from deploykit.finder.efficiency import Efficiency, find_efficiency
from deploykit.finder.engine import Engine
from deploykit.finder.metrics import Row, as_record
from deploykit.finder.progress import Progress, Status, silent
from deploykit.finder.search import Result, Settings, search
from deploykit.finder.store import VERDICT
from deploykit.finder.task import Task
from deploykit.finder.verdict import FEWEST_SEEDS, MARGIN, Comparison, Verdict, judge

__all__ = ["SEEDS", "Trial", "try_seeds"]

SEEDS = "seeds"


@dataclasses.dataclass(frozen=True)
class Trial:
    """Searches that differ in their seeds alone, and what they amount to.

    Attributes:
        results: one for each seed; the first one's ticket is the one that is told.
        verdict: on the tickets, by the metrics of the test examples.
    """

    results: tuple[Result, ...]
    verdict: Verdict

    def rows(self, arm: str) -> tuple[Row, ...]:
        """The networks of one arm, one for each seed.

        Args:
            arm: its name in the verdict.
        """
        if arm in (REINIT, RANDOM):
            return tuple(result.contrasts[arm] for result in self.results)
        return tuple(result.rows[0 if arm == "dense" else -1] for result in self.results)

    def weights(self, arm: str) -> int:
        """Parameters that the networks of an arm have left, those that are never pruned as well; the mean over the seeds."""
        rows = self.rows(arm)
        dense = self.results[0].parameters
        return round(math.fsum(dense - row.total + row.kept for row in rows) / len(rows))

    def efficiency(self, arm: str) -> Efficiency | None:
        """The parameter efficiency of an arm's mean; None where the metric is no part of 1, as an accuracy is."""
        mean = next(each.mean for each in self.verdict.arms if each.name == arm)
        weights = self.weights(arm)
        return find_efficiency(mean, weights) if 0.0 <= mean <= 1.0 and weights else None

    def document(self, command: str) -> dict[str, Any]:
        """What `find --json` prints for a search with several seeds; the schema is `find.schema.json`.

        Args:
            command: the command line.
        """
        return {**self.results[0].document(command), "verdict": self.record()}

    def record(self) -> dict[str, Any]:
        """The verdict in JSON's types, as `verdict.json` holds it."""
        found = self.verdict
        return {
            "wins": found.wins,
            "said": found.said,
            "arms": [
                {
                    "name": arm.name,
                    "mean": arm.mean,
                    "std": arm.std,
                    "weights": self.weights(arm.name),
                    "efficiency": _efficiency_record(self.efficiency(arm.name)),
                    "networks": [
                        {"seed": result.settings["seed"], **as_record(row)}
                        for result, row in zip(self.results, self.rows(arm.name), strict=True)
                    ],
                }
                for arm in found.arms
            ],
            "matches_dense": _comparison_record(found.matches_dense),
            "beats_reinit": _comparison_record(found.beats_reinit),
            "beats_random": _comparison_record(found.beats_random),
        }


def _efficiency_record(found: Efficiency | None) -> dict[str, Any] | None:
    return None if found is None else dataclasses.asdict(found)


def _comparison_record(found: Comparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    # JSON has no infinity: a test without any spread has no finite statistic.
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(found).items()
    }


def try_seeds(
    task: Task,
    settings: Settings,
    folder: Path,
    seeds: Sequence[int],
    *,
    margin: float = MARGIN,
    engine: Engine | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Trial:
    """Search with several seeds, train what tickets are held against, and judge.

    Args:
        task: what the network is to learn.
        settings: what to search for; its seed is not used.
        folder: for the first seed's search, with `seeds/NUMBER` for each other one, and `verdict.json`.
        seeds: three or more.
        margin: how far below the dense network the tickets may be, in units of the metric.
        engine: where to train; one process on the CPU by default.
        force: whether other searches in the folder may be replaced.
        progress: told after every epoch.

    Raises:
        UsageError: fewer than three seeds, or one twice; or as `search` does.
        ModelError: as `search` does.
    """
    if len(set(seeds)) < FEWEST_SEEDS or len(set(seeds)) < len(seeds):
        msg = f"a verdict takes at least {FEWEST_SEEDS} different seeds, and these are {', '.join(map(str, seeds))}."
        raise UsageError(msg)
    results = []
    for index, seed in enumerate(seeds):
        place = folder if not index else folder / SEEDS / str(seed)
        mine = dataclasses.replace(settings, seed=seed, contrasts=True)
        told = _share_progress(progress, index, len(seeds))
        results.append(search(task, mine, place, engine=engine, force=force, progress=told))
    found = [result.rows for result in results]
    held = {arm: [result.contrasts[arm].test for result in results] for arm in (REINIT, RANDOM)}
    verdict = judge(
        [rows[0].test for rows in found],
        [rows[-1].test for rows in found],
        held[REINIT],
        held[RANDOM],
        margin=margin,
    )
    trial = Trial(tuple(results), verdict)
    if engine is None or engine.rank == 0:
        _save(folder / VERDICT, trial.record())
    return trial


def _share_progress(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one seed's search as a part of all."""

    def told(status: Status) -> None:
        left_s = status.left_s
        if left_s is not None and status.done < 1.0:
            left_s += (count - index - 1) * left_s / (1.0 - status.done)
        progress(
            dataclasses.replace(
                status,
                done=(index + status.done) / count,
                left_s=left_s,
                seed=f"seed {index + 1} of {count}",
            )
        )

    return told


def _save(path: Path, record: Mapping[str, Any]) -> None:
    try:
        write_whole(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        msg = f"cannot write '{path}': {error.strerror}. The networks are kept: start the same command again."
        raise UsageError(msg) from error
