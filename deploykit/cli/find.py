"""`deploykit find`: a sparse network that trains as well as the dense one, from a task in PyTorch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from deploykit.cli.narration import closing_line
from deploykit.cli.options import command_line, output_options, set_verbosity
from deploykit.cli.search_narration import SearchNarration
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.finder.search import Result
    from deploykit.finder.settings import Settings
    from deploykit.finder.trial import Trial

__all__ = ["command"]

# Written out, because what knows them imports torch; a test compares.
SOURCES = ("imp", "omp", "random", "snip", "grasp", "synflow")
NM_METHODS = ("asp", "ste", "sr-ste")
STRUCTURES = ("none", "refill", "refill+", "regroup")
CRITERIA = ("remaining-l1", "remaining-count", "feature-l1", "feature-l2", "saliency")
ROUNDS = 10
INTERRUPTED = 130

Command = TypeVar("Command", bound=Callable[..., Any])


def read_rewind(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> int | Literal["none", "default"]:
    """The value of `--rewind`."""
    del ctx, parameter
    if value is None:
        return "default"
    if value == "none":
        return "none"
    try:
        return int(value)
    except ValueError as error:
        msg = f"'{value}' is neither a number of epochs nor 'none'."
        raise click.BadParameter(msg) from error


def search_options(command: Command) -> Command:
    """What is searched for."""
    part = click.FloatRange(0.0, 1.0, min_open=True, max_open=True)
    options = [
        click.option(
            "--source",
            type=click.Choice([*SOURCES, *NM_METHODS]),
            default="imp",
            show_default=True,
            help="What chooses the weights that stay; asp, ste and sr-ste train N:M masks, of which sparse tensor cores make use.",
        ),
        click.option(
            "--structure",
            type=click.Choice(STRUCTURES),
            default="none",
            show_default=True,
            help="What their mask is made into: whole channels (refill, refill+), or dense blocks (regroup).",
        ),
        click.option(
            "--rounds",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Rounds of pruning. [default: {ROUNDS}, or what the sparsity takes]",
        ),
        click.option(
            "--sparsity",
            type=part,
            metavar="PART",
            help="Part of the weights that the mask drops in the end. refill keeps its share of channels, so that fewer weights "
            "are left, unless --match weights is given.",
        ),
        click.option(
            "--rate",
            type=part,
            default=0.2,
            show_default=True,
            metavar="PART",
            help="Part of what is left that a round drops.",
        ),
        click.option(
            "--epochs",
            type=click.IntRange(min=1),
            metavar="N",
            help="Length of a training run. [default: the task's]",
        ),
        click.option(
            "--rewind",
            callback=read_rewind,
            metavar="EPOCH",
            help="Start tickets from the weights after this epoch; 'none': go on from the round before. "
            "[default: a twentieth of the epochs for imp and omp, none for asp, else 0]",
        ),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Of everything random."
        ),
        click.option(
            "--seeds",
            type=click.IntRange(min=3),
            metavar="N",
            help="Search with N seeds from --seed on, train every ticket's mask on new weights and a random mask too, and "
            "judge whether the tickets win.",
        ),
        click.option(
            "--margin",
            type=click.FloatRange(min=0.0),
            metavar="D",
            help="With --seeds: how far below the dense network a ticket may be, in the metric's unit. [default: 0.003]",
        ),
        click.option(
            "--every-round",
            is_flag=True,
            help="Give every round the structure, not only the last.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def structure_options(command: Command) -> Command:
    """How structures are made."""
    options = [
        click.option(
            "--criterion",
            type=click.Choice(CRITERIA),
            default="remaining-l1",
            show_default=True,
            help="refill: what a channel is worth.",
        ),
        click.option(
            "--extra",
            type=click.FloatRange(0.0, 1.0),
            metavar="PART",
            help="refill+: part of the dropped channels that is taken back. [default: 0.2]",
        ),
        click.option(
            "--multiple",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="refill: round numbers of channels to this.",
        ),
        click.option(
            "--match",
            type=click.Choice(["rows", "weights"]),
            default="rows",
            show_default=True,
            help="refill: whether the mask says how many channels stay, or how many weights.",
        ),
        click.option(
            "--counts",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="refill: keep as many channels of each weight as the file says, which 'profile --allocate --save-plan' writes.",
        ),
        click.option(
            "--columns",
            type=click.Choice(["element", "channel"]),
            default="element",
            show_default=True,
            help="regroup: what blocks are made of; whole input channels can run on stock operators.",
        ),
        click.option(
            "--blocks",
            type=click.IntRange(min=1),
            metavar="N",
            help="regroup: blocks in a layer. [default: up to 8]",
        ),
        click.option(
            "--form",
            type=click.Choice(["free", "balanced", "disjoint"]),
            default="free",
            show_default=True,
            help="regroup: blocks of any size, of equal size, or of equal size that share no input.",
        ),
        click.option(
            "--target",
            default="onnxruntime-cpu",
            show_default=True,
            metavar="NAME",
            help="regroup: what the sizes of blocks suit.",
        ),
        click.option(
            "--group-aware",
            is_flag=True,
            help="regroup: go on from the blocks in the next round.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def nm_options(command: Command) -> Command:
    """How N:M masks are trained."""
    options = [
        click.option(
            "--pattern",
            default="2:4",
            show_default=True,
            metavar="N:M",
            help="asp, ste, sr-ste: of every M consecutive input channels N weights stay.",
        ),
        click.option(
            "--transposable",
            is_flag=True,
            help="asp, ste, sr-ste: obey along outputs, too, so that the backward pass can make use of it.",
        ),
        click.option(
            "--decay",
            type=click.FloatRange(min=0.0, min_open=True),
            metavar="D",
            help="sr-ste: part of each dropped weight that is added to its gradient. [default: 0.0002]",
        ),
        click.option(
            "--permute/--no-permute",
            default=True,
            help="asp, ste, sr-ste: first put channels in the order in which the mask keeps the most. [default: permute]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def engine_options(command: Command) -> Command:
    """Where training runs."""
    options = [
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="cpu, cuda, or cuda where there is one.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="Threads of torch. [default: torch's own number]",
        ),
        click.option(
            "--amp/--no-amp", default=True, help="Mixed precision on a GPU. [default: amp]"
        ),
        click.option(
            "--deterministic/--no-deterministic",
            default=True,
            help="Refuse operations that do not compute the same every time. [default: deterministic]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("find", short_help="Find a sparse network that trains as well as the dense one.")
@click.argument("task")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the ticket, the rounds and the metrics.",
)
@click.option("--force", is_flag=True, help="Replace another search in that folder.")
@search_options
@structure_options
@nm_options
@engine_options
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    task: str,
    *,
    out: Path | None,
    force: bool,
    device: str,
    threads: int | None,
    amp: bool,
    seeds: int | None,
    margin: float | None,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
    **given: Any,  # noqa: ANN401 - options of several types
) -> None:
    """Find a lottery ticket for TASK, package.module:object: a deploykit.finder.task.Task, its class, or what returns one.

    Trains the network, drops the smallest weights, sets the others back to what they were early in training, and
    repeats. Every round is saved: killed or interrupted, the same command goes on where it was and comes to the same
    ticket, bit for bit. 'deploykit optimize TASK --ticket OUT/ticket.safetensors' makes it fast.

    With --source asp, ste or sr-ste it trains weights of which N of every M consecutive input channels are left (2:4): a dense
    network is trained to compare with, and one under masks.

    Built-in tasks: digits, mnist, fashion_resnet8, fashion_resnet20, fashion_vgg, fashion_mobilenet, watch and tones in
    deploykit.finder.tasks.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    if out is None:
        msg = "where should the ticket go? Give a folder with -o OUT."
        raise UsageError(msg)
    began = time.monotonic()
    from deploykit.foreign_tickets import load_torch
    from deploykit.ticket import load_safetensors

    torch = load_torch()
    load_safetensors()
    if threads is not None:
        torch.set_num_threads(threads)
    from deploykit.finder.engine import make_engine
    from deploykit.finder.search import search
    from deploykit.finder.settings import check_settings
    from deploykit.finder.task import load_task
    from deploykit.finder.trial import Trial, try_seeds
    from deploykit.finder.verdict import MARGIN

    check_options(ctx, given["structure"], given["source"])
    if margin is not None and seeds is None:
        msg = "--margin belongs to --seeds: one seed allows no verdict. Give both, or neither."
        raise UsageError(msg)
    settings = make_settings(task, **given)
    check_settings(settings)
    loaded = load_task(task)
    engine = make_engine(device, amp=amp)
    try:
        with SearchNarration(verbosity if engine.rank == 0 else -1) as progress:
            given_to_both: dict[str, Any] = {
                "engine": engine,
                "force": force,
                "progress": progress,
            }
            if seeds is None:
                found: Result | Trial = search(loaded, settings, out, **given_to_both)
            else:
                numbers = range(settings.seed, settings.seed + seeds)
                given_margin = MARGIN if margin is None else margin
                found = try_seeds(
                    loaded, settings, out, numbers, margin=given_margin, **given_to_both
                )
    except KeyboardInterrupt:
        click.secho("Error: ", fg="red", err=True, nl=False)
        click.echo(
            f"interrupted; what was found is kept in '{out}'. Start the same command again to go on.",
            err=True,
        )
        ctx.exit(INTERRUPTED)
    finally:
        engine.close()
    if engine.rank == 0:
        show(found, command_line(), as_json=as_json)
        results = found.results if isinstance(found, Trial) else (found,)
        if verbosity >= 0 and all(each.was_finished for each in results):
            click.echo("nothing was left to do: this search was finished before", err=True)
        click.echo(f"ticket: {results[0].ticket}", err=True)
        closing_line(ok=True, began=began, command=command_line(), verbosity=verbosity)


