"""Opens what is to be optimized: a model file as it is, or a PyTorch model with its ticket, exported first."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import deploykit
from deploykit import exported as kept
from deploykit import model_io
from deploykit.errors import UsageError
from deploykit.report import records
from deploykit.torch_source import Feeds, PlacedBlocks, TorchSource, Written, is_reference

if TYPE_CHECKING:
    from deploykit.recipe import Recipe
    from deploykit.ticket import Ticket

__all__ = ["Opened", "files_of", "open_model", "versions"]

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime")
TORCH_PACKAGES = ("torch", "onnxscript", "safetensors")
"""Distributions whose versions matter where a PyTorch model was exported."""


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A model, and where it comes from.

    Attributes:
        source: the model as it was read: of a PyTorch model, the file that it was exported to.
        given: what was asked for, a path or `package.module:object`.
        is_exported: whether it was exported just now.
        ticket: the ticket that is in it; None without one.
        ticket_record: its path and hash.
        blocks: dense blocks of its weights, by initializer.
        notes: what a user should know, in words.
        examples: inputs of the model's own task, which tell more than generated ones.
    """

    source: model_io.Source
    given: str
    is_exported: bool = False
    ticket: Ticket | None = None
    ticket_record: records.TicketRecord | None = None
    blocks: Mapping[str, PlacedBlocks] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    examples: tuple[Feeds, ...] = ()

    @property
    def record(self) -> records.SourceRecord:
        """What the report says of it."""
        factory = self.given if self.is_exported else None
        return records.SourceRecord(self.given, self.source.sha256, factory, self.ticket_record)

    @property
    def ticket_layers(self) -> tuple[records.TicketLayer, ...]:
        """What the report says of the ticket."""
        from deploykit.ticket_layers import find_ticket_layers

        return () if self.ticket is None else find_ticket_layers(self.ticket)


def files_of(given: Path, recipe: Recipe) -> tuple[Path, ...]:
    """The files that were named, which no result may replace."""
    named = () if recipe.ticket is None else (Path(recipe.ticket),)
    return named if is_reference(given) else (given, *named)


def open_model(
    given: Path,
    recipe: Recipe,
    work: Path,
    *,
    hash_ahead: bool = False,
    exported: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Opened:
    """Read a model file, or export a PyTorch model.

    Args:
        given: the file, or `package.module:object`.
        recipe: says with which ticket and sizes.
        work: an empty folder for the exported model, which stays until the model is not needed any more.
        hash_ahead: whether to hash its files in the background from now on.
        exported: a folder with the PyTorch model as it was exported before, by `deploykit.exported`; None to export it.
        progress: told what is going on.

    Raises:
        UsageError: there is no such file or object, or the ticket does not fit.
        ModelError: the model or the ticket cannot be handled.
    """
    if not is_reference(given):
        if recipe.ticket is not None:
            msg = (
                f"'{given}' is a model file, and --ticket goes with a PyTorch model, given as package.module:object. To zero "
                "weights of a model file, give --masks."
            )
            raise UsageError(msg)
        progress("reading the model")
        return Opened(model_io.load(given, hash_ahead=hash_ahead), str(given))
    ticket = None if recipe.ticket is None else Path(recipe.ticket)
    if exported is None:
        progress("exporting the model")
        written = TorchSource(str(given), ticket, recipe.shape).write(work)
    else:
        progress("reading the model")
        written = kept.read(exported, ticket)
    source = model_io.load(written.path, hash_ahead=hash_ahead)
    if recipe.shape:
        model_io.check_shapes(source, recipe.shape)
    return Opened(
        source,
        str(given),
        is_exported=True,
        ticket=written.ticket,
        ticket_record=None if ticket is None else _ticket_record(ticket, written),
        blocks=written.blocks,
        notes=written.notes,
        examples=tuple(
            feeds
            for feeds in written.examples
            if all(feeds[name].shape == size for name, size in recipe.shape.items())
        ),
    )


def versions(opened: Opened | None = None) -> dict[str, str]:
    """Versions of deploykit and of the libraries it uses; of those of PyTorch too, where a model of it was exported."""
    found = {"deploykit": deploykit.__version__, "python": platform.python_version()}
    more = TORCH_PACKAGES if opened is not None and opened.is_exported else ()
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _ticket_record(path: Path, written: Written) -> records.TicketRecord:
    """What the report says of a ticket file; its provenance may hold anything."""
    provenance = {} if written.ticket is None else written.ticket.provenance

    def metric(key: str) -> float | None:
        found = provenance.get(key)
        value = found.get("test") if isinstance(found, Mapping) else None
        if not isinstance(value, float) or not math.isfinite(value):
            return None
        return value

    return records.TicketRecord(
        str(path), written.ticket_sha256, metric("metrics"), metric("dense")
    )
