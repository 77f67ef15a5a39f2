"""Makes the forms of a model that are worth comparing: every step of a recipe, in every variant that may pay.

The plain form comes first: every step as it is by default, and steps that only add structure left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from deploykit import registry
from deploykit.choice import Form
from deploykit.errors import GateFailed, PassFailed, UsageError
from deploykit.instruments import Timing
from deploykit.quantized import unread_layers

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.instruments import Instrument
    from deploykit.layer_choice import LayerChooser
    from deploykit.recipe import Recipe
    from deploykit.torch_source import PlacedBlocks
    from passes.base import Pass, PassReport
    from passes.plans import Plan
    from passes.targets import Target

logger = logging.getLogger(__name__)

__all__ = [
    "PLAIN",
    "Made",
    "Step",
    "Told",
    "Unmade",
    "left_out",
    "make",
    "plan_steps",
    "run_steps",
]

PLAIN = "as is"
"""Name of the form with nothing added."""

CHANNEL_REMOVAL = "remove-channels"
"""The pass whose report names the layers that it cannot look into."""

ORDERING = "permute-channels"
"""The pass that puts channels in order for another one."""

PURPOSES = ("sparse-2-4", "group-blocks")
"""Those that it does so for; the first one if none follows."""

Options: TypeAlias = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Told:
    """What passes that ask for it are told about a run.

    Attributes:
        shapes: sizes of the inputs, by name, that the model is measured with.
        blocks: dense blocks of weights, by initializer of the original: those of a ticket.
        choose: measures layers that can be computed in several forms; None: the rules of the target decide.
        tell: is told what share of a long search is done.
    """

    shapes: Mapping[str, tuple[int, ...]] | None = None
    blocks: Mapping[str, PlacedBlocks] | None = None
    choose: LayerChooser | None = None
    tell: Callable[[float], None] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass of a recipe.

    Attributes:
        kind: the pass.
        options: what it is always given.
        variants: further sets of options whose worth only a measurement tells; each adds structure.
        is_optional: whether the plain form goes without it.
        surroundings: what it is told about the run, where it asks for that: no options of the user's.
    """

    kind: type[Pass]
    options: Options
    variants: tuple[Options, ...] = ()
    is_optional: bool = False
    surroundings: Options = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.kind.name

    @property
    def is_exact(self) -> bool:
        """Whether it preserves the function, with these options."""
        return self.kind.is_exact_with(self.options)

    @property
    def is_for_sparsity(self) -> bool:
        """Whether it puts channels in order for a pattern of zeros."""
        told = {**self.surroundings, **self.options}
        return self.name == ORDERING and told.get("purpose") == PURPOSES[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A form of the model.

    Attributes:
        form: its name, and what it adds.
        steps: the steps that made it, each with the options it had.
        reports: what they reported.
        seconds: what each of them took, by pass.
        model: the model; nobody else's.
    """

    form: Form
    steps: tuple[Step, ...]
    reports: tuple[PassReport, ...]
    seconds: Mapping[str, float]
    model: ir.Model


@dataclasses.dataclass(frozen=True)
class Unmade:
    """A form that could not be made: its name and why."""

    form: Form
    reason: str


@dataclasses.dataclass(frozen=True)
class _Trail:
    """What happened on the way to a form."""

    steps: tuple[Step, ...] = ()
    reports: tuple[PassReport, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    added: tuple[tuple[str, Options], ...] = ()

    @property
    def form(self) -> Form:
        """Its name and what it adds."""
        words = [
            " ".join([name, *(f"{option}={value}" for option, value in options.items())])
            for name, options in self.added
        ]
        return Form(" + ".join(words) or PLAIN, frozenset(name for name, _ in self.added))


def plan_steps(
    recipe: Recipe,
    target: Target,
    plans: Mapping[str, Plan] | None = None,
    told: Told | None = None,
) -> tuple[Step, ...]:
    """The steps of a checked recipe.

    Options that the recipe sets are not varied. A pass with an option that it cannot do without has no plain form, so
    it is optional until the recipe sets that option.

    Args:
        recipe: the recipe.
        target: what the model is made for.
        plans: what passes are to carry out, by name, in place of what they would plan: nothing else is tried.
        told: what else passes are told about the run.
    """
    told = told or Told()
    steps = []
    for name in recipe.pass_names:
        kind = registry.find(name).kind
        fixed = dict(recipe.options.get(name, {}))
        plan = (plans or {}).get(name)
        if plan is not None:
            fixed["plan"] = plan
        surroundings = {
            word: value
            for word, value in (
                ("target", target),
                ("shapes", told.shapes),
                ("blocks", told.blocks),
                ("choose", told.choose),
                ("tell", told.tell),
                *_followed(recipe, name),
            )
            if registry.accepts(kind, word)
        }
        open_options = [
            option
            for option in registry.required(kind)
            if option not in fixed and option not in surroundings
        ]
        chosen: Options = {
            **({"keep": recipe.keep} if recipe.keep and registry.accepts(kind, "keep") else {}),
            **fixed,
        }
        # Where rules choose and nothing is measured, what they choose is the plain form.
        by_rules = (
            registry.accepts(kind, "choose")
            and recipe.choose == "static"
            and not recipe.profile
        )
        is_optional = bool(open_options) or (kind.adds_structure and not fixed and not by_rules)
        # What a step does by default is the plain form, unless that goes without it.
        usual = {} if is_optional else registry.defaults(kind)
        steps.append(
            Step(
                kind,
                chosen,
                _open_variants(kind, target, fixed, usual)
                if recipe.profile and plan is None
                else (),
                is_optional=is_optional,
                surroundings=surroundings,
            )
        )
    return tuple(steps)


def _followed(recipe: Recipe, name: str) -> tuple[tuple[str, str], ...]:
    """What a pass that orders channels is told about the one that it does so for.

    That is the first one that follows; or the pattern, where weights are to be forced into it.

    Raises:
        UsageError: there is no such pattern.
    """
    from passes.analysis.patterns import Pattern

    if name != ORDERING:
        return ()
    names = recipe.pass_names
    followers = names[names.index(name) + 1 :]
    sparse = recipe.options.get(PURPOSES[0], {})
    purpose = next((each for each in followers if each in PURPOSES), PURPOSES[0])
    if PURPOSES[0] in followers and sparse.get("force"):
        purpose = PURPOSES[0]
    try:
        pattern = str(Pattern.parse(str(sparse.get("pattern", "2:4"))))
    except ValueError as error:
        # Said of the option that is wrong, not of the pass that is told it.
        msg = f"an option of '{PURPOSES[0]}' is wrong: {error}"
        raise UsageError(msg) from error
    return ("purpose", purpose), ("pattern", pattern)


def left_out(steps: Sequence[Step]) -> tuple[str, ...]:
    """Names of passes that do not run at all, because nothing is measured that could justify them."""
    return tuple(step.name for step in steps if step.is_optional and not step.variants)


def make(
    model: ir.Model, steps: Sequence[Step], *, instruments: Sequence[Instrument] = ()
) -> Iterator[Made | Unmade]:
    """Make all forms, one at a time, the plain one first.

    Variants that turn out to change nothing are left out.

    Args:
        model: the model; unchanged.
        steps: what to do.
        instruments: what watches the passes.

    Raises:
        PassFailed: a pass fails on the way to the plain form.
    """
    yield from _grow(model.clone(), tuple(steps), _Trail(), instruments)


def run_steps(
    model: ir.Model, steps: Sequence[Step], *, instruments: Sequence[Instrument] = ()
) -> tuple[PassReport, ...]:
    """Run steps on `model`, in place, without variants.

    Raises:
        PassFailed: a pass fails; the message names those that were done.
    """
    reports: list[PassReport] = []
    for step in steps:
        reports.append(_run(model, step, instruments, [report.name for report in reports]))
    return tuple(reports)


def _grow(
    model: ir.Model, steps: tuple[Step, ...], trail: _Trail, instruments: Sequence[Instrument]
) -> Iterator[Made | Unmade]:
    """Carry out the first step in each of its variants, and grow the rest from each; `model` is used up."""
    if not steps:
        yield Made(trail.form, trail.steps, trail.reports, trail.seconds, model)
        return
    step, rest = steps[0], steps[1:]
    # Variants start from the model before this step; without variants nobody needs it again.
    start = model.clone() if step.variants else model
    seen: list[PassReport] = []
    if step.is_optional:
        yield from _grow(model, rest, trail, instruments)
    else:
        after = _advance(model, step, trail, instruments)
        seen.append(after.reports[-1])
        yield from _grow(model, rest, after, instruments)
    for options in step.variants:
        varied = dataclasses.replace(step, options={**step.options, **options})
        told = dataclasses.replace(trail, added=(*trail.added, (step.name, options)))
        work = start.clone()
        try:
            after = _advance(work, varied, told, instruments)
        except Exception as error:  # noqa: BLE001 - the plain form is still good; the report tells this one
            yield Unmade(told.form, failure_text(error))
            continue
        report = after.reports[-1]
        # A report without changes in it does not tell two results apart.
        if not report.modified or (report.changes and report in seen):
            continue
        seen.append(report)
        yield from _guarded(work, rest, after, instruments)


def _guarded(
    model: ir.Model, steps: tuple[Step, ...], trail: _Trail, instruments: Sequence[Instrument]
) -> Iterator[Made | Unmade]:
    """`_grow` for a form that nobody asked for: its failure is told, not raised."""
    try:
        yield from _grow(model, steps, trail, instruments)
    except Exception as error:  # noqa: BLE001 - as above
        yield Unmade(trail.form, failure_text(error))


def failure_text(error: Exception) -> str:
    """What to tell of a form that could not be made; anything but a refusal is a bug and says so."""
    if isinstance(error, PassFailed | GateFailed):
        return str(error)
    logger.warning("a form of the model could not be made", exc_info=error)
    return f"bug in deploykit: {type(error).__name__}: {error}"


def _advance(
    model: ir.Model, step: Step, trail: _Trail, instruments: Sequence[Instrument]
) -> _Trail:
    clock = Timing()
    report = _run(model, step, (*instruments, clock), [done.name for done in trail.reports])
    return dataclasses.replace(
        trail,
        steps=(*trail.steps, step),
        reports=(*trail.reports, report),
        seconds={**trail.seconds, **clock.seconds},
    )


def _run(
    model: ir.Model, step: Step, instruments: Sequence[Instrument], done: Sequence[str]
) -> PassReport:
    from passes.errors import BudgetMissed, CouplingConflict, PassError, PlanMismatch

    try:
        rewrite = step.kind(**{**step.surroundings, **step.options})
    except (TypeError, ValueError) as error:
        # The pass says itself which of its options is wrong, and what it takes.
        msg = f"an option of '{step.name}' is wrong: {error}"
        raise UsageError(msg) from error
    try:
        for instrument in instruments:
            instrument.before(step.name, model)
        report = rewrite(model)
        if step.name == CHANNEL_REMOVAL:
            report = dataclasses.replace(report, skips=(*report.skips, *unread_layers(model)))
    except (PlanMismatch, CouplingConflict) as error:
        # Names, masks and plans that were given do not fit this model.
        raise UsageError(str(error)) from error
    except BudgetMissed as error:
        raise GateFailed(str(error)) from error
    except PassError as error:
        raise PassFailed(step.name, str(error), done=done) from error
    logger.info("%s: %d changes, %d skips", report.name, len(report.changes), len(report.skips))
    for change in report.changes:
        logger.debug(
            "%s: %s: %s, %d to %d",
            report.name,
            change.subject,
            change.what,
            change.before,
            change.after,
        )
    for skip in report.skips:
        logger.debug("%s: left %s: %s", report.name, skip.subject, skip.reason)
    for instrument in instruments:
        instrument.after(report, model)
    return report


def _open_variants(
    kind: type[Pass], target: Target, fixed: Options, usual: Options
) -> tuple[Options, ...]:
    """The variants that a pass proposes, without those that the recipe decides or that are the plain form anyway."""
    return tuple(
        options
        for options in kind.variants(target)
        if not set(options) & set(fixed)
        and any(
            option not in usual or usual[option] != value for option, value in options.items()
        )
    )
