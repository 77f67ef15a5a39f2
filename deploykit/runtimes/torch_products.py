"""The Conv and Linear layers of a model as products of a weight matrix with data, which PyTorch runs dense and in 2:4 form.

A Linear layer is such a product. A convolution is one of its filters with the patches of its input (im2col); what is timed is
the product alone, not the gathering of patches, which a fused kernel does on the way. So a figure for a convolution says what
sparse tensor cores save on its arithmetic, and not what a network gains.

In the columns of a convolution's matrix the input channels stand together, so that the fours are those that TensorRT reads:
of consecutive input channels at one position of the kernel.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import RuntimeUnavailable

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.analysis.reductions import Held, Product

__all__ = [
    "BACKENDS",
    "Layer",
    "find_device",
    "limits",
    "load",
    "read_layers",
    "sparse_weight",
    "try_sparse",
    "use",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BACKENDS = ("cusparselt", "cutlass")
"""What multiplies 2:4 weights in PyTorch, in the order in which they are tried: the second one is for compute capability 8 only.
Source: torch/sparse/semi_structured.py of PyTorch 2.13; pytorch/pytorch#132928."""

TRIAL = 256
"""Rows and columns of the weight that is tried: a multiple of what either of them asks for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer of a model as a product.

    Attributes:
        name: of the node.
        op_type: its operator.
        weight: its matrix, shape `(rows, depth)`: an output a row; None where there is no such matrix.
        columns: how many vectors it is multiplied with: positions, tokens.
        is_linear: whether data come a vector a row, as in a Linear layer, or a vector a column, as patches do.
        computed_as: what is timed, in words.
        refusal: why there is no matrix; empty if there is one.
    """

    name: str
    op_type: str
    weight: Array | None
    columns: int
    is_linear: bool
    computed_as: str
    refusal: str = ""

    @property
    def product(self) -> tuple[int, int, int]:
        """Rows, depth and columns."""
        rows, depth = (0, 0) if self.weight is None else self.weight.shape
        return int(rows), int(depth), self.columns


def load() -> Any:  # noqa: ANN401 - a module
    """Import PyTorch.

    Raises:
        RuntimeUnavailable: it is not there, or its libraries are not.
    """
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError) as error:
        said = " ".join(str(error).split())
        msg = f"PyTorch cannot be imported: {said}. Install it with pip install '.[torch]'."
        raise RuntimeUnavailable(msg) from error


def find_device(torch: Any) -> str:  # noqa: ANN401 - a module
    """The GPU that PyTorch runs on, in words.

    Raises:
        RuntimeUnavailable: it has none.
    """
    if not torch.cuda.is_available():
        why = (
            "this build of PyTorch is for CPUs. Install one for CUDA, as pytorch.org says"
            if torch.version.cuda is None
            else "PyTorch finds no GPU. Use a machine with one, and check nvidia-smi"
        )
        raise RuntimeUnavailable(f"torch {torch.__version__} does not run on a GPU: {why}.")
    major, minor = torch.cuda.get_device_capability(0)
    return f"{torch.cuda.get_device_name(0)}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"


def try_sparse(torch: Any) -> str:  # noqa: ANN401 - a module
    """Multiply a 2:4 weight; the backend that did it right.

    Raises:
        RuntimeUnavailable: none did.
    """
    said = []
    for backend in BACKENDS:
        try:
            error = _trial_error(torch, backend)
        except (RuntimeError, NotImplementedError, AttributeError) as refused:
            said.append(f"{backend}: {' '.join(str(refused).split())[:200]}")
            continue
        if error < 1e-2:
            return backend
        said.append(f"{backend}: its result is off by {error:.2g}")
    msg = f"no backend of torch {torch.__version__} multiplies 2:4 weights here ({'; '.join(said)}). It takes compute capability 8.0 or later."
    raise RuntimeUnavailable(msg)


def use(torch: Any, backend: str) -> None:  # noqa: ANN401 - a module
    """Choose the backend of `to_sparse_semi_structured`, which is a flag of a class."""
    torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = backend == "cutlass"  # noqa: SLF001 - the only way


def limits(torch: Any, backend: str, dtype: Any) -> tuple[int, int]:  # noqa: ANN401 - of a module
    """What rows and columns of a 2:4 weight have to be multiples of."""
    kind = {
        "cusparselt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
        "cutlass": torch.sparse.SparseSemiStructuredTensorCUTLASS,
    }[backend]
    found = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]  # noqa: SLF001 - said nowhere else
    return int(found.sparse_min_rows), int(found.sparse_min_cols)


