"""What the benchmark of N:M training says of its rows."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from benchmarks import nm, results  # noqa: E402
from benchmarks.tickets import append  # noqa: E402

ACCURACY = {"dense": 0.9, "ste": 0.9, "sr-ste": 0.899, "asp": 0.91, "sr-ste-transposable": 0.89}


def rows(case, **accuracy):
    return [
        {
            "case": case,
            "seed": seed,
            "arm": arm,
            "accuracy": {**ACCURACY, **accuracy}[arm],
            "sad": {"ste": 2000, "sr-ste": 1500}.get(arm),
            "sad_per_weight": [0.02, 0.01] if "ste" in arm else [],
            "eligible": 0 if arm == "dense" else 2,
            "obeying": 0 if arm == "dense" else 2,
        }
        for arm in nm.ARMS
        for seed in nm.SEEDS
    ]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"sr-ste": 0.8969}, ["SR-STE less dense", "SR-STE less STE"]),
        ({"ste": 0.902}, ["SR-STE less STE"]),
        ({"sad": 2500}, ["SAD of SR-STE"]),
        ({"obeying": 1}, ["eligible layers"]),
    ],
)
def test_targets_are_met_or_missed_by_the_means(change, missed):
    held = rows("fashion-vgg32", **{k: v for k, v in change.items() if k in ACCURACY})
    for row in held:
        if row["arm"] == "sr-ste":
            row.update({name: value for name, value in change.items() if name in row})
    found = nm.targets(held, "fashion-vgg32")
    assert len(found) == 4
    wrong = [text for text, met in found if not met]
    assert len(wrong) == len(missed)
    assert all(text.startswith(start) for text, start in zip(wrong, missed, strict=True))


def test_the_exit_code_says_what_is_missing_and_what_is_missed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(nm, "EPOCHS", 2)
    state = tmp_path / "rows.jsonl"
    command = ["--no-train", "--folder", str(tmp_path)]
    cases = list(nm.CASES)
    for row in rows(cases[0]):
        append(state, row)
    assert nm.main(command) == nm.INCOMPLETE
    for row in rows(cases[1]):
        append(state, row)
    assert nm.main(command) == 0
    assert (
        "| sr-ste | 3 | 89.90 ± 0.00 | -0.10 | 15.000 | 20.00 | 10.00 |"
        in capsys.readouterr().out
    )
    assert (tmp_path / "results" / "nm.svg").read_text().count("<svg") == 1
    state.unlink()
    for row in rows(cases[0], **{"sr-ste": 0.8}):
        append(state, row)
    assert nm.main(command) == nm.MISSED
