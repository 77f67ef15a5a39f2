"""A module shaped like TensorRT's Python API, which computes with ONNX Runtime.

It has the names that `tensorrt_names.json` lists, and no others: code that uses another one fails here. It refuses what the
real bindings refuse (loggers whose own constructor was not called, a second parse into a network), hands out None where they
do, and logs in their words. It proves that what is called fits together; it is not TensorRT, and proves nothing of it.
"""

from __future__ import annotations

import enum
import json
import pickle
import types

import numpy as np
import onnx
import onnxruntime

FOUND = "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: hidden, head"
CHOSE = "(Sparsity) Chose 1 layer(s) using sparse tactics: hidden"
TACTIC = "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage3_sptensor"


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class BuilderFlag(enum.Enum):
    SPARSE_WEIGHTS = 1


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerInformationFormat(enum.Enum):
    ONELINE, JSON = range(2)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT8, UINT8, INT32, INT64, BOOL, FP8 = range(9)


TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.FLOAT8E4M3FN: DataType.FP8,
}


class ILogger:
    def __init__(self):
        self._is_ready = True


class IProfiler:
    def __init__(self):
        self._is_ready = True


def ready(thing, base):
    if not isinstance(thing, base) or not getattr(thing, "_is_ready", False):
        raise TypeError("__init__() must be called when overriding __init__")
    return thing


class ITensor:
    def __init__(self, value):
        self.name = value.name
        self.shape = shape_of(value)


def shape_of(value):
    return tuple(
        part.dim_value if part.HasField("dim_value") else -1
        for part in value.type.tensor_type.shape.dim
    )


class INetworkDefinition:
    def __init__(self, flags):
        self._flags, self._model = flags, None

    @property
    def num_inputs(self):
        return len(self._model.graph.input)

    def get_input(self, index):
        return ITensor(self._model.graph.input[index])


class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, name, least, usual, most):
        assert tuple(least) == tuple(usual) == tuple(most)
        self._shapes[name] = tuple(usual)


class ITimingCache:
    def __init__(self, data):
        self._data = data

    def serialize(self):
        return memoryview(self._data)


class ParserError:
    def __init__(self, node):
        self._node = node

    def desc(self):
        return f"Plugin not found: {self._node.op_type}"

    def node_name(self):
        return self._node.name


class State:
    """What a test sets, and looks at afterwards."""

    def __init__(self, driver):
        self.driver = driver
        self.flags = []
        self.profiles = []
        self.caches = []
        self.builds = 0
        self.refuse_build = self.refuse_engine = self.refuse_run = ""
        self.is_detailed = True
        self.host_tensors = ()


