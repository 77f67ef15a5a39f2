# ruff: noqa: S603, S607 - what is started here is ours
"""Measuring on a device: a real SSH server on the loopback, whatever goes wrong, and nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.profile import HERE, Settings, measure
from deploykit.profile.remote.address import Host, parse_address
from deploykit.profile.remote.arrival import arrive, read_answer
from deploykit.profile.remote.connection import Connection
from deploykit.profile.remote.remote_place import RemotePlace
from tests.deploykit.conftest import make_network
from tests.deploykit.sshd import device, make_device, make_key, wait_until

__all__ = ["device", "make_device"]  # fixtures

pytestmark = pytest.mark.ssh

QUICK = Settings(warmup_s=0.0, duration_s=0.0, min_rounds=4, rebuilds=2)
FEEDS = {"x": np.zeros((1, 256), np.float32)}


@pytest.fixture
def place(device):
    with at(device) as place:
        yield place
    assert_clean(device)


def at(device, **options):
    """A device as a place; what it tells is kept in `told`."""
    told = []
    host = Host(name="pi", address=parse_address(device.on), **options)
    place = RemotePlace(host, tell=lambda stage, done=None: told.append(stage))
    place.told = told
    return place


def assert_clean(device):
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not device.left(), 5.0)
    assert device.left() == []


def make_endless(path):
    """A Loop that goes on as long as its condition holds, which it always does."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["v"], ["w"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 256]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 256]),
        ],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 256])],
        [yes],
    )
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]),
        path,
    )
    return path


