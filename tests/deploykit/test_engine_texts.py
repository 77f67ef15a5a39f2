"""What builders, engines and trtexec write, read back.

All texts are SYNTHETIC: they were put together after the documentation, the strings in the libraries and public reports, and
wait to be replaced by those of a run on a GPU.
"""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from deploykit.errors import ModelError, UsageError
from deploykit.report.sparse_records import SparseLayers, Tactic
from deploykit.runtimes.inspector import EngineLayer, read_engine_info, sparse_tactics
from deploykit.runtimes.sparsity_log import read_sparsity
from deploykit.runtimes.trtexec import LayerMean, read_profile, read_times

# SYNTHETIC, in the words of versions 10 and 11; INFO only counts.
NEW = (
    "[MemUsageChange] Init builder kernel library: CPU +2345, GPU +412, now: CPU 2789, GPU 1043 (MiB)",
    "(Sparsity) Found 39 layer(s) eligible to use sparse tactics",
    "(Sparsity) Chose 0 layer(s) using sparse tactics",
    "Detected 1 inputs and 1 output network tensors.",
)
# SYNTHETIC, the same with names, as VERBOSE has them, said once for each pass over the tactics.
REPEATED = (
    "(Sparsity) Found 3 layer(s) eligible to use sparse tactics: conv1 + relu1, /layer/0/MatMul, fc[1,2]",
    "(Sparsity) Chose 3 layer(s) using sparse tactics: conv1 + relu1, /layer/0/MatMul, fc[1,2]",
    """(Sparsity) Found 2 layer(s) eligible to use sparse tactics: conv1 + relu1, fc[1,2]
       (Sparsity) Chose 1 layer(s) using sparse tactics: fc[1,2]""",
)
# SYNTHETIC, in the words of version 8.
OLD = (
    "[09/12/2023-11:02:03] [I] [TRT] (Sparsity) Layers eligible for sparse math: Conv_0 + Relu_1, Conv_2",
    "[09/12/2023-11:02:09] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_2",
)


@pytest.mark.parametrize(
    ("lines", "found", "chosen"),
    [
        (NEW, SparseLayers(39), SparseLayers(0)),
        (
            REPEATED,
            SparseLayers(2, ("conv1 + relu1", "fc[1,2]")),
            SparseLayers(1, ("fc[1,2]",)),
        ),
        (OLD, SparseLayers(2, ("Conv_0 + Relu_1", "Conv_2")), SparseLayers(1, ("Conv_2",))),
        ((OLD[0], "picked sparse implementation for layers:"), SparseLayers(2, ("Conv_0 + Relu_1", "Conv_2")), None),
        (("(Sparsity) TRT inference plan picked sparse implementation for layers:",), None, SparseLayers(0, ())),
        ((), None, None),
        (("nothing of the kind", ""), None, None),
        # What an earlier pass chose says nothing of the last one.
        (REPEATED[:2] + REPEATED[:1], SparseLayers(3, ("conv1 + relu1", "/layer/0/MatMul", "fc[1,2]")), None),
    ],
)  # fmt: skip
def test_the_last_pair_of_a_build_log_counts(lines, found, chosen):
    assert read_sparsity(lines) == (found, chosen)


TACTIC = "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3_sptensor16x8x64"
# SYNTHETIC, of version 10, built with detailed profiling.
INFO_10 = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Half"}],
            "Outputs": [],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 4608},
            "HasSparseWeights": 1,
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32",
            "TacticValue": "0x1a",
        },
        {
            "Name": "fc",
            "LayerType": "CaskGemm",
            "HasSparseWeights": 1,
            "TacticName": TACTIC,
            "TacticValue": "0x2",
        },
        {"Name": "reformat", "LayerType": "Reformat", "TacticName": "", "TacticValue": "0x0"},
    ],
    "Bindings": ["x", "y"],
}
# SYNTHETIC, of version 11.
INFO_11 = {
    "Layers": [
        {"Name": "fc", "LayerType": "gemm", "AllowSparse": 0, "TacticName": "sm90_dense"}
    ],
    "I/O Tensors": [
        {"Name": "x", "IOMode": "Input", "DataType": "Half", "Dimensions": [1, 8]},
        {"Name": "y", "IOMode": "Output", "DataType": "Half", "Dimensions": [1, 4]},
    ],
}
# SYNTHETIC, of an engine that was not built with detailed profiling.
INFO_NAMES = {"Layers": ["conv1 + relu1", "fc sparse_gemm"], "Bindings": ["x", "y"]}


@pytest.mark.parametrize(
    ("document", "tactics", "is_detailed"),
    [
        # Weights that qualify are no proof: only the kernel's name is.
        (INFO_10, (Tactic("fc", TACTIC),), True),
        (INFO_11, (), True),
        # A layer may be called anything.
        (INFO_NAMES, None, False),
        ({"Layers": []}, None, False),
    ],
)
def test_only_the_name_of_a_kernel_says_that_it_is_sparse(document, tactics, is_detailed):
    info = read_engine_info(json.dumps(document))
    assert sparse_tactics(info) == tactics
    assert info.is_detailed is is_detailed
    assert info.tensors == (("x", "y") if len(document) == 2 else ())


