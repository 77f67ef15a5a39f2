"""Tasks on signals over time: exercises seen by a smartwatch, and the pitch of tones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deploykit.finder import datasets
from deploykit.finder.networks import PitchNet, SignalNet
from deploykit.finder.task import Data, Task

__all__ = ["Tones", "Watch", "tones", "watch"]


class Watch(Task):
    """Which of seven exercises somebody does who was not seen in training."""

    name = "watch"
    epochs = 20
    batch = 64

    def model(self) -> nn.Module:
        """Three 1-D convolutions."""
        return SignalNet(6, 7)

    def data(self) -> Data:
        """Windows of five people to learn from."""
        train, validation, test = datasets.exercises()
        return Data(train=train, validation=validation, test=test)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """SGD."""
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


class Tones(Task):
    """Fine-tunes a pretrained pitch tracker on tones; its metric is the part that is right to 50 cents."""

    name = "tones"
    epochs = 4
    batch = 32

    def model(self) -> nn.Module:
        """CREPE `tiny` with its published weights."""
        network = PitchNet()
        network.load_state_dict(datasets.pretrained_pitch_weights())
        return network

    def data(self) -> Data:
        """2,000 tones to learn from."""
        train, validation, test = datasets.tones()
        return Data(train=train, validation=validation, test=test)

    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Part of the tones whose pitch is right to 50 cents."""
        # The nearest two pitches on each side are 20 and 40 cents away.
        return ((outputs.argmax(dim=1) - targets).abs() <= 2).float().mean()

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Adam, at a rate that leaves what the weights know."""
        return torch.optim.Adam(parameters, lr=1e-3)


watch = Watch()
tones = Tones()
