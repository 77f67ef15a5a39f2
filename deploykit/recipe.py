"""What `optimize` is told to do: the options of the command line, or of a recipe file in TOML, checked.

    [optimize]
    passes = ["tidy", "remove-channels"]
    threads = 1
    shape = { images = [1, 3, 640, 640] }

    [options.remove-channels]
    carry = "bias-map"

The effective recipe is stored beside every result, and `deploykit optimize MODEL --recipe` repeats it.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit import registry
from deploykit.errors import UsageError

__all__ = ["Recipe", "merge", "parse_shape", "read", "to_toml", "toml_key", "toml_value"]


CHOICES = ("measure", "static")
"""How forms of layers are chosen."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is to be optimized.

    Attributes:
        passes: names of the passes, in order; None for every exact built-in pass; with a plus before each, those and these.
        options: values of their options, by pass and option.
        target: name of the target; None to detect it.
        runtime: name of the runtime that validates and measures.
        threads: threads of the measured sessions; comparisons on a CPU are the sharpest with 1.
        profile: whether candidates are measured.
        tolerance: largest relative error that counts as equal; None for the default of each output's dtype.
        keep: nodes or tensors whose channels stay.
        shape: sizes of inputs with dynamic axes, by input.
        masks: an .npz file with a mask for weights, by weight.
        inputs: .npz files, each with one set of real inputs to validate and measure with.
        plan: a saved plan, whose passes run and cut and add no more than it lists.
        choose: how forms of layers with blocks are chosen: "measure" on the device, or "static" by the rules of the target.
        ticket: a ticket or a state dict, to be put into the PyTorch model before it is exported.
        engine: what an engine of the result is built with, "tensorrt" or "tensorrt-rtx"; None for no engine.
        compute_capability: the GPUs that engine is for, as "8.6"; none for the builder's own choice.
    """

    passes: tuple[str, ...] | None = None
    options: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    target: str | None = None
    runtime: str = "onnxruntime"
    threads: int = 1
    profile: bool = True
    tolerance: float | None = None
    keep: tuple[str, ...] = ()
    shape: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    masks: str | None = None
    inputs: tuple[str, ...] = ()
    plan: str | None = None
    choose: str = "measure"
    ticket: str | None = None
    engine: str | None = None
    compute_capability: tuple[str, ...] = ()

    @property
    def pass_names(self) -> tuple[str, ...]:
        """The passes that run."""
        return registry.expanded(self.passes)

    def check(self) -> Recipe:
        """Check names and values against what there is; returns the recipe with its options read.

        Raises:
            UsageError: a pass, an option, a target, a runtime or a number that there is not.
        """
        from deploykit.runtimes import ENGINES, check_name
        from passes.targets import TARGETS

        if not self.pass_names:
            msg = "no passes are named. Name at least one, or leave the option out for every exact one."
            raise UsageError(msg)
        for name in self.pass_names:
            registry.find(name)
            if self.pass_names.count(name) > 1:
                msg = f"the pass '{name}' is named twice. Name each pass once."
                raise UsageError(msg)
        for name in self.options:
            if name not in self.pass_names:
                msg = f"options are set for the pass '{name}', which does not run. Add it with --passes +{name}."
                raise UsageError(msg)
        if self.target is not None and self.target not in TARGETS:
            msg = f"there is no target '{self.target}'. There are: {', '.join(TARGETS)}."
            raise UsageError(msg)
        check_name(self.runtime)
        if self.engine is not None and self.engine not in ENGINES:
            msg = f"no engines are built with '{self.engine}', but with {' or '.join(ENGINES)}."
            raise UsageError(msg)
        if self.compute_capability and self.engine is None:
            msg = "compute capabilities are for an engine: say what to build it with, as --engine tensorrt-rtx."
            raise UsageError(msg)
        if self.choose not in CHOICES:
            msg = f"layers are chosen by one of {', '.join(CHOICES)}, not '{self.choose}'."
            raise UsageError(msg)
        if self.threads < 1:
            msg = f"threads must be at least 1, not {self.threads}."
            raise UsageError(msg)
        if self.tolerance is not None and not self.tolerance > 0:
            msg = f"the tolerance must be above 0, not {self.tolerance}."
            raise UsageError(msg)
        options = {
            name: {
                option: registry.parse_setting(name, option, value)
                for option, value in given.items()
            }
            for name, given in self.options.items()
        }
        passes = None if self.passes is None else self.pass_names
        return dataclasses.replace(self, passes=passes, options=options)


def read(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        UsageError: it cannot be read, or holds a key or a value that a recipe does not have.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read the recipe '{path}': {error.strerror}."
        raise UsageError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"the recipe '{path}' is not TOML: {error}."
        raise UsageError(msg) from error
    unknown = set(document) - {"optimize", "options"}
    settings = document.get("optimize", {})
    known = {field.name for field in dataclasses.fields(Recipe)} - {"options"}
    if not isinstance(settings, dict) or unknown:
        msg = f"the recipe '{path}' has the tables 'optimize' and 'options' only, not {sorted(unknown)}."
        raise UsageError(msg)
    if set(settings) - known:
        stray = sorted(set(settings) - known)
        msg = f"the recipe '{path}' sets {stray}, which there is not. There are: {', '.join(sorted(known))}."
        raise UsageError(msg)
    options = document.get("options", {})
    if not isinstance(options, dict) or not all(
        isinstance(given, dict) for given in options.values()
    ):
        msg = f"the recipe '{path}': 'options' holds a table for each pass, as [options.NAME]."
        raise UsageError(msg)
    # Files are named relative to the recipe, so that a folder can be moved.
    values = {key: _typed(path, key, value) for key, value in settings.items()}
    for key in ("masks", "plan", "ticket"):
        if key in values:
            values[key] = str(path.parent / values[key])
    if "inputs" in values:
        values["inputs"] = tuple(str(path.parent / file) for file in values["inputs"])
    return Recipe(options=options, **values)


def merge(base: Recipe, options: Mapping[str, Mapping[str, object]], **given: Any) -> Recipe:  # noqa: ANN401 - fields
    """A recipe with the values that a command line gives in place of its own; None means not given."""
    combined = {name: dict(values) for name, values in base.options.items()}
    for name, values in options.items():
        combined.setdefault(name, {}).update(values)
    changes = {key: value for key, value in given.items() if value is not None}
    return dataclasses.replace(base, options=combined, **changes)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME:1x3x640x640`.

    Raises:
        UsageError: it has another form.
    """
    name, colon, sizes = text.rpartition(":")
    try:
        shape = tuple(int(size) for size in sizes.lower().split("x"))
    except ValueError:
        shape = ()
    if not name or not colon or not shape or min(shape) < 1:
        msg = f"a shape is given as NAME:1x3x640x640, not '{text}'."
        raise UsageError(msg)
    return name, shape


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file that `read` reads."""
    lines = [
        "# What was done here; `deploykit optimize MODEL -o OUT --recipe recipe.toml` repeats it.",
        "[optimize]",
    ]
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "passes":
            value = recipe.pass_names
        if (
            field.name == "options"
            or value is None
            or (value in ((), {}) and field.name != "passes")
        ):
            continue
        lines.append(f"{field.name} = {toml_value(value)}")
    for name, values in recipe.options.items():
        lines += ["", f"[options.{toml_key(name)}]"]
        lines += [
            f"{toml_key(option)} = {toml_value(value)}"
            for option, value in values.items()
            if value is not None
        ]
    return "\n".join(lines) + "\n"


def _typed(path: Path, key: str, value: object) -> Any:  # noqa: ANN401 - of the type of that field
    strings = isinstance(value, list) and all(isinstance(part, str) for part in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match key:
        case "passes" | "keep" | "inputs" | "compute_capability" if strings:
            return tuple(value)  # type: ignore[arg-type]  # checked one line above
        case "profile" if isinstance(value, bool):
            return value
        case "threads" if isinstance(value, int) and number:
            return value
        case "tolerance" if number:
            return float(value)  # type: ignore[arg-type]  # checked above
        case "shape" if isinstance(value, dict):
            try:
                return {
                    str(name): tuple(int(size) for size in sizes)
                    for name, sizes in value.items()
                }
            except (TypeError, ValueError):
                pass
        case "target" | "runtime" | "choose" | "masks" | "plan" | "ticket" | "engine" if (
            isinstance(value, str)
        ):
            return value
    msg = f"the recipe '{path}': '{key}' cannot be {value!r}."
    raise UsageError(msg)


def toml_value(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return (
            "{ "
            + ", ".join(
                f"{toml_key(str(key))} = {toml_value(part)}" for key, part in value.items()
            )
            + " }"
        )
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    return _string(str(value))


def toml_key(name: str) -> str:
    """A key as TOML writes it: in quotes where it has to be."""
    plain = name.replace("-", "").replace("_", "")
    return name if plain.isascii() and plain.isalnum() else _string(name)


def _string(text: str) -> str:
    # JSON's escapes are TOML's too, except that JSON leaves DEL as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
