"""Elementwise operators as functions of numbers, in double precision.

Used on the few numbers that are provably constant, so speed is no concern; agreement with the runtime's single
precision is. Arrays are float64, or int64 for integers and bools.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from passes.analysis.compact import Array

__all__ = ["BINARY", "UNARY", "VARIADIC", "round_to"]


def round_to(array: Array, dtype: ir.DataType) -> Array:
    """Round numbers to what `dtype` can hold: float64 for floating types, else int64."""
    with np.errstate(all="ignore"):
        if dtype.is_floating_point():
            rounded: Array = array.astype(dtype.numpy()).astype(np.float64)
        elif dtype.name == "BOOL":
            rounded = (array != 0).astype(np.int64)
        else:
            rounded = array.astype(np.int64).astype(dtype.numpy()).astype(np.int64)
    return rounded


def _float(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes.get_float(name, default))


def _leaky_relu(x: Array, node: ir.Node) -> Array:
    return np.where(x < 0, _float(node, "alpha", 0.01) * x, x)


def _hard_sigmoid(x: Array, node: ir.Node) -> Array:
    return np.clip(_float(node, "alpha", 0.2) * x + _float(node, "beta", 0.5), 0, 1)


def _elu(x: Array, node: ir.Node) -> Array:
    return np.where(x < 0, _float(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)


def _celu(x: Array, node: ir.Node) -> Array:
    alpha = _float(node, "alpha", 1.0)
    return np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _selu(x: Array, node: ir.Node) -> Array:
    alpha = _float(node, "alpha", 1.6732632423543772)
    gamma = _float(node, "gamma", 1.0507009873554805)
    return gamma * np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _gelu(x: Array, node: ir.Node) -> Array:
    if node.attributes.get_string("approximate", "none") == "tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        inner = special.erf(x / math.sqrt(2))
    return np.asarray(0.5 * x * (1 + inner))


def _softplus(x: Array, node: ir.Node) -> Array:
    del node
    return np.logaddexp(0, x)


def _thresholded_relu(x: Array, node: ir.Node) -> Array:
    return np.where(x > _float(node, "alpha", 1.0), x, 0)


def _swish(x: Array, node: ir.Node) -> Array:
    return np.asarray(x * special.expit(_float(node, "alpha", 1.0) * x))


def _shrink(x: Array, node: ir.Node) -> Array:
    bias, limit = _float(node, "bias", 0.0), _float(node, "lambd", 0.5)
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, 0))


def _clip(x: Array, node: ir.Node) -> Array:
    """Clip by attributes, as before operator set 11."""
    return np.clip(x, _float(node, "min", -math.inf), _float(node, "max", math.inf))


def _plain(function: Callable[[Array], Array]) -> Callable[[Array, ir.Node], Array]:
    def apply(x: Array, node: ir.Node) -> Array:
        del node
        return function(x)

    return apply


UNARY: Mapping[str, Callable[[Array, ir.Node], Array]] = {
    "Abs": _plain(np.abs),
    "Acos": _plain(np.arccos),
    "Acosh": _plain(np.arccosh),
    "Asin": _plain(np.arcsin),
    "Asinh": _plain(np.arcsinh),
    "Atan": _plain(np.arctan),
    "Atanh": _plain(np.arctanh),
    "Cast": _plain(lambda x: x),
    "CastLike": _plain(lambda x: x),
    "Ceil": _plain(np.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _plain(np.cos),
    "Cosh": _plain(np.cosh),
    "Elu": _elu,
    "Erf": _plain(special.erf),
    "Exp": _plain(np.exp),
    "Floor": _plain(np.floor),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    # what is known is a finite number
    "IsInf": _plain(lambda x: np.zeros(x.shape, dtype=np.int64)),
    "IsNaN": _plain(lambda x: np.zeros(x.shape, dtype=np.int64)),
    "LeakyRelu": _leaky_relu,
    "Log": _plain(np.log),
    "Mish": _plain(lambda x: x * np.tanh(np.logaddexp(0, x))),
    "Neg": _plain(np.negative),
    "Not": _plain(lambda x: (x == 0).astype(np.int64)),
    "Reciprocal": _plain(lambda x: 1 / x),
    "Relu": _plain(lambda x: np.maximum(x, 0)),
    "Round": _plain(np.rint),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain(special.expit),
    "Sign": _plain(np.sign),
    "Sin": _plain(np.sin),
    "Sinh": _plain(np.sinh),
    "Softplus": _softplus,
    "Softsign": _plain(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _plain(np.sqrt),
    "Swish": _swish,
    "Tan": _plain(np.tan),
    "Tanh": _plain(np.tanh),
    "ThresholdedRelu": _thresholded_relu,
}


def _divide(a: Array, b: Array, node: ir.Node) -> Array:
    del node
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return np.asarray(a / b)
    # Integer division rounds towards zero; a zero divisor only stands where nothing is known.
    safe = np.where(b == 0, 1, b)
    return np.asarray(np.sign(a) * np.sign(safe) * (np.abs(a) // np.abs(safe)))


def _modulo(a: Array, b: Array, node: ir.Node) -> Array:
    safe = np.where(b == 0, 1, b) if b.dtype.kind != "f" else b
    return np.fmod(a, safe) if node.attributes.get_int("fmod", 0) else np.mod(a, safe)


def _power(a: Array, b: Array, node: ir.Node) -> Array:
    del node
    return np.power(a.astype(np.float64), b)


def _prelu(x: Array, slope: Array, node: ir.Node) -> Array:
    del node
    return np.where(x < 0, slope * x, x)


def _pair(
    function: Callable[[Array, Array], Array],
) -> Callable[[Array, Array, ir.Node], Array]:
    def apply(a: Array, b: Array, node: ir.Node) -> Array:
        del node
        return function(a, b)

    return apply


def _truth(
    function: Callable[[Array, Array], Array],
) -> Callable[[Array, Array, ir.Node], Array]:
    def apply(a: Array, b: Array, node: ir.Node) -> Array:
        del node
        return function(a, b).astype(np.int64)

    return apply


BINARY: Mapping[str, Callable[[Array, Array, ir.Node], Array]] = {
    "Add": _pair(np.add),
    "And": _truth(np.logical_and),
    "Div": _divide,
    "Equal": _truth(np.equal),
    "Greater": _truth(np.greater),
    "GreaterOrEqual": _truth(np.greater_equal),
    "Less": _truth(np.less),
    "LessOrEqual": _truth(np.less_equal),
    "Mod": _modulo,
    "Mul": _pair(np.multiply),
    "Or": _truth(np.logical_or),
    "PRelu": _prelu,
    "Pow": _power,
    "Sub": _pair(np.subtract),
    "Xor": _truth(np.logical_xor),
}

# The mean is a sum here; its divisor is the number of inputs.
VARIADIC: Mapping[str, Callable[[Array, Array], Array]] = {
    "Max": np.maximum,
    "Mean": np.add,
    "Min": np.minimum,
    "Sum": np.add,
}
