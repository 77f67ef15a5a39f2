"""`devices.toml`: what it says, what it may not say, and where it is looked for."""

from __future__ import annotations

import pytest

from deploykit.errors import UsageError
from deploykit.profile.remote.address import Address
from deploykit.profile.remote.devices_file import find_devices, read_devices


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "devices.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_device_is_all_that_its_table_says(tmp_path):
    file = write(
        tmp_path,
        """
        [nano]
        on = "ssh://me@192.168.0.7:2222"
        python = "~/venv/bin/python"
        runtime = "tensorrt"
        threads = 4
        keep_models = true
        timeout_s = 30
        ["pi-5.lab"]
        on = "pi"
        """,
    )
    found = read_devices(file)
    assert list(found) == ["nano", "pi-5.lab"]
    nano = found["nano"]
    assert (nano.name, nano.address) == ("nano", Address("192.168.0.7", "me", 2222))
    assert (nano.python, nano.runtime, nano.threads) == ("~/venv/bin/python", "tensorrt", 4)
    assert nano.keeps_models
    assert nano.timeout_s == 30.0
    other = found["pi-5.lab"]
    assert (other.address, other.python, other.threads) == (Address("pi"), "python3", None)
    assert not other.keeps_models
    assert not other.accepts_new_host


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nano = 1", ("'nano'", "no device", "[nano]")),
        ("[nano]\npython = 'python3'", ("'nano'", "on =")),
        ("[nano]\non = 'ssh://me:secret@host'", ("'nano'", "password")),
        ("[nano]\non = 'a'\npyton = 'python3'", ("'nano'", "'pyton'", "'python'?")),
        ("[nano]\non = 'a'\nthreads = 0", ("'nano'", "'threads'", "from 1", "0")),
        ("[nano]\non = 'a'\nthreads = true", ("'threads'", "True")),
        ("[nano]\non = 'a'\ntimeout_s = -1", ("'timeout_s'", "above 0")),
        ("[nano]\non = 'a'\nkeep_models = 'yes'", ("'keep_models'", "'yes'")),
        ("[nano]\non = 'a'\nruntime = 'tensorflow'", ("'nano'", "'tensorflow'", "onnxruntime")),
        ("[nano]\non = 'a'\nfolder = ''", ("'folder'", "a text")),
        ("[here]\non = 'a'", ("'here'", "this machine")),
        ("['a,b']\non = 'a'", ("'a,b'", "another name")),
        ("[nano", ("not TOML",)),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(tmp_path, text, words):
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        read_devices(file)
    for word in (*words, str(file)):
        assert word in str(refused.value)


def test_the_nearest_file_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    assert find_devices() == {}
    write(tmp_path / "config" / "deploykit", "[far]\non = 'far'")
    assert list(find_devices()) == ["far"]
    write(tmp_path, "[near]\non = 'near'")
    assert list(find_devices()) == ["near"]
    assert list(find_devices(write(tmp_path / "else", "[named]\non = 'named'"))) == ["named"]
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        find_devices(tmp_path / "nowhere.toml")
