"""What sparse kernels could take, against the rules of targets: one layer for each thing that can be said of one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from passes import targets
from passes.analysis.eligibility import find_eligibility
from passes.analysis.patterns import Pattern, sparsify
from tests import oracle
from tests.passes.test_sparse_2_4 import CASES, REFUSED, drawn, model_of

TENSORRT = targets.TARGETS["tensorrt"]


def judged(proto, target=TENSORRT, **options):
    (found,) = find_eligibility(oracle.from_proto(proto), target, **options)
    return found


def sparse(*shape, axis=1, dtype=np.float16):
    """A weight that obeys 2:4."""
    return sparsify(drawn(*shape).astype(dtype), axis, Pattern(2, 4))


def conv(weight, *, groups=1, size=8):
    channels = weight.shape[1] * groups
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=groups)
    return model_of([node], {"w": weight}, {"x": (1, channels, size, size)}, weight.dtype)


def gemm(weight):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transB=1)
    return model_of([node], {"w": weight}, {"x": (4, weight.shape[1])}, weight.dtype)


def quantized(*, data, output):
    """A Conv with an int8 weight that obeys, whose data and output may be quantized as well."""
    w = sparsify(
        np.random.default_rng(0).integers(-127, 128, (256, 256, 3, 3), dtype=np.int8),
        1,
        Pattern(2, 4),
    )
    constants = {"w": w, "s": np.float32(0.1), "z": np.int8(0)}
    nodes, source = [], "x"
    if data:
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        ]
        source = "xd"
    nodes += [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Conv", [source, "wd"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    if output:
        nodes += [
            helper.make_node("QuantizeLinear", ["y", "s", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["end"]),
        ]
    return model_of(nodes, constants, {"x": (1, 256, 4, 4)})


BF16 = ml_dtypes.bfloat16
JUDGED = {
    "nothing against it": (gemm(sparse(256, 256)), "eligible", []),
    "nothing against a 3x3": (conv(sparse(256, 256, 3, 3)), "eligible", []),
    "nothing against bf16 products": (gemm(sparse(256, 256, dtype=BF16)), "eligible", []),
    "quantized on both sides": (quantized(data=True, output=True), "eligible", []),
    "its output is not": (
        quantized(data=True, output=False),
        "doubtful",
        ["its output is not quantized"],
    ),
    "only its weight is": (quantized(data=False, output=True), "no", ["it computes in fp32"]),
    "fp32": (gemm(sparse(256, 256, dtype=np.float32)), "no", ["it computes in fp32"]),
    "bf16 convolution": (
        conv(sparse(256, 256, 3, 3, dtype=BF16)),
        "doubtful",
        ["in bf16 are known for matrix products only"],
    ),
    "dense": (gemm(drawn(256, 256, dtype=np.float16)), "not yet", ["does not obey 2:4"]),
    "dense and fp32": (
        gemm(drawn(256, 256)),
        "no",
        ["it computes in fp32", "does not obey 2:4"],
    ),
    "1x1": (conv(sparse(256, 256, 1, 1)), "doubtful", ["1x1 convolutions"]),
    "few channels": (gemm(sparse(64, 256)), "doubtful", ["from about 256 channels on"]),
    "few in a group": (
        conv(sparse(512, 256, 3, 3), groups=4),
        "doubtful",
        ["from about 256 channels on"],
    ),
    "rows": (gemm(sparse(1001, 256)), "doubtful", ["its outputs are no multiple of 8"]),
    "columns": (gemm(sparse(256, 260)), "doubtful", ["its inputs are no multiple of 16"]),
    "on the left": (CASES["Gemm of A"][0], "no", ["it computes in fp32"]),
    "a stack": (CASES["MatMul of rank 3"][0], "no", ["it computes in fp32"]),
}


@pytest.mark.parametrize("name", JUDGED)
def test_what_speaks_against_a_layer(name):
    proto, verdict, reasons = JUDGED[name]
    found = judged(proto)
    assert found.verdict == verdict
    said = [remark.reason for remark in found.remarks]
    for reason in reasons:
        assert any(reason in each for each in said), said
    if verdict in {"eligible", "doubtful"}:
        assert found.share == found.kept == 1.0
        assert len(said) == len(reasons)
    else:
        assert reasons[0] in said[0], "the worst comes first"
    assert all(remark.advice for remark in found.remarks)


def test_doubts_about_products_in_other_forms():
    left, stack = judged(CASES["Gemm of A"][0]), judged(CASES["MatMul of rank 3"][0])
    assert any("on the left of the product" in remark.reason for remark in left.remarks)
    assert any("a stack of matrices" in remark.reason for remark in stack.remarks)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"another axis", "another reader"}))
def test_what_the_pass_refuses_cannot_be(name):
    proto, _, reason, _ = REFUSED[name]
    found = judged(proto)
    assert found.verdict == "no"
    if "infinity" not in reason:
        assert reason in found.remarks[0].reason


def test_a_shared_weight_is_judged_for_each_layer():
    first, second = find_eligibility(oracle.from_proto(REFUSED["another axis"][0]), TENSORRT)
    assert (first.node, first.axis, second.node, second.axis) == ("first", 0, "second", 1)
    assert first.remarks == second.remarks
    assert first.share is not None


def test_targets_without_sparse_kernels():
    for name, reason in (
        ("onnxruntime-cpu", "ONNX Runtime has no sparse kernels"),
        ("generic", "nothing is known of sparse kernels"),
    ):
        found = judged(JUDGED["nothing against it"][0], targets.TARGETS[name])
        assert found.verdict == "no"
        assert [remark.reason for remark in found.remarks] == [found.remarks[0].reason]
        assert reason in found.remarks[0].reason
        assert found.share == 1.0


def test_other_patterns_have_no_kernels():
    found = judged(JUDGED["nothing against it"][0], pattern=Pattern(1, 4))
    assert found.verdict == "no"
    assert found.remarks[0].reason == "sparse kernels read 2:4, not 1:4"
    assert 0 <= found.share < 1
