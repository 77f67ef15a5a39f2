"""Runs a command in a fork of a process that has imported everything: it is killed while it works, not while it starts."""

from __future__ import annotations

import os

from deploykit.cli import main


def start(arguments):
    """Run a command in a fork; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def wait(child):
    """The exit code of a fork; below 0 if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
