"""Runs an engine of TensorRT or TensorRT-RTX on the GPU of this machine.

What is timed is the engine alone, by the device's clock: inputs lie in the device's memory before, outputs stay there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.runtimes import Array, TensorSpec
from deploykit.runtimes.engines import Built, Line, make_logger, reasons

if TYPE_CHECKING:
    from deploykit.runtimes.cuda import Buffer, Gpu
    from deploykit.runtimes.tensorrt_family import Api

__all__ = ["EngineSession"]

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""Element types of inputs and outputs that can be handed over; others are for what is inside of a network."""


class EngineSession:
    """An engine, ready to run.

    Args:
        api: what it was built with.
        built: the engine.
        gpu: where it runs.
        shapes: sizes of its inputs.

    Attributes:
        inputs: what it reads.
        outputs: what it returns.

    Raises:
        RuntimeUnavailable: the runtime does not work on this machine.
        ModelError: the engine does not run on this GPU, or not with these sizes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(
        self, api: Api, built: Built, gpu: Gpu, shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._api = api
        self._gpu = gpu
        self._log: list[Line] = []
        self._buffers: dict[str, Buffer] = {}
        self._fed: dict[str, Array] = {}
        logger = make_logger(api, self._log)
        try:
            runtime = api.module.Runtime(logger)
        except TypeError as error:
            msg = f"{api.about} does not run engines on this machine: {reasons(self._log)}"
            raise RuntimeUnavailable(msg) from error
        engine = runtime.deserialize_cuda_engine(built.engine)
        if engine is None:
            msg = f"{api.about} does not take the engine on {gpu.device}: {reasons(self._log)}"
            raise ModelError(msg)
        context = engine.create_execution_context()
        if context is None:
            msg = f"{api.about} cannot make the engine ready on {gpu.device}: {reasons(self._log)}"
            raise ModelError(msg)
        # The engine needs the runtime, and that its logger, for as long as it is used.
        self._kept = (logger, runtime)
        self._engine: Any = engine
        self._context: Any = context
        self.inputs, self.outputs = self._bind(shapes)

    def run(self, names: None, feeds: Mapping[str, Array]) -> list[Array]:
        """Run it once, from host memory to host memory; the outputs in the engine's order."""
        del names
        self._feed(feeds)
        self._enqueue()
        self._gpu.synchronize()
        found = []
        for spec in self.outputs:
            array = np.empty(_sizes(spec), _numpy(spec.dtype))
            self._gpu.download(self._buffers[spec.name], array)
            found.append(array)
        return found

    def device_s(self, feeds: Mapping[str, Array]) -> float:
        """Run it once; seconds by the device's clock, without copies to the device and back."""
        self._feed(feeds)
        self._gpu.begin_clock()
        self._enqueue()
        return self._gpu.end_clock()

    def layer_times(self, feeds: Mapping[str, Array], runs: int) -> list[dict[str, float]]:
        """Seconds of each layer of the engine, by its name: one dict a run."""
        self._feed(feeds)
        base: Any = self._api.module.IProfiler
        rows: list[dict[str, float]] = []

        class Keeper(base):  # type: ignore[misc]  # a base that is known at run time only
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                # Names may repeat.
                rows[-1][layer_name] = rows[-1].get(layer_name, 0.0) + ms * 1e-3

        self._context.profiler = Keeper()
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        for _ in range(runs):
            rows.append({})
            # The profiler is told of a run that is waited for.
            if not self._context.execute_v2([self._buffers[name].address for name in names]):
                raise self._failed()
        return rows

    def inspect(self) -> str:
        """What the engine says of itself, as JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(
            inspector.get_engine_information(self._api.module.LayerInformationFormat.JSON)
        )

    def get_providers(self) -> list[str]:
        """The GPU."""
        return [str(self._gpu.device)]

    def close(self) -> None:
        """Give the memory back."""
        self._context = self._engine = None
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()

    def _bind(
        self, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Reserve memory for inputs and outputs, and tell the engine where it is."""
        trt, engine, context = self._api.module, self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        mode = trt.TensorIOMode.INPUT
        are_inputs = {name: engine.get_tensor_mode(name) == mode for name in names}
        for name in (name for name in names if are_inputs[name]):
            if min(engine.get_tensor_shape(name), default=0) < 0 and not (
                name in shapes and context.set_input_shape(name, tuple(shapes[name]))
            ):
                msg = f"the engine does not take {shapes.get(name)} for '{name}': {reasons(self._log)}"
                raise ModelError(msg)
        specs: dict[bool, list[TensorSpec]] = {True: [], False: []}
        for name in names:
            dtype = str(engine.get_tensor_dtype(name).name)
            shape = tuple(int(size) for size in context.get_tensor_shape(name))
            self._check(name, dtype, shape)
            spec = TensorSpec(name, DTYPES[dtype], shape)
            specs[are_inputs[name]].append(spec)
            size = int(np.prod(shape, dtype=np.int64)) * _numpy(spec.dtype).itemsize
            self._buffers[name] = self._gpu.reserve(size)
            if not context.set_tensor_address(name, self._buffers[name].address):
                raise self._failed()
        return tuple(specs[True]), tuple(specs[False])

    def _check(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Refuse inputs and outputs that cannot be handed over in the device's memory.

        Raises:
            ModelError: the message says which, and why.
        """
        trt = self._api.module
        if self._engine.get_tensor_location(name) == trt.TensorLocation.HOST:
            msg = f"'{name}' decides on sizes inside of the network, so that the engine reads it on the host, which is not supported: make it a constant of the model."
            raise ModelError(msg)
        if dtype not in DTYPES:
            msg = f"'{name}' is of the type {dtype}, which cannot be handed over: put a Cast behind it in the model."
            raise ModelError(msg)
        if min(shape, default=0) < 0:
            msg = f"the sizes of '{name}' depend on the data, and the engine has no room set aside for it: cut the model before it."
            raise ModelError(msg)

    def _feed(self, feeds: Mapping[str, Array]) -> None:
        """Copy inputs to the device, unless they are those that it has."""
        for spec in self.inputs:
            array = feeds[spec.name]
            if self._fed.get(spec.name) is array:
                continue
            if tuple(array.shape) != spec.shape:
                msg = f"the engine was built for '{spec.name}' of {list(_sizes(spec))}, not {list(array.shape)}"
                raise ModelError(msg)
            self._gpu.fill(self._buffers[spec.name], array.astype(_numpy(spec.dtype)))
            self._fed[spec.name] = array

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._gpu.stream):
            raise self._failed()

    def _failed(self) -> ModelError:
        return ModelError(
            f"the engine of {self._api.about} does not run on {self._gpu.device}: {reasons(self._log)}"
        )


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if isinstance(size, int))


def _numpy(dtype: str) -> np.dtype[Any]:
    """The type of that name; numpy itself knows no bfloat16."""
    if dtype == "bfloat16":
        import ml_dtypes

        kind: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return kind
    return np.dtype(dtype)
