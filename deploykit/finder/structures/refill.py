"""Refill: whole channels in place of scattered weights, as many as the mask has room for.

Of a layer with `n` output channels and a mask of density `d`, the `k = floor(d * n)` channels of the best scores are kept
whole and the others dropped, at least one staying: the layer then has about as many weights as the mask left. Refill+ takes
a share `extra` of the other channels back. Ties are broken by index: the same scores give the same channels.

*Coupled* refill does so on the groups of a `Coupling`: channels that only exist together, in many weights, share one score
and go together. What is left is regular everywhere, so `passes.RemoveChannels` cuts all of it out.

The five criteria are functions that turn arrays into scores, one a channel.

Source: T. Chen et al., "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022, algorithm 2 and
appendix A (criteria). What is printed there as k is c_out * n times the layer's sparsity; the text and the tables mean the
number above.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from deploykit.errors import UsageError
from deploykit.finder.structures.counted import find_counts
from deploykit.ticket import Array, Bools

if TYPE_CHECKING:
    from deploykit.finder.coupling import Coupling, CouplingGroup, Member

__all__ = [
    "CRITERIA",
    "Criterion",
    "Match",
    "feature_l1",
    "feature_l2",
    "refill",
    "refill_coupled",
    "remaining_count",
    "remaining_l1",
    "saliency",
]

Criterion: TypeAlias = Literal[
    "remaining-l1", "remaining-count", "feature-l1", "feature-l2", "saliency"
]
CRITERIA: Final[tuple[Criterion, ...]] = (
    "remaining-l1",
    "remaining-count",
    "feature-l1",
    "feature-l2",
    "saliency",
)
"""Names of the functions of this module that score channels; the first is what the paper found best."""

Match: TypeAlias = Literal["rows", "weights"]

BISECTIONS = 30
ROUNDING = 1e-9
"""What the rounding of floats may take from a product that is a whole number."""
STEEPEST = 16.0
"""The largest power of its density that a group is cut to, to have as few weights as the mask."""


def remaining_l1(weight: Array, mask: Bools, *, axis: int = 0) -> Array:
    """Sum of the magnitudes of the weights that a mask leaves to each channel.

    Args:
        weight: the weight, any shape.
        mask: bool, the same shape.
        axis: the axis of output channels: 0, or 1 of a transposed convolution.

    Returns:
        float64, shape `(channels,)`.

    Raises:
        UsageError: the shapes differ.
    """
    _check_shapes(mask, weight, "weight")
    return _over_others(np.where(mask, np.abs(weight), 0), axis)


def remaining_count(mask: Bools, *, axis: int = 0) -> Array:
    """Number of the weights that a mask leaves to each channel: float64, shape `(channels,)`."""
    return _over_others(mask, axis)


def feature_l1(features: Array, *, axis: int = 1) -> Array:
    """L1 norm of each channel's feature map, mean over examples.

    Args:
        features: what the layer puts out, shape `(examples, channels, ...)`.
        axis: where the channels are; the last axis of a Linear layer on sequences.

    Returns:
        float64, shape `(channels,)`. The mean of several batches is the mean of this, weighted by examples.
    """
    total: Array = _by_example(np.abs(features), axis).sum(2).mean(0)
    return total


def feature_l2(features: Array, *, axis: int = 1) -> Array:
    """L2 norm of each channel's feature map, mean over examples; arguments as of `feature_l1`."""
    mean: Array = np.sqrt(_by_example(np.square(features, dtype=np.float64), axis).sum(2)).mean(
        0
    )
    return mean


def saliency(features: Array, gradients: Array, *, axis: int = 1) -> Array:
    """How much the loss would change if a channel's feature map were zero, to first order, mean over examples.

    For each example the product of activation and gradient, mean over space, then its magnitude.

    Args:
        features: what the layer puts out, shape `(examples, channels, ...)`.
        gradients: of the loss by that, the same shape.
        axis: where the channels are.

    Returns:
        float64, shape `(channels,)`.

    Raises:
        UsageError: the shapes differ.

    Source:
        P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, equation 6.
    """
    _check_shapes(features, gradients, "gradients")
    products = np.multiply(features, gradients, dtype=np.float64)
    change: Array = np.abs(_by_example(products, axis).mean(2)).mean(0)
    return change


def refill(mask: Bools, scores: Array, *, extra: float = 0.0, multiple: int = 1) -> Bools:
    """Keep the best output channels of one layer whole.

    Args:
        mask: bool, output channels along axis 0.
        scores: of the channels, shape `(mask.shape[0],)`; larger is better.
        extra: share of the other channels that is kept as well, 0 to 1 (refill+).
        multiple: the number of kept channels is the nearest multiple of this, the larger of two; all channels are allowed.

    Returns:
        bool, the mask's shape: whole rows.

    Raises:
        UsageError: scores of another number or that are NaN or infinite, a mask that is not bool, options out of range.
    """
    _check_options(extra, multiple)
    _check_mask(mask, "the mask")
    _check_scores(scores, mask.shape[0], "the scores")
    size = mask.shape[0]
    count = _count(int(np.count_nonzero(mask)), mask.size, size, extra=extra, multiple=multiple)
    kept = np.zeros(mask.shape, dtype=np.bool_)
    kept[_best(np.asarray(scores, dtype=np.float64), count)] = True
    return kept


