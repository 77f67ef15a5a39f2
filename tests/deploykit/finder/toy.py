"""Small tasks that tests name as `tests.deploykit.finder.toy:NAME`: an epoch takes some milliseconds."""

from __future__ import annotations

import torch
from torch import nn

from deploykit.finder.networks import lenet_300_100
from deploykit.finder.schedules import steps
from deploykit.finder.task import Data, Task

torch.set_num_threads(1)


def clouds(count, seed, *, features=16, classes=4, dtype=torch.float32):
    """Points around one centre for each class."""
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(0))
    dice = torch.Generator().manual_seed(seed)
    kinds = torch.randint(classes, (count,), generator=dice)
    points = centres[kinds] + 0.7 * torch.randn(count, features, generator=dice)
    return points.to(dtype), kinds


class Clouds(Task):
    """Two hidden layers on clouds of points."""

    name = "clouds"
    epochs = 4
    batch = 32
    dtype = torch.float32

    def model(self):
        return nn.Sequential(
            nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)
        ).to(self.dtype)

    def data(self):
        train, validation, test = (
            clouds(count, seed, dtype=self.dtype) for seed, count in enumerate((160, 60, 60), 1)
        )
        return Data(train=train, validation=validation, test=test)


class Pictures(Clouds):
    """A residual network with dropout, a schedule in steps and Adam: all that a training may depend on."""

    name = "pictures"
    epochs = 4

    def model(self):
        return Net()

    def data(self):
        splits = super().data()
        parts = {
            name: (getattr(splits, name)[0].reshape(-1, 1, 4, 4), getattr(splits, name)[1])
            for name in ("train", "validation", "test")
        }
        return Data(**parts)

    def optimizer(self, parameters):
        return torch.optim.AdamW(parameters, lr=0.01)

    def schedule(self, optimizer, epochs, steps_per_epoch):
        return steps(optimizer, epochs, steps_per_epoch)


class Net(nn.Module):
    """A residual block between two convolutions, with dropout."""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.inner = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.two(torch.relu(self.inner(self.one(x)))) + x)
        return self.head(self.drop(x.mean(dim=(2, 3))))


class Lenet(Clouds):
    """LeNet-300-100 in float64, without anything that depends on how a batch is divided."""

    name = "lenet"
    epochs = 2
    # It does not divide the 160 examples, nor does 2 divide it.
    batch = 37
    dtype = torch.float64

    def model(self):
        return lenet_300_100(16, 4).double()


class Slow(Clouds):
    """Takes long enough to be killed in any part of it."""

    name = "slow"
    epochs = 6

    def data(self):
        train, validation, test = (
            clouds(count, seed) for seed, count in enumerate((1600, 60, 60), 1)
        )
        return Data(train=train, validation=validation, test=test)


clouds_task = Clouds()
pictures = Pictures()
lenet = Lenet()
slow = Slow()
