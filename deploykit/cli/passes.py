"""`deploykit passes`: which passes there are."""

from __future__ import annotations

import json

import click

__all__ = ["command"]


@click.command("passes", short_help="List the passes and their options, plug-ins included.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """List the passes: whether they preserve the function, what they do, and their options.

    A distribution adds passes with entry points of the group `deploykit.passes`.
    """
    from deploykit import registry

    entries = registry.all_passes()
    default = registry.default_names()
    if as_json:
        rows = [
            {
                "name": name,
                "exact": entry.kind.exact,
                "default": name in default,
                "origin": entry.origin,
                "summary": entry.summary,
                "options": [
                    {
                        "name": option.name,
                        "type": option.kind,
                        "default": option.default,
                        "help": option.help,
                    }
                    for option in entry.options
                ],
            }
            for name, entry in entries.items()
        ]
        click.echo(json.dumps({"schema_version": "1.0", "passes": rows}, indent=1))
        return
    for name, entry in entries.items():
        kind = "exact" if entry.kind.exact else "lossy"
        runs = "runs by default" if name in default else "runs when named"
        click.echo(f"{click.style(name, bold=True)}  ({kind}, {runs}, from {entry.origin})")
        click.echo(f"    {entry.summary}")
        for option in entry.options:
            given = "" if option.default is None else f" [default: {option.default}]"
            how = f"--set {name}.{option.name}=" if option.is_settable else f"{option.name}: "
            click.echo(f"    {how}{option.kind}{given}  {option.help}".rstrip())
