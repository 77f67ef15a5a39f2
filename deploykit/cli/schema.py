"""`deploykit schema`: the JSON schemas of what `--json` prints and of the files that are written."""

from __future__ import annotations

from importlib import resources

import click

from deploykit.errors import UsageError

__all__ = ["command"]

SUFFIX = ".schema.json"
STEP = "step"


@click.command("schema", short_help="Print the JSON schema of a document.")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """Print the JSON schema of the document NAME, or without NAME which there are.

    report is what optimize and inspect print and report.json holds; plan is what --save-plan writes; step is that of the
    recipes of 'deploykit run'; the others are what the command of that name prints with --json.
    """
    files = {
        file.name.removesuffix(SUFFIX): file
        for file in resources.files("deploykit.report").iterdir()
        if file.name.endswith(SUFFIX)
    }
    known = sorted((*files, STEP))
    if name is None:
        for each in known:
            click.echo(each)
        return
    if name == STEP:
        from deploykit.step.schema import to_json

        # With the options of all passes that are installed here.
        click.echo(to_json(), nl=False)
        return
    if name not in files:
        msg = f"there is no schema '{name}'. There are: {', '.join(known)}."
        raise UsageError(msg)
    click.echo(files[name].read_text("utf-8"), nl=False)
