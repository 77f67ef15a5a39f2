"""Targets: what is detected, and that each number has a source."""

from __future__ import annotations

import pytest

from passes import targets


@pytest.mark.parametrize(
    ("flags", "name", "block"),
    [
        ("fpu avx avx2 avx512f avx512vl", "onnxruntime-cpu-avx512", 16),
        ("fpu avx avx2 fma", "onnxruntime-cpu-avx2", 8),
        ("fpu sse4_2", "onnxruntime-cpu", 16),
    ],
)
def test_vector_instructions_decide(
    flags: str, name: str, block: int, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
    )
    found = targets.detect(cpuinfo)
    assert (found.name, found.group_multiple) == (name, block)
    assert targets.detect(tmp_path / "absent").name == "onnxruntime-cpu"


def test_other_chips_are_known_by_name(monkeypatch) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    assert targets.detect().name == "onnxruntime-cpu-arm64"


def test_every_rule_has_a_source_and_every_target_its_key() -> None:
    assert {"onnxruntime-cpu", "tensorrt", "generic"} <= set(targets.TARGETS)
    for name, target in targets.TARGETS.items():
        assert target.name == name
        assert target.rules
        assert all(rule.text.endswith(".") and rule.source for rule in target.rules)
        assert list(target.multiples) == sorted(set(target.multiples))
