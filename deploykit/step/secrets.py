"""Keeps secrets out of whatever is written or printed.

A pipeline hands its secrets to a step in the environment, and they come to light in paths, addresses, command lines and
messages of libraries. What is replaced, by `***`:

- the values of environment variables whose names say that they are secret, in whatever spelling documents have for them;
- passwords in addresses, user names too where they may be tokens, and secret parameters of addresses and command lines;
- whatever has the form of a token of a well-known service, wherever it came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import logging
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TextIO, TypeVar, cast

__all__ = ["MASK", "Secrets", "Veil", "veiled"]

Value = TypeVar("Value")

MASK = "***"

FEWEST = 6
"""Shorter values are words such as "1" or "main", and would be found everywhere."""

LINE = 16
"""Lines of a secret that has several, as a key file has, are secret by themselves from this length on."""

WORDS = (
    *("TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PASSWORT", "PAT"),
    *("KEY", "KEYS", "APIKEY", "CREDENTIAL", "CREDENTIALS", "AUTH", "COOKIE", "DSN"),
)
NAME = re.compile(rf"(?:^|_)(?:[A-Z0-9]*(?:TOKEN|SECRET|PASSWORD)|{'|'.join(WORDS)})(?:_|$)")

NO_SECRET = re.compile(r"_(?:SOCK|DIR|FOLDER|PATH|FILE|ID_FILE|URL|HOST|PORT|USER|NAME)$")
"""What a name ends in that says where a secret is, and not what: files and folders are called by their names."""

PARAMETER = r"[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|api[-_]?key|access[-_]?key|signature|credential)[\w.-]*"

PATTERNS = (
    # user:password@host in an address; whoever has the name alone cannot do a thing with it.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@:'\"]*:[^\s/?#@'\"]*@"), rf"\1{MASK}@"),
    # A token as the user name, which is how packages and repositories are fetched. That of SSH is a name.
    (re.compile(r"(?i)\b((?:https?|git|ftp)://)[^\s/?#@:'\"]+@"), rf"\1{MASK}@"),
    (re.compile(rf"(?i)([?&;]{PARAMETER}=)[^\s&;#'\"]+"), rf"\1{MASK}"),
    (re.compile(rf"(?i)((?:^|\s)--?{PARAMETER}(?:=|\s+))(?!-)[^\s'\"]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer\s+)[a-z0-9._~+/-]{12,}=*"), rf"\1{MASK}"),
    # GitHub, GitLab, Hugging Face, Slack, AWS, PyPI, and signed JSON (JWT).
    (
        re.compile(
            r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|xox[abprs]-[\w-]{10,}"
            r"|(?:AKIA|ASIA)[0-9A-Z]{16}|pypi-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
        ),
        MASK,
    ),
)


class Secrets:
    """What must not be told, and how it is taken out of texts and records.

    Args:
        environment: variables with their values; those whose names say so are secret. Default: the process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        values = [value for name, value in found.items() if _is_secret(name)]
        spelled = {text for value in values for text in _spellings(value)}
        # The longest first: one secret may be part of another.
        ordered = sorted(spelled, key=lambda text: (-len(text), text))
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def redact(self, text: str) -> str:
        """The text without secrets."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        for pattern, instead in PATTERNS:
            text = pattern.sub(instead, text)
        return text

    def cleaned(self, value: Value) -> Value:
        """A copy of a record without secrets in any text in it, however deep; what is no text stays as it is.

        Documents are made of this, and not cleaned afterwards: a table may have broken a long word in two.

        Args:
            value: frozen dataclasses, mappings, sequences, texts and paths in one another.
        """
        cleaned: Value = self._cleaned(value)
        return cleaned

    def _cleaned(self, value: Any) -> Any:  # noqa: ANN401 - whatever records hold
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, PurePath):
            return type(value)(self.redact(str(value)))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed = {
                field.name: self._cleaned(getattr(value, field.name))
                for field in dataclasses.fields(value)
                if field.init
            }
            return dataclasses.replace(value, **changed)
        if isinstance(value, Mapping):
            return {self._cleaned(key): self._cleaned(part) for key, part in value.items()}
        if isinstance(value, tuple | list):
            # Thousands of samples are numbers, and need no look.
            are_numbers = all(isinstance(part, int | float) for part in value)
            value = value if are_numbers else type(value)(self._cleaned(part) for part in value)
        return value


class Veil(logging.Filter):
    """Takes secrets out of log records before any handler writes them; tracebacks included.

    Args:
        secrets: what must not be told.
    """

    def __init__(self, secrets: Secrets) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record, and let it through."""
        record.msg, record.args = self._secrets.redact(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._secrets.redact(record.exc_text)
        return True


def veil_logs(secrets: Secrets, names: Sequence[str]) -> None:
    """Let no secret into what these loggers write.

    Args:
        secrets: what must not be told.
        names: of the loggers, with the handlers that they have by now.
    """
    for name in names:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(Veil(secrets))


class _Stream:
    """A stream that is told what must not be told, and does not pass it on; in everything else it is the stream."""

    def __init__(self, stream: TextIO, secrets: Secrets) -> None:
        self._stream = stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        """Write the text without secrets. What is written in pieces is looked at in these: `print` writes whole values."""
        self._stream.write(self._secrets.redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


@contextlib.contextmanager
def veiled(secrets: Secrets) -> Iterator[None]:
    """Keep secrets out of what is printed meanwhile: by a user's metric or model, or by a library."""
    out, err = (_Stream(stream, secrets) for stream in (sys.stdout, sys.stderr))
    with (
        contextlib.redirect_stdout(cast("TextIO", out)),
        contextlib.redirect_stderr(cast("TextIO", err)),
    ):
        yield


def _is_secret(name: str) -> bool:
    upper = name.upper()
    return NO_SECRET.search(upper) is None and NAME.search(upper) is not None


def _spellings(value: str) -> Iterator[str]:
    """A secret as it may stand in a document: JSON, TOML, XML, HTML and addresses write some characters in other ways."""
    lines = [line.strip() for line in value.splitlines()]
    parts = [value.strip()]
    if len(lines) > 1:
        parts += [line for line in lines if len(line) >= LINE]
    for part in parts:
        if len(part) < FEWEST:
            continue
        yield part
        yield json.dumps(part)[1:-1]
        yield json.dumps(part, ensure_ascii=False)[1:-1]
        yield html.escape(part)
        yield html.escape(part, quote=False)
        yield urllib.parse.quote(part, safe="")
        yield urllib.parse.quote(part)
