"""Examples in batches of given indices, whether they lie in tensors or come from a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from deploykit.errors import UsageError
from deploykit.finder.seeds import derive, seed_all
from deploykit.finder.task import Data, Split

__all__ = ["Batch", "Examples", "Splits", "split_batches"]

Batch: TypeAlias = tuple[tuple[Tensor, ...], Tensor]

HELD_OUT = 0.1
SAMPLED = 8
"""Items of a data set that its fingerprint is made of: to read all may take hours."""


class Examples:
    """One split of a task's data.

    Args:
        split: a pair of tensors, or a map-style data set.
        name: what errors call it.
        workers: processes that load items of a data set.

    Raises:
        UsageError: it is something else, is empty, or inputs and targets differ in number.
    """

    def __init__(self, split: Split, name: str, workers: int = 0) -> None:
        self.name = name
        self._workers = workers
        self._tensors: tuple[tuple[Tensor, ...], Tensor] | None = None
        self._dataset: Any = None
        if isinstance(split, TensorDataset):
            split = (tuple(split.tensors[:-1]), split.tensors[-1])
        if isinstance(split, tuple | list):
            self._tensors = _check_pair(split, name)
            self._length = len(self._tensors[1])
        elif hasattr(split, "__getitem__") and hasattr(split, "__len__"):
            self._dataset = split
            self._length = len(split)
        else:
            msg = (
                f"the split '{name}' is a {type(split).__name__}. Give a pair of tensors (inputs, targets), or a data set with "
                "__len__ and __getitem__."
            )
            raise UsageError(msg)
        if not self._length:
            msg = f"the split '{name}' holds no examples."
            raise UsageError(msg)

    def __len__(self) -> int:
        return self._length

    def take(self, indices: Tensor) -> Batch:
        """The examples of these indices: int64, shape `(batch,)`."""
        return next(self.batches([indices]))

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """Batches, one for each tensor of indices."""
        if self._tensors is not None:
            inputs, targets = self._tensors
            for each in indices:
                yield tuple(one[each] for one in inputs), targets[each]
            return
        sampler: Any = [each.tolist() for each in indices]
        # A generator of its own: where workers start from must not depend on what was drawn before.
        first = sampler[0][0] if sampler and sampler[0] else 0
        generator = torch.Generator().manual_seed(
            derive(torch.initial_seed() & 0xFFFFFFFF, first)
        )
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=sampler,
            num_workers=self._workers,
            collate_fn=_collate,
            generator=generator,
        )
        yield from loader

    def part(self, indices: Tensor) -> Examples:
        """Some of the examples, as a split of its own."""
        split: Any
        if self._tensors is not None:
            inputs, targets = self._tensors
            split = (tuple(one[indices] for one in inputs), targets[indices])
        else:
            split = Subset(self._dataset, indices.tolist())
        return Examples(split, self.name, self._workers)

    def fingerprint(self) -> str:
        """A hash of the examples: of all in tensors, of some of a data set."""
        digest = hashlib.sha256(str(self._length).encode())
        if self._tensors is not None:
            for each in (*self._tensors[0], self._tensors[1]):
                digest.update(f"{each.dtype}{tuple(each.shape)}".encode())
                digest.update(_content(each))
            return digest.hexdigest()
        seed_all(0)
        for index in torch.linspace(0, self._length - 1, min(SAMPLED, self._length)).long():
            inputs, targets = _collate([self._dataset[int(index)]])
            for each in (*inputs, targets):
                digest.update(f"{each.dtype}{tuple(each.shape)}".encode())
                digest.update(_content(each))
        return digest.hexdigest()


class Splits:
    """The three splits of a task, with a part of the training examples held out where there is none to validate with.

    Raises:
        UsageError: a split is something else than examples.
    """

    def __init__(self, data: Data, *, workers: int = 0) -> None:
        self.train = Examples(data.train, "train", workers)
        self.test = Examples(data.test, "test", workers)
        if data.validation is not None:
            self.validation = Examples(data.validation, "validation", workers)
            return
        count = max(1, round(HELD_OUT * len(self.train)))
        if count >= len(self.train):
            msg = f"the split 'train' holds {len(self.train)} examples, too few to hold some out. Give a split 'validation'."
            raise UsageError(msg)
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        self.validation = self.train.part(order[:count].sort().values)
        self.validation.name = "validation"
        self.train = self.train.part(order[count:].sort().values)

    def fingerprint(self) -> str:
        """A hash of all three."""
        parts = (each.fingerprint() for each in (self.train, self.validation, self.test))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def split_batches(order: Tensor, batch: int) -> list[Tensor]:
    """Batches of an order of examples; the last one may be smaller.

    A last batch of one example is added to the one before: normalization over a batch needs two.
    """
    parts = list(order.split(batch))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in the order of its elements."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    array: Any = plain.view(torch.uint8).numpy()
    return memoryview(array)


def _collate(items: list[Any]) -> Batch:
    inputs, targets = default_collate(items)
    if isinstance(inputs, Tensor):
        return (inputs,), targets
    return tuple(inputs), targets


def _check_pair(split: Any, name: str) -> tuple[tuple[Tensor, ...], Tensor]:  # noqa: ANN401 - whatever a user gives
    advice = "Give a pair of tensors (inputs, targets) whose first axis are the examples."
    if len(split) != 2:
        msg = f"the split '{name}' has {len(split)} parts. {advice}"
        raise UsageError(msg)
    inputs, targets = split
    many = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    for each in (*many, targets):
        if not isinstance(each, Tensor):
            msg = f"the split '{name}' holds a {type(each).__name__}. {advice} torch.as_tensor makes one of an array."
            raise UsageError(msg)
    lengths = [len(each) if each.ndim else -1 for each in (*many, targets)]
    if not many or len(set(lengths)) != 1 or lengths[0] < 0:
        shapes = ", ".join(str(list(each.shape)) for each in (*many, targets))
        msg = f"inputs and targets of the split '{name}' differ in number: shapes {shapes}. {advice}"
        raise UsageError(msg)
    return many, targets
