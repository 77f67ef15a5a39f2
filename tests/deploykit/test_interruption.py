# ruff: noqa: S603, S607 - what is started here is ours
"""Runs that are killed, interrupted, doubled, or run out of space: a result is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import onnx
import pytest

from deploykit.errors import UsageError
from deploykit.output_folder import OutputFolder
from tests.deploykit.conftest import make_network

KILLS, RACES = 50, 6
PATIENCE_S = 120
OLD = {"model.onnx": b"old model", "report.json": b"{}"}


def put_old(out):
    out.mkdir()
    for name, content in OLD.items():
        (out / name).write_bytes(content)


def held(out):
    return {each.name: each.read_bytes() for each in out.iterdir()}


def names(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_killed_run_leaves_a_whole_result_and_two_runs_never_mix(tmp_path):
    command = [sys.executable, "-m", "tests.deploykit.kill_runs", str(KILLS), str(RACES), "0"]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["seen"]["killed"] == KILLS
    # one of two wins, and the other is told
    assert found["seen"] == {
        **found["seen"],
        "race: exit codes [0, 2]": RACES,
    }


def raise_at(monkeypatch, place, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(place, fail)


STAGES = (
    "deploykit.model_io.save",
    "deploykit.pipeline.compare",
    "deploykit.report.html.render",
    "deploykit.output_folder._exchange",
)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written is left"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "Free some space"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), 2, "Free some of your quota"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 2, "Check the disk"),
        (MemoryError("Unable to allocate 9 GiB"), 3, "more memory than there is"),
    ],
)
def test_whatever_ends_a_run_leaves_the_earlier_result(
    run, network, tmp_path, monkeypatch, stage, error, code, message
):
    put_old(tmp_path / "out")
    raise_at(monkeypatch, stage, error)
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", "--force")
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert held(tmp_path / "out") == OLD
    assert names(tmp_path) == ["out", "source"]


def test_where_folders_cannot_be_exchanged_two_renames_do_it(
    run, network, tmp_path, monkeypatch
):
    monkeypatch.setattr("deploykit.output_folder._exchange", lambda *_: False)
    put_old(tmp_path / "out")
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile", "--force")
    assert result.exit_code == 0, result.stderr
    assert held(tmp_path / "out")["model.onnx"] != OLD["model.onnx"]
    assert names(tmp_path) == ["out", "source"]


def test_the_next_run_puts_back_what_a_run_killed_between_two_renames_took_away(run, tmp_path):
    holder = tmp_path / ".out.deploykit"
    (holder / "work").mkdir(parents=True)
    put_old(holder / "old")
    result = run("optimize", tmp_path / "no.onnx", "-o", tmp_path / "out", "--no-profile")
    assert result.exit_code == 2
    assert held(tmp_path / "out") == OLD
    assert names(tmp_path) == ["out"]


def test_the_next_run_clears_away_what_a_killed_one_left(run, network, tmp_path):
    left = tmp_path / ".out.deploykit" / "result"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half a mod")
    result = run("optimize", network, "-o", tmp_path / "out", "--no-profile")
    assert result.exit_code == 0, result.stderr
    assert names(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_a_second_run_on_one_destination_is_refused(run, network, tmp_path, options):
    out = tmp_path / "out"
    with OutputFolder(out) as first:
        (first.path / "model.onnx").write_bytes(b"the first")
        second = run("optimize", network, "-o", out, "--no-profile", *options)
        assert second.exit_code == 2
        assert "another run of deploykit is writing to" in second.stderr
        assert "Wait for it" in second.stderr
        first.commit()
    assert held(out) == {"model.onnx": b"the first"}
    assert names(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("there", [{}, OLD])
def test_what_is_put_there_during_a_run_stays(tmp_path, there):
    out = tmp_path / "out"
    if there:
        put_old(out)
    with OutputFolder(out, force=True) as folder:
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("years of work")
        with pytest.raises(UsageError, match=r"holds 'thesis\.txt'"):
            folder.commit()
    assert held(out) == {**there, "thesis.txt": b"years of work"}
    assert names(tmp_path) == ["out"]


def test_what_is_put_there_while_folders_are_exchanged_stays(tmp_path, monkeypatch):
    from deploykit import output_folder

    out, exchange = tmp_path / "out", output_folder._exchange
    put_old(out)

    def put_and_exchange(one, other):
        (out / "thesis.txt").write_text("years of work")
        monkeypatch.setattr(output_folder, "_exchange", exchange)
        return exchange(one, other)

    monkeypatch.setattr(output_folder, "_exchange", put_and_exchange)
    with (
        OutputFolder(out, force=True) as folder,
        pytest.raises(UsageError, match=r"'thesis\.txt'"),
    ):
        folder.commit()
    assert held(out) == {**OLD, "thesis.txt": b"years of work"}


def test_a_destination_that_cannot_be_replaced_is_refused(run, network, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.onnx.data").write_bytes(bytes(64 * 256 * 4))
    model = onnx.load(network)
    tensor = next(each for each in model.graph.initializer if each.name == "w1")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data/model.onnx.data")
    onnx.save(model, tmp_path / "far.onnx")
    monkeypatch.chdir(tmp_path / "here")
    for source, place, message in (
        (network, ".", "you are in it"),
        (network, "/proc", "holds"),
        (network, "/proc/nothing/out", "cannot write to"),
        (network, tmp_path / "loop", "it is a link to itself"),
        (network, tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "far.onnx", tmp_path / "data", "'model.onnx.data' lies there"),
    ):
        result = run("optimize", source, "-o", place, "--no-profile", "--force")
        assert result.exit_code == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert names(tmp_path) == ["data", "far.onnx", "here", "loop", "source"]


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of so many KiB; skips where that is not allowed."""
    mounted = []

    def mount(kilobytes):
        place = tmp_path / f"disk{kilobytes}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_and_nothing_is_left_on_it(run, network, disk):
    codes = []
    for kilobytes in (4, 20, 44, 60, 76, 100, 160, 2000):
        place = disk(kilobytes)
        result = run("optimize", network, "-o", place / "out", "--no-profile")
        codes.append(result.exit_code)
        if result.exit_code == 0:
            assert len(names(place / "out")) == 4
            continue
        assert result.exit_code == 2, result.stderr
        assert "No space left on device" in result.stderr
        assert result.stderr.count("\n") == 1
        assert names(place) == []
    assert codes[0] == 2
    assert codes[-1] == 0


