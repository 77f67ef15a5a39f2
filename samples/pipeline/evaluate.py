"""How good a model is at its task: functions that `deploykit run` calls with the path of a model."""

from __future__ import annotations

import numpy as np
import onnxruntime

TEXTS = ("Zeros make nothing faster", "Gates that pass", "and gates that fail")


def digits(model: str) -> float:
    """Share of 360 unseen digits that are read right."""
    from deploykit.finder.tasks import digits

    images, classes = digits.data().test
    (scores,) = _session(model).run(None, {"input": images.numpy()})
    return float((scores.argmax(axis=1) == classes.numpy()).mean())


def lines_read(model: str, data: str) -> float:
    """Share of the characters of some rendered lines that are read right, place by place."""
    session = _session(model)
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    # Class 0 is "nothing here", the last one a space.
    alphabet = ["", *characters, " "]
    right = 0
    for text, image in zip(TEXTS, np.load(data)["x"], strict=True):
        (scores,) = session.run(None, {"x": image})
        best = scores[0].argmax(axis=1)
        is_new = np.append(True, best[1:] != best[:-1])
        read = "".join(alphabet[index] for index in best[is_new])
        right += sum(one == other for one, other in zip(read, text, strict=False))
    return right / sum(map(len, TEXTS))


def _session(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
