"""Where models are measured: on this machine, or on a device elsewhere that runs the same sampler."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from deploykit.errors import ModelError, RuntimeUnavailable
from deploykit.profile import device, sampler
from deploykit.profile.memory import memory_peak
from deploykit.profile.state.seen import COMMANDS, Seen, look_here
from deploykit.runtimes import DEFAULT
from deploykit.runtimes.onnxruntime import Session

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from deploykit.profile import Settings
    from deploykit.profile.device import Device
    from deploykit.runtimes import Runner

__all__ = ["HERE", "Here", "Place"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feeds: TypeAlias = Mapping[str, Array]
Record: TypeAlias = dict[str, Any]
Watch: TypeAlias = Mapping[str, Any]
Share: TypeAlias = Callable[[float], None]

CPU = "CPUExecutionProvider"
TRTEXEC = "trtexec"
"""The runtime that has no sessions: the sampler launches it."""


class Place(Protocol):
    """Where models are measured, as a context manager: what it left there is gone afterwards."""

    @property
    def name(self) -> str:
        """What users call it: "this machine", or the name or address of a device."""

    @property
    def is_local(self) -> bool:
        """Whether it is this very machine and process."""

    def describe(self) -> device.Device:
        """The machine as it is now.

        Raises:
            RuntimeUnavailable: it cannot be reached.
        """

    def look(self) -> Seen:
        """What the machine says of itself now, its tools asked as well, which may take seconds.

        Raises:
            RuntimeUnavailable: it cannot be reached.
        """

    def sample(
        self,
        models: Sequence[str | Path],
        feeds: Feeds,
        *,
        runtime: str = DEFAULT,
        threads: int | None = 1,
        settings: Settings,
        progress: Share | None = None,
        watch: Watch | None = None,
    ) -> Record:
        """Time models against each other.

        Args:
            models: files of the models.
            feeds: an array for each input, by name; all models take them.
            runtime: what runs them there.
            threads: threads that share the work of one operator; None leaves the number to the runtime.
            settings: how long and how often.
            progress: called with the share of the work that is done, 0 to 1.
            watch: what is noted meanwhile, see `sampler.sample`; None notes nothing.

        Returns:
            what `sampler.sample` returns.

        Raises:
            ModelError: a model does not run there on these inputs.
            RuntimeUnavailable: the place cannot be reached, or the runtime is not there.
        """

    def memory_peak(
        self, model: str | Path, feeds: Feeds, *, threads: int | None = 1
    ) -> int | None:
        """The most memory that opening and running a model takes there, in bytes; None where it does not tell.

        Raises:
            ModelError: the model does not run there in a process of its own.
            RuntimeUnavailable: the place cannot be reached.
        """

    def trace(
        self,
        path: Path,
        source: bytes,
        chains: Sequence[bytes],
        feeds: Feeds,
        *,
        threads: int | None,
        duration_s: float,
        warmup_s: float,
        most_runs: int,
    ) -> Record:
        """Run a model there with ONNX Runtime's profiler and without, in turns.

        Args:
            path: the model's file, beside which its weights lie if they are in files of their own.
            source: what is run: the model with names of our own.
            chains: models of small nodes, which tell what the profiler itself takes.
            feeds: an array for each input, by name.
            threads: threads that share the work of one operator; None leaves the number to the runtime.
            duration_s: seconds of profiled running.
            warmup_s: seconds of running before that.
            most_runs: runs after which it ends.

        Returns:
            what `sampler.trace` returns.

        Raises:
            RuntimeUnavailable: the place cannot be reached, or the runtime is not there.
        """

    def __enter__(self) -> Self:
        """Get it ready."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing behind."""


@dataclasses.dataclass(frozen=True)
class Here:
    """This machine, in this process.

    Attributes:
        runner: what runs the models; None is ONNX Runtime, which alone heeds `providers` and threads.
        providers: devices that ONNX Runtime is to use.
    """

    runner: Runner | None = None
    providers: tuple[str, ...] = (CPU,)

    @property
    def name(self) -> str:
        """What users call it."""
        return "this machine"

    @property
    def is_local(self) -> bool:
        """It is this machine."""
        return True

    def describe(self) -> Device:
        """The machine as it is now."""
        return device.describe()

    def look(self) -> Seen:
        """What this machine says of itself now."""
        return look_here(commands=COMMANDS)

    def sample(
        self,
        models: Sequence[str | Path],
        feeds: Feeds,
        *,
        runtime: str = DEFAULT,
        threads: int | None = 1,
        settings: Settings,
        progress: Share | None = None,
        watch: Watch | None = None,
    ) -> Record:
        """Time models against each other: `Place.sample`. What runs them is `runner`, or by `runtime` the sampler itself."""
        paths = [str(path) for path in models]
        runner = self.runner
        launches = runtime == TRTEXEC
        # A model that does not run is reported by the module that knows the runtime's messages.
        for path in () if launches else paths:
            self._run_once(path, feeds, threads)
        try:
            taken: Record = sampler.sample(
                paths,
                feeds,
                threads=threads,
                providers=self.providers,
                on_round=None if progress is None else lambda done, _: progress(done),
                opener=None
                if runner is None or launches
                else lambda model: runner.open(Path(model), feeds),
                runtime=TRTEXEC if launches else DEFAULT,
                watch=watch,
                **dataclasses.asdict(settings),
            )
        except ImportError as error:
            msg = f"{runtime} does not run here: {error}"
            raise RuntimeUnavailable(msg) from error
        except RuntimeError as error:
            msg = f"measuring {', '.join(paths)} failed: {error}"
            raise ModelError(msg) from error
        return taken if runner is None or launches else {**taken, "runtime": runner.about}

    def memory_peak(
        self, model: str | Path, feeds: Feeds, *, threads: int | None = 1
    ) -> int | None:
        """The most memory that a model takes in a process of its own: ONNX Runtime's alone is known."""
        if self.runner is not None:
            return None
        return memory_peak(model, feeds, threads=threads, providers=self.providers)

    def trace(
        self,
        path: Path,
        source: bytes,
        chains: Sequence[bytes],
        feeds: Feeds,
        *,
        threads: int | None,
        duration_s: float,
        warmup_s: float,
        most_runs: int,
    ) -> Record:
        """Run a model with the profiler and without: `Place.trace`. What the runtime raises is let through."""
        return sampler.trace(
            [source, *chains],
            dict(feeds),
            threads=threads,
            duration_s=duration_s,
            warmup_s=warmup_s,
            most_runs=most_runs,
            data_folder=str(path.resolve().parent),
        )

    def _run_once(self, path: str, feeds: Feeds, threads: int | None) -> None:
        """Run a model, so that one that does not is told of before anything is timed."""
        if self.runner is not None:
            with contextlib.closing(self.runner.open(Path(path), feeds)) as opened:
                opened.run(None, feeds)
            return
        with Session(path, threads=threads, providers=self.providers) as session:
            session.run(feeds)

    def __enter__(self) -> Self:
        """Nothing has to be got ready."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was left."""


HERE = Here()
"""This machine, with ONNX Runtime on its CPU."""