def test_a_place_where_something_is_mounted_is_refused(run, network, disk):
    place = disk(2000)
    result = run("optimize", network, "-o", place, "--no-profile")
    assert result.exit_code == 2
    assert "something is mounted there. Give a folder in it" in result.stderr


def start_program(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "deploykit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_ctrl_c_ends_a_measurement_in_words(network, tmp_path, number, send):
    out = tmp_path / "out"
    program = start_program("optimize", network, "-o", out, "--duration", "600")
    wait_for((tmp_path / ".out.deploykit" / "work" / "form00" / "model.onnx").exists)
    # Ctrl-C reaches a whole group of processes, `kill` the parent alone.
    send(program.pid, number)
    stdout, stderr = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "Error: interrupted; nothing half-written is left"
    assert "Traceback" not in stderr
    assert stdout == ""
    assert names(tmp_path) == ["source"]


STUBBORN = """
import atexit, os, signal, sys, time
from deploykit.cli.supervise import supervise

# whatever those who run the tests ignore
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), signal.SIG_DFL)

def work():
    atexit.register(slowly, "closing")
    try:
        print("working", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        slowly("ending")
        sys.exit(130)

def slowly(what):
    print(what, flush=True)
    for _ in range(10):
        time.sleep(0.05)

supervise(work)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_requests_that_are_repeated_are_one(number):
    command = [sys.executable, "-c", STUBBORN, number.name]
    told = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        for line in program.stdout:
            told.append(line.strip())
            # while it works, while it cleans up, and while Python ends
            os.killpg(program.pid, number)
        assert program.stderr.read() == ""
    assert told == ["working", "ending", "closing"]
    assert program.returncode == 130


def test_what_was_ignored_at_the_start_stays_ignored():
    code = STUBBORN.replace("time.sleep(60)", "time.sleep(1.0)")
    program = subprocess.Popen(
        ["nohup", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert program.stdout.readline() == "working\n"
    os.killpg(program.pid, signal.SIGHUP)
    stdout, _ = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 0
    assert stdout == "closing\n"


def test_a_run_dies_with_its_parent_and_leaves_the_lock(network, tmp_path):
    out = tmp_path / "out"
    put_old(out)
    program = start_program("optimize", network, "-o", out, "--force", "--duration", "600")
    wait_for((tmp_path / ".out.deploykit" / "work" / "form00" / "model.onnx").exists)
    program.kill()
    program.communicate(timeout=PATIENCE_S)

    def is_free():
        try:
            with OutputFolder(out, force=True):
                return True
        except UsageError:
            return False

    wait_for(is_free)
    assert held(out) == OLD
    assert names(tmp_path) == ["out", "source"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SIGSEGV", "a library crashed (SIGSEGV)"),
        ("SIGKILL", "most likely because memory ran out"),
    ],
)
def test_a_crash_of_a_library_is_told(name, message):
    code = (
        "import os, signal\nfrom deploykit.cli.supervise import supervise\n"
        f"supervise(lambda: os.kill(os.getpid(), signal.{name}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_end_past_python_is_no_success():
    """What a library or somebody's function ends with, as with os._exit(0), is no result."""
    script = "import os\nfrom deploykit.cli.supervise import supervise\nsupervise(lambda: {})"
    for how, code in (("os._exit(0)", 3), ("os._exit(1)", 3), ("None", 0), ("exit(2)", 2)):
        command = [sys.executable, "-c", script.format(how)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stderr
        assert ("before there was a result" in done.stderr) == ("_exit" in how)


def test_a_crash_of_the_runtime_is_told(tmp_path):
    """The smallest number divided by -1 ends ONNX Runtime 1.31 with a signal; other versions may compute it."""
    model = make_network()
    for name, number in (("i", -(2**63)), ("j", -1)):
        model.graph.initializer.append(
            onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [number])
        )
    model.graph.node.append(onnx.helper.make_node("Div", ["i", "j"], ["z"], "div"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 7, [1]))
    onnx.save(model, tmp_path / "m.onnx")
    program = start_program(
        "optimize", tmp_path / "m.onnx", "-o", tmp_path / "out", "--no-profile"
    )
    _, stderr = program.communicate(timeout=PATIENCE_S)
    assert program.returncode in {0, 3}, stderr
    assert "Traceback" not in stderr
    assert stderr.count("Error: ") == (program.returncode == 3)
