"""Lottery tickets with structure: what they keep of the accuracy, whether they win, and the time that they save.

    python -m benchmarks.tickets [--case NAME,...] [--seeds 0,1,2] [--minutes 60] [--no-time] [--quick]

Four networks on real data, six densities that are fixed beforehand, three seeds. For each seed a dense network is trained and
pruned step by step (20 to 33 % of the remaining weights a step, by magnitude over all layers, heads left alone), rewound to the
weights of an early epoch. Every density's mask, and what each structure makes of it, is trained from those weights:

* imp: the mask as it is;
* refill, refill+: whole channels, all that are tied together at once;
* regroup-element, regroup-channel: dense blocks of single columns, or of whole input channels.

Verdicts come from `deploykit.finder.verdict`: a ticket matches dense if a one-sided test over the seeds rejects that it is 0.3
points below or worse, and wins if it beats re-initialisation as well. So once all seeds of these are there, those that match, and
the targets (refill at 0.5, regroup at 0.3), have their masks trained on newly drawn weights from the beginning ("-reinit"). The
targets and the sparsest that match have random masks of their structure beside them ("-random": the mask and the weights it is
scored by, shuffled within each layer). "Extreme" is the sparsest network with a verdict, counted as it is: by its weights left.

The time is that of the first seed's tickets: exported, optimized as a user would, and timed against the export that was not,
in ONNX Runtime, one thread, batch 1. `share of FLOPs` is the time saved over the multiply-adds saved, `zero channels left` counts
the rows of zeros in the weights of what came of it.

Every trained network is a row of a state file, and every mask a file beside it; started again, it does what is missing, and
`--case` and `--seeds` let several run side by side. Data: see `deploykit.finder.tasks`. Exit code 1 if a target is missed, 3 if
rows are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from benchmarks import results
from deploykit.errors import UsageError
from deploykit.finder import datasets
from deploykit.finder.contrasts import NEW_WEIGHTS, shuffle_masks
from deploykit.finder.networks import resnet, vgg
from deploykit.finder.ranking import count_kept
from deploykit.finder.seeds import derive
from deploykit.finder.sources import SOURCES, Context
from deploykit.finder.structuring import Structure, apply_structure
from deploykit.finder.task import Data
from deploykit.finder.tasks.images import Fashion, Mnist
from deploykit.finder.tasks.signals import Watch
from deploykit.finder.training import Trainer
from deploykit.finder.verdict import ALPHA, MARGIN, Verdict, judge
from deploykit.ticket import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from deploykit.finder.task import Task

Row: TypeAlias = dict[str, Any]
Arrays: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"

INCOMPLETE = 3
SEEDS = (0, 1, 2)
DENSITIES = (0.8, 0.64, 0.5, 0.4, 0.3, 0.2)
STRUCTURES: dict[str, Structure | None] = {
    "imp": None,
    "refill": Structure("refill", multiple=8, match="weights"),
    "refill+": Structure("refill+", multiple=8, match="weights"),
    "regroup-element": Structure("regroup", columns="element"),
    "regroup-channel": Structure("regroup", columns="channel"),
}
SHUFFLED = ("imp", "refill", "regroup-channel")
"""What a random mask is made of as well."""

TARGETS = {("refill", 0.5), ("regroup-element", 0.3), ("regroup-channel", 0.3)}
"""That should match the dense network: half of the channels gone, or 70 % of the weights. New weights and random masks are tried
there whether they do or not."""

WIDE = ("fashion-vgg32", "mnist-lenet")
"""Networks that are wide enough, with 32 channels or more in every layer, for saved multiply-adds to become time."""

SHARE = 0.85
"""How much of the multiply-adds saved should be time saved there."""

VALIDATION = 500
"""Examples that are looked at after every epoch; nothing depends on them."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its data and how it is trained.

    Attributes:
        task: makes it.
        epochs: of each training run.
        rewind: the epoch that tickets start from.
    """

    task: Callable[[], Task]
    epochs: int
    rewind: int


class Pictures(Fashion):
    """Fashion-MNIST with few examples to validate on: a sixth of the time of an epoch would go there."""

    def data(self) -> Data:
        """10,000 pictures to learn from, and 10,000 to test on."""
        train, validation, test = datasets.fashion_mnist(10_000)
        few = tuple(tensor[:VALIDATION] for tensor in validation)
        return Data(train=train, validation=(few[0], few[1]), test=test)


CASES = {
    "fashion-resnet8": Case(lambda: Pictures("fashion_resnet8", lambda: resnet(8)), 6, 1),
    "fashion-vgg32": Case(lambda: Pictures("fashion_vgg", lambda: vgg(width=32)), 6, 1),
    "mnist-lenet": Case(lambda: Mnist(20_000), 8, 0),
    "watch-cnn": Case(Watch, 20, 1),
}


class Bench:
    """One case with one seed.

    Args:
        name: of the case.
        seed: of everything random.
        folder: for masks and weights.
        state: the file with the rows.
        end: when to stop, by the monotonic clock.
    """

    def __init__(self, name: str, seed: int, folder: Path, state: Path, end: float) -> None:
        self.name, self.seed, self.state, self.end = name, seed, state, end
        self.case = CASES[name]
        self.folder = folder / name / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(self.case.task(), seed=seed, epochs=self.case.epochs)
        self.done = {key(row) for row in read(state)}

    def run(self) -> None:
        """Do what is missing."""
        dense, start = self.dense()
        previous = dense
        for number, density in enumerate(DENSITIES, 1):
            mask = self.pruned(number, density, previous)
            found = self.train("imp", density, number, start, mask)
            for arm, structure in STRUCTURES.items():
                scored = dict(previous.weights)
                if structure is not None:
                    made = self.structured(arm, density, structure, mask, scored)
                    self.train(arm, density, number, start, made)
            previous = found

    def contrast(self, wanted: Sequence[tuple[str, float]]) -> None:
        """Train what tickets are held against.

        Args:
            wanted: as `second_stage` names them.
        """
        dense, start = self.dense()
        again = self.trainer.initial(self.seed + NEW_WEIGHTS)
        for label, density in wanted:
            arm, way = label.rsplit("-", 1)
            number = DENSITIES.index(density) + 1
            if way == "reinit":
                masks = self.load(arm, density).masks
                self.train(label, density, number, again, masks, first=0)
                continue
            before = self.load("imp", DENSITIES[number - 2]) if number > 1 else dense
            mask, weights = shuffle_masks(
                self.load("imp", density).masks, before.weights, self.seed, number
            )
            structure = STRUCTURES[arm]
            if structure is not None:
                mask = self.structured(label, density, structure, mask, weights)
            self.train(label, density, number, start, mask)

    def load(self, arm: str, density: float) -> Ticket:
        """A ticket that was trained."""
        return Ticket.load(self.folder / f"{arm}-{density}.safetensors")

    def dense(self) -> tuple[Ticket, dict[str, Any]]:
        """The dense network, and the weights that tickets start from."""
        path, early = self.folder / "dense.safetensors", self.folder / "start.safetensors"
        if not (path.exists() and early.exists()):
            kept: dict[str, Any] = dict(self.trainer.initial())

            def after_epoch(live: Any) -> None:
                if live.epoch == self.case.rewind:
                    kept.update(live.weights())

            began = time.process_time()
            trained = self.trainer.train(self.trainer.initial(), {}, after_epoch=after_epoch)
            Ticket({}, kept).save(early)
            Ticket({}, trained.weights).save(path)
            self.write("dense", 1.0, 1.0, trained, time.process_time() - began)
        return Ticket.load(path), dict(Ticket.load(early).weights)

    def pruned(self, number: int, density: float, previous: Ticket) -> dict[str, Any]:
        """The mask of a density: the largest of what the one before it left."""
        names = self.trainer.names
        total = sum(previous.weights[name].size for name in names)
        left = {
            name: previous.masks.get(name, np.ones(previous.weights[name].shape, np.bool_))
            for name in names
        }
        return dict(
            SOURCES["imp"].choose(
                Context(
                    self.trainer.task,
                    self.trainer.model_with(previous.weights),
                    names,
                    round(density * total),
                    left,
                    (),
                    derive(self.seed, f"source {number}"),
                )
            )
        )

    def structured(
        self, arm: str, density: float, structure: Structure, mask: Arrays, weights: Arrays
    ) -> dict[str, Any]:
        """A mask with a structure; made once."""
        path = self.folder / f"{arm}-{density}.masks.safetensors"
        if not path.exists():
            self.check_time()
            made = apply_structure(self.trainer, structure, mask, weights)
            zeros = {
                name: np.zeros(array.shape, np.float32) for name, array in made.masks.items()
            }
            notes = {"notes": list(made.notes)}
            Ticket(made.masks, zeros, made.blocks, notes).save(path)
        return dict(Ticket.load(path).masks)

    def train(
        self,
        arm: str,
        density: float,
        number: int,
        start: Arrays,
        masks: Arrays,
        *,
        first: int | None = None,
    ) -> Ticket:
        """Train one network and write its row; the ticket is kept of what is pruned further or timed."""
        path = self.folder / f"{arm}-{density}.safetensors"
        is_kept = arm in STRUCTURES
        if (self.name, self.seed, arm, density) in self.done and (path.exists() or not is_kept):
            return self.load(arm, density) if is_kept else Ticket({}, {})
        self.check_time()
        began = time.process_time()
        trained = self.trainer.train(
            start,
            masks,
            number=number,
            first_epoch=self.case.rewind if first is None else first,
        )
        names = self.trainer.names
        kept = count_kept(masks) + sum(
            trained.weights[name].size for name in names if name not in masks
        )
        left = kept / sum(trained.weights[name].size for name in {*names, *masks})
        ticket = Ticket(dict(masks), trained.weights)
        if is_kept:
            ticket.save(path)
        self.write(arm, density, left, trained, time.process_time() - began)
        return ticket

    def write(self, arm: str, density: float, left: float, trained: Any, cpu_s: float) -> None:
        """Append a row."""
        row = {
            "case": self.name,
            "seed": self.seed,
            "arm": arm,
            "density": density,
            "left": round(left, 4),
            "accuracy": round(trained.test, 5),
            "validation": round(trained.validation, 5),
            "cpu_s": round(cpu_s, 1),
        }
        append(self.state, row)
        self.done.add(key(row))
        print(json.dumps(row), file=sys.stderr, flush=True)

    def check_time(self) -> None:
        """Stop when the time is up."""
        if time.monotonic() > self.end:
            raise TimeoutError


def time_saved(name: str, seed: int, arm: str, density: float, folder: Path) -> Row:
    """Optimize a ticket as a user would, and time it against its export."""
    import onnx
    import onnx_ir as ir

    from benchmarks.masks import zero_rows
    from deploykit.export import export
    from deploykit.pipeline import Request, optimize
    from deploykit.recipe import Recipe

    path = folder / name / f"seed{seed}" / f"{arm}-{density}.safetensors"
    trainer = Trainer(CASES[name].task(), seed=seed, epochs=1)
    ticket = Ticket.load(path)
    model = trainer.model_with(ticket.weights).to("cpu").eval()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.onnx"
        ir.save(export(model, trainer.task.example_inputs()), source)
        out = Path(scratch) / "out"
        report = optimize(Request(source, Recipe(), "benchmarks.tickets"), out)
        zeros = [each.zeros for each in zero_rows(onnx.load(out / "model.onnx"))]
        chosen = [each.name for each in report.candidates if each.chosen]
    ratio = report.profile.ratio.median if report.profile is not None else 1.0
    ci95 = list(report.profile.ratio.ci95) if report.profile is not None else [1.0, 1.0]
    macs, parameters = report.size.macs, report.size.parameters
    return {
        "case": name,
        "seed": seed,
        "arm": arm,
        "density": density,
        "verdict": report.verdict,
        "error": report.validation.max_rel_error if report.validation else None,
        "ratio": round(ratio, 4),
        "ci95": [round(end, 4) for end in ci95],
        "macs": round((macs.after or 0) / (macs.before or 1), 4),
        "parameters": round((parameters.after or 0) / (parameters.before or 1), 4),
        "chosen": chosen[0] if chosen else "original",
        "zero_channels_left": sum(zeros),
    }


def key(row: Mapping[str, Any]) -> tuple[str, int, str, float]:
    """What a row is of."""
    return row["case"], row["seed"], row["arm"], row["density"]


def read(path: Path) -> list[Row]:
    """The rows of a state file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: Row) -> None:
    """Add a row to a file that others may be adding to."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row) + "\n")


def first_stage() -> Iterator[tuple[str, float]]:
    """All that is trained for every seed."""
    yield "dense", 1.0
    for density in DENSITIES:
        for arm in STRUCTURES:
            yield arm, density


def second_stage(rows: Sequence[Row], case: str) -> list[tuple[str, float]]:
    """New weights and random masks that a verdict takes, by arm and density; none before the first stage is whole."""
    there = {key(row) for row in rows}
    if any((case, seed, *each) not in there for each in first_stage() for seed in SEEDS):
        return []
    matching = {
        (arm, density)
        for arm in STRUCTURES
        for density in DENSITIES
        if (found := judged(rows, case, arm, density)) and found.matches_dense.proven
    }
    sparsest = {
        (arm, min(density for each, density in matching if each == arm))
        for arm in {arm for arm, _ in matching}
    }
    again = [(f"{arm}-reinit", density) for arm, density in sorted(matching | TARGETS)]
    shuffled = [
        (f"{arm}-random", density)
        for arm, density in sorted(sparsest | TARGETS)
        if arm in SHUFFLED
    ]
    return [*again, *shuffled]


def judged(rows: Sequence[Row], case: str, arm: str, density: float) -> Verdict | None:
    """The verdict on an arm, once all its seeds are there; what it is held against counts if all of its are."""

    def of(name: str, at: float) -> list[float]:
        found = {row["seed"]: row["accuracy"] for row in rows if key(row)[2:] == (name, at)}
        return [found[seed] for seed in sorted(found)]

    rows = [row for row in rows if row["case"] == case]
    beside = (of(f"{arm}-{way}", density) for way in ("reinit", "random"))
    reinit, random = (found if len(found) >= len(SEEDS) else None for found in beside)
    try:
        return judge(of("dense", 1.0), of(arm, density), reinit, random)
    except UsageError:
        return None


def tables(rows: Sequence[Row], times: Sequence[Row]) -> str:
    """All cases, as Markdown."""
    parts = []
    timed = {key(row): row for row in times}
    for case in CASES:
        mine = [row for row in rows if row["case"] == case]
        dense = [row["accuracy"] for row in mine if row["arm"] == "dense"]
        if not dense:
            continue
        parts.append(f"\n## {case}\n\ndense: {told(dense)}, {len(dense)} seeds\n")
        parts.append(
            "| ticket | mask's density | weights left | accuracy | less dense, points | p | re-initialised | p | random mask | "
            "verdict | time | 95 % | share of FLOPs | zero channels left |\n|" + "---|" * 14
        )
        for arm in STRUCTURES:
            for density in DENSITIES:
                here = [row for row in mine if key(row)[2:] == (arm, density)]
                if here:
                    parts.append(line(rows, case, arm, density, here, timed))
        parts.append(f"\n{extremes(rows, case)}")
    return "\n".join(parts)


def line(
    rows: Sequence[Row],
    case: str,
    arm: str,
    density: float,
    here: Sequence[Row],
    timed: Mapping[tuple[str, int, str, float], Row],
) -> str:
    """One ticket, as a row of Markdown."""
    found = judged(rows, case, arm, density)
    mine = [row for row in rows if row["case"] == case]

    def of(name: str) -> str:
        metrics = [row["accuracy"] for row in mine if key(row)[2:] == (name, density)]
        return told(metrics) if metrics else ""

    time_row = timed.get((case, SEEDS[0], arm, density))
    share = share_of_flops(time_row)
    cells = [
        arm,
        f"{density:g}",
        f"{100 * np.mean([row['left'] for row in here]):.1f} %",
        told([row["accuracy"] for row in here]),
        f"{100 * found.matches_dense.difference:+.2f}" if found else "",
        f"{found.matches_dense.p:.2g}" if found else "",
        of(f"{arm}-reinit"),
        f"{found.beats_reinit.p:.2g}" if found and found.beats_reinit else "",
        of(f"{arm}-random"),
        verdict_word(found),
        f"{time_row['ratio']:.3f}" if time_row else "",
        f"{time_row['ci95'][0]:.3f} to {time_row['ci95'][1]:.3f}" if time_row else "",
        "" if share is None else f"{share:.2f}",
        str(time_row["zero_channels_left"]) if time_row else "",
    ]
    return "| " + " | ".join(cells) + " |"


def share_of_flops(row: Row | None) -> float | None:
    """Time saved over multiply-adds saved; None where none were."""
    if row is None or row["macs"] > 0.98:
        return None
    return float((1 - row["ratio"]) / (1 - row["macs"]))


def verdict_word(found: Verdict | None) -> str:
    """The verdict in a word or two."""
    if found is None:
        return ""
    return "**wins**" if found.wins else "matches dense" if found.matches_dense.proven else "no"


def told(metrics: Sequence[float]) -> str:
    """Mean and standard deviation, in points."""
    deviation = f" ± {100 * float(np.std(metrics, ddof=1)):.2f}" if len(metrics) > 1 else ""
    return f"{100 * float(np.mean(metrics)):.2f}{deviation}"


def extremes(rows: Sequence[Row], case: str) -> str:
    """The sparsest network of each structure with a verdict."""
    parts = []
    for arm in STRUCTURES:
        best: dict[str, float] = {}
        for density in DENSITIES:
            found = judged(rows, case, arm, density)
            here = [
                row["left"]
                for row in rows
                if key(row)[2:] == (arm, density) and row["case"] == case
            ]
            if found is None or not found.matches_dense.proven:
                continue
            sparsity = 100 * (1 - float(np.mean(here)))
            best["matches dense"] = max(best.get("matches dense", -math.inf), sparsity)
            if found.wins:
                best["wins"] = max(best.get("wins", -math.inf), sparsity)
        told_of = ", ".join(f"{word} to {value:.0f} %" for word, value in best.items())
        parts.append(f"{arm}: {told_of or 'at no density tried'}")
    return "Extreme sparsity. " + "; ".join(parts) + "."


def targets(rows: Sequence[Row], times: Sequence[Row]) -> list[tuple[str, bool]]:
    """What should come out, each with whether it did; nothing of what is not there yet.

    Args:
        rows: of training.
        times: rows of timing.
    """
    found = []
    for case in CASES:
        for arm, density in sorted(TARGETS):
            verdict = judged(rows, case, arm, density)
            if verdict is not None:
                match = verdict.matches_dense
                text = (
                    f"{case}, {arm} at {density:g}: {100 * match.difference:+.2f} points to dense, "
                    f"p = {match.p:.2g} that it is {100 * match.margin:g} points below"
                )
                found.append((text, match.proven))
    for row in times:
        share = share_of_flops(row)
        if (
            row["case"] in WIDE
            and (row["arm"], row["density"]) in TARGETS
            and share is not None
        ):
            text = f"{row['case']}, {row['arm']} at {row['density']:g}: {share:.2f} of the multiply-adds saved are time"
            found.append((text, share >= SHARE))
    return found


def told_targets(found: Sequence[tuple[str, bool]]) -> str:
    """Targets as a list in Markdown."""
    lines = [f"- {text}: {'met' if met else '**missed**'}" for text, met in found]
    about = (
        f"Targets: less than {100 * MARGIN:g} points below dense, with one-sided p below {ALPHA:g}, and {SHARE:g} of the "
        "multiply-adds saved become time on networks of width 32 or more."
    )
    return "\n".join([about, "", *lines]) if lines else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and time what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", default=",".join(CASES), help="networks")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after that")
    parser.add_argument("--no-time", action="store_true", help="train only")
    parser.add_argument("--no-train", action="store_true", help="time and print what is there")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/tickets"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    state, timing = options.folder / "rows.jsonl", options.folder / "times.jsonl"
    end = time.monotonic() + 60 * options.minutes
    names = options.case.split(",")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    try:
        for name in names if not options.no_train else ():
            for seed in seeds:
                Bench(name, seed, options.folder, state, end).run()
            for seed in seeds:
                wanted = second_stage(read(state), name)
                Bench(name, seed, options.folder, state, end).contrast(wanted)
        rows = read(state)
        timed = {key(row) for row in read(timing)}
        for row in rows if not options.no_time else ():
            is_timed = (
                row["arm"] in STRUCTURES and row["arm"] != "imp" and row["seed"] == SEEDS[0]
            )
            if is_timed and row["case"] in names and key(row) not in timed:
                if time.monotonic() > end:
                    raise TimeoutError  # noqa: TRY301 - as in training
                found = time_saved(*key(row), options.folder)
                append(timing, found)
                print(json.dumps(found), file=sys.stderr, flush=True)
    except TimeoutError:
        print("The time is up: start it again.", file=sys.stderr)
    rows, times = read(state), read(timing)
    there = {key(row) for row in rows}
    missing = 0
    for case in CASES:
        beside = second_stage(rows, case)
        wanted_rows = [*first_stage(), *beside]
        missing += sum(
            (case, seed, *each) not in there for each in wanted_rows for seed in SEEDS
        )
        missing += not beside
    found_targets = targets(rows, times)
    table = f"{told_targets(found_targets)}\n{tables(rows, times)}"
    print(table)
    if rows:
        about = f"{len(rows)} networks trained" + (
            f", {missing} or more missing." if missing else "."
        )
        both = [
            *({"kind": "training", **row} for row in rows),
            *({"kind": "time", **row} for row in times),
        ]
        results.save("tickets", both, "Structured lottery tickets", f"{about}\n{table}")
    if missing:
        print(f"{missing} networks or more are missing: start it again.", file=sys.stderr)
        return INCOMPLETE
    return 0 if all(met for _, met in found_targets) else 1


if __name__ == "__main__":
    sys.exit(main())
