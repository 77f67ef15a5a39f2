"""GraSP: what keeps the gradients flowing, so that the sparse network learns.

Dropping weight w moves the squared norm of the gradient by about -2 w (Hg), where H is the Hessian of the loss and g its
gradient. Kept are the weights with the largest w (Hg): without those the gradient would shrink most. No temperature is
applied to the outputs, because a loss need not be a cross entropy.

Source: Wang, Zhang and Grosse (2020), equation 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deploykit.finder.examples import Batch
from deploykit.finder.ranking import Array, Bools, keep_largest
from deploykit.finder.sources.gradients import (
    find_parameters,
    find_shares,
    mean_gradients,
    total_gradients,
)
from deploykit.finder.sources.source import Context, Source
from deploykit.finder.task import Task

__all__ = ["SOURCE", "flows"]


def flows(
    task: Task, model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> dict[str, Array]:
    """W (Hg) of each weight; H and g are those of the mean loss of all batches.

    Normalizations use the statistics of each batch, as in training.

    Args:
        task: for its loss.
        model: the network; its running statistics change.
        names: weights to score.
        batches: examples.
    """
    model.train()
    parameters = find_parameters(model, names)
    gradient = total_gradients(task, model, parameters, batches)
    # Hg is the gradient of g'g, one of the two g held fixed; it is a sum over batches because H is.
    products = [each.detach().new_zeros(each.shape) for each in parameters]
    for batch, share in zip(batches, find_shares(batches), strict=True):
        found = mean_gradients(task, model, parameters, batch, share=share, differentiable=True)
        inner = sum((part * fixed).sum() for part, fixed in zip(found, gradient, strict=True))
        if not isinstance(inner, torch.Tensor) or not inner.requires_grad:
            continue  # the loss is linear in all of them: there is no curvature
        second = torch.autograd.grad(inner, parameters, allow_unused=True)
        for total, each in zip(products, second, strict=True):
            if each is not None:
                total.add_(each)
    return {
        name: (each.detach() * product).cpu().numpy()
        for name, each, product in zip(names, parameters, products, strict=True)
    }


def _choose(context: Context) -> dict[str, Bools]:
    scores = flows(context.task, context.model, context.names, context.batches)
    return keep_largest(scores, context.kept)


SOURCE = Source("grasp", "GraSP: what keeps gradients flowing", "start", 1024, _choose)
