"""Plans on disk: what each pass of a run would cut and add, to be read, edited and carried out.

`deploykit optimize MODEL --dry-run --save-plan plan.json` writes one; whoever thinks better of something deletes
channels, whole entries or whole passes, and `deploykit optimize MODEL -o OUT --plan plan.json` carries out the rest. A
plan decides nothing: every pass checks again that each channel may go.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import registry
from deploykit.atomic import write_whole
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.recipe import Recipe
    from passes.plans import ChannelPlan, Plan

__all__ = ["PlannedStep", "SavedPlan", "check_place", "read", "write"]

SCHEMA_VERSION = "1.2"
ABOUT = (
    "What each pass does, by the tensor whose channels it cuts (drop), adds (pad: how many zero channels behind which) or puts "
    "in another order, and by the weight that it computes in another form or that obeys a pattern of zeros. Delete channels, entries or passes; 'deploykit optimize MODEL -o OUT --plan FILE' carries out the rest."
)
NUMBERS = re.compile(r"\[\s+([-0-9,\s]+?)\s+\]")


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One pass of a plan.

    Attributes:
        name: the pass.
        options: its options, those that text can say.
        plan: what it does; None for passes that take no plan.
    """

    name: str
    options: Mapping[str, object]
    plan: Plan | None


@dataclasses.dataclass(frozen=True)
class SavedPlan:
    """What a run does.

    Attributes:
        source: the model it was made for.
        sha256: the hash of that model's content.
        masks: the masks that were applied first; None if there were none.
        versions: versions of deploykit and of the libraries it used.
        steps: the passes, in order.
    """

    source: str
    sha256: str
    masks: str | None
    versions: Mapping[str, str]
    steps: tuple[PlannedStep, ...]

    @property
    def plans(self) -> dict[str, Plan]:
        """What each pass does, of those that take a plan."""
        return {step.name: step.plan for step in self.steps if step.plan is not None}

    def settle(self, recipe: Recipe) -> Recipe:
        """The recipe with the passes and options of the plan.

        Raises:
            UsageError: the recipe wants other passes, or not the masks of the plan.
        """
        names = tuple(step.name for step in self.steps)
        if recipe.passes is not None and recipe.pass_names != names:
            msg = (
                f"the plan '{recipe.plan}' is one for the passes {', '.join(names)}, and {', '.join(recipe.pass_names)} are "
                "asked for. Leave one of them out."
            )
            raise UsageError(msg)
        if self.masks is not None and recipe.masks is None:
            msg = f"the plan '{recipe.plan}' was made with the masks '{self.masks}'. Give them with --masks, too."
            raise UsageError(msg)
        options = {
            step.name: {**step.options, **recipe.options.get(step.name, {})}
            for step in self.steps
        }
        others = {name: given for name, given in recipe.options.items() if name not in names}
        return dataclasses.replace(recipe, passes=names, options={**options, **others})

    def check_source(self, path: str | None, model: Path, sha256: str) -> None:
        """Check that the plan was made for a model.

        Raises:
            UsageError: it was made for another.
        """
        if self.sha256 != sha256:
            msg = (
                f"the plan '{path}' was made for another model: it names the sha256 {self.sha256}, and '{model}' has "
                f"{sha256}. Make a new plan; or, if only the weights are others, write this sha256 into the plan."
            )
            raise UsageError(msg)


