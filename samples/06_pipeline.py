"""A step of a pipeline from Python: a recipe, its gates, and what a script does with the answer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
from network import make_network

import deploykit

RECIPE = """
gates = ["ratio <= 0.95", "max_error <= 1e-3", "parameters <= 0.8 * baseline"]

[inputs]
model = "pruned.onnx"

[output]
folder = "build"

[measure]
duration = 0.3
"""

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    ir.save(make_network(), folder / "pruned.onnx")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")

    result = deploykit.run(folder / "recipe.toml")
    for gate in result.gates:
        print(f"{'met' if gate.passed else 'MISSED':6}  {gate.gate.text:30}  {gate.figure:.4g}")
    print(f"{result.verdict}: {sorted(file.name for file in (folder / 'build').iterdir())}")

    # Nothing has changed: nothing is done, and the answer is the same.
    again = deploykit.run(folder / "recipe.toml")
    print(f"again: {', '.join(f'{stage.name} {stage.state}' for stage in again.stages)}")

    # A gate that nobody can meet: an answer, and no exception. The result folder says why, and holds no model.
    strict = (folder / "recipe.toml").read_text(encoding="utf-8").replace("0.95", "0.01")
    (folder / "recipe.toml").write_text(strict, encoding="utf-8")
    refused = deploykit.run(folder / "recipe.toml")
    missed = [gate.gate.text for gate in refused.gates if not gate.passed]
    print(f"{refused.verdict}: {', '.join(missed)}; model: {refused.model}")
