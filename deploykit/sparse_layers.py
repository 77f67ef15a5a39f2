"""What sparse kernels could make of a model's layers, and which patterns of zeros a run lost on its way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError
from deploykit.report import eligibility_records as records

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.recipe import Recipe
    from deploykit.report.records import Layer

__all__ = ["DEFAULT_TARGET", "inspect_sparse", "lost_patterns"]

DEFAULT_TARGET = "tensorrt"
"""Whose rules are taken if nobody says: the runtime that has sparse kernels, not that of this machine."""

ZEROS_LEFT = 0.25
"""With fewer zeros than that less than half of the fours could obey: the zeros were whole channels, which are gone."""

NAMED = 5


def inspect_sparse(
    source: Path, recipe: Recipe, command: str, pattern: str = "2:4"
) -> records.SparseInspection:
    """Judge every layer of a model against the rules of a target; no pass runs.

    Args:
        source: the model file, or a PyTorch model as `package.module:object`.
        recipe: the target, masks, a ticket, and sizes of inputs; the rest is not looked at.
        command: the command line, for the report.
        pattern: N:M.

    Raises:
        UsageError: something that was asked for makes no sense.
        ModelError: the model cannot be handled.
    """
    from deploykit.masks import apply_masks, read_masks
    from deploykit.opening import open_model, versions
    from passes.analysis.eligibility import find_eligibility
    from passes.analysis.patterns import Pattern
    from passes.targets import TARGETS

    began = time.perf_counter()
    try:
        wanted = Pattern.parse(pattern)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    target = TARGETS[recipe.target or DEFAULT_TARGET]
    with tempfile.TemporaryDirectory(prefix="deploykit-") as work:
        opened = open_model(source, recipe, Path(work))
        model = opened.source.model
        if recipe.masks is not None or model.functions:
            model = model.clone()
        if recipe.masks is not None:
            apply_masks(model, read_masks(Path(recipe.masks)))
        if model.functions:
            inline(model)
        layers = tuple(
            records.SparseLayer(
                node=found.node,
                op_type=found.op_type,
                weight=found.weight,
                shape=found.shape,
                axis=found.axis,
                outputs=found.outputs,
                inputs=found.inputs,
                precision=found.precision,
                share=found.share,
                kept=found.kept,
                answer=found.verdict,
                remarks=tuple(
                    records.RemarkRecord(remark.verdict, remark.reason, remark.advice)
                    for remark in found.remarks
                ),
            )
            for found in find_eligibility(model, target, wanted)
        )
        return records.SparseInspection(
            command=command,
            versions=versions(opened),
            source=opened.record,
            target=target.name,
            pattern=str(wanted),
            layers=layers,
            rules=tuple((rule.text, rule.source) for rule in target.rules),
            warnings=(*opened.notes, *_target_note(recipe, layers)),
            elapsed_s=time.perf_counter() - began,
        )


def lost_patterns(layers: Sequence[Layer], result: ir.Model) -> tuple[str, ...]:
    """Says which weights obeyed 2:4 in the original and do not in the result; nothing if none did.

    A weight whose zeros were whole channels obeys as well, by chance, and nothing is lost with it when these are cut out.

    Args:
        layers: the weights of the original.
        result: what was made of it.
    """
    import numpy as np

    from passes.analysis.fits import Candidate, find_candidates
    from passes.analysis.patterns import TWO_OF_FOUR, obeys

    obeyed = {layer.weight for layer in layers if layer.obeys_2_4 and layer.zeros < 1}
    if not obeyed:
        return ()
    lost = []
    for each in find_candidates(result, TWO_OF_FOUR):
        if not isinstance(each, Candidate) or each.name not in obeyed:
            continue
        array, axis = each.array, each.held.axis
        if np.count_nonzero(array) > (1 - ZEROS_LEFT) * array.size:
            continue
        if array.shape[axis] % TWO_OF_FOUR.group or not obeys(array, axis, TWO_OF_FOUR):
            lost.append(each.name)
    if not lost:
        return ()
    named = ", ".join(f"'{name}'" for name in lost[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    verb = "obeys" if len(lost) == 1 else "obey"
    text = (
        f"{named}{more} {verb} 2:4 in the original and no longer in the result: channels in between were cut out, added or put "
        "in another order. If it is to run in sparse kernels, leave these channels alone with --keep, or make the pattern "
        "last: --passes +sparse-2-4 --set sparse-2-4.force=magnitude"
    )
    return (text,)


def inline(model: ir.Model) -> None:
    """Put the bodies of a model's functions in the place of their calls.

    Raises:
        PassFailed: one cannot be put there.
    """
    from deploykit.errors import PassFailed
    from passes import tidy
    from passes.errors import PassError

    try:
        tidy.inline(model)
    except PassError as error:
        raise PassFailed("tidy", str(error), done=()) from error


def _target_note(recipe: Recipe, layers: Sequence[records.SparseLayer]) -> tuple[str, ...]:
    """Says whose rules were taken where nobody said, and that this machine's runtime has no sparse kernels."""
    if recipe.target is not None or not layers:
        return ()
    text = (
        f"these are the rules of {DEFAULT_TARGET}; ONNX Runtime on a CPU has no sparse kernels, and is no faster for 2:4 weights "
        "(--target says for what else)"
    )
    return (text,)
