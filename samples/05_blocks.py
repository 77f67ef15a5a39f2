"""Run a block-sparse network as small dense operations: find its blocks, put channels in their order, lower each layer.

The network is built here: its 3x3 convolutions read a quarter of their input channels, block by block, in a hidden order.
`deploykit optimize` does all of this by itself, and measures which form each layer is to have.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

import passes
from passes.planners.block_finding import find_all_blocks
from passes.weights import parameter_count

BLOCKS, WIDTH = 4, 64
GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
network (float[1,3,32,32] image, float[64,3,3,3] stem, float[64,64,3,3] first, float[64,64,3,3] second,
         float[64,64,1,1] mixed, float[10,64] head, float[10] head_b)
    => (float[1,10] scores)
{
    s = Conv<pads = [1, 1, 1, 1]>(image, stem)
    a = Relu(s)
    f = Conv<pads = [1, 1, 1, 1]>(a, first)
    b = Relu(f)
    g = Conv<pads = [1, 1, 1, 1]>(b, second)
    c = Add(a, g)
    m = Conv(c, mixed)
    d = Relu(m)
    pooled = GlobalAveragePool(d)
    flat = Flatten(pooled)
    scores = Gemm<transB = 1>(flat, head, head_b)
}
"""


def make_network() -> ir.Model:
    """The network, with zeros outside of the blocks of `first` and `second`."""
    dice = np.random.default_rng(0)
    model = ir.from_onnx_text(GRAPH)
    blocks = np.kron(np.eye(BLOCKS), np.ones((WIDTH // BLOCKS, WIDTH // BLOCKS)))
    for value in list(model.graph.inputs)[1:]:
        shape = value.shape.numpy()
        array = dice.standard_normal(shape) * np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        if value.name in {"first", "second"}:
            # Pruning does not know of an order: rows and columns of the blocks are all over the matrix.
            mask = blocks[dice.permutation(WIDTH)][:, dice.permutation(WIDTH)]
            array *= mask[:, :, None, None]
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    return model


def run(model: ir.Model, image: np.ndarray) -> np.ndarray:
    """What the model computes in ONNX Runtime."""
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (scores,) = session.run(None, {"image": image})
    return scores


model = make_network()
image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
expected, before = run(model, image), parameter_count(model)

for layer, blocks in find_all_blocks(model).found:
    print(f"{layer.name}: {blocks}, {blocks.area:.0%} of it")

for rewrite in (
    passes.Tidy(),
    # Whoever writes channels writes them in the order of the blocks, and whoever reads them follows: no node is added.
    # `first` has all that it wants then; what `second` reads stands in the order of `first`, so that it needs a Gather.
    passes.PermuteChannels(purpose="group-blocks"),
    # The form of each layer is chosen by the rules of a target; `choose=` takes a function that measures instead.
    passes.GroupBlocks(target=passes.TARGETS["onnxruntime-cpu"]),
    passes.InferShapes(),
):
    report = rewrite(model)
    for change in report.changes:
        print(
            f"{report.name}: {change.subject}: {change.what}, {change.before} -> {change.after}"
        )
    for skip in report.skips:
        print(f"{report.name}: left {skip.subject}: {skip.reason}. {skip.advice}")

nodes = [
    f"{node.op_type}({node.attributes.get_int('group', 1)})"
    if node.op_type == "Conv"
    else node.op_type
    for node in model.graph
]
print("\nthe graph, with the groups of each Conv:", ", ".join(nodes))
error = np.abs(run(model, image) - expected).max() / np.abs(expected).max()
after = parameter_count(model)
print(
    f"{before:,} parameters before, {after:,} after; largest error {error:.1e} of the largest output"
)
if error > 1e-4 or after >= before:
    raise SystemExit("the blocks were not lowered exactly")
