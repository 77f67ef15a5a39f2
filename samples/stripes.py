"""A task of one's own, for `deploykit find stripes:Stripes`: in which of four directions do noisy stripes run?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.finder.task import Data, Task


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures `(count, 1, 12, 12)` and their directions `(count,)`."""
    dice = torch.Generator().manual_seed(seed)
    directions = torch.randint(4, (count,), generator=dice)
    angles = (directions * torch.pi / 4)[:, None, None]
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    phases = 6.3 * torch.rand(count, 1, 1, generator=dice)
    waves = torch.sin(rows * torch.cos(angles) + columns * torch.sin(angles) + phases)
    return (waves + torch.randn(count, 12, 12, generator=dice))[:, None], directions


class Stripes(Task):
    """Loss, metric, optimizer and schedule are those of a Task: cross entropy, accuracy, SGD, a cosine."""

    epochs = 4

    def model(self) -> nn.Module:
        """Two convolutions and a head."""
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
        )

    def data(self) -> Data:
        """Without a validation split, a tenth of the training examples is held out."""
        return Data(train=draw(1500, seed=0), test=draw(500, seed=1))
