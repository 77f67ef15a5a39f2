"""State dicts of pruned networks as tickets, in the forms that other tools leave them in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from deploykit.errors import ModelError, UsageError
from deploykit.foreign_tickets import read_ticket

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def pruned_model():
    from torch.nn.utils import prune

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    prune.l1_unstructured(model[0], "bias", 0.25)
    return model


def save(path, state):
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))
    else:
        torch.save(state, path)
    return path


ENDINGS = (".safetensors", ".pt")


@pytest.mark.parametrize("ending", ENDINGS)
def test_pairs_of_torch_prune_become_weights_and_masks(tmp_path, ending):
    model = pruned_model()
    found = read_ticket(save(tmp_path / f"pruned{ending}", model.state_dict()))
    assert set(found.masks) == {"0.weight", "0.bias"}
    assert np.count_nonzero(~found.masks["0.weight"].any(axis=1)) == 4
    np.testing.assert_array_equal(found.weights["0.weight"], model[0].weight.detach().numpy())
    np.testing.assert_array_equal(found.weights["0.bias"], model[0].bias.detach().numpy())
    assert set(found.weights) == set(torch.nn.Sequential(*model).state_dict()) - {
        f"0.{name}_{part}" for name in ("weight", "bias") for part in ("orig", "mask")
    } | {"0.weight", "0.bias"}


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
@pytest.mark.parametrize("name", ["0.weight", "0.weight_mask"])
def test_a_dict_of_masks_has_no_weights(tmp_path, name, dtype):
    mask = torch.tensor([[1, 0], [0, 1]], dtype=dtype)
    found = read_ticket(save(tmp_path / "masks.pt", {name: mask}))
    assert found.weights == {}
    assert found.masks.keys() == {"0.weight"}
    np.testing.assert_array_equal(found.masks["0.weight"], np.eye(2, dtype=bool))


def test_zeros_of_plain_weights_are_the_mask(tmp_path):
    weight = torch.tensor([[1.5, 0.0], [2.0, 3.0]], dtype=torch.bfloat16)
    state = {
        # What DataParallel puts before names, and a buffer that is called a mask and is none.
        "module.0.weight": weight,
        "module.1.weight": torch.ones(2, 2) / 3,
        "module.1.bias": torch.zeros(2),
        "module.attention_mask": torch.tril(torch.ones(2, 2)),
    }
    checkpoint = {"epoch": 3, "state_dict": state}
    found = read_ticket(save(tmp_path / "zeros.pth", checkpoint))
    assert {name: mask.tolist() for name, mask in found.masks.items()} == {
        "0.weight": [[True, False], [True, True]],
        "attention_mask": [[True, False], [True, True]],
    }
    assert found.weights["0.weight"].tolist() == [[1.5, 0.0], [2.0, 3.0]]
    assert found.weights.keys() == {"0.weight", "1.weight", "1.bias", "attention_mask"}


def test_a_mask_drops_nan(tmp_path):
    state = {
        "w_orig": torch.tensor([1.0, float("nan")]),
        "w_mask": torch.tensor([True, False]),
        "b": torch.tensor([2.0]),
    }
    assert read_ticket(save(tmp_path / "t.pt", state)).weights["w"].tolist() == [1.0, 0.0]
    state["b"][0] = float("nan")
    with pytest.raises(ModelError, match=r"t\.pt' cannot be used .* weight 'b' has NaN"):
        read_ticket(save(tmp_path / "t.pt", state))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_mask_of_other_values_is_named(tmp_path, ending):
    mask = torch.tensor([0.0, 1.0, 0.25])
    for state in (
        {"w_orig": torch.randn(3), "w_mask": mask},
        {"w_mask": mask, "v_mask": mask.round()},
    ):
        with pytest.raises(ModelError, match=r"the mask 'w_mask' holds .*, such as 0\.25"):
            read_ticket(save(tmp_path / f"soft{ending}", state))


class Danger:
    def __reduce__(self):
        return print, ("this ran",)


def test_nothing_in_a_file_runs_and_what_is_no_state_dict_is_told(tmp_path, capfd):
    whole = save(tmp_path / "whole.pt", {"w": torch.ones(5000)}).read_bytes()
    files = {
        "danger.pt": (pickle.dumps(Danger()), ModelError, "can run anything"),
        "module.pt": (pickle.dumps(torch.nn.Linear(2, 2)), ModelError, "can run anything"),
        **{
            f"cut{part}.pt": (whole[: len(whole) * part // 20], ModelError, "cut short")
            for part in range(1, 20)
        },
        "empty.pt": (b"", ModelError, "cut short|damaged"),
        "cut.safetensors": (b"\x10", ModelError, "cut short"),
        "masks.npz": (b"", UsageError, "no ticket by its name"),
    }
    for name, (content, kind, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=message):
            read_ticket(tmp_path / name)
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"w": torch.ones(2), "epoch": 3}, tmp_path / "mixed.pt")
    for name, message in (
        ("list.pt", "holds a list"),
        ("mixed.pt", "'epoch' in .* is no dense tensor, but a int"),
        ("none.pt", "No such file"),
    ):
        with pytest.raises(UsageError, match=message):
            read_ticket(tmp_path / name)
    for file in (save(tmp_path / f"nothing{each}", {}) for each in ENDINGS):
        with pytest.raises(ModelError, match="it holds no tensor"):
            read_ticket(file)
    assert "this ran" not in capfd.readouterr().out
