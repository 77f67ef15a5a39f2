"""Options of `profile` that ask what would be, what limits the device, and how a model scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.profiling import Progress, Request
    from deploykit.report.profile_records import ProfileReport

__all__ = ["NAMES", "ask", "check", "what_if_options", "write_page"]

Command = TypeVar("Command", bound=Callable[..., Any])

NAMES = (
    "what_if",
    "allocate",
    "least",
    "multiple",
    "save_plan",
    "roofline",
    "sweep",
    "html",
)
LEAST = 0.25


def what_if_options(command: Command) -> Command:
    """What is asked beyond the time that the models take."""
    options = [
        click.option(
            "--what-if",
            multiple=True,
            metavar="ASK",
            help="How fast the model would be: channels=0.5 (share to keep), blocks=4, blocks=0.75 (share of weights outside of "
            "blocks), 2:4, counts=FILE. @LAYERS limits it (channels=0.5@layer3.*); commas join parts. May be given several times.",
        ),
        click.option(
            "--allocate",
            metavar="BUDGET",
            help="Find the channels to keep that take the least time: weights=0.42 or macs=0.5 is the share left, at least.",
        ),
        click.option(
            "--least",
            type=click.FloatRange(0.0, 1.0, min_open=True),
            metavar="PART",
            help=f"With --allocate: the smallest part of a group's channels that may be kept. [default: {LEAST}]",
        ),
        click.option(
            "--multiple",
            type=click.IntRange(min=1),
            metavar="N",
            help="With --what-if and --allocate: round counts of channels to this. [default: what the device likes]",
        ),
        click.option(
            "--save-plan",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="With --allocate: write the counts there, for prune-channels and find.",
        ),
        click.option(
            "--roofline",
            is_flag=True,
            help="What limits each layer: the device's arithmetic, its memory, or the cost of a node.",
        ),
        click.option(
            "--sweep",
            multiple=True,
            metavar="WHAT",
            help="Latency and throughput at batch=1,2,4 or threads=1,2. May be given twice.",
        ),
        click.option(
            "--html",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="With one of these: draw the result, as a page that needs nothing else.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def check(given: dict[str, Any], models: tuple[Path, ...]) -> None:
    """Refuse options that do not go together, before any work is done.

    Raises:
        UsageError: there are some.
    """
    from deploykit import saved_plans
    from deploykit.cli.profile_options import check_destination

    modes = [
        f"--{name.replace('_', '-')}"
        for name in ("what_if", "allocate", "roofline", "sweep")
        if given[name]
    ]
    if len(modes) > 1:
        msg = f"{' and '.join(modes)} are asked for at once. Ask for one at a time."
        raise UsageError(msg)
    mode = modes[0] if modes else None
    for name, owners in (
        ("least", ("--allocate",)),
        ("multiple", ("--what-if", "--allocate")),
        ("save_plan", ("--allocate",)),
        ("html", ("--what-if", "--allocate", "--roofline", "--sweep")),
    ):
        if given[name] is not None and mode not in owners:
            option = f"--{name.replace('_', '-')}"
            msg = f"{option} belongs to {' or '.join(owners)}, which is not asked for. Leave it out, or add that."
            raise UsageError(msg)
    if mode is not None and len(models) != 1:
        msg = f"{mode} is asked of one model, and {len(models)} are given. Give one of them."
        raise UsageError(msg)
    if given["save_plan"] is not None:
        saved_plans.check_place(given["save_plan"])
    check_destination(given["html"], models)


def ask(request: Request, given: dict[str, Any], progress: Progress) -> ProfileReport | None:
    """What was asked for beyond the time of the models; None if nothing was.

    Raises:
        UsageError: it makes no sense.
        ModelError: it cannot be answered for this model.
        RuntimeUnavailable: the runtime is not there, or makes nothing of it.
    """
    if given["what_if"]:
        from deploykit.what_if.asks import parse
        from deploykit.what_if.prediction import Options, predict

        what_ifs = [parse(text) for text in given["what_if"]]
        return predict(request, what_ifs, Options(given["multiple"]), progress=progress)
    if given["allocate"]:
        from deploykit.what_if.allocating import Budget, allocation
        from deploykit.what_if.asks import parse_budget
        from deploykit.what_if.prediction import Options

        budget = Budget(*parse_budget(given["allocate"]), given["least"] or LEAST)
        return allocation(
            request,
            budget,
            Options(given["multiple"]),
            save=given["save_plan"],
            progress=progress,
        )
    if given["roofline"]:
        from deploykit.what_if.roofline import roofline

        return roofline(request, progress=progress)
    if given["sweep"]:
        from deploykit.what_if.sweep import parse_sweep, sweep

        return sweep(request, [parse_sweep(text) for text in given["sweep"]], progress=progress)
    return None


def write_page(report: ProfileReport, path: Path) -> None:
    """Draw a result.

    Raises:
        UsageError: nothing can be written there.
    """
    from deploykit.cli.profile_options import write_result
    from deploykit.report.what_if_page import render_page

    write_result(path, render_page(report), "page")
