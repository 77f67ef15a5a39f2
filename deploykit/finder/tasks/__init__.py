"""Tasks to start from, each a `deploykit.finder.tasks:NAME`: nothing is read before a search asks for it.

`digits` needs no data beyond scikit-learn, `watch` and `tones` a package each; the others say where their data come from.
"""

from __future__ import annotations

from deploykit.finder.tasks.images import (
    digits,
    fashion_mobilenet,
    fashion_resnet8,
    fashion_resnet20,
    fashion_vgg,
    mnist,
)
from deploykit.finder.tasks.signals import tones, watch

__all__ = [
    "digits",
    "fashion_mobilenet",
    "fashion_resnet8",
    "fashion_resnet20",
    "fashion_vgg",
    "mnist",
    "tones",
    "watch",
]
