"""Networks with all the structures that make channel removal hard, as PyTorch modules with random weights.

Twelve of them make the comparison with other tools (see `zeroed.py`). BatchNormalization has
statistics like those of a trained network, so that folding it matters.

Needs torch and torchvision, the latter installed with `--no-deps`: only its Python definitions
are used, and they import without its compiled operators once `define_missing_operators` ran.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NAMES", "C2f", "UNet", "YoloLike", "build", "classifier"]


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNormalization, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
        )


class C2f(nn.Module):
    """The block of YOLOv8: split in two, run one half through bottlenecks, join everything."""

    def __init__(self, channels: int, repeats: int = 2) -> None:
        super().__init__()
        half = channels // 2
        self.enter = ConvNormAct(channels, 2 * half, 1)
        self.middle = nn.ModuleList(
            nn.Sequential(ConvNormAct(half, half, 3), ConvNormAct(half, half, 3))
            for _ in range(repeats)
        )
        self.leave = ConvNormAct((2 + repeats) * half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.middle:
            parts.append(parts[-1] + block(parts[-1]))
        out: Tensor = self.leave(torch.cat(parts, 1))
        return out


class YoloLike(nn.Module):
    """A detector's backbone, one upsampling step of its neck, and a head with 85 planes."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow = nn.Sequential(
            ConvNormAct(3, 32, 3, 2),
            ConvNormAct(32, 64, 3, 2),
            C2f(64),
            ConvNormAct(64, 128, 3, 2),
            C2f(128),
        )
        self.deep = nn.Sequential(ConvNormAct(128, 256, 3, 2), C2f(256))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck = C2f(384, 1)
        self.head = nn.Conv2d(384, 85, 1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.shallow(x)
        deep = self.deep(shallow)
        out: Tensor = self.head(self.neck(torch.cat([self.up(deep), shallow], 1)))
        return out


class UNet(nn.Module):
    """Two steps down, two up by transposed convolution, with skips joined by Concat."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )

        self.down1 = double(3, width)
        self.down2 = double(width, 2 * width)
        self.bottom = double(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.grow2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.up2 = double(4 * width, 2 * width)
        self.grow1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.up1 = double(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down1(x)
        middle = self.down2(self.pool(high))
        low = self.bottom(self.pool(middle))
        y = self.up2(torch.cat([self.grow2(low), middle], 1))
        out: Tensor = self.out(self.up1(torch.cat([self.grow1(y), high], 1)))
        return out


@functools.cache
def define_missing_operators() -> torch.library.Library:
    """Declare torchvision's compiled operators, which a CPU build of torch comes without.

    Returns:
        the library; the declarations live as long as it does, hence the cache.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _torchvision(name: str, **options: Any) -> nn.Module:
    define_missing_operators()
    import torchvision.models

    module: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
    return module


def _vgg16() -> nn.Module:
    """VGG-16 with BatchNormalization and a classifier narrow enough for a file of 110 MB."""
    module: Any = _torchvision("vgg16_bn")
    module.classifier = nn.Sequential(nn.Linear(512 * 49, 512), nn.ReLU(), nn.Linear(512, 1000))
    return module  # type: ignore[no-any-return]  # torchvision is untyped


_ZOO: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: _torchvision("resnet18"), 224),
    "vgg16_bn": (_vgg16, 224),
    "resnet50": (lambda: _torchvision("resnet50"), 224),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), 224),
    "densenet121": (lambda: _torchvision("densenet121"), 224),
    "resnext50": (lambda: _torchvision("resnext50_32x4d"), 224),
    "googlenet": (lambda: _torchvision("googlenet", init_weights=False, aux_logits=False), 224),
    "yolo_like": (YoloLike, 320),
    "unet": (UNet, 128),
    "efficientnet_b0": (lambda: _torchvision("efficientnet_b0"), 224),
    "shufflenet_v2": (lambda: _torchvision("shufflenet_v2_x1_0"), 224),
    "vit_b_16": (lambda: _torchvision("vit_b_16"), 224),
    "convnext_tiny": (lambda: _torchvision("convnext_tiny"), 224),
    "swin_t": (lambda: _torchvision("swin_t"), 224),
}

NAMES = tuple(_ZOO)
"""All of them; the first twelve make the comparison with other tools."""


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode and an example input, shape `(1, 3, size, size)`.

    The seed is set globally and the draws happen in a fixed order: the weights of a name and a
    seed are always the same.

    Raises:
        KeyError: no such network.
    """
    # The exporter knows attention as separate operations only.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_num_threads(1)
    make, size = _ZOO[name]
    torch.manual_seed(seed)
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
                part.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]  # never None here
                part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    heads = getattr(module, "heads", None)
    if heads is not None and hasattr(heads, "head"):
        # torchvision starts this layer at zero: the output would not depend on the input.
        nn.init.normal_(heads.head.weight, std=0.02)
    return module, torch.randn(1, 3, size, size)


def classifier(module: nn.Module) -> nn.Module:
    """The last convolution or linear layer: its outputs are the interface and are not cut."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