def test_layers_have_what_the_engine_says_of_them_and_no_more():
    layers = read_engine_info(json.dumps(INFO_10)).layers
    assert [layer.has_sparse_weights for layer in layers] == [True, True, None]
    assert layers[2] == EngineLayer("reformat", "Reformat")
    assert read_engine_info(json.dumps(INFO_11)).layers[0].has_sparse_weights is False
    assert read_engine_info(json.dumps(INFO_NAMES)).layers[0] == EngineLayer("conv1 + relu1")


@pytest.mark.parametrize(
    "kernel", ["sparse_conv", "sparse_gemm", "sparse_fprop", "spgemm", "sptensor"]
)
def test_every_family_of_sparse_kernels_is_known(kernel):
    name = f"sm80_xmma_{kernel}_f16f16_tn"
    info = read_engine_info(json.dumps({"Layers": [{"Name": "a", "TacticName": name}]}))
    assert sparse_tactics(info) == (Tactic("a", name),)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Layers": {}}', '"Layers"', "{}"])
def test_what_is_no_engine_info_is_refused(text):
    with pytest.raises(ModelError, match="what the engine says of itself"):
        read_engine_info(text)


# SYNTHETIC, after the source of trtexec: the first element counts the runs, times are totals over them.
PROFILE = """[
  { "count" : 100 }
, { "name" : "conv1 + relu1", "timeMs" : 12.5, "averageMs" : 0.125, "medianMs" : 0.12, "percentage" : 80 }
, { "name" : "path "quoted" \\new", "timeMs" : 3, "averageMs" : 0.03, "medianMs" : 0.03, "percentage" : 20 }
]"""
# SYNTHETIC, after the source of trtexec.
TIMES = json.dumps(
    [
        {
            "startEnqMs": 1.0,
            "endEnqMs": 1.1,
            "startH2dMs": 1.0,
            "endH2dMs": 1.2,
            "startComputeMs": 1.2,
            "endComputeMs": 1.7,
            "startD2hMs": 1.7,
            "endD2hMs": 1.8,
            "h2dMs": 0.2,
            "computeMs": compute,
            "d2hMs": 0.1,
            "latencyMs": compute + 0.3,
        }
        for compute in (0.5, 0.75)
    ]
)


def test_a_profile_of_trtexec_is_read_with_its_raw_names():
    first, second = read_profile(PROFILE)
    assert first == LayerMean("conv1 + relu1", pytest.approx(0.125e-3), pytest.approx(0.12e-3))
    # trtexec does not escape names: a quote or a backslash in one is no end of it.
    assert second.name == 'path "quoted" \\new'
    assert second.mean_s == pytest.approx(0.03e-3)


def test_a_total_becomes_a_mean_where_there_is_none():
    text = json.dumps([{"count": 4}, {"name": "a", "timeMs": 2.0}])
    assert read_profile(text) == (LayerMean("a", pytest.approx(0.5e-3), None),)


def test_times_of_trtexec_are_read():
    found = read_times(TIMES)
    assert found.compute_s == pytest.approx((0.5e-3, 0.75e-3))
    assert found.latency_s == pytest.approx((0.8e-3, 1.05e-3))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[[]]", "null"])
@pytest.mark.parametrize("read", [read_profile, read_times])
def test_what_trtexec_did_not_write_is_refused(read, text):
    with pytest.raises(UsageError, match="no file that 'trtexec --export"):
        read(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('[{"name": "a", "timeMs": 1}]', "begins with the number of runs"),
        ('[{"count": 0}, {"name": "a", "timeMs": 1}]', "begins with the number of runs"),
        ('[{"count": 2}, {"name": "a"}]', "has no time"),
    ],
)
def test_a_profile_without_runs_or_times_is_refused(text, match):
    with pytest.raises(UsageError, match=match):
        read_profile(text)


def test_times_without_compute_are_refused():
    with pytest.raises(UsageError, match="computeMs"):
        read_times('[{"latencyMs": 1}]')


NAME = st.text(
    st.characters(categories=["L", "N"], include_characters="/_.[]+:-"), min_size=1, max_size=12
)


@hypothesis.given(st.lists(NAME, max_size=5), st.lists(NAME, max_size=5), st.booleans())
def test_both_wordings_say_the_same(found, chosen, repeated):
    new = (
        f"(Sparsity) Found {len(found)} layer(s) eligible to use sparse tactics: {', '.join(found)}",
        f"(Sparsity) Chose {len(chosen)} layer(s) using sparse tactics: {', '.join(chosen)}",
    )
    old = (
        f"(Sparsity) Layers eligible for sparse math: {', '.join(found)}",
        f"(Sparsity) TRT inference plan picked sparse implementation for layers: {', '.join(chosen)}",
    )
    expected = (
        SparseLayers(len(found), tuple(found)),
        SparseLayers(len(chosen), tuple(chosen)),
    )
    assert read_sparsity(new * (1 + repeated)) == read_sparsity(NEW + old) == expected
