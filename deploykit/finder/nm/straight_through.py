"""STE and SR-STE: the optimizer holds dense weights, and every forward pass takes the best N:M mask of what they are then.

    W~ = E o W                      E: mask of the largest magnitudes of W in each group
    W <- W - lr * (dL/dW~ + decay * (1 - E) o W)

The gradient by the masked weights goes straight through to the dense ones. SR-STE adds the decay of what is dropped, so that
masks settle; it is a part of the gradient, and goes through momentum as that does. STE is SR-STE without the decay.

Source: Zhou et al. (2021), "Learning N:M fine-grained structured sparse neural networks from scratch", equations 6 and 9.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deploykit.finder.nm.pattern import Pattern
from deploykit.finder.nm.projection import Groups
from deploykit.finder.ranking import Bools

__all__ = ["StraightThrough", "choose_masks"]


@dataclasses.dataclass(frozen=True)
class StraightThrough:
    """How weights are masked while they are trained; a `MakeMasking`.

    Attributes:
        names: the weights.
        pattern: N:M.
        decay: lambda of SR-STE; 0 for STE.
    """

    names: tuple[str, ...]
    pattern: Pattern
    decay: float = 0.0

    def __call__(self, model: nn.Module, optimizer: Optimizer) -> _Projected:
        """Put a network under masks."""
        del optimizer
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return _Projected(self, [parameters[name] for name in self.names])


class _Projected:
    """A `Masking` that is chosen anew after every step."""

    def __init__(self, rule: StraightThrough, parameters: Sequence[nn.Parameter]) -> None:
        self._rule = rule
        # Layers may share one, under several names.
        self._parameters = list(dict.fromkeys(parameters))
        place = {each: at for at, each in enumerate(self._parameters)}
        self._places = [place[each] for each in parameters]
        # In the order in memory that the weights have.
        self._held = [torch.empty_like(each).detach() for each in self._parameters]
        self._groups = Groups(self._parameters, rule.pattern)
        self._rows = self._groups.choose(self._parameters)
        self._dropped = self._spread()
        self._flips: list[Tensor] = []

    def _spread(self) -> list[Tensor]:
        return self._groups.spread(~self._rows)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The masked weights lie where the dense ones do, which come back afterwards, to the bit."""
        with torch.no_grad():
            for parameter, held, dropped in zip(
                self._parameters, self._held, self._dropped, strict=True
            ):
                held.copy_(parameter)
                parameter.masked_fill_(dropped, 0.0)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, held in zip(self._parameters, self._held, strict=True):
                    parameter.copy_(held)

    @torch.no_grad()
    def correct_gradients(self, scale: float) -> None:
        """Add the decay of what is dropped."""
        if not self._rule.decay:
            return
        for parameter, dropped in zip(self._parameters, self._dropped, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter * dropped, alpha=self._rule.decay * scale)

    def follow(self) -> None:
        """Choose the masks of the weights as they are now; what differs is counted where it lies, without waiting for it."""
        rows = self._groups.choose(self._parameters)
        self._flips.append(torch.count_nonzero(rows ^ self._rows))
        self._rows = rows
        self._dropped = self._spread()

    def take_flips(self) -> tuple[int, ...]:
        """Elements of the masks that changed, by step: SAD."""
        if not self._flips:
            return ()
        found = torch.stack(self._flips).tolist()
        self._flips = []
        return tuple(int(each) for each in found)

    def masks(self) -> dict[str, Bools]:
        """The masks as they are now."""
        return _as_arrays(self._rule.names, [self._dropped[at] for at in self._places])


def choose_masks(
    weights: Sequence[Tensor], names: Sequence[str], pattern: Pattern
) -> dict[str, Bools]:
    """The masks that keep the largest magnitudes, in one shot, as ASP does.

    Args:
        weights: shape `(outputs, inputs, *kernel)`, in the order of their names.
        names: of them.
        pattern: N:M.

    Returns:
        by weight, in its shape; True keeps.
    """
    groups = Groups(weights, pattern)
    return _as_arrays(names, groups.spread(~groups.choose(weights)))


def _as_arrays(names: Sequence[str], dropped: Sequence[Tensor]) -> dict[str, Bools]:
    return {
        name: (~each).contiguous().cpu().numpy()
        for name, each in zip(names, dropped, strict=True)
    }
