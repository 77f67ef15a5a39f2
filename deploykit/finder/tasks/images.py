"""Tasks on pictures: scikit-learn's digits, MNIST and Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from deploykit.finder import datasets
from deploykit.finder.networks import lenet_300_100, mobilenet, resnet, vgg
from deploykit.finder.schedules import cosine
from deploykit.finder.task import Data, Task

__all__ = [
    "Digits",
    "Fashion",
    "Mnist",
    "digits",
    "fashion_mobilenet",
    "fashion_resnet8",
    "fashion_resnet20",
    "fashion_vgg",
    "mnist",
]


class Digits(Task):
    """A small network on 8x8 digits: a whole search takes seconds."""

    name = "digits"
    epochs = 12
    batch = 64

    def model(self) -> nn.Module:
        """Three convolutions."""
        return vgg(width=32, steps=(1, 1, 2))

    def data(self) -> Data:
        """1257 digits to learn from."""
        train, validation, test = datasets.digits()
        return Data(train=train, validation=validation, test=test)


class Mnist(Task):
    """LeNet-300-100 on MNIST, with the settings of Frankle and Carbin (2019): Adam at 1.2e-3, batches of 60.

    Args:
        examples: how many to train on; None for all but those that are held out.
    """

    name = "mnist"
    epochs = 10
    batch = 60

    def __init__(self, examples: int | None = None) -> None:
        self.examples = examples

    def model(self) -> nn.Module:
        """Two hidden layers."""
        return lenet_300_100()

    def data(self) -> Data:
        """Up to 55,000 digits to learn from."""
        train, validation, test = datasets.mnist(self.examples)
        return Data(train=train, validation=validation, test=test)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Adam."""
        return torch.optim.Adam(parameters, lr=1.2e-3)


class Fashion(Task):
    """A network on Fashion-MNIST.

    Args:
        name: what it is called.
        network: makes the network.
        examples: how many to train on; None for all but those that are held out.
        epochs: length of one training run.
    """

    batch = 128

    def __init__(
        self,
        name: str,
        network: Callable[[], nn.Module],
        *,
        examples: int | None = 10_000,
        epochs: int = 20,
    ) -> None:
        self.name = name
        self.epochs = epochs
        self._network = network
        self._examples = examples

    def model(self) -> nn.Module:
        """The network."""
        return self._network()

    def data(self) -> Data:
        """Up to 55,000 pictures to learn from."""
        train, validation, test = datasets.fashion_mnist(self._examples)
        return Data(train=train, validation=validation, test=test)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """SGD, with a decay that suits few examples."""
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)

    def schedule(self, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler:
        """A cosine after one epoch of rising."""
        return cosine(optimizer, epochs, steps_per_epoch, warmup_epochs=1)


digits = Digits()
mnist = Mnist()
fashion_resnet8 = Fashion("fashion_resnet8", lambda: resnet(8))
fashion_resnet20 = Fashion("fashion_resnet20", lambda: resnet(20), examples=None, epochs=40)
fashion_vgg = Fashion("fashion_vgg", lambda: vgg(width=32))
fashion_mobilenet = Fashion("fashion_mobilenet", lambda: mobilenet(width=32))