def refill_coupled(
    masks: Mapping[str, Bools],
    scores: Mapping[str, Array],
    coupling: Coupling,
    *,
    extra: float = 0.0,
    multiple: int = 1,
    match: Match = "rows",
    normalise: bool = True,
    counts: Mapping[str, int] | None = None,
) -> dict[str, Bools]:
    """Keep the best channels of a whole network, so that all others can be cut out of it.

    The density of a group is that of all rows that make its channels, taken together. An item that is held stays, and
    counts as kept. A weight whose channels are all held keeps its rows.

    Args:
        masks: bool, by name of the weight, in its shape.
        scores: of the output channels of each weight, shape `(channels,)`. Depthwise weights may have some: they count
            where they are.
        coupling: what goes together.
        extra: as of `refill`.
        multiple: as of `refill`, of each line of a group.
        match: what the density of the masks says. "rows": how many channels stay, as in the paper; since the columns that
            read dropped channels go as well, fewer weights are left, about the density squared. "weights": how many weights
            stay, of all that have masks; densities are taken to a common power so that there are as many as the masks
            leave, or barely fewer. Refill+ comes on top of both.
        normalise: whether the scores of each weight are divided by their mean before those of a channel are summed up, so
            that every weight has an equal say. Behind most convolutions stands a normalisation, and the size of the
            weights in front of it says nothing about what they contribute to a sum. False: the sum as it is, which keeps
            the most magnitude.
        counts: output channels to keep, by weight, in place of what the masks say, `extra`, `multiple` and `match`; groups of
            which they say nothing stay whole.

    Returns:
        bool masks: of the weights in `masks`, and of all others that read or pass on what is dropped (a classifier's
        columns, depthwise filters). Rows of kept channels are whole but for the columns of dropped ones.

    Raises:
        UsageError: masks or scores that do not fit the network, a weight without scores, options out of range.
    """
    _check_options(extra, multiple)
    if match not in {"rows", "weights"}:
        msg = f"match='{match}': it is 'rows' or 'weights'."
        raise UsageError(msg)
    for name, mask in masks.items():
        if name not in coupling.shapes:
            msg = f"the mask '{name}' is of no weight that the coupling was made for. Name it to find_coupling."
            raise UsageError(msg)
        _check_mask(mask, f"the mask '{name}'")
        if mask.shape != coupling.shapes[name]:
            msg = f"the mask '{name}' has shape {list(mask.shape)}, its weight {list(coupling.shapes[name])}."
            raise UsageError(msg)
    pooled = [_pool(group, masks, scores, coupling, normalise) for group in coupling.groups]
    if counts is not None:
        wanted = find_counts(coupling, counts)
        chosen = [
            _keep_count(group, pool, group.shape[1] if count is None else count)
            for group, pool, count in zip(coupling.groups, pooled, wanted, strict=True)
        ]
        return _masks(coupling, coupling.settle(chosen, [pool.worth for pool in pooled]), masks)

    def at(power: float, more: float = 0.0) -> dict[str, Bools]:
        keep = [
            _keep(group, pool, power, more, multiple)
            for group, pool in zip(coupling.groups, pooled, strict=True)
        ]
        return _masks(coupling, coupling.settle(keep, [pool.worth for pool in pooled]), masks)

    return at(1.0 if match == "rows" else _matching_power(at, masks), extra)


def _matching_power(
    at: Callable[[float], dict[str, Bools]], masks: Mapping[str, Bools]
) -> float:
    """The power of the densities that leaves the most weights which are no more than the masks leave."""
    wanted = _weights_left(masks, masks)
    least, most = 0.0, STEEPEST
    if _weights_left(at(least), masks) <= wanted:
        return least
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        if _weights_left(at(middle), masks) <= wanted:
            most = middle
        else:
            least = middle
    return most


def _weights_left(masks: Mapping[str, Bools], names: Mapping[str, Bools]) -> int:
    return sum(int(np.count_nonzero(masks[name])) for name in names)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pool:
    """What a group's weights say together.

    Attributes:
        worth: float, shape `(items,)`: the scores of each item, summed up.
        remaining: weights that the masks leave in the rows of the group.
        size: weights in these rows.
    """

    worth: Array
    remaining: int
    size: int


def _pool(
    group: CouplingGroup,
    masks: Mapping[str, Bools],
    scores: Mapping[str, Array],
    coupling: Coupling,
    normalise: bool,
) -> _Pool:
    worth = np.zeros(group.held.size)
    everything = np.ones(group.held.size, dtype=np.bool_)
    remaining = size = 0
    for member in group.members:
        if member.role == "reads":
            continue
        found = scores.get(member.weight)
        if found is not None:
            line = _line(member, found, coupling.shapes[member.weight])
            mean = float(line.mean()) if normalise else 1.0
            np.add.at(worth, member.items, line[member.channels] / (mean or 1.0))
        elif member.role == "makes" and not group.held[member.items].all():
            msg = f"there are no scores for '{member.weight}', which makes channels that may go. Give one for each."
            raise UsageError(msg)
        if member.weight in masks:
            rows = masks[member.weight][member.select(everything)]
            remaining, size = remaining + int(np.count_nonzero(rows)), size + rows.size
    return _Pool(worth, remaining, size)


