"""Recipes, and the list of passes that they draw on."""

from __future__ import annotations

import importlib.metadata

import pytest

import passes
from deploykit import registry
from deploykit.errors import UsageError
from deploykit.recipe import Recipe, merge, parse_shape, read, to_toml
from tests.deploykit import fakes


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    monkeypatch.setattr(
        passes, "BUILTIN", (fakes.DropRows, fakes.Repeat, fakes.Halve), raising=False
    )


def test_a_recipe_survives_its_file(tmp_path):
    recipe = Recipe(
        passes=("drop-rows", "repeat"),
        options={"repeat": {"times": 3}},
        threads=2,
        profile=False,
        tolerance=1e-3,
        keep=('na"me', "b\\c", "d\x7f"),
        shape={"in.put": (1, 3, 8, 8)},
    )
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert read(path) == recipe


def test_the_effective_recipe_names_the_passes(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(Recipe()), encoding="utf-8")
    assert read(path).passes == ("drop-rows", "repeat"), "exact ones, in their order"


def test_a_plus_adds_a_pass_at_its_place():
    recipe = Recipe(passes=("+halve",)).check()
    assert recipe.passes == ("drop-rows", "repeat", "halve")
    assert Recipe(passes=("+repeat",)).pass_names == Recipe().pass_names


def test_the_command_line_wins(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[optimize]\nthreads = 2\n[options.repeat]\ntimes = 3\n", encoding="utf-8")
    merged = merge(read(path), {"repeat": {"times": "5"}}, threads=4, target=None)
    assert merged.threads == 4
    assert merged.check().options == {"repeat": {"times": 5}}


def test_files_are_relative_to_the_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[optimize]\nmasks = "m.npz"\ninputs = ["a.npz"]\n', encoding="utf-8")
    found = read(path)
    assert found.masks == str(tmp_path / "m.npz")
    assert found.inputs == (str(tmp_path / "a.npz"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimize", "is not TOML"),
        ("[optimise]", "the tables 'optimize' and 'options' only"),
        ("[optimize]\nthread = 1", r"\['thread'\], which there is not"),
        ("[optimize]\nthreads = true", "'threads' cannot be True"),
        ('[optimize]\npasses = "tidy"', "'passes' cannot be 'tidy'"),
        ("[optimize]\nshape = { x = 3 }", "'shape' cannot be"),
        ("[options]\nrepeat = 3", "a table for each pass"),
    ],
)
def test_a_bad_recipe_says_what_is_bad(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(passes=("drop",)), "no pass 'drop'. There are: drop-rows, repeat, halve"),
        (Recipe(options={"halve": {}}), "does not run"),
        (Recipe(options={"repeat": {"time": "3"}}), "no option 'time'. Its options: times"),
        (Recipe(options={"repeat": {"times": "x"}}), "'repeat.times' takes int, not 'x'"),
        (Recipe(target="moon"), "no target 'moon'"),
        (Recipe(runtime="moon"), "no runtime 'moon'"),
        (Recipe(passes=("+halve", "repeat")), "before all of \\+halve, repeat or before none"),
        (Recipe(passes=("+drop",)), "no pass 'drop'"),
        (Recipe(threads=0), "at least 1"),
        (Recipe(tolerance=0.0), "above 0"),
    ],
)
def test_a_recipe_is_checked_before_anything_runs(recipe, message):
    with pytest.raises(UsageError, match=message):
        recipe.check()


def test_shapes_are_read():
    assert parse_shape("a:b:1x3x640x640") == ("a:b", (1, 3, 640, 640))


@pytest.mark.parametrize("text", ["1x3", "x:", "x:1x0", "x:1xq", ":1x3"])
def test_bad_shapes_are_told(text):
    with pytest.raises(UsageError, match="NAME:1x3x640x640"):
        parse_shape(text)


class Point:
    """An entry point, as importlib.metadata has them."""

    def __init__(self, kind, name="plugin"):
        self.kind, self.name, self.value, self.dist = kind, name, "somewhere:Thing", None

    def load(self):
        if isinstance(self.kind, Exception):
            raise self.kind
        return self.kind


def plug_in(monkeypatch, kind):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Point(kind)])


def test_plug_ins_are_found_but_run_only_when_named(monkeypatch):
    plug_in(monkeypatch, fakes.Break)
    assert registry.find("break").origin == "somewhere:Thing"
    assert registry.default_names() == ("drop-rows", "repeat")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ImportError("no lib"), "cannot be loaded: no lib"),
        (dict, "not a subclass"),
        (fakes.Halve, "'deploykit' already uses"),
    ],
)
def test_bad_plug_ins_are_told(monkeypatch, kind, message):
    plug_in(monkeypatch, kind)
    with pytest.raises(UsageError, match=message):
        registry.all_passes()


def test_types_that_only_checkers_import_are_found(monkeypatch):
    monkeypatch.setattr(passes, "BUILTIN", (passes.RemoveChannels,))
    assert registry.parse_setting("remove-channels", "carry", "bias-map") == "bias-map"
    with pytest.raises(UsageError, match=r"takes carrier \| bias-map, not 'luck'"):
        registry.parse_setting("remove-channels", "carry", "luck")
    with pytest.raises(UsageError, match="cannot be given as text"):
        registry.parse_setting("remove-channels", "masks", "x")


def test_options_are_described():
    option = registry.find("repeat").options[0]
    assert (option.name, option.kind, option.default, option.help) == (
        "times",
        "int",
        None,
        "how many nodes.",
    )
    keep = registry.find("drop-rows").options[0]
    assert keep.is_settable
    assert registry.parse_setting("drop-rows", "keep", "a,b") == ("a", "b")
