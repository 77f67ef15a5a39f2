"""Reads a document back into the records that it was made of."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from deploykit.errors import UsageError
from deploykit.registry import names_for_checkers

__all__ = ["from_document"]

Record = TypeVar("Record")


def from_document(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """A record from its plain JSON values.

    What is not in the document gets its default, and what only the document has is left out, so that documents of an earlier
    or a later minor version are read. Where JSON had no number (null in the place of one) it is not a number.

    Args:
        kind: a frozen dataclass.
        document: what was made of it.

    Raises:
        UsageError: the document is no such record.
    """
    try:
        return _record(kind, document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"the document is no whole {kind.__name__}: {type(error).__name__} at {error}. Make it anew."
        raise UsageError(msg) from error


def _record(kind: type[Record], document: Mapping[str, Any]) -> Record:
    readers = _readers(kind)  # type: ignore[arg-type]  # classes can be hashed
    return kind(**{name: readers[name](document[name]) for name in readers if name in document})


@functools.cache
def _readers(kind: Any) -> dict[str, Callable[[Any], Any]]:  # noqa: ANN401 - a dataclass
    module = sys.modules[kind.__module__]
    # Some of them are imported for type checkers only.
    hints = typing.get_type_hints(kind, {**vars(module), **names_for_checkers(module)})
    return {
        field.name: _reader(hints[field.name])
        for field in dataclasses.fields(kind)
        if field.init
    }


def _reader(hint: Any) -> Callable[[Any], Any]:  # noqa: ANN401, PLR0911 - one case for each form of a type
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value: _record(hint, value)
    if origin in {typing.Union, types.UnionType}:
        readers = [_reader(each) for each in inner if each is not type(None)]
        # JSON's own types are told apart by JSON.
        part = readers[0] if len(readers) == 1 else lambda value: value
        return lambda value: None if value is None else part(value)
    if origin is tuple and inner[1:] == (...,):
        part = _reader(inner[0])
        return lambda value: tuple(part(each) for each in value)
    if origin is tuple:
        parts = [_reader(each) for each in inner]
        return lambda value: tuple(part(each) for part, each in zip(parts, value, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        part = _reader(inner[1])
        return lambda value: {str(key): part(each) for key, each in value.items()}
    if hint is float:
        return lambda value: math.nan if value is None else float(value)
    return lambda value: value
