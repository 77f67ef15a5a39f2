"""What the finder hands over: masks, weights and blocks of a sparse network, with where they come from.

A ticket is one `.safetensors` file, which holds arrays and JSON and can run nothing. Arrays have the names of the network's
state dict, behind what they are:

    weights/NAME          the weight
    masks/NAME            its mask, eight elements a byte, first element in the highest bit
    found/NAME            the mask that was found, before it was given a structure
    blocks/NAME/rows      rows of all blocks of the weight, one block after the other
    blocks/NAME/columns   columns of all blocks

The metadata has the single key `deploykit.ticket`, because safetensors writes several in no fixed order: a JSON object with
`schema_version`, `masks` and `found` (shapes), `blocks` (numbers of rows and columns of each block), `provenance`, and
`digest`, a sha256 of everything else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.atomic import write_whole
from deploykit.errors import DeploykitError, ModelError, UsageError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["SCHEMA_VERSION", "Block", "Ticket", "find_metadata", "load_safetensors"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

SCHEMA_VERSION = "1.0"
"""Of the file. Files of another first number are refused; a later second number may add keys."""

KEY = "deploykit.ticket"
STORED = frozenset(
    {
        "bool",
        *("float16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    }
)
FIND_AGAIN = "Find the ticket again, or take a copy of the file that is whole."


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A dense block of a weight, seen as the matrix (outputs, inputs * kernel), as `weight.reshape(outputs, -1)` is.

    Attributes:
        rows: output channels, ascending.
        columns: columns of that matrix, ascending.
    """

    rows: Ints
    columns: Ints


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """A sparse network that was found.

    Attributes:
        masks: by name of a weight, in its shape; True keeps. Weights without one are dense.
        weights: the state dict, as arrays: trained, and zero where the mask is False. Empty if the ticket is masks only.
        blocks: the dense blocks of regrouped weights; they share no element, and their union is the mask.
        provenance: what it was found with, in JSON's types: task, versions, seeds, schedule, metrics.
        found: the masks as they were found, before they were given a structure; for pictures, and nothing depends on them.
    """

    masks: Mapping[str, Bools]
    weights: Mapping[str, Array]
    blocks: Mapping[str, tuple[Block, ...]] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    found: Mapping[str, Bools] = dataclasses.field(default_factory=dict)

    def check(self) -> Ticket:
        """Check that the parts fit together; returns the ticket.

        Raises:
            ModelError: they do not; the message names the weight.
        """
        for name, array in self.weights.items():
            if array.dtype.name not in STORED:
                msg = f"weight '{name}' holds {array.dtype}, which a ticket cannot. Convert it to float32."
                raise ModelError(msg)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                wrong = int(array.size - np.isfinite(array).sum())
                msg = (
                    f"weight '{name}' has NaN or infinity in {wrong} of {array.size} places: the training diverged. "
                    "Train again with a smaller learning rate, or take the ticket of an earlier round."
                )
                raise ModelError(msg)
        for name, mask in self.masks.items():
            self._check_mask(name, mask)
        for name, mask in self.found.items():
            if (
                mask.dtype != np.bool_
                or name not in self.masks
                or mask.shape != self.masks[name].shape
            ):
                msg = f"the mask that was found for '{name}' is none of its mask's shape. {FIND_AGAIN}"
                raise ModelError(msg)
        for name, blocks in self.blocks.items():
            if name not in self.masks:
                msg = f"there are blocks for '{name}', which has no mask. {FIND_AGAIN}"
                raise ModelError(msg)
            _check_blocks(name, self.masks[name], blocks)
        return self

    def _check_mask(self, name: str, mask: Bools) -> None:
        if mask.dtype != np.bool_:
            msg = (
                f"the mask of '{name}' holds {mask.dtype}, not bools. Compare it with 0 first."
            )
            raise ModelError(msg)
        if not self.weights:
            return
        weight = self.weights.get(name)
        if weight is None:
            msg = f"there is a mask for '{name}', which is none of the {len(self.weights)} weights. {FIND_AGAIN}"
            raise ModelError(msg)
        if weight.shape != mask.shape:
            msg = f"the mask of '{name}' has shape {list(mask.shape)}, its weight {list(weight.shape)}. {FIND_AGAIN}"
            raise ModelError(msg)
        left = int(np.count_nonzero(weight[~mask]))
        if left:
            msg = (
                f"weight '{name}' is not zero in {left} places that its mask drops, so it is not clear which of the two "
                "counts. Multiply it by its mask."
            )
            raise ModelError(msg)

    def save(self, path: Path) -> None:
        """Write the ticket; the file is there whole or not at all, and the same ticket gives the same bytes.

        Raises:
            ModelError: the parts do not fit together, or the provenance is no JSON.
            UsageError: the extra `torch` is not installed.
            OSError: the disk refuses; a file that was there is as it was.
        """
        numpy_format = load_safetensors()
        self.check()
        arrays = {f"weights/{name}": _in_order(array) for name, array in self.weights.items()}
        for kind, masks in (("masks", self.masks), ("found", self.found)):
            arrays |= {
                f"{kind}/{name}": np.packbits(mask.ravel()) for name, mask in masks.items()
            }
        for name, blocks in self.blocks.items():
            for what in ("rows", "columns"):
                # int64 is what an empty list of indices would not be
                parts = [np.asarray(getattr(block, what), np.int64) for block in blocks]
                arrays[f"blocks/{name}/{what}"] = np.concatenate(
                    [*parts, np.zeros(0, np.int64)]
                )
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "masks": {name: list(mask.shape) for name, mask in self.masks.items()},
            "found": {name: list(mask.shape) for name, mask in self.found.items()},
            "blocks": {
                name: [[len(block.rows), len(block.columns)] for block in blocks]
                for name, blocks in self.blocks.items()
            },
            "provenance": dict(self.provenance),
        }
        try:
            document["digest"] = _digest(document, arrays)
            text = json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            msg = f"the provenance of a ticket holds what JSON does not: {error}. Give text, finite numbers and lists."
            raise ModelError(msg) from error
        write_whole(path, numpy_format.save(arrays, metadata={KEY: text}))

    @classmethod
    def load(cls, path: Path) -> Ticket:
        """Read a ticket that `save` wrote. Files of other tools: `deploykit.foreign_tickets.read_ticket`.

        Raises:
            UsageError: there is no such file, it is no ticket of deploykit, or the extra `torch` is not installed.
            ModelError: it is cut short, altered or of a newer schema, or its parts do not fit together.
        """
        text = find_metadata(path).get(KEY)
        if text is None:
            msg = f"'{path}' is no ticket of deploykit. 'deploykit find' writes one."
            raise UsageError(msg)
        try:
            document = json.loads(text)
            version = str(document["schema_version"])
        except (ValueError, TypeError, KeyError) as error:
            raise _altered(path) from error
        if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            msg = (
                f"the ticket '{path}' has schema {version}, and this version of deploykit reads {SCHEMA_VERSION}. "
                "Install the version of deploykit that wrote it, or find the ticket again."
            )
            raise ModelError(msg)
        arrays = _read_arrays(path)
        stated = document.pop("digest", None)
        if stated != _digest(document, arrays):
            raise _altered(path)
        try:
            masks, found = (
                {
                    name: _unpacked(arrays[f"{kind}/{name}"], shape)
                    for name, shape in document[kind].items()
                }
                for kind in ("masks", "found")
            )
            ticket = cls(
                masks=masks,
                weights={
                    name.removeprefix("weights/"): array
                    for name, array in arrays.items()
                    if name.startswith("weights/")
                },
                blocks={
                    name: _separated(
                        arrays[f"blocks/{name}/rows"], arrays[f"blocks/{name}/columns"], sizes
                    )
                    for name, sizes in document["blocks"].items()
                },
                provenance=document["provenance"],
                found=found,
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            # The digest holds, so whoever wrote this meant it.
            msg = f"the ticket '{path}' is no ticket of schema {SCHEMA_VERSION}: {error!r}. {FIND_AGAIN}"
            raise ModelError(msg) from error
        try:
            return ticket.check()
        except ModelError as error:
            msg = f"the ticket '{path}' cannot be used: {error}"
            raise ModelError(msg) from error


def load_safetensors() -> ModuleType:
    """The numpy side of safetensors.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        msg = f"tickets need safetensors, which is not installed ({error}). Run: pip install 'deploykit-onnx[torch]'"
        raise UsageError(msg) from error
    return safetensors.numpy


def find_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty if it has none.

    Raises:
        UsageError: the file cannot be read, or the extra `torch` is not installed.
        ModelError: it is cut short, or no .safetensors file.
    """
    load_safetensors()
    import safetensors

    if not path.exists():
        msg = (
            f"cannot read the ticket '{path}': it does not exist. 'deploykit find' writes one."
        )
        raise UsageError(msg)
    if path.is_dir():
        inside = path / "ticket.safetensors"
        advice = f"Give '{inside}'." if inside.exists() else "Give the file in it."
        msg = f"the ticket '{path}' is a folder. {advice}"
        raise UsageError(msg)
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        msg = f"cannot read the ticket '{path}': {error.strerror or error}."
        raise UsageError(msg) from error
    except safetensors.SafetensorError as error:
        raise _cut_short(path, error) from error


def _read_arrays(path: Path) -> dict[str, Array]:
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except OSError as error:
        msg = f"cannot read the ticket '{path}': {error.strerror or error}."
        raise UsageError(msg) from error
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise _cut_short(path, error) from error


def _cut_short(path: Path, error: Exception) -> DeploykitError:
    return ModelError(
        f"'{path}' is cut short, or no .safetensors file: {str(error).rstrip('.')}. {FIND_AGAIN}"
    )


def _altered(path: Path) -> DeploykitError:
    return ModelError(
        f"the ticket '{path}' was altered after it was written: its content does not match its digest. {FIND_AGAIN}"
    )


def _digest(document: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """A hash of everything in a ticket but the hash itself."""
    text = json.dumps(document, allow_nan=False, sort_keys=True)
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"\n{name} {array.dtype.name} {list(array.shape)}\n".encode())
        # An array without axes has no buffer that a hash would take.
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _in_order(array: Array) -> Array:
    """The array with its elements in memory as they are numbered; safetensors would write them as they lie."""
    return np.require(array, requirements="C")


def _unpacked(bits: Array, shape: Sequence[int]) -> Bools:
    count = math.prod(shape)
    if bits.size != -(-count // 8):
        msg = f"{bits.size} bytes hold no mask of shape {list(shape)}"
        raise ValueError(msg)
    return np.unpackbits(bits, count=count).astype(np.bool_).reshape(shape)


def _separated(
    rows: Array, columns: Array, sizes: Sequence[Sequence[int]]
) -> tuple[Block, ...]:
    """The blocks whose rows and columns lie in one array one after the other."""
    ends = np.cumsum([(0, 0), *sizes], axis=0)
    if (rows.size, columns.size) != tuple(ends[-1]):
        msg = f"blocks of {ends[-1].tolist()} rows and columns have {rows.size} and {columns.size}"
        raise ValueError(msg)
    return tuple(
        Block(rows[start[0] : end[0]], columns[start[1] : end[1]])
        for start, end in itertools.pairwise(ends)
    )


def _check_blocks(name: str, mask: Bools, blocks: Sequence[Block]) -> None:
    """Check that blocks lie in their weight, share nothing and are its mask.

    Raises:
        ModelError: they do not.
    """
    matrix = mask.reshape(mask.shape[0], -1) if mask.ndim else mask.reshape(1, 1)
    covered = np.zeros_like(matrix)
    area = 0
    for number, block in enumerate(blocks):
        for what, indices, size in zip(
            ("rows", "columns"), (block.rows, block.columns), matrix.shape, strict=True
        ):
            if indices.ndim != 1 or not indices.size or (np.diff(indices) <= 0).any():
                msg = f"block {number} of '{name}' has {what} that are not one or more ascending numbers. {FIND_AGAIN}"
                raise ModelError(msg)
            if indices[0] < 0 or indices[-1] >= size:
                msg = (
                    f"block {number} of '{name}' has {what} {indices[0]} to {indices[-1]}, and the weight has {size}: "
                    f"0 to {size - 1}. {FIND_AGAIN}"
                )
                raise ModelError(msg)
        covered[np.ix_(block.rows, block.columns)] = True
        area += block.rows.size * block.columns.size
    apart = int(np.count_nonzero(covered != matrix))
    if apart:
        msg = (
            f"the {len(blocks)} blocks of '{name}' are not its mask: they differ from it in {apart} of {matrix.size} "
            f"places. {FIND_AGAIN}"
        )
        raise ModelError(msg)
    if area != np.count_nonzero(covered):
        msg = f"blocks of '{name}' overlap in {area - np.count_nonzero(covered)} places. {FIND_AGAIN}"
        raise ModelError(msg)
