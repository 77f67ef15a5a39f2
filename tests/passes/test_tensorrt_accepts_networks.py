"""Whole networks, after every pass that rewrites them, are taken by a compiler of the TensorRT family.

It judges the graph alone: nothing is run, and whether a sparse kernel is used is not asked.
"""

from __future__ import annotations

import pytest

import passes
from benchmarks import nets
from benchmarks.gpu import encoders, forms
from passes.analysis.sparsity import weight_sparsity
from tests.engines import build

pytestmark = pytest.mark.tensorrt
pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`: TensorRT-RTX")

STEPS = {
    "removed": lambda: (passes.Tidy(), passes.RemoveChannels()),
    "aligned": lambda: (passes.AlignChannels(multiple=16),),
    "permuted": lambda: (passes.PermuteChannels(purpose="sparse-2-4", seconds=0.2),),
    "2:4": lambda: (passes.Sparse24(force="magnitude"),),
    "half": lambda: (passes.SetPrecision(),),
}


def run(model, step):
    """Carry a step out, and infer the shapes anew."""
    modified = [rewrite(model).modified for rewrite in STEPS[step]()]
    passes.InferShapes()(model)
    return any(modified)


@pytest.mark.parametrize("name", ["resnet18-cifar", "mobilenetv2"])
def test_networks_are_taken_after_every_step(name):
    model = nets.zeroed(name, keep=nets.uniform(0.58))
    taken = [build(model)]
    for step in STEPS:
        assert run(model, step), step
        taken.append(build(model))
    # Another order of channels is another engine, too.
    assert len(set(taken)) == len(STEPS) + 1
    assert sum(each.obeys_2_4 for each in weight_sparsity(model)) > 10


@pytest.mark.parametrize("form", forms.FORMS)
def test_encoders_are_taken_in_every_form(form, monkeypatch):
    monkeypatch.setattr(encoders, "LAYERS", 1)
    assert build(forms.halve(forms.make("vit-b", form, 1)))


@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
def test_large_networks_are_taken_at_the_end(name):
    model = nets.zeroed(name, keep=nets.uniform(0.58, "n16"))
    for step in STEPS:
        run(model, step)
    assert len(build(model)) > 1 << 20
