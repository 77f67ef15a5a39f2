"""Builds a network as it would be, with weights that only have the right zeros and sizes.

What a layer costs follows from its sizes and from where its zeros are, not from what its numbers are: so the network that is
timed is cut down to the counts asked for, or has blocks planted in it, by the passes that `optimize` runs. Its outputs mean
nothing. Forms that `optimize` would choose between (as is, aligned to multiples) are all made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import DeploykitError, ModelError, RuntimeUnavailable, UsageError
from deploykit.what_if.asks import EVERYWHERE
from deploykit.what_if.network import Network

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.layer_choice import LayerChooser
    from deploykit.what_if.asks import Ask, WhatIf
    from passes.analysis.matrices import Layer as Matrix
    from passes.base import Skip
    from passes.targets import Target

__all__ = ["AS_IS", "Bench", "Surrogate", "align"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

AS_IS = "as is"
ROW_GROUPS = 4
"""Blocks in a layer where a share of weights outside of them is asked for, and not a number of blocks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
    """A network as it would be.

    Attributes:
        name: as it was asked for.
        forms: the models to choose between, by name; the plain one first.
        assumed: what was assumed, in words.
        kept: output channels that each weight keeps, and those it had; of weights that lost some.
        skips: what stays as it is, and why.
    """

    name: str
    forms: Mapping[str, ir.Model]
    assumed: tuple[str, ...]
    kept: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    skips: tuple[Skip, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """Where surrogates of a model are built.

    Attributes:
        model: the model; unchanged.
        shapes: static sizes of its inputs, by name.
        target: what it is made for: whose multiples are tried.
        multiple: what counts of channels are rounded to; None: what the target likes.
        choose: measures layers with blocks in all their forms; None: the rules of the target decide.
    """

    model: ir.Model
    shapes: Mapping[str, tuple[int, ...]]
    target: Target
    multiple: int | None = None
    choose: LayerChooser | None = None
    _network: list[Network] = dataclasses.field(default_factory=list, repr=False)

    @property
    def network(self) -> Network:
        """What the model can lose; found once, when it is first asked for."""
        if not self._network:
            self._network.append(Network(self.model, self.shapes))
        return self._network[0]

    @property
    def rounding(self) -> int:
        """What counts are rounded to."""
        return self.multiple or self.target.rounding

    def build(self, what_if: WhatIf) -> Surrogate:
        """The network as a what-if has it.

        Raises:
            UsageError: it names layers that there are not, or asks for two shares of tied channels.
            ModelError: nothing changes: no layer can follow.
            RuntimeUnavailable: the target makes nothing of it.
        """
        if what_if.of("counts"):
            return self.at_file(what_if)
        if what_if.of("2:4") and self.target.sparse is None:
            raise RuntimeUnavailable(self._no_sparse_text(what_if))
        self._check_layers(what_if)
        model = self.model
        kept: Mapping[str, tuple[int, int]] = {}
        assumed: list[str] = []
        skips: list[Skip] = []
        is_changed = False
        if what_if.of("channels"):
            counts = self.counts_at(what_if)
            model, pruning = self.network.cut(counts)
            kept = self._lost(counts)
            skips += pruning.skips
            is_changed = bool(kept)
            assumed.append(
                f"counts of channels are the nearest multiples of {self.rounding}; channels that are tied are cut together; which "
                "ones go makes no difference"
                if self.rounding > 1
                else "channels that are tied are cut together; which ones go makes no difference"
            )
        if what_if.of("blocks"):
            model, planted = self._with_blocks(model, what_if.of("blocks"), skips)
            is_changed = is_changed or planted > 0
            assumed.append(
                f"{planted} layers get blocks; which channels a block has is drawn at random, and the form of each layer is "
                f"{'measured' if self.choose else 'what the rules of the target say'}"
            )
        if what_if.of("2:4"):
            model, sparse = self._with_zeros(model, what_if.of("2:4"))
            is_changed = is_changed or sparse > 0
            assumed.append(
                f"{sparse} weights obey 2:4 in the order that their channels have; whether sparse kernels run is up to the runtime"
            )
        if not is_changed:
            raise ModelError(self._nothing_text(what_if, skips))
        return Surrogate(what_if.name, self.forms(model), tuple(assumed), kept, tuple(skips))

    def at_file(self, what_if: WhatIf) -> Surrogate:
        """The network at the counts of a file."""
        from deploykit.channel_counts import read

        file = what_if.asks[0].file
        if file is None:
            msg = f"the what-if '{what_if.name}' names no file."
            raise UsageError(msg)
        return self.at_counts(
            what_if.name,
            self.network.counts_of(read(file).keep),
            (f"counts of channels are those of '{file}'",),
        )

    def at_counts(
        self, name: str, counts: Sequence[int], assumed: tuple[str, ...] = ()
    ) -> Surrogate:
        """The network at counts of its groups."""
        model, pruning = self.network.cut(counts)
        return Surrogate(name, self.forms(model), assumed, self._lost(counts), pruning.skips)

    def forms(self, model: ir.Model) -> dict[str, ir.Model]:
        """A model as it is, and aligned to the multiples that the target likes."""
        found = {AS_IS: model}
        for multiple in self.target.multiples:
            aligned = align(model, multiple)
            if aligned is not None:
                found[f"align-channels multiple={multiple}"] = aligned
        return found

    def _lost(self, counts: Sequence[int]) -> dict[str, tuple[int, int]]:
        rows = self.network.by_weight(counts)
        return {weight: row for weight, row in rows.items() if row[0] < row[1]}

    # -- channels -----------------------------------------------------------------------------

    def counts_at(self, what_if: WhatIf) -> tuple[int, ...]:
        """Counts of the groups at the shares of a what-if.

        Raises:
            UsageError: it asks for two shares of channels that are tied.
        """
        network = self.network
        counts = []
        for index, group in enumerate(network.groups):
            met = [ask for ask in what_if.of("channels") if ask.meets(*network.names[index])]
            # Who names a layer means it more than who names all of them.
            named = [ask for ask in met if ask.layers != EVERYWHERE] or met
            shares = {ask.value: ask for ask in named}
            if len(shares) > 1:
                one, other = list(shares.values())[:2]
                msg = (
                    f"the what-if '{what_if.name}' keeps {one.value:g} of the channels of '{one.layers}' and {other.value:g} of "
                    f"'{other.layers}', which are tied: {', '.join(network.names[index][:4])}. Give them one share."
                )
                raise UsageError(msg)
            share = next(iter(shares), 1.0)
            counts.append(
                self.rounded(share * group.size, index) if share < 1.0 else group.size
            )
        return tuple(counts)

    def rounded(self, count: float, index: int) -> int:
        """The count of a group nearest to one wanted, in multiples; the larger of two."""
        size, step = self.network.groups[index].size, self.rounding
        below = int(count // step) * step
        nearest = below + step if below + step - count <= count - below else below
        return min(max(nearest, min(step, size), self.network.least(index)), size)

    # -- blocks and 2:4 -------------------------------------------------------------------------

    def _with_blocks(
        self, model: ir.Model, asks: Sequence[Ask], skips: list[Skip]
    ) -> tuple[ir.Model, int]:
        """The model with dense blocks and zeros around them, computed block by block; how many layers got any."""
        from passes import GroupBlocks, InferShapes, PermuteChannels, Tidy
        from passes.analysis.matrices import read_layers
        from passes.base import Skip
        from passes.errors import PassError

        made = model.clone()
        Tidy()(made)
        dice = np.random.default_rng(0)
        planted = 0
        for layer in list(read_layers(made)):
            named = [ask for ask in asks if ask.meets(layer.node.name or "", layer.name)]
            if not named:
                continue
            reason = self._plant(layer, named[-1].value, dice)
            if reason is None:
                planted += 1
            else:
                skips.append(Skip(layer.name, reason, "ask for fewer blocks, or leave it out"))
        shapes = dict(self.shapes)
        try:
            PermuteChannels(purpose="group-blocks")(made)
            report = GroupBlocks(shapes=shapes, target=self.target, choose=self.choose)(made)
            InferShapes()(made)
        except PassError as error:
            msg = f"blocks cannot be planted in the model: {error}"
            raise ModelError(msg) from error
        skips += report.skips
        return made, planted

    def _plant(self, layer: Matrix, value: float, dice: np.random.Generator) -> str | None:
        """Zero a layer's weight outside of blocks; why not, where it cannot be."""
        from passes import weights

        multiple = self.target.group_multiple
        count = int(value) if value >= 1.0 else ROW_GROUPS
        share = 1.0 / count if value >= 1.0 else 1.0 - value
        if layer.groups > 1:
            return "it is a grouped convolution, which has blocks already"
        if layer.data.is_graph_input():
            return "it reads the input of the model, whose few channels make no blocks"
        columns = max(multiple, multiple * round(share * layer.columns / multiple))
        if columns >= layer.columns or layer.rows < count * multiple:
            return (
                f"with {layer.rows} outputs and {layer.columns} inputs it is too small for {count} blocks in multiples of "
                f"{multiple}, which is what the target computes fast"
            )
        mask = np.zeros((layer.rows, layer.columns), dtype=bool)
        order = dice.permutation(layer.columns)
        for number, rows in enumerate(np.array_split(dice.permutation(layer.rows), count)):
            # Each block starts where the one before ended, so that no input is left out.
            start = number * layer.columns // count
            mask[np.ix_(rows, np.take(order, range(start, start + columns), mode="wrap"))] = (
                True
            )
        shape = layer.array.shape
        filled: Array = np.asarray(dice.standard_normal(shape)).astype(layer.array.dtype)
        filled *= 1.0 / np.sqrt(max(1, columns * int(np.prod(shape[2:]))))
        filled *= mask.reshape(mask.shape + (1,) * (len(shape) - 2))
        # A product may hold its matrix either way round.
        is_flipped = layer.kind == "linear" and not (
            layer.node.op_type == "Gemm" and layer.node.attributes.get_int("transB")
        )
        weights.set_tensor(layer.weight, filled.T.copy() if is_flipped else filled)
        return None

    def _with_zeros(self, model: ir.Model, asks: Sequence[Ask]) -> tuple[ir.Model, int]:
        """The model with weights that obey 2:4; how many do."""
        from passes import Sparse24, Tidy
        from passes.analysis.sparsity import weight_sizes
        from passes.errors import PassError
        from passes.plans import SparsePlan

        made = model.clone()
        Tidy()(made)
        others = tuple(
            row.name
            for row in weight_sizes(made)
            if not any(ask.meets(row.node, row.name) for ask in asks)
        )
        try:
            report = Sparse24(force="magnitude", keep=others, target=self.target)(made)
        except PassError as error:
            msg = f"the weights cannot be made 2:4: {error}"
            raise ModelError(msg) from error
        plan = report.plan
        return made, len(plan.axes) if isinstance(plan, SparsePlan) else 0

    # -- refusals -------------------------------------------------------------------------------

    def _check_layers(self, what_if: WhatIf) -> None:
        """Refuse patterns that meet no layer.

        Raises:
            UsageError: there is one.
        """
        from passes.analysis.sparsity import weight_sizes

        rows = list(weight_sizes(self.network.model))
        for ask in what_if.asks:
            if not any(ask.meets(row.node, row.name) for row in rows):
                some = ", ".join(f"'{row.node or row.name}'" for row in rows[:4])
                msg = (
                    f"the what-if '{what_if.name}' is about layers '{ask.layers}', and the model has none of that name. It has "
                    f"{some}{', ...' if len(rows) > 4 else ''}; 'deploykit inspect' lists them."
                )
                raise UsageError(msg)

    def _no_sparse_text(self, what_if: WhatIf) -> str:
        from passes.targets import NO_SPARSITY_RULE

        rule = next(
            (each for each in self.target.rules if "sparse" in each.text), NO_SPARSITY_RULE
        )
        return (
            f"'{what_if.name}' would make nothing faster on '{self.target.name}': {rule.text} ({rule.source}.) Ask for channels "
            "or blocks, or measure on a device with sparse tensor cores with --runtime tensorrt."
        )

    def _nothing_text(self, what_if: WhatIf, skips: Sequence[Skip]) -> str:
        why = "; ".join(
            dict.fromkeys(
                f"'{skip.subject}': {skip.reason}" for skip in [*skips, *self._stuck()]
            )
        )
        return (
            f"'{what_if.name}' changes nothing in this model: {why or f'its layers are too narrow for multiples of {self.rounding}'}. "
            "Ask for a smaller share, for other layers, or for --multiple 1."
        )

    def _stuck(self) -> Sequence[Skip]:
        try:
            return self.network.stuck()[:3]
        except DeploykitError:
            return ()


def align(model: ir.Model, multiple: int) -> ir.Model | None:
    """A copy of a model with counts of channels padded to a multiple; None where that changes nothing or cannot be done."""
    from passes import AlignChannels, InferShapes
    from passes.errors import PassError

    made = model.clone()
    try:
        if not AlignChannels(multiple=multiple)(made).modified:
            return None
        InferShapes()(made)
    except PassError:
        return None
    return made
