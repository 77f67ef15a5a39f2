"""Single files are read and written without their weights, and nobody can tell the difference."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import DecodeError

from deploykit import model_io, one_file
from deploykit.runtimes.onnxruntime import Session
from tests.deploykit.conftest import make_network


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(one_file, "LARGE_BYTES", 64)


def write(path, *, shift=0):
    """The small network, its weights `shift` bytes further on."""
    model = make_network(batch=1)
    model.producer_name = "p" * shift
    path.write_bytes(model.SerializeToString())
    return path


def test_large_weights_stay_in_the_file_and_are_written_as_they_were(tmp_path):
    path = write(tmp_path / "model.onnx")
    model = one_file.load(path)
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert {name for name, each in held.items() if isinstance(each, ir.ExternalTensor)} == {
        *("w1", "b1", "w2")
    }, "b2 has 16 bytes"
    whole = ir.load(path)
    for name, value in whole.graph.initializers.items():
        np.testing.assert_array_equal(held[name].numpy(), value.const_value.numpy())
    model_io.save(model, tmp_path / "again.onnx", external=False, sources=[path])
    expected = ir.serde.serialize_model(whole).SerializeToString()
    assert (tmp_path / "again.onnx").read_bytes() == expected
    one_file.save(one_file.load(path), tmp_path / "third.onnx")
    assert (tmp_path / "third.onnx").read_bytes() == expected


@pytest.mark.parametrize("shift", range(4))
def test_the_runtime_computes_the_same_wherever_weights_lie(tmp_path, shift):
    path = write(tmp_path / "model.onnx", shift=shift)
    feeds = {"x": np.random.default_rng(shift).standard_normal((1, 256)).astype(np.float32)}
    for optimization in ("none", "all"):
        with Session(path, optimization=optimization) as session:
            mapped = session.run(feeds)["y"]
        with Session(path.read_bytes(), optimization=optimization) as session:
            np.testing.assert_array_equal(mapped, session.run(feeds)["y"])


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_model_may_be_reached_through_a_link(tmp_path, link):
    path = write(tmp_path / "model.onnx")
    (tmp_path / "links").mkdir()
    other = tmp_path / "links" / "other.onnx"
    getattr(other, link)(path)
    source = model_io.load(other)
    assert source.sha256 == model_io.load(path, hash_ahead=True).sha256
    assert not source.is_external
    weight = source.model.graph.initializers["w1"].const_value
    assert isinstance(weight, ir.ExternalTensor)
    np.testing.assert_array_equal(
        weight.numpy(), ir.load(path).graph.initializers["w1"].const_value.numpy()
    )
    with Session(other, optimization="none") as session:
        assert session.run({"x": np.ones((1, 256), np.float32)})["y"].shape == (1, 4)


def test_a_damaged_file_is_read_as_protobuf_reads_it(tmp_path):
    whole = write(tmp_path / "model.onnx").read_bytes()
    dice = random.Random(0)  # noqa: S311 - damage, not secrets
    path = tmp_path / "damaged.onnx"
    outlined = refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        # Mostly where structure is: weights are most of the file, and any bytes are weights.
        for _ in range(dice.randint(1, 3)):
            end = dice.choice([200, 200, len(damaged)])
            damaged[dice.randrange(end) if end == 200 else -dice.randrange(1, 400)] = (
                dice.randrange(256)
            )
        path.write_bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])])
        try:
            expected = onnx.load_model_from_string(path.read_bytes())
        except DecodeError:
            with pytest.raises(DecodeError):
                one_file.parse(path)
            refused += 1
            continue
        found = one_file.parse(path)
        outlined += one_file.outline(path, "") is not None
        for mine in found.graph.initializer:
            if one_file.is_in_model(mine, path):
                entry = {each.key: each.value for each in mine.external_data}
                start, length = int(entry["offset"]), int(entry["length"])
                mine.raw_data = path.read_bytes()[start : start + length]
                mine.ClearField("external_data")
                mine.ClearField("data_location")
        assert found == expected
    assert outlined > 50
    assert refused > 50
