"""The page says what `report.json` says: every figure in its tables, sentences and pictures, both ways."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from deploykit.report import html as page
from deploykit.report import records as r
from deploykit.report import wording
from tests.deploykit.test_report import NASTY, VARIANTS, make_report

UNITS = {
    "": 1.0, "B": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "%": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip
NUMBER = re.compile(
    r"(\d[\d,]*)(\.\d+)?(?:e([+-]?\d+))?(?: ?(KiB|MiB|GiB|ms|µs|%|[BskMG])(?![A-Za-z]))?"
)

NOT_SHOWN = re.compile(
    r"profile\.(samples|device)\.|layers\.\d+\.(shape|zero_inputs)|staircases\.\d+\.multiples|passes\.\d+\.options"
    r"|ticket_layers\.\d+\.picture|block_layers\.\d+\.(picture|outlines|blocks)|engine\.shapes\."
)
"""Numbers of the document that are drawn as a whole, or that the page has no use for."""


@dataclasses.dataclass
class Element:
    tag: str
    keys: list[str]
    values: list[float | None]
    picture: str
    words: str = ""
    shapes: list[dict[str, str]] = dataclasses.field(default_factory=list)


class Reader(html.parser.HTMLParser):
    """Collects what carries figures: its text (without titles), and the shapes inside of it."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.elements, self.scripts, self.figures = [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "svg":
            self.figures += 1
        if tag in {"path", "use"} and not any(open_ == "defs" for open_, _ in self.stack):
            for _, element in self.stack:
                if element is not None:
                    element.shapes.append(given)
        if tag in {"meta", "br", "wbr", "img"}:
            if tag == "br":
                self.handle_data("\n")
            return
        element = None
        if "data-key" in given:
            values = [json.loads(each) for each in given["data-value"].split(" ")]
            element = Element(tag, given["data-key"].split(" "), values, f"svg{self.figures}")
            self.elements.append(element)
        self.stack.append((tag, element))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if self.stack[-1:] and self.stack[-1][0] == "script":
            self.scripts.append(data)
        elif not any(tag == "title" for tag, _ in self.stack):
            for _, element in self.stack:
                if element is not None:
                    element.words += data


def leaves(document, place=""):
    if isinstance(document, dict):
        for key, value in document.items():
            yield from leaves(value, f"{place}{key}.")
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from leaves(value, f"{place}{index}.")
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield place.rstrip("."), document


def find(document, key):
    for part in key.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def numbers(text):
    """Pairs of a number that a text shows and half a unit of its last digit."""
    for whole, part, power, unit in NUMBER.findall(text):
        scale = UNITS[unit] * 10.0 ** int(power or 0)
        places = max(0, len(part) - 1)
        yield float(whole.replace(",", "") + part) * scale, 0.5 * 10.0**-places * scale


