"""What only the device can tell of single layers: how long each takes before and after, and its staircase.

Nothing is decided here. A layer that cannot be timed by itself costs the user a picture and no more: it is said in a
warning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import one_file
from deploykit.errors import DeploykitError
from deploykit.profile import HERE, Place
from deploykit.profile.engine_layers import map_layers, read_nodes
from deploykit.profile.layer_times import profile_layers
from deploykit.profile.staircase import find_places, sweep
from deploykit.report.records import Layer, LayerTimeRow, Staircase
from deploykit.runtimes import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.profile.layer_times import LayerProfile
    from deploykit.runtimes import Runner

__all__ = ["Closeups", "look"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PROFILE_S = 1.0
SWEEP_S = 1.5
"""Most seconds for the times of a model's layers, and for one staircase."""


@dataclasses.dataclass(frozen=True)
class Closeups:
    """What was found.

    Attributes:
        layer_times: time of each node, before and after.
        staircases: time against channel count, of up to three layers.
        warnings: what could not be timed, and why.
    """

    layer_times: tuple[LayerTimeRow, ...] = ()
    staircases: tuple[Staircase, ...] = ()
    warnings: tuple[str, ...] = ()


def look(
    before: Path,
    after: Path,
    feeds: Mapping[str, Array],
    *,
    model: ir.Model,
    layers: Sequence[Layer],
    as_is: Mapping[str, int],
    folder: Path,
    multiples: Sequence[int],
    threads: int | None,
    duration_s: float,
    progress: Callable[[str, float | None], None],
    runner: Runner | None = None,
    place: Place = HERE,
    runtime: str = DEFAULT,
) -> Closeups:
    """Time the layers of both models, and sweep the channels of the slowest.

    Args:
        before: file of the original.
        after: file of the written model; the same one if nothing changed.
        feeds: an array for each input, by name.
        model: the written model.
        layers: each weight of the original and what became of it.
        as_is: output channels that removal alone leaves, by weight.
        folder: where the models of single layers may be written.
        multiples: channel multiples that the target likes.
        threads: threads of the sessions; None leaves the number to the runtime.
        duration_s: what the user is willing to wait for each model.
        progress: told what is going on.
        runner: what runs the models on this machine; None is ONNX Runtime.
        place: where they are timed.
        runtime: what runs them elsewhere. Staircases are climbed in ONNX Runtime only.
    """
    warnings: list[str] = []
    times: tuple[LayerTimeRow, ...] = ()
    if place.is_local or runtime == DEFAULT:
        progress("timing the layers", None)
        try:
            times = _layer_times(
                before, after, feeds, threads, min(PROFILE_S, duration_s), runner, place
            )
        except DeploykitError as error:
            warnings.append(f"no times of layers: {error}")
    else:
        warnings.append(
            f"no times of layers: those of engines are told on this machine only, and the models ran on {place.name}; "
            "run 'deploykit profile --layers' there for them"
        )
    if runner is not None or runtime != DEFAULT:
        return Closeups(times, (), tuple(warnings))
    seconds = {row.name: row.before_s for row in times if row.before_s is not None}
    shapes = {name: array.shape for name, array in feeds.items()}
    staircases = []
    for number, spot in enumerate(find_places(layers, model, shapes, seconds=seconds or None)):
        stage = f"trying channel counts of '{spot.layer.node or spot.layer.weight}'"
        progress(stage, 0.0)
        own = folder / f"staircase{number}"
        own.mkdir()
        try:
            found = sweep(
                spot,
                as_is.get(spot.layer.weight, spot.after),
                own,
                multiples=multiples,
                threads=threads,
                budget_s=min(SWEEP_S, duration_s),
                progress=lambda done, stage=stage: progress(stage, done),  # type: ignore[misc]  # a default binds it
                on=place,
            )
        except DeploykitError as error:
            warnings.append(f"no staircase of '{spot.layer.weight}': {error}")
        else:
            staircases.append(found)
    return Closeups(times, tuple(staircases), tuple(warnings))


def _layer_times(  # noqa: PLR0917 - all of them are needed
    before: Path,
    after: Path,
    feeds: Mapping[str, Array],
    threads: int | None,
    duration_s: float,
    runner: Runner | None,
    place: Place,
) -> tuple[LayerTimeRow, ...]:
    """Times of the nodes of both models side by side, in the order of the original, then what was added."""

    def profile(path: Path) -> LayerProfile:
        if runner is None:
            return profile_layers(
                path, feeds, threads=threads, duration_s=duration_s, place=place
            )
        found = runner.profile_layers(path, feeds, duration_s=duration_s)
        return map_layers(read_nodes(one_file.load(path)), found)

    first = profile(before)
    second = profile(after) if after != before else first
    old = {layer.name: layer for layer in first.layers}
    new = {layer.name: layer for layer in second.layers}
    return tuple(
        LayerTimeRow(
            name,
            (old.get(name) or new[name]).op_type,
            old[name].seconds if name in old else None,
            new[name].seconds if name in new else None,
        )
        for name in dict.fromkeys((*old, *new))
    )
