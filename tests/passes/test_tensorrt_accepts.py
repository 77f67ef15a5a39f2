"""Every form that is emitted is one that a compiler of the TensorRT family takes, from the parser to the engine.

TensorRT-RTX parses and builds where there is no GPU; what it builds runs on one only. The extra `rtx` brings it.
"""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import passes
from passes import targets, weights
from passes.lowerings import LOWERINGS
from tests import blocked, oracle
from tests.engines import build
from tests.graphs import Graph

pytestmark = pytest.mark.tensorrt
pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")

TARGET = targets.TARGETS["tensorrt"]


def conv(rank, kind, *, dtype=np.float32, groups=1):
    """A convolution with blocks between two dense ones."""
    g = Graph(seed=rank, dtype=dtype)
    x = g.conv(g.input("x", (1, 3, *[8] * rank)), 32 * groups, 3, pads=[1] * 2 * rank)
    x = g.add("Relu", [x])
    mask = np.concatenate([mask_of(kind) for _ in range(groups)])
    weight = g.normal(32 * groups, 32, *[3] * rank, scale=0.1)
    g.constants[weight] *= mask.reshape(*mask.shape, *[1] * rank).astype(dtype)
    y = g.conv(
        x, 32 * groups, group=groups, weight=weight, pads=[1] * 2 * rank, strides=[2] * rank
    )
    return g.model(g.conv(g.add("Relu", [y]), 8, 1))


def linear(rank, kind, *, dtype=np.float32):
    """A product with blocks, of rows or of tokens."""
    g = Graph(seed=rank, dtype=dtype)
    x = g.input("x", (2, 3, 4, 32)[-rank:])
    if rank == 2:
        y = g.gemm(x, 32)
        g.constants[g.layers[-1].weight] *= mask_of(kind).astype(dtype)
    else:
        y = g.dense(x, 32)
        g.constants[g.layers[-1].weight] *= mask_of(kind).T.astype(dtype)
    return g.model(g.dense(g.add("Relu", [y]), 8))


def mask_of(kind):
    """Blocks of a 32x32 matrix."""
    mask = np.zeros((32, 32))
    order = np.random.default_rng(0).permutation(32)
    if kind == "diagonal":
        mask = np.kron(np.eye(4), np.ones((8, 8)))
    elif kind == "shuffled":
        mask = np.kron(np.eye(4), np.ones((8, 8)))[order][:, order]
    elif kind == "unequal":
        mask[:20, :6] = mask[20:, 3:17] = 1
        mask = mask[order]
    else:
        mask[:, order[:8]] = 1
    return mask


KINDS = ("diagonal", "shuffled", "unequal", "one")
MODELS = {
    **{f"Conv {rank}-D {kind}": conv(rank, kind) for rank in (1, 2, 3) for kind in KINDS},
    **{
        f"product rank {rank} {kind}": linear(rank, kind)
        for rank in (2, 3, 4)
        for kind in KINDS
    },
    "Conv 2-D groups": conv(2, "shuffled", groups=2),
    "Conv 2-D half": conv(2, "shuffled", dtype=np.float16),
    "product half": linear(3, "shuffled", dtype=np.float16),
}


def forms_of(proto):
    """The model in every form that fits."""
    found = {}
    for form in (each.name for each in LOWERINGS):
        model = oracle.from_proto(proto)
        if passes.GroupBlocks(lowering=form, target=TARGET)(model).modified:
            passes.InferShapes()(model)
            found[form] = model
    return found


def test_no_form_is_left_out():
    found = set().union(*map(forms_of, MODELS.values()))
    assert found == {each.name for each in LOWERINGS}


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_is_built_of_every_form(name):
    dense = build(MODELS[name])
    models = forms_of(MODELS[name])
    assert models
    for model in models.values():
        assert build(model) != dense


@hypothesis.settings(max_examples=20)
@hypothesis.given(blocked.blocked(), st.sampled_from(blocked.TARGETS))
def test_an_engine_is_built_of_forms_of_random_layers(case, target):
    # An engine of a dynamic model would need a range of sizes.
    hypothesis.assume(not case.sizes)
    for form in (each.name for each in LOWERINGS):
        model = oracle.from_proto(case.proto)
        if passes.GroupBlocks(lowering=form, target=target)(model).modified:
            build(model)


def test_what_does_not_fit_is_refused():
    model = oracle.from_proto(conv(2, "diagonal"))
    weight = next(iter(model.graph)).inputs[1]
    weights.set_tensor(weight, weight.const_value.numpy()[:, :2])
    with pytest.raises(AssertionError, match="Kernel weight dimension"):
        build(model)


@pytest.mark.parametrize("linear", [False, True])
def test_networks_in_another_order_are_built(linear):
    @hypothesis.settings(max_examples=5, phases=[hypothesis.Phase.generate], database=None)
    @hypothesis.seed(0)
    @hypothesis.given(blocked.hidden(linear=linear))
    def check(case):
        model = oracle.from_proto(case.proto)
        for rewrite in (
            passes.Tidy(),
            passes.PermuteChannels(purpose="group-blocks"),
            passes.GroupBlocks(lowering="products" if linear else "grouped", target=TARGET),
            passes.InferShapes(),
        ):
            rewrite(model)
        build(model)

    check()
