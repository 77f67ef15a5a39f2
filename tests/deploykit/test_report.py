"""What a report says, and that nothing in a model can break the page."""

from __future__ import annotations

import dataclasses
import html.parser
import io
import json
import math
import re

import jsonschema
import pytest
from rich.console import Console

from deploykit.report import html as page
from deploykit.report import records as r
from deploykit.report import text, wording
from deploykit.report.sparse_records import EngineRecord, SparseLayers, SparseVerdict, Tactic

NASTY = "<script>alert('x')</script>[bold]&\"/conv"


def make_report(**changes):
    skips = tuple(
        r.Skip(f"{NASTY}.{n}", "they reach the graph output 'y'", "keep them") for n in range(9)
    )
    row = r.LatencyRow(0.004, 0.005, 0.006, 0.007, 30)
    report = r.Report(
        command="deploykit optimize 'a b.onnx' -o out",
        versions={"deploykit": "0.1.0"},
        source=r.SourceRecord(f"{NASTY}.onnx", "0" * 64),
        model="out/model.onnx",
        target="generic",
        passes=(
            r.PassRecord(
                "remove-channels",
                exact=True,
                modified=True,
                options={"carry": "carrier"},
                seconds=0.5,
                changes=(r.Change(NASTY, "output channels", 64, 48),),
                skipped=(*skips, r.Skip("w9", "it is quantized", "dequantize it")),
            ),
        ),
        size=r.Size(
            r.Count(4000, 2000), r.Count(2**21, 2**20), r.Count(10**9, None), r.Count(9, 9)
        ),
        validation=r.ValidationRecord(1e-6, 2e-6, 5, "equal", 1e-4, NASTY),
        candidates=(
            r.Candidate("original", 1.0, (1.0, 1.0), chosen=False),
            r.Candidate(NASTY, 0.5, (0.49, 0.52), chosen=True, parameters=2000),
            r.Candidate("failed", None, None, chosen=False, note="bug"),
        ),
        profile=r.Profile(
            row,
            row,
            r.Interval(0.5, (0.49, 0.52)),
            "cpu",
            True,
            1,
            "onnxruntime 1",
            {"cpu": "chip"},
            {
                "baseline": r.Samples((0.004, 0.005), (0.0041, 0.005), (0, 1)),
                "optimized": r.Samples((0.002, 0.0025), (0.0021, 0.0025), (0, 1)),
            },
        ),
        layers=(
            r.Layer(
                NASTY,
                "conv",
                "Conv",
                (64, 3, 3, 3),
                (48, 3, 3, 3),
                r.Count(64, 48),
                r.Count(3, 3),
                0.25,
                16,
                0,
                obeys_2_4=False,
            ),
            r.Layer(
                "gone",
                "g",
                "Gemm",
                (8, 8),
                None,
                r.Count(8, None),
                r.Count(8, None),
                1.0,
                8,
                8,
                obeys_2_4=True,
            ),
        ),
        verdict="faster",
        reason="it was measured",
        warnings=(NASTY,),
        layer_times=(
            r.LayerTimeRow("conv", "Conv", 0.002, 0.0005),
            r.LayerTimeRow(NASTY, "Relu", 0.0003, None),
        ),
        staircases=(
            r.Staircase(
                layer=NASTY,
                weight="w",
                op_type="Conv",
                axis="output channels",
                description="3x3 Conv",
                counts=(40, 47, 48, 49, 64),
                seconds=(0.0004, 0.0007, 0.0005, 0.0008, 0.0009),
                lo_s=(0.0004, 0.0006, 0.0005, 0.0008, 0.0009),
                hi_s=(0.0005, 0.0007, 0.0006, 0.0008, 0.001),
                before=64,
                as_is=47,
                after=48,
                multiples=(4, 8),
                clock="cpu",
                rounds=30,
            ),
        ),
    )
    return dataclasses.replace(report, **changes)