def to_json(saved: SavedPlan) -> str:
    """The plan as a document that is read and edited by hand: the channels of a tensor on one line."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "about": ABOUT,
        "source": {"path": saved.source, "sha256": saved.sha256},
        "masks": saved.masks,
        "versions": dict(saved.versions),
        "passes": [_step_document(step) for step in saved.steps],
    }
    text = json.dumps(document, indent=1)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _step_document(step: PlannedStep) -> dict[str, object]:
    from passes.plans import BlockPlan, ChannelPlan, PermutePlan, SparsePlan

    document: dict[str, object] = {"name": step.name, "options": dict(step.options)}
    match step.plan:
        case ChannelPlan():
            document["channels"] = _channel_rows(step.plan)
        case PermutePlan(orders, reasons):
            document["orders"] = [
                {"tensor": name, "order": list(order), "why": reasons.get(name, "")}
                for name, order in orders.items()
            ]
        case BlockPlan(lowerings, reasons):
            document["forms"] = [
                {"weight": name, "form": form, "why": reasons.get(name, "")}
                for name, form in lowerings.items()
            ]
        case SparsePlan(axes, patterns, reasons):
            document["patterns"] = [
                {
                    "weight": name,
                    "axis": axis,
                    "pattern": patterns[name],
                    "why": reasons.get(name, ""),
                }
                for name, axis in axes.items()
            ]
    return document


def _channel_rows(plan: ChannelPlan) -> list[dict[str, object]]:
    rows = []
    for name in dict.fromkeys([*plan.dropped, *plan.padded]):
        row: dict[str, object] = {"tensor": name}
        if name in plan.sizes:
            row["of"] = plan.sizes[name]
        if name in plan.dropped:
            row["drop"] = list(plan.dropped[name])
        if name in plan.padded:
            row["pad"] = {str(at): count for at, count in plan.padded[name].items()}
        row["why"] = plan.reasons.get(name, "")
        rows.append(row)
    return rows


def check_place(path: Path, *, out: Path | None = None) -> None:
    """Refuse a file for a plan before any work is done.

    Args:
        path: the file.
        out: the result folder of the same run.

    Raises:
        UsageError: it is there already, its folder is not, or it would lie in the result folder.
    """
    if path.exists() or path.is_symlink():
        msg = f"'{path}' is there already. Give another name for the plan, or delete it first."
        raise UsageError(msg)
    if not path.parent.is_dir():
        msg = f"cannot write the plan '{path}': there is no folder '{path.parent}'. Make it first."
        raise UsageError(msg)
    if out is not None and path.resolve().is_relative_to(out.resolve()):
        msg = f"the plan '{path}' would lie in the result folder, which is replaced as a whole. Give another place."
        raise UsageError(msg)


def write(saved: SavedPlan, path: Path) -> None:
    """Write a plan, whole or not at all.

    Raises:
        UsageError: nothing can be written there.
    """
    try:
        write_whole(path, to_json(saved).encode())
    except OSError as error:
        msg = f"cannot write the plan '{path}': {error.strerror}. Choose another place."
        raise UsageError(msg) from error


def read(path: Path) -> SavedPlan:
    """Read a plan.

    Raises:
        UsageError: it cannot be read, or is no plan.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read the plan '{path}': {error.strerror}. Make one with --dry-run --save-plan."
        raise UsageError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"the plan '{path}' is not JSON: {error}. Was something deleted halfway?"
        raise UsageError(msg) from error
    reader = _Reader(path)
    version = reader.text(document, "schema_version", "the document")
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        msg = f"the plan '{path}' has version {version}, and this deploykit reads {SCHEMA_VERSION}. Make a new plan."
        raise UsageError(msg)
    source = reader.take(document, "source", dict, "the document")
    steps = tuple(
        reader.step(each) for each in reader.take(document, "passes", list, "the document")
    )
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            msg = f"the plan '{path}' names the pass '{name}' twice. Delete one of them."
            raise UsageError(msg)
    masks = document.get("masks")
    return SavedPlan(
        source=reader.text(source, "path", "'source'"),
        sha256=reader.text(source, "sha256", "'source'"),
        masks=None if masks is None else str(masks),
        versions={},
        steps=steps,
    )


