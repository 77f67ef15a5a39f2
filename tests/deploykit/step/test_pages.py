"""What CI systems show, outside of the result folder: it is there whatever a step comes to, and says so."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import xmlschema

SCHEMA = Path(__file__).with_name("junit.xsd")


def read(path):
    xmlschema.XMLSchema(SCHEMA).validate(path)
    return ET.parse(path).getroot()  # noqa: S314 - we wrote it


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_end_of_a_step_has_a_junit_xml_and_a_summary(step, run, monkeypatch):
    junit, page = step.folder / "ci" / "junit.xml", step.folder / "ci" / "page.md"
    pages = ("--junit", junit, "--summary", page)
    assert run("run", step.recipe, *pages).exit_code == 0
    assert [read(junit).get(name) for name in ("failures", "errors")] == ["0", "0"]
    assert [path.name for path in sorted(junit.parent.iterdir())] == ["junit.xml", "page.md"]

    step.edit("0.9 * baseline", "0.1 * baseline")
    assert run("run", step.recipe, *pages).exit_code == 1
    assert [read(junit).get(name) for name in ("failures", "errors")] == ["1", "0"]

    monkeypatch.setenv("DEPLOY_TOKEN", "correcthorse")
    step.edit("    import numpy as np", "    raise KeyError('correcthorse')", "evaluate.py")
    before = content(step.out)
    found = run("run", step.recipe, *pages)
    assert found.exit_code == 2
    root = read(junit)
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["1", "0", "1"]
    error = root.find("testsuite/testcase/error")
    assert error.get("type") == "UsageError"
    assert "Error: " + error.text in " ".join(found.stderr.split())
    assert "failed on the original model: KeyError" in error.get("message")
    assert content(step.out) == before, "what was there stays"
    heads = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert heads == ["## small: passed", "## small: failed", "## recipe: no result"]
    assert "correcthorse" not in junit.read_text() + page.read_text()

    step.recipe.write_text("[", encoding="utf-8")
    assert run("run", step.recipe, *pages).exit_code == 2
    assert "recipe.toml:1: this is not TOML" in read(junit).find(".//error").text


def test_explaining_writes_neither(step, run):
    junit = step.folder / "junit.xml"
    assert run("run", step.recipe, "--explain", "--junit", junit).exit_code == 0
    assert not junit.exists()


@pytest.mark.parametrize("option", ["--junit", "--summary"])
@pytest.mark.parametrize(
    ("place", "why"), [("out/page", "lies in the result folder"), ("notes.txt/page", "cannot")]
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(step, run, option, place, why):
    found = run("run", step.recipe, option, step.folder / place)
    assert found.exit_code == 2
    assert why in " ".join(found.stderr.split())
    assert option in found.stderr
    assert found.stdout == ""
    assert not (step.out / "report.json").exists()
    assert not (step.folder / ".deploykit").exists()
