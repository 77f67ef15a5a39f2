"""What a runtime on a chip likes: channel multiples and patterns of zeros, each rule with its source.

Rules say what is worth *trying*; what is kept is decided by measuring on the device. A multiple that suits one layer
can cost another more than it gains.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
from collections.abc import Collection, Mapping
from typing import Final

__all__ = ["TARGETS", "Rule", "SparseRules", "Target", "choose", "detect"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that a runtime likes.

    Attributes:
        text: what it is, in a sentence.
        source: where that comes from.
    """

    text: str
    source: str


@dataclasses.dataclass(frozen=True)
class SparseRules:
    """What sparse kernels want of a layer, besides the pattern.

    Attributes:
        pattern: N:M, along what is summed over.
        precisions: in what they compute.
        product_only: of these, in what only matrix products do.
        wins_from: input and output channels from which they are faster than dense ones, roughly.
        row_multiple: what the output channels should be a multiple of.
        column_multiple: what the input channels should be a multiple of.
        picks_1x1: whether they are picked for 1x1 convolutions often.
    """

    pattern: str
    precisions: tuple[str, ...]
    product_only: tuple[str, ...]
    wins_from: int
    row_multiple: int
    column_multiple: int
    picks_1x1: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """A runtime on a kind of chip.

    Attributes:
        name: how it is asked for.
        runtime: the runtime that it is about.
        multiples: channel counts worth padding to, ascending.
        group_multiple: the multiple that the channels of each group of a grouped (not depthwise) Conv want.
        rules: what these numbers, and patterns of zeros, rest on.
        sparse: what its kernels for weights with patterns of zeros want; None if it has no such kernels, or nobody knows.
        copy_macs: multiply-adds that take as long as one element that is copied by a Gather or a Concat, the way out of the
            runtime's own layout and back included.
        gather_macs: the same for an element that a Gather along the last axis takes, one by one.
    """

    name: str
    runtime: str
    multiples: tuple[int, ...]
    group_multiple: int
    rules: tuple[Rule, ...]
    sparse: SparseRules | None = None
    copy_macs: int = 40
    gather_macs: int = 240

    @property
    def rounding(self) -> int:
        """What pruned channel counts are rounded to: the width of a block, up to which a count costs the same."""
        return self.group_multiple


INPUT_RULE: Final = Rule(
    "A Conv runs in the blocked NCHWc layout only if its input channels are a multiple of 4; otherwise as im2col and "
    "a matrix product, at 1.2 to 1.5 times the time per operation.",
    "a maintainer in microsoft/onnxruntime#14392; input reordering in microsoft/onnxruntime#7442; "
    "core/optimizer/nchwc_transformer.cc; counts from 32 to 144 timed with ONNX Runtime 1.31.1",
)
DEPTHWISE_RULE: Final = Rule(
    "A depthwise Conv leaves the blocked layout when its channels are not a multiple of 4: MobileNetV2 with odd "
    "counts is slower than the dense one.",
    "MobileNetV2 at 36 to 80 % timed with ONNX Runtime 1.31.1: 1.3 to 1.6 times the dense time, 0.6 to 0.8 once padded",
)
NO_SPARSITY_RULE: Final = Rule(
    "Zeros inside of a weight make nothing faster: there are no sparse kernels, 2:4 included.",
    "2:4 weights timed with ONNX Runtime 1.31.1: 0.97 to 0.99 of dense, within the noise",
)


COPY_RULE: Final = Rule(
    "Gather, Slice and Concat leave the blocked layout: an element that is copied takes as long as about 40 multiply-adds.",
    "1x1 convolutions with a Gather in front, timed with ONNX Runtime 1.31.1",
)
GATHER_RULE: Final = Rule(
    "Gather along the last axis copies one number at a time: each takes as long as about 240 multiply-adds of a product.",
    "a Gather of 128x768 behind a product with 768x768, timed with ONNX Runtime 1.31.1: a third of the product's time",
)


def block_rule(block: int, instructions: str) -> Rule:
    """Output channels cost as many as the next multiple of the block."""
    return Rule(
        f"With {instructions}, NCHWc blocks have {block} channels: output channels cost as much as the next multiple "
        f"of {block}, so padding up to it is free in time.",
        "MlasNchwcGetBlockSize in core/mlas; filters in the optimized graph are padded to it",
    )


def group_rule(block: int) -> Rule:
    """Groups are blocked one by one."""
    return Rule(
        f"A grouped Conv runs in the blocked layout only if input and output channels of each group are multiples of {block}.",
        "core/optimizer/nchwc_transformer.cc of microsoft/onnxruntime",
    )


