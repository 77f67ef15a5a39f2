"""SynFlow: how much of the flow from inputs to outputs goes through a weight; needs no data, and leaves no layer empty.

R is the sum of the outputs of the network with |w| for every weight, for an input of ones. A weight's score is |w| dR/d|w|:
the sum over all paths through it. In a network without other constants the scores of each layer add up to R, so the
smallest of all layers is never a whole layer. Weights go in many small steps, after each of which the flow is found anew.

A normalization in evaluation is a scaling, |weight| / sqrt(variance + eps), and nothing else: what it subtracts and adds,
and every bias, is left out, because it is no part of the flow. Scores span many powers of ten: they are float64.

Source: Tanaka et al. (2020), Algorithm 1 and Theorem 2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.errors import UsageError
from deploykit.finder.ranking import Array, Bools, keep_largest
from deploykit.finder.sources.gradients import find_parameters
from deploykit.finder.sources.source import Context, Source
from deploykit.finder.task import asking

__all__ = ["SOURCE", "as_flow", "flow_scores", "prune"]

STEPS = 100


@torch.no_grad()
def as_flow(model: nn.Module) -> nn.Module:
    """A copy that carries flow only: float64, weights positive, nothing added, normalizations as scalings."""
    flow = copy.deepcopy(model).double().eval()
    for name, parameter in flow.named_parameters():
        if name.rpartition(".")[2] == "bias":
            parameter.zero_()
        else:
            parameter.abs_()
    for name, buffer in flow.named_buffers():
        if name.rpartition(".")[2] == "running_mean":
            buffer.zero_()
    return flow


def flow_scores(
    flow: nn.Module, names: Sequence[str], ones: Sequence[Tensor]
) -> dict[str, Array]:
    """|w| dR/d|w| of each weight.

    Args:
        flow: what `as_flow` made, masked or not.
        names: weights to score.
        ones: the input, float64, a batch of one.

    Raises:
        UsageError: the flow is not finite.
    """
    parameters = find_parameters(flow, names)
    total = flow(*ones)
    if not isinstance(total, Tensor):
        total = sum(each.sum() for each in total)
    total = total.sum()
    if not torch.isfinite(total):
        msg = "the flow through the network is not finite, even in float64: SynFlow cannot rank it. Take another source."
        raise UsageError(msg)
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return {
        name: np.zeros(tuple(each.shape))
        if gradient is None
        else (gradient * each.detach()).cpu().numpy()
        for name, each, gradient in zip(names, parameters, found, strict=True)
    }


def prune(
    model: nn.Module,
    names: Sequence[str],
    ones: Sequence[Tensor],
    kept: int,
    *,
    steps: int = STEPS,
) -> dict[str, Bools]:
    """Masks that keep `kept` weights, in steps of equal ratio.

    Args:
        model: the network; it stays as it is.
        names: weights that may be pruned.
        ones: inputs of the shapes of one example, any float dtype; only shape and device count.
        kept: weights that stay.
        steps: 100 in the paper.
    """
    flow = as_flow(model)
    inputs = [torch.ones_like(each[:1], dtype=torch.float64) for each in ones]
    parameters = find_parameters(flow, names)
    masks = {
        name: np.ones(tuple(each.shape), np.bool_)
        for name, each in zip(names, parameters, strict=True)
    }
    total = sum(each.numel() for each in parameters)
    for step in range(1, steps + 1):
        scores = flow_scores(flow, names, inputs)
        count = round(total * (kept / total) ** (step / steps))
        masks = keep_largest(scores, count, among=masks)
        with torch.no_grad():
            for name, each in zip(names, parameters, strict=True):
                each.masked_fill_(~torch.from_numpy(masks[name]).to(each.device), 0.0)
    return masks


def _choose(context: Context) -> dict[str, Bools]:
    with asking(context.task, "example_inputs()"):
        inputs = context.task.example_inputs()
    for each in inputs:
        if not each.is_floating_point():
            msg = f"SynFlow needs inputs of real numbers, and this model takes {each.dtype}. Take another source."
            raise UsageError(msg)
    device = next(context.model.parameters()).device
    with asking(context.task, "the forward pass"):
        return prune(
            context.model, context.names, [each.to(device) for each in inputs], context.kept
        )


SOURCE = Source(
    "synflow", "SynFlow: flow from inputs to outputs, without data", "start", 0, _choose
)
