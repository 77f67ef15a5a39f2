"""`python -m deploykit`."""

from __future__ import annotations

from deploykit.cli import program

program()
