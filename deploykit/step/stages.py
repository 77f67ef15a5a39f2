"""The stages of a step, each with all that decides its result, by name: one hash of that is its key.

    export -> optimize -> profile, one a device
                       -> accuracy

Gates and documents are made of the results of these, in no time, and have no key.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import deploykit
from deploykit import model_io, pipeline, registry
from deploykit.errors import UsageError
from deploykit.profile import HERE
from deploykit.step.accuracy import BUILT_IN
from deploykit.step.cache import file_hash, key_of
from deploykit.step.sources import find_sources
from deploykit.torch_source import is_reference

if TYPE_CHECKING:
    from deploykit.profile import Place
    from deploykit.recipe import Recipe
    from deploykit.step.places import Spot
    from deploykit.step.records import StepRecipe

__all__ = [
    "ACCURACY",
    "EXPORT",
    "OPTIMIZE",
    "Stage",
    "optimize_where",
    "plan_stages",
    "profile_name",
    "why",
]

EXPORT, OPTIMIZE, ACCURACY = "export", "optimize", "accuracy"

PACKAGES: Mapping[str, tuple[str, ...]] = {
    EXPORT: ("torch", "onnxscript", "onnx", "onnx-ir", "numpy", "safetensors"),
    OPTIMIZE: ("onnx", "onnx-ir", "onnxruntime", "numpy", "scipy"),
    "profile": ("onnxruntime", "numpy"),
    ACCURACY: ("onnxruntime", "numpy"),
}
"""Distributions whose versions decide what a stage gives."""

RUNTIME_PACKAGES = ("tensorrt", "tensorrt-rtx", "torch", "onnxruntime-gpu")
"""Distributions that count where they are what runs or builds."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: "export", "optimize", "profile NAME" or "accuracy".
        components: all that decides its result, by name.
        files: files that it reads, by the component that is their hash: what is read has to be what was hashed.
        device: the device that it is about; None where it is about none.
    """

    name: str
    components: Mapping[str, str]
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    device: str | None = None

    @functools.cached_property
    def key(self) -> str:
        """The hash of all that."""
        return key_of(self.name, self.components)

    def check_files(self) -> None:
        """Check that the files it read are still what they were when it began.

        Raises:
            UsageError: one of them was changed in the meantime.
        """
        for name, path in self.files.items():
            if _content(name, path) != self.components[name]:
                msg = f"'{path}' was changed while '{self.name}' was reading it. Run again."
                raise UsageError(msg)


def profile_name(device: str) -> str:
    """What the stage that measures on a device is called."""
    return f"profile {device}"


def plan_stages(recipe: StepRecipe, spots: Mapping[str, Spot]) -> tuple[Stage, ...]:
    """The stages of a recipe, in order.

    Args:
        recipe: the recipe.
        spots: its devices, ready to be asked what they are.

    Raises:
        UsageError: a module is not there, or a file cannot be read.
        ModelError: the model is none that deploykit handles.
        RuntimeUnavailable: a device cannot be reached.
    """
    found: list[Stage] = []
    above: dict[str, str] = {}
    if is_reference(Path(recipe.model)):
        found.append(_export(recipe))
        above = {f"stage {EXPORT}": found[-1].key}
    found.append(_optimize(recipe, spots, above))
    above = {f"stage {OPTIMIZE}": found[-1].key}
    found += [_profile(recipe, name, spot, above) for name, spot in spots.items()]
    if recipe.accuracy is not None:
        found.append(_accuracy(recipe, above))
    return tuple(found)


def optimize_where(recipe: StepRecipe, spots: Mapping[str, Spot]) -> tuple[Recipe, Place]:
    """How the model is optimized, and where its forms are measured: on the first device, in the way that is used there."""
    spot = next(iter(spots.values()), None)
    if spot is None:
        return recipe.optimize, HERE
    options = dataclasses.replace(recipe.optimize, threads=spot.threads, runtime=spot.runtime)
    return options, spot.place


def why(stage: Stage, before: Mapping[str, str] | None) -> str:
    """Why a stage has no kept result: what is not as it was, in words.

    Args:
        stage: the stage.
        before: its components when it last ran for this output; None if that is not known.
    """
    if before is None:
        return "no earlier result is known"
    changes = []
    for name in dict.fromkeys((*stage.components, *before)):
        old, new = before.get(name), stage.components.get(name)
        if old == new:
            continue
        if name.startswith("stage "):
            changes.append(f"'{name.removeprefix('stage ')}' runs again")
        elif old is None:
            changes.append(
                f"{name} is new" if _is_hash(new) else f"{name} was not set, is {new}"
            )
        elif new is None:
            changes.append(
                f"{name} is gone" if _is_hash(old) else f"{name} was {old}, is not set"
            )
        elif _is_hash(old) and _is_hash(new):
            changes.append(f"{name} has another content")
        else:
            changes.append(f"{name} was {old}, is {new}")
    return "; ".join(changes) or "its result is no longer kept"


# -- the stages ----------------------------------------------------------------------------------


def _export(recipe: StepRecipe) -> Stage:
    options = recipe.optimize
    module = recipe.model.partition(":")[0]
    components = {
        **_packages(EXPORT),
        "model": recipe.model,
        **_sources(recipe, module),
    }
    files = _named_files(recipe)
    if options.ticket is not None:
        files["ticket"] = Path(options.ticket)
    if options.shape:
        components["shape"] = _text(options.shape)
    return _stage(EXPORT, components, files)


def _optimize(recipe: StepRecipe, spots: Mapping[str, Spot], above: Mapping[str, str]) -> Stage:
    options, place = optimize_where(recipe, spots)
    components = {**_packages(OPTIMIZE), **_runtime_packages(options), **above}
    files: dict[str, Path] = {}
    if not above:
        files |= {"model": Path(recipe.model), **_named_files(recipe)}
    for key in ("masks", "plan"):
        value = getattr(options, key)
        if value is not None:
            files[key] = Path(value)
    files |= _numbered("example", options.inputs)
    components |= dict(_options(options))
    components["target"] = pipeline.find_target(options, place).name
    if options.profile:
        # What is fastest is decided by measuring, on this device.
        components |= {**_measure(recipe), "device": place.describe().fingerprint}
    return _stage(OPTIMIZE, components, files)


def _options(options: Recipe) -> Iterator[tuple[str, str]]:
    """What says how a model is optimized; what nothing was said about is left to the version of deploykit."""
    yield "passes", ", ".join(options.pass_names)
    keys = [
        "runtime",
        "tolerance",
        "choose",
        "engine",
        "compute_capability",
        "profile",
        "keep",
        "shape",
    ]
    if options.profile:
        keys.append("threads")
    for key in keys:
        value = getattr(options, key)
        if value is not None and value not in ((), {}):
            yield f"option {key}", _text(value)
    for name, values in options.options.items():
        for option, value in values.items():
            yield f"option {name}.{option}", _text(value)
    known = registry.all_passes()
    for name in options.pass_names:
        origin = known[name].origin
        if origin != "deploykit":
            yield f"plug-in {origin}", _version(origin) or "?"


def _profile(recipe: StepRecipe, name: str, spot: Spot, above: Mapping[str, str]) -> Stage:
    options = recipe.optimize
    components = {
        **_packages("profile"),
        **_runtime_packages(dataclasses.replace(options, runtime=spot.runtime)),
        **_measure(recipe),
        **above,
        "address": spot.address,
        "device": spot.place.describe().fingerprint,
        "option threads": _text(spot.threads),
        "option runtime": _text(spot.runtime),
    }
    if options.shape:
        components["option shape"] = _text(options.shape)
    return _stage(
        profile_name(name), components, _numbered("example", options.inputs[:1]), name
    )


def _accuracy(recipe: StepRecipe, above: Mapping[str, str]) -> Stage:
    spec = recipe.accuracy
    if spec is None:
        msg = "stages developer: there is no accuracy without [accuracy]"
        raise ValueError(msg)
    components = {
        **_packages(ACCURACY),
        **above,
        "metric": spec.metric,
        "higher_is_better": _text(spec.higher_is_better),
    }
    if spec.metric not in BUILT_IN:
        components |= _sources(recipe, spec.metric.partition(":")[0])
    files = {} if spec.data is None else {"data": spec.data}
    return _stage(ACCURACY, components, files)


# -- components ----------------------------------------------------------------------------------


def _stage(
    name: str,
    components: Mapping[str, str],
    files: Mapping[str, Path],
    device: str | None = None,
) -> Stage:
    hashes = {key: _content(key, path) for key, path in files.items()}
    return Stage(name, {**components, **hashes}, dict(files), device)


def _content(name: str, path: Path) -> str:
    """The hash of a file; of a model, that of its data files, too."""
    try:
        return model_io.load(path).sha256 if name == "model" else file_hash(path)
    except OSError as error:
        msg = f"'{path}' cannot be read: {error.strerror}."
        raise UsageError(msg) from error


def _named_files(recipe: StepRecipe) -> dict[str, Path]:
    return {f"file {_near(path, recipe.folder)}": path for path in recipe.files}


def _sources(recipe: StepRecipe, module: str) -> dict[str, str]:
    """Hashes of what a module of the user's is made of, and versions of what it uses."""
    found = find_sources(module, recipe.folder)
    return {
        **{f"source {_near(path, recipe.folder)}": file_hash(path) for path in found.files},
        **{f"package {name}": version for name, version in found.versions.items()},
    }