class _Reader:
    """Takes a document apart, and says where it is not as it should be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wrong(self, what: str) -> UsageError:
        return UsageError(
            f"the plan '{self._path}' is no plan: {what}. Make one with --dry-run --save-plan, and take out what you do not want."
        )

    def take(self, document: object, key: str, kind: type[Any], where: str) -> Any:  # noqa: ANN401 - of that type
        if not isinstance(document, dict) or not isinstance(document.get(key), kind):
            raise self.wrong(f"{where} has no '{key}', or one of another form")
        return document[key]

    def text(self, document: object, key: str, where: str) -> str:
        return str(self.take(document, key, str, where))

    def known(self, document: object, keys: Sequence[str], where: str) -> None:
        """Refuse keys that mean nothing: a misspelt one would change what is done without a word."""
        if isinstance(document, dict):
            for key in document:
                if key not in keys:
                    raise self.wrong(
                        f"{where} has a '{key}', and what counts is {', '.join(keys)}"
                    )

    def step(self, document: object) -> PlannedStep:
        from passes.plans import BlockPlan, PermutePlan, SparsePlan

        name = self.text(document, "name", "a pass")
        kinds = ("channels", "orders", "forms", "patterns")
        self.known(document, ("name", "options", *kinds), f"the pass '{name}'")
        wanted = registry.find(name).kind.plan_kind
        options = self.take(document, "options", dict, f"'{name}'")
        known = {PermutePlan: "orders", BlockPlan: "forms", SparsePlan: "patterns"}
        key = "channels" if wanted is None else known.get(wanted, "channels")
        for other in kinds:
            if isinstance(document, dict) and document.get(other):
                if wanted is None:
                    raise self.wrong(f"'{name}' neither cuts nor adds channels")
                if other != key:
                    raise self.wrong(f"'{name}' takes '{key}', not '{other}'")
        if wanted is None:
            return PlannedStep(name, options, None)
        rows: Sequence[object] = []
        if isinstance(document, dict) and key in document:
            rows = self.take(document, key, list, f"'{name}'")
        read = {
            "channels": self.channels,
            "orders": self.orders,
            "forms": self.forms,
            "patterns": self.patterns,
        }[key]
        return PlannedStep(name, options, read(name, rows))

    def channels(self, name: str, rows: Sequence[object]) -> Plan:
        from passes.plans import ChannelPlan

        dropped: dict[str, tuple[int, ...]] = {}
        padded: dict[str, dict[int, int]] = {}
        sizes: dict[str, int] = {}
        for row in rows:
            tensor = self.text(row, "tensor", f"an entry of '{name}'")
            if tensor in dropped or tensor in padded:
                raise self.wrong(f"'{name}' lists '{tensor}' twice")
            where = f"the entry for '{tensor}'"
            self.known(row, ("tensor", "of", "drop", "pad", "why"), where)
            if isinstance(row, dict) and "of" in row:
                sizes[tensor] = self.number(row["of"], where)
            if isinstance(row, dict) and "drop" in row:
                drop = self.take(row, "drop", list, where)
                dropped[tensor] = tuple(sorted({self.number(each, where) for each in drop}))
            if isinstance(row, dict) and "pad" in row:
                pad = self.take(row, "pad", dict, where)
                padded[tensor] = {
                    self.number(at, where): self.number(count, where)
                    for at, count in pad.items()
                }
        return ChannelPlan(dropped, padded, sizes)

    def orders(self, name: str, rows: Sequence[object]) -> Plan:
        from passes.plans import PermutePlan

        orders: dict[str, tuple[int, ...]] = {}
        for row in rows:
            tensor = self.text(row, "tensor", f"an entry of '{name}'")
            if tensor in orders:
                raise self.wrong(f"'{name}' lists '{tensor}' twice")
            where = f"the entry for '{tensor}'"
            self.known(row, ("tensor", "order", "why"), where)
            order = self.take(row, "order", list, where)
            orders[tensor] = tuple(self.number(each, where) for each in order)
        return PermutePlan(orders)

    def forms(self, name: str, rows: Sequence[object]) -> Plan:
        from passes.plans import BlockPlan

        forms: dict[str, str] = {}
        for row in rows:
            weight = self.text(row, "weight", f"an entry of '{name}'")
            if weight in forms:
                raise self.wrong(f"'{name}' lists '{weight}' twice")
            where = f"the entry for '{weight}'"
            self.known(row, ("weight", "form", "why"), where)
            forms[weight] = self.text(row, "form", where)
        return BlockPlan(forms)

    def patterns(self, name: str, rows: Sequence[object]) -> Plan:
        from passes.plans import SparsePlan

        axes: dict[str, int] = {}
        patterns: dict[str, str] = {}
        for row in rows:
            weight = self.text(row, "weight", f"an entry of '{name}'")
            if weight in axes:
                raise self.wrong(f"'{name}' lists '{weight}' twice")
            where = f"the entry for '{weight}'"
            self.known(row, ("weight", "axis", "pattern", "why"), where)
            axes[weight] = self.number(self.take(row, "axis", int, where), where)
            patterns[weight] = self.text(row, "pattern", where)
        return SparsePlan(axes, patterns)

    def number(self, value: object, where: str) -> int:
        try:
            if isinstance(value, int | str) and not isinstance(value, bool):
                return int(value)
        except ValueError:
            pass
        raise self.wrong(f"{where} holds {value!r}, which is no whole number")
