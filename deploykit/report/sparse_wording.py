"""How what is known of sparse kernels is put into words, the same on a terminal and on a page.

What nobody says is called unknown. It is never put into other words, and never concluded from what somebody did say.
"""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.report.sparse_records import (
    EngineRecord,
    SparseLayers,
    SparseTime,
    SparseVerdict,
)

__all__ = ["ASKED", "dense_texts", "engine_text", "sparse_rows", "sparse_times_text"]

ASKED = "Whether layers run in a sparse form: four answers, none of which follows from another"
UNKNOWN = "unknown"
NAMES_SHOWN = 6


def sparse_rows(verdict: SparseVerdict) -> tuple[tuple[str, str, str], ...]:
    """Who is asked, how many layers the answer names, and which."""
    tactics = (
        None
        if verdict.tactics is None
        else tuple(f"{each.layer}: {each.tactic}" for each in verdict.tactics)
    )
    return (
        ("eligible by our rules", *_listed(verdict.eligible)),
        ("found by the builder", *_counted(verdict.found)),
        ("chosen by the builder", *_counted(verdict.chosen)),
        ("sparse kernels that the engine names", *_listed(tactics)),
    )


def engine_text(engine: EngineRecord) -> str:
    """What an engine is, in a sentence."""
    gpus = (
        f"compute capability {', '.join(engine.compute_capabilities)}"
        if engine.compute_capabilities
        else "the GPUs that the builder takes by itself"
    )
    sizes = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}"
        for name, shape in engine.shapes.items()
    )
    return (
        f"engine: {engine.file}, {engine.bytes:,} bytes, built by {engine.runtime} in {engine.seconds:.1f} s for {gpus}; "
        f"it takes {sizes}" + ("" if engine.ran else "; it was not run here")
    )


def sparse_times_text(rows: Sequence[SparseTime]) -> str:
    """What layers took in both forms, added up, in a sentence; empty if none has a sparse form."""
    both = [
        (row.dense_s, row.sparse_s)
        for row in rows
        if row.dense_s is not None and row.sparse_s is not None
    ]
    if not both:
        return ""
    dense, sparse = (sum(each) for each in zip(*both, strict=True))
    return (
        f"{len(both)} of {len(rows)} layers have a 2:4 form: as single products they take {sparse * 1e6:.1f} us in it and "
        f"{dense * 1e6:.1f} us dense, {sparse / dense:.2f} of the dense time; what lies between layers is not in this"
    )


def dense_texts(rows: Sequence[SparseTime]) -> tuple[str, ...]:
    """Why layers have no 2:4 form, a sentence a reason."""
    layers: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            layers.setdefault(row.reason, []).append(row.layer)
    return tuple(f"dense: {_shortened(names)}: {reason}" for reason, names in layers.items())


def _counted(found: SparseLayers | None) -> tuple[str, str]:
    if found is None:
        return UNKNOWN, ""
    return str(found.count), _shortened(found.names or ())


def _listed(names: Sequence[str] | None) -> tuple[str, str]:
    if names is None:
        return UNKNOWN, ""
    return str(len(names)), _shortened(names)


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
