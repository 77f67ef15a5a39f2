"""Recipe files on top of each other: read, joined along `extends`, and every value still knows its file and line."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from deploykit.errors import UsageError
from deploykit.step import schema
from deploykit.step.toml_lines import KeyPath, error_line, find_line

__all__ = ["Layer", "Layers", "read_layers"]

Table: TypeAlias = dict[str, Any]

DEEPEST = 20
"""How many recipes may build on each other."""

FILES = (
    *(("inputs", key) for key in ("ticket", "masks", "plan", "examples", "files")),
    *(("output", "folder"), ("accuracy", "data")),
)
"""Values that name files, relative to the recipe that they stand in."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A recipe file, or what a command line sets.

    Attributes:
        label: what messages call it.
        text: what it says, in TOML; None for a command line.
        folder: where its files are looked for.
        values: what it says, in which files are absolute paths.
    """

    label: str
    text: str | None
    folder: Path
    values: Table

    def place(self, path: KeyPath) -> str:
        """Where a value is, as `recipe.toml:12`."""
        line = None if self.text is None else find_line(self.text, path)
        return self.label if line is None else f"{self.label}:{line}"


@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """Recipes on top of each other.

    Attributes:
        layers: the uppermost one first.
        files: the recipe files, in the same order.
        values: all of them joined: tables are merged, and of what is in several the uppermost one counts.
    """

    layers: tuple[Layer, ...]
    files: tuple[Path, ...]
    values: Table

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        """Tell what is wrong with a value, and where it is.

        Raises:
            UsageError: always.
        """
        raise UsageError(self.told(path, message))

    def told(self, path: KeyPath, message: str) -> str:
        """A message with the place of the value that it is about, in front."""
        return f"{self.origin(path).place(path)}: {message}"

    def origin(self, path: KeyPath) -> Layer:
        """The layer that a value is from; of one that is nowhere, the one with most of its path."""
        for length in range(len(path), 0, -1):
            for layer in self.layers:
                if _has(layer.values, path[:length]):
                    return layer
        return next(layer for layer in self.layers if layer.text is not None)

    def get(self, *path: str, default: Any = None) -> Any:  # noqa: ANN401 - any value of TOML
        """A value, or a default where there is none."""
        found: Any = self.values
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                return default
            found = found[key]
        return found


def read_layers(path: Path, settings: Sequence[str] = (), on: Sequence[str] = ()) -> Layers:
    """Read a recipe and those that it builds on, and check the form of each.

    Args:
        path: the file.
        settings: values on top, as `TABLE.KEY=VALUE` or `PASS.OPTION=VALUE`.
        on: devices in the place of those of the recipe.

    Raises:
        UsageError: one of them cannot be read, is no TOML, has another form, or builds on itself.
    """
    layers = list(_chain(path))
    files = tuple(path for path, _ in layers)
    found = [layer for _, layer in layers]
    for layer in reversed(_from_command_line(settings, on)):
        _check_form(layer)
        found.insert(0, layer)
    joined: Table = {}
    for layer in reversed(found):
        joined = _merged(joined, layer.values)
    joined.pop("extends", None)
    return Layers(tuple(found), files, joined)


def _chain(path: Path) -> Iterator[tuple[Path, Layer]]:
    """A recipe, what it extends, and so on."""
    seen: list[Path] = []
    asked: tuple[Layer, str] | None = None
    while True:
        where = path.resolve()
        if where in seen:
            names = " -> ".join(f"'{each.name}'" for each in (*seen, where))
            origin = asked[0] if asked else None
            place = origin.place(("extends",)) if origin else str(path)
            msg = f"{place}: recipes extend each other in a circle: {names}. Take one 'extends' out."
            raise UsageError(msg)
        if len(seen) == DEEPEST:
            msg = f"'{seen[0]}' extends more than {DEEPEST} recipes, one on the other. Join some of them."
            raise UsageError(msg)
        seen.append(where)
        layer = _read(path, asked)
        _check_form(layer)
        yield where, layer
        base = layer.values.get("extends")
        if base is None:
            return
        asked = (layer, base)
        path = path.parent / base


def _read(path: Path, asked: tuple[Layer, str] | None) -> Layer:
    place = f"{asked[0].place(('extends',))}: " if asked else ""
    try:
        # Some editors begin UTF-8 with a mark.
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        why = "it does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        msg = f"{place}cannot read the recipe '{path}': {why}."
        raise UsageError(msg) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        msg = f"{path}:{line}: this is no text in UTF-8: {error.reason}. Save it as UTF-8."
        raise UsageError(msg) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = error_line(error) or text.rstrip("\n").count("\n") + 1
        said = re.sub(r" \(at .*\)$", "", str(error))
        msg = f"{path}:{line}: this is not TOML: {said}."
        raise UsageError(msg) from error
    except RecursionError as error:
        msg = f"{path}: this is not a recipe: its arrays or tables are nested too deeply."
        raise UsageError(msg) from error
    return Layer(str(path), text, path.resolve().parent, values)


def _check_form(layer: Layer) -> None:
    """Check a layer against the schema, and make its files absolute.

    Raises:
        UsageError: it has another form.
    """
    fault = schema.find_fault(layer.values)
    if fault is not None:
        where, message = fault
        raise UsageError(f"{layer.place(where)}: {message}")
    for table, key in FILES:
        found = layer.values.get(table, {}).get(key)
        if isinstance(found, str):
            layer.values[table][key] = str(layer.folder / found)
        elif found is not None:
            layer.values[table][key] = [str(layer.folder / each) for each in found]
    model = layer.values.get("inputs", {}).get("model")
    # `package.module:object` stays what it is, unless a file is called so.
    if model is not None and (":" not in model[2:] or (layer.folder / model).exists()):
        layer.values["inputs"]["model"] = str(layer.folder / model)


def _from_command_line(settings: Sequence[str], on: Sequence[str]) -> list[Layer]:
    """What a command line sets, as layers: files are named relative to the current folder there."""
    tables = set(schema.schema(with_passes=False)["properties"])
    found = []
    for setting in settings:
        left, equals, written = setting.partition("=")
        table, dot, key = left.strip().rpartition(".")
        if not (equals and dot and table and key):
            msg = f"--set takes TABLE.KEY=VALUE or PASS.OPTION=VALUE, not '{setting}'."
            raise UsageError(msg)
        try:
            value = tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            value = written  # text without its quotes
        values = (
            {table: {key: value}} if table in tables else {"options": {table: {key: value}}}
        )
        found.append(Layer(f"--set {setting}", None, Path.cwd(), values))
    if on:
        found.append(
            Layer("--on", None, Path.cwd(), {"devices": [{"on": each} for each in on]})
        )
    return found[::-1]  # the last one wins


def _merged(base: Table, over: Mapping[str, Any]) -> Table:
    joined = dict(base)
    for key, value in over.items():
        mine = joined.get(key)
        joined[key] = (
            _merged(mine, value)
            if isinstance(mine, dict) and isinstance(value, dict)
            else value
        )
    return joined


def _has(values: object, path: KeyPath) -> bool:
    for key in path:
        is_item = isinstance(values, list) and isinstance(key, int) and key < len(values)
        if not is_item and not (isinstance(values, dict) and key in values):
            return False
        values = values[key]  # type: ignore[index]  # one of the two, with that key
    return True
