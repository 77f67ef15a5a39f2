"""Says on which line of a TOML file something stands, so that a mistake can be told with its place.

Python's parser keeps no lines. A file is a row of statements, though, and what is cut off behind one of them is a file
again: so the text is parsed in growing parts, and the part in which a key appears first ends with its statement.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["KeyPath", "error_line", "find_line"]

KeyPath: TypeAlias = Sequence[str | int]
"""Keys and places in arrays, from the outermost one."""

CLOSINGS = ("\n]", "\n]]", "\n}", "\n}\n]", "\n]\n}")
"""What ends an array, or a table in it, that is open at the end of a part."""


def find_line(text: str, path: KeyPath) -> int | None:
    """The line, from 1, on which a value begins; that of what it would be in where it is not there.

    Args:
        text: a whole file of TOML, without mistakes.
        path: where the value is.

    Returns:
        None if not even the first key of the path is there.
    """
    whole = tomllib.loads(text)
    while path and not _has(whole, path):
        path = path[:-1]
    if not path:
        return None
    lines = text.split("\n")
    known = 0
    for end in range(1, len(lines) + 1):
        part = _parsed("\n".join(lines[:end]))
        if part is None:
            continue
        if _has(part, path):
            return _within(lines, _first_code(lines, known, end), end, path)
        known = end
    return None


def error_line(error: tomllib.TOMLDecodeError) -> int | None:
    """The line on which the parser stopped; None where it does not say, as at the end of the file."""
    found = re.search(r"\(at line (\d+),", str(error))
    return int(found[1]) if found else None


def _within(lines: Sequence[str], begin: int, end: int, path: KeyPath) -> int:
    """The line of a value in the statement of lines `begin` to `end`: an array may have one line for each element."""
    for stop in range(begin, end):
        for closing in CLOSINGS:
            part = _parsed("\n".join(lines[:stop]) + closing)
            if part is not None and _has(part, path):
                return stop
    # On one line, or in the last one of several that were not complete before.
    return begin if end == begin or len(path) == 1 or isinstance(path[-1], str) else end


def _first_code(lines: Sequence[str], known: int, end: int) -> int:
    """The first of the lines after `known` that says something, from 1."""
    for number in range(known + 1, end + 1):
        line = lines[number - 1].strip()
        if line and not line.startswith("#"):
            return number
    return end


def _parsed(text: str) -> Mapping[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _has(document: object, path: KeyPath) -> bool:
    for key in path:
        if isinstance(key, int):
            if not isinstance(document, list) or key >= len(document):
                return False
            document = document[key]
        else:
            if not isinstance(document, Mapping) or key not in document:
                return False
            document = document[key]
    return True
