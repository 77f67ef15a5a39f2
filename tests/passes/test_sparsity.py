"""Zeros are counted along the axes that matter, for each op that has weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from passes import weights
from passes.analysis import sparsity

TEXT = """
<ir_version: 9, opset_import: ["": 21]>
g (float[1,8,4,4] x, float[16,8] m) => (float y)
<float[6,4,2,2] conv = {0}, float[8,3,2,2] up = {0}, float[8,5] b = {0}, float[5,8] bt = {0}, float[3,16] a = {0},
 float[2,8,5] stack = {0}, int8[8,5] q = {0}, float scale = {1}>
{
    c1 = Conv <group = 2> (x, conv)
    c2 = ConvTranspose <group = 2> (x, up)
    g1 = Gemm (m, b)
    g2 = Gemm <transB = 1> (m, bt)
    p1 = MatMul (a, m)
    p2 = MatMul (m, stack)
    d = DequantizeLinear (q, scale)
    p3 = MatMul (m, d)
    y = ReduceSum <keepdims = 0> (g1)
}
"""

# weight -> einsum-like letters: g group, o output, i input, k kernel; groups are split off the first axis
LAYOUT = {
    "conv": ("o i k k", 2),
    "up": ("i o k k", 2),
    "b": ("i o", 1),
    "bt": ("o i", 1),
    "a": ("o i", 1),
    "stack": ("g i o", 1),
    "q": ("i o", 1),
}


def filled(text: str = TEXT) -> ir.Model:
    """The model with ones for weights; the text has too few numbers."""
    model = ir.from_onnx_text(text)
    for name in LAYOUT:
        value = model.graph.initializers[name]
        weights.set_tensor(value, np.ones(value.shape.numpy(), value.dtype.numpy()))
    return model


def naive(array: np.ndarray, letters: list[str], groups: int) -> dict[str, object]:
    """Count element by element."""
    per_group = array.shape[0] // groups
    outputs, inputs, fours = {}, {}, {}
    for position in np.ndindex(array.shape):
        of = dict(zip(letters, position, strict=True))
        kernel = position[2:] if "k" in letters else of.get("g", 0)
        group = position[0] // per_group
        o, i = of["o"], of["i"]
        if groups > 1:
            o, i = (o, (group, i)) if letters[0] == "o" else ((group, o), i)
        nonzero = array[position] != 0
        outputs[o] = outputs.get(o, False) or nonzero
        inputs[i] = inputs.get(i, False) or nonzero
        index = of["i"] - (group * per_group if letters[0] == "i" and groups > 1 else 0)
        four = (group if groups > 1 else 0, of["o"], index // 4, kernel)
        fours.setdefault(four, []).append(abs(float(array[position])))
    kept = sum(sum(sorted(four)[-2:]) for four in fours.values()) / sum(
        map(sum, fours.values())
    )
    return {
        "zero_outputs": sum(not used for used in outputs.values()),
        "zero_inputs": sum(not used for used in inputs.values()),
        "obeys_2_4": all(sum(v != 0 for v in four) <= 2 for four in fours.values()),
        "kept": kept,
    }


@pytest.mark.parametrize("density", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_counts_agree_with_counting_one_by_one(
    density: float, at_once: int, monkeypatch
) -> None:
    monkeypatch.setattr(sparsity, "ELEMENTS_AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    model = filled()
    for name in LAYOUT:
        value = model.graph.initializers[name]
        shape = tuple(value.shape.numpy())
        array = rng.integers(1, 100, shape) * (rng.random(shape) < density)
        weights.set_tensor(value, array.astype(value.dtype.numpy()))
    found = {item.name: item for item in sparsity.weight_sparsity(model, magnitudes=True)}
    assert list(found) == ["conv", "up", "b", "bt", "a", "stack", "q"]
    for name, (letters, groups) in LAYOUT.items():
        array = weights.constant(model.graph.initializers[name])
        expected = naive(array, letters.split(), groups)
        item = found[name]
        assert item.zeros == pytest.approx((array == 0).mean())
        assert (item.zero_outputs, item.zero_inputs) == (
            expected["zero_outputs"],
            expected["zero_inputs"],
        ), name
        assert item.obeys_2_4 == expected["obeys_2_4"], name
        assert item.kept_2_4 == pytest.approx(expected["kept"], rel=1e-5), name
    without = sparsity.weight_sparsity(model)
    assert [dataclasses.replace(item, kept_2_4=None) for item in found.values()] == [*without]
    sizes = {item.name: (item.outputs, item.inputs) for item in sparsity.weight_sizes(model)}
    assert sizes == {
        "conv": (6, 4),
        "up": (6, 4),
        "b": (5, 8),
        "bt": (5, 8),
        "a": (3, 16),
        "stack": (5, 8),
        "q": (5, 8),
    }


def test_a_rest_of_input_channels_cannot_obey_2_4() -> None:
    model = filled()
    for name, shape in {"b": (6, 5), "bt": (5, 4)}.items():
        weights.set_tensor(model.graph.initializers[name], np.zeros(shape, np.float32))
    found = {item.name: item for item in sparsity.weight_sparsity(model, magnitudes=True)}
    assert (found["b"].obeys_2_4, found["b"].kept_2_4) == (False, None)
    assert (found["bt"].obeys_2_4, found["bt"].kept_2_4) == (True, 1.0)
    assert (found["bt"].zeros, found["bt"].zero_outputs) == (1.0, 5)


def test_quantized_zeros_that_do_not_mean_zero_are_left_out() -> None:
    shifted = TEXT.replace("(q, scale)", "(q, scale, point)").replace(
        "float scale = {1}", "float scale = {1}, int8 point = {3}"
    )
    found = {item.name for item in sparsity.weight_sparsity(filled(shifted))}
    assert found == set(LAYOUT) - {"q"}
