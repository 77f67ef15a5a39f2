"""Plans: what planners decide and passes carry out. Frozen and printable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["BlockPlan", "ChannelPlan", "PermutePlan", "Plan", "SparsePlan"]


@dataclasses.dataclass(frozen=True)
class ChannelPlan:
    """Which channels go, and where zero channels are put in.

    Channels are named by the tensor that the weight making them writes, and their position along its channels. All
    tensors that are tied to them follow.

    Attributes:
        dropped: tensor name -> positions of the channels that are cut, in order.
        padded: tensor name -> position -> how many zero channels are put behind it.
        sizes: tensor name -> how many channels it has before; of the tensors above, where it is known.
        reasons: tensor name -> which weight makes its channels, and why they go or come, in words; likewise.
    """

    dropped: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    padded: Mapping[str, Mapping[int, int]] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.dropped or self.padded)

    def __str__(self) -> str:
        lines = [
            f"{name}: drop {len(indices)} channels" for name, indices in self.dropped.items()
        ]
        lines += [
            f"{name}: pad {sum(counts.values())} channels"
            for name, counts in self.padded.items()
        ]
        return "\n".join(lines) or "nothing to do"

    def to_json(self) -> str:
        """The plan as a JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ChannelPlan:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is not such a document.
        """
        try:
            document = json.loads(text)
            dropped = {
                str(name): tuple(int(i) for i in indices)
                for name, indices in document["dropped"].items()
            }
            padded = {
                str(name): {int(i): int(n) for i, n in counts.items()}
                for name, counts in document["padded"].items()
            }
            sizes = {str(name): int(n) for name, n in document.get("sizes", {}).items()}
            reasons = {
                str(name): str(text) for name, text in document.get("reasons", {}).items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            msg = "not a channel plan: a JSON object with 'dropped' and 'padded' is wanted"
            raise ValueError(msg) from error
        return cls(dropped, padded, sizes, reasons)


@dataclasses.dataclass(frozen=True)
class PermutePlan:
    """In which order channels stand.

    Attributes:
        orders: tensor name, as of a `ChannelPlan` -> for each position the one that its channel has before.
        reasons: tensor name -> what it is good for, in words.
    """

    orders: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.orders)

    def __str__(self) -> str:
        lines = [
            f"{name}: {len(order)} channels in another order"
            for name, order in self.orders.items()
        ]
        return "\n".join(lines) or "nothing to do"


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """How layers with dense blocks are computed.

    Attributes:
        lowerings: weight name -> name of the lowering (see `passes.lowerings`); layers that are missing stay as they are. Where
            several layers share a weight, the name of what one of them computes tells it apart.
        reasons: names, likewise -> its blocks and why this form, in words.
    """

    lowerings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.lowerings)

    def __str__(self) -> str:
        lines = [f"{name}: {form}" for name, form in self.lowerings.items()]
        return "\n".join(lines) or "nothing to do"


@dataclasses.dataclass(frozen=True)
class SparsePlan:
    """Which weights obey a pattern of zeros, as 2:4.

    Attributes:
        axes: name of the stored weight -> the axis along which its groups lie.
        patterns: name -> N:M, of at most N elements that are not zero in each M; of all weights above.
        reasons: name -> how it came to obey, in words.
    """

    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    patterns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.axes)

    def __str__(self) -> str:
        lines = [
            f"{name}: {self.patterns[name]} along axis {axis}"
            for name, axis in self.axes.items()
        ]
        return "\n".join(lines) or "nothing to do"


Plan: TypeAlias = ChannelPlan | PermutePlan | BlockPlan | SparsePlan
"""What a pass that takes a plan takes."""
