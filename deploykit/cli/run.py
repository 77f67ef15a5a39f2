"""`deploykit run`: a step of a pipeline, which decides whether a model ships."""

from __future__ import annotations

import time
from pathlib import Path

import click

from deploykit.cli.narration import Narration, closing_line
from deploykit.cli.options import LOGGERS, command_line, output_options, set_verbosity

__all__ = ["command"]

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    "run", short_help="Run a step of a pipeline from a recipe, and hold it to its gates."
)
@click.argument("recipe", type=FILE)
@click.option(
    "--explain",
    is_flag=True,
    help="Say what would be done again and why; run and write nothing.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="The report.json of the last accepted result, or its folder: a regression is a failure, too.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Set a value of the recipe, or an option of a pass, as PASS.OPTION=VALUE.",
)
@click.option(
    "--on",
    multiple=True,
    metavar="WHERE",
    help="Measure there, in the place of the devices of the recipe; repeat it for more.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep results there. [default: .deploykit/cache beside the recipe]",
)
@click.option("--no-cache", is_flag=True, help="Do everything anew, and keep nothing.")
@click.option(
    "--cache-limit",
    type=click.FloatRange(min=0.0),
    metavar="GB",
    help="Afterwards delete kept results that were not used for the longest time, down to this size.",
)
@click.option(
    "--summary",
    type=FILE,
    metavar="FILE",
    help="Add the summary to this file as well, as to $GITHUB_STEP_SUMMARY.",
)
@click.option(
    "--junit",
    type=FILE,
    metavar="FILE",
    help="Write the JUnit XML to this file as well, whatever comes: an error, too, which leaves the result folder as it was.",
)
@click.option(
    "--force", is_flag=True, help="Replace a result folder that another command wrote."
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    recipe: Path,
    *,
    explain: bool,
    baseline: Path | None,
    settings: tuple[str, ...],
    on: tuple[str, ...],
    cache: Path | None,
    no_cache: bool,
    cache_limit: float | None,
    summary: Path | None,
    junit: Path | None,
    force: bool,
    as_json: bool,
    verbose: int,
    quiet: int,
    log_file: Path | None,
) -> None:
    """Run the step that RECIPE, a file in TOML, describes.

    What has not changed since it was last done is taken from the cache. The result folder holds the model only if every
    gate is met; otherwise the exit code is 1, and the report, junit.xml and summary.md there say why.

    'deploykit schema step' prints the JSON schema of recipes, by which editors complete them.
    """
    verbosity = set_verbosity(ctx, verbose, quiet, log_file)
    began = time.monotonic()

    from deploykit.cli.step_output import show
    from deploykit.errors import UsageError
    from deploykit.step import runner
    from deploykit.step.pages import Pages
    from deploykit.step.secrets import Secrets, veil_logs

    secrets = Secrets()
    ctx.find_root().obj["redact"] = secrets.redact
    veil_logs(secrets, LOGGERS)
    if no_cache and (cache is not None or cache_limit is not None):
        msg = "--no-cache keeps nothing, so that there is no cache to speak of: leave the other option out."
        raise UsageError(msg)
    request = runner.Request(
        recipe,
        settings=settings,
        on=on,
        baseline=baseline,
        cache=cache,
        use_cache=not no_cache,
        force=force,
        cache_limit_bytes=None if cache_limit is None else int(cache_limit * 1e9),
    )
    pages = Pages(None, None) if explain else Pages(junit, summary)
    pages.check(request)
    with pages.told_of_errors(recipe, secrets), Narration(verbosity) as progress:
        do = runner.explain if explain else runner.run
        result = do(
            request, progress=lambda stage, done=None: progress(secrets.redact(stage), done)
        )
    show(result, as_json=as_json, secrets=secrets)
    pages.write(result, secrets)
    if not explain:
        closing_line(
            ok=result.ok,
            began=began,
            command=secrets.redact(command_line()),
            verbosity=verbosity,
        )
        ctx.exit(result.exit_code)
