"""N:M training: what 2:4 masks cost in accuracy, and how much they change while they are trained.

    python -m benchmarks.nm [--case NAME,...] [--seeds 0,1,2] [--minutes 60]

Two networks on 10,000 pictures of Fashion-MNIST, three seeds, 2:4 along the input channels in the order in which they came:

* dense;
* asp: the mask of the trained dense network, which is then trained through the whole schedule once more, so with twice the
  steps of the others;
* ste, sr-ste: a mask chosen anew at every step, from the initial weights of the dense network, with its steps;
* sr-ste-transposable: masks that obey along outputs, too.

The decay of SR-STE is four times the weight decay of the task, 2e-3: the authors' 2e-4 is four times theirs.

Every network is a row of a state file; started again, it trains what is missing. Exit code 0: every target is met; 1: one is
missed; 3: networks are missing. Targets, by the means over the seeds: SR-STE at most 0.3 points below dense and at most 0.2
below STE; fewer changes of masks (SAD) than STE; and every layer that can obey does so in the exported model.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from benchmarks import results
from benchmarks.tickets import Pictures, append, read, told
from deploykit.export import export_tracked
from deploykit.finder.networks import resnet, vgg
from deploykit.finder.nm import Pattern
from deploykit.finder.nm.layers import find_eligible
from deploykit.finder.nm.sad import per_weight
from deploykit.finder.nm.straight_through import StraightThrough, choose_masks
from deploykit.finder.training import Trainer
from deploykit.ticket import Ticket
from passes.analysis import patterns
from passes.weights import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    from deploykit.finder.masking import Masking

Row: TypeAlias = dict[str, Any]

INCOMPLETE, MISSED = 3, 1
SEEDS = (0, 1, 2)
EPOCHS = 6
DECAY = 2e-3
BELOW_DENSE, BELOW_STE = 0.003, 0.002

CASES: dict[str, Callable[[], nn.Module]] = {
    "fashion-vgg32": lambda: vgg(width=32),
    "fashion-resnet8": lambda: resnet(8),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        pattern: None for the dense network.
        decay: of what is dropped, where masks are chosen at every step; None where they stay.
    """

    pattern: Pattern | None = None
    decay: float | None = None


ARMS = {
    "dense": Arm(),
    "ste": Arm(Pattern(), 0.0),
    "sr-ste": Arm(Pattern(), DECAY),
    "asp": Arm(Pattern()),
    "sr-ste-transposable": Arm(Pattern(transposable=True), DECAY),
}

COMPARED = ("dense", "ste", "sr-ste")


