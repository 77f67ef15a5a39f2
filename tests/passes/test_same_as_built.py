"""What removal leaves of a zeroed network is the very graph that could have been built at those counts.

So it is as fast: there is nothing left by which a runtime could tell them apart, but names and the order of sums.
"""

from __future__ import annotations

import numpy as np
import pytest

import passes
from benchmarks import nets
from passes import weights


def signature(model):
    """Every node's op, attributes, and the shapes of its constants and results, in order."""
    rows = []
    for node in model.graph:
        attributes = sorted((name, str(item.value)) for name, item in node.attributes.items())
        constants = [
            np.shape(weights.constant(value)) for value in node.inputs if value is not None
        ]
        shapes = [str(value.shape) for value in node.outputs]
        rows.append((node.op_type, attributes, constants, shapes))
    return rows


@pytest.mark.parametrize("sparsity", [36, 80])
@pytest.mark.parametrize("name", ["resnet18-cifar", "mobilenetv2", "resnet50"])
def test_removal_gives_the_network_built_at_those_counts(name, sparsity):
    keep = nets.uniform(sparsity / 100, "n16")
    built = nets.build(name, keep=keep)
    found = nets.zeroed(name, keep=keep)
    for model, steps in (
        (built, (passes.Tidy(), passes.InferShapes())),
        (found, (passes.Tidy(), passes.RemoveChannels(), passes.InferShapes())),
    ):
        for step in steps:
            step(model)
    assert signature(found) == signature(built)
    assert weights.parameter_count(found) == weights.parameter_count(built)