def check_options(ctx: click.Context, structure: str, source: str) -> None:
    """Refuse options of another structure or source than the one that is asked for: they would do nothing.

    Raises:
        UsageError: one was given.
    """
    structures = {
        "refill or refill+": ("criterion", "multiple", "match"),
        "refill": ("counts",),
        "refill+": ("extra",),
        "regroup": ("columns", "blocks", "form", "target", "group_aware"),
    }
    sources = {
        ", ".join(SOURCES): ("structure", "rounds", "sparsity", "rate", "every_round"),
        ", ".join(NM_METHODS): ("pattern", "transposable", "permute"),
        "sr-ste": ("decay",),
    }
    for kind, value, owners in (
        ("structure", structure, structures),
        ("source", source, sources),
    ):
        for owner, names in owners.items():
            for name in names:
                given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
                if given and value not in re.split(" or |, ", owner):
                    option = name.replace("_", "-")
                    msg = f"--{option} belongs to --{kind} {owner}, and this is '{value}'. Leave it out, or change that."
                    raise UsageError(msg)


def make_settings(task: str, **given: Any) -> Settings:  # noqa: ANN401 - options of several types
    """The settings that a command line asks for.

    Raises:
        UsageError: options do not fit together.
    """
    from deploykit.finder.nm import NM, Pattern
    from deploykit.finder.settings import Settings
    from deploykit.finder.structuring import Structure

    options = {
        name: given[name]
        for name in (
            *("criterion", "extra", "multiple", "match"),
            *("columns", "blocks", "form", "target"),
        )
    }
    rounds, sparsity = given["rounds"], given["sparsity"]
    nm = None
    if given["source"] in NM_METHODS:
        pattern = Pattern.parse(given["pattern"], transposable=given["transposable"])
        nm = NM(pattern, given["decay"], permute=given["permute"])
    elif rounds is None and sparsity is None:
        rounds = ROUNDS
    name = given["structure"]
    if given["counts"] is not None:
        from deploykit.channel_counts import read

        options["counts"] = tuple(read(given["counts"]).keep.items())
    return Settings(
        reference=task,
        source=given["source"],
        structure=None if name == "none" else Structure(name, **options),
        rounds=rounds,
        sparsity=sparsity,
        rate=given["rate"],
        epochs=given["epochs"],
        rewind=given["rewind"],
        seed=given["seed"],
        every_round=given["every_round"],
        group_aware=given["group_aware"],
        deterministic=given["deterministic"],
        nm=nm,
    )


def show(found: Result | Trial, command: str, *, as_json: bool) -> None:
    """Print a result on stdout, as JSON or as tables."""
    from deploykit.cli.printable import printable, printable_json

    if as_json:
        import json

        document = json.dumps(found.document(command), indent=1, allow_nan=False)
        click.echo(printable_json(document))
        return
    from deploykit.finder.trial import Trial
    from deploykit.report.search_text import print_search, print_trial

    if isinstance(found, Trial):
        print_trial(printable(found))
    else:
        print_search(printable(found))
