"""Sources of masks, against cases worked by hand and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402

from deploykit.errors import UsageError  # noqa: E402
from deploykit.finder.ranking import count_kept  # noqa: E402
from deploykit.finder.sources import SOURCES, Context, grasp, snip, synflow  # noqa: E402
from deploykit.finder.sources.random import draws  # noqa: E402
from deploykit.finder.task import Task  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Net  # noqa: E402


class Squares(Task):
    """Half of the squared error, mean over the batch."""

    name = "squares"

    def loss(self, outputs, targets):
        return 0.5 * ((outputs - targets) ** 2).sum(dim=1).mean()


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


def batch(inputs, targets):
    return (torch.tensor(inputs, dtype=torch.float64),), torch.tensor(
        targets, dtype=torch.float64
    )


def test_snip_by_hand():
    # y = 2 x1 - 3 x2; at x = (1, 2), target 1: the error is -5, the gradient (-5, -10), times the weights (-10, 30).
    found = snip.saliencies(
        Squares(), linear([2.0, -3.0]), ["weight"], [batch([[1.0, 2.0]], [[1.0]])]
    )
    assert found["weight"].tolist() == [[10.0, 30.0]]


@pytest.mark.parametrize("score", [snip.saliencies, grasp.flows])
def test_batches_are_one_batch(score):
    dice = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=dice, dtype=torch.float64)
    targets = torch.randn(5, 2, generator=dice, dtype=torch.float64)
    model = nn.Sequential(
        linear([0.3, -0.2, 0.1], [0.5, 0.4, -0.6]), nn.Tanh(), linear([1.0, 2.0], [0.5, -1.0])
    )
    names = ["0.weight", "2.weight"]
    whole = score(Squares(), model, names, [((inputs,), targets)])
    parts = [((inputs[:2],), targets[:2]), ((inputs[2:],), targets[2:])]
    for name, found in score(Squares(), model, names, parts).items():
        np.testing.assert_allclose(found, whole[name], rtol=1e-12)


def test_grasp_keeps_what_the_gradient_would_shrink_without():
    # The loss is 1/2 w'Aw - b'w with A = X'X / n: the gradient is Aw - b, and its product with the Hessian A(Aw - b).
    dice = np.random.default_rng(0)
    inputs, weights = dice.standard_normal((6, 4)), dice.standard_normal(4)
    targets = dice.standard_normal((6, 1))
    hessian = inputs.T @ inputs / 6
    gradient = hessian @ weights - inputs.T @ targets[:, 0] / 6
    model = linear(weights.tolist())
    (found,) = grasp.flows(
        Squares(), model, ["weight"], [batch(inputs.tolist(), targets.tolist())]
    ).values()
    np.testing.assert_allclose(found[0], weights * (hessian @ gradient), rtol=1e-10)
    # The sign: shrink one weight a little, and see which way the squared norm of the gradient goes.
    for index in range(4):
        less = weights.copy()
        less[index] *= 1 - 1e-6
        moved = hessian @ (less - weights) + gradient
        change = (moved @ moved - gradient @ gradient) / 2
        assert np.sign(change) == -np.sign(found[0, index])


def test_synflow_by_hand():
    # |w|: two paths through the first unit (1, 2) and one of 3 on top; R = (1 + 2) * 3 + (4 + 0) * 5 = 29.
    model = nn.Sequential(linear([1.0, -2.0], [-4.0, 0.0]), nn.ReLU(), linear([-3.0, 5.0]))
    flow = synflow.as_flow(model)
    found = synflow.flow_scores(
        flow, ["0.weight", "2.weight"], [torch.ones(1, 2, dtype=torch.float64)]
    )
    assert found["0.weight"].tolist() == [[3.0, 6.0], [20.0, 0.0]]
    assert found["2.weight"].tolist() == [[9.0, 20.0]]


def test_synflow_is_conserved_through_normalizations_that_have_seen_data():
    torch.manual_seed(0)
    model = Net()
    for _ in range(3):
        model(3 + torch.randn(8, 1, 4, 4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    # Along the residual sum the flow divides; before and after it, a layer carries all.
    names = ["first.weight", "head.weight"]
    flow = synflow.as_flow(model)
    ones = [torch.ones(1, 1, 4, 4, dtype=torch.float64)]
    found = synflow.flow_scores(flow, names, ones)
    total = float(flow(*ones).sum().detach())
    assert total > 0
    for name in names:
        assert found[name].sum() == pytest.approx(total, rel=1e-12)
        assert (found[name] >= 0).all()


def test_synflow_empties_no_layer_where_magnitudes_would():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(6)))
    with torch.no_grad():
        model[3].weight.mul_(1e-3)
    names = [f"{index}.weight" for index in range(6)]
    assert not SOURCES["omp"].choose(context(model, names, 24))["3.weight"].any()
    masks = synflow.prune(model, names, [torch.zeros(2, 20)], 24)
    assert count_kept(masks) == 24
    assert min(int(mask.sum()) for mask in masks.values()) >= 1
    # Something still gets through.
    for index, name in enumerate(names):
        model[index].weight.data.mul_(torch.from_numpy(masks[name]))
    assert model(torch.ones(1, 20)).abs().sum() > 0


def context(model, names, kept, *, masks=None, batches=(), task=None, seed=0):
    return Context(task or Clouds(), model, tuple(names), kept, masks or {}, batches, seed)


def test_synflow_needs_numbers():
    class Words(Clouds):
        def example_inputs(self):
            return (torch.zeros(2, 3, dtype=torch.int64),)

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UsageError, match="SynFlow needs inputs of real numbers"):
        SOURCES["synflow"].choose(context(model, ["0.weight"], 1, task=Words()))


def test_random_masks_of_lower_density_are_parts_of_denser_ones():
    scores = draws({"a": (30, 4), "b": (50,)}, 3)
    assert all(
        (found == scores[name]).all()
        for name, found in draws({"a": (30, 4), "b": (50,)}, 3).items()
    )
    model = nn.Sequential(nn.Linear(9, 30), nn.Linear(30, 5))
    names = ["0.weight", "1.weight"]
    choose = SOURCES["random"].choose
    many, few = (choose(context(model, names, kept)) for kept in (200, 60))
    assert all((many[name] | ~few[name]).all() for name in names)
    other = choose(context(model, names, 200, seed=1))
    assert any((other[name] != many[name]).any() for name in names)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_keeps_exactly_what_it_is_asked_for(name):
    trainer = Trainer(Clouds(), seed=1)
    assert trainer.names == ("0.weight", "2.weight")
    source, before = SOURCES[name], trainer.initial()
    left = {each: np.ones(before[each].shape, np.bool_) for each in trainer.names}
    batches = trainer.sample(source.examples) if source.examples else ()
    for kept in (300, 17):
        found = [
            source.choose(
                context(
                    trainer.model_with(before), trainer.names, kept, masks=left, batches=batches
                )
            )
            for _ in range(2)
        ]
        assert count_kept(found[0]) == kept
        assert tuple(found[0]) == trainer.names
        for each in trainer.names:
            assert (found[0][each] == found[1][each]).all()


def test_imp_drops_nothing_that_was_dropped_before_twice():
    model = nn.Sequential(linear([1.0, -5.0, 3.0, 4.0]), linear([9.0]))
    left = {"0.weight": np.array([[True, False, True, True]])}
    found = SOURCES["imp"].choose(context(model, ["0.weight"], 2, masks=left))
    assert found["0.weight"].tolist() == [[False, False, True, True]]
    found = SOURCES["omp"].choose(context(model, ["0.weight"], 2, masks=left))
    assert found["0.weight"].tolist() == [[False, True, False, True]]
