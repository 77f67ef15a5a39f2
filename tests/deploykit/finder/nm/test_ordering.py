"""Channels in another order: the network computes the same, or its order stays, with the reason."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402

from deploykit.finder.nm.ordering import Ordered, reorder  # noqa: E402
from deploykit.finder.training import read_weights  # noqa: E402
from passes.plans import PermutePlan  # noqa: E402
from tests.deploykit.finder.toy import Net  # noqa: E402


def trained(model, seed):
    """A state dict in which no two numbers are alike, normalizations included."""
    dice = np.random.default_rng(seed)
    return {
        name: dice.uniform(0.5, 1.5, array.shape).astype(array.dtype) if array.ndim else array
        for name, array in read_weights(model).items()
    }


def computed(model, weights, inputs):
    model.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in weights.items()})
    with torch.no_grad():
        return model.eval()(*inputs)


def test_a_residual_network_follows_a_plan_in_all_its_weights():
    model, inputs = (
        Net(),
        (torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)),),
    )
    start, scored = trained(model, 1), trained(model, 2)
    before = [computed(model, weights, inputs) for weights in (start, scored)]
    order = np.random.default_rng(3).permutation(16)
    found = reorder(
        model, inputs, start, scored, PermutePlan({"conv2d": tuple(order.tolist())})
    )
    assert found.notes == ()
    assert found.changed == {"conv2d": int((order != np.arange(16)).sum())}
    for weights, old, new in zip(
        (start, scored), before, (found.weights, found.scored), strict=True
    ):
        # The sum ties the first convolution to the last one; who reads them follows.
        expected = dict(weights)
        for name in weights:
            if (
                name.startswith(("first", "norm")) and weights[name].ndim
            ) or name == "two.weight":
                expected[name] = weights[name][order]
        expected["one.weight"] = weights["one.weight"][:, order]
        expected["head.weight"] = weights["head.weight"][:, order]
        assert all((new[name] == expected[name]).all() for name in weights)
        torch.testing.assert_close(computed(model, new, inputs), old)
    again = Ordered.from_ticket(found.as_ticket())
    assert (again.changed, again.notes) == (found.changed, found.notes)
    for name in start:
        assert (again.weights[name] == found.weights[name]).all()
        assert (again.scored[name] == found.scored[name]).all()


class Weighted(nn.Module):
    """What it multiplies channels with is no parameter, and would have to follow them."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.two(self.one(x) * torch.arange(1.0, 9.0)))


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (
            {"linear": (1, 0, 2, 3, 4, 5, 6, 7)},
            "would have to change, and is no weight of the module",
        ),
        ({"lineal": (1, 0, 2, 3, 4, 5, 6, 7)}, "'lineal'"),
        ({"linear_2": (1, 0)}, "output"),
    ],
)
def test_what_cannot_follow_keeps_its_order_and_says_why(plan, reason):
    model, inputs = Weighted(), (torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),)
    weights = trained(model, 1)
    found = reorder(model, inputs, weights, weights, PermutePlan(plan))
    assert found.weights is weights
    assert found.changed == {}
    (note,) = found.notes
    assert note.startswith("channels keep their order, in which the mask loses more: ")
    assert reason in note


def test_a_module_that_computes_something_else_keeps_its_order(monkeypatch):
    from deploykit.finder.nm import ordering

    original = ordering._Graph.permuted

    def wrong(self, weights, plan):
        found = original(self, weights, plan)
        return {**found, "0.weight": weights["0.weight"]}

    monkeypatch.setattr(ordering._Graph, "permuted", wrong)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    weights = trained(model, 1)
    inputs = (torch.randn(2, 4, generator=torch.Generator().manual_seed(0)),)
    plan = PermutePlan({"linear": (7, 6, 5, 4, 3, 2, 1, 0)})
    found = reorder(model, inputs, weights, weights, plan)
    assert "computes something else in that order" in found.notes[0]
    assert found.scored is weights
