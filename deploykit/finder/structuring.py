"""Applies a structure to the mask of a whole network: what `structures` knows of arrays, with what a model knows of itself."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.errors import DeploykitError, ModelError, UsageError
from deploykit.finder.coupling import find_coupling
from deploykit.finder.ranking import Array
from deploykit.finder.structures import refill as refilling
from deploykit.finder.structures.counted import find_counts, find_missed
from deploykit.finder.structures.refill import CRITERIA, Criterion, Match, refill_coupled
from deploykit.finder.structures.regroup import Columns, Method, Rule, regroup
from deploykit.finder.task import asking
from deploykit.ticket import Block
from passes.errors import PassError
from passes.targets import TARGETS

if TYPE_CHECKING:
    from deploykit.finder.coupling import Coupling
    from deploykit.finder.training import Masks, Trainer, Weights

__all__ = ["STRUCTURES", "Form", "Structure", "Structured", "apply_structure", "check_counts"]

Form: TypeAlias = Literal["free", "balanced", "disjoint"]
Name: TypeAlias = Literal["refill", "refill+", "regroup"]

STRUCTURES: Final[tuple[Name, ...]] = ("refill", "refill+", "regroup")
EXTRA = 0.2
"""What refill+ takes back of the dropped channels unless told otherwise: about what the paper's tables come to."""

SEEN = 1024
"""Training examples that criteria which look at feature maps are given."""

TELLING = 0.02
"""How far the part of the weights that refill leaves may lie below the mask's before it is explained."""

COUPLINGS: Final[weakref.WeakKeyDictionary[Trainer, Coupling]] = weakref.WeakKeyDictionary()
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclasses.dataclass(frozen=True)
class Structure:
    """A structure and its options.

    Attributes:
        name: `refill` and `refill+` keep whole channels, `regroup` dense blocks.
        criterion: of refill: what a channel is worth.
        extra: of refill: share of the dropped channels that is taken back; None: 0, and 0.2 for refill+.
        multiple: of refill: what numbers of channels are rounded to.
        match: of refill: whether the mask says how many channels stay, or how many weights.
        counts: of refill: output channels to keep, by weight, whatever the mask says; None: the mask says it.
        columns: of regroup: elements, or whole input channels, which stock operators can run.
        blocks: of regroup: blocks in a layer; None: up to 8.
        form: of regroup: blocks of any size, of equal size, or of equal size that share no input.
        method: of regroup: how rows are put together.
        rule: of regroup: how columns are found.
        target: of regroup: whose multiples blocks come in.
    """

    name: Name
    criterion: Criterion = "remaining-l1"
    extra: float | None = None
    multiple: int = 1
    match: Match = "rows"
    counts: tuple[tuple[str, int], ...] | None = None
    columns: Columns = "element"
    blocks: int | None = None
    form: Form = "free"
    method: Method = "best"
    rule: Rule = "area"
    target: str = "onnxruntime-cpu"

    def __post_init__(self) -> None:
        if self.name not in STRUCTURES:
            msg = f"there is no structure '{self.name}'. There are: none, {', '.join(STRUCTURES)}."
            raise UsageError(msg)
        if self.criterion not in CRITERIA:
            msg = f"there is no criterion '{self.criterion}'. There are: {', '.join(CRITERIA)}."
            raise UsageError(msg)
        if self.target not in TARGETS:
            msg = f"there is no target '{self.target}'. There are: {', '.join(TARGETS)}."
            raise UsageError(msg)
        if self.name == "refill" and self.extra:
            msg = "channels are taken back by 'refill+', not by 'refill'."
            raise UsageError(msg)

        if self.counts is not None:
            others = self.multiple != 1 or self.match != "rows" or self.extra
            if self.name != "refill" or others:
                msg = (
                    "counts of channels belong to the structure 'refill', and say it all: leave out extra, multiple and match, or "
                    "the counts."
                )
                raise UsageError(msg)

    @property
    def share_back(self) -> float:
        """Share of the dropped channels that is taken back."""
        if self.extra is not None:
            return self.extra
        return EXTRA if self.name == "refill+" else 0.0

    def describe(self) -> dict[str, Any]:
        """The options that matter to it, in JSON's types."""
        refilled = ("name", "criterion", "multiple", "match")
        regrouped = ("name", "columns", "blocks", "form", "method", "rule", "target")
        names = regrouped if self.name == "regroup" else refilled
        found = {name: getattr(self, name) for name in names}
        if self.counts is not None:
            found["counts"] = dict(self.counts)
        return found if self.name == "regroup" else {**found, "extra": self.share_back}


