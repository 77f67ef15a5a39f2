"""Says in the terms of a user why models could not be measured on a device, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import DeploykitError, ModelError, RuntimeUnavailable

if TYPE_CHECKING:
    from deploykit.profile.remote.address import Host
    from deploykit.profile.remote.connection import Completed

__all__ = ["failed", "gone", "no_package", "no_python", "no_space", "no_workspace"]

NOT_FOUND = 127
"""What a shell says of a program that is not there."""

OLDEST = "3.8"


def no_python(host: Host, done: Completed) -> RuntimeUnavailable:
    """The Python of the device did not answer."""
    last = (done.errors.strip().splitlines() or ["it said nothing"])[-1]
    if done.code == NOT_FOUND:
        return RuntimeUnavailable(
            f"{host.name} has no '{host.python}', which runs the models there. Install Python {OLDEST} or newer with numpy and a "
            "runtime, or say where it is with --device-python."
        )
    return RuntimeUnavailable(
        f"'{host.python}' on {host.name} does not run: it ended with {done.code}: {last}. Try '{host.address.command} "
        f"{host.python} --version', or name another Python with --device-python."
    )


def no_workspace(host: Host, found: Mapping[str, Any]) -> RuntimeUnavailable:
    """The device cannot be worked on."""
    problem = found["problem"]
    if problem == "python":
        return RuntimeUnavailable(
            f"'{host.python}' on {host.name} is Python {_dotted(found['version'])}, and {OLDEST} is needed at least. Install a newer "
            "one beside it, and name it with --device-python."
        )
    if problem == "system":
        return RuntimeUnavailable(
            f"{host.name} runs {found['text']}, where models cannot be measured over SSH: run 'deploykit profile' on it."
        )
    tried = "; ".join(f"'{folder}': {why}" for folder, _, why in found["failures"])
    return RuntimeUnavailable(
        f"there is no place for a workspace on {host.name}: {tried}. Free some space, or make one of these folders yours there."
    )


def no_package(
    host: Host, missing: Sequence[str], version: Sequence[int]
) -> RuntimeUnavailable:
    """The Python of the device lacks what runs models."""
    names = " and ".join(missing)
    wanted = " ".join(dict.fromkeys(("numpy", *missing)))
    ssh = host.address.command
    if "tensorrt" in missing:
        how = (
            "install it there with the packages of NVIDIA (on a Jetson 'sudo apt-get install python3-libnvinfer'), or name the "
            "Python that has it with --device-python"
        )
    else:
        how = (
            f"install it there with '{ssh} {host.python} -m pip install {' '.join(missing)}', or into an environment of its own "
            f"with '{ssh} \"{host.python} -m venv ~/deploykit && ~/deploykit/bin/pip install {wanted}\"' and "
            "--device-python '~/deploykit/bin/python'"
        )
    return RuntimeUnavailable(
        f"{names} cannot be found by '{host.python}' (Python {_dotted(version)}) on {host.name}: {how}. Nothing was installed."
    )


def no_space(
    host: Host, what: str, needed: int, free: int | None, told: str = ""
) -> RuntimeUnavailable:
    """The disk of the device is full."""
    if free is not None and told and free > needed:
        return RuntimeUnavailable(
            f"'{what}' was not taken by {host.name}: {told} {_megabytes(needed)} were to go there, and its disk has "
            f"{_megabytes(free)} free: is there a quota? Name another folder for it in devices.toml."
        )
    has = "its disk is full" if free is None else f"its disk has {_megabytes(free)} free"
    return RuntimeUnavailable(
        f"no room for {what if what.startswith('the ') else repr(what)} on {host.name}: {_megabytes(needed)} are needed, and {has}. "
        "Free some space there, or name a folder on another disk in devices.toml."
    )


def gone(host: Host) -> RuntimeUnavailable:
    """The run has disappeared from the device."""
    return RuntimeUnavailable(
        f"the run on {host.name} is not there any more: the device was started anew, or its processes were ended, or it heard "
        f"nothing from here for {host.lease_s:g} s. Measure again."
    )


def failed(
    host: Host,
    event: Mapping[str, Any],
    step: Mapping[str, Any],
    models: Sequence[Path],
    free: int | None,
) -> DeploykitError:
    """A job ended without a result.

    Args:
        host: the device.
        event: the last word of the job.
        step: what it said before that.
        models: the models that it was about.
        free: bytes that are free on the device, if that is what it is about.
    """
    kind, text = event.get("kind"), str(event.get("text", ""))
    model = _model(step, models)
    if kind == "missing":
        return RuntimeUnavailable(
            f"'{event.get('name') or 'a package'}' cannot be imported by '{host.python}' on {host.name}: {text}. Install it there, "
            "or name the Python that has it with --device-python."
        )
    if kind == "memory":
        return ModelError(
            f"{model} needs more memory than {host.name} has: {text}. Use a smaller model, or a device with more."
        )
    if kind == "disk":
        return no_space(host, "the samples", 1 << 20, free)
    if kind == "stuck":
        return RuntimeUnavailable(
            f"measuring {model} on {host.name} was ended: nothing came for {event.get('seconds')} s while it was {_doing(step)}. The "
            "device is stuck, or the model never ends: try it there by itself; where it is only slow, give the device a "
            "longer timeout_s in devices.toml."
        )
    if kind == "model":
        there = str(event.get("runtime") or "the runtime")
        verb = "refuses" if step.get("event") == "open" else "does not run"
        return ModelError(f"{there} on {host.name} {verb} {model}: {text}. {_newer(there)}")
    return _crashed(host, event, step, model)


def _crashed(
    host: Host, event: Mapping[str, Any], step: Mapping[str, Any], model: str
) -> DeploykitError:
    number = event.get("signal")
    if number is None:
        return RuntimeUnavailable(
            f"the sampler on {host.name} ended with {event.get('code')}: {event.get('text') or 'it said nothing'}. Try "
            f"'{host.address.command} {host.python} -c \"import numpy, onnxruntime\"'."
        )
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return ModelError(
            f"measuring {model} on {host.name} was killed ({name}) while it was {_doing(step)}, most likely because memory ran "
            "out there. Use a smaller model, or end other programs first."
        )
    return ModelError(
        f"the runtime on {host.name} crashed ({name}) while it was {_doing(step)}: {model}. Check the model, or update the "
        "runtime there."
    )


def _model(step: Mapping[str, Any], models: Sequence[Path]) -> str:
    """The model that it was about, as far as that is known."""
    index = step.get("model")
    if isinstance(index, int) and index < len(models):
        return f"'{models[index]}'"
    if len(models) == 1:
        return f"'{models[0]}'"
    return "one of " + ", ".join(f"'{path}'" for path in models) if models else "the device"


def _doing(step: Mapping[str, Any]) -> str:
    doing = {"open": "opened", "warm": "run for the first time", "round": "timed"}
    return doing.get(str(step.get("event")), "begun")


def _newer(there: str) -> str:
    """What to do about a model that runs here and not there."""
    name, _, version = there.partition(" ")
    try:
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "Export it again for that runtime."
    if here == version:
        return "This machine has the same version: try the model here."
    return (
        f"This machine has {name} {here}, which may know operators, opsets and IR versions that {version or 'the other'} does not: "
        "export the model for an older opset, or update the runtime there."
    )


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB"
