"""Reads the recipe of a step: from TOML to a `StepRecipe` in which everything is known to make sense."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploykit import registry
from deploykit.errors import RuntimeUnavailable, UsageError
from deploykit.recipe import Recipe
from deploykit.step import gates as gate_rules
from deploykit.step.accuracy import BUILT_IN, check_metric
from deploykit.step.layered import Layers, read_layers
from deploykit.step.places import find as find_place
from deploykit.step.recipe_words import in_words_of_recipes
from deploykit.step.records import AccuracySpec, DeviceSpec, Gate, MeasureSpec, StepRecipe
from deploykit.step.schema import nearest
from deploykit.step.sources import check_reference
from deploykit.step.toml_lines import KeyPath
from deploykit.torch_source import is_reference

__all__ = ["effective", "input_files", "read_recipe"]

HERE = "here"
STRANGE = re.compile(r"[^A-Za-z0-9._@-]+")
PASSWORD = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*://)?[^/@\s]*:[^/\s]*@")
REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def read_recipe(
    path: Path, *, settings: Sequence[str] = (), on: Sequence[str] = ()
) -> StepRecipe:
    """Read a recipe and check it against itself, the passes that there are, and the files that it names.

    Args:
        path: the file.
        settings: values that take the place of its own, as `TABLE.KEY=VALUE` or `PASS.OPTION=VALUE`.
        on: devices that take the place of its own.

    Raises:
        UsageError: something in it makes no sense; the message begins with file and line.
        RuntimeUnavailable: what it names is not installed.
    """
    layers = read_layers(path, settings, on)
    for table, key in (("inputs", "model"), ("output", "folder")):
        if layers.get(table, key) is None:
            layers.fail((table,), f"[{table}] has no '{key}'. Add it.")
    model = _model(layers)
    optimize = _optimize(layers)
    devices = _devices(layers)
    accuracy = _accuracy(layers)
    recipe = StepRecipe(
        path=layers.files[0],
        extends=layers.files[1:],
        name=layers.get("name", default=path.stem),
        model=model,
        files=tuple(Path(each) for each in _files(layers, "files")),
        output=Path(layers.get("output", "folder")).resolve(),
        optimize=optimize,
        measure=_measure(layers),
        devices=devices,
        accuracy=accuracy,
        gates=_gates(layers, devices, accuracy),
    )
    _check_output(layers, recipe)
    return recipe


def input_files(recipe: StepRecipe) -> dict[KeyPath, tuple[Path, ...]]:
    """The files that a recipe names, by the key that names them."""
    options = recipe.optimize
    found: dict[KeyPath, tuple[Path, ...]] = {}
    if not is_reference(Path(recipe.model)):
        found["inputs", "model"] = (Path(recipe.model),)
    for key in ("ticket", "masks", "plan"):
        value = getattr(options, key)
        if value is not None:
            found["inputs", key] = (Path(value),)
    found["inputs", "examples"] = tuple(Path(each) for each in options.inputs)
    found["inputs", "files"] = recipe.files
    if recipe.accuracy is not None and recipe.accuracy.data is not None:
        found["accuracy", "data"] = (recipe.accuracy.data,)
    return found


def effective(recipe: StepRecipe) -> dict[str, Any]:
    """What a recipe says with all that it builds on and every default filled in, as values of TOML.

    Files are named relative to its folder, so that the same recipe in another folder says the same.
    """
    options = recipe.optimize

    def near(file: str | Path) -> str:
        return _relative(Path(file), recipe.folder)

    model = recipe.model if is_reference(Path(recipe.model)) else near(recipe.model)
    inputs: dict[str, Any] = {"model": model}
    for key in ("ticket", "masks", "plan"):
        value = getattr(options, key)
        if value is not None:
            inputs[key] = near(value)
    if options.inputs:
        inputs["examples"] = [near(each) for each in options.inputs]
    if recipe.files:
        inputs["files"] = [near(each) for each in recipe.files]
    optimize: dict[str, Any] = {"passes": list(options.pass_names)}
    for key in ("target", "runtime", "threads", "profile", "tolerance", "choose", "engine"):
        value = getattr(options, key)
        if value is not None:
            optimize[key] = value
    for key in ("keep", "compute_capability"):
        if getattr(options, key):
            optimize[key] = list(getattr(options, key))
    if options.shape:
        optimize["shape"] = {name: list(sizes) for name, sizes in options.shape.items()}
    found: dict[str, Any] = {
        "name": recipe.name,
        "gates": [gate.text for gate in recipe.gates],
        "inputs": inputs,
        "output": {"folder": near(recipe.output)},
        "optimize": optimize,
    }
    passes = {
        name: {option: _plain(value) for option, value in values.items() if value is not None}
        for name, values in options.options.items()
    }
    if passes:
        found["options"] = passes
    found["measure"] = {
        "duration": recipe.measure.duration_s,
        "warmup": recipe.measure.warmup_s,
        "rebuilds": recipe.measure.rebuilds,
    }
    found["devices"] = [{"on": device.on, "name": device.name} for device in recipe.devices]
    if recipe.accuracy is not None:
        found["accuracy"] = {
            "metric": recipe.accuracy.metric,
            **({} if recipe.accuracy.data is None else {"data": near(recipe.accuracy.data)}),
            "higher_is_better": recipe.accuracy.higher_is_better,
        }
    return found


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return value


def _relative(file: Path, folder: Path) -> str:
    # Path.relative_to goes no way up before Python 3.12.
    return Path(os.path.relpath(file.resolve(), folder)).as_posix()


# -- tables --------------------------------------------------------------------------------------


@contextmanager
def _placed(layers: Layers, path: KeyPath) -> Iterator[None]:
    """Put file and line in front of what is said of a value."""
    try:
        yield
    except UsageError as error:
        raise UsageError(layers.told(path, in_words_of_recipes(str(error)))) from error
    except RuntimeUnavailable as error:
        said = in_words_of_recipes(str(error))
        raise RuntimeUnavailable(layers.told(path, said)) from error


def _model(layers: Layers) -> str:
    model: str = layers.get("inputs", "model")
    path = ("inputs", "model")
    if not is_reference(Path(model)):
        _check_file(layers, path, Path(model))
        if layers.get("inputs", "ticket") is not None:
            layers.fail(
                ("inputs", "ticket"),
                "a ticket goes with a PyTorch model, given as package.module:object, and the model here is a file. To zero "
                "weights of it, give 'masks'.",
            )
        return model
    if not REFERENCE.fullmatch(model):
        layers.fail(path, f"'{model}' is neither a file nor of the form package.module:object.")
    with _placed(layers, path):
        check_reference(model, layers.files[0].parent)
    if layers.get("inputs", "masks") is not None:
        layers.fail(
            ("inputs", "masks"), "masks go with a model file; a PyTorch model takes a 'ticket'."
        )
    return model


def _files(layers: Layers, key: str) -> tuple[str, ...]:
    """The files of an array in [inputs], all of which are there."""
    found = tuple(layers.get("inputs", key, default=()))
    for place, file in enumerate(found):
        _check_file(layers, ("inputs", key, place), Path(file))
        if found.index(file) < place:
            layers.fail(("inputs", key, place), f"'{file}' is there twice. Leave one out.")
    return found


def _check_file(layers: Layers, path: KeyPath, file: Path) -> None:
    try:
        if file.is_file():
            with file.open("rb"):
                return
    except OSError as error:
        layers.fail(path, f"'{file}' cannot be read: {error.strerror}. Change its permissions.")
    what = "is a folder, and a file is wanted" if file.is_dir() else "does not exist"
    layers.fail(
        path, f"'{file}' {what}. Files are named relative to the recipe that names them."
    )


def _optimize(layers: Layers) -> Recipe:
    given = dict(layers.get("optimize", default={}))
    for key in ("passes", "keep", "compute_capability"):
        if key in given:
            given[key] = tuple(given[key])
    if "shape" in given:
        given["shape"] = {name: tuple(sizes) for name, sizes in given["shape"].items()}
    for key in ("ticket", "masks", "plan"):
        value = layers.get("inputs", key)
        if value is not None:
            _check_file(layers, ("inputs", key), Path(value))
            given[key] = value
    recipe = Recipe(inputs=_files(layers, "examples"), **given)
    # Piece by piece, so that what is wrong has a line; all together once more for what goes wrong only together.
    if "passes" in given:
        with _placed(layers, ("optimize", "passes")):
            Recipe(passes=recipe.passes).check()
    for key in Recipe.__dataclass_fields__.keys() & given.keys():
        table = "inputs" if key in {"ticket", "masks", "plan"} else "optimize"
        if key != "passes":
            base = Recipe(passes=recipe.passes, engine=recipe.engine)
            with _placed(layers, (table, key)):
                dataclasses.replace(base, **{key: getattr(recipe, key)}).check()
    options = _options(layers, recipe.pass_names)
    with _placed(layers, ("optimize",)):
        return dataclasses.replace(recipe, options=options).check()


def _options(layers: Layers, running: Sequence[str]) -> dict[str, dict[str, object]]:
    """The options of passes, read as the passes declare them."""
    found: dict[str, dict[str, object]] = {}
    for name, given in layers.get("options", default={}).items():
        known = registry.all_passes()
        if name not in known:
            layers.fail(("options", name), f"there is no pass '{name}'. {nearest(name, known)}")
        if name not in running:
            layers.fail(
                ("options", name),
                f"options are set for the pass '{name}', which does not run. Add it to [optimize], as passes = [\"+{name}\"].",
            )
        kinds = {option.name: option.kind for option in known[name].options}
        found[name] = {}
        for option, value in given.items():
            path = ("options", name, option)
            if option not in kinds:
                layers.fail(
                    path,
                    f"the pass '{name}' has no option '{option}'. {nearest(option, kinds)}",
                )
            if "FILE" in kinds[option] and isinstance(value, str):
                file = layers.origin(path).folder / value
                _check_file(layers, path, file)
                value = str(file)  # noqa: PLW2901 - the same file, from anywhere
            with _placed(layers, path):
                found[name][option] = registry.parse_setting(name, option, value)
    return found


def _measure(layers: Layers) -> MeasureSpec:
    base = MeasureSpec()
    found = layers.get("measure", default={})
    return MeasureSpec(
        float(found.get("duration", base.duration_s)),
        float(found.get("warmup", base.warmup_s)),
        int(found.get("rebuilds", base.rebuilds)),
    )


def _devices(layers: Layers) -> tuple[DeviceSpec, ...]:
    found: list[DeviceSpec] = []
    for place, table in enumerate(layers.get("devices", default=({"on": HERE},))):
        path = ("devices", place, "on")
        on = table["on"].strip()
        if PASSWORD.match(on):
            layers.fail(
                path,
                "the device is given with a password, which has no place in a recipe or a command: it would be in files and "
                "logs. Give ssh://user@host, and let SSH find a key.",
            )
        if on != HERE:
            with _placed(layers, path):
                find_place(on, layers.files[0].parent)
        plain = on.removeprefix("ssh://").rstrip("/")
        name = table.get("name") or STRANGE.sub("-", plain).strip("-.")
        if name in {device.name for device in found}:
            layers.fail(
                ("devices", place),
                f"two devices are called '{name}'. Give one of them another 'name'.",
            )
        found.append(DeviceSpec(on, name))
    return tuple(found)


def _accuracy(layers: Layers) -> AccuracySpec | None:
    found = layers.get("accuracy")
    if found is None:
        return None
    metric = found.get("metric")
    if metric is None:
        layers.fail(("accuracy",), "[accuracy] has no 'metric'. Add it.")
    data = None if found.get("data") is None else Path(found["data"])
    if data is not None:
        _check_file(layers, ("accuracy", "data"), data)
    if metric not in BUILT_IN and not REFERENCE.fullmatch(metric):
        layers.fail(
            ("accuracy", "metric"),
            f"there is no metric '{metric}'. {nearest(metric, BUILT_IN)} Or give a function of yours, as module:function.",
        )
    if metric in BUILT_IN and data is None:
        layers.fail(
            ("accuracy", "metric"),
            f"'{metric}' needs 'data': an .npz with the inputs by name and \"labels\".",
        )
    if metric in BUILT_IN and found.get("higher_is_better") is False:
        layers.fail(
            ("accuracy", "higher_is_better"),
            f"of '{metric}', a higher figure is always better.",
        )
    with _placed(layers, ("accuracy", "metric")):
        check_metric(metric, layers.files[0].parent)
    return AccuracySpec(metric, data, bool(found.get("higher_is_better", True)))


def _gates(
    layers: Layers, devices: Sequence[DeviceSpec], accuracy: AccuracySpec | None
) -> tuple[Gate, ...]:
    found: list[Gate] = []
    names = [device.name for device in devices]
    for place, text in enumerate(layers.get("gates", default=())):
        path = ("gates", place)
        with _placed(layers, path):
            gate = gate_rules.parse_gate(text)
        metric = gate_rules.METRICS[gate.metric]
        if metric.of == "task" and accuracy is None:
            layers.fail(
                path,
                f"the gate '{text}' needs a table [accuracy], which says how accuracy is found.",
            )
        if metric.of == "device" and not devices:
            layers.fail(
                path,
                f"the gate '{text}' is on what is not measured: 'devices' is empty. Name one, or take the gate out.",
            )
        if gate.device is not None and gate.device not in names:
            layers.fail(
                path,
                f"the gate '{text}' names no device of this recipe. {nearest(gate.device, names)}",
            )
        if metric.of == "task" and accuracy is not None and accuracy.metric in BUILT_IN:
            _check_share(layers, path, gate)
        found.append(gate)
    fault = gate_rules.check_together(found)
    if fault is not None:
        layers.fail(("gates", fault[0]), fault[1])
    return tuple(found)


def _check_share(layers: Layers, path: KeyPath, gate: Gate) -> None:
    """Refuse a limit of a share of right answers that no share can have."""
    if not gate.is_relative and not 0.0 <= gate.limit <= 1.0:
        layers.fail(
            path,
            f"the gate '{gate.text}' makes no sense: the accuracy is a share of right answers, from 0 to 1.",
        )


def _check_output(layers: Layers, recipe: StepRecipe) -> None:
    """Refuse a result folder that would swallow what the result is made of.

    Raises:
        UsageError: it would.
    """
    path = ("output", "folder")
    output = recipe.output
    if output.exists() and not output.is_dir():
        layers.fail(path, f"the result cannot go to '{output}': it is a file. Give a folder.")
    for where, files in input_files(recipe).items():
        for file in files:
            if file.resolve().is_relative_to(output):
                layers.fail(
                    path,
                    f"the result folder '{output}' holds '{file.name}', which '{where[-1]}' reads: a result would be made of "
                    "itself. Give another folder.",
                )
    for file in layers.files:
        if file.is_relative_to(output):
            layers.fail(
                path,
                f"the result folder '{output}' holds the recipe '{file.name}', and is replaced as a whole. Give another "
                "folder.",
            )