@dataclasses.dataclass(frozen=True, eq=False)
class Structured:
    """Masks with a structure.

    Attributes:
        masks: by weight; of more weights than before where other layers read what was dropped.
        blocks: of regrouped weights.
        notes: what could not be done, and why, in words.
        found: the masks as they were.
    """

    masks: dict[str, Any]
    blocks: dict[str, tuple[Block, ...]]
    notes: tuple[str, ...]
    found: dict[str, Any]


def apply_structure(
    trainer: Trainer, structure: Structure, masks: Masks, weights: Weights
) -> Structured:
    """Give masks a structure.

    Args:
        trainer: of the task.
        structure: which one.
        masks: of the prunable weights.
        weights: what its scores are taken from: those that the masks were chosen by.

    Raises:
        UsageError: an option does not fit, or the task failed.
        ModelError: the model cannot be exported, which refill needs to see what its channels are tied to.
        RuntimeUnavailable: the partitioner is not installed.
    """
    masked = {
        name: np.where(masks[name], array, np.zeros((), array.dtype))
        if name in masks
        else array
        for name, array in weights.items()
    }
    if structure.name == "regroup":
        return _regroup(trainer, structure, masks, masked)
    coupling = _coupling(trainer)
    made = refill_coupled(
        masks,
        _scores(trainer, structure.criterion, masks, masked),
        coupling,
        extra=structure.share_back,
        multiple=structure.multiple,
        match=structure.match,
        counts=None if structure.counts is None else dict(structure.counts),
    )
    notes = [f"'{skip.subject}': {skip.reason}" for skip in coupling.skips]
    if structure.counts is not None:
        notes += find_missed(coupling, dict(structure.counts), made)
    found, left = count_part(masks, masks), count_part(made, masks)
    if structure.counts is None and structure.match == "rows" and found - left > TELLING:
        notes.insert(
            0,
            f"{structure.name} keeps the mask's share of channels, and so fewer weights, down to about the square of it: "
            f"{1 - left:.1%} of the weights are dropped, and {1 - found:.1%} by the mask. To keep the mask's share of weights, give "
            "--match weights",
        )
    return Structured(made, {}, tuple(notes), dict(masks))


def count_part(masks: Masks, names: Collection[str]) -> float:
    """The part of the weights of these names that masks keep."""
    kept = sum(int(np.count_nonzero(masks[name])) for name in names)
    return kept / max(1, sum(masks[name].size for name in names))


def _regroup(
    trainer: Trainer, structure: Structure, masks: Masks, weights: Weights
) -> Structured:
    modules = dict(trainer.fresh_model().named_modules())
    made, blocks, notes = {}, {}, []
    for number, (name, mask) in enumerate(masks.items()):
        if mask.all():
            made[name] = mask
            continue
        found = regroup(
            mask,
            np.abs(weights[name]),
            blocks=structure.blocks,
            columns=structure.columns,
            method=structure.method,
            rule=structure.rule,
            balanced=structure.form != "free",
            disjoint=structure.form == "disjoint",
            target=TARGETS[structure.target],
            groups=int(getattr(modules.get(name.rpartition(".")[0]), "groups", 1)),
            seed=number,
        )
        if found.reason is None:
            made[name], blocks[name] = found.mask, found.blocks
        else:
            # Scattered zeros would make nothing faster and only cost accuracy: without blocks a layer is dense.
            made[name] = np.ones_like(mask)
            notes.append(f"'{name}' stays dense: {found.reason}")
    return Structured(made, blocks, tuple(notes), dict(masks))