def rich_report():
    """A report whose figures all differ, with more layers than a picture names."""
    dice = np.random.default_rng(0)

    def seconds(count, scale=1e-3):
        return tuple(float(each) for each in scale * dice.uniform(0.2, 1.0, count))

    counts = [(int(dice.integers(33, 999)), int(dice.integers(2, 32))) for _ in range(40)]
    layers = tuple(
        r.Layer(
            f"block.{i}.weight", f"/block.{i}/Conv", "Conv", (before, 7, 3, 3), (after, 5, 3, 3),
            r.Count(before, after), r.Count(7 + i, 5 + i), float(dice.uniform()), i, 0, obeys_2_4=False,
        )
        for i, (before, after) in enumerate(counts)
    )  # fmt: skip
    times = (
        *(r.LayerTimeRow(f"/block.{i}/Conv", "Conv", *seconds(2)) for i in range(40)),
        r.LayerTimeRow("added", "Pad", None, 1.5e-6),
        r.LayerTimeRow("gone", "Mul", 2e-6, None),
    )
    wall = {
        name: dice.lognormal(-5 + shift, 0.1, 600)
        for name, shift in (("baseline", 0), ("optimized", -0.7))
    }
    rows = {
        name: r.LatencyRow(
            *(float(each) for each in np.percentile(times_, (50, 90, 95, 99))), 600
        )
        for name, times_ in wall.items()
    }
    stairs = tuple(
        r.Staircase(
            f"/block.{i}/Conv", f"block.{i}.weight", "Conv", "output channels", "3x3 Conv",
            counts=(23, 24, 28, 29, 32, 48, 64),
            seconds=(middle := seconds(7, scale)),
            lo_s=tuple(0.97 * each for each in middle),
            hi_s=tuple(1.05 * each for each in middle),
            before=64, as_is=29, after=32, multiples=(4, 8, 16), clock="cpu", rounds=61 + i,
        )
        for i, scale in enumerate((1e-3, 1e-2))
    )  # fmt: skip
    report = make_report()
    return dataclasses.replace(
        report,
        size=r.Size(r.Count(3_487_818, 1_807_074), r.Count(13_951_272, 7_259_811), r.Count(301_000_000, 150_000_001), r.Count(101, 99)),
        validation=r.ValidationRecord(
            1.04e-5, 6.61e-6, 5, "equal", 1e-4, "y", (r.OutputRow("y", "float32", 1.04e-5, 6.61e-6, 1e-4, True),)
        ),
        candidates=(
            r.Candidate("original", 1.0, (1.0, 1.0), chosen=False, parameters=3_487_818),
            r.Candidate("as is", 1.0504, (1.042, 1.0581), chosen=False, parameters=1_775_885),
            r.Candidate("align-channels multiple=8", 0.5384, (0.5291, 0.5489), chosen=True, parameters=1_807_074),
            r.Candidate("screened", 1.3, (1.1, 1.6), chosen=False, parameters=17, note="behind"),
        ),
        profile=dataclasses.replace(
            report.profile, baseline=rows["baseline"], optimized=rows["optimized"],
            ratio=r.Interval(0.5384, (0.5291, 0.5489)), clock="wall", threads=3,
            samples={
                name: r.Samples(tuple(map(float, each)), tuple(map(float, each)), (0,) * 600)
                for name, each in wall.items()
            },
        ),
        layers=layers,
        layer_times=times,
        staircases=stairs,
        elapsed_s=27.43,
    )  # fmt: skip


REPORTS = {
    "rich": rich_report(),
    **{name: make_report(**each) for name, each in VARIANTS.items()},
}


@pytest.fixture(scope="module", params=REPORTS)
def case(request):
    report = REPORTS[request.param]
    return report, json.loads(r.to_json(report)), Reader(page.render(report))


def test_every_figure_is_that_of_the_document_to_the_last_digit(case):
    _, document, shown = case
    assert len(shown.elements) > 10
    for element in shown.elements:
        assert element.values == [find(document, key) for key in element.keys], element


def test_every_text_says_the_figures_that_it_stands_for(case):
    _, _, shown = case
    told = [element for element in shown.elements if element.words]
    assert told
    for element in told:
        said = list(numbers(element.words))
        for key, value in zip(element.keys, element.values, strict=True):
            if value is None:
                assert re.search(r"gone|\?|-|inf|nan", element.words), (key, element.words)
                continue
            assert any(abs(number - value) <= 1.001 * half for number, half in said), (
                key, value, element.words,
            )  # fmt: skip


def test_no_figure_of_the_document_is_left_out(case):
    _, document, shown = case
    keys = {key for element in shown.elements if element.words for key in element.keys}
    missing = [
        key for key, _ in leaves(document) if key not in keys and not NOT_SHOWN.match(key)
    ]
    assert missing == []


