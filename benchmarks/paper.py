"""The networks and sparsities of the paper that this project sets out from, and the time saved that it prints.

Measured on an RTX 2080 Ti, batch 64, CUDA 10.2, cuDNN 7.6.5, fp32: the convolutions alone, each on an input of one size whatever
its place in the network.

Source: T. Chen et al., "Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets", ICML 2022: table 1, section 4,
and table A2 for "transferred". Where a structure gave no ticket there is no case.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.blocks import Scale

__all__ = ["CASES", "Case"]

Structure: TypeAlias = Literal["channel-wise", "group-wise"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at a sparsity.

    Attributes:
        network: of `nets.py`.
        data: what the paper trained it on.
        structure: of the zeros.
        sparsity: share of the convolutions' weights that is zero, in percent.
        printed: time saved that the paper prints, in percent, by what it is for.
        is_target: whether that has to be beaten.
        scale: of the layers, see `blocks.py`.
    """

    network: str
    data: str
    structure: Structure
    sparsity: float
    printed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    is_target: bool = False
    scale: Scale = "equal"

    @property
    def label(self) -> str:
        """How it is asked for."""
        tail = "" if self.scale == "equal" else f"/{self.scale}"
        return f"{self.network}/{self.structure}/{self.sparsity:g}{tail}"


def _transferred(structure: Structure, pairs: Sequence[tuple[float, float]]) -> Iterator[Case]:
    """ResNet-18 from ImageNet to CIFAR-10: pairs of sparsity and time saved."""
    for sparsity, saved in pairs:
        printed = {"transferred": saved}
        yield Case("resnet18-cifar", "C10, transferred", structure, sparsity, printed)


_VGG16 = {"C10": 57.75, "C100": 60.60}
_RESNET18 = {"C10": 55.45, "C100": 64.93}

CASES = (
    Case("wrn32-2", "C100", "channel-wise", 28),
    Case("wrn32-2", "C10", "channel-wise", 53),
    Case("wrn32-2", "C100", "group-wise", 36),
    Case("wrn32-2", "C10", "group-wise", 66),
    Case("mobilenetv1", "C10", "channel-wise", 67),
    Case("mobilenetv1", "C100", "group-wise", 56),
    Case("mobilenetv1", "C10", "group-wise", 72),
    Case("vgg16", "C100", "channel-wise", 40),
    Case("vgg16", "C10", "channel-wise", 60, {"C10": 63.11}),
    Case("vgg16", "C10, C100", "group-wise", 80, _VGG16, is_target=True),
    Case("vgg16", "C10, C100", "group-wise", 80, _VGG16, scale="fan-in"),
    Case("resnet18-cifar", "C10", "channel-wise", 50),
    *_transferred(
        "channel-wise",
        (
            (35.86, 34.53),
            (48.63, 48.10),
            (58.99, 60.67),
            (67.24, 65.98),
            (73.83, 69.04),
            (79.03, 71.08),
        ),
    ),
    Case("resnet18-cifar", "C10, C100", "group-wise", 78, _RESNET18, is_target=True),
    Case("resnet18-cifar", "C10, C100", "group-wise", 78, _RESNET18, scale="fan-in"),
    *_transferred("group-wise", ((40.57, 7.14), (48.16, 21.85), (56.01, 34.67))),
    # Printed for a sparsity of 45 to 50 %.
    Case("resnet50-64", "Tiny-ImageNet", "channel-wise", 45, {"Tiny": 57.53}),
    Case("resnet50-64", "Tiny-ImageNet", "channel-wise", 50, {"Tiny": 61.79}),
    Case("resnet50-64", "Tiny-ImageNet", "channel-wise", 60),
    Case(
        "resnet50-64",
        "Tiny-ImageNet",
        "channel-wise",
        74,
        {"group-wise": 64.84},
        is_target=True,
    ),
    Case("resnet50-64", "Tiny-ImageNet", "group-wise", 74, {"Tiny": 64.84}),
    Case("resnet50", "ImageNet", "channel-wise", 58, {"group-wise": 60.23}),
    Case("resnet50", "ImageNet", "group-wise", 31, {"ImageNet": 1.0}),
    Case("resnet50", "ImageNet", "group-wise", 51, {"ImageNet": 53.75}),
    Case("resnet50", "ImageNet", "group-wise", 58, {"ImageNet": 60.23}),
)
