"""The answer of a step as JUnit XML, which every CI system shows: a suite of stages, and one of gates for each device.

The form is the common one of Jenkins, GitLab and others: `testsuites`, `testsuite`, `testcase`, and in that `failure`,
`error` or `skipped`, and `system-out`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from deploykit.step.gates import value_text
from deploykit.step.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.step.records import BaselineRow, GateResult, StageRecord, StepResult

__all__ = ["error_to_xml", "limit_text", "to_xml"]

PUBLIC = ("deploykit.errors", "builtins")
"""Where errors are that users know."""

NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write (section 2.2 of its specification)."""


def to_xml(result: StepResult, secrets: Secrets | None = None) -> str:
    """The result as an XML document.

    Args:
        result: what came of a step.
        secrets: what must not be told. Default: what the environment holds.
    """
    shown = (secrets or Secrets()).cleaned(result)
    name = shown.recipe.name
    suites = [_suite(f"{name}.stages", [_of_stage(stage) for stage in shown.stages])]
    if shown.report is not None and shown.report.verdict != "planned":
        suites[0].append(_of_outputs(shown))
    devices = dict.fromkeys(row.device for row in shown.gates)
    for device in sorted(devices, key=lambda each: each or ""):
        cases = [_of_gate(row) for row in shown.gates if row.device == device]
        suites.append(_suite(f"{name}.{device or 'model'}", cases))
    if shown.baseline is not None and shown.baseline.rows:
        suites.append(_suite(f"{name}.baseline", [_of_row(row) for row in shown.baseline.rows]))
    return _document(name, suites, shown.elapsed_s)


def error_to_xml(
    name: str, error: Exception, elapsed_s: float, secrets: Secrets | None = None
) -> str:
    """What a step that came to no result has to say, as an XML document.

    Args:
        name: what the step is called.
        error: why there is none.
        elapsed_s: seconds that it took.
        secrets: what must not be told. Default: what the environment holds.
    """
    secrets = secrets or Secrets()
    name = secrets.redact(name)
    said = " ".join(secrets.redact(str(error)).split()) or type(error).__name__
    case = _case("deploykit run", elapsed_s)
    # The name of the error that is documented, and not of what is derived from it.
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ in PUBLIC]
    _add(case, "error", said, names[0], said)
    return _document(name, [_suite(f"{name}.run", [case])], elapsed_s)


def limit_text(row: GateResult) -> str:
    """What a figure was held against, as "<= 4 ms" or ">= 0.941 (0.98 of the original's 0.96)"."""
    said = f"{row.gate.operator} {value_text(row.limit, row.unit)}"
    if row.gate.is_relative:
        said += f" ({row.gate.limit:g} of the original's {value_text(row.baseline, row.unit)})"
    return said


def _document(name: str, suites: Sequence[ET.Element], elapsed_s: float) -> str:
    root = ET.Element("testsuites", {"name": _text(name)})
    for suite in suites:
        _count(suite)
        for case in suite:
            case.set("classname", suite.get("name", name))
        root.append(suite)
    # Schemas of readers know no count of what was skipped here.
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", f"{elapsed_s:.3f}")
    ET.indent(root, " ")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _of_stage(stage: StageRecord) -> ET.Element:
    seconds = stage.seconds if stage.state in {"ran", "failed"} else 0.0
    case = _case(stage.name, seconds)
    if stage.state == "failed":
        _add(case, "failure", stage.why or "it failed", "StageFailed", stage.why)
    elif stage.state == "stale":
        _add(case, "skipped", stage.why or "nothing was run")
    said = "an earlier result was taken" if stage.state == "cached" else stage.why
    _say(case, f"{said}\nkey {stage.key}".strip())
    return case


def _of_outputs(result: StepResult) -> ET.Element:
    """Whether the model computes the same, which no gate has to ask for."""
    case = _case("outputs", 0.0)
    report = result.report
    if report is not None and report.verdict == "differs":
        _add(case, "failure", report.reason, "OutputsDiffer", report.reason)
    elif report is not None:
        _say(case, report.reason)
    return case


def _of_gate(row: GateResult) -> ET.Element:
    case = _case(row.gate.text, 0.0)
    told = (
        f"{row.metric} is {value_text(row.figure, row.unit)}, and has to be {limit_text(row)}"
    )
    if row.figure is None:
        told = f"{row.metric} is not known, and has to be {limit_text(row)}"
    detail = told
    if row.ci95 is not None:
        lo, hi = (value_text(each, row.unit) for each in row.ci95)
        detail += f"\n95 % interval {lo} to {hi}"
    if row.note:
        detail += f"\n{row.note}"
    if row.passed:
        _say(case, detail)
    else:
        _add(case, "failure", told, "GateFailed", detail)
    return case


def _of_row(row: BaselineRow) -> ET.Element:
    case = _case(row.what if row.device is None else f"{row.what} on {row.device}", 0.0)
    if row.regressed:
        _add(case, "failure", row.said, "Regression", row.said)
    else:
        _say(case, row.said)
    return case


def _case(name: str, seconds: float) -> ET.Element:
    return ET.Element("testcase", {"name": _text(name), "time": f"{seconds:.3f}"})


def _suite(name: str, cases: Sequence[ET.Element]) -> ET.Element:
    suite = ET.Element("testsuite", {"name": _text(name)})
    suite.extend(cases)
    return suite


def _count(suite: ET.Element) -> None:
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    seconds = sum(float(case.get("time", "0")) for case in suite)
    suite.set("time", f"{seconds:.3f}")


def _add(case: ET.Element, kind: str, message: str, type_: str = "", text: str = "") -> None:
    element = ET.SubElement(case, kind, {"message": _text(message)})
    if type_:
        element.set("type", type_)
    element.text = _text(text) or None


def _say(case: ET.Element, text: str) -> None:
    ET.SubElement(case, "system-out").text = _text(text)


def _text(text: str) -> str:
    return NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
