"""Pictures of masks and weights as elements of a page."""

from __future__ import annotations

import base64
import io
from html import escape

from deploykit.report.records import MaskPicture

__all__ = ["image"]

COLOUR = (0x2F, 0x6F, 0xB5)
"""Readable on white and on black; how much of a cell is kept is its opacity."""


def image(picture: MaskPicture, label: str) -> str:
    """A picture as an element that holds it; `label` says what it shows to those who cannot see it."""
    import numpy as np
    from matplotlib.image import imsave

    cells = np.frombuffer(base64.b64decode(picture.cells), np.uint8)
    pixels = np.empty((picture.height, picture.width, 4), np.uint8)
    pixels[..., :3] = COLOUR
    pixels[..., 3] = cells.reshape(picture.height, picture.width)
    # Small pictures are drawn larger than they are: whole numbers of pixels for each cell stay sharp.
    content = io.BytesIO()
    imsave(content, pixels, format="png", metadata={"Software": ""})
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img class="weights" alt="{escape(label)}" src="data:image/png;base64,{data}">'
