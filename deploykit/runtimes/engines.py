"""Builds engines of ONNX models with TensorRT or TensorRT-RTX, and says why one was not built.

A network is strongly typed: the model says what is computed in half precision, no flag does. Sparse kernels are allowed,
which says nothing of whether one is used. What the libraries do not raise they log, so that what they logged is the reason.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelError, RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from deploykit.runtimes.tensorrt_family import Api

__all__ = [
    "Built",
    "Line",
    "Options",
    "build_engine",
    "find_compute_capabilities",
    "make_logger",
]

PROBLEMS = ("INTERNAL_ERROR", "ERROR")
MOST_REASONS = 4


@dataclasses.dataclass(frozen=True)
class Line:
    """A message of a library: "INFO", "ERROR" and so on, and what it says."""

    severity: str
    text: str


@dataclasses.dataclass(frozen=True)
class Options:
    """How an engine is built.

    Attributes:
        shapes: sizes of the inputs, by name. Those that the model leaves open are fixed to these.
        compute_capabilities: GPUs to build for, as "8.6"; none for the one that is here. TensorRT-RTX alone can build for
            others.
        timing_cache: a file with what earlier builds timed, which is read and written; None for none.
    """

    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None


@dataclasses.dataclass(frozen=True)
class Built:
    """An engine.

    Attributes:
        engine: its bytes.
        log: what was logged while it was built.
        seconds: how long that took.
        about: name and version of what built it.
        options: how it was built.
    """

    engine: bytes
    log: tuple[Line, ...]
    seconds: float
    about: str
    options: Options


def build_engine(api: Api, model: Path | bytes, options: Options | None = None) -> Built:
    """Build an engine.

    Args:
        api: what builds it.
        model: the model's file, or its bytes.
        options: how.

    Raises:
        UsageError: a compute capability that it does not know, or sizes that the model does not take.
        ModelError: it refuses the model; the message holds what it said, with names of nodes.
        RuntimeUnavailable: it cannot build on this machine.
    """
    options = options or Options()
    began = time.perf_counter()
    log: list[Line] = []
    trt = api.module
    logger = make_logger(api, log)
    builder = make_builder(api, logger, log)
    network = builder.create_network(api.network_flags)
    parse(api, network, logger, log, model)
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_shapes(builder, config, network, options)
    _set_compute_capabilities(api, config, options)
    cache = _read_timing_cache(config, options)
    built = builder.build_serialized_network(network, config)
    if built is None:
        msg = f"{api.about} builds no engine of {_called(model)}: {reasons(log)}"
        raise ModelError(msg)
    engine = bytes(built)
    if cache:
        _write_timing_cache(config, options)
    return Built(engine, tuple(log), time.perf_counter() - began, api.about, options)


def make_logger(api: Api, log: list[Line]) -> Any:  # noqa: ANN401 - a type of the package
    """A logger that keeps every message; nothing is printed."""
    base: Any = api.module.ILogger

    class Keeper(base):  # type: ignore[misc]  # a base that is known at run time only
        def __init__(self) -> None:
            # The binding needs its own constructor, by name: what Python would call is not what it looks for.
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - an enum of the package
            log.append(Line(str(severity.name), str(message)))

    return Keeper()


def make_builder(api: Api, logger: Any, log: Sequence[Line]) -> Any:  # noqa: ANN401 - types of the package
    """A builder.

    Raises:
        RuntimeUnavailable: there is none on this machine: without a driver, the package raises a TypeError.
    """
    try:
        return api.module.Builder(logger)
    except TypeError as error:
        said = reasons(log) if log else " ".join(str(error).split())
        msg = f"{api.about} has no builder on this machine: {said}"
        raise RuntimeUnavailable(msg) from error


def parse(api: Api, network: Any, logger: Any, log: list[Line], model: Path | bytes) -> None:  # noqa: ANN401 - types of the package
    """Fill an empty network from a model.

    Raises:
        ModelError: the parser refuses it; the message names the nodes.
    """
    # The parser goes before the network that it fills: it ends with this function.
    parser = api.module.OnnxParser(network, logger)
    if isinstance(model, bytes):
        is_parsed = parser.parse(model)
    else:
        is_parsed = parser.parse_from_file(os.fspath(model))
    if is_parsed:
        return
    said = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    why = "; ".join(said[:MOST_REASONS]) or reasons(log)
    msg = f"the parser of {api.about} refuses {_called(model)}: {why}"
    raise ModelError(msg)


def find_compute_capabilities(api: Api) -> dict[str, Any]:
    """The GPUs that engines can be built for without having one, as "8.6": the package's own word for it.

    Empty for a package that builds for the GPU of this machine only.
    """
    kinds = getattr(api.module, "ComputeCapability", None)
    if kinds is None:
        return {}
    found = {}
    for name, member in kinds.__members__.items():
        digits = name.removeprefix("SM")
        if name.startswith("SM") and digits.isdecimal():
            found[f"{digits[:-1]}.{digits[-1]}"] = member
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def reasons(log: Sequence[Line]) -> str:
    """What was logged as wrong, on one line; what was said last if nothing was."""
    said = [line.text for line in log if line.severity in PROBLEMS]
    said = list(dict.fromkeys(said))[:MOST_REASONS] or [line.text for line in log][-1:]
    return "; ".join(" ".join(text.split()) for text in said) or "it does not say why"


def _parser_error(error: Any) -> str:  # noqa: ANN401 - a type of the package
    """A parser's error with the node that it is about, where the version tells."""
    text = " ".join(str(error.desc()).split())
    name_of = getattr(error, "node_name", None)
    name = "" if name_of is None else name_of()
    return f"node '{name}': {text}" if name else text


