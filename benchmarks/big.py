"""Models of gigabytes, half of whose hidden channels are zero.

    python -m benchmarks.big OUT.onnx BLOCKS [--external] [--width 2048]

A stack of transformer MLP blocks: LayerNormalization, MatMul to four times the width, bias, Relu,
MatMul back, residual sum. In every block half of the hidden channels, drawn at random, have no
weights and no bias. At the usual width 12 blocks are 1.6 GB and 18 are 2.4 GB, beyond what one
protobuf can hold.

Weights go to a file as they are drawn, so that making the model needs no memory to speak of.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["WIDTH", "write"]

WIDTH, SPREAD, TOKENS = 2048, 4, 16


def write(path: Path, blocks: int, *, width: int = WIDTH, external: bool, seed: int = 0) -> int:
    """Write a model.

    Args:
        path: of the model; its weights go beside it, as `<name>.data`.
        blocks: how many.
        width: channels of the residual stream; hidden layers have four times as many.
        external: whether the weights stay beside the model; otherwise it becomes one file.
        seed: of the weights, and of which channels are zero.

    Returns:
        bytes of all its weights.
    """
    data = path.with_name(path.name + ".data")
    graph = ir.Graph([_value("x", width)], [], nodes=[], opset_imports={"": 17}, name="mlp")
    total = 0
    stream = graph.inputs[0]
    with data.open("wb") as file:
        dice = np.random.default_rng(seed)
        for block in range(blocks):
            weights = {}
            for name, array in _draw(dice, width):
                held = ir.ExternalTensor(
                    data.name,
                    file.tell(),
                    array.nbytes,
                    ir.DataType.FLOAT,
                    shape=ir.Shape(array.shape),
                    name=f"{name}_{block}",
                    base_dir=path.parent,
                )
                file.write(array.data)
                total += array.nbytes
                weights[name] = ir.Value(name=held.name, shape=held.shape, const_value=held)
                weights[name].type = ir.TensorType(held.dtype)
                graph.register_initializer(weights[name])
            stream = _append(graph, block, stream, weights)
    stream.shape, stream.type = ir.Shape((1, TOKENS, width)), ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(stream)
    model = ir.Model(graph, ir_version=8, producer_name="deploykit-benchmarks")
    if external:
        ir.save(model, path)
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)
        data.unlink()
    return total


def _value(name: str, width: int) -> ir.Value:
    shape = ir.Shape((1, TOKENS, width))
    return ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))


def _draw(dice: np.random.Generator, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of one block, in the order in which they lie in the file."""
    hidden = SPREAD * width
    small = np.float32(0.02)
    up = dice.standard_normal((width, hidden), dtype=np.float32) * small
    bias = dice.standard_normal(hidden, dtype=np.float32) * np.float32(0.1)
    down = dice.standard_normal((hidden, width), dtype=np.float32) * small
    dead = dice.permutation(hidden)[: hidden // 2]
    up[:, dead], bias[dead] = 0, 0
    yield "up", up
    yield "bias", bias
    yield "down", down
    yield "scale", np.ones(width, np.float32)
    yield "shift", np.zeros(width, np.float32)


def _append(
    graph: ir.Graph, block: int, stream: ir.Value, weights: dict[str, ir.Value]
) -> ir.Value:
    """Add one block behind `stream`; returns the new end."""

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op_type, inputs, name=f"{op_type.lower()}_{block}_{len(graph)}")
        node.outputs[0].name = f"{node.name}_out"
        graph.append(node)
        return node.outputs[0]

    normal = add("LayerNormalization", stream, weights["scale"], weights["shift"])
    hidden = add("Add", add("MatMul", normal, weights["up"]), weights["bias"])
    return add("Add", stream, add("MatMul", add("Relu", hidden), weights["down"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("blocks", type=int)
    parser.add_argument(
        "--external", action="store_true", help="weights in a file of their own"
    )
    parser.add_argument("--width", type=int, default=WIDTH)
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    total = write(options.out, options.blocks, width=options.width, external=options.external)
    print(f"{options.out}: {total / 1e9:.2f} GB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
