"""Write the zeroed ONNX models on which removal is compared, and what is reachable on each.

    python -m benchmarks.zeroed CACHE [--only model,...]

Half of the channels of every prunable group are zeroed, in two variants:

- clean: weights and bias of the filter, and scale and shift of its BatchNormalization, are zero:
  the channel is exactly 0;
- wonly: only the weights are zero, as an iterative magnitude pruning mask leaves them; bias and
  BatchNormalization make the channel a constant other than 0.

The weights are rescaled after export (see calibrate.py): as they come, the outputs of half of
these models move by less than a millionth between inputs, and would agree with anything.

reach.json says what is reachable, where torch-pruning can do it: the same groups cut out of the
PyTorch module leave `reach` of the parameters, in `seconds`, and change the outputs by `change`
of their largest magnitude. Where torch-pruning fails (split halves, channel shuffles) the
channels are chosen by hand.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx
import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.calibrate import calibrate
from benchmarks.reference import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MODELS", "VARIANTS", "Variant", "parameters", "read_reach", "write"]

Variant: TypeAlias = Literal["clean", "wonly"]

MODELS = zoo.NAMES[:12]
VARIANTS: tuple[Variant, ...] = ("clean", "wonly")

_BY_HAND = ("yolo_like", "shufflenet_v2")  # torch-pruning 1.6.1 fails on both


def write(name: str, variant: Variant, folder: Path) -> Path:
    """Write one zeroed model and its row of reach.json, unless they are there already.

    Raises:
        KeyError: no such model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{variant}.onnx"
    table = folder / "reach.json"
    if path.exists() and path.stem in read_reach(folder):
        return path
    row: dict[str, float] = {}
    if name in _BY_HAND:
        module, example = _zero_by_hand(name, variant)
    else:
        start = time.perf_counter()
        module, physical, example = _zero_by_groups(name, variant)
        row["seconds"] = round(time.perf_counter() - start, 2)
        with torch.no_grad():
            wanted, got = module(example), physical(example)
        row["change"] = round(float((wanted - got).abs().max() / wanted.abs().max()), 6)
        twin = path.with_name(f"{path.stem}_twin.onnx")
        _export(physical, example, twin)
        row["left"] = parameters(twin)
        twin.unlink()
    _export(module, example, path, calibrated=True)
    row["parameters"] = parameters(path)
    if "left" in row:
        row["reach"] = round(row.pop("left") / row["parameters"], 4)
    rows = {**read_reach(folder), path.stem: row}
    table.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    return path


def read_reach(folder: Path) -> dict[str, dict[str, float]]:
    """The rows of reach.json, by MODEL_VARIANT; none if it is not there."""
    table = folder / "reach.json"
    rows: dict[str, dict[str, float]] = json.loads(table.read_text()) if table.exists() else {}
    return rows


def parameters(path: Path) -> int:
    """Elements of all initializers and Constant nodes."""
    graph = onnx.load(path).graph
    return sum(math.prod(tensor.dims) for tensor in graph.initializer) + sum(
        math.prod(attribute.t.dims)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    )


def _export(
    module: nn.Module, example: Tensor, path: Path, *, calibrated: bool = False
) -> None:
    partial = path.with_suffix(".part")  # a file that is there is a whole one
    with torch.no_grad():
        torch.onnx.export(module, (example,), partial, dynamo=False, opset_version=17)
    if calibrated:
        model = onnx.load(partial)
        specs = {value.name: (np.float32, list(example.shape)) for value in model.graph.input}
        calibrate(model, draw(specs, seed=1, count=8))
        onnx.save(model, partial)
    partial.replace(path)


def _zero_by_hand(name: str, variant: Variant) -> tuple[nn.Module, Tensor]:
    """Zero half of the hidden channels of each block, equally in both halves of a split."""
    module, example = zoo.build(name)
    generator = torch.Generator().manual_seed(0)

    def half(channels: int) -> Tensor:
        return torch.randperm(channels, generator=generator)[: channels // 2]

    def zero(conv: Any, norm: Any, dropped: Tensor) -> None:
        conv.weight[dropped] = 0
        if variant == "clean":
            norm.weight[dropped] = 0
            norm.bias[dropped] = 0

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, zoo.C2f):
                width = part.enter[0].out_channels // 2
                first, second = half(width), half(width)
                zero(part.enter[0], part.enter[1], torch.cat([first, second + width]))
                for inner, outer in part.middle:  # type: ignore[misc]  # a ModuleList of pairs
                    zero(inner[0], inner[1], half(width))
                    # what is added to the second half of the split dies with it
                    zero(outer[0], outer[1], second)
            elif name == "shufflenet_v2" and type(part).__name__ == "InvertedResidual":
                branch: Any = part.branch2
                dropped = half(branch[0].out_channels)
                zero(branch[0], branch[1], dropped)
                zero(branch[3], branch[4], dropped)
    return module, example


def _zero_by_groups(name: str, variant: Variant) -> tuple[nn.Module, nn.Module, Tensor]:
    """Zero the half of each group of torch-pruning that has the smallest norm; and cut it."""
    module, example = zoo.build(name)
    physical = copy.deepcopy(module)
    pruner = tp.pruner.MagnitudePruner(
        module,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[zoo.classifier(module)],
    )
    names = {part: key for key, part in module.named_modules()}
    groups: list[list[tuple[str | None, str, list[int]]]] = [
        [(names.get(d.target.module), d.handler.__name__, list(i)) for d, i in group]
        for group in pruner.step(interactive=True)
        # the statistics of a LayerNormalization run over the channels: cutting changes them
        if not any(isinstance(d.target.module, nn.LayerNorm) for d, _ in group)
    ]
    _zero_groups(module, groups, variant)
    _cut_groups(physical, groups, example)
    return module, physical, example


def _zero_groups(
    module: nn.Module,
    groups: Sequence[Sequence[tuple[str | None, str, list[int]]]],
    variant: Variant,
) -> None:
    parts: dict[str, Any] = dict(module.named_modules())
    with torch.no_grad():
        for key, handler, dropped in (member for group in groups for member in group):
            if key is None:
                continue
            part = parts[key]
            if "out" in handler and isinstance(
                part, nn.Conv2d | nn.Linear | nn.ConvTranspose2d
            ):
                transposed = isinstance(part, nn.ConvTranspose2d)
                rows = part.weight.transpose(0, 1) if transposed else part.weight
                rows[dropped] = 0
                if part.bias is not None and variant == "clean":
                    part.bias[dropped] = 0
            elif isinstance(part, nn.BatchNorm2d) and variant == "clean":
                part.weight[dropped] = 0
                part.bias[dropped] = 0


def _cut_groups(
    module: nn.Module,
    groups: Sequence[Sequence[tuple[str | None, str, list[int]]]],
    example: Tensor,
) -> None:
    graph = tp.DependencyGraph().build_dependency(module, example)
    parts = dict(module.named_modules())
    for group in groups:
        key, handler, dropped = group[0]
        assert key is not None, "the root of a group is a layer"
        part = parts[key]
        if isinstance(part, nn.Linear):
            cut = tp.prune_linear_out_channels
        elif "depthwise" in handler:
            cut = tp.prune_depthwise_conv_out_channels
        else:
            cut = tp.prune_conv_out_channels
        graph.get_pruning_group(part, cut, dropped).prune()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder for the models and reach.json")
    parser.add_argument("--only", default=",".join(MODELS), help="models, comma-separated")
    options = parser.parse_args(arguments)
    for name in options.only.split(","):
        for variant in VARIANTS:
            print(write(name, variant, options.cache), flush=True)


if __name__ == "__main__":
    main()