def _near(path: Path, folder: Path) -> str:
    """A file as a user who stands beside the recipe calls it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _numbered(name: str, files: Sequence[str]) -> dict[str, Path]:
    return {f"{name} {place}": Path(file) for place, file in enumerate(files, 1)}


def _measure(recipe: StepRecipe) -> dict[str, str]:
    return {
        f"measure {name}": _text(value)
        for name, value in (
            ("duration", recipe.measure.duration_s),
            ("warmup", recipe.measure.warmup_s),
            ("rebuilds", recipe.measure.rebuilds),
        )
    }


def _packages(stage: str) -> dict[str, str]:
    found = {
        "deploykit": f"{deploykit.__version__} ({_own_hash()[:12]})",
        "python": platform.python_version(),
    }
    for name in PACKAGES[stage]:
        version = _version(name)
        if version is not None:
            found[f"package {name}"] = version
    return found


def _runtime_packages(options: Recipe) -> dict[str, str]:
    """Versions of what runs or builds, where that is not ONNX Runtime."""
    if options.runtime == "onnxruntime" and options.engine is None:
        return {}
    return {
        f"package {name}": version
        for name in RUNTIME_PACKAGES
        if (version := _version(name)) is not None
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _own_hash() -> str:
    """Hash of the source of deploykit and its passes: while it is developed, its version says nothing."""
    import passes

    total = hashlib.sha256()
    for package in (deploykit, passes):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _text(value: object) -> str:
    """A value as messages show it."""
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, Mapping):
        return json.dumps({str(key): _plain(each) for key, each in sorted(value.items())})
    return json.dumps(_plain(value))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _is_hash(text: str | None) -> bool:
    return (
        text is not None
        and len(text) == 64
        and all(each in "0123456789abcdef" for each in text)
    )
