"""Gradients of a task's loss, summed over batches; what depends on them sees them as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deploykit.finder.examples import Batch
from deploykit.finder.task import Task, asking

__all__ = ["find_parameters", "find_shares", "mean_gradients", "total_gradients"]


def find_parameters(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """The parameters of these names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [parameters[name] for name in names]


def mean_gradients(
    task: Task,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    *,
    share: float = 1.0,
    differentiable: bool = False,
) -> tuple[Tensor, ...]:
    """The gradient of the mean loss of a batch.

    Args:
        task: for its loss.
        model: in the mode that it is to run in.
        parameters: what to differentiate by.
        batch: on the device of the model.
        share: what the loss is multiplied with: the part of all examples that are in this batch.
        differentiable: whether the gradient is to be differentiated once more.

    Returns:
        one tensor for each parameter; zeros where the loss does not depend on it.
    """
    inputs, targets = batch
    with asking(task, "the forward pass"):
        outputs = model(*inputs)
    with asking(task, "loss()"):
        loss = task.loss(outputs, targets) * share
    found = torch.autograd.grad(
        loss, list(parameters), create_graph=differentiable, allow_unused=True
    )
    return tuple(
        torch.zeros_like(each) if gradient is None else gradient
        for each, gradient in zip(parameters, found, strict=True)
    )


def find_shares(batches: Sequence[Batch]) -> list[float]:
    """The part of all examples that is in each batch."""
    count = sum(len(targets) for _, targets in batches)
    return [len(targets) / count for _, targets in batches]


def total_gradients(
    task: Task,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
) -> list[Tensor]:
    """The gradient of the mean loss of all batches, one tensor for each parameter; see `mean_gradients`."""
    totals = [each.detach().new_zeros(each.shape) for each in parameters]
    for batch, share in zip(batches, find_shares(batches), strict=True):
        found = mean_gradients(task, model, parameters, batch, share=share)
        for total, gradient in zip(totals, found, strict=True):
            total.add_(gradient)
    return totals
