"""PyTorch models that tests name as `tests.deploykit.torch_models:NAME`, and tickets for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from deploykit.finder.task import Task
from deploykit.ticket import Ticket

torch.set_num_threads(1)


def awake(model):
    """The model with statistics in its BatchNorms, so that folding them is not folding nothing."""
    dice = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                with torch.no_grad():
                    tensor.uniform_(low, low + 1, generator=dice)
    return model


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride > 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.short(x))


class Residual(nn.Module):
    """A ResNet of two stages, 16 and 32 wide."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.one = Block(width, width)
        self.two = Block(width, 2 * width, 2)
        self.head = nn.Linear(2 * width, 10)
        awake(self)

    def forward(self, images):
        x = self.two(self.one(torch.relu(self.bn(self.stem(images)))))
        return self.head(x.mean((2, 3)))


# The layers that make one set of channels, each with its BatchNorm, and those that read it.
COUPLED = (
    (16, (("stem", "bn"), ("one.conv2", "one.bn2")), ("one.conv1", "two.conv1", "two.short.0")),
    (16, (("one.conv1", "one.bn1"),), ("one.conv2",)),
    (32, (("two.conv1", "two.bn1"),), ("two.conv2",)),
    (32, (("two.conv2", "two.bn2"), ("two.short.0", "two.short.1")), ("head",)),
)


PROVENANCE = {
    "task": "test:Shapes",
    "metrics": {"validation": 0.5, "test": 0.75},
    "dense": {"validation": 0.625, "test": 0.875},
}


def residual_ticket(form="columns", seed=0):
    """A ticket of `Residual` with half of the channels of each coupled set dropped.

    Args:
        form: what is masked besides the rows that make these channels: "columns", those that read them; "norms", their
            BatchNorms, so that they are zero; or "rows", nothing: they are constants that somebody reads.
        seed: of which channels go.
    """
    torch.manual_seed(2)
    state = {name: each.numpy().copy() for name, each in Residual().state_dict().items()}
    masks = {
        name: np.ones(array.shape, bool) for name, array in state.items() if array.ndim > 1
    }
    dice = np.random.default_rng(seed)
    for count, makers, readers in COUPLED:
        dead = dice.permutation(count)[: count // 2]
        for layer, norm in makers:
            masks[f"{layer}.weight"][dead] = False
            if form == "norms":
                for part in ("weight", "bias"):
                    masks.setdefault(f"{norm}.{part}", np.ones(count, bool))[dead] = False
        for layer in readers if form == "columns" else ():
            masks[f"{layer}.weight"][:, dead] = False
    weights = {
        name: np.asarray(array * masks.get(name, np.True_)) for name, array in state.items()
    }
    return Ticket(masks, weights, provenance=PROVENANCE)


class Perceptron(nn.Module):
    """Linear layers on a matrix of features, which the exporter transposes, and on rows, which it does not."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(12, 16, bias=False)
        self.mix = nn.Linear(16, 8)
        self.rows = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, words, *, scale=1.0):
        x = torch.relu(self.mix(torch.relu(self.tokens(words))))
        return {"logits": self.head(torch.relu(self.rows(x.mean(1)))) * scale, "tokens": x}


class Fixed(nn.Module):
    """Works on a batch of two, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(x.reshape(2, 8))


class Chance(nn.Module):
    """Never computes the same twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


class Branching(nn.Module):
    """Takes a path that depends on the values of its input."""

    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Shapes(Task):
    """A task with example inputs, which nothing is trained on here."""

    def model(self):
        return Residual()

    def example_inputs(self):
        print("looking for examples")  # noqa: T201 - as users do
        return (torch.zeros(2, 1, 12, 12),)


class Broken(Shapes):
    def model(self):
        raise ValueError("no such file: weights.bin")


instance = Shapes()
number = 7


def needs_width(width):
    return Residual(width)


def headless():
    model = Residual()
    model.head = nn.Identity()
    return model


def wide():
    return Residual(24)


def pruned():
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    with torch.no_grad():
        model[0].bias.mul_(model[0].weight.any(dim=1))
    return model


def parallel():
    return nn.DataParallel(Residual())
