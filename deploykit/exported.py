"""Keeps a PyTorch model that was exported, with all that belongs to it, so that it need not be exported again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit.errors import UsageError
from deploykit.foreign_tickets import read_ticket
from deploykit.ticket import Block
from deploykit.torch_source import Feeds, PlacedBlocks, Written

__all__ = ["examples_file", "keep", "model_file", "read"]

RECORD = "exported.json"
EXAMPLES = "examples.npz"


def keep(written: Written) -> None:
    """Write what belongs to an exported model beside it."""
    folder = written.path.parent
    record = {
        "model": written.path.name,
        "ticket_sha256": written.ticket_sha256,
        "notes": list(written.notes),
        "examples": len(written.examples),
        "blocks": {
            name: {
                "is_transposed": placed.is_transposed,
                "blocks": [
                    {"rows": block.rows.tolist(), "columns": block.columns.tolist()}
                    for block in placed.blocks
                ],
            }
            for name, placed in written.blocks.items()
        },
    }
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    if written.examples:
        # In the form that real inputs are given in: one axis more, for several of them.
        stacked = {
            name: np.stack([feeds[name] for feeds in written.examples])
            for name in written.examples[0]
        }
        np.savez(folder / EXAMPLES, allow_pickle=False, **stacked)


def read(folder: Path, ticket: Path | None) -> Written:
    """An exported model, as it was when it was kept.

    Args:
        folder: where it lies.
        ticket: the ticket that is in it; None without one.

    Raises:
        UsageError: the ticket is another one, or cannot be read.
        ModelError: the ticket is damaged.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if (ticket is None) != (record["ticket_sha256"] == ""):
        msg = f"the model in '{folder}' was exported with another ticket than '{ticket}'. Export it again."
        raise UsageError(msg)
    return Written(
        folder / record["model"],
        {
            name: PlacedBlocks(
                tuple(
                    Block(
                        np.asarray(block["rows"], np.int64),
                        np.asarray(block["columns"], np.int64),
                    )
                    for block in placed["blocks"]
                ),
                bool(placed["is_transposed"]),
            )
            for name, placed in record["blocks"].items()
        },
        tuple(record["notes"]),
        tuple(_examples(folder, int(record["examples"]))),
        None if ticket is None else read_ticket(ticket),
        record["ticket_sha256"],
    )


def model_file(folder: Path) -> Path:
    """The file of a kept model."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return folder / str(record["model"])


def examples_file(folder: Path) -> Path | None:
    """The example inputs of a kept model, as a file of real inputs; None if it has none."""
    path = folder / EXAMPLES
    return path if path.exists() else None


def _examples(folder: Path, count: int) -> Sequence[Feeds]:
    if not count:
        return ()
    with np.load(folder / EXAMPLES, allow_pickle=False) as file:
        stacked = {name: file[name] for name in file.files}
    return [{name: array[index] for name, array in stacked.items()} for index in range(count)]
