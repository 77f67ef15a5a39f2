"""What Python code may rely on: the public names, their signatures, and where they are documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit

ROOT = Path(__file__).resolve().parents[2]

# Whoever changes this changes what users rely on: say so in CHANGELOG.md.
PUBLIC = [
    "AccuracyRecord",
    "BaselineComparison",
    "DeploykitError",
    "GateFailed",
    "GateResult",
    "ModelError",
    "PassFailed",
    "RuntimeUnavailable",
    "StageRecord",
    "StepRecipe",
    "StepResult",
    "UnsupportedModel",
    "UsageError",
    "__version__",
    "run",
]
RUN = (
    "(recipe: 'str | os.PathLike[str]', *, baseline: 'str | os.PathLike[str] | None' = None, settings: 'Sequence[str]' = (), "
    "on: 'Sequence[str]' = (), cache: 'str | os.PathLike[str] | None' = None, use_cache: 'bool' = True, "
    "force: 'bool' = False, explain: 'bool' = False, progress: 'Progress | None' = None) -> 'StepResult'"
)
RESULT = {
    *("recipe", "stages", "gates", "report", "profiles", "accuracy", "baseline", "versions"),
    *(
        "warnings",
        "is_new",
        "elapsed_s",
        "schema_version",
        "ok",
        "verdict",
        "exit_code",
        "model",
    ),
}


def test_the_public_names_are_these():
    assert deploykit.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(deploykit))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_every_public_name_is_there_and_documented(name):
    found = getattr(deploykit, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)
    assert f"`{name}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_called_and_what_comes_back_stay_as_they_are():
    assert str(inspect.signature(deploykit.run)) == RUN
    fields = set(deploykit.StepResult.__dataclass_fields__)
    properties = {
        name
        for name, value in vars(deploykit.StepResult).items()
        if isinstance(value, property)
    }
    assert fields | properties == RESULT


def test_what_there_is_not_is_no_attribute():
    with pytest.raises(AttributeError, match="'deploykit' has no attribute 'walk'"):
        deploykit.walk  # noqa: B018 - that is what is tried


def test_the_package_says_that_it_has_types():
    assert (Path(deploykit.__file__).parent / "py.typed").is_file()


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, deploykit\n"
        "deploykit.StepResult, deploykit.UsageError\n"
        "print([name for name in ('numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'rich', 'torch') if name in sys.modules])"
    )
    ran = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
