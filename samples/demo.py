"""`make demo`: three acts, a few minutes, one download of 15 MB.

1. The whole story on real data: find a ticket on handwritten digits, once with whole channels and once with dense blocks;
   export it, make it fast, measure it. The reports show the masks as they were found and with their structure.
2. A network shaped like MobileNetV2, pruned at 58 %: 65 % of every layer's channels stay, which are odd counts. Cut as
   they are, such counts are *slower* than the dense network; deploykit finds the form that is faster, and proves it.
3. The text recogniser of PP-OCRv4, as its package ships it: some of its channels are dead. It must read the same
   rendered text before and after.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo"
CACHE = OUT / "cache"

TASK = "deploykit.finder.tasks:digits"
WHEEL = "rapidocr-onnxruntime==1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
MODEL_SHA256 = "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b"
TEXTS = ("Zeros make nothing faster", "19 dead channels", "same text before and after")
HEIGHT, WIDTH = 48, 480


def main() -> None:
    """Run all acts and print where their reports are."""
    OUT.mkdir(exist_ok=True)
    reports = [*act_one(), act_two(), act_three()]
    print("\nReports, for a browser:")
    for report in reports:
        print(report)


def act_one() -> list[Path]:
    """From a task to a faster model, with the accuracy at either end."""
    print("== Act 1: a ticket on handwritten digits, found, exported and made fast ==\n")
    reports = []
    for structure in ("refill", "regroup"):
        found = OUT / f"digits-{structure}"
        # A folder with a finished search would answer at once.
        shutil.rmtree(found, ignore_errors=True)
        options = ["--structure", structure, "--rounds", "3"]
        deploykit("find", TASK, "-o", str(found.relative_to(ROOT)), *options)
        ticket = str((found / "ticket.safetensors").relative_to(ROOT))
        out = OUT / f"digits-{structure}-model"
        # Channels are cut out, which is worth measuring; blocks are drawn, and computed as they are.
        more = ["--shape", "input:64x1x8x8"] if structure == "refill" else ["--no-profile"]
        report = optimize(TASK, out, "--ticket", ticket, *more)
        print(
            f"\n{structure}: {score(out / 'model.onnx'):.2f} % of 360 unseen digits are read right by "
            f"the optimized model, in ONNX Runtime; verdict: {report['verdict']}.\n"
        )
        reports.append(out / "report.html")
    return reports


def score(model: Path) -> float:
    """Percent of the test digits that a model reads right."""
    import onnxruntime

    from deploykit.finder.tasks import digits

    images, classes = digits.data().test
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": images.numpy()})
    return 100.0 * float((scores.argmax(axis=1) == classes.numpy()).mean())


def act_two() -> Path:
    """A pruned MobileNetV2, whose odd channel counts have to be won back."""
    sys.path.insert(0, str(ROOT))  # the networks of the benchmarks are no part of the package
    import onnx_ir as ir

    from benchmarks import nets

    print("== Act 2: MobileNetV2 (224 x 224) pruned at 58 %, to odd channel counts ==\n")
    source = OUT / "mobilenetv2.onnx"
    ir.save(nets.zeroed("mobilenetv2", keep=nets.uniform(0.58)), source)
    result = optimize(source, OUT / "mobilenetv2")
    ratios = {row["name"]: row["ratio"] for row in result["candidates"]}
    ratio = result["profile"]["ratio"]
    print(
        f"\nThe dead channels cut as they are: {ratios['as is']:.2f} of the dense time."
        f"\nWhat deploykit chose:              {ratio['median']:.2f} of the dense time, "
        f"95 % interval {ratio['ci95'][0]:.3f} to {ratio['ci95'][1]:.3f}, same function on "
        f"{result['validation']['inputs']} inputs."
    )
    return OUT / "mobilenetv2" / "report.html"


def act_three() -> Path:
    """A text recogniser as it is shipped, which must read the same."""
    print("\n== Act 3: PP-OCRv4 text recognition, as its package ships it ==\n")
    source = fetch_recogniser()
    images = {text: render(text) for text in TEXTS}
    inputs = OUT / "rendered.npz"
    # One axis more than the model's input has: several inputs of batch 1.
    np.savez(inputs, x=np.stack([image[np.newaxis] for image in images.values()]))
    relative = str(inputs.relative_to(ROOT))
    optimize(source, OUT / "ppocr", "--inputs", relative, "--shape", f"x:1x3x{HEIGHT}x{WIDTH}")
    before, after = Reader(source), Reader(OUT / "ppocr" / "model.onnx")
    print()
    for text, image in images.items():
        one, two = before.read(image), after.read(image)
        print(f"rendered: {text}\n  before: {one}\n   after: {two}\n")
        if one != two:
            sys.exit(
                "The optimized model reads something else: this is a bug, please report it."
            )
    return OUT / "ppocr" / "report.html"


def optimize(source: Path | str, out: Path, *options: str) -> dict:
    """Run `deploykit optimize` as a user would, and return its report."""
    name = source if isinstance(source, str) else str(source.relative_to(ROOT))
    deploykit("optimize", name, "-o", str(out.relative_to(ROOT)), "--force", *options)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def deploykit(*arguments: str) -> None:
    """Run a command as a user would."""
    print(f"$ deploykit {' '.join(arguments)}\n", flush=True)
    subprocess.run([sys.executable, "-m", "deploykit", *arguments], check=True, cwd=ROOT)


def fetch_recogniser() -> Path:
    """The model file, out of its wheel; downloaded once."""
    path = CACHE / "ch_PP-OCRv4_rec_infer.onnx"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        subprocess.run([*pip, "-d", str(CACHE), WHEEL], check=True)
        with zipfile.ZipFile(next(CACHE.glob("rapidocr_onnxruntime-*.whl"))) as wheel:
            content = wheel.read(MEMBER)
        path.write_bytes(content)
    if hashlib.sha256(path.read_bytes()).hexdigest() != MODEL_SHA256:
        path.unlink()
        sys.exit(
            f"{path} is not the file that this demo was written for; it was deleted, run again."
        )
    return path


def render(text: str) -> np.ndarray:
    """Black text on white, as the recogniser wants it: float32, shape `(3, 48, 480)`, -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=34)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (int(right - left) + 20, HEIGHT), "white")
    ImageDraw.Draw(image).text(
        (10 - left, (HEIGHT - (bottom - top)) / 2 - top), text, "black", font
    )
    image = image.resize((min(WIDTH, image.width), HEIGHT))
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas.paste(image)
    pixels = np.asarray(canvas, np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class Reader:
    """Reads text in an image with a recogniser file; its alphabet is in the file's metadata."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        characters = self.session.get_modelmeta().custom_metadata_map["character"].splitlines()
        # Class 0 is "nothing here", the last one a space.
        self.alphabet = ["", *characters, " "]

    def read(self, image: np.ndarray) -> str:
        """The most likely character of every column, repetitions merged."""
        (scores,) = self.session.run(None, {"x": image[np.newaxis]})
        best = scores[0].argmax(axis=1)
        kept = [
            index
            for index, previous in zip(best, [-1, *best], strict=False)
            if index != previous
        ]
        return "".join(self.alphabet[index] for index in kept)


if __name__ == "__main__":
    main()
