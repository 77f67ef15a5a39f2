"""What the finder hands over: masks, weights and blocks of a sparse network, with where they come from.

A ticket is one `.safetensors` file, which holds arrays and JSON and can run nothing. Arrays have the names of the network's
state dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Block", "Ticket"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclasses.dataclass(frozen=True)
class Block:
    """A dense block of a weight, seen as the matrix (outputs, inputs * kernel), as `weight.reshape(outputs, -1)` is.

    Attributes:
        rows: output channels, ascending.
        columns: columns of that matrix, ascending.
    """

    rows: Ints
    columns: Ints


@dataclasses.dataclass(frozen=True)
class Ticket:
    """A sparse network that was found.

    Attributes:
        masks: by name of a weight, in its shape; True keeps. Weights without one are dense.
        weights: the state dict, as arrays: trained, and zero where the mask is False.
        blocks: the dense blocks of regrouped weights; their union is the mask.
        provenance: what it was found with, in JSON's types: task, versions, seeds, schedule, metrics.
    """

    masks: Mapping[str, Bools]
    weights: Mapping[str, Array]
    blocks: Mapping[str, tuple[Block, ...]] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
