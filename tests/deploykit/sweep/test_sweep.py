"""A sweep: whole in spite of a killed worker, equal to the serial one, and never done twice."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import onnx
import pytest

from deploykit.errors import RuntimeUnavailable, UsageError
from deploykit.sweep import cluster, table
from deploykit.sweep.device_lock import hold
from deploykit.sweep.records import TIMES, Cell, Model, Row
from deploykit.sweep.runner import sweep
from deploykit.sweep.sweep_file import read_sweep
from tests.deploykit.conftest import make_network

RECIPES = {
    # The first one measures; the others do not, and run side by side.
    "measured": 'gates = ["ratio <= 100", "accuracy >= 1"]\n[measure]\nduration = 0.02\nwarmup = 0.0\nrebuilds = 1\n',
    "plain": 'gates = ["parameters <= 0.9 * baseline"]\ndevices = []\n',
    "tidied": 'gates = ["parameters <= 0.9 * baseline"]\ndevices = []\n',
}
MORE = {
    "measured": '[accuracy]\nmetric = "evaluate:channels"\n',
    "plain": "",
    "tidied": 'passes = ["tidy"]\n',
}
METRIC = """
import os, signal, onnx

def channels(model):
    # The first process to come by with this model is killed, half-way through its cell.
    mark = os.environ.get("SWEEP_TEST_MARK")
    if mark and model.endswith("m1.onnx"):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return float(max(max(each.dims) for each in onnx.load(model).graph.initializer))
