"""Keeps results under the hash of all that decides them, so that nothing is done twice.

    CACHE/objects/KEY/object.json      what the key is made of, and the hash of every file
    CACHE/objects/KEY/files/...        the result
    CACHE/work/KEY/...                 what is being made; a run that was killed leaves it, and the next one deletes it
    CACHE/locks/KEY                    held while an object is made or read; a lock goes with its process

An object appears in one step, whole. When it is taken its files are held against their hashes, and one that is damaged is
thrown away: a cache may be lost at any time, and never gives a wrong answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from typing import Self

try:
    import fcntl
except (
    ImportError
):  # not on Windows, where two runs may make the same object, and the first one stays
    fcntl = None  # type: ignore[assignment]  # a module or nothing

__all__ = ["PARTS", "Cache", "Object", "file_hash", "key_of"]

PARTS = ("objects", "work", "locks")
"""What a cache consists of."""

RECORD = "object.json"
FILES = "files"
GONE = "gone-"
YOUNG_S = 3600.0
"""Objects that were used this short a time ago are not pruned."""


@dataclasses.dataclass(frozen=True)
class Object:
    """A result.

    Attributes:
        key: what it is kept under.
        stage: what made it.
        components: what the key is made of, by name.
        folder: its files.
        files: their hashes, by name in the folder.
        seconds: what making it took.
        is_new: whether it was made just now.
        note: what was wrong with the object that was there before; empty if nothing was.
    """

    key: str
    stage: str
    components: Mapping[str, str]
    folder: Path
    files: Mapping[str, str]
    seconds: float
    is_new: bool = False
    note: str = ""


def key_of(stage: str, components: Mapping[str, str]) -> str:
    """The hash of all that decides a result."""
    text = json.dumps([stage, sorted(components.items())], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """Results in a folder, as a context manager: what was taken stays there until it is left.

    Args:
        folder: where; it is made.
        tell: told when another run has to be waited for.

    Raises:
        UsageError: nothing can be written there.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self._objects, self._work, self._locks = (folder / part for part in PARTS)
        self._tell = tell
        self._held: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            for each in (self._objects, self._work, self._locks):
                each.mkdir(parents=True, exist_ok=True)
            # What makes backups and version control pass it by.
            for name, text in ((".gitignore", "*\n"), ("CACHEDIR.TAG", TAG)):
                if not (self.folder / name).exists():
                    (self.folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            blocker = next((up for up in self.folder.parents if up.is_file()), None)
            why = f"'{blocker}' is a file" if blocker else error.strerror
            msg = f"cannot keep results in '{self.folder}': {why}. Choose another place with --cache, or give --no-cache."
            raise UsageError(msg) from error
        self._tidy_up()
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._held):
            self._release(key)

    def find(self, key: str) -> Object | None:
        """An object that is there and whole, for who only wants to know; it may go at any time."""
        found = self._read(key)
        return None if found is None or self._damage(found) else found

    def take(
        self,
        key: str,
        stage: str,
        components: Mapping[str, str],
        make: Callable[[Path], object],
    ) -> Object:
        """An object: the one that is there, or one that is made now. It stays until the cache is left.

        Args:
            key: of these components.
            stage: what it is called.
            components: what decides it.
            make: writes its files to an empty folder.

        Raises:
            UsageError: nothing can be written there.
        """
        if key not in self._held:
            self._lock(key, shared=True, stage=stage)
        found = self._read(key)
        if found is not None and not self._damage(found):
            self._touch(key)
            return found
        self._release(key)
        self._lock(key, shared=False, stage=stage)
        # Another run may have made it in between.
        found = self._read(key)
        damage = "" if found is None else self._damage(found)
        if found is not None and not damage:
            self._share(key)
            return found
        if damage or (self._objects / key).exists():
            damage = damage or "its record cannot be read"
            self._discard(self._objects / key)
        made = self._make(key, stage, components, make)
        self._share(key)
        note = (
            f"the kept result of '{stage}' was damaged ({damage}), and was made anew"
            if damage
            else ""
        )
        return dataclasses.replace(made, is_new=True, note=note)

    def prune(self, limit_bytes: int) -> int:
        """Delete what was not used for the longest time until the rest fits; returns how many bytes went.

        What a run holds, or was used within the last hour, stays.
        """
        rows = []
        for folder in self._objects.iterdir():
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                rows.append(((folder / RECORD).stat().st_mtime, size, folder))
        total = sum(size for _, size, _ in rows)
        gone = 0
        for used, size, folder in sorted(rows):
            if total - gone <= limit_bytes:
                break
            if time.time() - used < YOUNG_S or folder.name in self._held:
                continue
            if not self._lock(folder.name, shared=False, stage="", wait=False):
                continue
            self._discard(folder)
            self._release(folder.name)
            gone += size
        return gone

    # -- objects

    def _read(self, key: str) -> Object | None:
        folder = self._objects / key
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return Object(
                key,
                str(record["stage"]),
                dict(record["components"]),
                folder / FILES,
                dict(record["files"]),
                float(record["seconds"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _damage(self, found: Object) -> str:
        """What is wrong with an object; empty if nothing is."""
        if key_of(found.stage, found.components) != found.key:
            return "it is of another key"
        try:
            there = set(_names(found.folder))
            if there != set(found.files):
                return f"it holds {len(there)} files, and {len(found.files)} were written"
            for name, expected in found.files.items():
                if file_hash(found.folder / name) != expected:
                    return f"'{name}' has another content"
        except OSError as error:
            return f"'{error.filename}' cannot be read"
        return ""

    def _make(
        self,
        key: str,
        stage: str,
        components: Mapping[str, str],
        make: Callable[[Path], object],
    ) -> Object:
        # Who has the lock of the key to himself is the only one who writes there.
        work = self._work / key
        if work.exists():
            shutil.rmtree(work)
        try:
            (work / FILES).mkdir(parents=True)
            began = time.perf_counter()
            make(work / FILES)
            seconds = time.perf_counter() - began
            files = {name: file_hash(work / FILES / name) for name in _names(work / FILES)}
            record = {
                "stage": stage,
                "components": dict(components),
                "files": files,
                "seconds": seconds,
            }
            with (work / RECORD).open("w", encoding="utf-8") as file:
                json.dump(record, file, indent=1, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            place = self._objects / key
            work.rename(place)
            return Object(key, stage, dict(components), place / FILES, files, seconds)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def _discard(self, folder: Path) -> None:
        """Delete an object: first out of its place, in one step, so that nobody finds half of it."""
        grave = Path(tempfile.mkdtemp(prefix=GONE, dir=self._work))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(grave / "object")
        shutil.rmtree(grave, ignore_errors=True)

    def _touch(self, key: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._objects / key / RECORD)

    def _tidy_up(self) -> None:
        """Delete what killed runs left: their locks are gone with them."""
        for work in self._work.iterdir():
            key = work.name
            if key.startswith(GONE):
                shutil.rmtree(work, ignore_errors=True)
            elif self._lock(key, shared=False, stage="", wait=False):
                shutil.rmtree(work, ignore_errors=True)
                self._release(key)
        for lock_file in self._locks.iterdir():
            key = lock_file.name
            if key not in self._held and self._lock(key, shared=False, stage="", wait=False):
                self._release(key)

    # -- locks

    def _lock(self, key: str, *, shared: bool, stage: str, wait: bool = True) -> bool:
        """Take the lock of a key, and wait for it if need be; False if it is not waited for, and somebody has it."""
        path = self._locks / key
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            kind = 0 if fcntl is None else fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                if fcntl is not None:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(lock)
                    return False
                self._tell(f"waiting for another run, which does '{stage}'")
                fcntl.flock(lock, kind)
            except OSError:
                pass  # a file system that has no locks
            # Who had it last may have deleted it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    self._held[key] = lock
                    return True
            os.close(lock)

    def _share(self, key: str) -> None:
        """Let others read what was made."""
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._held[key], fcntl.LOCK_SH)

    def _release(self, key: str) -> None:
        lock = self._held.pop(key)
        with contextlib.suppress(OSError):
            # Only who has it alone may take the file away: others would wait at one that is gone.
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self._locks / key).unlink()
        os.close(lock)


TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Results that deploykit keeps. It may be deleted: what is needed is made anew.\n"
)
"""Source: the Cache Directory Tagging Specification, bford.info/cachedir."""


def _names(folder: Path) -> Iterator[str]:
    """Names of all files in a folder and the folders in it, in order."""
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(folder).as_posix()