def test_the_verdict_says_the_figures_of_the_document():
    document = json.loads(r.to_json(REPORTS["rich"]))
    found = [
        float(each)
        for each in re.findall(r"\d+\.\d+", wording.verdict_sentence(REPORTS["rich"]))
    ]
    ratio, size = document["profile"]["ratio"], document["size"]["parameters"]
    expected = [
        1 / ratio["median"],
        ratio["median"],
        *ratio["ci95"],
        100 * (1 - size["after"] / size["before"]),
    ]
    assert found == pytest.approx(expected, abs=0.051)
    assert len(found) == 5


def place_of(element):
    """Left, right, top and bottom of a shape."""
    (shape,) = element.shapes
    if "x" in shape:
        return float(shape["x"]), float(shape["x"]), float(shape["y"]), float(shape["y"])
    points = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", shape["d"]), dtype=float)
    return *np.sort(points[:, 0])[[0, -1]], *np.sort(points[:, 1])[[0, -1]]


def lies_on_a_line(values, places):
    """Whether places follow the values without a bend; also how far along the axis each unit is."""
    line = np.polyfit(values, places, 1)
    assert np.abs(np.polyval(line, values) - places).max() < 0.05, (values, places)
    assert abs(line[0]) * np.ptp(values) > 20, "drawn all in one place"
    return line


def drawn(shown, pattern):
    """Shapes of figures that match, by picture, each with the first value and where it is."""
    found = {}
    for element in shown.elements:
        if element.tag == "g" and not element.words and re.fullmatch(pattern, element.keys[0]):
            found.setdefault(element.picture, []).append((element.values, place_of(element)))
    assert found, pattern
    return found


def test_pictures_are_to_scale():
    shown = Reader(page.render(REPORTS["rich"]))
    for picture in drawn(shown, r"layer_times\.\d+\.\w+").values():
        values = [each[0] for each, _ in picture]
        wide = np.array([right - left for _, (left, right, _, _) in picture])
        high = np.array([bottom - top for _, (_, _, top, bottom) in picture])
        lengths = wide if np.ptp(wide) > np.ptp(high) else high
        line = lies_on_a_line(values, lengths)
        assert abs(line[1]) < 0.05, "a bar that does not begin at zero"
    for picture in drawn(shown, r"layers\.\d+\.outputs\.after").values():
        assert len(picture) in {12, 40}
    points = drawn(shown, r"staircases\.\d+\.counts\.\d+")
    assert len(points) == 2
    for picture in points.values():
        assert len(picture) == 7
        lies_on_a_line([each[0] for each, _ in picture], [left for _, (left, *_) in picture])
        line = lies_on_a_line(
            [each[1] for each, _ in picture], [top for _, (*_, top, _) in picture]
        )
        assert line[0] < 0, "more time is higher up"
    for picture in drawn(shown, r"staircases\.\d+\.lo_s\.\d+").values():
        ends = [(value, top) for values, (_, _, upper, lower) in picture
                for value, top in zip(values, (lower, upper), strict=True)]  # fmt: skip
        lies_on_a_line(*zip(*ends, strict=True))
    (picture,) = drawn(shown, r"candidates\.\d+\.ratio").values()
    assert len(picture) == 4
    lies_on_a_line([each[0] for each, _ in picture], [left for _, (left, *_) in picture])


def test_shares_of_channels_are_shares_of_the_width():
    shown = Reader(page.render(REPORTS["rich"]))
    document = r.to_document(REPORTS["rich"])
    kept = drawn(shown, r"layers\.\d+\.outputs\.after")
    (rows,) = [picture for picture in kept.values() if len(picture) == 12]
    keys = [each.keys[0] for each in shown.elements if each.tag == "g" and not each.words
            and re.fullmatch(r"layers\.\d+\.outputs\.after", each.keys[0])][:12]  # fmt: skip
    for key, (values, (left, right, *_)) in zip(keys, rows, strict=True):
        share = values[0] / find(document, key.replace("after", "before"))
        assert (right - left) / 380 == pytest.approx(share, abs=1e-3)


