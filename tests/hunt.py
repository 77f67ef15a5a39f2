"""Looks for failing random graphs by hand: `python -m tests.hunt 2000 [seed] [folder]`.

The test suite stops at the first failure; this groups all of them by where they come from, and keeps the smallest
model of each group.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import sys
import traceback

import hypothesis
from hypothesis import strategies as st

import passes
from passes import weights
from tests import oracle, strategies


@dataclasses.dataclass(frozen=True)
class Failure:
    """The smallest case of a group.

    Attributes:
        case: the model.
        options: how the passes were called.
        message: of the exception.
    """

    case: strategies.Case
    options: str
    message: str


def attempt(
    case: strategies.Case, carry: str, multiple: int, *, tidy: bool, log: list[str]
) -> int:
    """Rewrite and compare one case; `log` says how far it got. Returns the parameters removed."""
    model = oracle.from_proto(case.proto)
    if tidy:
        log.append("tidy")
        passes.Tidy()(model)
    before = weights.parameter_count(model)
    log.append("remove")
    passes.RemoveChannels(carry=carry)(model)
    removed = before - weights.parameter_count(model)
    if multiple:
        log.append("align")
        passes.AlignChannels(multiple=multiple)(model)
    log.append("compare")
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    oracle.assert_same_function(case.proto, model, inputs)
    if not multiple:
        log.append("again")
        if passes.RemoveChannels(carry=carry)(model).modified:
            raise oracle.DifferenceError("a second removal found more")
    return removed


def hunt(count: int, seed: int, folder: pathlib.Path) -> int:
    """Try `count` random graphs; print and write what fails. Returns how many did."""
    groups: collections.Counter[str] = collections.Counter()
    smallest: dict[str, Failure] = {}
    totals: collections.Counter[str] = collections.Counter()

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        database=None,
    )
    @hypothesis.seed(seed)
    @hypothesis.given(
        strategies.cases(),
        st.sampled_from(("carrier", "bias-map")),
        st.sampled_from((0, 4, 8)),
        st.booleans(),
    )
    def go(case: strategies.Case, carry: str, multiple: int, bare: bool) -> None:
        log: list[str] = []
        totals["cases"] += 1
        try:
            totals["removed"] += attempt(case, carry, multiple, tidy=not bare, log=log)
        except Exception as error:  # noqa: BLE001 - all kinds are collected
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{pathlib.Path(last.filename).name}:{last.lineno}"
            words = re.sub(r"[0-9][0-9.e+-]*", "#", str(error))[:100]
            kind = f"{log[-1]} {carry}{' aligned' * bool(multiple)}: {type(error).__name__} {words} ({place})"
            groups[kind] += 1
            size = len(case.proto.graph.node)
            if kind not in smallest or size < len(smallest[kind].case.proto.graph.node):
                options = f"carry={carry} multiple={multiple} tidy={not bare}"
                smallest[kind] = Failure(case, options, str(error)[:300])

    go()
    folder.mkdir(parents=True, exist_ok=True)
    for index, (kind, times) in enumerate(groups.most_common()):
        failure = smallest[kind]
        path = folder / f"failure_{index}.onnx"
        path.write_bytes(failure.case.proto.SerializeToString())
        nodes = len(failure.case.proto.graph.node)
        print(f"{times} x {kind}")  # noqa: T201 - a script
        print(f"    {failure.message}")  # noqa: T201
        context = f"{nodes} nodes, zeros {failure.case.zeros}, {failure.options}, {failure.case.sizes}"
        print(f"    {context} -> {path}")  # noqa: T201
    print(dict(totals), f"{sum(groups.values())} failed")  # noqa: T201
    return sum(groups.values())


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(
        bool(
            hunt(
                int(arguments[0]) if arguments else 2000,
                int(arguments[1]) if len(arguments) > 1 else 0,
                pathlib.Path(arguments[2] if len(arguments) > 2 else "build/failures"),
            )
        )
    )
