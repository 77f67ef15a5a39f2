"""How many items each group of channels keeps, where a file says how many output channels each weight keeps.

The names of the file are those of the ONNX model that it was made for. An exported model calls its weights as the state dict
does, or after what it made of them (a transposed matrix); both are known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.finder.coupling import Coupling, Member
    from deploykit.ticket import Bools

__all__ = ["find_counts", "find_missed"]


def find_counts(coupling: Coupling, counts: Mapping[str, int]) -> tuple[int | None, ...]:
    """How many items each line of a group keeps; None where nothing is said of a group.

    Args:
        coupling: what goes together.
        counts: output channels to keep, by weight. Where the channels of a weight are in several groups, each keeps the same
            share.

    Raises:
        UsageError: a weight that the network does not have, more channels than there are, fewer than have to stay, or two
            counts for channels that are tied.
    """
    makers = _makers(coupling)
    wanted: list[int | None] = [None] * len(coupling.groups)
    said_by: dict[int, str] = {}
    for name, count in counts.items():
        weight = coupling.aliases.get(name, name)
        if weight not in makers:
            if weight in coupling.shapes or weight in coupling.aliases.values():
                _check_whole(coupling, name, weight, count)
                continue
            raise UsageError(_unknown_text(name, makers))
        size = _size(coupling, weight, makers[weight])
        if not 1 <= count <= size:
            msg = (
                f"the counts keep {count} channels of '{name}', which makes {size}. Keep 1 to {size}; or were they made for another "
                "network?"
            )
            raise UsageError(msg)
        free = sum(member.indices.size for _, member in makers[weight])
        fixed = size - free
        if count < size and count <= fixed:
            msg = f"the counts keep {count} of the {size} channels of '{name}', of which {fixed} have to stay. Keep more of them."
            raise UsageError(msg)
        share = (count - fixed) / free
        for index, _ in makers[weight]:
            items = max(1, round(share * coupling.groups[index].shape[1]))
            first = said_by.setdefault(index, name)
            if wanted[index] not in {None, items}:
                msg = (
                    f"the counts keep {counts[first]} channels of '{first}' and {count} of '{name}', whose channels are tied: they meet "
                    "in a sum, or pass through the same layer. Give both the same share."
                )
                raise UsageError(msg)
            wanted[index] = items
    return tuple(wanted)


def _makers(coupling: Coupling) -> dict[str, list[tuple[int, Member]]]:
    """By weight, the groups that its output channels are in."""
    found: dict[str, list[tuple[int, Member]]] = {}
    for index, group in enumerate(coupling.groups):
        for member in group.members:
            if member.role == "makes":
                found.setdefault(member.weight, []).append((index, member))
    return found


def _size(coupling: Coupling, weight: str, members: list[tuple[int, Member]]) -> int:
    """Output channels of a weight."""
    largest = max(int(member.channels.max()) + 1 for _, member in members)
    axis = members[0][1].axis
    return max(largest, coupling.shapes[weight][axis])


def _check_whole(coupling: Coupling, name: str, weight: str, count: int) -> None:
    """Refuse to drop channels of a weight that can lose none; all of them may be asked for."""
    shape = coupling.shapes.get(weight, ())
    if shape and count not in shape[:2]:
        msg = (
            f"the counts keep {count} channels of '{name}', and none of its channels can be dropped: they reach an output, or are not to "
            "be pruned. Take it out of the counts."
        )
        raise UsageError(msg)


def _unknown_text(name: str, makers: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, list(makers), n=3, cutoff=0.3) or list(makers)[:3]
    there = ", ".join(f"'{each}'" for each in near) or "none"
    return (
        f"the counts name '{name}', and the network has no weight of that name whose channels can be dropped. It has {there}. Make the "
        "counts with a model that was exported from this network."
    )


def find_missed(
    coupling: Coupling, counts: Mapping[str, int], masks: Mapping[str, Bools]
) -> list[str]:
    """What keeps more channels than the counts say, in words: what is tied to it had to stay."""
    makers = _makers(coupling)
    notes = []
    for name, count in counts.items():
        weight = coupling.aliases.get(name, name)
        if weight not in makers or weight not in masks:
            continue
        axis = makers[weight][0][1].axis
        others = tuple(each for each in range(masks[weight].ndim) if each != axis)
        kept = int(np.count_nonzero(masks[weight].any(axis=others)))
        if axis == 0 and kept > count:
            notes.append(
                f"'{weight}' keeps {kept} channels, where the counts say {count}: what they are tied to has to stay regular, or "
                "cannot go"
            )
    return notes
