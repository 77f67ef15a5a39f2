"""The search: train, prune, rewind, repeat; each round is saved, and taken up where an earlier run stopped.

Structures are applied to a copy of a round's mask, which is then trained from the rewound weights; pruning itself goes on
from the mask without structure (Chen et al., 2022, section 3), unless regrouping is asked for inside every round (Algorithm 4
there). Scores of a structure come from the trained weights that the round's mask was taken from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

import deploykit
from deploykit.errors import UsageError
from deploykit.finder.contrasts import NEW_WEIGHTS, RANDOM, REINIT, shuffle_masks
from deploykit.finder.engine import Engine, PlainEngine, deterministic
from deploykit.finder.metrics import Row, as_csv, as_picture, as_record
from deploykit.finder.progress import Clock, Progress, Status, silent
from deploykit.finder.ranking import count_kept, plan_counts
from deploykit.finder.seeds import derive
from deploykit.finder.sources import SOURCES, Context
from deploykit.finder.store import PLOTS, START, TICKET, Store
from deploykit.finder.structuring import Structure, Structured, apply_structure
from deploykit.finder.task import Task
from deploykit.finder.training import Epoch, Live, Masks, Trained, Trainer, Weights
from deploykit.ticket import Ticket

__all__ = ["Result", "Settings", "search"]

CHECKPOINT_S = 30.0
"""Seconds of training after which an epoch's end is worth a checkpoint."""

PICTURE_S = 10.0
"""Seconds after which the picture of a search that goes on is drawn anew."""

SCHEMA_VERSION = "1.0"