def make(version, driver):
    """The module, and its state."""
    state = State(driver)

    class IBuilderConfig:
        def __init__(self):
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self._flags, self._shapes, self._cache = set(), {}, None

        def set_flag(self, flag):
            self._flags.add(flag)

        def add_optimization_profile(self, profile):
            self._shapes = profile._shapes
            state.profiles.append(profile._shapes)

        def create_timing_cache(self, data):
            state.caches.append(bytes(data))
            return None if bytes(data) == b"cut" else ITimingCache(bytes(data))

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Builder:
        def __init__(self, logger):
            self._logger = ready(logger, ILogger)
            if not driver.devices:
                logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags):
            state.flags.append(flags)
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            state.builds += 1
            if state.refuse_build:
                self._logger.log(Severity.ERROR, state.refuse_build)
                return None
            assert BuilderFlag.SPARSE_WEIGHTS in config._flags
            if config._cache is not None:
                config._cache._data += b"timed "
            self._logger.log(Severity.INFO, FOUND)
            self._logger.log(Severity.INFO, CHOSE)
            is_detailed = config.profiling_verbosity is ProfilingVerbosity.DETAILED
            return pickle.dumps(
                (network._model.SerializeToString(), config._shapes, is_detailed)
            )

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self._errors = network, []
            ready(logger, ILogger)

        @property
        def num_errors(self):
            return len(self._errors)

        def get_error(self, index):
            return self._errors[index]

        def parse(self, data):
            assert self._network._model is None, "Parse was called with a non-empty network"
            model = onnx.load_from_string(data)
            self._errors = [ParserError(each) for each in model.graph.node if each.domain]
            self._network._model = model
            return not self._errors

        def parse_from_file(self, path):
            assert isinstance(path, str)
            return self.parse(onnx.load(path).SerializeToString())

    class Runtime:
        def __init__(self, logger):
            self._logger = ready(logger, ILogger)

        def deserialize_cuda_engine(self, data):
            if state.refuse_engine:
                self._logger.log(Severity.ERROR, state.refuse_engine)
                return None
            return ICudaEngine(*pickle.loads(data))  # noqa: S301 - of this file

    class ICudaEngine:
        def __init__(self, data, shapes, is_detailed):
            self._model, self._shapes = onnx.load_from_string(data), shapes
            self._detailed = is_detailed and state.is_detailed
            graph = self._model.graph
            self._values = {value.name: value for value in (*graph.input, *graph.output)}
            self._inputs = [value.name for value in graph.input]

        @property
        def num_io_tensors(self):
            return len(self._values)

        def get_tensor_name(self, index):
            return list(self._values)[index]

        def get_tensor_mode(self, name):
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return TYPES[self._values[name].type.tensor_type.elem_type]

        def get_tensor_shape(self, name):
            return shape_of(self._values[name])

        def get_tensor_location(self, name):
            return TensorLocation.HOST if name in state.host_tensors else TensorLocation.DEVICE

        def create_execution_context(self):
            return IExecutionContext(self)

        def create_engine_inspector(self):
            return EngineInspector(self)

    class EngineInspector:
        def __init__(self, engine):
            self._engine, self.execution_context = engine, None

        def get_engine_information(self, kind):
            assert kind is LayerInformationFormat.JSON
            assert self.execution_context is not None
            names = [node.name for node in self._engine._model.graph.node]
            layers = names
            if self._engine._detailed:
                layers = [
                    {
                        "Name": name,
                        "LayerType": "gemm",
                        "HasSparseWeights": 1,
                        "TacticName": TACTIC if number == 0 else "sm80_xmma_gemm_f16",
                        "TacticValue": "0x1",
                    }
                    for number, name in enumerate(names)
                ]
            tensors = list(self._engine._values)
            if version.startswith("11"):
                return json.dumps(
                    {"Layers": layers, "I/O Tensors": [{"Name": name} for name in tensors]}
                )
            return json.dumps({"Layers": layers, "Bindings": tensors})

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._shapes, self._addresses = engine, {}, {}
            self.profiler = None
            self._session = onnxruntime.InferenceSession(
                engine._model.SerializeToString(), providers=["CPUExecutionProvider"]
            )

        def set_input_shape(self, name, shape):
            self._shapes[name] = tuple(shape)
            return self._engine._shapes.get(name) == tuple(shape)

        def get_tensor_shape(self, name):
            declared = shape_of(self._engine._values[name])
            if name in self._shapes:
                return self._shapes[name]
            batch = next((shape[0] for shape in self._shapes.values()), -1)
            return tuple(batch if size < 0 else size for size in declared)

        def set_tensor_address(self, name, address):
            self._addresses[name] = address
            return address != 0

        def execute_async_v3(self, stream):
            assert stream, "the default stream makes the engine wait"
            if state.refuse_run:
                return False
            driver.work.append(self._compute)
            return True

        def execute_v2(self, bindings):
            assert all(address in driver.blocks for address in bindings)
            self._compute()
            ready(self.profiler, IProfiler)
            nodes = self._engine._model.graph.node
            # The last two are one layer, as a builder that fuses them would call it.
            self.profiler.report_layer_time(nodes[0].name, 0.5)
            self.profiler.report_layer_time(" + ".join(node.name for node in nodes[1:]), 0.25)
            self.profiler.report_layer_time("Reformatting CopyNode", 0.125)
            return True

        def _compute(self):
            feeds = {name: self._array(name) for name in self._engine._inputs}
            outputs = self._session.run(None, feeds)
            for value, array in zip(self._engine._model.graph.output, outputs, strict=True):
                self._array(value.name)[...] = array

        def _array(self, name):
            kind = onnx.helper.tensor_dtype_to_np_dtype(
                self._engine._values[name].type.tensor_type.elem_type
            )
            block = driver.blocks[self._addresses[name]]
            shape = self.get_tensor_shape(name)
            count = int(np.prod(shape, dtype=np.int64))
            return np.frombuffer(block, kind, count).reshape(shape)

    module = types.ModuleType("tensorrt")
    module.__version__ = version
    for kind in (
        *(ILogger, IProfiler, INetworkDefinition, IOptimizationProfile, ITimingCache),
        *(BuilderFlag, NetworkDefinitionCreationFlag, ProfilingVerbosity, DataType, ITensor),
        *(LayerInformationFormat, TensorIOMode, TensorLocation, ParserError),
        *(Builder, IBuilderConfig, OnnxParser, Runtime, ICudaEngine, EngineInspector),
        IExecutionContext,
    ):
        setattr(module, kind.__name__, kind)
    return module, state
