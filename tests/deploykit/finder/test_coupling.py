"""Coupled refill on exported networks: what it drops, removal takes out, and nothing else changes."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest

import passes
from deploykit.errors import UsageError
from deploykit.export import export_for_analysis
from deploykit.finder.coupling import find_coupling
from deploykit.finder.structures.refill import refill_coupled, remaining_l1
from passes.weights import constant, set_tensor
from tests import oracle

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch
nn = torch.nn


class Residual(nn.Module):
    """A block of a ResNet, with a projection where its shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet8(nn.Module):
    shape = (1, 12, 12)
    head = "fc.weight"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 12, 2), Residual(12, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


class MobileNet(nn.Module):
    """Depthwise and pointwise convolutions, squeeze-and-excite, and an inverted residual."""

    shape = (3, 12, 12)
    head = "fc.weight"

    def __init__(self):
        super().__init__()

        def separable(inputs, outputs, stride):
            return nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.ReLU6(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU6(),
            )

        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.one = separable(8, 16, 1)
        self.expand = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.two = separable(24, 16, 1)
        self.three = separable(16, 20, 2)
        self.fc = nn.Linear(20, 5)

    def forward(self, x):
        x = self.one(self.stem(x))
        y = self.expand(x)
        gate = torch.sigmoid(
            self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        )
        return self.fc(self.three(x + self.two(y * gate)).mean((2, 3)))


class Branches(nn.Module):
    """A concatenation, a grouped convolution, a transposed one, Flatten, and Linear layers on sequences."""

    shape = (3, 8, 8)
    head = "fc.weight"

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(3, 10, 1)
        self.grouped = nn.Conv2d(16, 24, 3, 2, 1, groups=4)
        self.up = nn.ConvTranspose2d(24, 8, 2, 2)
        self.steps = nn.Conv1d(8, 10, 3, 4, 1)
        self.first, self.second = nn.Linear(10, 14), nn.Linear(14, 6)
        self.flat = nn.Linear(6 * 16, 20)
        self.fc = nn.Linear(20, 5)

    def forward(self, x):
        x = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        x = torch.relu(self.up(torch.relu(self.grouped(x)))).flatten(2)
        x = torch.relu(self.steps(x)).transpose(1, 2)
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.fc(torch.relu(self.flat(x.transpose(1, 2).flatten(1))))


def export(network):
    return export_for_analysis(network, (torch.zeros(2, *network.shape),))


def prepared(network):
    """In eval mode, with constants that keep a dropped channel from being zero."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            elif getattr(module, "bias", None) is not None:
                module.bias.normal_()
    return network.eval()


def prunable(network):
    return [
        name
        for name, tensor in network.named_parameters()
        if tensor.ndim > 1 and name != network.head
    ]


@functools.cache
def exported(kind):
    network = prepared(kind())
    return network, export(network)


each_network = pytest.mark.parametrize(
    "kind", [ResNet8, MobileNet, Branches], ids=lambda kind: kind.__name__
)


def magnitude_masks(network, names, density):
    """The largest weights of all layers together, some of each."""
    arrays = {name: network.get_parameter(name).detach().numpy() for name in names}
    bound = np.quantile(
        np.concatenate([np.abs(a).ravel() for a in arrays.values()]), 1 - density
    )
    return arrays, {name: np.abs(array) > bound for name, array in arrays.items()}


def channel_scores(network, arrays, masks):
    transposed = {
        f"{name}.weight"
        for name, m in network.named_modules()
        if isinstance(m, nn.ConvTranspose2d)
    }
    return {
        name: remaining_l1(arrays[name], masks[name], axis=int(name in transposed))
        for name in arrays
    }


def weights_of(model):
    """Of all layers, by name; what scales channels, shape `(channels, 1, 1)`, is none."""
    arrays = {name: constant(value) for name, value in model.graph.initializers.items()}
    return {
        name: array
        for name, array in arrays.items()
        if array is not None and array.ndim > 1 and array.dtype == np.float32
        if array.shape[1:] != (1, 1)
    }


def dead_lines(model):
    """Weights with an all-zero row or column."""
    return [
        (name, axis)
        for name, array in weights_of(model).items()
        for axis in (0, 1)
        if not array.any(axis=tuple({*range(array.ndim)} - {axis})).all()
    ]


def carried_out(network, model, kept):
    """The network with its masks, and the model without what they drop."""
    small, masked = model.clone(), copy.deepcopy(network)
    with torch.no_grad():
        for name, mask in kept.items():
            masked.get_parameter(name).mul_(torch.from_numpy(mask))
            set_tensor(
                small.graph.initializers[name], masked.get_parameter(name).numpy().copy()
            )
    passes.Tidy()(small)
    passes.RemoveChannels()(small)
    return small, masked


def assert_removed(network, model, kept):
    small, masked = carried_out(network, model, kept)
    assert not dead_lines(small)
    whole = {
        name: tensor.numel() for name, tensor in network.named_parameters() if tensor.ndim > 1
    }
    left = sum(int(kept[name].sum()) if name in kept else size for name, size in whole.items())
    assert sum(array.size for array in weights_of(small).values()) == left
    x = np.random.default_rng(0).standard_normal((3, *network.shape)).astype(np.float32)
    wanted = masked(torch.from_numpy(x)).detach().numpy()
    feeds = {small.graph.inputs[0].name: x}
    got = oracle.run(oracle.open_session(small), feeds)[0]
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


@each_network
@pytest.mark.parametrize("density", [0.5, 0.03])
@pytest.mark.parametrize("options", [{}, {"match": "weights"}, {"extra": 0.3, "multiple": 4}])
def test_everything_that_is_dropped_is_removed(kind, density, options):
    network, model = exported(kind)
    names = prunable(network)
    arrays, masks = magnitude_masks(network, names, density)
    coupling = find_coupling(model, names)
    scores = channel_scores(network, arrays, masks)
    kept = refill_coupled(masks, scores, coupling, **options)
    assert not all(kept[name].all() for name in names)
    assert_removed(network, model, kept)
    again = refill_coupled(masks, scores, find_coupling(model, names), **options)
    assert all((again[name] == mask).all() for name, mask in kept.items())


@each_network
def test_as_many_weights_as_the_masks_leave(kind):
    network, model = exported(kind)
    names = prunable(network)
    arrays, masks = magnitude_masks(network, names, 0.4)
    coupling, scores = find_coupling(model, names), channel_scores(network, arrays, masks)
    wanted = sum(int(mask.sum()) for mask in masks.values())

    def left(**options):
        kept = refill_coupled(masks, scores, coupling, **options)
        return sum(int(kept[name].sum()) for name in names)

    assert left(match="rows") < 0.75 * wanted
    assert 0.75 * wanted < left(match="weights") <= wanted


def test_groups_of_a_residual_network():
    network, model = exported(ResNet8)
    coupling = find_coupling(model, prunable(network))
    found = {
        frozenset((member.role, member.weight) for member in group.members): group.shape
        for group in coupling.groups
    }
    first, second, third = (f"blocks.{index}" for index in range(3))
    assert found == {
        # what the first stage adds up, made by the stem and a block, read by three convolutions
        frozenset(
            {
                ("makes", "conv.weight"),
                ("makes", f"{first}.conv2.weight"),
                ("reads", f"{first}.conv1.weight"),
                ("reads", f"{second}.conv1.weight"),
                ("reads", f"{second}.shortcut.0.weight"),
            }
        ): (1, 8),
        frozenset({("makes", f"{first}.conv1.weight"), ("reads", f"{first}.conv2.weight")}): (
            1,
            8,
        ),
        frozenset({("makes", f"{second}.conv1.weight"), ("reads", f"{second}.conv2.weight")}): (
            1,
            12,
        ),
        frozenset(
            {
                ("makes", f"{second}.conv2.weight"),
                ("makes", f"{second}.shortcut.0.weight"),
                ("reads", f"{third}.conv1.weight"),
                ("reads", f"{third}.shortcut.0.weight"),
            }
        ): (1, 12),
        frozenset({("makes", f"{third}.conv1.weight"), ("reads", f"{third}.conv2.weight")}): (
            1,
            16,
        ),
        frozenset(
            {
                ("makes", f"{third}.conv2.weight"),
                ("makes", f"{third}.shortcut.0.weight"),
                ("reads", "fc.weight"),
            }
        ): (1, 16),
    }
    assert not coupling.skips


def test_members_of_a_grouped_convolution_and_of_flatten():
    network, model = exported(Branches)
    coupling = find_coupling(model, prunable(network))
    by_role = {}
    for group in coupling.groups:
        for member in group.members:
            by_role.setdefault((member.weight, member.role), []).append((group, member))
    # four groups of the convolution, six channels of each, and equally many of each stay
    ((group, member),) = by_role["grouped.weight", "makes"]
    assert group.shape == (4, 6)
    assert member.items.tolist() == list(range(24))
    # the channels of `left` are those of the first group and half of the second
    parts = [
        (m.indices.tolist(), m.within.tolist()) for _, m in by_role["grouped.weight", "reads"]
    ]
    assert ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5]) in parts
    # each of the six channels in front of Flatten is 16 columns
    ((group, member),) = by_role["flat.weight", "reads"]
    assert group.shape == (1, 6)
    assert member.items.tolist() == [item for item in range(6) for _ in range(16)]
    assert member.axis == 1
    # a transposed convolution has its outputs along axis 1
    assert [m.axis for _, m in by_role["up.weight", "makes"]] == [1]
    assert [m.axis for _, m in by_role["up.weight", "reads"]] == [0]


class Normalised(nn.Module):
    """Statistics over channels: with constants left in them, nothing could be taken out."""

    shape = (3, 8, 8)
    head = "fc.weight"

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
        self.two, self.fc = nn.Conv2d(8, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.norm(self.one(x)))))
        return self.fc(x.mean((2, 3)))


def test_what_cannot_go_stays_and_says_why():
    network = prepared(Normalised())
    model, names = export(network), ["one.weight", "two.weight", "fc.weight"]
    coupling = find_coupling(model, names)
    reasons = {skip.subject: skip.reason for skip in coupling.skips}
    assert set(reasons) == {"one.weight: 8 of 8 channels", "fc.weight: 4 of 4 channels"}
    assert "no removable channels" in reasons["one.weight: 8 of 8 channels"]
    assert "reach the graph output" in reasons["fc.weight: 4 of 4 channels"]
    arrays, masks = magnitude_masks(network, names, 0.25)
    kept = refill_coupled(masks, channel_scores(network, arrays, masks), coupling)
    assert kept["one.weight"].all()
    assert kept["fc.weight"].any(axis=1).all()
    assert 0 < kept["two.weight"].any(axis=(1, 2, 3)).sum() < 12
    assert_removed(network, model, kept)


def test_a_weight_that_is_not_to_be_pruned_holds_what_it_makes():
    network, model = exported(ResNet8)
    names = [name for name in prunable(network) if name != "conv.weight"]
    coupling = find_coupling(model, names)
    reasons = [skip.reason for skip in coupling.skips]
    assert reasons == ["'conv.weight' makes them too, and is not to be pruned"]
    arrays, masks = magnitude_masks(network, names, 0.3)
    kept = refill_coupled(masks, channel_scores(network, arrays, masks), coupling)
    assert "conv.weight" not in kept
    # the stream of the first stage stays, in rows and in columns
    assert kept["blocks.0.conv2.weight"].any(axis=(1, 2, 3)).all()
    assert kept["blocks.0.conv1.weight"].any(axis=(0, 2, 3)).all()
    assert_removed(network, model, kept)


def test_a_depthwise_weight_follows_though_it_is_not_named():
    network, model = exported(MobileNet)
    depthwise = ["one.0.weight", "two.0.weight", "three.0.weight"]
    names = [name for name in prunable(network) if name not in depthwise]
    arrays, masks = magnitude_masks(network, names, 0.4)
    coupling = find_coupling(model, names)
    kept = refill_coupled(masks, channel_scores(network, arrays, masks), coupling)
    assert not coupling.skips
    assert all(not kept[name].all() for name in depthwise)
    assert_removed(network, model, kept)


def test_a_name_that_the_graph_does_not_have():
    network, model = exported(ResNet8)
    with pytest.raises(UsageError, match=r"'absent\.weight' is not in the exported graph"):
        find_coupling(model, [*prunable(network), "absent.weight"])
