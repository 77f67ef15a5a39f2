"""Gates: what a result must be like, read from text and held against figures.

[DEVICE:] METRIC OPERATOR NUMBER [UNIT]      p95 <= 4 ms      nano: memory < 64 MiB      accuracy >= 0.9
[DEVICE:] METRIC OPERATOR [NUMBER *] baseline      accuracy >= 0.98 * baseline

It is the figure that is compared with the limit. Where its 95 % interval reaches over the limit, the answer could have been
the other one, and that is told.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from deploykit.errors import UsageError
from deploykit.step.figures import Figure, Figures
from deploykit.step.records import Gate, GateResult
from deploykit.step.schema import nearest

__all__ = ["METRICS", "Metric", "check_together", "evaluate", "parse_gate", "value_text"]

Kind: TypeAlias = Literal["time", "bytes", "number"]

TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
SIZES = {
    "B": 1.0,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
UNITS: Mapping[Kind, Mapping[str, float]] = {"time": TIMES, "bytes": SIZES, "number": {}}
OWN_UNIT: Mapping[Kind, str] = {"time": "s", "bytes": "B", "number": ""}

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
EXAMPLE = "A gate is written as 'p95 <= 4 ms', 'ratio <= 0.6' or 'accuracy >= 0.98 * baseline'."

FORM = re.compile(
    r"(?:(?P<device>[^:<>=]*):)?\s*(?P<metric>[^\s<>=!]*)\s*(?P<operator>[<>=!]*)\s*(?P<limit>.*)",
    re.DOTALL,
)
LIMIT = re.compile(
    r"(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>[^\s*\d.+-]*)\s*"
    r"(?P<relative>\*\s*baseline)?"
)


@dataclasses.dataclass(frozen=True)
class Metric:
    """Something that a gate can be about.

    Attributes:
        kind: what its figures count.
        of: where they come from: a device, the report of the optimization, or the user's task.
        has_baseline: whether the original model has the same figure, of which a limit can be a share.
        is_positive: whether no figure can be 0 or below.
    """

    kind: Kind
    of: Literal["device", "report", "task"]
    has_baseline: bool = True
    is_positive: bool = True


METRICS: Mapping[str, Metric] = {
    **dict.fromkeys(("p50", "p90", "p95", "p99", "load"), Metric("time", "device")),
    "ratio": Metric("number", "device", has_baseline=False),
    "memory": Metric("bytes", "device"),
    "bytes": Metric("bytes", "report"),
    "parameters": Metric("number", "report", is_positive=False),
    "macs": Metric("number", "report", is_positive=False),
    "max_error": Metric("number", "report", has_baseline=False, is_positive=False),
    "max_abs_error": Metric("number", "report", has_baseline=False, is_positive=False),
    "accuracy": Metric("number", "task", is_positive=False),
}
"""By name: what gates can be about."""


def parse_gate(text: str) -> Gate:
    """Read a gate.

    Raises:
        UsageError: it has another form, or no figure could ever meet it, or miss it.
    """
    found = FORM.fullmatch(text.strip())
    if found is None or not found["metric"]:
        msg = f"'{text}' is no gate. {EXAMPLE}"
        raise UsageError(msg)
    name, sign = found["metric"], found["operator"]
    if name not in METRICS:
        msg = f"there is no metric '{name}' in the gate '{text}'. {nearest(name, METRICS)}"
        raise UsageError(msg)
    if sign not in COMPARE:
        said = f"'{sign}' does not compare" if sign else "it has no operator"
        msg = f"the gate '{text}' cannot be read: {said}. Operators are <=, <, >= and >."
        raise UsageError(msg)
    device = found["device"]
    if device is not None:
        device = device.strip()
        if not device:
            msg = f"the gate '{text}' names no device before its colon. Name one, or leave the colon out."
            raise UsageError(msg)
        if METRICS[name].of != "device":
            msg = f"the gate '{text}' names a device, and '{name}' is the same on all of them. Leave '{device}:' out."
            raise UsageError(msg)
    limit, unit, is_relative = _limit(text, name, found["limit"].strip())
    gate = Gate(text.strip(), name, sign, limit, unit, is_relative, device)  # type: ignore[arg-type]  # one of COMPARE
    _check_possible(gate)
    return gate


def _limit(text: str, name: str, written: str) -> tuple[float, str, bool]:
    metric = METRICS[name]
    units = UNITS[metric.kind]
    if re.fullmatch(r"baseline(\s*\*.*)?", written):
        turned = re.fullmatch(r"baseline(?:\s*\*\s*(?P<number>.+))?", written)
        written = f"{(turned and turned['number']) or 1} * baseline"
    found = LIMIT.fullmatch(written)
    if found is None:
        what = f"'{written}' is no limit" if written else "it has no limit"
        msg = f"the gate '{text}' cannot be read: {what}. {EXAMPLE}"
        raise UsageError(msg)
    number, unit, is_relative = float(found["number"]), found["unit"], bool(found["relative"])
    if is_relative:
        if unit:
            msg = f"the gate '{text}' has a unit and is relative to the original. Leave '{unit}' out."
            raise UsageError(msg)
        if not metric.has_baseline:
            why = (
                "is relative to the original as it is"
                if name == "ratio"
                else "says how far the result is from the original, which has no such figure"
            )
            msg = f"the gate '{text}' asks for a share of the original's '{name}', which {why}. Give a number."
            raise UsageError(msg)
        return number, "", True
    if unit and not units:
        msg = f"the gate '{text}' has the unit '{unit}', and '{name}' is a plain number. Leave it out."
        raise UsageError(msg)
    if unit and unit not in units:
        msg = f"the gate '{text}' has the unit '{unit}', and '{name}' is in one of {', '.join(units)}."
        raise UsageError(msg)
    if not unit and metric.kind == "time":
        msg = f"the gate '{text}' has no unit. Say which: '{name}' is in one of {', '.join(units)}."
        raise UsageError(msg)
    return number * units.get(unit, 1.0), unit, False


def _check_possible(gate: Gate) -> None:
    """Refuse what every figure meets, or none.

    Raises:
        UsageError: it is such a gate.
    """
    metric = METRICS[gate.metric]
    if metric.of == "task" and not gate.is_relative:
        return  # a metric of the user's may be anything
    least = "is always above 0" if metric.is_positive else "is never below 0"
    upper = gate.operator in {"<=", "<"}
    if gate.limit < 0 or (
        gate.limit == 0 and (metric.is_positive or gate.operator in {"<", ">="})
    ):
        if metric.of == "task":
            least = "of a share of the baseline that is 0 or below says nothing"
        verdict = "can never be met" if upper else "is always met"
        msg = f"the gate '{gate.text}' {verdict}: '{gate.metric}' {least}. Give another limit."
        raise UsageError(msg)


def check_together(gates: Sequence[Gate]) -> tuple[int, str] | None:
    """Find a gate that no figure can meet together with an earlier one, or that is there twice.

    Returns:
        its place and what is wrong; None if there is none.
    """
    for place, gate in enumerate(gates):
        for other in gates[:place]:
            is_same = (gate.metric, gate.is_relative) == (other.metric, other.is_relative)
            if not is_same or (gate.device and other.device and gate.device != other.device):
                continue
            if (gate.device, gate.operator, gate.limit) == (
                other.device,
                other.operator,
                other.limit,
            ):
                return place, f"the gate '{gate.text}' is there twice. Leave one out."
            pair = sorted((gate, other), key=lambda each: each.operator[0] == ">")
            upper, lower = pair
            if upper.operator[0] == lower.operator[0]:
                continue
            strict = "=" not in upper.operator or "=" not in lower.operator
            if lower.limit > upper.limit or (strict and lower.limit == upper.limit):
                return place, (
                    f"no figure can meet both '{other.text}' and '{gate.text}'. Change one of them."
                )
    return None


def evaluate(gates: Sequence[Gate], figures: Figures) -> tuple[GateResult, ...]:
    """Hold gates against figures: one result for each gate, and for each device where devices make a difference."""
    results = []
    for gate in gates:
        devices: Sequence[str | None] = (None,)
        if METRICS[gate.metric].of == "device":
            devices = [name for name in figures.devices if gate.device in {None, name}]
        results += [
            _result(gate, device, figures.find(gate.metric, device, relative=gate.is_relative))
            for device in devices
        ]
    return tuple(results)


def _result(gate: Gate, device: str | None, figure: Figure) -> GateResult:
    limit = gate.limit
    note = figure.note
    passed = False
    if gate.is_relative:
        limit = float("nan") if figure.baseline is None else gate.limit * figure.baseline
    if figure.value is not None and limit == limit:  # noqa: PLR0124 - not a number
        passed = COMPARE[gate.operator](figure.value, limit)
    elif not note:
        note = "the original has no such figure"
    result = GateResult(
        gate,
        device,
        figure.value,
        figure.ci95,
        limit,
        figure.baseline,
        OWN_UNIT[METRICS[gate.metric].kind],
        passed,
        note,
    )
    if result.is_close:
        close = "close: the 95 % interval of the figure reaches over the limit"
        result = dataclasses.replace(result, note="; ".join(filter(None, (note, close))))
    return result


def value_text(value: float | None, unit: str) -> str:
    """A figure or a limit as people read it, in a unit that suits it.

    Args:
        value: in seconds or bytes where it is a time or a size.
        unit: "s", "B" or empty, as in `GateResult.unit`.
    """
    if value is None or value != value:  # noqa: PLR0124 - not a number
        return "-"
    if unit == "s":
        scales = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    elif unit == "B":
        scales = {"GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1.0}
    elif 1000 <= abs(value) < 1e15 or (abs(value) < 1000 and value == int(value)):
        return f"{value:,.0f}"
    else:
        return f"{value:.4g}"
    name, scale = next(
        ((name, scale) for name, scale in scales.items() if abs(value) >= scale),
        list(scales.items())[-1],
    )
    return f"{value / scale:.4g} {name}"
