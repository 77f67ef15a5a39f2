"""A result folder that appears whole or not at all, and never takes anything of the user's with it.

A run writes to a hidden folder beside the destination, `.NAME.deploykit`, which it holds a lock on, so that two runs on
one destination cannot mix: the second one is refused. What is finished takes the destination's place in one step. Linux
can exchange two folders in one step, too, so that an earlier result is there until the new one is; elsewhere two renames
do it, and a run that was killed between them has its old result put back by the next one. The same next run deletes what
a killed one left behind: a lock goes with its process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from typing import Self

try:
    import fcntl
except ImportError:  # not on Windows, where two runs on one destination are not told apart
    fcntl = None  # type: ignore[assignment]  # a module or nothing

__all__ = ["OWN_FILES", "OutputFolder"]

OWN_FILES = frozenset(
    {
        *("model.onnx", "model.onnx.data", "report.json", "report.html", "recipe.toml"),
        *("model.tensorrt.engine", "model.tensorrt-rtx.engine"),
        *("manifest.json", "junit.xml", "summary.md"),
    }
)
"""What a result folder holds; only such files are ever replaced."""

ADVICE = {
    errno.ENOSPC: "Free some space, or choose another place.",
    errno.EDQUOT: "Free some of your quota, or choose another place.",
    errno.EFBIG: "Raise the limit on file sizes, or choose another place.",
    errno.EROFS: "Choose another place.",
    errno.EACCES: "Change its permissions, or choose another place.",
    errno.EPERM: "Change its permissions, or choose another place.",
    errno.EIO: "Check the disk, or choose another place.",
    errno.EBUSY: "Choose another place.",
    errno.ENOTEMPTY: "Something was put there in the meantime. Choose another place.",
    errno.EEXIST: "Something was put there in the meantime. Choose another place.",
}
"""What to do where a place cannot be written to."""

EXCHANGE = 2
HERE = -100


class OutputFolder:
    """A folder beside the destination, which takes its place when all is well.

    Used as a context manager: what is written under `path` is thrown away unless `commit` is called.

    Args:
        destination: where the result is to appear.
        force: whether results of an earlier run may be replaced.
        sources: files that must stay as they are.

    Attributes:
        destination: where the result is to appear.
        path: where to write it.
        work: a folder for whatever is needed on the way.

    Raises:
        UsageError: the destination is a file, holds something that would be lost, or holds a source; or nothing can be
            written there, whenever that turns out.
    """

    def __init__(
        self, destination: Path, *, force: bool = False, sources: Sequence[Path] = ()
    ) -> None:
        try:
            self.destination = destination.resolve()
            self._force = force
            self._sources = tuple(sources)
            self._check()
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
            why = error.strerror if isinstance(error, OSError) else "it is a link to itself"
            msg = f"cannot write to '{destination}': {why}. Choose another place."
            raise UsageError(msg) from error
        self._holder = self.destination.with_name(f".{self.destination.name}.deploykit")
        self.path = self._holder / "result"
        self.work = self._holder / "work"
        self._old = self._holder / "old"
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            # Beside the destination, so that moving it there is one rename on one file system.
            self._lock = _claim(self._holder, self.destination)
            self._tidy_up()
            self.path.mkdir()
            self.work.mkdir()
        except OSError as error:
            self._leave()
            blocker = next((each for each in self.destination.parents if each.is_file()), None)
            why = f"'{blocker}' is a file" if blocker else error.strerror
            msg = f"cannot write to '{self.destination}': {why}. Choose another place."
            raise UsageError(msg) from error
        except BaseException:
            self._leave()
            raise
        return self

    def protect(self, sources: Sequence[Path]) -> None:
        """Add files that must stay as they are.

        Raises:
            UsageError: one of them lies in the destination.
        """
        self._sources += tuple(sources)
        self._check()

    def commit(self) -> None:
        """Put the folder in its place.

        Raises:
            UsageError: something was put there in the meantime.
        """
        self._check()
        if not self.destination.exists():
            self.path.rename(self.destination)
        elif _exchange(self.path, self.destination):
            try:
                # What was put there since the check lies in the other folder now.
                self._check_held(self.path)
            except UsageError:
                _exchange(self.path, self.destination)
                raise
        else:
            self.destination.rename(self._old)
            try:
                self.path.rename(self.destination)
            except BaseException:
                self._old.rename(self.destination)
                raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()
        if isinstance(error, OSError) and error.errno in ADVICE:
            msg = (
                f"cannot write the result to '{self.destination}': {os.strerror(error.errno)}. Nothing was written. "
                f"{ADVICE[error.errno]}"
            )
            raise UsageError(msg) from error

    def _tidy_up(self) -> None:
        """Repair and delete what a killed run left; the lock says that nobody is at it."""
        if self._old.exists() and not self.destination.exists():
            self._old.rename(self.destination)
        for left in (self.path, self.work, self._old):
            if left.exists():
                shutil.rmtree(left)

    def _leave(self) -> None:
        if self._lock is None:
            return
        for each in (self.path, self.work, self._old):
            shutil.rmtree(each, ignore_errors=True)
        # The lock is the last to go: who finds it gone makes a new one.
        with contextlib.suppress(OSError):
            (self._holder / "lock").unlink()
            self._holder.rmdir()
        os.close(self._lock)
        self._lock = None

    def _check(self) -> None:
        place = self.destination
        if not place.exists():
            return
        if not place.is_dir():
            msg = f"cannot write the result to '{place}': it is a file. Give a folder."
            raise UsageError(msg)
        for source in self._sources:
            if source.resolve().parent == place:
                msg = f"the result cannot go to '{place}': the model '{source.name}' lies there. Give another folder."
                raise UsageError(msg)
        self._check_held(place)
        if Path.cwd().is_relative_to(place):
            msg = f"the result cannot go to '{place}': you are in it, and it is replaced as a whole. Give a folder in it."
            raise UsageError(msg)
        if _is_mounted(place):
            msg = f"the result cannot go to '{place}': something is mounted there. Give a folder in it, '{place / 'result'}'."
            raise UsageError(msg)

    def _check_held(self, folder: Path) -> None:
        """Refuse to replace what a folder holds."""
        place = self.destination
        held = sorted(file.name for file in folder.iterdir())
        foreign = [name for name in held if name not in OWN_FILES or (folder / name).is_dir()]
        if foreign:
            msg = f"'{place}' holds '{foreign[0]}', which is no result of deploykit. Give an empty or a new folder."
            raise UsageError(msg)
        if held and not self._force:
            msg = f"'{place}' already holds a result ('{held[0]}'). Give --force to replace it, or another folder."
            raise UsageError(msg)


def _claim(holder: Path, destination: Path) -> int:
    """Make the hidden folder, or take over one whose run is gone; returns the lock's file descriptor.

    Raises:
        UsageError: another run is at it.
    """
    for _ in range(1000):
        try:
            holder.mkdir(exist_ok=True)
            lock = os.open(holder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # a run that has just ended took it away in between
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (holder / "lock").stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            msg = f"another run of deploykit is writing to '{destination}'. Wait for it, or give another folder."
            raise UsageError(msg) from error
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
                return lock  # a file system that has no locks
            os.close(lock)
            raise
        os.close(lock)  # that of a run that has just ended
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(holder))


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot.

    Raises:
        OSError: it can, but may not.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if call(HERE, os.fsencode(one), HERE, os.fsencode(other), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _is_mounted(folder: Path) -> bool:
    """Whether a folder is the place of a mount, which cannot be renamed."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return folder.is_mount()
    # Blanks are written as octal escapes there.
    places = {line.split()[4].decode("unicode_escape").encode("latin-1") for line in lines}
    return os.fsencode(folder) in places
