"""What a training run does to weights beside the steps of its optimizer: a mask that stays, or one that is chosen anew.

with masking.applied():            # the network as it is meant
    forward, loss, backward
masking.correct_gradients(scale)
the optimizer's step
masking.follow()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deploykit.errors import ModelError
from deploykit.finder.ranking import Bools

__all__ = ["FixedMasks", "MakeMasking", "Masking", "hold_zero", "place_masks"]


class Masking(Protocol):
    """Weights under masks, while a network is trained."""

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """The network with its masks: what is computed in this context is what the ticket will compute."""
        ...

    def correct_gradients(self, scale: float) -> None:
        """Change gradients before the optimizer sees them.

        Args:
            scale: what the loss was multiplied with, and gradients are still divided by.
        """
        ...

    def follow(self) -> None:
        """The optimizer has taken a step."""
        ...

    def take_flips(self) -> tuple[int, ...]:
        """Elements of the masks that changed, by step, since this was last asked for; empty where masks stay."""
        ...

    def masks(self) -> dict[str, Bools]:
        """The masks as they are now, by weight; True keeps."""
        ...


MakeMasking: TypeAlias = Callable[[nn.Module, Optimizer], Masking]
"""Puts a network whose weights are there, and its optimizer, under masks."""


class FixedMasks:
    """Masks that stay: what they drop is zero after every step, and so is its momentum.

    Args:
        model: the network.
        optimizer: of its parameters.
        masks: by weight; True keeps.

    Raises:
        ModelError: a mask names no parameter of the model, or has another shape.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Bools]
    ) -> None:
        self._masks = dict(masks)
        self._dropped = place_masks(model, masks)
        self._optimizer = optimizer
        self.follow()

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is to be done: what is dropped is zero."""
        return contextlib.nullcontext()

    def correct_gradients(self, scale: float) -> None:
        """What is dropped has no gradient."""
        del scale
        for parameter, mask in self._dropped.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0.0)

    def follow(self) -> None:
        """What is dropped is zero again."""
        hold_zero(self._dropped, self._optimizer)

    def take_flips(self) -> tuple[int, ...]:
        """None: the masks stay."""
        return ()

    def masks(self) -> dict[str, Bools]:
        """The masks as they were given."""
        return dict(self._masks)


def place_masks(model: nn.Module, masks: Mapping[str, Bools]) -> dict[nn.Parameter, Tensor]:
    """What masks drop, by parameter, on the parameter's device: True drops.

    Raises:
        ModelError: a mask names no parameter of the model, or has another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    dropped: dict[nn.Parameter, Tensor] = {}
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None:
            msg = f"there is a mask for '{name}', which the model does not have."
            raise ModelError(msg)
        if tuple(parameter.shape) != mask.shape:
            msg = f"the mask of '{name}' has shape {list(mask.shape)}, its weight {list(parameter.shape)}."
            raise ModelError(msg)
        if not mask.all():
            # In the layout of the weight, or every step would go through memory in another order.
            dropped[parameter] = torch.empty_like(parameter, dtype=torch.bool).copy_(
                torch.from_numpy(~mask)
            )
    return dropped


@torch.no_grad()
def hold_zero(dropped: Mapping[nn.Parameter, Tensor], optimizer: Optimizer) -> None:
    """Set to zero what is dropped, and all that an optimizer remembers of it."""
    for parameter, mask in dropped.items():
        parameter.masked_fill_(mask, 0.0)
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == mask.shape:
                value.masked_fill_(mask, 0.0)
