"""Recipes of steps: joined along `extends`, with lines for every value, and a schema that editors read."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from deploykit import registry
from deploykit.errors import UsageError
from deploykit.step.recipe_file import effective, read_recipe
from deploykit.step.recipe_toml import to_toml
from deploykit.step.schema import schema
from deploykit.step.sources import find_sources
from deploykit.step.toml_lines import find_line
from tests.deploykit.step.conftest import RECIPE

TEXT = '''\
# a comment
name = "x"
gates = [
  "a",  # one
  # none
  "b",
  "c" ]

[inputs]
model = "m"
files = ["a", "b"]
[a.b]
c.d = { e = 1, f = 2 }
[[devices]]
on = "here"

[[devices]]
on = "x"
name = """
long
"""
"with space" = [[1, 2],
  [3, 4]]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("gates",), 3),
        (("gates", 0), 4),
        (("gates", 1), 6),
        (("gates", 2), 7),
        (("inputs",), 9),
        (("inputs", "files", 1), 11),
        (("a", "b", "c", "d", "f"), 13),
        (("devices", 1), 17),
        (("devices", 1, "on"), 18),
        (("devices", 1, "name"), 19),
        (("devices", 1, "with space", 1), 23),
        (("inputs", "missing"), 9),
        (("nothing",), None),
    ],
)
def test_a_value_has_a_line(path, line):
    assert find_line(TEXT, path) == line


def test_recipes_build_on_others(step, tmp_path):
    """Tables are joined, the nearest wins, and files are where the recipe that names them says."""
    base = tmp_path / "team" / "base.toml"
    base.parent.mkdir()
    np.savez(base.parent / "example.npz", x=np.zeros((1, 256), np.float32))
    base.write_text(
        'gates = ["load <= 9 s"]\n[inputs]\nexamples = ["example.npz"]\n'
        '[optimize]\nthreads = 3\nkeep = ["head"]\n[options.remove-channels]\ncarry = "bias-map"\n'
    )
    step.edit('name = "small"', 'extends = "../team/base.toml"')
    step.edit('examples = ["example.npz"]\n', "")
    recipe = read_recipe(step.recipe)
    assert recipe.extends == (base,)
    assert recipe.name == "recipe"
    assert recipe.optimize.inputs == (str(step.folder / "../team/example.npz"),) or (
        Path(recipe.optimize.inputs[0]).resolve() == base.parent / "example.npz"
    )
    assert (recipe.optimize.threads, recipe.optimize.keep) == (3, ("head",))
    assert recipe.optimize.profile is False
    assert recipe.optimize.options == {"remove-channels": {"carry": "carrier"}}
    assert [gate.metric for gate in recipe.gates] == ["max_error", "parameters", "accuracy"]
    assert effective(recipe)["inputs"]["examples"] == ["../team/example.npz"]


def test_the_effective_recipe_says_the_same_again(step):
    recipe = read_recipe(step.recipe)
    copy = step.folder / "copy.toml"
    copy.write_text(to_toml(effective(recipe)), encoding="utf-8")
    assert effective(read_recipe(copy)) == effective(recipe)


def test_settings_are_toml_or_text_and_options_are_of_their_type(step):
    recipe = read_recipe(
        step.recipe,
        settings=(
            "optimize.threads=2",
            "output.folder=there",
            "align-channels.multiple=8",
            "optimize.threads=4",
        ),
        on=("here",),
    )
    assert recipe.optimize.threads == 4, "the last one wins"
    assert recipe.output == Path.cwd() / "there"
    assert recipe.optimize.options["align-channels"] == {"multiple": 8}


def test_the_schema_is_one_and_knows_every_option():
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    checker = jsonschema.Draft202012Validator(found)
    checker.validate(tomllib.loads(RECIPE))
    for name, entry in registry.all_passes().items():
        for option in entry.options:
            assert (
                option.name in found["properties"]["options"]["properties"][name]["properties"]
            ) == option.is_settable
    for text in (
        "[options.remove-channels]\ncarry = 'luck'",
        "[options.tidy]\nx = 1",
        "[optimize]\nthreads = true",
    ):
        assert not checker.is_valid(tomllib.loads(text)), text


def test_the_schema_describes_every_key():
    def keys(part):
        for name, each in part.get("properties", {}).items():
            yield name, each
            yield from keys(each)
            yield from keys(each.get("items", {}))

    assert [
        name for name, each in keys(schema(with_passes=False)) if not each.get("description")
    ] == []


def test_the_command_prints_it(run):
    printed = run("schema", "step")
    assert json.loads(printed.stdout) == schema()
    assert "step" in run("schema").stdout.split()


def test_a_module_is_made_of_what_it_imports(tmp_path):
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    files = {
        "metric.py": "import json, lib.deep.one\nfrom lib import two\nimport numpy as np\n",
        "lib/__init__.py": "",
        "lib/two.py": "from . import three\n",
        "lib/three.py": "def late():\n    import four\n",
        "lib/deep/__init__.py": "",
        "lib/deep/one.py": "from ..three import late\n",
        "four.py": "raise RuntimeError('nothing is run')\n",
        "stranger.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = find_sources("metric", tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in found.files} == {*files} - {
        "stranger.py"
    }
    assert list(found.versions) == ["numpy"]
    (tmp_path / "four.py").write_text("def (:")
    with pytest.raises(UsageError, match=r"four.py' is no Python: .* \(line 1\)"):
        find_sources("metric", tmp_path)
