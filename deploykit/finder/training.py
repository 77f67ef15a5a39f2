"""Trains a network under masks, which stay or are chosen anew after every step: see `deploykit.finder.masking`.

A run depends on its weights, its masks, the seed and the numbers of round and epoch, and on nothing that ran before in the
process. So it can be taken up after any epoch, and comes to the same weights bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deploykit.errors import ModelError, UsageError
from deploykit.finder.engine import Engine, PlainEngine
from deploykit.finder.examples import Batch, Examples, Splits, split_batches
from deploykit.finder.masking import FixedMasks, MakeMasking, Masking
from deploykit.finder.ranking import Array, Bools
from deploykit.finder.seeds import derive, seed_all
from deploykit.finder.task import Task, asking, forward_part

__all__ = ["Checkpoint", "Epoch", "Live", "Masks", "Trained", "Trainer", "Weights"]

Weights: TypeAlias = Mapping[str, Array]
Masks: TypeAlias = Mapping[str, Bools]

EVALUATED = 500
"""Examples in a batch that is only evaluated, at least."""

PROBED = 64
"""Examples that a task is tried on; what they come to also tells one task from another."""

MOST_NAMED = 6

RATES = 500
"""Steps whose learning rates tell one schedule from another."""

CHECKED_STEPS = 50
"""Steps between two looks at the loss where to look at it costs something."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    Attributes:
        epoch: its number, from 1.
        loss: mean over the training examples, while it went on.
        metric: of the validation examples after it.
        flips: elements of masks that changed, by step; empty where masks stay.
    """

    epoch: int
    loss: float
    metric: float
    flips: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """In JSON's types."""
        found: dict[str, Any] = {
            "epoch": self.epoch,
            "loss": self.loss,
            "metric": self.metric,
        }
        return {**found, "flips": list(self.flips)} if self.flips else found

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """What `record` wrote."""
        return cls(**{**record, "flips": tuple(record.get("flips", ()))})


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What a training run came to.

    Attributes:
        weights: the state dict; zero where a mask drops.
        epochs: one by one.
        validation: the metric of the validation examples.
        test: that of the test examples.
        masks: those that it ended with.
    """

    weights: dict[str, Array]
    epochs: tuple[Epoch, ...]
    validation: float
    test: float
    masks: dict[str, Bools]


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training run after an epoch: arrays of the model and the optimizer, and what else there is in JSON's types."""

    arrays: dict[str, Array]
    document: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Live:
    """A training run between two epochs, while it goes on.

    Attributes:
        epoch: epochs that are done.
        history: one by one.
        weights: reads the state dict.
        checkpoint: reads all that the run depends on; None where that cannot be written down.
    """

    epoch: int
    history: tuple[Epoch, ...]
    weights: Callable[[], dict[str, Array]]
    checkpoint: Callable[[], Checkpoint | None]


