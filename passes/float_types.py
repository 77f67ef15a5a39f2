"""From which opset on operators of ONNX take 16-bit floats, for all of their floating-point inputs and outputs at once.

Operators that are missing keep fp32: their types have several parts (Cast, QuantizeLinear, Loop), or are fixed. A test holds the
table against the schemas of ONNX.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

__all__ = ["FIXED_INPUTS", "FIXED_OUTPUTS", "takes"]

BFLOAT16_SINCE: Final = {
    13: "Abs Add ArgMax ArgMin Ceil Clip Concat DepthToSpace Div Dropout Equal Erf Exp Expand Flatten Floor Gather GatherElements "
    "GatherND Gemm Greater Hardmax Identity IsNaN LRN Less Log LogSoftmax MatMul Max Mean MeanVarianceNormalization Min Mod Mul "
    "Neg NonZero Pad Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Reshape Resize ScatterElements ScatterND Shape Sigmoid Sign Size Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub "
    "Sum Tanh Tile Transpose Unsqueeze",
    14: "BatchNormalization CumSum Trilu",
    15: "Pow",
    16: "GreaterOrEqual LeakyRelu LessOrEqual PRelu Where",
    17: "DFT LayerNormalization",
    18: "CenterCropPad Col2Im",
    20: "AffineGrid Gelu IsInf",
    21: "GroupNormalization",
    22: "Acos Acosh Asin Asinh Atan Atanh AveragePool Conv ConvTranspose Cos Cosh DeformConv Det Elu GRU GlobalAveragePool "
    "GlobalLpPool GlobalMaxPool GridSample HardSigmoid HardSwish InstanceNormalization LSTM LpNormalization LpPool MaxPool "
    "MaxRoiPool MaxUnpool Mish RNN RoiAlign Round Selu Sin Sinh Softplus Softsign Tan ThresholdedRelu",
    23: "Attention RMSNormalization RotaryEmbedding",
    24: "Swish TopK",
    26: "CumProd",
    28: "Celu Compress Einsum",
}
"""Opset -> the operators that take bfloat16 from there on."""

NEVER_BFLOAT16: Final = "Scatter Shrink Upsample"
"""Operators that take fp16, and bfloat16 in no opset."""

FLOAT16_SINCE: Final = {"Celu": 28, "CumSum": 14, "Equal": 11, "IsInf": 20}
"""Operators that took fp16 later than fp32; all others did from their beginning."""

FIXED_INPUTS: Final = {"Dropout": (1,), "Resize": (1, 2), "Upsample": (1,)}
"""Inputs that stay as they are whatever the others become: they say by how much, and are no data."""

FIXED_OUTPUTS: Final = {"LayerNormalization": (1, 2)}
"""Outputs that have a type of their own."""

SINCE: Final = {
    name: opset for opset, names in BFLOAT16_SINCE.items() for name in names.split()
}
KNOWN: Final = frozenset(SINCE) | frozenset(NEVER_BFLOAT16.split())


def takes(op_type: str, kind: ir.DataType, opset: int) -> int | None:
    """From which opset on an operator of the standard domain takes a type; 0 if it does in this one; None if in no opset.

    Args:
        op_type: the operator.
        kind: FLOAT16 or BFLOAT16.
        opset: that of the model.
    """
    if op_type not in KNOWN:
        return None
    if kind == ir.DataType.FLOAT16:
        since = FLOAT16_SINCE.get(op_type, 1)
    elif op_type in SINCE:
        since = SINCE[op_type]
    else:
        return None
    return 0 if opset >= since else since
