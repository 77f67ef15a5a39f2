"""What a ticket keeps of each weight, with small pictures of the masks: as they were found, and with a structure."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.report.records import MaskPicture, TicketLayer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.ticket import Block, Ticket

__all__ = ["draw", "find_ticket_layers"]

Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

ROWS, COLUMNS = 64, 96
"""A larger picture shows shares of its cells: it has room for no more on a phone."""

MOST_LAYERS = 8
"""Weights with a picture, the largest ones."""


def find_ticket_layers(ticket: Ticket) -> tuple[TicketLayer, ...]:
    """What a ticket keeps, by weight, in its order; empty for a ticket without masks."""
    largest = sorted(ticket.masks, key=lambda name: -ticket.masks[name].size)[:MOST_LAYERS]
    rows = []
    for name, mask in ticket.masks.items():
        found, blocks = ticket.found.get(name), ticket.blocks.get(name, ())
        drawn = name in largest
        matrix = mask.reshape(len(mask), -1)
        rows.append(
            TicketLayer(
                weight=name,
                outputs=matrix.shape[0],
                columns=matrix.shape[1],
                found=None if found is None else int(np.count_nonzero(found)),
                kept=int(np.count_nonzero(mask)),
                blocks=len(blocks),
                picture_found=draw(found.reshape(matrix.shape))
                if drawn and found is not None
                else None,
                picture=draw(matrix) if drawn else None,
                picture_ordered=draw(_ordered(matrix, blocks)) if drawn and blocks else None,
            )
        )
    return tuple(rows)


def draw(matrix: Bools | Floats, rows: int = ROWS, columns: int = COLUMNS) -> MaskPicture:
    """A picture of a mask: shares of what is kept in each cell of a grid.

    Args:
        matrix: bool, or numbers from 0 to 1, shape `(outputs, columns)`.
        rows: cells from top to bottom, if it has as many.
        columns: cells from left to right, if it has as many.
    """
    sums = matrix.astype(np.float64)
    for axis, most in enumerate((rows, columns)):
        size = sums.shape[axis]
        starts = np.arange(min(size, most)) * size // min(size, most)
        lengths = np.diff(np.append(starts, size))
        sums = np.add.reduceat(sums, starts, axis=axis)
        sums /= lengths[:, None] if axis == 0 else lengths
    cells = np.round(255 * sums).astype(np.uint8)
    return MaskPicture(
        cells.shape[0], cells.shape[1], base64.b64encode(cells.tobytes()).decode("ascii")
    )


def _ordered(matrix: Bools, blocks: Sequence[Block]) -> Bools:
    """Rows and columns with those of the first block first, then what the second adds, and so on."""
    rows = _first_come([block.rows for block in blocks], matrix.shape[0])
    columns = _first_come([block.columns for block in blocks], matrix.shape[1])
    return matrix[np.ix_(rows, columns)]


def _first_come(several: Sequence[Ints], size: int) -> Ints:
    every = np.concatenate([*several, np.arange(size)])
    _, first = np.unique(every, return_index=True)
    return every[np.sort(first)]