class Trainer:
    """Trains networks of one task.

    Args:
        task: what is learned.
        engine: where; one process on the CPU by default.
        seed: of everything random.
        epochs: length of a run; the task's own by default.

    Attributes:
        task: as given.
        engine: as given.
        seed: as given.
        epochs: length of a run.
        batch: examples in a step, over all processes.
        splits: the examples.
        names: the weights that may be pruned.

    Raises:
        UsageError: the task lacks something, or something of it is wrong.
    """

    def __init__(
        self,
        task: Task,
        *,
        engine: Engine | None = None,
        seed: int = 0,
        epochs: int | None = None,
    ) -> None:
        self.task = task
        self.engine: Engine = PlainEngine("cpu") if engine is None else engine
        self.seed = seed
        self.epochs = _positive(task, "epochs", task.epochs if epochs is None else epochs)
        self.batch = _positive(task, "batch", task.batch)
        with asking(task, "data()"):
            data = task.data()
        if not all(hasattr(data, name) for name in ("train", "test", "validation")):
            msg = (
                f"data() of the task '{task.name}' returns a {type(data).__name__}. "
                "Return a deploykit.finder.task.Data(train=..., test=...)."
            )
            raise UsageError(msg)
        self.splits = Splits(data, workers=task.workers)
        # So that a task which does not say otherwise need not load its data again.
        task.remember(data)
        model = self.fresh_model()
        self._is_image = _takes_images(self.splits.train)
        with asking(task, "prunable()"):
            self.names = tuple(task.prunable(model))
        self._check_names(model)

    def _check_names(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        there = [name for name, each in parameters.items() if each.ndim >= 2]
        for name in self.names:
            if name not in parameters or parameters[name].ndim < 2:
                msg = (
                    f"prunable() of the task '{self.task.name}' names '{name}', which is no weight of the model of two axes or "
                    f"more. There are: {', '.join(there[:MOST_NAMED])}{', ...' if there[MOST_NAMED:] else ''}."
                )
                raise UsageError(msg)
        if not self.names or len(set(self.names)) != len(self.names):
            msg = (
                f"the model of the task '{self.task.name}' has no weight that may be pruned, besides the head, or names one "
                "twice. Say which in prunable()."
            )
            raise UsageError(msg)

    def fresh_model(self, seed: int | None = None) -> nn.Module:
        """A new network, on the CPU; its initial weights depend on the seed alone.

        Args:
            seed: that of the trainer by default.

        Raises:
            UsageError: the task does not make one.
        """
        seed_all(derive(self.seed if seed is None else seed, "model"))
        with asking(self.task, "model()"):
            model = self.task.model()
        if not isinstance(model, nn.Module):
            msg = f"model() of the task '{self.task.name}' returns a {type(model).__name__}, and no torch.nn.Module."
            raise UsageError(msg)
        return model

    def initial(self, seed: int | None = None) -> dict[str, Array]:
        """The state dict of a new network.

        Args:
            seed: that of the trainer by default; another one re-initializes.
        """
        return read_weights(self.fresh_model(seed))

    def model_with(self, weights: Weights) -> nn.Module:
        """The network with these weights, on the device."""
        model = self.fresh_model()
        load_weights(model, weights)
        model = model.to(self.engine.device)
        if self._is_image:
            # About twice as fast on a CPU, and what tensor cores want.
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def probe(self) -> dict[str, str]:
        """Try every part of the task once, before any work is done.

        Returns:
            what came out, exactly: it is the same in the next run only if the task is.

        Raises:
            UsageError: the task lacks something, or something of it is wrong.
        """
        initial = self.initial()
        model = self.model_with(initial)
        with asking(self.task, "optimizer()"):
            optimizer = self.task.optimizer(model.parameters())
        scheduler = self._schedule(optimizer)
        seed_all(derive(self.seed, "probe"))
        inputs, targets = self._placed(
            self.splits.train.take(torch.arange(min(PROBED, len(self.splits.train))))
        )
        model.train()
        with self.engine.autocast():
            with asking(self.task, forward_part(inputs)):
                outputs = model(*inputs)
            with asking(self.task, "loss()"):
                loss = self.task.loss(outputs, targets)
        _check_scalar(self.task, "loss()", loss)
        if not loss.requires_grad:
            msg = f"loss() of the task '{self.task.name}' does not depend on the weights: nothing can be learned from it."
            raise UsageError(msg)
        value = float(loss.detach())
        if not math.isfinite(value):
            msg = (
                f"the loss of the task '{self.task.name}' is {value} before any training. Look for NaN in the data, and for "
                "a logarithm of 0 in loss()."
            )
            raise UsageError(msg)
        with asking(self.task, "the backward pass"):
            loss.backward()
        with asking(self.task, "metric()"), torch.no_grad():
            metric = self.task.metric(outputs, targets)
        _check_scalar(self.task, "metric()", metric)
        rates = []
        for _ in range(min(RATES, self.epochs * self.steps_per_epoch)):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            _skip_steps(scheduler, 1)
        return {
            "model": hash_arrays(initial),
            "data": self.splits.fingerprint(),
            "loss": value.hex(),
            "metric": float(metric).hex(),
            "optimizer": f"{type(optimizer).__name__} {_plain(optimizer.defaults)}",
            "schedule": f"{type(scheduler).__name__} {hashlib.sha256(json.dumps(rates).encode()).hexdigest()[:16]}",
        }

    def _schedule(self, optimizer: Optimizer) -> LRScheduler:
        """The schedule that the task sets up.

        Raises:
            UsageError: it, or the optimizer, is something else.
        """
        task = self.task
        if not isinstance(optimizer, Optimizer):
            msg = f"optimizer() of the task '{task.name}' returns a {type(optimizer).__name__}, and no torch.optim.Optimizer."
            raise UsageError(msg)
        with asking(task, "schedule()"):
            scheduler = task.schedule(optimizer, self.epochs, self.steps_per_epoch)
        if not isinstance(scheduler, LRScheduler):
            msg = f"schedule() of the task '{task.name}' returns a {type(scheduler).__name__}, and no LRScheduler."
            raise UsageError(msg)
        return scheduler

    def sample(self, examples: int) -> tuple[Batch, ...]:
        """Training examples on the device, drawn with the seed, in batches as training has them; the same on all processes."""
        generator = torch.Generator().manual_seed(derive(self.seed, "sample"))
        order = torch.randperm(len(self.splits.train), generator=generator)[:examples]
        seed_all(derive(self.seed, "sample"))
        return tuple(
            self._placed(batch)
            for batch in self.splits.train.batches(split_batches(order, self.batch))
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in an epoch."""
        order = torch.arange(len(self.splits.train))
        return len(split_batches(order, self.batch))

    def train(
        self,
        start: Weights,
        masks: Masks,
        *,
        number: int = 0,
        first_epoch: int = 0,
        resume: Checkpoint | None = None,
        after_epoch: Callable[[Live], None] | None = None,
        masking: MakeMasking | None = None,
    ) -> Trained:
        """Train from given weights under masks.

        Args:
            start: the state dict to start from; what the masks drop becomes zero.
            masks: by weight; weights without one are trained as a whole.
            number: of the round: each goes through the examples in orders of its own.
            first_epoch: epochs that the weights have behind them: the learning rate goes on from there.
            resume: where an earlier run of the same call stopped.
            after_epoch: called after each epoch; on all processes.
            masking: what chooses masks while it goes on, in the place of `masks`.

        Raises:
            UsageError: the loss is not finite, or the task failed.
            ModelError: the weights are those of another model, or the memory of the device ran out.
        """
        model = self.model_with(start)
        with asking(self.task, "optimizer()"):
            optimizer = self.task.optimizer(model.parameters())
        scheduler = self._schedule(optimizer)
        history: list[Epoch] = []
        epoch = first_epoch
        if resume is None:
            _skip_steps(scheduler, first_epoch * self.steps_per_epoch)
        else:
            restore(resume, model, optimizer, scheduler)
            history = [Epoch.read(each) for each in resume.document["history"]]
            epoch = int(resume.document["epoch"])
        placed: Masking = (
            FixedMasks(model, optimizer, masks)
            if masking is None
            else masking(model, optimizer)
        )
        wrapped, stepping = self.engine.prepare(model, optimizer)
        while epoch < self.epochs:
            loss = self._train_epoch(wrapped, placed, stepping, scheduler, number, epoch)
            self.engine.share_buffers(model)
            epoch += 1
            with placed.applied():
                metric = self.evaluate(model, self.splits.validation)
            history.append(Epoch(epoch, loss, metric, placed.take_flips()))
            if after_epoch is not None:
                after_epoch(self._live(epoch, history, model, optimizer, scheduler))
        with placed.applied():
            weights = read_weights(model)
            for name, array in weights.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise self._diverged(f"the weight '{name}' is not finite", number, epoch)
            validation = (
                history[-1].metric if history else self.evaluate(model, self.splits.validation)
            )
            test = self.evaluate(model, self.splits.test)
        return Trained(weights, tuple(history), validation, test, placed.masks())

    def _live(
        self,
        epoch: int,
        history: Sequence[Epoch],
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
    ) -> Live:
        past = tuple(history)

        def checkpoint() -> Checkpoint | None:
            if not self.engine.can_checkpoint:
                return None
            return write_down(epoch, past, model, optimizer, scheduler)

        return Live(epoch, past, lambda: read_weights(model), checkpoint)

    def _train_epoch(  # noqa: PLR0917 - what changes in an epoch, and which it is
        self,
        model: nn.Module,
        placed: Masking,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        number: int,
        epoch: int,
    ) -> float:
        """Go through the training examples once; returns the mean loss.

        Raises:
            UsageError: the loss is not finite, or the task failed.
        """
        engine, task = self.engine, self.task
        generator = torch.Generator().manual_seed(derive(self.seed, "order", number, epoch))
        order = torch.randperm(len(self.splits.train), generator=generator)
        batches = split_batches(order, self.batch)
        parts, shares = self._divide(batches)
        # Dropout must differ between processes, and must not depend on their number where there is one.
        words = ("epoch", number, epoch, *((engine.rank,) if engine.rank else ()))
        seed_all(derive(self.seed, *words))
        total = torch.zeros((), device=engine.device, dtype=torch.float64)
        model.train()
        looks = engine.device.type == "cpu" and engine.processes == 1
        for step, batch in enumerate(self.splits.train.batches(parts)):
            inputs, targets = self._placed(batch)
            optimizer.zero_grad(set_to_none=True)
            share = shares[step]
            with placed.applied():
                with engine.autocast():
                    with asking(task, "the forward pass"):
                        outputs = model(*inputs)
                    with asking(task, "loss()"):
                        loss = task.loss(outputs, targets)
                _check_scalar(task, "loss()", loss)
                with asking(task, "the backward pass"):
                    engine.backward(loss if share == 1.0 else loss * share)
            placed.correct_gradients(engine.gradient_scale)
            with asking(task, "the optimizer"):
                engine.step(optimizer)
            placed.follow()
            with warnings.catch_warnings():
                # With scaled gradients a step may be left out, which the scheduler takes for a mistake.
                warnings.simplefilter("ignore")
                scheduler.step()
            # The mean over this process's part, times its examples.
            total += loss.detach().double() * (share * len(batches[step]) / engine.processes)
            if looks or step + 1 == len(parts) or not (step + 1) % CHECKED_STEPS:
                self._check_finite(total, number, epoch, step)
        return engine.add_up([float(total)])[0] / len(order)

    def _check_finite(self, total: Tensor, number: int, epoch: int, step: int) -> None:
        value = self.engine.add_up([float(total)])[0]
        if not math.isfinite(value):
            raise self._diverged(
                f"the loss is {value} after step {step + 1}", number, epoch + 1
            )

    def _diverged(self, what: str, number: int, epoch: int) -> UsageError:
        # What is kept counts for the task as it is, and it is the task that has to change.
        before = "Rounds before this one are kept, for the task as it is. " if number else ""
        return UsageError(
            f"the training of the task '{self.task.name}' diverged: {what} of epoch {epoch}, round {number}. {before}Lower its "
            "learning rate, or let it rise slowly at first, and look for NaN in its data. A task that was changed needs another "
            "folder, or --force to begin anew in this one."
        )

    def _divide(self, batches: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
        """What of each batch this process takes, and what its mean loss is multiplied by.

        Gradients are averaged over processes, each of which has a mean over its own part; with these factors the average is
        that of the whole batch, however it is divided.
        """
        engine = self.engine
        if engine.processes == 1:
            return list(batches), [1.0] * len(batches)
        parts, shares = [], []
        for batch in batches:
            part = batch.tensor_split(engine.processes)[engine.rank]
            shares.append(len(part) * engine.processes / len(batch))
            # All processes have to meet in the backward pass: who has nothing brings something that counts nothing.
            parts.append(part if len(part) else batch[:1])
        return parts, shares

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Examples) -> float:
        """The metric of examples.

        Args:
            model: the network, on the device.
            examples: of one of the splits.

        Raises:
            UsageError: the task failed.
        """
        engine, task = self.engine, self.task
        batches = split_batches(torch.arange(len(examples)), max(EVALUATED, self.batch))
        mine = batches[engine.rank :: engine.processes]
        total = torch.zeros((), device=engine.device, dtype=torch.float64)
        was_training = model.training
        model.eval()
        for indices, batch in zip(mine, examples.batches(mine), strict=True):
            inputs, targets = self._placed(batch)
            with engine.autocast(), asking(task, "the forward pass"):
                outputs = model(*inputs)
            with asking(task, "metric()"):
                value = task.metric(outputs, targets)
            _check_scalar(task, "metric()", value)
            total += value.double() * len(indices)
        model.train(was_training)
        found = engine.add_up([float(total)])[0] / len(examples)
        if not math.isfinite(found):
            msg = (
                f"metric() of the task '{task.name}' comes to {found} on the split '{examples.name}'. Look for a division by 0 in "
                "it, and for NaN in the data."
            )
            raise UsageError(msg)
        return found

    def _placed(self, batch: Batch) -> Batch:
        """A batch on the device."""
        inputs, targets = batch
        device = self.engine.device
        placed = tuple(
            each.to(device, memory_format=torch.channels_last)
            if self._is_image and each.ndim == 4
            else each.to(device)
            for each in inputs
        )
        return placed, targets.to(device)


def read_weights(model: nn.Module) -> dict[str, Array]:
    """A copy of the state dict, as arrays."""
    return {
        name: tensor.detach().cpu().contiguous().numpy().copy()
        for name, tensor in model.state_dict().items()
    }


def hash_arrays(arrays: Weights) -> str:
    """A hash of arrays and their names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Set the state dict of a model.

    Raises:
        ModelError: the weights are those of another model.
    """
    there = model.state_dict()
    for name in (*there, *weights):
        if name not in weights or name not in there:
            where = "the weights" if name not in weights else "the model"
            msg = f"the weights are those of another model: '{name}' is not in {where}."
            raise ModelError(msg)
        if tuple(there[name].shape) != weights[name].shape:
            msg = (
                f"the weights are those of another model: '{name}' has shape {list(weights[name].shape)}, and "
                f"{list(there[name].shape)} in the model."
            )
            raise ModelError(msg)
    # A copy, because arrays that were read from a file may be read only.
    model.load_state_dict(
        {name: torch.from_numpy(np.array(each)) for name, each in weights.items()}
    )


def write_down(
    epoch: int,
    history: Sequence[Epoch],
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
) -> Checkpoint | None:
    """All that a training run depends on after an epoch; None if an optimizer or a schedule holds what JSON does not."""
    arrays = {f"model.{name}": array for name, array in read_weights(model).items()}
    held = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in held["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                arrays[f"optimizer.{index}.{key}"] = (
                    value.detach().cpu().contiguous().numpy().copy()
                )
            else:
                numbers.setdefault(str(index), {})[key] = value
    document = {
        "epoch": epoch,
        "history": [each.record() for each in history],
        "groups": held["param_groups"],
        "numbers": numbers,
        "schedule": scheduler.state_dict(),
    }
    try:
        # What comes back must be what was written: a key that is a number would not.
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return Checkpoint(arrays, json.loads(text))


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler
) -> None:
    """Set a model, an optimizer and a schedule as they were."""
    load_weights(
        model,
        {
            name.removeprefix("model."): array
            for name, array in checkpoint.arrays.items()
            if name.startswith("model.")
        },
    )
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in checkpoint.document["numbers"].items()
    }
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for name, array in checkpoint.arrays.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            value = torch.from_numpy(np.array(array))
            like = parameters[int(index)]
            if value.shape == like.shape:
                # In the order in memory that it had: where vectors begin decides how the last bit is rounded.
                value = torch.empty_like(like, dtype=value.dtype).detach().copy_(value)
            state.setdefault(int(index), {})[key] = value
    groups = [dict(group) for group in checkpoint.document["groups"]]
    for group, fresh in zip(groups, optimizer.state_dict()["param_groups"], strict=True):
        for key, value in fresh.items():
            # JSON has lists only.
            if isinstance(value, tuple):
                group[key] = tuple(group[key])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    scheduler.load_state_dict(checkpoint.document["schedule"])


def _skip_steps(scheduler: LRScheduler, steps: int) -> None:
    with warnings.catch_warnings():
        # It warns that nothing was trained in between, which is what is meant.
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()


def _plain(options: Mapping[str, Any]) -> str:
    """Options that are numbers and words, as text."""
    plain = {
        name: value
        for name, value in sorted(options.items())
        if isinstance(value, bool | int | float | str | tuple | None)
    }
    return json.dumps(plain)


def _positive(task: Task, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"'{name}' of the task '{task.name}' is {value!r}, and has to be a whole number of 1 or more."
        raise UsageError(msg)
    return value


def _takes_images(examples: Examples) -> bool:
    inputs, _ = examples.take(torch.arange(1))
    return any(each.ndim == 4 for each in inputs)


def _check_scalar(task: Task, part: str, value: object) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = (
            f"a tensor of shape {list(value.shape)}"
            if isinstance(value, Tensor)
            else repr(type(value).__name__)
        )
        msg = f"{part} of the task '{task.name}' returns {kind}, and has to return a tensor with one element: the mean over the batch."
        raise UsageError(msg)
