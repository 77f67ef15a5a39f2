"""What a channel shuffle asks of a removal, beyond equally long rows.

A shuffle writes channels row by row and reads them column by column. Whoever reads the result in chunks (the groups of a
convolution, the parts of a Split) finds channels of every row in each chunk. Once rows lose channels, those behind them
move up, and a chunk could end in the middle of what the next one used to read. So it is not enough that every row keeps
equally many: every row has to keep the right number in every chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from passes.analysis.channels import ChannelMap
from passes.analysis.compact import Array

__all__ = ["Shuffle", "find_shuffles"]


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """Channels that are written in rows, shuffled, and read in chunks.

    Attributes:
        classes: class of each channel, by row, shape `(rows, columns)`.
        chunk: which chunk reads it, the same shape.
        equal: whether the chunks must stay equally long (groups), or only complete rows of columns (parts).
        subject: name of the node that reads.
    """

    classes: Array
    chunk: Array
    equal: bool
    subject: str

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return int(self.chunk.max()) + 1

    def counts(self, mask: Array) -> Array:
        """How many channels of each row a chunk reads, of those in a mask: shape `(rows, chunks)`."""
        rows, chunks = self.chunk.shape[0], self.chunks
        cell = np.arange(rows)[:, None] * chunks + self.chunk
        return np.bincount(cell[mask], minlength=rows * chunks).reshape(rows, chunks)

    def needed(self, stay: Array) -> Array:
        """How many channels of each row have to stay for each chunk: the least that works, shape `(rows, chunks)`.

        Args:
            stay: bool, by class.
        """
        alive = self.counts(stay[self.classes])
        whole = self.counts(np.ones(self.chunk.shape, dtype=bool))
        if not self.equal:
            return np.broadcast_to(alive.max(axis=0, keepdims=True), alive.shape)
        for columns in range(max(int(alive.sum(1).max()), 1), self.chunk.shape[1]):
            wanted = dealt(alive.shape[0], alive.shape[1], columns)
            if wanted is not None and (alive <= wanted).all() and (wanted <= whole).all():
                return wanted
        return whole

    def missing(self, stay: Array, worth: Array) -> Array:
        """Classes that have to stay as well, the worthiest first."""
        short = self.needed(stay) - self.counts(stay[self.classes])
        found: list[Array] = []
        for row, chunk in zip(*np.nonzero(short > 0), strict=True):
            here = self.classes[row][(self.chunk[row] == chunk) & ~stay[self.classes[row]]]
            order = np.argsort(-worth[here], kind="stable")
            found.append(here[order][: short[row, chunk]])
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def dealt(rows: int, chunks: int, columns: int) -> Array | None:
    """How many of each row's channels each of `chunks` equal chunks gets when `rows` rows are read column by column."""
    if rows * columns % chunks:
        return None
    place = np.arange(columns)[None, :] * rows + np.arange(rows)[:, None]
    cell = np.arange(rows)[:, None] * chunks + place // (rows * columns // chunks)
    return np.bincount(cell.ravel(), minlength=rows * chunks).reshape(rows, chunks)


def find_shuffles(channels: ChannelMap) -> Iterator[Shuffle]:
    """Rows and chunks over the same channels, where the chunks are dealt out from the rows."""
    roots, tags = channels.roots, channels.trace.tags
    written = [
        roots[grid.tags] for grid in tags.grids if grid.partner is None and grid.tags.ndim == 2
    ]
    read = [
        ([roots[row] for row in grid.tags], True, grid.subject)
        for grid in tags.grids
        if grid.partner is not None and grid.tags.ndim == 2
    ]
    read += [([roots[part] for part in parts], False, subject) for parts, subject in tags.parts]
    for rows in written:
        members = np.unique(rows)
        if members.size != rows.size or members[0] == 0:
            continue
        for parts, equal, subject in read:
            line = np.concatenate(parts)
            if line.size != rows.size or not np.array_equal(np.unique(line), members):
                continue
            chunk_of = np.zeros(roots.size, dtype=np.int64)
            for index, part in enumerate(parts):
                chunk_of[part] = index
            shuffle = Shuffle(rows, chunk_of[rows], equal, subject)
            whole = shuffle.counts(np.ones(rows.shape, dtype=bool))
            regular = dealt(whole.shape[0], whole.shape[1], rows.shape[1])
            fits = not equal or (regular is not None and np.array_equal(regular, whole))
            if fits and np.array_equal(line, rows.T.ravel()):
                yield shuffle