def _line(member: Member, scores: Array, shape: tuple[int, ...]) -> Array:
    """The scores of a weight, checked against what it makes."""
    size = shape[0] if member.axis == 0 else max(scores.size, int(member.channels.max()) + 1)
    _check_scores(scores, size, f"the scores of '{member.weight}'")
    return np.asarray(scores, dtype=np.float64)


def _keep(
    group: CouplingGroup, pool: _Pool, power: float, extra: float, multiple: int
) -> Bools:
    """The items of a group that stay."""
    size = group.shape[1]
    count = _count(pool.remaining, pool.size, size, extra=extra, multiple=multiple, power=power)
    return _keep_count(group, pool, count)


def _keep_count(group: CouplingGroup, pool: _Pool, count: int) -> Bools:
    """The best items of a group, so many of each line."""
    held, worth = group.held.reshape(group.shape), pool.worth.reshape(group.shape)
    count = max(count, int(held.sum(1).max(initial=0)))
    keep = np.zeros(group.shape, dtype=np.bool_)
    for line, (mine, stays) in enumerate(zip(worth, held, strict=True)):
        keep[line, _best(np.where(stays, np.inf, mine), count)] = True
    return keep.ravel()


def _masks(
    coupling: Coupling, keep: tuple[Bools, ...], masks: Mapping[str, Bools]
) -> dict[str, Bools]:
    """Masks without the rows and columns of what does not stay."""
    found = {name: np.ones(mask.shape, dtype=np.bool_) for name, mask in masks.items()}
    for group, kept in zip(coupling.groups, keep, strict=True):
        if kept.all():
            continue
        for member in group.members:
            if member.weight not in found:
                found[member.weight] = np.ones(coupling.shapes[member.weight], dtype=np.bool_)
            found[member.weight][member.select(~kept)] = False
    return found


def _count(
    remaining: int, size: int, channels: int, *, extra: float, multiple: int, power: float = 1.0
) -> int:
    """How many channels stay.

    Args:
        remaining: weights that the mask leaves in their rows.
        size: weights in their rows.
        channels: how many there are.
        extra: share of the others that stays as well.
        multiple: what the count is rounded to, unless it is all channels.
        power: of the density.
    """
    # in integers: a density of 0.3 of 10 channels is 3, which no float product promises
    count = remaining * channels // size if size else channels
    if power != 1.0 and size:
        count = math.floor(channels * (remaining / size) ** power + ROUNDING)
    count = max(count, 1)
    count += math.floor((channels - count) * extra + ROUNDING)
    below = count // multiple * multiple
    above = min(below + multiple, channels)
    if below == 0 or above - count <= count - below:
        return above
    return below


def _best(scores: Array, count: int) -> Array:
    """Positions of the largest scores, the first of those that are equal."""
    best: Array = np.argsort(-scores, kind="stable")[:count]
    return best


def _over_others(array: Array, axis: int) -> Array:
    """Sums over all axes but one, float64."""
    total: Array = (
        np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).sum(1, dtype=np.float64)
    )
    return total


def _by_example(features: Array, axis: int) -> Array:
    """As float64 of shape `(examples, channels, positions)`."""
    moved = np.moveaxis(features, axis, 1)
    return moved.reshape(*moved.shape[:2], -1).astype(np.float64)


def _check_shapes(one: Array, other: Array, what: str) -> None:
    if one.shape != other.shape:
        msg = f"the {what} has shape {list(other.shape)}, and what it goes with {list(one.shape)}. Give equal shapes."
        raise UsageError(msg)


def _check_options(extra: float, multiple: int) -> None:
    if not 0 <= extra <= 1:
        msg = f"extra={extra}: the share of the other channels that stays is a number from 0 to 1."
        raise UsageError(msg)
    if multiple < 1:
        msg = f"multiple={multiple}: the number of channels can be a multiple of 1 or more."
        raise UsageError(msg)


def _check_mask(mask: Bools, what: str) -> None:
    if mask.dtype != np.bool_ or mask.ndim < 2 or not mask.size:
        msg = f"{what} is {mask.dtype} of shape {list(mask.shape)}. Give bool with an axis of outputs and one of inputs."
        raise UsageError(msg)


def _check_scores(scores: Array, size: int, what: str) -> None:
    if scores.shape != (size,):
        msg = f"{what} have shape {list(scores.shape)}, for {size} channels. Give one for each."
        raise UsageError(msg)
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        msg = f"{what} hold {scores[bad]} at channel {bad}. Look for NaN in the weights, or in what was measured."
        raise UsageError(msg)
