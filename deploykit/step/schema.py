"""The JSON schema of recipes: that of the package, with the options of every pass that is installed."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeAlias

from deploykit import registry
from deploykit.step.toml_lines import KeyPath

__all__ = ["find_fault", "nearest", "schema", "to_json"]

Schema: TypeAlias = dict[str, Any]

TYPES = {
    "string": "text in quotes",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "an array, as [...]",
    "object": "a table",
}
HOMES = {
    **dict.fromkeys(("masks", "plan", "ticket", "model", "examples", "files"), "[inputs]"),
    "inputs": "[inputs] as 'examples'",
    "folder": "[output]",
    "metric": "[accuracy]",
    "on": "[[devices]]",
    **dict.fromkeys(("duration", "warmup", "rebuilds"), "[measure]"),
}
"""Where keys belong that are easily put elsewhere."""
SHAPED = {
    "gates": 'gates are an array at the top of the recipe, before the first table, as gates = ["p95 <= 4 ms"].',
    "devices": 'devices are tables of their own, as [[devices]] with on = "here".',
}
"""What has another form than its name lets expect."""


def schema(*, with_passes: bool = True) -> Schema:
    """The schema of a recipe, draft 2020-12.

    Args:
        with_passes: whether to fill in the options of passes, for editors; they are checked by the passes themselves.
    """
    text = resources.files("deploykit.step").joinpath("step.schema.json").read_text("utf-8")
    found: Schema = json.loads(text)
    if with_passes:
        tables = found["properties"]["options"]
        tables["additionalProperties"] = False
        tables["properties"] = {
            name: {
                "type": "object",
                "description": entry.summary,
                "additionalProperties": False,
                "properties": {
                    option.name: _option_schema(option)
                    for option in entry.options
                    if option.is_settable
                },
            }
            for name, entry in registry.all_passes().items()
        }
    return found


def to_json() -> str:
    """The schema as text, ending in a newline."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def find_fault(values: Mapping[str, object]) -> tuple[KeyPath, str] | None:
    """The first thing that a recipe's form has wrong, where it is, and what to do; None if nothing.

    What is missing is none: a recipe that others build on need not be whole.
    """
    import jsonschema

    checker = jsonschema.Draft202012Validator(schema(with_passes=False))
    errors = sorted(
        checker.iter_errors(values), key=lambda error: [str(key) for key in error.absolute_path]
    )
    if errors:
        return _told(errors[0])
    # No bound keeps out nan, which is neither below nor above any.
    strange = _find_endless(values, ())
    if strange is None:
        return None
    path, number = strange
    return path, f"{_name(path)} cannot be {number}. Give a finite number."


def nearest(word: str, known: Iterable[str]) -> str:
    """Which of the known words was meant, as a sentence; else which there are."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"There are: {', '.join(words)}." if words else "There are none."


def place_text(path: KeyPath) -> str:
    """A table or key as it is written in a recipe."""
    if not path:
        return "a recipe"
    if path[0] == "devices":
        return "[[devices]]"
    return f"[{'.'.join(str(key) for key in path)}]"


def _find_endless(value: object, path: KeyPath) -> tuple[KeyPath, float] | None:
    """The first number that is infinite or none at all, and where it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return path, value
    rows: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, Mapping):
        rows = value.items()
    elif isinstance(value, list):
        rows = enumerate(value)
    found = (_find_endless(each, (*path, key)) for key, each in rows)
    return next((each for each in found if each is not None), None)


def _told(error: Any) -> tuple[KeyPath, str]:  # noqa: ANN401 - jsonschema ships no types
    """Where an error of the checker is, and what to say of it."""
    path: list[str | int] = list(error.absolute_path)
    value, given = error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        stray = next(key for key in value if key not in known)
        return [*path, stray], _stray_text(path, stray, known)
    if error.validator == "required":
        missing = next(key for key in given if key not in value)
        return path, f"{place_text(path)} has no '{missing}'. Add it."
    if error.validator == "type" and len(path) == 1 and path[0] in SHAPED:
        return path, SHAPED[str(path[0])]
    return path, f"{_name(path)} {_fault_text(error.validator, value, given, error.message)}"


def _fault_text(rule: str, value: object, given: Any, said: str) -> str:  # noqa: ANN401 - any JSON value
    """What is wrong with a value, behind its name."""
    texts: dict[str, Callable[[], str]] = {
        "type": lambda: f"is {_shown(value)}, and has to be {TYPES[given]}.",
        "enum": lambda: f"cannot be {_shown(value)}. {nearest(str(value), given)}",
        "minimum": lambda: f"must be at least {given}, not {value}.",
        "maximum": lambda: f"must be at most {given}, not {value}.",
        "exclusiveMinimum": lambda: f"must be above {given}, not {value}.",
        "minLength": lambda: "is empty. Give a value, or leave it out.",
        "minItems": lambda: "is empty. Give a value, or leave it out.",
        "pattern": lambda: f"cannot be {_shown(value)}: it has to be of the form {given}.",
    }
    if rule not in texts:
        return f"cannot be {_shown(value)}: {said}."
    return texts[rule]()


def _name(path: Sequence[str | int]) -> str:
    """What a message calls a value."""
    if path and isinstance(path[-1], int):
        return f"each of '{path[-2]}'" if len(path) > 1 else "each of them"
    return f"'{path[-1]}'" if path else "the recipe"


def _stray_text(path: Sequence[str | int], stray: str, known: Sequence[str]) -> str:
    where = place_text(path)
    if stray in {"gates", "extends", "name"} and path:
        return f"'{stray}' is in {where} here: keys of the whole recipe come before the first table. Move it to the top."
    if stray in HOMES and HOMES[stray] != where:
        return f"{where} has no '{stray}': it goes to {HOMES[stray]}."
    what = "key or table" if not path else "key"
    return f"{where} has no {what} '{stray}'. {nearest(stray, known)}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, list):
        return "an array"
    return "a table" if isinstance(value, dict) else str(value)


def _option_schema(option: registry.OptionInfo) -> Schema:
    """The schema of an option, from its type in words ("int", "carrier | bias-map", "str,...")."""
    kinds = [kind.strip() for kind in option.kind.split("|")]
    types: list[str] = []
    words = []
    plain = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
    for kind in kinds:
        if kind in plain:
            types.append(plain[kind])
        elif kind.endswith(",...") or kind == "FILE":
            types += ["array", "string"] if kind != "FILE" else ["object", "string"]
        else:
            words.append(kind)
    found: Schema = {"description": option.help}
    if option.default is not None:
        found["description"] += f" Default: {option.default}."
    choices: list[Schema] = [{"type": kind} for kind in dict.fromkeys(types)]
    if words:
        choices.append({"enum": words})
    return {**found, **choices[0]} if len(choices) == 1 else {**found, "anyOf": choices}
