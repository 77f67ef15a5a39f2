"""What users write after --on."""

from __future__ import annotations

import pytest

from deploykit.errors import UsageError
from deploykit.profile.remote.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address", "shown", "command"),
    [
        ("ssh://me@board", Address("board", "me"), "me@board", "ssh me@board"),
        ("ssh://board:2222/", Address("board", None, 2222), "board:2222", "ssh -p 2222 board"),
        ("SSH://me@10.0.0.7:22", Address("10.0.0.7", "me", 22), "me@10.0.0.7:22", "ssh -p 22 me@10.0.0.7"),
        ("ssh://me@[fe80::1%eth0]:22", Address("fe80::1%eth0", "me", 22), "me@[fe80::1%eth0]:22", "ssh -p 22 me@fe80::1%eth0"),
        ("ssh://[::1]", Address("::1"), "::1", "ssh ::1"),
        ("pi", Address("pi"), "pi", "ssh pi"),
        ("me@pi", Address("pi", "me"), "me@pi", "ssh me@pi"),
    ],
)  # fmt: skip
def test_addresses_are_read_and_said(text, address, shown, command):
    assert parse_address(text) == address
    assert str(address) == shown
    assert address.command == command


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "that is no address"),
        ("ssh://", "that is no address"),
        ("http://pi", "that is no address"),
        ("ssh://me:secret@pi", "a password has no place in it"),
        ("ssh://pi:0", "its port is none"),
        ("ssh://pi:65536", "its port is none"),
        ("ssh://pi:ssh", "that is no address"),
        ("ssh://pi/models", "that is no address"),
        ("pi two", "that is no address"),
        ("-oProxyCommand=x", "that is no address"),
        ("ssh://-l@pi", "that is no address"),
        ("::1", "that is no address"),
    ],
)
def test_what_is_none_is_refused(text, why):
    with pytest.raises(UsageError, match=f"cannot measure on '{text}': {why}.*ssh://user@host"):
        parse_address(text)
