"""What torch-pruning makes of a network of `nets.py`: channels cut out of the very same network, as a PyTorch module.

    python -m benchmarks.peer NETWORK SPARSITY OUT [--batch 8] [--round-to 8]

It is used as its documentation says: `MagnitudePruner` over the groups that it finds, by group magnitude, one ratio for all
layers, the classifier ignored. The ratio is searched for at which the wanted share of the convolutions' weights is gone.
Writes an ONNX file, and prints one JSON document. Needs torch and torch-pruning, in the environment of the README.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import nets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

STEPS = 12
CLOSE = 0.002


class Twin(nn.Module):
    """A network of `nets.py` as a module: the same nodes in the same order, with the same weights."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, str, list[str], str]] = []
        for node in model.graph:
            inputs = [value.name for value in node.inputs if value is not None]
            constants = [
                torch.from_numpy(value.const_value.numpy().copy())
                for value in node.inputs
                if value is not None and value.const_value is not None
            ]
            name = str(node.name).replace(".", "_")
            if node.op_type == "Conv":
                self.layers[name] = _convolution(node, *constants)
            elif node.op_type == "Gemm":
                self.layers[name] = nn.Linear(*reversed(constants[0].shape))
                self.layers[name].weight.data, self.layers[name].bias.data = constants
            elif node.op_type == "MaxPool":
                kernel, stride, pad = (
                    node.attributes[key].as_ints()[0]
                    for key in ("kernel_shape", "strides", "pads")
                )
                self.layers[name] = nn.MaxPool2d(kernel, stride, pad)
            self.steps.append((node.op_type, name, inputs, str(node.outputs[0].name)))

    def forward(self, x: Tensor) -> Tensor:
        """Run the nodes one by one."""
        values = {"input": x}
        for op, name, inputs, output in self.steps:
            first = values[inputs[0]]
            if name in self.layers:
                found = self.layers[name](first)
            elif op == "Relu":
                found = functional.relu(first)
            elif op == "Clip":
                found = functional.relu6(first)
            elif op == "Add":
                found = first + values[inputs[1]]
            elif op == "GlobalAveragePool":
                found = functional.adaptive_avg_pool2d(first, 1)
            elif op == "Flatten":
                found = torch.flatten(first, 1)
            else:
                msg = f"'{name}' is a {op}, which this has no counterpart of"
                raise NotImplementedError(msg)
            values[output] = found
        return values["output"]


def _convolution(node: ir.Node, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    groups = node.attributes["group"].as_int()
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2],
        node.attributes["strides"].as_ints()[0],
        node.attributes["pads"].as_ints()[0],
        groups=groups,
    )
    layer.weight.data, layer.bias.data = weight, bias  # type: ignore[union-attr]
    return layer


def weights(module: nn.Module) -> int:
    """Weights of the convolutions."""
    return sum(
        layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d)
    )


def prune(dense: nn.Module, example: Tensor, ratio: float, round_to: int | None) -> nn.Module:
    """Cut that share of the channels, everywhere."""
    module = copy.deepcopy(dense)
    tp.pruner.MagnitudePruner(
        module,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=round_to,
        ignored_layers=[layer for layer in module.modules() if isinstance(layer, nn.Linear)],
    ).step()
    return module


def main(arguments: Sequence[str] | None = None) -> int:
    """Prune one network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=nets.ARCHITECTURES)
    parser.add_argument("sparsity", type=float, help="0 to 1")
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--round-to", type=int)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nets.build(options.network)
    size = int(model.graph.inputs[0].shape[2])  # type: ignore[index]
    dense = Twin(model).eval()
    example = torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    )
    total, seconds = weights(dense), 0.0
    lo, hi = 0.0, 1.0
    ratio = 1 - math.sqrt(1 - options.sparsity)
    best: tuple[float, nn.Module] | None = None
    for _ in range(STEPS):
        start = time.perf_counter()
        module = prune(dense, example, ratio, options.round_to)
        seconds = time.perf_counter() - start
        found = 1 - weights(module) / total
        if best is None or abs(found - options.sparsity) < abs(best[0] - options.sparsity):
            best = (found, module)
        if abs(found - options.sparsity) < CLOSE:
            break
        lo, hi = (ratio, hi) if found < options.sparsity else (lo, ratio)
        ratio = (lo + hi) / 2
        if hi - lo < 1e-3:
            break
    assert best is not None, "there is at least one step"
    batch = example.expand(options.batch, -1, -1, -1).contiguous()
    with torch.no_grad():
        torch.onnx.export(
            best[1],
            (batch,),
            options.out,
            input_names=["input"],
            output_names=["output"],
            dynamo=False,
            opset_version=17,
        )
    print(json.dumps({"sparsity": round(best[0], 4), "seconds": round(seconds, 2)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
