"""`deploykit runtimes`: what each runtime can do on this machine, and why not more."""

from __future__ import annotations

import dataclasses
import json

import click

__all__ = ["command"]

CLAIMS = {
    "importable": "import",
    "can_parse": "parse",
    "can_build": "build",
    "can_run": "run",
    "reports_sparsity": "report sparsity",
}
"""What a runtime says, and the word for it on a terminal."""


@click.command("runtimes", short_help="Say what each runtime can do on this machine, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """Try out the runtimes that --runtime and --engine take.

    For each: whether it can be imported, parses a model, builds something that runs of it, runs that, and says which layers
    are sparse. What libraries of GPUs can do is tried in a process of its own. A runtime that cannot run here ends a command
    that asks for it with exit code 4.
    """
    from concurrent.futures import ThreadPoolExecutor

    from deploykit import runtimes
    from deploykit.cli.printable import printable, printable_json
    from deploykit.profile import device

    # Each waits for a process of its own.
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(runtimes.capabilities, runtimes.RUNTIMES))
    if as_json:
        document = {
            "schema_version": "1.0",
            "fingerprint": device.describe().fingerprint,
            "runtimes": [dataclasses.asdict(each) for each in found],
        }
        click.echo(printable_json(json.dumps(document, indent=1, ensure_ascii=False)))
        return
    for each in printable(found):
        version = each.version or "not installed"
        on = f", on {', '.join(each.providers)}" if each.providers else ""
        click.echo(f"{click.style(each.runtime, bold=True)}  {version}{on}")
        said = ""
        for field, word in CLAIMS.items():
            claim = getattr(each, field)
            answer = click.style("yes" if claim else "no ", fg="green" if claim else "yellow")
            # What one missing thing prevents is said once.
            reason = "for the same reason" if claim.reason == said else claim.reason
            said = claim.reason
            click.echo(f"    {word:<16} {answer}  {reason}")
