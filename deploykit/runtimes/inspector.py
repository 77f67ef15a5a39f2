"""Reads what an engine says of itself: the JSON of TensorRT's EngineInspector, which `trtexec --exportLayerInfo` writes too.

Version 10 lists the engine's inputs and outputs under `Bindings`, as names; 11 under `I/O Tensors`, as objects. Layers are
objects in an engine that was built with detailed profiling, and bare names in others.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from deploykit.errors import ModelError
from deploykit.report.sparse_records import Tactic

__all__ = ["EngineInfo", "EngineLayer", "read_engine_info", "sparse_tactics"]

SPARSE_KERNEL = re.compile(r"sparse_conv|sparse_gemm|sparse_fprop|spgemm|sptensor")
"""Parts of the names of sparse kernels, as they stand in the libraries."""


@dataclasses.dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine.

    Attributes:
        name: its name.
        layer_type: what it is, in the engine's words; None where it only has a name.
        tactic: name of its kernel; None where the engine does not say.
        has_sparse_weights: whether its weights qualify for sparse kernels, which does not say that one is used; None where
            the engine does not say.
    """

    name: str
    layer_type: str | None = None
    tactic: str | None = None
    has_sparse_weights: bool | None = None


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself.

    Attributes:
        layers: its layers, in order.
        tensors: names of its inputs and outputs.
        is_detailed: whether its layers are more than names.
    """

    layers: tuple[EngineLayer, ...]
    tensors: tuple[str, ...]
    is_detailed: bool


def read_engine_info(text: str) -> EngineInfo:
    """Read the inspector's JSON.

    Raises:
        ModelError: it is none.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        msg = f"what the engine says of itself is no JSON: {error}. Please report this, with the version of TensorRT."
        raise ModelError(msg) from error
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        msg = "what the engine says of itself has no list 'Layers'. Please report this, with the version of TensorRT."
        raise ModelError(msg)
    tensors = document.get("I/O Tensors") or document.get("Bindings") or []
    layers = tuple(_layer(each) for each in document["Layers"])
    return EngineInfo(
        layers,
        tuple(_name(each) for each in tensors),
        is_detailed=any(isinstance(each, dict) for each in document["Layers"]),
    )


def sparse_tactics(info: EngineInfo) -> tuple[Tactic, ...] | None:
    """The layers whose kernel is a sparse one by its name; None where the engine names no kernel at all."""
    named = [(layer.name, layer.tactic) for layer in info.layers if layer.tactic is not None]
    if not named:
        return None
    return tuple(Tactic(name, tactic) for name, tactic in named if SPARSE_KERNEL.search(tactic))


def _layer(found: Any) -> EngineLayer:  # noqa: ANN401 - JSON
    if not isinstance(found, dict):
        return EngineLayer(str(found))
    weights = found.get("HasSparseWeights", found.get("AllowSparse"))
    tactic = found.get("TacticName")
    return EngineLayer(
        _name(found),
        found.get("LayerType"),
        # An empty name is what layers without a kernel of their own have.
        str(tactic) if tactic else None,
        None if weights is None else bool(weights),
    )


def _name(found: Any) -> str:  # noqa: ANN401 - JSON
    return str(found.get("Name", "")) if isinstance(found, dict) else str(found)
