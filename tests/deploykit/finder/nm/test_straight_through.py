"""STE and SR-STE: what a step does to the dense weights, worked by hand and by torch's own means."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402

from deploykit.finder.nm import Pattern  # noqa: E402
from deploykit.finder.nm.layers import find_eligible  # noqa: E402
from deploykit.finder.nm.straight_through import StraightThrough, choose_masks  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402
from tests.deploykit.finder.toy import Clouds, Pictures  # noqa: E402


def one_step(layer, optimizer, masking, inputs):
    optimizer.zero_grad()
    with masking.applied():
        output = layer(inputs)
        output.sum().backward()
    masking.correct_gradients(1.0)
    optimizer.step()
    masking.follow()
    return output.item()


def test_two_steps_of_sr_ste_are_those_worked_by_hand():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    masking = StraightThrough(("weight",), Pattern(), 0.5)(layer, optimizer)
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    # Only 4 and -3 are seen. The gradient by the masked weights is the input, for those that are dropped, too, which get
    # half of themselves on top: 1, 2, 3 + 1, 4 + 0.5.
    assert one_step(layer, optimizer, masking, inputs) == 4 * 1 - 3 * 2
    assert layer.weight.tolist()[0] == pytest.approx([3.9, -3.2, 1.6, 0.55])
    # Momentum: 0.9 of what it was, and 1, 2, 3 + 0.8, 4 + 0.275.
    assert one_step(layer, optimizer, masking, inputs) == pytest.approx(3.9 - 6.4)
    velocity = np.array([0.9 + 1, 1.8 + 2, 3.6 + 3.8, 4.05 + 4.275])
    assert layer.weight.tolist()[0] == pytest.approx(
        (np.array([3.9, -3.2, 1.6, 0.55]) - 0.1 * velocity).tolist()
    )
    assert masking.take_flips() == (0, 0)
    assert masking.masks()["weight"].tolist() == [[True, True, False, False]]


def test_the_decay_is_scaled_as_the_gradients_are():
    layer = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    masking = StraightThrough(("weight",), Pattern(), 0.5)(layer, optimizer)
    with masking.applied():
        (8.0 * layer(torch.ones(1, 4)).sum()).backward()
    masking.correct_gradients(8.0)
    dropped = torch.from_numpy(~masking.masks()["weight"])
    expected = 1.0 + 0.5 * layer.weight.detach() * dropped
    torch.testing.assert_close(layer.weight.grad / 8.0, expected)


def test_flips_count_what_leaves_a_mask_and_what_comes_in():
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 4.0]]))
    masking = StraightThrough(("weight",), Pattern())(
        layer, torch.optim.SGD(layer.parameters(), lr=1)
    )
    with torch.no_grad():
        layer.weight[0, 0] = 0.0  # 2 takes its place
    masking.follow()
    masking.follow()
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    masking.follow()
    assert masking.take_flips() == (2, 0, 4)
    assert masking.take_flips() == ()


class Straight(torch.autograd.Function):
    """What the papers write: masked forwards, backwards as if it were not."""

    @staticmethod
    def forward(ctx, weight, mask, decay):
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        return gradient + ctx.decay * (1 - mask) * weight, None, None


class Reference(nn.Module):
    """The network of `Clouds` with a mask in its forward pass."""

    def __init__(self, layers, decay):
        super().__init__()
        self.layers, self.decay = layers, decay

    def forward(self, x):
        for layer in self.layers:
            if isinstance(layer, nn.Linear) and layer.out_features > 4:
                weight = layer.weight
                rows = weight.detach().abs().reshape(-1, 4)
                mask = torch.zeros_like(rows).scatter_(1, rows.topk(2).indices, 1.0)
                weight = Straight.apply(weight, mask.reshape(weight.shape), self.decay)
                x = nn.functional.linear(x, weight, layer.bias)
            else:
                x = layer(x)
        return x


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_training_is_that_of_a_network_with_masks_in_its_forward_pass(decay):
    class Masked(Clouds):
        def model(self):
            return Reference(super().model(), decay)

        def prunable(self, model):
            return ("layers.0.weight", "layers.2.weight")

    trainer, reference = Trainer(Clouds(), epochs=2), Trainer(Masked(), epochs=2)
    rule = StraightThrough(trainer.names, Pattern(), decay)
    trained = trainer.train(trainer.initial(), {}, masking=rule)
    dense = reference.train(reference.initial(), {})
    assert trained.test == dense.test
    assert [each.loss for each in trained.epochs] == pytest.approx(
        [each.loss for each in dense.epochs]
    )
    assert sum(sum(each.flips) for each in trained.epochs) > 0
    for name, mask in trained.masks.items():
        theirs = dense.weights[f"layers.{name}"]
        np.testing.assert_allclose(trained.weights[name], theirs * mask, rtol=1e-4, atol=1e-6)
        # What the ticket has is masked, and its mask is the best of the dense weights.
        best = choose_masks([torch.from_numpy(theirs)], [name], Pattern())[name]
        assert (best == mask).all()


def test_layers_without_whole_groups_stay_dense_and_say_so():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 1, groups=4),
        nn.Conv2d(8, 10, 1, groups=2),
        nn.Embedding(4, 4),
        nn.Linear(8, 6),
    )
    names = [f"{number}.weight" for number in range(6)]
    found = find_eligible(model, names, Pattern())
    assert found.names == ("3.weight", "5.weight")
    assert [skip.reason for skip in found.skips] == [
        "it reads 3 channels, no multiple of 4",
        "it is depthwise: each output reads one channel, of which no group can be made",
        "it reads 2 channels in each of its groups, no multiple of 4",
        "it is no weight of a convolution or a linear layer",
    ]
    both = find_eligible(model, [*names, "5.weight"], Pattern(1, 2, transposable=True))
    assert both.names == ("2.weight", "5.weight", "5.weight")
    assert (
        "it makes 5 channels in each of its groups, no multiple of 2" in both.skips[-2].reason
    )


def test_masks_of_a_convolution_lie_as_its_weight_does():
    """Else every step would go through memory in another order."""
    trainer = Trainer(Pictures())
    model = trainer.model_with(trainer.initial())
    names = trainer.names[1:]
    placed = StraightThrough(names, Pattern())(
        model, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    weight = model.one.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    before = weight.detach().clone()
    with placed.applied():
        assert (weight == 0).float().mean() == 0.5
        assert all(each.stride() == weight.stride() for each in placed._dropped)
    assert (weight == before).all()


def test_a_weight_that_layers_share_is_masked_once():
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masking = StraightThrough(("0.weight", "1.weight"), Pattern())(model, optimizer)
    before = first.weight.detach().clone()
    with masking.applied():
        assert (second.weight == 0).float().mean() == 0.5
    assert (second.weight == before).all()
    masks = masking.masks()
    assert (masks["0.weight"] == masks["1.weight"]).all()