VARIANTS = {
    "faster": {},
    "planned": {
        "verdict": "planned",
        "validation": None,
        "candidates": (),
        "profile": None,
        "model": None,
        "layer_times": (),
        "staircases": (),
    },
    "differs": {"verdict": "differs", "profile": None, "model": None},
    "unchanged": {"verdict": "unchanged", "layers": (), "passes": ()},
    "smaller": {"verdict": "smaller"},
    "of a ticket": {
        "source": r.SourceRecord(
            f"{NASTY}.onnx",
            "0" * 64,
            f"{NASTY}:net",
            r.TicketRecord(f"{NASTY}.pt", "1" * 64, 0.98761, 0.99442),
        ),
        "ticket_layers": (
            r.TicketLayer(
                f"{NASTY}.weight",
                48,
                90,
                2200,
                2160,
                3,
                *(r.MaskPicture(2, 3, "AP//AP8A") for _ in range(3)),
            ),
            r.TicketLayer("head.weight", 10, 48, None, 480, 0),
        )
    },
    "with blocks": {
        "block_layers": (
            r.BlockLayer(
                NASTY,
                NASTY,
                "Conv",
                outputs=33,
                inputs=55,
                kernel=(7, 5),
                blocks=((20, 23), (13, 17)),
                share=0.37521,
                text="20x23, 13x17 in 33x55",
                form="gathered",
                reason=f"0.41 of the time of {NASTY}",
                picture=r.MaskPicture(2, 3, "AP//AP8A"),
                picture_ordered=r.MaskPicture(2, 3, "//8AAAD/"),
                outlines=(r.BlockOutline(0, 0, 20, 23), r.BlockOutline(20, 23, 13, 17)),
            ),
            r.BlockLayer(
                "gone", "g", "Gemm", 18, 12, (), ((9, 6), (9, 6)), 0.5, "2 of 9x6 in 18x12",
                "dense", "it is too small",
            ),
        ),
        "no_blocks": (r.Skip(f"{NASTY}.last", "its zeros are scattered", "make blocks"),),
    },
    "nobody says what is sparse": {"sparse": SparseVerdict()},
    "sparse kernels and an engine": {
        "sparse": SparseVerdict(
            eligible=(NASTY, "b"),
            found=SparseLayers(2, (NASTY, "b")),
            chosen=SparseLayers(1),
            tactics=(Tactic(NASTY, "sm80_xmma_sparse_gemm_f16"),),
        ),
        "engine": EngineRecord(
            *("tensorrt-rtx 1.7", "model.tensorrt-rtx.engine", 999, 0.2, ("8.6", "8.9")),
            shapes={NASTY: (1, 3), "scalar": ()},
            sparse=SparseVerdict(eligible=(), tactics=()),
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_report_obeys_its_schema(changes):
    document = json.loads(r.to_json(make_report(**changes)))
    jsonschema.validate(document, r.schema())
    jsonschema.Draft202012Validator.check_schema(r.schema())


def test_the_schema_notices_what_is_missing_and_knows_every_key():
    document = r.to_document(make_report())
    assert set(document) == set(r.schema()["properties"])
    # What version 1.0 did not have is not required, so that its documents still obey.
    assert set(document) - set(r.schema()["required"]) == {
        "layer_times",
        "staircases",
        "ticket_layers",
        "block_layers",
        "no_blocks",
        "sparse",
        "engine",
    }
    for key in r.schema()["required"]:
        broken = {name: value for name, value in document.items() if name != key}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, r.schema())


def test_an_array_of_numbers_is_one_line():
    text_ = r.to_json(make_report())
    assert '"counts": [40, 47, 48, 49, 64],' in text_
    assert json.loads(text_) == json.loads(json.dumps(r.to_document(make_report())))


def test_numbers_that_json_lacks_become_null():
    report = make_report(
        validation=r.ValidationRecord(math.inf, math.nan, 5, "differs", 1e-4, None)
    )
    document = json.loads(r.to_json(report))
    assert document["validation"]["max_abs_error"] is None
    assert document["validation"]["max_rel_error"] is None
    jsonschema.validate(document, r.schema())


class Balanced(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects which there are."""

    VOID = ("meta", "br", "wbr", "img")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), "an event handler"
            assert "://" not in (value or ""), "something from the network"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_page_is_whole_and_shows_names_as_they_are(changes):
    report = make_report(**changes)
    parsed = Balanced()
    parsed.feed(page.render(report))
    parsed.close()
    assert parsed.open == []
    assert not parsed.seen & {"link", "iframe", "object", "form"}
    pictures = re.findall(r"<img[^>]* src=\"([^\"]{0,22})", page.render(report))
    count = 3 if report.ticket_layers else 2 if report.block_layers else 0
    assert pictures == ["data:image/png;base64,"] * count
    shown = "".join(parsed.words)
    assert f"{NASTY}.onnx" in shown
    assert wording.verdict_sentence(report) in shown
    for skip in report.skips:
        assert skip.subject in shown
        assert skip.reason in shown


def test_one_of_a_kind_is_told_as_one():
    (first, *_) = VARIANTS["of a ticket"]["ticket_layers"]
    report = make_report(ticket_layers=(dataclasses.replace(first, blocks=1),))
    record = dataclasses.replace(report.passes[0], changes=report.passes[0].changes[:1])
    shown = page.render(dataclasses.replace(report, passes=(record,)))
    assert "in the order of its block<" in shown
    assert ">1 change<" in shown
    assert not re.search(r"\b1 (changes|blocks|weights)\b", shown)


def test_a_ticket_says_how_good_it_is_and_what_the_original_is():
    report = make_report(**VARIANTS["of a ticket"])
    out = io.StringIO()
    text.print_report(report, console=Console(file=out, width=400))
    parsed = Balanced()
    parsed.feed(page.render(report))
    for shown in (out.getvalue(), "".join(parsed.words)):
        assert "The original is the exported network with the ticket's masks in it." in shown
        assert "test metric is 0.9876, that of the dense network 0.9944 (measured by" in shown
    silent = r.TicketRecord("t.pt", "1" * 64)
    assert wording.metrics_text(silent) == ""
    assert wording.metrics_text(dataclasses.replace(silent, test_metric=0.5)).startswith(
        "The ticket's test metric is 0.5000 (measured"
    )
    assert wording.original_text(make_report()) == ""


def test_the_terminal_shows_names_as_they_are_and_groups_skips():
    out = io.StringIO()
    text.print_report(make_report(), console=Console(file=out, width=400))
    shown = out.getvalue()
    assert "2.00 times as fast" in shown
    assert "95 % interval 0.490 to 0.520" in shown
    assert shown.count("they reach the graph output") == 1
    assert f"{NASTY}.0" in shown
    assert "and 6 more" in shown
    assert "64 → 48" in shown
    assert "8 → gone" in shown


def test_the_terminal_shows_blocks_and_why_there_are_none_once():
    (skip,) = VARIANTS["with blocks"]["no_blocks"]
    told = r.PassRecord("group-blocks", True, False, {}, 0.0, (), (skip,))
    for passes in ((), (told,)):
        report = make_report(**VARIANTS["with blocks"], passes=passes)
        out = io.StringIO()
        text.print_report(report, console=Console(file=out, width=400))
        assert "20x23, 13x17 in 33x55, 38 % of it" in out.getvalue()
        assert "2 of 9x6 in 18x12, 50 % of it" in out.getvalue()
        assert out.getvalue().count(f"{NASTY}.last") == 1
    lowered = dataclasses.replace(
        make_report().layers[0], form="gathered, 20x23, 13x17 in 33x55"
    )
    out = io.StringIO()
    text.print_report(make_report(layers=(lowered,)), console=Console(file=out, width=400))
    assert "gathered, 20x23, 13x17 in 33x55" in out.getvalue()


def test_the_page_outlines_blocks_where_they_lie_in_the_matrix():
    shown = page.render(make_report(**VARIANTS["with blocks"]))
    (overlay,) = re.findall(r'<svg viewBox="0 0 55 33"[^>]*>(.*?)</svg>', shown)
    boxes = re.findall(r'x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', overlay)
    assert boxes == [("0", "0", "23", "20"), ("23", "20", "17", "13")]
    assert "38 % of it: computed as gathered, 0.41 of the time of" in shown
    assert "1 of them is computed block by block, the other stays dense." in shown


def test_reasons_that_differ_in_names_only_are_one_group():
    skips = [
        r.Skip("a", "it carries 3 channels into 'x.y'", "fine"),
        r.Skip("b", "it carries 14 channels into 'z'", "fine"),
        r.Skip("c", "it is quantized", "dequantize it"),
    ]
    first, second = wording.group_skips(skips)
    assert first.reason == "it carries 3 to 14 channels into 'x.y' and 1 more"
    assert first.subjects == ("a", "b")
    assert second.reason == "it is quantized"
    record = r.PassRecord("p", True, True, {}, 0.0, (), tuple(skips))
    shown = page.render(make_report(passes=(record,)))
    assert "b: it carries 14 channels into &#x27;z&#x27;" in shown
    assert "dequantize it" in shown


def test_figures_are_put_as_people_read_them():
    assert wording.count_text(2_241_536) == "2.24 M"
    assert wording.bytes_text(3 * 2**20) == "3.0 MiB"
    assert wording.change_text(r.Count(200, 100)) == "-50.0 %"
    assert wording.change_text(r.Count(0, 100)) == "?"
    assert wording.change_text(r.Count(100, 100)) == "±0 %"


def test_a_99th_percentile_needs_as_many_samples():
    report = make_report()
    assert not [row for row in wording.size_rows(report) if "p99" in row[0]]
    many = dataclasses.replace(report.profile.baseline, samples=100)
    profile = dataclasses.replace(report.profile, baseline=many, optimized=many)
    report = make_report(profile=profile)
    assert [row[1] for row in wording.size_rows(report) if "p99" in row[0]] == ["7 ms"]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("deploykit optimize m.onnx --masks m.npz", "those of the masked model"),
        ("deploykit optimize masks.onnx", "those of the original"),
    ],
)
def test_it_is_said_what_outputs_are_equal_to(command, expected):
    report = make_report(command=command)
    out = io.StringIO()
    text.print_report(report, console=Console(file=out, width=400))
    assert f"equal to {expected}" in out.getvalue()
    assert expected in page.render(report)


def test_what_the_user_asked_for_is_no_warning():
    warning = "'align-channels' did not run: nothing was measured"
    report = make_report(command="deploykit optimize m --no-profile", warnings=(warning, "w"))
    assert wording.shown_warnings(report) == ("w",)
    assert wording.shown_warnings(make_report(warnings=(warning,))) == (warning,)
