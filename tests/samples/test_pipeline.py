"""The samples of `samples/pipeline`: each is run, or checked by what will read it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS
from deploykit.errors import GateFailed
from deploykit.step.recipe_file import read_recipe

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "pipeline"
BIN = Path(sys.executable).parent
WORKFLOW = SAMPLE / ".github" / "workflows" / "deploykit.yml"


def call(*command, cwd=SAMPLE, code=0, **environment):
    """Run a program of this environment."""
    ran = subprocess.run(  # noqa: S603 - ours
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path):
    """The sample as a user copies it."""
    folder = tmp_path / "project"
    ignored = shutil.ignore_patterns("build", "found", "models", ".deploykit", "__pycache__")
    shutil.copytree(SAMPLE, folder, ignore=ignored)
    return folder


@pytest.mark.torch
def test_dvc_does_nothing_the_second_time(project):
    pytest.importorskip("torch", reason="needs the extra 'torch'")
    if not (BIN / "dvc").exists():
        pytest.skip("dvc is not installed")
    call("git", "init", "-q", cwd=project)
    call("dvc", "init", "-q", cwd=project)
    call("dvc", "config", "core.analytics", "false", cwd=project)
    # A ticket of one round is found in half the time, and no gate of the sample can be counted on to hold for it, or on a
    # machine that tests are run on.
    stages = (project / "dvc.yaml").read_text(encoding="utf-8")
    shorter = stages.replace("--rounds 3", "--rounds 1 --epochs 1")
    recipe = (project / "recipe.toml").read_text(encoding="utf-8")
    looser = re.sub(
        r"^gates = \[.*?\]",
        'gates = ["max_error <= 1e-2"]',
        recipe,
        flags=re.DOTALL | re.MULTILINE,
    )
    looser = looser.replace("duration = 1.0", "duration = 0.1\nrebuilds = 1")
    assert shorter != stages
    assert "0.9" not in looser
    (project / "dvc.yaml").write_text(shorter, encoding="utf-8")
    (project / "recipe.toml").write_text(looser, encoding="utf-8")

    first = call("dvc", "repro", cwd=project)
    assert "Running stage 'deploy'" in first
    held = {path: path.stat().st_mtime_ns for path in (project / "build").rglob("*")}
    assert project / "build" / "digits" / "model.onnx" in held
    report = json.loads(
        (project / "build" / "digits" / "report.json").read_text(encoding="utf-8")
    )
    # It is measured with the sizes that the recipe gives.
    assert report["step"]["profiles"]["here"]["inputs"][0]["shape"] == [64, 1, 8, 8]
    second = call("dvc", "repro", cwd=project)
    assert "Running stage" not in second
    assert "Stage 'deploy' didn't change, skipping" in second
    assert {path: path.stat().st_mtime_ns for path in (project / "build").rglob("*")} == held
    call("dvc", "status", "-q", cwd=project)

    # Only the gate is another one: DVC begins the step again, which says no.
    strict = looser.replace("max_error <= 1e-2", "bytes <= 1 B")
    (project / "recipe.toml").write_text(strict, encoding="utf-8")
    third = call("dvc", "repro", cwd=project, code=255)
    assert "bytes <= 1 B" in third
    assert "Running stage 'ticket'" not in third


def test_the_workflow_is_one_that_github_takes(tmp_path):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    check = ("check-jsonschema", "--builtin-schema", "vendor.github-workflows")
    assert "ok" in call(*check, WORKFLOW)
    broken = WORKFLOW.read_text(encoding="utf-8").replace("runs-on:", "runs-at:")
    (tmp_path / "broken.yml").write_text(broken, encoding="utf-8")
    assert "runs-at" in call(*check, tmp_path / "broken.yml", code=1)


@pytest.mark.skipif(not (BIN / "zizmor").exists(), reason="zizmor is not installed")
def test_the_workflow_has_no_known_weakness(tmp_path):
    call("zizmor", "--offline", "--no-progress", WORKFLOW)
    # What it looks for, it finds.
    unsafe = WORKFLOW.read_text(encoding="utf-8")
    unsafe = re.sub(r"(actions/checkout)@\w+", r"\1@v5", unsafe)
    (tmp_path / "unsafe.yml").write_text(unsafe, encoding="utf-8")
    assert "unpinned-uses" in call("zizmor", "--offline", tmp_path / "unsafe.yml", code=14)


@pytest.mark.parametrize("file", [WORKFLOW, SAMPLE / "dvc.yaml", SAMPLE / "Containerfile"])
def test_every_command_of_a_sample_is_one_that_there_is(file):
    text = file.read_text(encoding="utf-8")
    found = re.findall(r"^(?![ ]*#).*?\bdeploykit ([a-z]+)(.*)$", text, re.MULTILINE)
    for command, rest in found:
        assert command in COMMANDS
        known = call(sys.executable, "-m", "deploykit", command, "--help")
        for option in re.findall(r"(?<![\w-])--[a-z-]+", rest):
            assert option in known, (command, option)
    assert found or file.name == "Containerfile"


def test_the_recipes_are_read(project):
    (project / "found").mkdir()
    (project / "found" / "ticket.safetensors").write_bytes(b"-")
    (project / "models").mkdir()
    for name in ("ch_PP-OCRv4_rec_infer.onnx", "rendered.npz"):
        (project / "models" / name).write_bytes(b"-")
    metrics = {
        name: {gate.metric for gate in read_recipe(project / name).gates}
        for name in ("recipe.toml", "ppocr.toml")
    }
    assert metrics["recipe.toml"] >= {"ratio", "p95", "max_error", "accuracy"}
    assert metrics["ppocr.toml"] >= {"ratio", "max_error", "accuracy"}


# -- the container file --------------------------------------------------------------------------


def instructions(path):
    """The instructions of a container file: joined lines, without comments."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    return [
        tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")
    ]