def sparse_weight(torch: Any, weight: Any, *, algorithm: int = 0) -> Any:  # noqa: ANN401 - tensors
    """A 2:4 weight in its sparse form."""
    with warnings.catch_warnings():
        # That the API is a prototype is known: what is made with it is compared with the dense result.
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse.to_sparse_semi_structured(weight, alg_id=algorithm)


def read_layers(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """The layers of a model that multiply by a weight, in order.

    Args:
        path: the model.
        shapes: sizes of its inputs, by name.

    Raises:
        ModelError: the model cannot be read.
    """
    from deploykit import model_io
    from passes.analysis.macs import sized
    from passes.analysis.reductions import find_products
    from passes.analysis.walk import label

    fixed, sizes = sized(model_io.load(path).model, shapes)
    # Sizes that are left open have stand-ins, which are not to be timed.
    is_open = any(
        value.shape is None or not value.shape.is_static() for value in fixed.graph.inputs
    )
    shape_of = (lambda _: None) if sizes is None or is_open else sizes.shape.get
    layers = []
    for product in find_products(fixed):
        name, op_type = label(product.node), product.node.op_type
        if product.held is None:
            why = "it has no weight" if product.refusal is None else product.refusal.reason
            layers.append(
                Layer(name, op_type, None, 0, is_linear=True, computed_as="", refusal=why)
            )
        else:
            layers.append(_layer(product, product.held, name, shape_of))
    return tuple(layers)


def _layer(
    product: Product,
    held: Held,
    name: str,
    shape_of: Callable[[ir.Value], tuple[int, ...] | None],
) -> Layer:
    """A layer that has a weight."""
    op_type = product.node.op_type
    out = shape_of(product.node.outputs[0])
    why = _refusal(product, held, has_sizes=out is not None)
    if why or out is None:
        return Layer(name, op_type, None, 0, is_linear=True, computed_as="", refusal=why)
    numbers = held.tensor.numpy().astype(np.float32)
    if held.scale is not None:
        numbers = numbers * held.scale.astype(np.float32)
    if op_type == "Conv":
        # Input channels last: of a row, four in a row are input channels at one position of the kernel.
        matrix = np.moveaxis(numbers, 1, -1).reshape(numbers.shape[0], -1)
        kernel = "x".join(map(str, numbers.shape[2:]))
        what = (
            "the convolution itself: a kernel of one element has no patches"
            if math.prod(numbers.shape[2:]) == 1
            else f"the product of its filters with {kernel} patches that lie there already (im2col): gathering them is not timed"
        )
    else:
        matrix = numbers if held.axis == 1 else numbers.T
        what = "the layer itself, without its bias"
    columns = math.prod(out) // matrix.shape[0]
    return Layer(
        name,
        op_type,
        np.ascontiguousarray(matrix),
        columns,
        is_linear=op_type != "Conv",
        computed_as=what,
    )


def _refusal(product: Product, held: Held, *, has_sizes: bool) -> str:
    """Why a layer is no single product of a matrix; empty if it is one."""
    op_type, kind = product.node.op_type, held.tensor.dtype
    rank = len(held.shape)
    reasons = {
        "its sizes are not known: give --shape": not has_sizes,
        "a transposed convolution is no single product of its weight": op_type
        == "ConvTranspose",
        f"each of its {product.groups} groups is a product of its own, which is not timed": product.groups
        > 1,
        f"its weight is of the type {kind}": not kind.is_floating_point()
        and held.scale is None,
        "its weight is transposed on the way, which is not followed here": op_type == "Conv"
        and held.axis != 1,
        f"its weight has {rank} axes: a product a batch, which is not timed": op_type
        in {"Gemm", "MatMul"}
        and rank != 2,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _trial_error(torch: Any, backend: str) -> float:  # noqa: ANN401 - a module
    """How far the product with a 2:4 weight is off, relative to its largest element."""
    use(torch, backend)
    dice = torch.Generator(device="cuda").manual_seed(0)
    weight, data = (
        torch.randn(TRIAL, TRIAL, device="cuda", dtype=torch.float16, generator=dice)
        for _ in range(2)
    )
    # Two of each four, and not always the same two.
    weight[0::2, 0::4] = weight[0::2, 1::4] = 0
    weight[1::2, 1::4] = weight[1::2, 3::4] = 0
    dense = weight.float() @ data.float()
    sparse = sparse_weight(torch, weight) @ data
    return float((sparse.float() - dense).abs().max() / dense.abs().max())