def test_nothing_comes_from_elsewhere_and_only_its_own_script_may_run():
    text = page.render(REPORTS["rich"])
    (script,) = Reader(text).scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.split("; ")[:3] == [
        "default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'",
    ]  # fmt: skip
    assert "</" not in script
    assert not re.search(r"://|@import|url\((?!#)", text.replace(NASTY, ""))


def test_without_its_script_nothing_is_hidden_and_no_control_is_dead():
    text = page.render(REPORTS["rich"])
    still = text[: text.index("<script>")]
    assert not re.search(
        r"<(button|input|noscript)|display: ?none(?!.*@media print)|\bhidden\b",
        still.split("</style>")[1],
    )
    for layer in REPORTS["rich"].layers:
        assert layer.weight in re.sub(r"<wbr>", "", still)


def test_a_model_of_hundreds_of_layers_makes_a_page_of_less_than_3_megabytes():
    report = rich_report()
    layers = tuple(
        dataclasses.replace(report.layers[i % 40], weight=f"{i}.weight", node=f"/features/stage/{i}/Conv")
        for i in range(400)
    )  # fmt: skip
    times = tuple(
        r.LayerTimeRow(f"/features/stage/{i}/Conv", "Conv", 1e-3, 5e-4) for i in range(400)
    )
    many = r.Samples(
        *(tuple(np.random.default_rng(0).uniform(1, 2, 9000).tolist()),) * 2, (0,) * 9000
    )
    profile = dataclasses.replace(report.profile, samples={"baseline": many, "optimized": many})
    changes = tuple(r.Change(f"{i}.weight", "output channels", 64, 48) for i in range(400))
    passes = tuple(dataclasses.replace(report.passes[0], changes=changes) for _ in range(4))
    text = page.render(
        dataclasses.replace(
            report, layers=layers, layer_times=times, profile=profile, passes=passes
        )
    )
    assert len(text.encode()) < 3_000_000
    assert text.count("<svg") < 12, "hundreds of layers are no hundreds of pictures"
    assert "/features/stage/399/Conv" in text.replace("<wbr>", "")


@pytest.mark.parametrize(
    "name",
    ["$x_1$ & $\\frac$", "卷积/层", "a\x00b\x1b[31m\n", "x" * 5000, "", "</title><script>"],
)
def test_any_name_can_be_drawn(name):
    report = REPORTS["rich"]
    layers = (dataclasses.replace(report.layers[0], weight=name, node=name), *report.layers[1:])
    stairs = (dataclasses.replace(report.staircases[0], layer=name, weight=name),)
    candidates = (*report.candidates[:2], dataclasses.replace(report.candidates[2], name=name))
    times = (dataclasses.replace(report.layer_times[0], name=name), *report.layer_times[1:])
    text = page.render(
        dataclasses.replace(
            report, layers=layers, staircases=stairs, candidates=candidates, layer_times=times
        )
    )
    shown = Reader(text)
    assert len(shown.scripts) == 1
    assert len(shown.elements) > 100
    assert not set(text) & {"\x00", "\x1b"}


def test_drawing_leaves_no_trace_of_matplotlib():
    before = dict(mpl.rcParams)
    page.render(REPORTS["rich"])
    assert dict(mpl.rcParams) == before
    code = (
        "import sys, deploykit.report.html as page, deploykit.pipeline\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import deploykit.report.plots\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    assert result.stdout.strip() == "False", result.stderr


def test_the_same_report_gives_the_same_page():
    assert page.render(REPORTS["rich"]) == page.render(REPORTS["rich"])


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(1.5e-6, "1.50 µs"), (9.9996e-4, "1.00 ms"), (0.0123, "12.3 ms"), (0.9996, "1.00 s"), (123.4, "123 s"), (0.0, "0.00 µs")],
)  # fmt: skip
def test_times_are_put_in_the_unit_that_suits(seconds, told):
    assert wording.time_text(seconds) == told