def _set_shapes(builder: Any, config: Any, network: Any, options: Options) -> None:  # noqa: ANN401 - types of the package
    """Fix the sizes that the model leaves open.

    Raises:
        UsageError: a size is not given, or does not fit.
    """
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        declared = tuple(tensor.shape)
        if all(size >= 0 for size in declared):
            continue
        given = options.shapes.get(tensor.name)
        if given is None or len(given) != len(declared):
            shown = "x".join("?" if size < 0 else str(size) for size in declared)
            msg = f"an engine needs sizes, and the model leaves some of '{tensor.name}' ({shown}) open: give --shape {tensor.name}:{shown}"
            raise UsageError(msg)
        if profile is None:
            profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, tuple(given), tuple(given), tuple(given))
    if profile is not None:
        config.add_optimization_profile(profile)


def _set_compute_capabilities(api: Api, config: Any, options: Options) -> None:  # noqa: ANN401 - a type of the package
    """Say for which GPUs the engine is.

    Raises:
        UsageError: one that the package does not know, or it builds for this machine's only.
    """
    if not options.compute_capabilities:
        return
    known = find_compute_capabilities(api)
    if not known:
        msg = f"{api.about} builds for the GPU of this machine only: leave --compute-capability out, or build with tensorrt-rtx."
        raise UsageError(msg)
    unknown = [name for name in options.compute_capabilities if name not in known]
    if unknown:
        msg = f"{api.about} builds for no GPU of compute capability {', '.join(unknown)}. It knows {', '.join(known)}."
        raise UsageError(msg)
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, name in enumerate(options.compute_capabilities):
        config.set_compute_capability(known[name], index)


def _read_timing_cache(config: Any, options: Options) -> bool:  # noqa: ANN401 - a type of the package
    """Give the builder what earlier builds timed; whether it takes it."""
    if options.timing_cache is None:
        return False
    try:
        known = options.timing_cache.read_bytes()
    except OSError:
        known = b""
    cache = config.create_timing_cache(known)
    if cache is None:
        # One that was cut, or comes from another version, is begun anew.
        cache = config.create_timing_cache(b"")
    # Times of another device are worth nothing: the file's name tells devices apart, and the builder checks once more.
    return cache is not None and bool(config.set_timing_cache(cache, False))


def _write_timing_cache(config: Any, options: Options) -> None:  # noqa: ANN401 - a type of the package
    """Keep what was timed, in one step; a place that cannot be written to costs the next build time, and no more."""
    place = options.timing_cache
    cache = config.get_timing_cache()
    if place is None or cache is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as partial:
            partial.write(bytes(cache.serialize()))
        Path(partial.name).replace(place)
    except OSError:
        return


def _called(model: Path | bytes) -> str:
    return "the model" if isinstance(model, bytes) else f"'{model}'"