def onnxruntime_cpu(name: str, block: int, instructions: str) -> Target:
    """ONNX Runtime on a CPU whose vectors make blocks of that many channels."""
    return Target(
        name=name,
        runtime="onnxruntime",
        multiples=(4, 8, 16),
        group_multiple=block,
        rules=(
            INPUT_RULE,
            block_rule(block, instructions),
            group_rule(block),
            COPY_RULE,
            GATHER_RULE,
            DEPTHWISE_RULE,
            NO_SPARSITY_RULE,
        ),
    )


ARM: Final = Target(
    name="onnxruntime-cpu-arm64",
    runtime="onnxruntime",
    multiples=(4, 8, 16),
    group_multiple=8,
    rules=(
        Rule(
            "Whether Conv has a blocked layout on Arm depends on the build; without it, matrix products in steps of "
            "4 to 16 columns set the pace.",
            "microsoft/onnxruntime#25580; not measured",
        ),
        NO_SPARSITY_RULE,
    ),
)

TENSORRT: Final = Target(
    name="tensorrt",
    runtime="tensorrt",
    multiples=(8, 16, 32),
    group_multiple=8,
    rules=(
        Rule(
            "Tensor cores want channel counts that are multiples of 8 in fp16, and of 16, better 32, in int8; other "
            "counts are padded inside.",
            "TensorRT developer guide, 'Optimizing for Tensor Cores'; not measured",
        ),
        Rule(
            "A weight can use sparse kernels if each aligned four of its input channels (Conv: at each kernel "
            "position and output; Gemm and MatMul: along the reduction axis) holds at least two zeros. That needs "
            "input channels, in each group, that are a multiple of 4.",
            "TensorRT 8.5 developer guide, section 6.8; the tools trtexec and polygraphy check the same",
        ),
        Rule(
            "Pruners of the vendor only touch weights with output channels a multiple of 8 and input channels of 16.",
            "apex asp.py; modelopt weight_sparsity/magnitude.py",
        ),
        Rule(
            "Sparse kernels compute in fp16, int8 and, products only, bf16 and fp8. Networks are strongly typed from version 11 "
            "on, so that the model itself has to be of such a type: fp32 is not lowered.",
            "TensorRT 8.5 developer guide, section 6.8 (fp16 or int8); migration to 11; names of kernels in "
            "TensorRT-RTX 1.7.1; not measured",
        ),
        Rule(
            "A sparse kernel is taken only where it was timed and is faster, which begins at about 256 input and output "
            "channels; 3x3 convolutions gain more than 1x1, for which sparse kernels are rarely taken.",
            "a maintainer in NVIDIA/TensorRT#4065 and #3849; not measured",
        ),
        Rule(
            "Quantized layers with 2:4 weights are not always taken, and less so if their output is not quantized as well.",
            "NVIDIA/TensorRT#4694, a user's report; not measured",
        ),
    ),
    sparse=SparseRules(
        pattern="2:4",
        precisions=("fp16", "bf16", "int8", "fp8"),
        product_only=("bf16", "fp8"),
        wins_from=256,
        row_multiple=8,
        column_multiple=16,
        picks_1x1=False,
    ),
)

GENERIC: Final = Target(
    name="generic",
    runtime="any",
    multiples=(4, 8, 16, 32),
    group_multiple=8,
    rules=(
        Rule(
            "Vector units and caches work on 4 to 32 numbers at once; which of these multiples pays is for a "
            "measurement to say.",
            "a guess, for a runtime that nothing is known of",
        ),
    ),
)

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (
        onnxruntime_cpu(
            "onnxruntime-cpu", 16, "AVX512 (8 with AVX2, which a multiple of 16 suits too)"
        ),
        onnxruntime_cpu("onnxruntime-cpu-avx512", 16, "AVX512"),
        onnxruntime_cpu("onnxruntime-cpu-avx2", 8, "AVX2"),
        ARM,
        TENSORRT,
        GENERIC,
    )
}
"""All targets by name."""


def detect(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> Target:
    """ONNX Runtime on the CPU of this machine.

    Args:
        cpuinfo: what the system says of its CPU. Where there is no such file, or it names no vector instructions,
            the result is `onnxruntime-cpu`, which suits all.
    """
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next(
        (line.split(":", 1)[-1].split() for line in lines if line.startswith("flags")), []
    )
    return choose(platform.machine(), flags)


def choose(architecture: str, flags: Collection[str]) -> Target:
    """ONNX Runtime on a CPU that is known by what it can do.

    Args:
        architecture: its instruction set, as Python's `platform.machine` names it.
        flags: its extensions, as Linux names them; where nothing is known of them the result is what suits all.
    """
    if architecture.lower() in {"arm64", "aarch64"}:
        return TARGETS["onnxruntime-cpu-arm64"]
    # What the kernels of ONNX Runtime ask for; others of the AVX512 family come and go.
    if "avx512f" in flags:
        return TARGETS["onnxruntime-cpu-avx512"]
    return TARGETS["onnxruntime-cpu-avx2" if "avx2" in flags else "onnxruntime-cpu"]