def start_cli(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "deploykit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# -- what is asked for ---------------------------------------------------------------------------


def test_profile_on_a_device_by_its_name_in_the_ssh_configuration(device, network, run):
    config = device.home / ".ssh" / "config"
    config.write_text(f"Host pi\n  HostName 127.0.0.1\n  Port {device.port}\n")
    arguments = ("profile", network, "--on", "pi", "--duration", 0.1, "--rebuilds", 2)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "p50" in result.stdout
    assert "network.onnx" in result.stdout
    assert_clean(device)
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["models"][0]["memory_bytes"] > 0
    assert document["device"]["fingerprint"] == HERE.describe().fingerprint
    assert len(document["models"][0]["samples"]["wall_s"]) >= 10


def test_optimize_chooses_by_what_the_device_measured(device, network, run, tmp_path):
    result = run(
        *("optimize", network, "-o", tmp_path / "out", "--on", device.on, "--duration", 0.05),
        *("--passes", "tidy,remove-channels", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [row["name"] for row in document["candidates"]] == ["original", "as is"]
    assert document["candidates"][1]["ratio"] > 0
    assert (
        document["profile"]["device"]["cpu"] in (tmp_path / "out" / "report.html").read_text()
    )
    assert (tmp_path / "out" / "model.onnx").is_file()
    assert_clean(device)


def test_models_go_up_once_and_whole(place, network, external_network):
    both = {"one": network, "apart": external_network, "again": network}
    found = measure(both, FEEDS, settings=QUICK, place=place)
    assert set(found.ratios) == {"apart", "again"}
    assert [text for text in place.told if text.startswith("sending")] != []
    place.told.clear()
    measure(both, FEEDS, settings=QUICK, place=place)
    assert place.told == []


def test_models_stay_where_they_were_asked_to_and_nothing_else(device, network):
    with at(device, keeps_models=True) as place:
        measure({"m": network}, FEEDS, settings=QUICK, place=place)
    (kept,) = (device.cache / "deploykit" / "models").rglob("model.onnx")
    assert kept.read_bytes() == network.read_bytes()
    assert {each.split("/")[1] for each in device.left() if "/" in each} == {"models"}
    with at(device, keeps_models=True) as place:
        measure({"m": network}, FEEDS, settings=QUICK, place=place)
        assert not [text for text in place.told if text.startswith("sending")]
    # One that was cut short is not taken for whole.
    kept.write_bytes(kept.read_bytes()[:1000])
    with at(device, keeps_models=True) as place:
        measure({"m": network}, FEEDS, settings=QUICK, place=place)
    assert kept.read_bytes() == network.read_bytes()


def test_a_model_that_did_not_arrive_whole_is_not_kept(device, network):
    place = at(device, keeps_models=True)
    interrupt_at(place, "sending")
    with place, pytest.raises(KeyboardInterrupt):
        place.sample([network], FEEDS, settings=QUICK)
    assert device.left() == ["deploykit", "deploykit/models"]


def interrupt_at(place, stage):
    def tell(told, done=None):
        if told.startswith(stage):
            raise KeyboardInterrupt

    place._tell = tell


def test_a_device_behind_another_one_is_reached_as_the_configuration_says(make_device):
    gate, behind = make_device(), make_device()
    (gate.home / ".ssh" / "config").write_text(
        f"Host behind\n  HostName 127.0.0.1\n  Port {behind.port}\n  ProxyJump 127.0.0.1:{gate.port}\n"
    )
    place = RemotePlace(Host(name="behind", address=parse_address("behind")))
    with place:
        assert str(place._there["folder"]).startswith(str(behind.cache))
        assert gate.cut() >= 1
        # The way there was cut, and is gone again.
        assert place.describe().cores >= 1
    assert_clean(behind)


def test_two_devices_measure_at_once(make_device, network):
    devices = [make_device(), make_device()]
    found = {}

    def work(device):
        with at(device) as place:
            found[device.on] = measure({"m": network}, FEEDS, settings=QUICK, place=place)

    threads = [threading.Thread(target=work, args=[device]) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(found) == {device.on for device in devices}
    assert all(each.latencies["m"].samples >= 4 for each in found.values())
    for each in devices:
        assert_clean(each)


def test_a_model_is_as_fast_there_as_here(place, tmp_path):
    # It computes for long and reads little: what others do to the caches counts for less than anything else.
    path = tmp_path / "small.onnx"
    onnx.save(make_network(hidden=128, dead=0, features=128), path)
    feeds = {"x": np.ones((256, 128), np.float32)}
    settings = Settings(warmup_s=0.02, duration_s=0.1, min_rounds=40, rebuilds=1)
    ratios = []
    for _ in range(5):
        # The time of the thread itself, which a busy machine changes least; both take turns.
        here, there = (
            measure({"m": path}, feeds, settings=settings, place=where).samples["m"].cpu_s
            for where in (HERE, place)
        )
        ratios.append(np.median(there) / np.median(here))
    assert 0.67 < np.median(ratios) < 1.5, ratios


# -- connections that break ------------------------------------------------------------------------


def test_a_connection_that_is_cut_twice_loses_no_round(device, network):
    rounds = Settings(warmup_s=0.0, duration_s=2.0, min_rounds=10, rebuilds=2)
    cut = []

    def cut_once_in_a_while(share):
        if share < 0.9 and len(cut) < 2 and share > 0.3 * len(cut):
            cut.append(device.cut())

    with at(device) as place:
        record = place.sample([network], FEEDS, settings=rounds, progress=cut_once_in_a_while)
        (lines,) = device.jobs()
        events = [json.loads(line) for line in lines.read_text().splitlines()]
    assert cut == [pytest.approx(1, abs=1), pytest.approx(1, abs=1)]
    assert min(cut) >= 1
    assert any("connecting again" in text for text in place.told)
    taken = [event for event in events if event["event"] == "round"]
    assert [event["wall_s"][0] for event in taken] == record["wall_s"][0]
    assert set(record["rebuild"]) == {0, 1}
    assert not record["truncated"]
    assert_clean(device)


def test_a_connection_that_is_cut_while_a_model_goes_up_is_made_again(device, tmp_path):
    path = tmp_path / "large.onnx"
    onnx.save(make_network(hidden=2048, features=4096), path)
    cut = []

    def tell(stage, done=None):
        if stage.startswith("sending") and not cut and 0.2 < (done or 0) < 0.9:
            cut.append(device.cut())

    with RemotePlace(Host(name="pi", address=parse_address(device.on)), tell=tell) as place:
        found = measure(
            {"m": path}, {"x": np.zeros((1, 4096), np.float32)}, settings=QUICK, place=place
        )
    assert cut
    assert cut[0] >= 1
    assert found.latencies["m"].samples >= 4
    assert_clean(device)


def test_a_device_that_stays_away_is_an_error_and_cleans_up_by_itself(device, network):
    forever = Settings(warmup_s=0.0, duration_s=300.0, rebuilds=1)
    with (
        pytest.raises(
            RuntimeUnavailable, match=r"broke and could not be made again.*ends by itself"
        ),
        at(device, lease_s=3.0, reconnect_s=0.5) as place,
    ):
        place.sample([network], FEEDS, settings=forever, progress=lambda _: device.stop())
    assert any("could not be cleaned up" in note for note in place.notes)
    wait_until(lambda: not device.left(), 20.0)


def test_a_host_that_is_killed_leaves_nothing_on_the_device(device, network):
    script = (
        "import numpy as np, sys\n"
        "from deploykit.profile import Settings\n"
        "from deploykit.profile.remote.address import Host, parse_address\n"
        "from deploykit.profile.remote.remote_place import RemotePlace\n"
        "host = Host(name='pi', address=parse_address(sys.argv[1]), lease_s=2.0)\n"
        "with RemotePlace(host) as place:\n"
        "    place.sample([sys.argv[2]], {'x': np.zeros((1, 256), np.float32)}, settings=Settings(duration_s=300.0))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", script, device.on, str(network)])
    try:
        wait_until(lambda: any(job.stat().st_size > 10_000 for job in device.jobs()))
        # Longer than the lease: a host that lives keeps it.
        time.sleep(2.5)
        assert device.left()
    finally:
        host.kill()
        host.wait()
    wait_until(lambda: not device.left(), 20.0)


def test_what_is_interrupted_while_it_arrives_leaves_nothing(device, monkeypatch):
    place = at(device)
    run = Connection.run

    def interrupt(self, command, **options):
        done = run(self, command, **options)
        if not device.left():
            return done
        monkeypatch.setattr(Connection, "run", run)
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, "run", interrupt)
    with pytest.raises(KeyboardInterrupt), place:
        pass
    assert device.left() == []


def test_ctrl_c_ends_the_run_there_too(device, network):
    process = start_cli("profile", network, "--on", device.on, "--duration", 300)
    try:
        wait_until(lambda: any(b'"round"' in job.read_bytes() for job in device.jobs()))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert output == ""
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert device.left() == []


# -- who is trusted --------------------------------------------------------------------------------


def test_a_host_that_is_not_known_is_refused_unless_asked(device, network, run):
    known = device.home / ".ssh" / "known_hosts"
    known.unlink()
    arguments = ("profile", network, "--on", device.on, "--duration", 0, "--rebuilds", 1)
    result = run(*arguments)
    assert result.exit_code == 4
    assert device.key.get_fingerprint() in result.stderr
    assert "--accept-new-host" in result.stderr
    assert f"ssh -p {device.port} 127.0.0.1" in result.stderr
    assert not known.exists()
    result = run(*arguments, "--accept-new-host")
    assert result.exit_code == 0, result.stderr
    assert "was added" in result.stderr
    assert known.stat().st_mode & 0o777 == 0o600
    assert device.known_line(device.key).split()[:3] == known.read_text().split()
    assert run(*arguments).exit_code == 0
    assert_clean(device)


def test_a_host_key_that_changed_is_refused_always(device, network, run):
    other = make_key(device.folder / "other")
    (device.home / ".ssh" / "known_hosts").write_text(device.known_line(other))
    for more in ((), ("--accept-new-host",)):
        result = run("profile", network, "--on", device.on, *more)
        assert result.exit_code == 4
        assert "has changed" in result.stderr
        assert device.key.get_fingerprint() in result.stderr
        assert f"ssh-keygen -R [127.0.0.1]:{device.port}" in result.stderr
    assert (device.home / ".ssh" / "known_hosts").read_text() == device.known_line(other)
    assert device.left() == []


def test_no_configuration_makes_everybody_trusted(device, network, run):
    (device.home / ".ssh" / "config").write_text(
        "UserKnownHostsFile none\nStrictHostKeyChecking no\n"
    )
    (device.home / ".ssh" / "known_hosts").unlink()
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "is not known yet" in result.stderr


@pytest.mark.parametrize("kind", ["unknown", "locked", "absent"])
def test_keys_that_do_not_open_are_told_of_and_nobody_is_asked(device, network, run, kind):
    key = device.home / ".ssh" / "id_ed25519"
    key.unlink()
    if kind != "absent":
        new = make_key(key, passphrase="secret" if kind == "locked" else None)
        assert new
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "ssh-add" in result.stderr
    assert result.stderr.count("\n") == 1
    assert device.left() == []


def test_a_public_key_of_another_pair_is_told_of(device, network, run):
    key = device.home / ".ssh" / "id_ed25519"
    other = make_key(device.folder / "other")
    other.write_public_key(key.with_suffix(".pub"))
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "is that of another one" in result.stderr
    assert "ssh-keygen -y" in result.stderr
    assert device.left() == []


def test_a_python_that_never_answers_is_waited_for_once_more_and_no_longer(device, monkeypatch):
    asked = []

    def run(self, command, *, script="", timeout_s=60.0):
        asked.append(command)
        msg = "it did not answer"
        raise RuntimeUnavailable(msg)

    monkeypatch.setattr(Connection, "run", run)
    with pytest.raises(RuntimeUnavailable, match="did not answer"), at(device):
        pass
    assert len(asked) == 2


def test_asyncio_writes_nothing_of_its_own(device):
    code = (
        "import logging; from deploykit.profile.remote.named_places import find_places\n"
        f"with find_places('{device.on}')[0].open(): logging.getLogger('asyncio').warning('raised exception')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not done.stderr


def test_who_cannot_be_reached_is_told_of(device, network, run):
    device.stop()
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "cannot be reached" in result.stderr
    assert f"127.0.0.1:{device.port}" in result.stderr


def test_what_reaches_devices_is_told_where_it_is_not_installed(network, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    result = run("profile", network, "--on", "pi")
    assert result.exit_code == 4
    assert "pip install '.[ssh]'" in result.stderr


# -- what the device lacks -------------------------------------------------------------------------


def test_a_runtime_that_is_not_there_is_told_with_how_to_install_it(device, network, run):
    device.be_python(f'exec "{sys.executable}" -I -S "$@"')
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "numpy and onnxruntime cannot be found by 'python3'" in result.stderr
    assert "python3 -m pip install numpy onnxruntime" in result.stderr
    assert "Nothing was installed" in result.stderr
    assert_clean(device)


def test_another_python_of_the_device_can_be_named(device, network, run):
    device.be_python("exit 1")
    arguments = ("profile", network, "--on", device.on, "--duration", 0, "--rebuilds", 1)
    result = run(*arguments)
    assert result.exit_code == 4
    assert "does not run: it ended with 1" in result.stderr
    result = run(*arguments, "--device-python", "/no/such/python")
    assert result.exit_code == 4
    assert "has no '/no/such/python'" in result.stderr
    named = device.home / "my python"
    named.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    named.chmod(0o755)
    result = run(*arguments, "--device-python", named)
    assert result.exit_code == 0, result.stderr


def test_a_python_that_is_too_old_is_told_of(device, network, run):
    old = "import sys; sys.version_info = (3, 6, 9); exec(sys.stdin.read())"
    device.be_python(f'exec "{sys.executable}" -c "{old}"')
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "is Python 3.6.9, and 3.8 is needed" in result.stderr
    assert device.left() == []


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_old_pythons_read_what_finds_out_that_they_are_old(version, tmp_path):
    found = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    # What pyenv puts on the path only says that it could be elsewhere.
    python = str(found[0]) if found else shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    script = arrive(
        token="t",  # noqa: S106 - the name of a folder
        base=str(tmp_path / "work"), files={"keeper.py": "print('hi')"}, packages=("numpy",),
        lease_s=1.0, silent_s=1.0,
    )  # fmt: skip
    done = subprocess.run(
        [python, "-"], input=script, capture_output=True, text=True, check=False
    )
    answer = read_answer(done.stdout)
    assert answer is not None, done.stderr
    if version == "3.8":
        assert Path(answer["folder"]).stat().st_mode & 0o777 == 0o700
    else:
        assert answer["problem"] == "python"
        assert not (tmp_path / "work").exists()


def test_a_runtime_that_cannot_be_imported_is_told_of(device, network, run):
    device.be_runtime("raise ImportError('libcudart.so.12 is missing', name='onnxruntime')")
    result = run("profile", network, "--on", device.on)
    assert result.exit_code == 4
    assert "libcudart.so.12 is missing" in result.stderr
    assert_clean(device)


@pytest.mark.parametrize(
    ("folder", "why"), [("/proc/nothing", "No such file"), ("/dev/null/x", "Not a directory")]
)
def test_a_folder_that_cannot_be_made_is_told_of(device, folder, why):
    with pytest.raises(
        RuntimeUnavailable, match=f"no place for a workspace on pi: '{folder}': {why}"
    ):
        at(device, folder=folder).__enter__()
    assert device.left() == []


# -- models and disks ------------------------------------------------------------------------------


def test_a_model_that_the_runtime_there_refuses_is_told_with_both_versions(device, network):
    model = onnx.load(network)
    model.ir_version = 99
    new = network.with_name("new.onnx")
    onnx.save(model, new)
    device.be_runtime(
        "import importlib, sys\n"
        "sys.path.remove(__path__[0].rpartition('/')[0]); del sys.modules['onnxruntime']\n"
        "real = importlib.import_module('onnxruntime'); real.__version__ = '1.2.3'\n"
    )
    with at(device) as place, pytest.raises(ModelError) as caught:
        measure({"old": network, "new": new}, FEEDS, settings=QUICK, place=place)
    text = str(caught.value)
    assert f"onnxruntime 1.2.3 on pi refuses '{new}'" in text
    assert "This machine has onnxruntime 1." in text
    assert "older opset" in text
    assert_clean(device)


def test_inputs_that_do_not_fit_are_the_models_error(place, network):
    with pytest.raises(ModelError, match=r"does not run '.*network.onnx'"):
        measure(
            {"m": network}, {"x": np.zeros((1, 7), np.float32)}, settings=QUICK, place=place
        )
    # The place is still good for other models.
    measure({"m": network}, FEEDS, settings=QUICK, place=place)


def test_a_model_that_never_ends_is_ended(device, tmp_path):
    model = make_endless(tmp_path / "endless.onnx")
    with (
        pytest.raises(
            RuntimeUnavailable, match=r"endless.onnx' on pi was ended: nothing came for \d+ s"
        ),
        at(device, timeout_s=1.0) as place,
    ):
        place.sample([model], FEEDS, settings=QUICK)
    assert_clean(device)


@pytest.mark.parametrize(
    ("number", "said"), [("SIGSEGV", "crashed (SIGSEGV)"), ("SIGKILL", "memory ran out there")]
)
def test_a_runtime_that_crashes_is_told_of(device, network, number, said):
    device.be_runtime(
        "import os, signal\n__version__ = '9'\nclass SessionOptions:\n    def add_session_config_entry(self, *_): pass\n"
        f"def InferenceSession(*_, **__): os.kill(os.getpid(), signal.{number})\n"
    )
    with at(device) as place, pytest.raises(ModelError) as caught:
        place.sample([network], FEEDS, settings=QUICK)
    assert said in str(caught.value)
    assert "while it was opened" in str(caught.value)
    assert_clean(device)


def test_a_run_whose_processes_were_ended_there_is_told_of(device, network, monkeypatch):
    monkeypatch.setattr("deploykit.profile.remote.remote_place.QUIET_S", 0.2)
    forever = Settings(duration_s=300.0)
    ended = []

    def end(_):
        if not ended:
            (run,) = (device.cache / "deploykit").glob("run-*")
            for name in ("pid", "child"):
                number = int((run / name).read_text())
                ended.append(number)
                os.kill(number, signal.SIGKILL)

    with at(device) as place, pytest.raises(RuntimeUnavailable, match="is not there any more"):
        place.sample([network], FEEDS, settings=forever, progress=end)
    assert_clean(device)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"only root can make a small disk: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_full_is_told_of_before_and_after(
    device, small_disk, tmp_path, monkeypatch
):
    path = tmp_path / "large.onnx"
    onnx.save(make_network(hidden=1024, features=1024), path)
    feeds = {"x": np.zeros((1, 1024), np.float32)}
    with at(device, folder=str(small_disk / "d")) as place:
        with pytest.raises(
            RuntimeUnavailable, match=r"8\.\d MB are needed, and its disk has 0\.\d MB free"
        ):
            place.sample([path], feeds, settings=QUICK)
        assert list(small_disk.rglob("*.onnx*")) == []
        # A device that does not say how much is free finds out by itself.
        monkeypatch.setattr(place._link, "free_bytes", lambda _: None)
        with pytest.raises(
            RuntimeUnavailable, match=r"no room for '.*large.onnx' on pi: 4.2 MB are needed"
        ):
            place.sample([path], feeds, settings=QUICK)
    assert list((small_disk / "d").iterdir()) == []


def test_samples_that_find_no_room_end_the_run(device, small_disk, network, monkeypatch):
    many = dataclasses.replace(QUICK, min_rounds=20_000)
    place = at(device, folder=str(small_disk / "d"))
    monkeypatch.setattr("deploykit.profile.remote.sending.SPARE_BYTES", 0)

    def fill(_):
        if not (small_disk / "filler").exists():
            with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as filler:
                filler.write(bytes(1 << 20))

    with place, pytest.raises(RuntimeUnavailable, match="no room for the samples on pi"):
        place.sample([network], FEEDS, settings=many, progress=fill)
    assert list((small_disk / "d").iterdir()) == []
