"""Advice of a step names keys of its recipe, and not options that another command has."""

from __future__ import annotations

import re

import click
import pytest

from deploykit.cli.optimize import command as optimize
from deploykit.cli.profile import command as profile
from deploykit.cli.run import command as run_command
from deploykit.errors import PassFailed
from deploykit.step import schema
from deploykit.step.recipe_words import OPTIONS, in_words_of_recipes, without_options


def options_of(command):
    found = (each for each in command.params if isinstance(each, click.Option))
    return {name for each in found for name in (*each.opts, *each.secondary_opts)}


def test_every_option_is_one_of_a_command_and_every_key_one_of_recipes():
    tables = schema.schema(with_passes=False)["properties"]
    assert options_of(optimize) | options_of(profile) >= set(OPTIONS)
    assert not options_of(run_command) & set(OPTIONS)
    for key in OPTIONS.values():
        table, name = key.split(" ")[0].split(".")
        assert name in tables[table]["properties"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("give others with --shape, or --batch", "give others with optimize.shape"),
        (
            "a longer --duration and more --rebuilds",
            "a longer measure.duration and more measure.rebuilds",
        ),
        ("real ones with --inputs.", "real ones with inputs.examples."),
        ("--set tidy.x=1 --shapely a--shape", "--set tidy.x=1 --shapely a--shape"),
    ],
)
def test_options_become_keys(said, told):
    assert in_words_of_recipes(said) == told


def test_an_error_stays_what_it_is():
    with (
        pytest.raises(PassFailed, match=re.escape("with optimize.shape")) as caught,
        without_options(),
    ):
        raise PassFailed("tidy", "give sizes with --shape")
    assert caught.value.name == "tidy"


def test_sizes_that_were_assumed_are_told_once(step, run):
    # Its batch is open; the example is left out, so that a size is made up.
    step.edit('examples = ["example.npz"]\n', "")
    found = run("run", step.recipe)
    assert found.exit_code == 0, found.stderr
    words = " ".join(found.stdout.split())
    assert words.count("figures are for") == 1
    assert "optimize.shape" in words
    assert not re.search(r"--(shape|batch|inputs|duration|rebuilds)", words)
