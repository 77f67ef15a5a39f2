"""The result folder of a search, which may be killed at any moment and started again.

    search.json          what was asked for, and a fingerprint of everything that the result depends on
    rounds/start.safetensors         the weights that tickets start from
    rounds/round-03.safetensors      the ticket of a round; round 0 is the dense network
    rounds/round-03-refill.safetensors   the same round's, with a structure
    rounds/re-initialised.safetensors    the last round's mask on new weights, if a verdict is asked for
    rounds/random-mask.safetensors       a random mask of the same structure
    rounds/checkpoint.safetensors    a training that is going on
    rounds/ordered.safetensors       weights whose channels suit an N:M mask, which it is then trained from
    metrics.csv, metrics.png, sad.csv, sad.png    made anew from the rounds after each of them
    ticket.safetensors   the last round's
    seeds/               searches with other seeds, if a verdict is asked for
    verdict.json         whether the tickets are winning ones

Every file appears whole, in one step, and carries the fingerprint: what is left of a search with other settings is never
taken for part of this one. While a search runs it holds a lock on the folder, which goes with its process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from deploykit.atomic import write_whole
from deploykit.errors import DeploykitError, UsageError
from deploykit.finder.training import Checkpoint
from deploykit.ticket import Ticket

if TYPE_CHECKING:
    from typing import Self

try:
    import fcntl
except ImportError:  # not on Windows, where two searches in one folder are not told apart
    fcntl = None  # type: ignore[assignment]  # a module or nothing

__all__ = ["Store"]

SETTINGS = "search.json"
TICKET = "ticket.safetensors"
ROUNDS = "rounds"
CHECKPOINT = "checkpoint"
START = "start"
HASHED = frozenset({"data", "loss", "metric", "model", "optimizer", "schedule"})
"""Settings whose values tell nobody anything: hashes, and what parts of the task came to."""

OF_TASK = ("batch", "prunable", "total", *sorted(HASHED))
FOLLOWING: Mapping[str, tuple[str, ...]] = {
    "reference": ("task", *OF_TASK),
    "task": OF_TASK,
    "model": ("prunable", "total", "loss", "metric"),
    "prunable": ("total",),
    "data": ("loss", "metric", "schedule"),
    "seed": ("model", "loss", "metric"),
    "pattern": ("kept",),
    # What only N:M masks have.
    "source": ("decay", "pattern", "permute", "transposable"),
    **dict.fromkeys(("batch", "epochs", "optimizer"), ("schedule",)),
    **dict.fromkeys(
        ("device", "engine", "precision", "processes", "threads"), ("loss", "metric")
    ),
}
"""Settings that differ where another one does, which is then the one to tell."""

OPTIONS = frozenset(
    {
        *("source", "structure", "epochs", "rewind", "seed", "device", "threads"),
        *("pattern", "decay"),
    }
)
WORDS = {
    "reference": "the task",
    "task": "the name of the task",
    "batch": "the task's batch",
    "processes": "the number of processes",
}
FLAGS = {
    "every_round": ("--every-round", True),
    "group_aware": ("--group-aware", True),
    "deterministic": ("--no-deterministic", False),
    "transposable": ("--transposable", True),
    "permute": ("--no-permute", False),
}
"""Options without a value, and what they set."""

MOST_SAID = 3
ROUNDED = 0.002
"""What rounding to whole weights makes of the same sparsity in two models."""

METRICS, PICTURE = "metrics.csv", "metrics.png"
SAD, SAD_PICTURE = "sad.csv", "sad.png"
PLOTS = (METRICS, PICTURE, SAD, SAD_PICTURE)
VERDICT = "verdict.json"


class Store:
    """Reads and writes the result folder; a context manager that holds the lock.

    Args:
        folder: where.
        settings: what the result depends on, in JSON's types.
        fingerprint: a hash of that.
        force: whether another search in that folder may be replaced.

    Raises:
        UsageError: the folder holds another search, or something else; or a search is going on there; or nothing can be
            written.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        fingerprint: str,
        *,
        force: bool = False,
    ) -> None:
        self.folder = folder
        self._settings = dict(settings)
        self._fingerprint = fingerprint
        self._force = force
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self._check_place()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim()
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
            places = (self.folder, *self.folder.parents)
            blocker = next((each for each in places if each.is_file()), None)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            why = f"'{blocker}' is a file" if blocker else reason
            msg = f"cannot write to '{self.folder}': {why}. Choose another place."
            raise UsageError(msg) from error
        try:
            with self._told(self.folder):
                self._begin()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _check_place(self) -> None:
        """Refuse a folder that holds something else than a search.

        Raises:
            UsageError: so it is.
        """
        if not self.folder.exists():
            return
        held = sorted(each.name for each in self.folder.iterdir())
        # A search that was killed in its first moment has left half of its settings.
        foreign = [name for name in held if name != f".{SETTINGS}.part"]
        if SETTINGS not in held and foreign:
            msg = f"'{self.folder}' holds '{foreign[0]}', and no search. Give an empty or a new folder."
            raise UsageError(msg)

    def _claim(self) -> None:
        if fcntl is None:
            return
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._release()
            msg = f"another search is going on in '{self.folder}'. Wait for it, or give another folder."
            raise UsageError(msg) from error
        except OSError:
            pass  # a file system that has no locks

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self) -> None:
        """Take up what is there, or make way for a new search.

        Raises:
            UsageError: another search is there, and not to be replaced.
        """
        path = self.folder / SETTINGS
        before = _read_settings(path) if path.exists() else None
        if before is not None and not self._force:
            if before.get("fingerprint") == self._fingerprint:
                return
            changes = _differences(before.get("settings", {}), self._settings)
            msg = (
                f"'{self.folder}' holds a search with other settings: {changes}. Start it with the same command to go on with it, "
                "give another folder, or --force to replace it."
            )
            raise UsageError(msg)
        # The settings come last: until then what is left is a part of the search before, which can go on.
        for name in (TICKET, VERDICT, *PLOTS):
            (self.folder / name).unlink(missing_ok=True)
        for file in sorted((self.folder / ROUNDS).glob("*.safetensors")):
            file.unlink()
        document = {"fingerprint": self._fingerprint, "settings": self._settings}
        write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())

    def _path(self, name: str) -> Path:
        return self.folder / ROUNDS / f"{name}.safetensors"

    def load(self, name: str) -> Ticket | None:
        """A round that this search saved; None if there is none.

        Raises:
            ModelError: the file is damaged.
            UsageError: it cannot be read.
        """
        path = self._path(name)
        if not path.exists():
            return None
        ticket = Ticket.load(path)
        return ticket if ticket.provenance.get("fingerprint") == self._fingerprint else None

    def save(self, name: str, ticket: Ticket) -> None:
        """Save a round, or `start`.

        Raises:
            ModelError: its parts do not fit together.
            UsageError: the disk refuses.
        """
        with self._told(self.folder):
            (self.folder / ROUNDS).mkdir(exist_ok=True)
        self._write(self._path(name), ticket)

    def save_ticket(self, ticket: Ticket) -> None:
        """Save what was searched for.

        Raises:
            UsageError: the disk refuses.
        """
        self._write(self.folder / TICKET, ticket)

    def _write(self, path: Path, ticket: Ticket) -> None:
        provenance = {**ticket.provenance, "fingerprint": self._fingerprint}
        marked = dataclasses.replace(ticket, provenance=provenance)
        with self._told(path):
            marked.save(path)

    def write(self, name: str, content: bytes) -> None:
        """Write a file beside the ticket.

        Raises:
            UsageError: the disk refuses.
        """
        with self._told(self.folder / name):
            write_whole(self.folder / name, content)

    @contextlib.contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = (
                f"cannot write '{path}': {error.strerror}. What was found before is kept: free some space, or change the "
                "permissions, and start the same command again."
            )
            raise UsageError(msg) from error

    def save_checkpoint(self, stage: str, checkpoint: Checkpoint) -> None:
        """Save a training that is going on; the one before it is replaced.

        Raises:
            UsageError: the disk refuses.
        """
        provenance = {"stage": stage, "document": checkpoint.document}
        self.save(CHECKPOINT, Ticket({}, checkpoint.arrays, {}, provenance))

    def load_checkpoint(self, stage: str) -> Checkpoint | None:
        """The training of this stage, where it stopped; None if it was not going on.

        A damaged file is none: the stage is trained from its start, to the same result.
        """
        try:
            held = self.load(CHECKPOINT)
        except DeploykitError:
            return None
        if held is None or held.provenance.get("stage") != stage:
            return None
        return Checkpoint(dict(held.weights), dict(held.provenance["document"]))

    def drop_checkpoint(self) -> None:
        """Delete the checkpoint: what it is of has been saved."""
        self._path(CHECKPOINT).unlink(missing_ok=True)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"'{path}' cannot be read as the settings of a search: {error}. Give another folder, or delete this one."
        raise UsageError(msg) from error
    if not isinstance(found, dict) or "fingerprint" not in found:
        msg = f"'{path}' holds no settings of a search. Give another folder."
        raise UsageError(msg)
    return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in the words of a command line; the first few, and nothing that follows from another difference."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    following = {each for name in names for each in FOLLOWING.get(name, ())}
    names = [name for name in names if name not in following]
    if not names:
        return "it is of another version"
    said = [text for name in names for text in _difference(name, before, now)]
    return "; ".join(said[:MOST_SAID]) + ("; ..." if said[MOST_SAID:] else "")


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of a setting that differs."""
    old, new = before.get(name), now.get(name)
    if name == "structure" and old and new and old["name"] == new["name"]:
        for option in old:
            if old[option] != new.get(option):
                yield f"--{option} is {old[option]} there and {new.get(option)} here"
    elif name == "structure":
        old, new = (each["name"] if each else "none" for each in (old, new))
        yield f"--structure is {old} there and {new} here"
    elif name == "kept":
        (old, part), (new, other) = _extent(before), _extent(now)
        if old != new or abs(part - other) > ROUNDED:
            dropped = (
                f"--rounds {old} --sparsity {part:.3g}",
                f"--rounds {new} --sparsity {other:.3g}",
            )
            yield f"it is {dropped[0]} there and {dropped[1]} here"
        elif before.get("total") == now.get("total"):
            yield "the rounds keep other numbers of weights (--rate)"
    elif name in FLAGS:
        flag, value = FLAGS[name]
        here, there = ("here", "there") if new == value else ("there", "here")
        yield f"{flag} is given {here}, and not {there}"
    elif name in HASHED or name == "prunable":
        what = f"{name} weights differ" if name == "prunable" else f"{name} differs"
        yield f"the task's {what}"
    else:
        subject = f"--{name}" if name in OPTIONS else WORDS.get(name, f"the {name}")
        old, new = ("none" if each is None else each for each in (old, new))
        yield f"{subject} is {old} there and {new} here"


def _extent(settings: Mapping[str, Any]) -> tuple[int, float]:
    """How far a search goes: its rounds, and the part of the weights that the last one drops."""
    kept, total = settings.get("kept") or [0], settings.get("total") or 1
    return len(kept), 1.0 - kept[-1] / total