def test_the_container_file_is_carried_out(tmp_path, network):
    """Its steps in a folder in the place of an image: there is no container engine, and nothing is downloaded."""
    steps = instructions(SAMPLE / "Containerfile")
    assert [name for name, _ in steps] == [
        *("FROM", "ENV", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD")
    ]
    given = dict(steps)
    major, minor = re.search(r":(\d+)\.(\d+)", given["FROM"]).groups()
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">={major}.{minor}"' in declared
    image, context = tmp_path / "image", tmp_path / "context"
    # COPY wheels/ /opt/deploykit/: the wheel of this very code is built into the build context.
    source, target = shlex.split(given["COPY"])
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    call(*build, "--wheel-dir", context / source, ROOT)
    shutil.copytree(context / source, image / target.lstrip("/"))
    # RUN: pip of the image, which has nothing in it yet; what it would download is lent by this environment.
    venv.create(image / "venv", system_site_packages=False, symlinks=True)
    python = image / "venv" / "bin" / "python"
    (site,) = (image / "venv" / "lib").glob("python*/site-packages")
    lent = Path(next(path for path in sys.path if path.endswith("site-packages")))
    (wheel,) = (image / target.lstrip("/")).glob("*.whl")
    run = shlex.split(given["RUN"])
    assert run[:4] == ["python", "-m", "pip", "install"]
    assert run[-1] == f"{target}*.whl"
    pip = [sys.executable, "-m", "pip", "--python", python, *run[3:-1]]
    call(*pip, "--no-deps", "--no-index", wheel)
    (site / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    # ENTRYPOINT and CMD, with what ENV says and in WORKDIR, as another user would mount it.
    entry, arguments = json.loads(given["ENTRYPOINT"]), json.loads(given["CMD"])
    environment = dict(part.split("=", 1) for part in shlex.split(given["ENV"]))
    environment |= {"PATH": f"{image / 'venv' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    work = image / given["WORKDIR"].lstrip("/")
    work.mkdir()
    program = image / "venv" / "bin" / entry[0]
    told = call(program, *entry[1:], *arguments, cwd=work, **environment)
    assert told.startswith("Usage: deploykit run")
    where = "import deploykit; print(deploykit.__file__)"
    assert str(site) in call(python, "-c", where, cwd=work, **environment)

    shutil.copy(network, work / "model.onnx")
    recipe = (
        'gates = ["parameters <= 0.9 * baseline"]\ndevices = []\n[inputs]\nmodel = "model.onnx"\n'
        '[output]\nfolder = "build"\n[optimize]\nprofile = false\n'
    )
    (work / "recipe.toml").write_text(recipe, encoding="utf-8")
    call(program, *entry[1:], "recipe.toml", cwd=work, **environment)
    assert (work / "build" / "model.onnx").exists()
    (work / "recipe.toml").write_text(recipe.replace("0.9", "0.1"), encoding="utf-8")
    code = GateFailed.exit_code
    call(program, *entry[1:], "recipe.toml", cwd=work, code=code, **environment)
    assert not (work / "build" / "model.onnx").exists()
