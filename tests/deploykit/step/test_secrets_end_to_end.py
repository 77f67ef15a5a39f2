"""Secrets that are planted where a pipeline has them come out of no file and no stream of `deploykit run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

VALUE = "s3cr3t-Zebra&Quagga"
SERVICE = "ghp_0123456789abcdefghijABCDEFGHIJ"
PASSWORD = "opensesame9"  # noqa: S105 - that is what it is about
RECIPE = """
name = "step"
gates = ["parameters <= {limit} * baseline", "ratio <= 100"]
[inputs]
model = "{model}"
[output]
folder = "build"
[optimize]
profile = false
[measure]
duration = 0.02
warmup = 0.0
rebuilds = 1
[accuracy]
metric = "evaluate:good"
"""
METRIC = """
import logging, os, sys

def good(model):
    print("token", os.environ["HUB_TOKEN"])
    logging.getLogger("deploykit.metric").warning("sent %s", os.environ["HUB_TOKEN"])
    {more}
    return 1.0
"""


@pytest.fixture
def project(network, tmp_path):
    # The value is in the name of the folder, and that of a service's token in the name of the model.
    folder = tmp_path / VALUE
    folder.mkdir()
    shutil.copy(network, folder / f"{SERVICE}.onnx")
    return folder


def run(folder, *arguments, limit=0.9, model=f"{SERVICE}.onnx", more="pass"):
    text = RECIPE.format(limit=limit, model=model)
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    (folder / "evaluate.py").write_text(METRIC.replace("{more}", more), encoding="utf-8")
    return subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", "deploykit", "run", str(folder / "recipe.toml"), *arguments],
        env={**os.environ, "HUB_TOKEN": VALUE, "COLUMNS": "60"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def search(ran, *files):
    """Where the secrets are to be found, whole or in half."""
    texts = {"stdout": ran.stdout, "stderr": ran.stderr}
    texts |= {file.name: file.read_text(encoding="utf-8") for file in files}
    planted = (VALUE, VALUE.replace("&", "&amp;"), SERVICE, PASSWORD)
    joined = {name: "".join(text.split()) for name, text in texts.items()}
    return [(name, each) for name, text in joined.items() for each in planted if each in text]


@pytest.mark.parametrize(("limit", "more"), [(0.9, "-vv"), (0.1, "--json")])
def test_no_secret_is_in_any_file_or_stream(project, limit, more):
    log = project.parent / "run.log"
    ran = run(
        *(project, more, "--log-file", str(log), "--summary", str(project / "page.md")),
        limit=limit,
    )
    assert ran.returncode == (0 if limit == 0.9 else 1), ran.stderr
    written = [file for file in (project / "build").iterdir() if file.suffix != ".onnx"]
    names = {"junit.xml", "manifest.json", "recipe.toml", "report.html", "report.json"}
    assert {file.name for file in written} == names | {"summary.md"}
    assert search(ran, log, project / "page.md", *written) == []
    assert "***" in (project / "build" / "report.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"model": "none.onnx"}, 2),
        (
            {
                "more": "raise RuntimeError('https://me:opensesame9@hub/' + os.environ['HUB_TOKEN'])"
            },
            2,
        ),
    ],
)
def test_no_secret_is_in_an_error(project, options, code):
    ran = run(project, "-vv", **options)
    assert ran.returncode == code
    assert "Error: " in ran.stderr
    assert search(ran) == []


def test_a_password_in_an_address_is_refused_and_not_repeated(project):
    ran = run(project, "--on", f"ssh://me:{PASSWORD}@board")
    assert ran.returncode == 2
    assert "password" in ran.stderr
    assert search(ran) == []
    assert not (project / "build").exists()
