"""What every search has in common: rounds that are trained, saved, told of, and taken up where an earlier run stopped."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deploykit
from deploykit.errors import UsageError
from deploykit.finder.engine import Engine
from deploykit.finder.masking import MakeMasking
from deploykit.finder.metrics import Row, as_csv, as_picture, as_record
from deploykit.finder.nm import sad
from deploykit.finder.progress import Clock, Progress, Status, silent
from deploykit.finder.settings import Settings
from deploykit.finder.store import METRICS, PICTURE, SAD, SAD_PICTURE, START, TICKET, Store
from deploykit.finder.structuring import Structured
from deploykit.finder.task import Task
from deploykit.finder.training import Epoch, Live, Masks, Trained, Trainer, Weights
from deploykit.ticket import Ticket

__all__ = ["CHECKPOINT_S", "Result", "Rounds"]

CHECKPOINT_S = 30.0
"""Seconds of training after which an epoch's end is worth a checkpoint."""

PICTURE_S = 10.0
"""Seconds after which the picture of a search that goes on is drawn anew."""

SCHEMA_VERSION = "1.1"
"""Of what `find --json` prints."""

SETTINGS_VERSION = "1.0"
"""A search whose settings have another one cannot be gone on with."""


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


class Rounds(abc.ABC):
    """One search, from its settings to its ticket; what is trained in its rounds is a subclass's matter.

    Args:
        task: what the network is to learn.
        settings: what to search for.
        folder: for the ticket, the rounds and the metrics.
        engine: where to train.
        progress: told after every epoch.
        checkpoint_s: seconds of training after which an epoch's end is saved.
    """

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
        self._trainer = Trainer(task, engine=engine, seed=settings.seed, epochs=settings.epochs)
        self._initial = self._trainer.initial()
        self._total = sum(int(self._initial[name].size) for name in self._trainer.names)
        self._counts = self._plan_counts()
        self._rewind = self._find_rewind()
        self._rows: list[Row] = []
        self._contrasts: dict[str, Row] = {}
        self._arm = ""
        self._has_trained = False
        self._store: Store | None = None
        self._described: dict[str, Any] = {}
        self._clock = Clock(1)
        self._drawn_s = time.monotonic()

    @abc.abstractmethod
    def _plan_counts(self) -> tuple[int, ...]:
        """How many weights stay after each round."""

    @abc.abstractmethod
    def _find_rewind(self) -> int | None:
        """The epoch that weights are rewound to; None where they are not.

        Raises:
            UsageError: training ends before it.
        """

    @abc.abstractmethod
    def _describe_method(self) -> dict[str, Any]:
        """What the result depends on that only searches of this kind have, in JSON's types."""

    @abc.abstractmethod
    def _count_trainings(self) -> int:
        """How many networks are trained after the dense one, contrasts not counted."""

    @abc.abstractmethod
    def _find(self) -> Ticket:
        """The ticket."""

    @abc.abstractmethod
    def _contrast(self, ticket: Ticket) -> None:
        """Train what the ticket is held against; what is trained from here on belongs to an arm of its own."""

    def _check_rewind(self, asked: int) -> int:
        """The epoch, where training does not end before it.

        Raises:
            UsageError: it does.
        """
        epochs = self._trainer.epochs
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
            ticket = self._find()
            self._write_metrics(is_last=True)
            if self._store is not None:
                self._store.save_ticket(ticket)
                self._store.drop_checkpoint()
            if self._settings.contrasts:
                self._contrast(ticket)
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
        return {
            "schema_version": SETTINGS_VERSION,
            "task": self._task.name,
            "reference": given.reference,
            "source": given.source,
            **self._describe_method(),
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

    def _count_epochs(self) -> int:
        whole = self._trainer.epochs
        later = whole - (self._rewind or 0)
        contrasts = whole + later if self._settings.contrasts else 0
        return whole + self._count_trainings() * later + contrasts

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

    def _round(
        self,
        number: int,
        start: Weights,
        masks: Masks,
        made: Structured | None = None,
        structure: str = "none",
        *,
        first: int | None = None,
        masking: MakeMasking | None = None,
        about: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> Ticket:
        """Train one network and save it, or load it if an earlier run has.

        Args:
            number: of the round; 0 is the dense network.
            start: the weights to start from.
            masks: what they are trained under.
            made: the masks' structure, where they have one.
            structure: what rows and tickets call it.
            first: epochs that the weights have behind them; None: as the round before.
            masking: what chooses the masks while it goes on.
            about: more for the ticket to say where it comes from.
            notes: what could not be done, in words.
        """
        # A colon is no part of a file name everywhere.
        form = structure.replace(":", "of").replace(" ", "-")
        name = f"round-{number:02d}" + ("" if structure == "none" else f"-{form}")
        name = self._arm.replace(" ", "-") or name
        if first is None:
            first = 0 if number == 0 or self._rewind is None else self._rewind
        held = self._store.load(name) if self._store is not None else None
        ticket = self._engine.share(held)
        if ticket is None:
            trained = self._train(name, number, start, masks, first, masking)
            masks = trained.masks
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
                "epochs": [each.record() for each in trained.epochs],
                "notes": [
                    *_empty_layers(masks),
                    *(made.notes if made is not None else ()),
                    *notes,
                ],
                **(about or {}),
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
        self._store.write(METRICS, as_csv(self._rows))
        moves = any(row.masked for row in self._rows)
        if moves:
            self._store.write(SAD, sad.as_csv(self._rows))
        if is_last or time.monotonic() - self._drawn_s >= PICTURE_S:
            self._store.write(PICTURE, as_picture(self._rows, self._task.name))
            if moves:
                self._store.write(SAD_PICTURE, sad.as_picture(self._rows, self._task.name))
            self._drawn_s = time.monotonic()

    def _train(  # noqa: PLR0917 - as of a round
        self,
        name: str,
        number: int,
        start: Weights,
        masks: Masks,
        first: int,
        masking: MakeMasking | None,
    ) -> Trained:
        store, sparsity = self._store, 1.0 - _density(masks, self._initial, self._trainer.names)
        if masking is not None:
            sparsity = 1.0 - self._counts[number - 1] / self._total
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
            masking=masking,
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
    epochs = tuple(Epoch.read(each) for each in held["epochs"])
    moves = any(each.flips for each in epochs)
    return Row(
        round=int(held["round"]),
        structure=str(held["structure"]),
        kept=int(held["kept"]),
        total=int(held["total"]),
        validation=float(held["metrics"]["validation"]),
        test=float(held["metrics"]["test"]),
        epochs=epochs,
        file=file,
        notes=tuple(held["notes"]),
        masked=int(held["nm"]["masked"]) if moves else 0,
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
