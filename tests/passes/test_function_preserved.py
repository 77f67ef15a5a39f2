"""The promise of the exact passes, on random graphs: the function stays, the graph is sound, nothing grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import numpy as np
from hypothesis import strategies as st

import passes
from passes import weights
from passes.planners.block_choice import Chosen
from tests import blocked, oracle, strategies
from tests.renaming import disguise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from passes.base import PassReport
    from passes.lowerings.alone import Case as Layer

CARRIES = ("carrier", "bias-map")


def remove(
    case: strategies.Case, carry: str = "carrier", *, tidy: bool = True
) -> tuple[ir.Model, PassReport]:
    """A copy of a case's model without its dead channels."""
    model = oracle.from_proto(case.proto)
    if tidy:
        passes.Tidy()(model)
    return model, passes.RemoveChannels(carry=carry)(model)


def judge(case: strategies.Case, model: ir.Model) -> None:
    """The rewritten model passes the checker and computes what the case's model does."""
    oracle.check(model)
    inputs = oracle.make_inputs(case.proto, case.sizes)
    agreement = oracle.assert_same_function(case.proto, model, inputs)
    hypothesis.assume(not agreement.collapsed)


@hypothesis.given(strategies.cases(), st.sampled_from(CARRIES), st.booleans())
def test_removal_preserves_the_function(case: strategies.Case, carry: str, bare: bool) -> None:
    model, report = remove(case, carry, tidy=not bare)
    assert report.exact
    if not report.modified and bare:
        assert oracle.to_proto(model) == oracle.to_proto(oracle.from_proto(case.proto))
    judge(case, model)


@hypothesis.given(strategies.cases(), st.sampled_from(CARRIES), st.sampled_from((4, 8)))
def test_alignment_after_removal_preserves_the_function(
    case: strategies.Case, carry: str, multiple: int
) -> None:
    model, _ = remove(case, carry)
    report = passes.AlignChannels(multiple=multiple)(model)
    assert report.exact
    judge(case, model)


@hypothesis.given(
    strategies.cases(kinds=("blocks", "columns", "rows")),
    st.sampled_from((None, 4)),
    st.sampled_from(blocked.TARGETS),
    st.integers(0, 2**16),
)
def test_all_passes_in_a_row_preserve_the_function(
    case: strategies.Case, multiple: int | None, target: passes.Target, seed: int
) -> None:
    dice = np.random.default_rng(seed)

    def choose(layers: Sequence[Layer]) -> list[Chosen]:
        return [Chosen(str(dice.choice(each.names)), "drawn") for each in layers]

    model = oracle.from_proto(case.proto)
    for rewrite in (
        passes.Tidy(),
        passes.RemoveChannels(carry="carrier"),
        passes.PermuteChannels(purpose="group-blocks"),
        passes.GroupBlocks(choose=choose, target=target),
        *([] if multiple is None else [passes.AlignChannels(multiple=multiple)]),
        passes.InferShapes(),
    ):
        assert rewrite(model).exact
    judge(case, model)


@hypothesis.given(strategies.cases(), st.sampled_from(CARRIES))
def test_a_second_removal_finds_nothing(case: strategies.Case, carry: str) -> None:
    model, first = remove(case, carry)
    before = oracle.to_proto(model)
    second = passes.RemoveChannels(carry=carry)(model)
    assert not second.modified, (second.changes, first.changes)
    assert second.changes == ()
    assert oracle.to_proto(model) == before


@hypothesis.given(strategies.cases())
def test_removal_adds_no_parameters_but_those_it_reports(case: strategies.Case) -> None:
    model = oracle.from_proto(case.proto)
    passes.Tidy()(model)
    # A weight that a subgraph reads as well stays there in full; what is cut is a copy of it.
    hypothesis.assume(not read_by_subgraphs(model))
    before = weights.parameter_count(model)
    report = passes.RemoveChannels(carry="carrier")(model)
    after = weights.parameter_count(model)
    cuts = [change for change in report.changes if change.what == "output channels"]
    # Constants that a new bias or a bias map holds are parameters as well; the report counts them.
    added = sum(change.after for change in report.changes if "elements" in change.what)
    assert after - added <= before - len(cuts)
    assert all(change.before > change.after > 0 for change in cuts)
    assert report.modified == bool(cuts) == bool(report.changes)


def read_by_subgraphs(model: ir.Model) -> bool:
    """Whether any weight of the main graph is read inside of a subgraph."""
    return any(
        use.node.graph is not model.graph
        for value in model.graph.initializers.values()
        for use in value.uses()
    )


@hypothesis.given(strategies.cases(), st.randoms(use_true_random=False))
def test_names_and_node_order_do_not_matter(case: strategies.Case, rng: st.DataObject) -> None:
    plain, disguised = (
        oracle.from_proto(case.proto),
        oracle.from_proto(disguise(case.proto, rng)),
    )
    reports = [passes.RemoveChannels(carry="carrier")(model) for model in (plain, disguised)]
    counts = [
        sorted((change.what, change.before, change.after) for change in report.changes)
        for report in reports
    ]
    assert counts[0] == counts[1]
    assert weights.parameter_count(plain) == weights.parameter_count(disguised)
