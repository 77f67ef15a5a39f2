"""Trials of what may crash, each in a process of its own: `python -m deploykit.runtimes.trials NAME`.

Prints one JSON document a line: what begins, what became of it, and facts that were met on the way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from deploykit.errors import DeploykitError, ModelError

if TYPE_CHECKING:
    from deploykit.runtimes.engines import Built
    from deploykit.runtimes.tensorrt_family import Api

__all__ = ["main"]

Result = TypeVar("Result")

SHAPE = (1, 8, 6, 6)


def main(arguments: Sequence[str]) -> int:
    """Carry a trial out; returns the exit code."""
    trials = {"cuda": try_cuda, "torch": try_torch}
    if arguments and arguments[0] in trials:
        trials[arguments[0]]()
    elif arguments:
        try_engines(arguments[0], arguments[1:])
    else:
        sys.stderr.write("usage: python -m deploykit.runtimes.trials NAME\n")
        return 2
    return 0


def try_cuda() -> None:
    """Whether the driver has a GPU."""
    from deploykit.runtimes.cuda import Gpu

    device = _step("device", lambda: Gpu().device, str)
    if device is not None:
        _fact("device", str(device))


def try_torch() -> None:
    """Whether PyTorch multiplies on a GPU, and with sparse weights."""
    from deploykit.runtimes import torch_products

    torch = _step(
        "import", torch_products.load, lambda module: f"torch {module.__version__} is imported"
    )
    if torch is None:
        return
    _fact("version", str(torch.__version__))
    device = _step("device", lambda: torch_products.find_device(torch), str)
    if device is None:
        return
    _fact("device", device)
    _step(
        "sparse",
        lambda: torch_products.try_sparse(torch),
        lambda backend: f"a 2:4 weight was multiplied through {backend}, with the right result",
    )


def try_engines(name: str, arguments: Sequence[str]) -> None:
    """Whether a package of the TensorRT family parses, builds and runs a small model.

    Args:
        name: the family.
        arguments: "run" where there is a GPU to run it on.
    """
    from deploykit.runtimes.engines import build_engine, make_builder, make_logger
    from deploykit.runtimes.engines import parse as parse_model
    from deploykit.runtimes.tensorrt_family import FAMILY, load

    model, feeds, expected = _small_model()
    api = _step("import", lambda: load(FAMILY[name]), lambda api: f"{api.about} is imported")
    if api is None:
        return
    _fact("version", api.version)

    def parsed() -> int:
        logger = make_logger(api, [])
        network = make_builder(api, logger, []).create_network(api.network_flags)
        parse_model(api, network, logger, [], model)
        return int(network.num_inputs)

    if _step("parse", parsed, lambda _: "a small convolution was parsed") is None:
        return
    built = _step(
        "build",
        lambda: build_engine(api, model),
        lambda built: f"an engine of {len(built.engine)} bytes was built of it",
    )
    if built is not None and "run" in arguments:
        device = _step(
            "run",
            lambda: _check_run(api, built, feeds, expected),
            lambda where: f"it ran on {where}, with the right result",
        )
        if device is not None:
            _fact("device", device)


def _check_run(
    api: Api, built: Built, feeds: dict[str, np.ndarray], expected: np.ndarray
) -> str:
    from deploykit.runtimes.cuda import Gpu
    from deploykit.runtimes.engine_session import EngineSession

    gpu = Gpu()
    session = EngineSession(api, built, gpu, {"x": SHAPE})
    (found,) = session.run(None, feeds)
    session.close()
    # A product of eight numbers in TF32 is good to three digits.
    if not np.allclose(found, expected, atol=1e-2 * float(np.abs(expected).max())):
        msg = f"the small model's result is wrong on {gpu.device}: off by {np.abs(found - expected).max():.3g}"
        raise ModelError(msg)
    return str(gpu.device)


def _small_model() -> tuple[bytes, dict[str, np.ndarray], np.ndarray]:
    """A convolution of one pixel, as ONNX; an input of it and the output."""
    import onnx_ir as ir

    from passes import weights

    dice = np.random.default_rng(0)
    weight = dice.standard_normal((16, SHAPE[1], 1, 1)).astype(np.float32)
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 17}, name="trial")
    node = ir.node("Conv", [x, weights.new_initializer(graph, "w", weight)], name="conv")
    graph.append(node)
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape((1, 16, *SHAPE[2:])), x.type
    graph.outputs.append(y)
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=8)).SerializeToString()
    data = dice.standard_normal(SHAPE).astype(np.float32)
    return model, {"x": data}, np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], data)


def _step(name: str, work: Callable[[], Result], say: Callable[[Result], str]) -> Result | None:
    """Do something, and print what became of it; None if it failed."""
    _print({"begins": name})
    try:
        result = work()
    except DeploykitError as error:
        _print({"step": name, "holds": False, "reason": str(error)})
        return None
    except Exception as error:  # noqa: BLE001 - whatever a library raises is why it cannot be used
        said = " ".join(f"{type(error).__name__}: {error}".split())
        _print(
            {
                "step": name,
                "holds": False,
                "reason": f"in a trial, at the step '{name}': {said}",
            }
        )
        return None
    _print({"step": name, "holds": True, "reason": say(result)})
    return result


def _fact(name: str, value: str) -> None:
    _print({"fact": name, "value": value})


def _print(document: dict[str, object]) -> None:
    # A library may have left half a line on stdout.
    sys.stdout.write("\n" + json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
