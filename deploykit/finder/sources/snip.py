"""SNIP: how much the loss would change, to first order, without a weight: |gradient * weight|.

Source: Lee, Ajanthan and Torr (2019), equation 6. The gradient by a mask at 1 is the gradient by the weight times the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from deploykit.finder.examples import Batch
from deploykit.finder.ranking import Array, Bools, keep_largest
from deploykit.finder.sources.gradients import find_parameters, total_gradients
from deploykit.finder.sources.source import Context, Source
from deploykit.finder.task import Task

__all__ = ["SOURCE", "saliencies"]


def saliencies(
    task: Task, model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> dict[str, Array]:
    """|g * w| of each weight, where g is the gradient of the mean loss of all batches.

    Normalizations use the statistics of each batch, as in training.

    Args:
        task: for its loss.
        model: the network; its running statistics change.
        names: weights to score.
        batches: examples.
    """
    model.train()
    parameters = find_parameters(model, names)
    totals = total_gradients(task, model, parameters, batches)
    return {
        name: (total * each.detach()).abs().cpu().numpy()
        for name, each, total in zip(names, parameters, totals, strict=True)
    }


def _choose(context: Context) -> dict[str, Bools]:
    scores = saliencies(context.task, context.model, context.names, context.batches)
    return keep_largest(scores, context.kept)


SOURCE = Source("snip", "SNIP: |gradient * weight| before training", "start", 1024, _choose)
