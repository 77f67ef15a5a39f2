"""What the analysis calls constant is constant: every value of random graphs, against ONNX Runtime."""

from __future__ import annotations

import hypothesis
import numpy as np
import onnx

import passes
from passes import shapes
from passes.analysis import constants
from tests import oracle, strategies


@hypothesis.given(strategies.cases())
def test_known_elements_have_their_value_on_every_input(case: strategies.Case) -> None:
    model = oracle.from_proto(case.proto)
    passes.Tidy()(model)
    known = constants.find_constants(model, shapes.measure(model))
    proto = oracle.to_proto(model)
    declared = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=value.name) for value in known if value.name not in declared
    )
    session = oracle.open_session(proto)
    names = [output.name for output in session.get_outputs()]
    tolerance = 3e-3 if case.graph.dtype == np.float16 else 2e-5
    # Products with a known zero count as zero, which the largest input may contradict with 0 * inf.
    for feeds in oracle.make_inputs(case.proto, case.sizes)[:-1]:
        computed = dict(zip(names, oracle.run(session, feeds), strict=True))
        for value, fact in known.items():
            actual = computed[value.name].astype(np.float64)
            mask = np.broadcast_to(fact.mask, actual.shape)
            expected = np.broadcast_to(fact.value, actual.shape)[mask]
            error = np.abs(actual[mask] - expected) / (1 + np.abs(expected))
            assert error.max(initial=0.0) <= tolerance, (value.producer(), error.max())
