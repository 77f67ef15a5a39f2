"""The networks, and the forms of each that are timed against the dense one, all in half precision.

Weights are random: time does not depend on them, and accuracy is not asked. Each form is compared on the GPU with what the
same form computes in ONNX Runtime on the CPU in fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import passes
from benchmarks import nets
from benchmarks.gpu import encoders
from passes import targets
from passes.analysis.sparsity import weight_sparsity
from passes.weights import constant, set_tensor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["FORMS", "NETWORKS", "halve", "make"]

NETWORKS = ("resnet18", "resnet50", "vgg16", "mobilenetv2", "vit-b", "bert-base")
FORMS = ("dense", "channels removed", "blocks", "2:4")
BLOCKS = 4
SPARSITY = 0.5
"""Half of the weights go in "channels removed" and "2:4"; three quarters of those in blocks do, which are a quarter each."""
TARGET = targets.TARGETS["tensorrt"]


def make(network: str, form: str, batch: int) -> ir.Model:
    """A network in a form, in fp32; its input is the same in all forms.

    Args:
        network: one of NETWORKS.
        form: one of FORMS.
        batch: fixed batch size.
    """
    is_encoder = network in encoders.TOKENS
    if form == "channels removed":
        if is_encoder:
            model = encoders.build(network, batch=batch)
            encoders.prune(model)
        else:
            keep = nets.uniform(SPARSITY, "n16")
            model = nets.zeroed(network, keep=keep, batch=batch)
        steps = (passes.Tidy(), passes.RemoveChannels(), passes.AlignChannels(multiple=8))
    else:
        model = (
            encoders.build(network, batch=batch)
            if is_encoder
            else nets.build(network, batch=batch)
        )
        steps = ()
    if form == "blocks":
        put_in_blocks(model)
        steps = (passes.GroupBlocks(target=TARGET),)
    elif form == "2:4":
        steps = (passes.Sparse24(force="magnitude"),)
    for step in (*steps, passes.InferShapes()):
        step(model)
    return model


def halve(model: ir.Model) -> ir.Model:
    """The model in fp16, with inputs and outputs in fp32, so that all take the same inputs."""
    halved = model.clone()
    passes.SetPrecision(dtype="fp16")(halved)
    passes.InferShapes()(halved)
    return halved


def put_in_blocks(model: ir.Model) -> None:
    """Zero what lies outside of four blocks along the diagonal of every weight that is large enough."""
    for found in weight_sparsity(model):
        value = model.graph.initializers[found.name]
        shape = found.shape
        is_conv = found.op_type == "Conv"
        # Blocks of eight channels or more: smaller ones leave the tensor cores idle.
        if found.inputs < 8 * BLOCKS or found.outputs < 8 * BLOCKS:
            continue
        if found.inputs % BLOCKS or found.outputs % BLOCKS or found.op_type == "ConvTranspose":
            continue
        rows, columns = shape[0], shape[1]
        mask = np.kron(np.eye(BLOCKS), np.ones((rows // BLOCKS, columns // BLOCKS)))
        if mask.shape != (rows, columns):
            continue
        array = constant(value)
        full = mask.reshape(rows, columns, *[1] * (array.ndim - 2)) if is_conv else mask
        set_tensor(value, (array * full).astype(array.dtype))
