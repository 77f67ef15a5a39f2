"""The table of axis rules: how the channels of an op's inputs and outputs are tied, one row an op.

An op without a row pins the channels that reach it, with a reason: nothing here guesses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.analysis.axis_rules.contraction import Contraction
from passes.analysis.axis_rules.convolution import Convolution
from passes.analysis.axis_rules.elementwise import Elementwise, Quantize
from passes.analysis.axis_rules.movement import (
    Concat,
    DepthToSpace,
    Expand,
    Gather,
    Pad,
    Reshape,
    ShapeOf,
    Slice,
    SpaceToDepth,
    Split,
    Tile,
    Transpose,
)
from passes.analysis.axis_rules.normalization import (
    Along,
    BatchNormalization,
    GroupStatistics,
    Pooling,
    Reduce,
    Resize,
    channel_axis,
    last_axis,
    trailing_axes,
)
from passes.analysis.axis_rules.row import Pins, Row

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ROWS", "row_of"]

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
FIRST_ONLY = "Cast CastLike Clip Dropout"
BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"

ROWS: dict[str, Row] = {
    **dict.fromkeys(UNARY.split(), Elementwise(1)),
    **dict.fromkeys(FIRST_ONLY.split(), Elementwise(1)),
    **dict.fromkeys(BROADCAST.split(), Elementwise()),
    **dict.fromkeys(REDUCTIONS.split(), Reduce()),
    **dict.fromkeys(POOLS.split(), Pooling()),
    "BatchNormalization": BatchNormalization(),
    "Concat": Concat(),
    "Conv": Convolution(transposed=False),
    "ConvTranspose": Convolution(transposed=True),
    "CumSum": Pins("'{op}' runs along an axis"),
    "DepthToSpace": DepthToSpace(),
    "DequantizeLinear": Quantize(),
    "Einsum": Contraction(),
    "Expand": Expand(),
    "Flatten": Reshape(),
    "Gather": Gather(),
    "Gemm": Contraction(),
    "GroupNormalization": GroupStatistics(),
    "InstanceNormalization": BatchNormalization(),
    "LRN": Along(channel_axis, is_symmetric=False),
    "LayerNormalization": Along(trailing_axes),
    "LogSoftmax": Along(last_axis),
    "LpNormalization": Along(last_axis),
    "MatMul": Contraction(),
    "MeanVarianceNormalization": Pins("'{op}' computes statistics over axes that it names"),
    "Pad": Pad(),
    "QuantizeLinear": Quantize(),
    "RMSNormalization": Along(trailing_axes),
    "Reshape": Reshape(),
    "Resize": Resize(),
    "Shape": ShapeOf(),
    "Size": ShapeOf(),
    "Slice": Slice(),
    "Softmax": Along(last_axis),
    "SpaceToDepth": SpaceToDepth(),
    "Split": Split(),
    "Squeeze": Reshape(),
    "Tile": Tile(),
    "Transpose": Transpose(),
    "Unsqueeze": Reshape(),
    "Upsample": Resize(),
}

NO_ROW = Pins()


def row_of(node: ir.Node) -> Row:
    """The row of a node; ops of other domains have none."""
    if node.domain not in {"", "ai.onnx"} or any(
        attribute.type.name in {"GRAPH", "GRAPHS"} for attribute in node.attributes.values()
    ):
        return NO_ROW
    return ROWS.get(node.op_type, NO_ROW)