Rewind: TypeAlias = int | Literal["default", "none"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is searched for, and how.

    Attributes:
        reference: where the task comes from, `package.module:object`; for the record.
        source: where masks come from, one of `deploykit.finder.sources.SOURCES`.
        structure: what they are made into; None for scattered weights.
        rounds: of pruning; None: as many as the sparsity takes.
        sparsity: part of the prunable weights that the last round drops; None: what the rounds come to.
        rate: part of the remaining weights that a round drops.
        epochs: length of a training run; None: the task's.
        rewind: epoch whose weights tickets start from; `none` goes on from the weights of the round before; `default` is
            what suits the source.
        seed: of everything random.
        every_round: whether each round gets the structure, or only the last.
        group_aware: whether pruning goes on from the structured mask.
        deterministic: whether torch may only use operations that compute the same every time.
        contrasts: whether the ticket's mask is trained on new weights as well, and a random mask of its structure.
    """

    reference: str = ""
    source: str = "imp"
    structure: Structure | None = None
    rounds: int | None = None
    sparsity: float | None = None
    rate: float = 0.2
    epochs: int | None = None
    rewind: Rewind = "default"
    seed: int = 0
    every_round: bool = False
    group_aware: bool = False
    deterministic: bool = True
    contrasts: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        task: its name.
        settings: all that the result depends on, in JSON's types.
        rows: the networks that were trained, in order; the first is dense, the last is the ticket.
        ticket: the file.
        folder: where everything lies.
        parameters: of the dense network, those that are never pruned as well.
        contrasts: what the ticket is held against, if that was asked for: the same mask on new weights, and a random mask of
            the same structure, by name.
        was_finished: whether nothing was left to train: an earlier run had done it all.
    """

    task: str
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    ticket: Path
    folder: Path
    parameters: int
    contrasts: Mapping[str, Row]
    was_finished: bool = dataclasses.field(default=False, compare=False)

    def document(self, command: str) -> dict[str, Any]:
        """What `find --json` prints; its schema is `find.schema.json`.

        Args:
            command: the command line.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "versions": versions(),
            "task": self.task,
            "ticket": str(self.ticket),
            "rounds": [as_record(row) for row in self.rows],
            "settings": dict(self.settings),
        }


def search(
    task: Task,
    settings: Settings,
    folder: Path,
    *,
    engine: Engine | None = None,
    force: bool = False,
    progress: Progress = silent,
    checkpoint_s: float = CHECKPOINT_S,
) -> Result:
    """Find a ticket, or go on with a search that was interrupted.

    Args:
        task: what the network is to learn.
        settings: what to search for.
        folder: for the ticket, the rounds and the metrics.
        engine: where to train; one process on the CPU by default.
        force: whether another search in that folder may be replaced.
        progress: told after every epoch.
        checkpoint_s: seconds of training after which an epoch's end is saved.

    Raises:
        UsageError: settings or the task make no sense, the training diverged, or the folder holds something else.
        ModelError: a saved round is damaged, or memory ran out.
    """
    check_settings(settings)
    engine = PlainEngine("cpu") if engine is None else engine
    with deterministic(settings.deterministic):
        found = _Search(
            task,
            settings,
            folder,
            engine=engine,
            progress=progress,
            checkpoint_s=checkpoint_s,
        )
        return found.run(force=force)


def check_settings(settings: Settings) -> None:
    """Refuse settings that make no sense, before anything is loaded.

    Raises:
        UsageError: so it is.
    """
    if settings.source not in SOURCES:
        msg = f"there is no source '{settings.source}'. There are: {', '.join(SOURCES)}."
        raise UsageError(msg)
    if not 0.0 < settings.rate < 1.0:
        msg = f"a round can drop a part between 0 and 1 of what is left, not {settings.rate:g}."
        raise UsageError(msg)
    if settings.sparsity is not None and not 0.0 < settings.sparsity < 1.0:
        msg = f"the sparsity is a part between 0 and 1, not {settings.sparsity:g}: 0.8 drops four of five weights."
        raise UsageError(msg)
    if settings.rounds is not None and settings.rounds < 1:
        msg = f"a search has 1 round or more, not {settings.rounds}."
        raise UsageError(msg)
    if settings.group_aware and (
        settings.structure is None
        or settings.structure.name != "regroup"
        or SOURCES[settings.source].one_shot
    ):
        msg = (
            "regrouping inside every round needs the structure 'regroup' and the source 'imp'."
        )
        raise UsageError(msg)
    if settings.every_round and settings.structure is None:
        msg = "every round can only get a structure if there is one: say which."
        raise UsageError(msg)


@dataclasses.dataclass(frozen=True, eq=False)
class _Last:
    """What the last round's mask was made from.

    Attributes:
        masks: without structure.
        scored: the weights that it was chosen by.
        start: the weights that it was trained from.
    """

    masks: Masks
    scored: Weights
    start: Weights


class _Search:
    """One search, from its settings to its ticket."""

    def __init__(
        self,
        task: Task,
        settings: Settings,
        folder: Path,
        *,
        engine: Engine,
        progress: Progress,
        checkpoint_s: float,
    ) -> None:
        self._task = task
        self._settings = settings
        self._folder = folder
        self._engine = engine
        self._progress = progress if engine.rank == 0 else silent
        self._checkpoint_s = checkpoint_s
        self._source = SOURCES[settings.source]
        self._trainer = Trainer(task, engine=engine, seed=settings.seed, epochs=settings.epochs)
        self._initial = self._trainer.initial()
        self._total = sum(int(self._initial[name].size) for name in self._trainer.names)
        self._counts = plan_counts(
            self._total,
            rounds=settings.rounds,
            sparsity=settings.sparsity,
            rate=settings.rate,
            one_shot=self._source.one_shot,
        )
        self._rewind = self._find_rewind()
        self._rows: list[Row] = []
        self._contrasts: dict[str, Row] = {}
        self._arm = ""
        self._has_trained = False
        self._store: Store | None = None
        self._described: dict[str, Any] = {}
        self._clock = Clock(1)
        self._drawn_s = time.monotonic()

    def _find_rewind(self) -> int | None:
        """The epoch that weights are rewound to; None where they are not.

        Raises:
            UsageError: training ends before it.
        """
        asked, epochs = self._settings.rewind, self._trainer.epochs
        if asked == "none":
            if self._source.one_shot and self._source.weights == "start":
                msg = f"'{self._source.name}' scores weights before training: tickets start from them. Give an epoch to rewind to."
                raise UsageError(msg)
            return None
        if asked == "default":
            return min(epochs - 1, round(self._source.rewind_share * epochs))
        if not 0 <= asked < epochs:
            msg = f"cannot rewind to epoch {asked} of a training of {epochs} epochs. Give one from 0 to {epochs - 1}."
            raise UsageError(msg)
        return asked

    def run(self, *, force: bool) -> Result:
        """Search, or go on."""
        settings = self._described = self._describe()
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._clock = Clock(self._count_epochs())
        with contextlib.ExitStack() as stack:
            if self._engine.rank == 0:
                self._store = stack.enter_context(
                    Store(self._folder, settings, fingerprint, force=force)
                )
            ticket, last = self._find()
            self._write_metrics(is_last=True)
            if self._store is not None:
                self._store.save_ticket(ticket)
                self._store.drop_checkpoint()
            if self._settings.contrasts:
                self._contrast(ticket, last)
        model = self._trainer.fresh_model()
        return Result(
            self._task.name,
            settings,
            tuple(self._rows),
            self._folder / TICKET,
            self._folder,
            sum(each.numel() for each in model.parameters()),
            self._contrasts,
            was_finished=not self._has_trained,
        )

    def _describe(self) -> dict[str, Any]:
        """All that the result depends on."""
        given = self._settings
        structure = None if given.structure is None else given.structure.describe()
        return {
            "schema_version": SCHEMA_VERSION,
            "task": self._task.name,
            "reference": given.reference,
            "source": given.source,
            "structure": structure,
            "every_round": given.every_round,
            "group_aware": given.group_aware,
            "kept": list(self._counts),
            "total": self._total,
            "prunable": list(self._trainer.names),
            "epochs": self._trainer.epochs,
            "batch": self._trainer.batch,
            "rewind": self._rewind,
            "seed": given.seed,
            "deterministic": given.deterministic,
            "device": self._engine.device.type,
            "threads": torch.get_num_threads(),
            "engine": self._engine.name,
            "processes": self._engine.processes,
            "precision": self._engine.precision,
            **self._trainer.probe(),
        }

    def _has_structure(self, number: int) -> bool:
        given = self._settings
        return given.structure is not None and (
            given.every_round or given.group_aware or number == len(self._counts)
        )

    def _has_plain(self, number: int) -> bool:
        """Whether a round's mask without structure is trained: where it is the result, or the next round needs it."""
        given = self._settings
        if given.structure is None:
            return True
        return (
            not given.group_aware and not self._source.one_shot and number < len(self._counts)
        )

    def _count_epochs(self) -> int:
        first = self._rewind or 0
        later = sum(
            self._has_plain(number) + self._has_structure(number)
            for number in range(1, len(self._counts) + 1)
        )
        contrasts = 2 * self._trainer.epochs - first if self._settings.contrasts else 0
        return self._trainer.epochs + later * (self._trainer.epochs - first) + contrasts

    def _find(self) -> tuple[Ticket, _Last]:
        """The ticket, and what its mask was made from."""
        dense = self._round(0, self._initial, {})
        found = previous = dense
        start = self._load_start()
        last = _Last({}, {}, {})
        for number, kept in enumerate(self._counts, 1):
            masks = self._choose(number, kept, dense, previous, start)
            # The weights that the mask was taken from: what is large in them is worth a structure.
            scored = (
                start
                if self._source.weights == "start"
                else (dense if self._source.one_shot else previous).weights
            )
            first = start if self._rewind is not None else scored
            last = _Last(masks, scored, first)
            if self._has_structure(number):
                found = self._structured(number, masks, scored, first)
            if self._has_plain(number):
                previous = self._round(number, first, masks)
                found = previous if not self._has_structure(number) else found
            elif self._settings.group_aware:
                previous = found
        return found, last

    def _contrast(self, ticket: Ticket, last: _Last) -> None:
        """Train what the ticket is held against; what is trained from here on belongs to an arm of its own."""
        number, seed = len(self._counts), self._settings.seed
        initial = self._trainer.initial(seed + NEW_WEIGHTS)
        self._arm = REINIT
        self._round(number, initial, ticket.masks, first=0)
        masks, scored = shuffle_masks(last.masks, last.scored, seed, number)
        self._arm = RANDOM
        if self._settings.structure is None:
            self._round(number, last.start, masks)
        else:
            self._structured(number, masks, scored, last.start)

    def _load_start(self) -> dict[str, Any]:
        """The weights that tickets start from."""
        if not self._rewind:
            return dict(self._initial)
        held = self._store.load(START) if self._store is not None else None
        weights = self._engine.share(None if held is None else dict(held.weights))
        if weights is None:
            msg = (
                f"'{self._folder}' lacks 'rounds/{START}.safetensors', the weights that its tickets start from. Give --force to "
                "search anew."
            )
            raise UsageError(msg)
        return weights

    def _choose(
        self, number: int, kept: int, dense: Ticket, previous: Ticket, start: Weights
    ) -> dict[str, Any]:
        """The mask of a round."""
        self._tell("choosing weights", number, sparsity=1.0 - kept / self._total)
        source = self._source
        weights = {"start": start, "dense": dense.weights, "previous": previous.weights}[
            source.weights
        ]
        if self._settings.group_aware and number > 1:
            # Regrouping takes and gives: what a round drops is a part of what is really left.
            kept = round(count_kept(previous.masks) * kept / self._counts[number - 2])
        batches = self._trainer.sample(source.examples) if source.examples else ()
        left = {
            name: previous.masks.get(name, np.ones(self._initial[name].shape, np.bool_))
            for name in self._trainer.names
        }
        context = Context(
            self._task,
            self._trainer.model_with(weights),
            self._trainer.names,
            kept,
            left,
            batches,
            derive(self._settings.seed, "source"),
        )
        chosen = source.choose(context) if self._engine.rank == 0 else None
        shared: Masks | None = self._engine.share(chosen)
        return dict(shared or {})

    def _structured(
        self,
        number: int,
        masks: Masks,
        scored: Weights,
        start: Weights,
    ) -> Ticket:
        structure = self._settings.structure
        assert structure is not None  # noqa: S101 - only asked for where there is one
        self._tell(structure.name, number, sparsity=1.0 - count_kept(masks) / self._total)
        made: Structured | None = None
        if self._engine.rank == 0:
            made = apply_structure(self._trainer, structure, masks, scored)
        made = self._engine.share(made)
        assert made is not None  # noqa: S101 - the first process has made it
        return self._round(number, start, made.masks, made, structure.name)

    def _round(
        self,
        number: int,
        start: Weights,
        masks: Masks,
        made: Structured | None = None,
        structure: str = "none",
        *,
        first: int | None = None,
    ) -> Ticket:
        """Train one network and save it, or load it if an earlier run has."""
        name = f"round-{number:02d}" + ("" if structure == "none" else f"-{structure}")
        name = self._arm.replace(" ", "-") or name
        if first is None:
            first = 0 if number == 0 or self._rewind is None else self._rewind
        held = self._store.load(name) if self._store is not None else None
        ticket = self._engine.share(held)
        if ticket is None:
            trained = self._train(name, number, start, masks, first)
            kept = sum(
                int(np.count_nonzero(masks[each]))
                if each in masks
                else int(self._initial[each].size)
                for each in self._trainer.names
            )
            provenance = {
                "task": self._task.name,
                "round": number,
                "structure": structure,
                "kept": kept,
                "total": self._total,
                "metrics": {"validation": trained.validation, "test": trained.test},
                **self._of_dense(),
                "epochs": [dataclasses.asdict(each) for each in trained.epochs],
                "notes": [*_empty_layers(masks), *(made.notes if made is not None else ())],
                "settings": self._described,
                "versions": versions(),
            }
            ticket = Ticket(
                dict(masks),
                trained.weights,
                {} if made is None else dict(made.blocks),
                provenance,
                {} if made is None else dict(made.found),
            )
            if self._store is not None:
                self._store.save(name, ticket)
                self._store.drop_checkpoint()
        else:
            self._clock.skip(self._trainer.epochs - first)
        row = row_of(ticket, f"rounds/{name}.safetensors")
        if self._arm:
            self._contrasts[self._arm] = row
        else:
            self._rows.append(row)
            self._write_metrics()
        return ticket

    def _of_dense(self) -> dict[str, Any]:
        """What a ticket says of the dense network, so that it can be judged where it is all there is."""
        if not self._rows:
            return {}
        dense = self._rows[0]
        return {"dense": {"validation": dense.validation, "test": dense.test}}

    def _write_metrics(self, *, is_last: bool = False) -> None:
        """Make the table and the picture anew; in between the picture only where it takes a small part of the time."""
        if self._store is None:
            return
        self._store.write(PLOTS[0], as_csv(self._rows))
        if is_last or time.monotonic() - self._drawn_s >= PICTURE_S:
            self._store.write(PLOTS[1], as_picture(self._rows, self._task.name))
            self._drawn_s = time.monotonic()

    def _train(
        self, name: str, number: int, start: Weights, masks: Masks, first: int
    ) -> Trained:
        store, sparsity = self._store, 1.0 - _density(masks, self._initial, self._trainer.names)
        resume = self._engine.share(store.load_checkpoint(name) if store is not None else None)
        saved_s = time.monotonic()
        self._has_trained = True
        if resume is not None:
            self._clock.skip(int(resume.document["epoch"]) - first)
        self._tell("training", number, sparsity=sparsity, epochs=self._trainer.epochs)

        def after_epoch(live: Live) -> None:
            nonlocal saved_s
            self._clock.tick()
            if store is not None:
                if number == 0 and live.epoch == self._rewind:
                    store.save(START, Ticket({}, live.weights(), {}, {"epoch": live.epoch}))
                is_due = time.monotonic() - saved_s >= self._checkpoint_s
                if is_due and live.epoch < self._trainer.epochs:
                    checkpoint = live.checkpoint()
                    if checkpoint is not None:
                        store.save_checkpoint(name, checkpoint)
                    saved_s = time.monotonic()
            self._tell(
                "training",
                number,
                sparsity=sparsity,
                epoch=live.epoch,
                epochs=self._trainer.epochs,
                metric=live.history[-1].metric,
            )

        return self._trainer.train(
            start,
            masks,
            number=number,
            first_epoch=first,
            resume=resume,
            after_epoch=after_epoch,
        )

    def _tell(
        self,
        stage: str,
        number: int,
        *,
        sparsity: float,
        epoch: int = 0,
        epochs: int = 0,
        metric: float | None = None,
    ) -> None:
        self._progress(
            Status(
                stage,
                number,
                len(self._counts),
                epoch,
                epochs,
                sparsity,
                metric,
                self._clock.part,
                self._clock.left_s,
                arm=self._arm,
            )
        )


def row_of(ticket: Ticket, file: str) -> Row:
    """What a saved round came to."""
    held = ticket.provenance
    return Row(
        round=int(held["round"]),
        structure=str(held["structure"]),
        kept=int(held["kept"]),
        total=int(held["total"]),
        validation=float(held["metrics"]["validation"]),
        test=float(held["metrics"]["test"]),
        epochs=tuple(Epoch(**each) for each in held["epochs"]),
        file=file,
        notes=tuple(held["notes"]),
    )


def versions() -> dict[str, str]:
    """What the result was computed with."""
    return {
        "deploykit": deploykit.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _empty_layers(masks: Masks) -> Iterator[str]:
    for name, mask in masks.items():
        if not mask.any():
            yield f"'{name}' has no weight left: nothing gets through it"


def _density(masks: Masks, weights: Weights, names: tuple[str, ...]) -> float:
    sizes = sum(weights[name].size for name in names)
    kept = sum(
        int(np.count_nonzero(masks[name])) if name in masks else weights[name].size
        for name in names
    )
    return float(kept / sizes) if sizes else math.nan
