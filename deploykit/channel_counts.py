"""Files that say how many channels each weight of a network keeps.

`deploykit profile MODEL --allocate weights=0.42 --save-plan FILE` writes one. `prune-channels` cuts a model down to it, and
`find --structure refill --counts FILE` finds a ticket that keeps as many. Which channels stay is decided there, by importance.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit.atomic import write_whole
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ChannelCounts", "read", "write"]

SCHEMA_VERSION = "1.0"
KIND = "channel-counts"
ABOUT = (
    "How many of its output channels each weight keeps (keep, of all). Weights that are tied keep the same share. Change what "
    "you like; 'deploykit optimize MODEL -o OUT --passes +prune-channels --set prune-channels.counts=FILE' cuts the least "
    "important channels down to these counts, and 'deploykit find TASK -o OUT --structure refill --counts FILE' finds a ticket "
    "with them."
)


@dataclasses.dataclass(frozen=True)
class ChannelCounts:
    """How many output channels weights keep.

    Attributes:
        keep: how many, by weight.
        sizes: how many there are, by weight.
        source: path and sha256 of the model that it was made for; empty if it was made by hand.
        made: why these counts: what was asked for, and what was measured.
    """

    keep: Mapping[str, int]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    made: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """The document, which is read and edited by hand: a weight on each line."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "about": ABOUT,
            "source": dict(self.source),
            "made": dict(self.made),
        }
        rows = [
            json.dumps(
                {"weight": name, "keep": count}
                | ({"of": self.sizes[name]} if name in self.sizes else {}),
                ensure_ascii=False,
            )
            for name, count in self.keep.items()
        ]
        text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
        inside = ",\n  ".join(rows)
        return f'{text},\n "counts": [\n  {inside}\n ]\n}}\n'


def write(counts: ChannelCounts, path: Path) -> None:
    """Write counts, whole or not at all.

    Raises:
        UsageError: nothing can be written there.
    """
    try:
        write_whole(path, counts.to_json().encode())
    except OSError as error:
        msg = f"cannot write the counts '{path}': {error.strerror}. Choose another place."
        raise UsageError(msg) from error


def read(path: Path) -> ChannelCounts:
    """Read counts.

    Raises:
        UsageError: the file cannot be read, or holds no counts.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read the counts '{path}': {error.strerror}. 'deploykit profile MODEL --allocate weights=0.5 --save-plan FILE' makes some."
        raise UsageError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"the counts '{path}' are not JSON: {error}. Was something deleted halfway?"
        raise UsageError(msg) from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        msg = (
            f"'{path}' holds no counts of channels: its 'kind' is not '{KIND}'. Give a file that --allocate with --save-plan wrote; "
            "a plan of 'optimize' lists single channels, and goes with --plan."
        )
        raise UsageError(msg)
    version = str(document.get("schema_version", ""))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        msg = f"the counts '{path}' have the version '{version}', and {SCHEMA_VERSION} is known here. Make them anew."
        raise UsageError(msg)
    rows = document.get("counts")
    if not isinstance(rows, list) or not rows:
        msg = f"the counts '{path}' name no weight: 'counts' is a list of weight and keep."
        raise UsageError(msg)
    keep: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for number, row in enumerate(rows):
        name, count, size = _row(path, number, row)
        if name in keep:
            msg = f"the counts '{path}' name '{name}' twice. Delete one."
            raise UsageError(msg)
        keep[name] = count
        if size is not None:
            sizes[name] = size
    source, made = document.get("source", {}), document.get("made", {})
    return ChannelCounts(
        keep,
        sizes,
        source if isinstance(source, dict) else {},
        made if isinstance(made, dict) else {},
    )


def _row(path: Path, number: int, row: Any) -> tuple[str, int, int | None]:  # noqa: ANN401 - a JSON value
    """Weight, channels to keep, and channels there are.

    Raises:
        UsageError: it has another form, or keeps more than there are.
    """
    name = row.get("weight") if isinstance(row, dict) else None
    count = row.get("keep") if isinstance(row, dict) else None
    size = row.get("of") if isinstance(row, dict) else None
    size = None if size is None else _whole(size)
    keep = _whole(count)
    if not isinstance(name, str) or keep < 1 or size == 0:
        msg = f"the counts '{path}': entry {number} is {row!r}, and wants 'weight' (a name) and 'keep' (a number from 1 on)."
        raise UsageError(msg)
    if size is not None and keep > size:
        msg = f"the counts '{path}' keep {keep} of the {size} channels of '{name}'. Keep {size} or fewer."
        raise UsageError(msg)
    return name, keep, size


def _whole(value: object) -> int:
    """A whole number from 1 on; 0 for what is none."""
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return int(str(value)) if is_whole else 0
