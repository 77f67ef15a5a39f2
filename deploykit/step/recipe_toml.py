"""Writes the effective recipe of a step as TOML, which a run reads again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.recipe import toml_key, toml_value

__all__ = ["to_toml"]

HEAD = (
    "# What was done here, with every default filled in. Files are named as seen from the folder of the recipe that was run:\n"
    "# put this file there, and `deploykit run` repeats it.\n"
)


def to_toml(values: Mapping[str, Any]) -> str:
    """A recipe as text.

    Args:
        values: as `recipe_file.effective` gives them.
    """
    top = [
        f"{toml_key(key)} = {toml_value(value)}"
        for key, value in values.items()
        if not isinstance(value, Mapping) and key != "devices"
    ]
    parts = [HEAD + "\n".join(top)]
    for key, value in values.items():
        if key == "options":
            parts += [_table(f"options.{toml_key(name)}", each) for name, each in value.items()]
        elif key == "devices":
            parts += [_table("", each, head="[[devices]]") for each in value]
        elif isinstance(value, Mapping):
            parts.append(_table(key, value))
    if values.get("devices") == []:
        parts[0] += "\ndevices = []"
    return "\n\n".join(parts) + "\n"


def _table(name: str, values: Mapping[str, Any], head: str = "") -> str:
    rows = [f"{toml_key(key)} = {toml_value(value)}" for key, value in values.items()]
    return "\n".join([head or f"[{name}]", *rows])
