"""ONNX Runtime: the runtime that is always there, and the judge of whether two models compute the same."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from deploykit import one_file
from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.runtimes import Capabilities, Claim, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType, TracebackType
    from typing import Self

__all__ = ["Array", "Optimization", "Session", "capabilities", "load"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Optimization: TypeAlias = Literal["all", "none"]

CPU = "CPUExecutionProvider"
FOLDER_OF_DATA = "session.model_external_initializers_file_folder_path"
MESSAGE_LIMIT = 300
RUN_LIMIT_S = 600.0
"""How long a model may run once: far longer than a model that anybody measures, and shorter than a night."""
DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    **{name: name for name in ("float16", "bfloat16", "bool")},
    **{
        f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
    },
}


def load() -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        RuntimeUnavailable: it is not installed, or its library cannot be loaded.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        msg = f"ONNX Runtime cannot be imported: {error}. Install it with 'pip install onnxruntime'."
        raise RuntimeUnavailable(msg) from error
    # Its allocator has a log of its own, which does not listen to the options of a session.
    runtime.set_default_logger_severity(4)
    return runtime


def capabilities() -> Capabilities:
    """Say what ONNX Runtime can do on this machine; never raises."""
    try:
        runtime = load()
    except RuntimeUnavailable as error:
        absent = Claim(holds=False, reason=str(error))
        no_sparsity = Claim(
            holds=False,
            reason="ONNX Runtime has no sparse kernels for 2:4 weights to report on",
        )
        return Capabilities(
            "onnxruntime", _version(), absent, absent, absent, absent, no_sparsity
        )
    providers = tuple(runtime.get_available_providers())
    has_cpu = CPU in providers
    return Capabilities(
        runtime="onnxruntime",
        version=str(runtime.__version__),
        importable=Claim(holds=True, reason=f"onnxruntime {runtime.__version__} is imported"),
        can_parse=Claim(holds=True, reason="it reads ONNX itself"),
        can_build=Claim(holds=True, reason="it optimises the graph when a session is opened"),
        can_run=Claim(
            holds=has_cpu,
            # The list says what the package was compiled with: only the CPU is certain to be there.
            reason="its CPU provider runs everywhere" if has_cpu else f"no {CPU} in this build",
        ),
        reports_sparsity=Claim(
            holds=False,
            reason="ONNX Runtime has no sparse kernels for 2:4 weights to report on",
        ),
        providers=providers,
    )


class Session:
    """A model opened in ONNX Runtime, as a context manager.

    Args:
        model: path of the model, or its bytes (a model with external data must be a path).
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        optimization: "all" is what a deployed model gets; "none" runs the graph as it is written, which is what
            two models are compared by.
        providers: the devices asked for, in order of preference. All of them must be there: the runtime's own
            habit of going on with the CPU is an error here.

    Attributes:
        inputs: what the model reads.
        outputs: what the model returns.
        providers: the devices that the session runs on.

    Raises:
        RuntimeUnavailable: the runtime or one of the providers is not there.
        ModelError: the runtime refuses the model.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    providers: tuple[str, ...]

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        threads: int | None = None,
        optimization: Optimization = "all",
        providers: Sequence[str] = (CPU,),
    ) -> None:
        runtime = load()
        absent = [name for name in providers if name not in runtime.get_available_providers()]
        if absent:
            raise _no_provider(absent, runtime.get_available_providers())
        self._name = "the model" if isinstance(model, bytes) else f"'{os.fspath(model)}'"
        self._failures = _failures(runtime)
        options = _options(runtime, threads, optimization)
        source = model if isinstance(model, bytes) else _mapped(Path(model), options)
        try:
            session = runtime.InferenceSession(source, options, providers=list(providers))
        except self._failures as error:
            msg = f"ONNX Runtime {runtime.__version__} refuses {self._name}: {shorten(error)}"
            raise ModelError(msg) from error
        self.providers = tuple(session.get_providers())
        fallen = [name for name in providers if name not in self.providers]
        if fallen:
            raise _no_provider(fallen, self.providers)
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._session: Any = session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feeds: an array for each input, by name.

        Returns:
            an array for each output, by name, in the model's order. An optional output that holds nothing, and
            outputs that are sequences or maps, are left out.

        Raises:
            ModelError: the model does not run on these inputs.
        """
        if self._session is None:
            msg = "Session developer: run() after close()"
            raise RuntimeError(msg)
        options = load().RunOptions()
        # A loop may go on for ever; the runtime looks at this flag between the nodes.
        watch = threading.Timer(RUN_LIMIT_S, setattr, (options, "terminate", True))
        watch.daemon = True
        watch.start()
        try:
            values = self._session.run(None, dict(feeds), options)
        except self._failures as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            if options.terminate:
                msg = (
                    f"{self._name} did not end within {RUN_LIMIT_S:.0f} s on {shapes}. Does it loop for ever? "
                    "Give smaller sizes with --shape, or repair it."
                )
                raise ModelError(msg) from error
            msg = f"{self._name} does not run on {shapes}: {shorten(error)}"
            raise ModelError(msg) from error
        finally:
            watch.cancel()
        pairs = zip(self.outputs, values, strict=True)
        return {spec.name: value for spec, value in pairs if isinstance(value, np.ndarray)}

    def close(self) -> None:
        """Give the memory back."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def shorten(error: BaseException) -> str:
    """The telling part of ONNX Runtime's message, on one line of at most 300 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    # What it says stands after its number, the name of the error and a place in its source.
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", r"\1: ", text)
    text = re.sub(r"/\S+\.(?:cc|h|cpp):\d+ ", "", text)
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 3] + "..."


def _mapped(path: Path, options: Any) -> str | bytes:  # noqa: ANN401 - a type of the runtime
    """What to open a model from, so that its weights are mapped into memory and not copied.

    The runtime maps external data, and copies twice what lies in the model. So it is told that the large weights of a
    single file are external data of that very file.
    """
    place = path.resolve()
    found = one_file.outline(place, place.name) if place.is_file() else None
    if found is None:
        return os.fspath(path)
    options.add_session_config_entry(FOLDER_OF_DATA, str(place.parent))
    return found


def _options(runtime: ModuleType, threads: int | None, optimization: Optimization) -> Any:  # noqa: ANN401 - a type of the runtime
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimization == "all" else levels.ORT_DISABLE_ALL
    )
    if optimization == "none":
        # Kernels would keep a second copy of their weights, in an order that is faster where they run often.
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Idle worker threads that spin take the cores from whatever else is being run or measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Errors arrive as exceptions; the runtime's own lines on stderr would only repeat them.
    options.log_severity_level = 4
    return options


def _failures(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """The runtime's exceptions, which have no common base, and what its Python layer raises on bad feeds."""
    state = runtime.capi.onnxruntime_pybind11_state
    own = [
        kind
        for kind in vars(state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    return (*own, RuntimeError, ValueError)


def _spec(value: Any) -> TensorSpec:  # noqa: ANN401 - a NodeArg, a type of the runtime
    inner = re.search(r"tensor\((\w+)\)", value.type)
    dtype = DTYPES.get(inner.group(1), inner.group(1)) if inner else value.type
    # An unnamed dynamic size arrives as None, an unknown rank as an empty list.
    shape = tuple(size if isinstance(size, int | str) else None for size in value.shape or ())
    return TensorSpec(value.name, dtype, shape)


def _no_provider(absent: Sequence[str], present: Sequence[str]) -> RuntimeUnavailable:
    return RuntimeUnavailable(
        f"ONNX Runtime does not run on {', '.join(absent)} here (it has {', '.join(present)}). "
        "Install the build of onnxruntime for that device, or ask for one it has."
    )


def _version() -> str | None:
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return None
