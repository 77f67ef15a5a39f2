"""Makes text from outside safe for a terminal: a tensor may be named like an escape code, or like a line of ours."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

__all__ = ["PlainFormatter", "printable", "printable_json", "printable_text"]

Value = TypeVar("Value")

# Control codes of both sets, line and paragraph separators, marks that turn the direction of writing, and halves of
# characters, which stand for the bytes of file names that are no text.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable_text(text: str) -> str:
    r"""The text with control codes spelled out: a newline is `\n`, an escape `\x1b`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_json(text: str) -> str:
    r"""A JSON document with control codes as JSON spells them, which changes nothing in it: an escape is `\u001b`."""
    return UNPRINTABLE.sub(
        lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text
    )


def printable(value: Value) -> Value:
    """A copy of frozen data in which all text is printable."""
    copy: Any = value
    if isinstance(value, str):
        copy = printable_text(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        copy = dataclasses.replace(
            value, **{name: printable(getattr(value, name)) for name in fields}
        )
    elif isinstance(value, Mapping):
        copy = {printable(key): printable(part) for key, part in value.items()}
    elif isinstance(value, tuple | list):
        copy = type(value)(printable(part) for part in value)
    return cast("Value", copy)


class PlainFormatter(logging.Formatter):
    """Log records as lines that a terminal shows as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message, printable."""
        return printable_text(super().formatMessage(record))