def check_counts(trainer: Trainer, structure: Structure | None) -> None:
    """See that counts fit the network, before hours are spent on training it.

    Raises:
        UsageError: they do not.
    """
    if structure is not None and structure.counts is not None:
        find_counts(_coupling(trainer), dict(structure.counts))


def _coupling(trainer: Trainer) -> Coupling:
    """What is tied to what, which is a matter of the graph and not of the weights: it is exported once."""
    from deploykit.export import export_for_analysis

    if trainer in COUPLINGS:
        return COUPLINGS[trainer]
    model = trainer.fresh_model().eval()
    with asking(trainer.task, "example_inputs()"):
        inputs = trainer.task.example_inputs()
    try:
        COUPLINGS[trainer] = find_coupling(export_for_analysis(model, inputs), trainer.names)
    except (PassError, DeploykitError) as error:
        msg = f"refill cannot see which channels are tied in the model of the task '{trainer.task.name}': {error}"
        raise ModelError(msg) from error
    return COUPLINGS[trainer]


def _scores(
    trainer: Trainer, criterion: Criterion, masks: Masks, weights: Weights
) -> dict[str, Array]:
    """What each output channel of each weight is worth."""
    modules = dict(trainer.fresh_model().named_modules())
    axes = {
        name: int(isinstance(modules.get(name.rpartition(".")[0]), TRANSPOSED))
        for name in masks
    }
    if criterion == "remaining-l1":
        return {
            name: refilling.remaining_l1(weights[name], mask, axis=axes[name])
            for name, mask in masks.items()
        }
    if criterion == "remaining-count":
        return {
            name: refilling.remaining_count(mask, axis=axes[name])
            for name, mask in masks.items()
        }
    return _feature_scores(trainer, criterion, tuple(masks), weights)


def _feature_scores(
    trainer: Trainer, criterion: Criterion, names: tuple[str, ...], weights: Weights
) -> dict[str, Array]:
    """Means over training examples of what the layers put out."""
    model = trainer.model_with(weights).eval()
    batches = trainer.sample(SEEN)
    count = sum(len(targets) for _, targets in batches)
    totals: dict[str, Array] = {}
    for inputs, targets in batches:
        with _outputs(model, names, trainer.task.name) as features:
            with asking(trainer.task, "the forward pass"):
                outputs = model(*inputs)
            with asking(trainer.task, "loss()"):
                # Of a mean loss each example has a share; its own gradient is what is meant.
                loss = trainer.task.loss(outputs, targets) * len(targets)
        tensors = [features[name] for name in names]
        gradients = (
            torch.autograd.grad(loss, tensors)
            if criterion == "saliency"
            else (None,) * len(names)
        )
        for name, tensor, gradient in zip(names, tensors, gradients, strict=True):
            axis = 1 if _is_convolution(model, name) else tensor.ndim - 1
            array = tensor.detach().cpu().numpy()
            if gradient is not None:
                found = refilling.saliency(array, gradient.cpu().numpy(), axis=axis)
            elif criterion == "feature-l1":
                found = refilling.feature_l1(array, axis=axis)
            else:
                found = refilling.feature_l2(array, axis=axis)
            totals[name] = totals.get(name, 0.0) + found * (len(targets) / count)
    return totals


def _is_convolution(model: nn.Module, name: str) -> bool:
    return not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)


@contextmanager
def _outputs(
    model: nn.Module, names: tuple[str, ...], task: str
) -> Iterator[Mapping[str, Tensor]]:
    """What the layers of these weights put out in the forward pass that is made inside, by weight."""
    features: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def note(
            module: nn.Module, inputs: object, output: Tensor, *, name: str = name
        ) -> None:
            del module, inputs
            features[name] = output

        hooks.append(model.get_submodule(name.rpartition(".")[0]).register_forward_hook(note))
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in features]
    if missing:
        msg = f"the layer of '{missing[0]}' does not run in the model of the task '{task}'. Leave it out of prunable()."
        raise UsageError(msg)