"""


@pytest.fixture
def folder(tmp_path):
    for place, dead in enumerate((8, 16, 32)):
        onnx.save(make_network(dead=dead), tmp_path / f"m{place}.onnx")
    for name, text in RECIPES.items():
        more = f"[optimize]\nprofile = false\n{MORE[name]}"
        (tmp_path / f"{name}.toml").write_text(f"{text}{more}", encoding="utf-8")
    (tmp_path / "evaluate.py").write_text(METRIC, encoding="utf-8")
    recipes = ", ".join(f'"{name}.toml"' for name in RECIPES)
    (tmp_path / "sweep.toml").write_text(
        f'recipes = [{recipes}]\nmodels = ["m0.onnx", "m1.onnx", {{ model = "m2.onnx", name = "small" }}]\n',
        encoding="utf-8",
    )
    return tmp_path


def same(row):
    return {key: value for key, value in dataclasses.asdict(row).items() if key not in TIMES}


def models(out):
    return {
        path.parent.name: path.read_bytes() for path in sorted(out.glob("cells/*/model.onnx"))
    }


def test_a_sweep_with_a_killed_worker_equals_the_serial_one(folder):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'ray'")
    serial = sweep(folder / "sweep.toml", folder / "serial", address=None)
    assert len(serial.rows) == 9
    assert not serial.errors
    assert {row.state for row in serial.rows} == {"passed", "failed"}

    mark = folder / "mark"
    command = [sys.executable, "-m", "deploykit", "sweep", "sweep.toml", "-o", "ray", "--json"]
    ran = subprocess.run(  # noqa: S603 - ours
        command,
        cwd=folder,
        env={**os.environ, "SWEEP_TEST_MARK": str(mark)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert mark.exists()
    document = json.loads(ran.stdout)
    assert document["retried"] == 1
    assert [same(Row(**row)) for row in document["rows"]] == [same(row) for row in serial.rows]
    assert models(folder / "ray") == models(folder / "serial")

    read = parquet.read_table(folder / "ray" / "results.parquet")
    assert read.to_pylist() == document["rows"]
    assert read.schema.field("memory_bytes").type == "int64"
    # Three cells were measured, and are points in both pictures.
    plot = (folder / "ray" / "plot.svg").read_text(encoding="utf-8")
    assert "size, MB" in plot
    assert "latency p50 on here, ms" in plot

    # Finished cells are not run again; one whose result was lost is.
    shutil.rmtree(folder / "serial" / "cells" / "plain--small")
    again = sweep(folder / "sweep.toml", folder / "serial", address=None)
    assert again.reused == 8
    assert [same(row) for row in again.rows] == [same(row) for row in serial.rows]
    assert models(folder / "serial") == models(folder / "ray")


def test_a_cell_that_fails_takes_no_other_along(folder, monkeypatch):
    (folder / "m1.onnx").write_bytes(b"none")
    (folder / "sweep.toml").write_text(
        'recipes = ["plain.toml"]\nmodels = ["m0.onnx", "m1.onnx"]\n', encoding="utf-8"
    )
    monkeypatch.setenv("A_TOKEN", str(folder))
    found = sweep(folder / "sweep.toml", folder / "out", address=None)
    assert found.exit_code == 1
    assert [row.state for row in found.rows] == ["passed", "error"]
    (row,) = found.errors
    assert row.exit_code == 3
    assert "m1.onnx" in row.reason
    assert str(folder) not in row.reason  # a secret, today
    assert not (folder / "out" / "plot.svg").exists()
    # The one that failed is tried again.
    onnx.save(make_network(), folder / "m1.onnx")
    again = sweep(folder / "sweep.toml", folder / "out", address=None)
    assert (again.reused, again.exit_code) == (1, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recipes = [", r"sweep\.toml:1: this is not TOML"),
        ("models = ['m0.onnx']", "has no 'recipes'"),
        ("recipes = []", r"sweep\.toml:1: 'recipes' has to be an array"),
        ("recipe = ['plain.toml']", r"sweep\.toml:1: a sweep has no 'recipe'\. Did you mean"),
        ("recipes = ['plain.toml', 'plain.toml']", "is there twice"),
        ("recipes = ['none.toml']\nmodels = ['m0.onnx']", r"sweep\.toml:1: cell 'none--m0'"),
        ("recipes = ['plain.toml']", r"\[inputs\]"),
        ("recipes = ['plain.toml']\nmodels = ['m9.onnx']", "m9.onnx"),
        ("recipes = ['plain.toml']\nmodels = [3]", r"sweep\.toml:2: each of 'models'"),
        ("recipes = ['plain.toml']\nmodels = [{ file = 'a' }]", "a model has no 'file'"),
        ("recipes = ['plain.toml']\nmodels = [{ name = 'a' }]", "has no 'model'"),
        ("recipes = ['measured.toml']\nmodels = ['m0.onnx']\ndevices = ['']", "text in quotes"),
        ("recipes = ['measured.toml']\nmodels = ['m0.onnx']\ndevices = ['u:p@h']", "password"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(folder, text, reason):
    (folder / "sweep.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=reason):
        read_sweep(folder / "sweep.toml", folder / "out")
    assert not (folder / "out").exists()


def test_cells_have_names_of_their_own(folder):
    (folder / "more").mkdir()
    shutil.copy(folder / "m0.onnx", folder / "more" / "m0.onnx")
    (folder / "sweep.toml").write_text(
        'recipes = ["measured.toml"]\nmodels = ["m0.onnx", "more/m0.onnx"]\ndevices = ["here"]\n',
        encoding="utf-8",
    )
    cells = read_sweep(folder / "sweep.toml", folder / "out").cells
    assert [cell.name for cell in cells] == ["measured--m0-1--here", "measured--m0-2--here"]
    assert [cell.measures for cell in cells] == [("here",), ("here",)]


def test_what_a_sweep_says_has_no_secret_in_it(folder, run, monkeypatch):
    monkeypatch.setenv("DEPLOY_TOKEN", "correcthorse")
    (folder / "sweep.toml").write_text(
        'name = "of correcthorse"\nrecipes = ["tidied.toml"]\nmodels = ["m0.onnx"]\n'
    )
    out = folder / "out"
    words = ("sweep", folder / "sweep.toml", "-o", out, "--serial")
    for more in ((), ("--json",)):
        found = run(*words, *more)
        assert found.exit_code == 0, found.stderr
        assert "correcthorse" not in found.stdout + found.stderr
    assert "of ***" in (out / "results.json").read_text()
    found = run(*words[:2], "-o", folder / "tidied.toml" / "correcthorse", "--serial")
    assert found.exit_code == 2
    assert "***" in found.stderr
    assert "correcthorse" not in found.stderr


def test_two_sweeps_do_not_share_a_folder(folder):
    fcntl = pytest.importorskip("fcntl", reason="this system has no file locks")
    (folder / "out").mkdir()
    with (folder / "out" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another sweep"):
            sweep(folder / "sweep.toml", folder / "out", address=None)


def test_a_device_is_measured_on_by_one_at_a_time(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no file locks")
    code = (
        "import sys; from deploykit.sweep.device_lock import hold\n"
        "with hold(['b', 'a']): print('mine', flush=True)"
    )
    with hold(["here-for-a-test", "a"]):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)  # noqa: S603
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
    assert other.communicate(timeout=60)[0] == b"mine\n"


class FakeRay:
    """Workers that die as often as they are told to."""

    class exceptions:  # noqa: N801 - a module of Ray's
        class RayError(Exception):
            pass

        class LocalRayletDiedError(RayError):
            pass

    def __init__(self, deaths, of="RayError"):
        self.deaths = dict(deaths)
        self.of = getattr(self.exceptions, of)
        self.running = set()
        self.most = 0

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, **options):
        assert options == {"max_retries": 0}

        def wrap(function):
            return self

        return wrap

    def options(self, **given):
        outer = self

        class Task:
            def remote(self, cell, cache):
                outer.running.add(cell)
                outer.most = max(
                    outer.most, sum("nano" in each.measures for each in outer.running)
                )
                return cell

        return Task()

    def wait(self, refs, *, num_returns):
        return [refs[-1]], refs[:-1]

    def get(self, cell):
        self.running.remove(cell)
        if self.deaths.get(cell.name, 0):
            self.deaths[cell.name] -= 1
            raise self.of
        return (Row(cell.name, "r", "m", None, "passed", "", 0),)


def test_a_device_has_one_cell_at_a_time_and_a_cell_three_tries(tmp_path):
    ray = FakeRay({"c1": 2, "c4": 9})
    cells = [
        Cell("r", tmp_path / "r.toml", Model(""), None, tmp_path / f"c{n}", measures)
        for n, measures in enumerate(
            [("nano",), ("nano",), ("here",), (), ("nano", "here"), ()]
        )
    ]
    rows = {}
    driver = cluster._Driver(ray, tmp_path, lambda cell, found: rows.update({cell.name: found}))
    assert driver.run(cells) == 4
    assert ray.most == 1
    assert set(rows) == {f"c{n}" for n in range(6)}
    (dead,) = rows["c4"]
    assert (dead.state, dead.exit_code) == ("error", 4)
    assert "died 3 times" in dead.reason


def test_a_cluster_that_has_died_spoils_no_other_cell(tmp_path):
    exceptions = pytest.importorskip("ray.exceptions", reason="needs the extra 'ray'")
    assert issubclass(exceptions.LocalRayletDiedError, exceptions.RayError)
    ray = FakeRay({"c0": 1}, of="LocalRayletDiedError")
    cells = [
        Cell("r", tmp_path / "r.toml", Model(""), None, tmp_path / f"c{n}", ("here",))
        for n in range(3)
    ]
    rows = {}
    driver = cluster._Driver(ray, tmp_path, lambda cell, found: rows.update({cell.name: found}))
    with pytest.raises(RuntimeUnavailable, match="give the same command again"):
        driver.run(cells)
    assert not rows, "nothing is said of a cell that was not run to its end"


def test_what_is_not_installed_is_said_before_anything_is_run(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeUnavailable, match="--serial"):
        cluster._start("local")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install"):
        table.check_writable()
