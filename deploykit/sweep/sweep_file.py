"""Reads the file of a sweep.

    name = "digits"                                  # optional
    recipes = ["narrow.toml", "blocks.toml"]         # recipes of `deploykit run`
    models = ["a.onnx", "b.onnx"]                    # optional; default: the model of each recipe
    devices = ["here", "ssh://me@nano"]              # optional; default: the devices of each recipe

A model is also `package.module:object`, or a table: { model = "...", ticket = "...", masks = "...", name = "..." }.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from deploykit.errors import DeploykitError, UsageError
from deploykit.step.recipe_file import read_recipe
from deploykit.step.schema import nearest
from deploykit.step.toml_lines import KeyPath, error_line, find_line
from deploykit.sweep.records import Cell, Model, Sweep

__all__ = ["read_sweep"]

KEYS = ("name", "recipes", "models", "devices")
MODEL_KEYS = ("model", "ticket", "masks", "examples", "name")
STRANGE = re.compile(r"[^A-Za-z0-9._@-]+")
OWN = "own"
HERE = "here"


def read_sweep(path: Path, out: Path) -> Sweep:
    """Read a sweep, and every recipe with every model and device in it.

    Args:
        path: the file.
        out: folder of the sweep; each cell has its own in there.

    Raises:
        UsageError: something in it makes no sense; the message begins with file and line.
    """
    document = _Document(path)
    for key in document.values:
        if key not in KEYS:
            document.fail((key,), f"a sweep has no '{key}'. {nearest(key, KEYS)}")
    recipes = document.paths("recipes")
    models = list(_models(document))
    devices: Sequence[str | None] = document.texts("devices") or (None,)
    labels = _labels([each.stem for each in recipes])
    cells = []
    for place, (label, recipe) in enumerate(zip(labels, recipes, strict=True)):
        for model in models:
            for device in devices:
                parts = (label, model.name, "" if device is None else _plain(device))
                folder = out.resolve() / "cells" / "--".join(part for part in parts if part)
                cell = Cell(label, recipe, model, device, folder)
                cells.append(_checked(document, ("recipes", place), cell))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        document.fail(
            (), f"two cells are called '{twice}'. Give the models names of their own."
        )
    name = document.values.get("name", path.stem)
    if not isinstance(name, str) or not name:
        document.fail(("name",), "'name' has to be text.")
    return Sweep(path.resolve(), name, tuple(cells))


def _checked(document: _Document, where: KeyPath, cell: Cell) -> Cell:
    """A cell that will be understood, with the devices that it measures on.

    Raises:
        DeploykitError: its recipe makes no sense with this model and device.
    """
    try:
        recipe = read_recipe(cell.recipe, settings=cell.settings, on=cell.on)
    except DeploykitError as error:
        raise type(error)(f"{document.place(where)}: cell '{cell.name}': {error}") from error
    on = [device.on for device in recipe.devices]
    if recipe.optimize.profile and not on:
        on = [HERE]  # forms of the model are measured all the same
    return Cell(
        cell.recipe_name, cell.recipe, cell.model, cell.device, cell.folder, tuple(sorted(on))
    )


def _models(document: _Document) -> Iterator[Model]:
    given = document.values.get("models")
    if given is None:
        yield Model("")
        return
    tables = []
    for place, each in enumerate(document.array("models")):
        table = {"model": each} if isinstance(each, str) else each
        if not isinstance(table, dict):
            document.fail(
                ("models", place),
                "each of 'models' is a file, or a table as { model = \"a.onnx\" }.",
            )
        stray = next((key for key in table if key not in MODEL_KEYS), None)
        if stray is not None:
            document.fail(
                ("models", place), f"a model has no '{stray}'. {nearest(stray, MODEL_KEYS)}"
            )
        if not isinstance(table.get("model"), str):
            document.fail(
                ("models", place),
                "a model has no 'model': a file, or package.module:object. Add it.",
            )
        tables.append(table)
    labels = _labels([_name(table) for table in tables])
    for place, (label, table) in enumerate(zip(labels, tables, strict=True)):
        settings = []
        for key in ("model", "ticket", "masks", "examples"):
            if key not in table:
                continue
            value = table[key]
            is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
            if not isinstance(value, str) and not (key == "examples" and is_list):
                document.fail(("models", place), f"'{key}' of a model is the name of a file.")
            files = value if isinstance(value, list) else [value]
            found = [document.file(each) for each in files]
            settings.append(
                f"inputs.{key}={json.dumps(found if isinstance(value, list) or key == 'examples' else found[0])}"
            )
        yield Model(label, tuple(settings))


def _name(table: Mapping[str, Any]) -> str:
    name = str(table.get("name") or "")
    if name:
        return name
    model = str(table["model"])
    return Path(model).stem if model.endswith((".onnx", ".pb")) else model.rpartition(":")[2]


def _labels(names: Sequence[str]) -> list[str]:
    """Names for folders and tables; those that come twice are numbered."""
    plain = [_plain(name) for name in names]
    seen: dict[str, int] = {}
    found = []
    for name in plain:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if plain.count(name) == 1 else f"{name}-{seen[name]}")
    return found


def _plain(name: str) -> str:
    return STRANGE.sub("-", name.removeprefix("ssh://")).strip("-.") or "model"


class _Document:
    """The file of a sweep, which knows the lines of its values."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
            self.values: dict[str, Any] = tomllib.loads(self._text)
        except OSError as error:
            msg = f"cannot read the sweep '{path}': {error.strerror}."
            raise UsageError(msg) from error
        except UnicodeDecodeError as error:
            msg = f"{path}: this is no text in UTF-8: {error.reason}. Save it as UTF-8."
            raise UsageError(msg) from error
        except tomllib.TOMLDecodeError as error:
            said = re.sub(r" \(at .*\)$", "", str(error))
            msg = f"{path}:{error_line(error) or 1}: this is not TOML: {said}."
            raise UsageError(msg) from error

    def place(self, where: KeyPath) -> str:
        """Where a value is, as `sweep.toml:3`."""
        line = find_line(self._text, where) if where else None
        return str(self._path) if line is None else f"{self._path}:{line}"

    def fail(self, where: KeyPath, message: str) -> NoReturn:
        """Tell what is wrong with a value, and where it is.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.place(where)}: {message}")

    def file(self, name: str) -> str:
        """A file that is named relative to this one; `package.module:object` stays what it is."""
        found = self._path.resolve().parent / name
        return name if ":" in name[2:] and not found.exists() else str(found)

    def array(self, key: str) -> list[Any]:
        """An array with something in it."""
        found = self.values.get(key)
        if not isinstance(found, list) or not found:
            self.fail(
                (key,), f"'{key}' has to be an array with at least one entry, as {key} = [...]."
            )
        return found

    def texts(self, key: str) -> list[str]:
        """An array of texts, each there once; empty if it is not there."""
        if key not in self.values:
            return []
        found = self.array(key)
        for place, each in enumerate(found):
            if not isinstance(each, str) or not each:
                self.fail((key, place), f"each of '{key}' has to be text in quotes.")
            if found.index(each) < place:
                self.fail((key, place), f"'{each}' is there twice. Leave one out.")
        return found

    def paths(self, key: str) -> list[Path]:
        """An array of files."""
        if key not in self.values:
            self.fail((), f"a sweep has no '{key}'. Add it, as {key} = [\"recipe.toml\"].")
        return [self._path.resolve().parent / each for each in self.texts(key)]