class Bench:
    """One case with one seed.

    Args:
        name: of the case.
        seed: of everything random.
        folder: for the networks and the state file.
    """

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name, self.seed = name, seed
        self.state = folder / "rows.jsonl"
        self.folder = folder / name / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trainer = Trainer(Pictures(name, CASES[name]), seed=seed, epochs=EPOCHS)

    def run(self, arm: str) -> None:
        """Train one network, look at its export, and write its row."""
        rule, trainer = ARMS[arm], self.trainer
        start, masks, masking = trainer.initial(), {}, None
        names: tuple[str, ...] = ()
        if rule.pattern is not None:
            names = find_eligible(trainer.fresh_model(), trainer.names, rule.pattern).names
        if rule.pattern is not None and rule.decay is not None:
            masking = StraightThrough(names, rule.pattern, rule.decay)
        elif rule.pattern is not None:
            start = dict(Ticket.load(self.folder / "dense.safetensors").weights)
            tensors = [torch.from_numpy(np.array(start[name])) for name in names]
            masks = choose_masks(tensors, names, rule.pattern)
        began = time.process_time()
        trained = trainer.train(start, masks, number=int(arm != "dense"), masking=masking)
        cpu_s = time.process_time() - began
        Ticket(trained.masks, trained.weights).save(self.folder / f"{arm}.safetensors")
        masked = sum(start[name].size for name in names)
        row = {
            "case": self.name,
            "seed": self.seed,
            "arm": arm,
            "accuracy": round(trained.test, 5),
            "validation": round(trained.validation, 5),
            "masked": masked,
            "sad": sum(sum(each.flips) for each in trained.epochs) if masking else None,
            "sad_per_weight": [
                round(per_weight(each, masked), 7) for each in trained.epochs if masking
            ],
            "eligible": len(names),
            "obeying": self.count_obeying(trained.weights, names),
            "cpu_s": round(cpu_s, 1),
        }
        append(self.state, row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    def count_obeying(self, weights: Mapping[str, Any], names: Sequence[str]) -> int:
        """Eligible layers whose initializer obeys 2:4 in the exported model, exactly."""
        if not names:
            return 0
        model = self.trainer.model_with(weights).to("cpu").eval()
        exported = export_tracked(model, self.trainer.task.example_inputs())
        found = 0
        for initializer, origin in exported.origins.items():
            array = constant(exported.model.graph.initializers[initializer])
            if origin.name in names and array is not None:
                axis = 0 if origin.is_transposed else 1
                found += patterns.obeys(np.asarray(array), axis, patterns.TWO_OF_FOUR)
        return found


class Timed:
    """A masking whose time is added up.

    Args:
        made: the masking.
    """

    def __init__(self, made: Masking) -> None:
        self._made = made
        self.cpu_s = 0.0

    @contextlib.contextmanager
    def _adding(self) -> Iterator[None]:
        began = time.process_time()
        yield
        self.cpu_s += time.process_time() - began

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Count what lies before and behind what is done in it."""
        with contextlib.ExitStack() as stack:
            with self._adding():
                stack.enter_context(self._made.applied())
            yield
            with self._adding():
                stack.close()

    def correct_gradients(self, scale: float) -> None:
        """Count it."""
        with self._adding():
            self._made.correct_gradients(scale)

    def follow(self) -> None:
        """Count it."""
        with self._adding():
            self._made.follow()

    def take_flips(self) -> tuple[int, ...]:
        """Pass it on."""
        return self._made.take_flips()

    def masks(self) -> dict[str, Any]:
        """Pass it on."""
        return self._made.masks()


def measure_share(case: str, arm: str) -> Row:
    """How much of the CPU time of an epoch goes to masks: choosing them, putting them on, the decay, and SAD."""
    trainer = Trainer(Pictures(case, CASES[case]), epochs=1)
    pattern, decay = ARMS[arm].pattern, ARMS[arm].decay
    names = find_eligible(trainer.fresh_model(), trainer.names, pattern or Pattern()).names
    rule = StraightThrough(names, pattern or Pattern(), decay or 0.0)
    made: list[Timed] = []

    def timed(model: nn.Module, optimizer: Optimizer) -> Masking:
        made.append(Timed(rule(model, optimizer)))
        return made[0]

    began = time.process_time()
    trainer.train(trainer.initial(), {}, masking=timed)
    return {
        "case": case,
        "arm": arm,
        "share": round(made[0].cpu_s / (time.process_time() - began), 5),
    }


def key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    """What a row is of."""
    return row["case"], row["seed"], row["arm"]


def column(rows: Sequence[Row], case: str, arm: str, name: str) -> list[Any]:
    """What a case's networks of one arm came to, by seed."""
    found = {row["seed"]: row[name] for row in rows if (row["case"], row["arm"]) == (case, arm)}
    return [found[seed] for seed in sorted(found)]


def targets(rows: Sequence[Row], case: str) -> list[tuple[str, bool]]:
    """What a case is to reach, in words, and whether it does."""
    means = {arm: float(np.mean(column(rows, case, arm, "accuracy"))) for arm in ARMS}
    sad = {arm: float(np.mean(column(rows, case, arm, "sad"))) for arm in ("ste", "sr-ste")}
    to_dense, to_ste = means["sr-ste"] - means["dense"], means["sr-ste"] - means["ste"]
    sparse = [row for row in rows if row["case"] == case and row["eligible"]]
    obeying = sum(row["obeying"] for row in sparse)
    eligible = sum(row["eligible"] for row in sparse)
    return [
        (
            f"SR-STE less dense: {100 * to_dense:+.2f} points (at least {-100 * BELOW_DENSE:g})",
            to_dense >= -BELOW_DENSE,
        ),
        (
            f"SR-STE less STE: {100 * to_ste:+.2f} points (at least {-100 * BELOW_STE:g})",
            to_ste >= -BELOW_STE,
        ),
        (
            f"SAD of SR-STE: {sad['sr-ste'] / sad['ste']:.3f} of STE's (below 1)",
            sad["sr-ste"] < sad["ste"],
        ),
        (
            f"eligible layers that obey in the exported models: {obeying} of {eligible} (all)",
            obeying == eligible > 0,
        ),
    ]


def is_complete(rows: Sequence[Row], case: str) -> bool:
    """Whether every network of a case is there."""
    there = {key(row) for row in rows}
    return all((case, seed, arm) in there for seed in SEEDS for arm in ARMS)


def tables(rows: Sequence[Row], shares: Sequence[Row]) -> str:
    """All cases, as Markdown."""
    about = (
        f"10,000 pictures of Fashion-MNIST, {EPOCHS} epochs, 2:4 along the input channels, in the order in which they came; the head "
        "and the first layer, which reads 1 channel, are dense. Accuracy: test, mean and standard deviation in points over the "
        f"seeds. Decay of SR-STE {DECAY:g}. asp starts from the trained dense network and goes through the schedule once more. SAD: "
        f"part of the weights under masks whose mask changes in a step, in thousandths, by epoch. torch {torch.__version__}, one thread.\n"
    )
    parts = [about]
    for case in CASES:
        if not column(rows, case, "dense", "accuracy"):
            continue
        parts.append(f"\n## {case}\n")
        epochs = " | ".join(f"epoch {number}" for number in range(1, EPOCHS + 1))
        parts.append(f"| training | seeds | accuracy | less dense | SAD a step | {epochs} |")
        parts.append("|---|" + "---:|" * (4 + EPOCHS))
        dense = float(np.mean(column(rows, case, "dense", "accuracy")))
        for arm in ARMS:
            found = column(rows, case, arm, "accuracy")
            if not found:
                continue
            less = "" if arm == "dense" else f"{100 * (float(np.mean(found)) - dense):+.2f}"
            sad = np.array([each for each in column(rows, case, arm, "sad_per_weight") if each])
            by_epoch = [f"{1000 * each:.2f}" for each in sad.mean(axis=0)] if sad.size else []
            mean = f"{1000 * sad.mean():.3f}" if sad.size else ""
            cells = [arm, str(len(found)), told(found), less, mean]
            cells += by_epoch or [""] * EPOCHS
            parts.append("| " + " | ".join(cells) + " |")
        parts += [
            f"\nMasks take {row['share']:.1%} of the CPU time of training ({row['arm']})."
            for row in shares
            if row["case"] == case
        ]
        if is_complete(rows, case):
            parts.append("")
            for text, met in targets(rows, case):
                parts.append(f"- {'met' if met else '**missed**'}: {text}")
    return "\n".join(parts)


def picture(rows: Sequence[Row]) -> bytes:
    """SAD over the epochs, a panel a case, as SVG."""
    import io

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    canvas = FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(CASES), sharey=True, squeeze=False)[0]
    for axes, case in zip(panels, CASES, strict=True):
        for arm in ARMS:
            sad = [each for each in column(rows, case, arm, "sad_per_weight") if each]
            if sad:
                values = 100 * np.array(sad)
                epochs = np.arange(1, values.shape[1] + 1)
                (line,) = axes.plot(epochs, values.mean(axis=0), marker="o", label=arm)
                for seed in values:
                    axes.plot(epochs, seed, color=line.get_color(), linewidth=0.6, alpha=0.5)
        axes.set_title(case)
        axes.set_xlabel("epoch")
        axes.grid(color="0.9")
        if axes.lines:
            axes.set_ylim(bottom=0)
            axes.legend()
    panels[0].set_ylabel("weights whose mask changes in a step, %")
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "nm", "svg.fonttype": "none"}):
        canvas.print_svg(file, metadata={"Date": None})
    return file.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", default=",".join(CASES), help="networks")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no network after that"
    )
    parser.add_argument("--no-train", action="store_true", help="print what is there")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/nm"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    state = options.folder / "rows.jsonl"
    end = time.monotonic() + 60 * options.minutes
    wanted = [
        (case, seed, arm)
        for case in options.case.split(",")
        # What the targets compare comes first.
        for arms in (COMPARED, [arm for arm in ARMS if arm not in COMPARED])
        for seed in map(int, options.seeds.split(","))
        for arm in arms
    ]
    done = {key(row) for row in read(state)}
    for case, seed, arm in wanted if not options.no_train else ():
        if (case, seed, arm) not in done and time.monotonic() < end:
            Bench(case, seed, options.folder).run(arm)
    rows, timing = read(state), options.folder / "shares.jsonl"
    timed = {(row["case"], row["arm"]) for row in read(timing)}
    for case in CASES if not options.no_train else ():
        for arm in ("sr-ste", "sr-ste-transposable"):
            if (case, arm) not in timed and time.monotonic() < end:
                append(timing, measure_share(case, arm))
    table = tables(rows, read(timing))
    print(table)
    if rows:
        both = [
            *({"kind": "training", **row} for row in rows),
            *({"kind": "share", **row} for row in read(timing)),
        ]
        results.save("nm", both, "N:M training", table)
        (results.FOLDER / "nm.svg").write_bytes(picture(rows))
    complete = [case for case in CASES if is_complete(rows, case)]
    if any(not met for case in complete for _, met in targets(rows, case)):
        print("A target is missed.", file=sys.stderr)
        return MISSED
    if len(complete) < len(CASES):
        print("Networks are missing: start it again.", file=sys.stderr)
        return INCOMPLETE
    return 0


if __name__ == "__main__":
    sys.exit(main())
