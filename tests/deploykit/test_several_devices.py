"""Several devices at once: one table, and what goes wrong on one of them spoils nothing of the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jsonschema
import pytest

from deploykit.errors import UsageError
from deploykit.profile.remote.named_places import HERE_ONLY, find_places
from deploykit.report.devices_records import schema
from deploykit.report.profile_records import schema as profile_schema

FAST = ("--duration", "0.02", "--warmup", "0", "--rebuilds", "2")

asyncssh = pytest.importorskip("asyncssh", reason="needs the extra `ssh`")


@pytest.fixture
def silent_port():
    """A port of this machine on which nobody listens: it is ours, and closed to others, while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_device_that_is_down_is_told_and_the_other_one_is_measured(
    run, network, tmp_path, silent_port, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices.toml").write_text(
        f'[down]\non = "ssh://nobody@127.0.0.1:{silent_port}"\nreconnect_s = 0.1\n'
    )
    out = tmp_path / "all.json"
    arguments = ("profile", network, network, "--on", "here,down", *FAST)
    result = run(*arguments, "--json", "-o", out)
    assert result.exit_code == 4, result.stderr
    document = json.loads(result.stdout)
    assert json.loads(out.read_text()) == document
    jsonschema.validate(document, schema())
    here, down = document["devices"]
    jsonschema.validate(here["profile"], profile_schema("profile"))
    assert here["name"] == "this machine"
    assert len(here["profile"]["models"]) == 2
    assert down["name"] == "down"
    assert down["profile"] is None
    assert "down cannot be reached" in down["error"]
    table = run(*arguments)
    assert table.exit_code == 4
    rows = table.stdout
    assert rows.count("network.onnx") >= 2
    for word in ("this machine", "time / ", "down: down cannot be reached", "p95"):
        assert word in rows


def test_all_that_is_asked_of_one_device_is_refused_for_several(run, network, tmp_path):
    for arguments, words in (
        (("profile", network, "--on", "a,b", "--roofline"), ("--roofline", "one device")),
        (("compare", network, network, "--on", "a,b"), ("'compare'", "a, b")),
        (("optimize", network, "-o", tmp_path / "out", "--on", "a,b"), ("'optimize'", "2")),
        (("profile", network, "--on", "a,a"), ("'a'", "twice")),
        (("profile", network, "--on", "ssh://a,ssh://a/"), ("'a'", "twice")),
        (("profile", network, "--on", ","), ("names no place",)),
        (("profile", network, "--devices", "x.toml"), ("--devices", "--on")),
        (("profile", network, "--on", "a", "--devices", "x.toml"), ("x.toml",)),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.stderr
        assert not result.stdout
        for word in words:
            assert word in result.stderr


def test_one_device_under_two_names_is_not_measured_at_the_same_time(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text('[nano]\non = "ssh://me@board:22"\n[old]\non = "ssh://me@board:22"\n')
    for on in ("nano,old", "nano,ssh://me@board:22"):
        with pytest.raises(UsageError, match=r"'nano' and .* are the same device"):
            find_places(on, file=file)
    assert len(find_places("here,nano,ssh://me@board:23", file=file)) == 3


def test_a_name_that_devices_toml_lacks_is_held_against_those_that_it_has(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text('[nano]\non = "ssh://me@board"\n[pi]\non = "pi.local"\n')
    typed, address, known = find_places("nanno,ssh://nanna,nano", file=file)
    assert "no device of that name; it has nano, pi" in typed.host.hint
    assert not address.host.hint
    assert not known.host.hint


def test_what_the_command_line_says_goes_before_what_the_file_says(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text(
        '[nano]\non = "me@nano"\npython = "py"\nthreads = 4\nruntime = "tensorrt"\n'
    )
    nano, other = find_places("nano, ssh://me@pi:22", file=file)
    assert (nano.name, other.name) == ("nano", "me@pi:22")
    assert nano.settings() == {"runtime": "tensorrt", "threads": 4}
    assert nano.settings({"threads"}) == {"runtime": "tensorrt"}
    assert other.settings() == HERE_ONLY[0].settings() == {}
    assert nano.host is not None
    assert nano.host.python == "py"
    (given,) = find_places("nano", file=file, python="mine", accepts_new_host=True)
    assert given.host is not None
    assert (given.host.python, given.host.accepts_new_host) == ("mine", True)
    with pytest.raises(UsageError, match="password"):
        find_places("ssh://me:secret@nano", file=file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_end_ends_all_its_processes(network, silent_port, number):
    command = [
        *(sys.executable, "-m", "deploykit", "profile", str(network), "-v"),
        *("--on", f"here,ssh://127.0.0.1:{silent_port}", "--duration", "600"),
    ]
    with subprocess.Popen(  # noqa: S603 - our own program
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "this machine: measuring" in line:
                break
        process.send_signal(number)
        assert process.wait(60) == 130
    # Whatever belongs to its group is gone: nobody is left to be told anything.
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process of the run is still there")
