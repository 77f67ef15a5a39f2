"""Times models against each other: a file that stands alone.

It needs Python 3.8, numpy and a runtime (onnxruntime, tensorrt, or NVIDIA's tool trtexec), and nothing of deploykit, so
that it can be copied to a device and run there: `python sampler.py job.json` prints one JSON document a line while the samples are taken.

How it measures, and why:

* all models take turns, in a new random order every round, so that whatever else the machine does meets all of them;
* worker threads do not spin: those of one session would take the cores from the next one;
* every model runs untimed for a moment before it is timed, because the others have taken the caches in the meantime
  (a model of 30 us measures as 130 us right after one that fills them);
* sessions are built anew several times, because where the weights come to lie in memory changes a model's speed;
* wall time and processor time are both kept, and all samples are kept: what they mean is decided elsewhere;
* what may have disturbed a run is noted beside it: how often the thread lost its core, and pages that were not there.

Engines of TensorRT are built once for each model, and timed by the clock of the GPU. `trtexec` is a program: its turns are
launches, and the runs of a launch are its samples. What differs between launches is then what differs between sessions
that are built anew, and the interval is as wide as the launches differ, however many runs there are in each.

What it prints are events, of which the last one says how it ended:

* `{"event": "open", "model": I}`: it opens the model with that number; `"warm"`: it runs it untimed;
* `{"event": "round", "done": SHARE, ...}`: a round was taken, with what `on_round` of `sample` is given;
* `{"event": "end", ...}`: the result;
* `{"event": "error", "kind": K, "text": T}`: there is none. K is "missing" (a package, "name"), "memory", "model" (the model
  of the last "open" or "warm" does not run; "runtime" is the runtime's name and version). Where lines cannot be written the
  exit code is 28.

A job with `"memory": true` measures something else: how much memory one model needs, in a process that does nothing else.
A job with `"trace": {...}` runs the first model with ONNX Runtime's profiler and without, see `trace`.
A job `{"look": {"files": [...], "commands": {...}}}` measures nothing: it prints what the machine says of itself.
"""

from __future__ import annotations

import base64
import errno
import gc
import glob
import importlib
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]  # looked at before it is used

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeAlias

    Feeds: TypeAlias = dict[str, Any]
    Record: TypeAlias = dict[str, Any]
    Source: TypeAlias = str | Path

CPU = "CPUExecutionProvider"
ONNXRUNTIME, TENSORRT, TRTEXEC = "onnxruntime", "tensorrt", "trtexec"
SETTLE_S = 0.0005

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "onnx",
    "onnx-ir",
)
TOOL_FOLDERS = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/bin", "/opt/vc/bin")
"""Where tools lie that a shell without a login may not have on its path."""

MOST_MATCHES, MOST_BYTES, MOST_IN_ALL = 1024, 1 << 16, 1 << 22
"""What `look` reads at most: files of a pattern, bytes of a file or command, bytes in all."""

DISK_FULL = 28
"""Exit code where what is to be printed cannot be written."""

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
MOST_TEXT = 2000

WATCH_EVERY_S, WATCH_SHARE = 1.0, 0.005
"""How often `sample` reads what it watches, and the share of the time that this may take."""

DEFAULTS = {
    "threads": 1,
    "warmup_s": 0.2,
    "duration_s": 3.0,
    "min_rounds": 10,
    "rebuilds": 3,
    "max_duration_s": 300.0,
    "seed": 0,
}


def sample(  # noqa: PLR0915 - one thing after the other
    models: Sequence[Source],
    inputs: Source | Mapping[str, Any],
    *,
    threads: int | None = 1,
    warmup_s: float = 0.2,
    duration_s: float = 3.0,
    min_rounds: int = 10,
    rebuilds: int = 3,
    max_duration_s: float = 300.0,
    seed: int = 0,
    providers: Sequence[str] = (CPU,),
    on_round: Callable[[float, Record], None] | None = None,
    opener: Callable[[Source], Any] | None = None,
    watch: Mapping[str, Any] | None = None,
    on_step: Callable[[str, int], None] | None = None,
    runtime: str = ONNXRUNTIME,
) -> Record:
    """Time models against each other.

    Args:
        models: paths of the models; all of them take the same inputs.
        inputs: path of an .npz file, or a dict, with an array for each input by name.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        warmup_s: seconds for which each new session is run before it is timed, at least once.
        duration_s: seconds that each model gets, on average over the models, untimed runs included.
        min_rounds: rounds that are taken even when they last longer than that.
        rebuilds: how often all sessions are built anew; the rounds are spread over them.
        max_duration_s: seconds after which the whole ends, with a round for each of the sessions built so far.
        seed: of the random orders.
        providers: devices to run on, in the runtime's own words.
        on_round: called as on_round(done, record) after every round; `done` is the share of the work, 0 to 1, and
            `record` a dict with the round's "rebuild", "order", "wall_s", "cpu_s", "switches" and "faults".
        opener: opens a model in another runtime, as something with the methods `run` and `get_providers` of a session of
            ONNX Runtime, and `device_s(inputs)` if it is to be timed by its device's clock; None is ONNX Runtime.
        watch: "files", patterns of files that are read between rounds, about once a second, and "streams", commands
            that write a line about as often and are run beside; None watches nothing.
        on_step: called as on_step("open", index) before a model is opened, and as on_step("warm", index) before it runs
            untimed.
        runtime: what runs the models: "onnxruntime", "tensorrt" or "trtexec". The last two build engines, and heed neither
            `threads` nor `providers`.

    Returns:
        a dict: "rebuild" (one number a round), "wall_s" and "cpu_s" (a list for each model, one number a round, in
        seconds), "switches" and "faults" (likewise: how often the thread was taken off its core, and how many pages had
        to be mapped or read; 0 where the system does not tell), "load_s" (a list for each model: seconds that opening
        it took, one number a rebuild), "cpu_clock" ("thread": time of the calling thread, which does all the work when `threads` is 1;
        "process" otherwise), "is_device" (whether "wall_s" is by the clock of the device),
        "truncated" (whether `max_duration_s` cut it short), "elapsed_s", "providers", "runtime", the settings, and
        "states": what was watched, a list of dicts with "at_s" (seconds since the beginning) and "files" (texts by path)
        or "stream" (its first word) and "lines".
    """
    start = time.perf_counter()
    deadline = start + max_duration_s
    dice = random.Random(seed)  # noqa: S311 - orders, not secrets
    feeds = _read(inputs)
    count = len(models)
    rounds_each = math.ceil(min_rounds / rebuilds)
    budget_each_s = max(duration_s * count / rebuilds, 1e-9)
    taken: list[Record] = []
    load_s: list[list[float]] = [[] for _ in models]
    tell = on_step or _tell_nobody
    if runtime == TRTEXEC:
        return _sample_launches(
            Trtexec(feeds),
            models,
            dice=dice,
            start=start,
            warmup_s=warmup_s,
            duration_s=duration_s,
            runs=rounds_each,
            rebuilds=rebuilds,
            deadline=deadline,
            seed=seed,
            on_round=on_round,
            watch=watch,
            tell=tell,
        )
    opener, about = (opener, "") if opener is not None else _opener(runtime, feeds)
    open_one = opener or (lambda model: open_session(model, threads, providers))
    is_device = False
    truncated = False
    used: list[str] = []
    was_collecting = gc.isenabled()
    gc.disable()
    watcher = Watcher(watch or {}, start)
    try:
        for rebuild in range(rebuilds):
            if taken and time.perf_counter() > deadline:
                truncated = True
                break
            sessions = _open_all(models, open_one, dice, load_s, tell)
            used = sessions[0].get_providers()
            is_device = hasattr(sessions[0], "device_s")
            for index, session in enumerate(sessions):
                tell("warm", index)
                _warm_up(session, feeds, warmup_s)
            rounds = 0
            spent_s = 0.0
            begun = time.perf_counter()
            while rounds < rounds_each or spent_s < budget_each_s:
                if rounds and time.perf_counter() > deadline:
                    truncated = True
                    break
                record = _round(sessions, feeds, dice.sample(range(count), count), threads)
                record["rebuild"] = rebuild
                taken.append(record)
                rounds += 1
                watcher.take()
                spent_s = time.perf_counter() - begun
                if on_round is not None:
                    here = min(rounds / rounds_each, spent_s / budget_each_s, 1.0)
                    on_round((rebuild + here) / rebuilds, record)
            # The next sessions must not find the memory of these still taken.
            for session in sessions:
                if opener is not None:
                    session.close()
            del sessions, session
            gc.collect()
    finally:
        watcher.stop()
        if was_collecting:
            gc.enable()
    return {
        "rebuild": [record["rebuild"] for record in taken],
        "wall_s": [[record["wall_s"][index] for record in taken] for index in range(count)],
        "cpu_s": [[record["cpu_s"][index] for record in taken] for index in range(count)],
        "switches": [[record["switches"][index] for record in taken] for index in range(count)],
        "faults": [[record["faults"][index] for record in taken] for index in range(count)],
        "load_s": load_s,
        "cpu_clock": "thread" if threads == 1 else "process",
        "is_device": is_device,
        "truncated": truncated,
        "elapsed_s": time.perf_counter() - start,
        "providers": list(used),
        "runtime": about if opener is not None else "onnxruntime " + _runtime().__version__,
        "threads": threads,
        "rebuilds": rebuilds,
        "seed": seed,
        "states": watcher.states,
    }


def _opener(runtime: str, feeds: Feeds) -> tuple[Callable[[Source], Any] | None, str]:
    """What opens models in another runtime, and its name and version; None for ONNX Runtime."""
    if runtime == ONNXRUNTIME:
        return None, ""
    if runtime != TENSORRT:
        msg = f"there is no runtime '{runtime}' to sample with"
        raise ValueError(msg)
    engines = Engines(feeds)
    return engines.open, engines.about


def _tell_nobody(step: str, index: int) -> None:
    """Who calls in process sees what happens by other means."""
    del step, index


def open_session(model: Source, threads: int | None, providers: Sequence[str] = (CPU,)) -> Any:  # noqa: ANN401 - a type of the runtime
    """Open a model as it would be deployed, except that its idle threads sleep.

    Raises:
        RuntimeError: the runtime fell back to another device than the one asked for.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = runtime.InferenceSession(str(model), options, providers=list(providers))
    fallen = [name for name in providers if name not in session.get_providers()]
    if fallen:
        msg = "ONNX Runtime does not run on {} here, it fell back to {}".format(
            ", ".join(fallen), ", ".join(session.get_providers())
        )
        raise RuntimeError(msg)
    return session


def measure_memory(
    model: Source,
    inputs: Source | Mapping[str, Any],
    *,
    threads: int | None = 1,
    providers: Sequence[str] = (CPU,),
) -> Record:
    """Measure how much memory opening and running one model takes; call it in a process that did nothing else.

    Args:
        model: path of the model.
        inputs: path of an .npz file, or a dict, with an array for each input by name.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        providers: devices to run on, in the runtime's own words.

    Returns:
        a dict: "before_bytes", the most memory the process ever held before the model was opened, with the runtime
        imported and the inputs read; "peak_bytes", the most it ever held; both None where the system does not tell.
    """
    feeds = _read(inputs)
    _runtime()
    before = _most_memory()
    session = open_session(model, threads, providers)
    for _ in range(3):
        session.run(None, feeds)
    return {"before_bytes": before, "peak_bytes": _most_memory()}


class Watcher:
    """Notes what a machine says of itself while models are timed, and keeps out of their way.

    Files are read between rounds. Commands that write lines run beside, and what they wrote is taken between rounds.

    Args:
        watch: "files" (patterns) and "streams" (commands), see `sample`.
        start: the time that states are counted from, by `time.perf_counter`.

    Attributes:
        states: what was noted.
    """

    def __init__(self, watch: Mapping[str, Any], start: float) -> None:
        self.states: list[Record] = []
        self._start = start
        self._paths = _matches(watch.get("files", ()), "/")
        self._next = 0.0
        self._streams: list[tuple[str, Any]] = []
        self._rest: dict[str, bytes] = {}
        for argv in watch.get("streams", ()):
            process = _start_stream(argv)
            if process is not None:
                self._streams.append((argv[0], process))
                self._rest[argv[0]] = b""

    def take(self, *, is_last: bool = False) -> None:
        """Note the state, unless that was done a moment ago."""
        if not (self._paths or self._streams):
            return
        now = time.perf_counter()
        if now < self._next and not is_last:
            return
        at_s = round(now - self._start, 3)
        texts = {path: _first_bytes(path, 256) for path in self._paths}
        found = {path: text.strip() for path, text in texts.items() if text is not None}
        if found:
            self.states.append({"at_s": at_s, "files": found})
        for name, process in self._streams:
            lines = self._lines(name, process)
            if lines:
                self.states.append({"at_s": at_s, "stream": name, "lines": lines})
        # Sensors behind a slow bus are asked less often.
        cost_s = time.perf_counter() - now
        self._next = now + max(WATCH_EVERY_S, cost_s / WATCH_SHARE)

    def stop(self) -> None:
        """Take what is left, and end what runs beside."""
        self.take(is_last=True)
        for _, process in self._streams:
            process.terminate()
        for _, process in self._streams:
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._streams = []

    def _lines(self, name: str, process: Any) -> list[str]:  # noqa: ANN401 - a process
        """The whole lines that it wrote since the last time."""
        try:
            found = os.read(process.stdout.fileno(), MOST_BYTES)
        except BlockingIOError:
            return []
        whole, _, self._rest[name] = (self._rest[name] + found).rpartition(b"\n")
        return [line for line in whole.decode(errors="replace").splitlines() if line.strip()]


def _start_stream(argv: Sequence[str]) -> Any:  # noqa: ANN401 - a process
    """Start a command that goes on writing lines, which are read without waiting; None if it is not there."""
    tool = _find_tool(argv[0])
    if tool is None or not hasattr(os, "set_blocking") or os.name == "nt":
        return None
    try:
        process: Any = subprocess.Popen(  # noqa: S603 - what the job says
            [tool, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_plain_environment(),
        )
    except OSError:
        return None
    os.set_blocking(process.stdout.fileno(), False)
    return process


def look(
    files: Sequence[str],
    commands: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    *,
    timeout_s: float = 5.0,
    root: str = "/",
) -> Record:
    """Say what this machine says of itself, as texts: what they mean is decided elsewhere.

    Nothing is changed, nobody is asked, and no command gets more rights than this process has.

    Args:
        files: patterns of files, "/proc/meminfo" or "/sys/class/thermal/thermal_zone*/temp"; those that are not there
            or cannot be read are left out.
        commands: forms of a command by its name; the first form that works is kept. A form that begins with a number
            never ends by itself: it is ended after so many lines.
        timeout_s: seconds after which a command is ended.
        root: where the files lie.

    Returns:
        a dict: "files" (texts by path), "commands" (by name: "code", None where it is not there or took too long, and
        "text", with what it said on stderr), "architecture", "system", "release", "processor", "cores", "affinity" (cores
        that this process may use), "python", "packages" (versions by name) and "load_average" (None where the system
        does not tell).
    """
    texts: dict[str, str] = {}
    taken = 0
    prefix = root.rstrip("/")
    for path in _matches(files, root):
        text = _first_bytes(path, MOST_BYTES)
        if text is not None and taken < MOST_IN_ALL:
            taken += len(text)
            texts[path[len(prefix) :]] = text
    affinity = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1
    return {
        "files": texts,
        "commands": {
            name: _first_that_works(forms, timeout_s)
            for name, forms in (commands or {}).items()
        },
        "architecture": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "processor": platform.processor(),
        "cores": cores,
        "affinity": len(affinity(0)) if affinity else cores,
        "python": platform.python_version(),
        "packages": _versions(),
        "load_average": _load_average(),
    }


def _matches(patterns: Sequence[str], root: str) -> list[str]:
    """Paths of the files that patterns name, in the order of the patterns."""
    prefix = glob.escape(root.rstrip("/"))
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = sorted(glob.glob(prefix + pattern))  # noqa: PTH207 - patterns may be absolute
        found.update(dict.fromkeys(matching[:MOST_MATCHES]))
    return list(found)


def _first_bytes(path: str, most: int) -> str | None:
    """The beginning of a file; None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the quickest way
            parts = []
            while most > 0:
                part = file.read(most)
                # A sensor that is not ready gives None.
                if not part:
                    break
                parts.append(part)
                most -= len(part)
    except OSError:
        return None
    return b"".join(parts).replace(b"\0", b"\n").decode("utf-8", errors="replace")


def _first_that_works(forms: Sequence[Sequence[Any]], timeout_s: float) -> Record:
    said: Record = {"code": None, "text": "it is not there"}
    for form in forms:
        lines, argv = (form[0], form[1:]) if isinstance(form[0], int) else (None, form)
        tool = _find_tool(argv[0])
        if tool is None:
            continue
        said = _run_command([tool, *argv[1:]], lines, timeout_s)
        if said["code"] == 0:
            break
    return said


def _run_command(argv: Sequence[str], most_lines: int | None, timeout_s: float) -> Record:
    """Run a command, or its first lines; end it when its time is over."""
    try:
        process: Any = subprocess.Popen(  # noqa: S603 - what the job says
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_plain_environment(),
            # What it starts itself is ended with it.
            start_new_session=True,
        )
    except OSError as error:
        return {"code": None, "text": str(error)}
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill_group(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    lines: list[bytes] = []
    try:
        with process.stdout as output:
            for line in output:
                lines.append(line)
                if len(lines) == most_lines or sum(map(len, lines)) > MOST_BYTES:
                    _kill_group(process)
                    break
        code: int | None = process.wait()
    finally:
        timer.cancel()
    text = b"".join(lines)[:MOST_BYTES].decode("utf-8", errors="replace")
    if len(lines) == most_lines:
        return {"code": 0, "text": text}
    if late.is_set():
        return {
            "code": None,
            "text": f"it did not end within {timeout_s:g} s\n{text}",
        }
    return {"code": code, "text": text}


def _kill_group(process: Any) -> None:  # noqa: ANN401 - a process
    """End a process that leads a session, and what it started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except OSError:
        return


def _find_tool(name: str) -> str | None:
    """The path of a tool, which may lie where a shell without a login does not look."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(TOOL_FOLDERS))


def _plain_environment() -> dict[str, str]:
    """English, and no library of ours pushed before theirs."""
    return {**os.environ, "LANG": "C", "LC_ALL": "C"}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _load_average() -> list[float] | None:
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):
        return None


# -- layers --------------------------------------------------------------------------------------

FEWEST_RUNS, FEWEST_CLEAN = 10, 5
PATIENCE = 3
"""On a busy machine it takes up to so many times as long, to find moments in which the thread was not kept waiting."""

CLEAN_SHARE, CLEAN_S = 0.03, 20e-6
"""What a run may wait, as a share of its time and in seconds, to count as one that was not kept waiting."""

SETTLED_S = 0.005
"""A model that takes longer finds nothing of its own in the caches anyway: it need not run untimed before it is timed."""

MOST_CHAIN_RUNS = 400
KERNEL = "_kernel_time"
MODEL, OPTIMIZED = "model_run", "optimized.onnx"


def trace(
    models: Sequence[Source | bytes],
    inputs: Source | Mapping[str, Any],
    *,
    threads: int | None = 1,
    duration_s: float = 1.0,
    warmup_s: float = 0.2,
    most_runs: int = 1000,
    data_folder: str | None = None,
    on_step: Callable[[str, int], None] | None = None,
) -> Record:
    """Run a model on the CPU in turns with ONNX Runtime's profiler and without, and note what the profiler notes.

    Args:
        models: the model, then pairs of chains of small nodes, a short and a long one, from which is told what the profiler
            itself takes; each is a path or the bytes of a file.
        inputs: path of an .npz file, or a dict, with an array for each input of the model by name.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        duration_s: seconds of profiled running, at least 10 runs, and as many again without the profiler; up to three
            times that on a busy machine.
        warmup_s: seconds of running before that, at least once.
        most_runs: runs after which it ends, untimed ones included.
        data_folder: where the weights of a model of bytes lie, if they are in files of their own.
        on_step: called as on_step("open", 0) before the model is opened, and as on_step("warm", 0) before it runs.

    Returns:
        a dict: "skipped" (profiled runs before the timed ones), "settle" (untimed runs before each timed one), "wall_s" and
        "cpu_s" (of each run: a list without the profiler and one with it), "profile" (see `_read_profile`), "optimized"
        (the graph that ran, as a file in base64; its large weights are left out), and "chains": for each pair "short_s"
        and "long_s" (without the profiler, one number a run) and "profile" (of the long one).
    """
    feeds = _read(inputs)
    tell = on_step or _tell_nobody
    with tempfile.TemporaryDirectory(prefix="deploykit-layers-") as folder:
        tell("open", 0)
        profiled = _open_traced(models[0], threads, data_folder, folder, "model")
        plain = _open_traced(models[0], threads, data_folder, None, "")
        sessions = (plain, profiled)
        chains = [
            Chain(short, long, folder, f"chain{number}")
            for number, (short, long) in enumerate(zip(models[1::2], models[2::2]))  # noqa: B905 - Python 3.8
        ]
        tell("warm", 0)
        skipped, seconds = _warm_up_both(sessions, feeds, warmup_s)
        settle = int(seconds < SETTLED_S)
        times = _take_turns(
            sessions,
            chains,
            feeds,
            threads,
            duration_s,
            settle=settle,
            most=most_runs // (1 + settle),
        )
        optimized = Path(folder, OPTIMIZED).read_bytes()
        return {
            "skipped": skipped,
            "settle": settle,
            "wall_s": [wall_s for wall_s, _ in times],
            "cpu_s": [cpu_s for _, cpu_s in times],
            "profile": _read_profile(profiled.end_profiling()),
            "optimized": base64.b64encode(optimized).decode("ascii"),
            "chains": [chain.result() for chain in chains],
        }


class Chain:
    """A chain of small nodes, with the profiler and without, and a short one to tell what a run takes by itself."""

    def __init__(
        self, short: Source | bytes, long: Source | bytes, folder: str, name: str
    ) -> None:
        self._sessions = (_open_chain(short, None), _open_chain(long, None))
        self._profiled = _open_chain(long, os.path.join(folder, name))  # noqa: PTH118 - a text is needed
        (given,) = self._profiled.get_inputs()
        import numpy as np

        self._feeds = {given.name: np.ones(given.shape, np.float32)}
        self._times: tuple[list[float], list[float]] = ([], [])

    def run(self) -> None:
        """Run it once with the profiler and once without, unless that was done often enough."""
        if len(self._times[0]) >= MOST_CHAIN_RUNS:
            return
        for session, seconds in zip(self._sessions, self._times):  # noqa: B905 - Python 3.8
            session.run(None, self._feeds)
            began = time.perf_counter()
            session.run(None, self._feeds)
            seconds.append(time.perf_counter() - began)
        self._profiled.run(None, self._feeds)

    def result(self) -> Record:
        """What was taken; ends the profile."""
        short_s, long_s = self._times
        profile = _read_profile(self._profiled.end_profiling())
        return {"short_s": short_s, "long_s": long_s, "profile": profile}


def _open_traced(
    model: Source | bytes,
    threads: int | None,
    data_folder: str | None,
    folder: str | None,
    name: str,
) -> Any:  # noqa: ANN401 - a type of the runtime
    """Open a session; one that is profiled, and writes the graph that it runs, if there is a folder for that."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if data_folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", data_folder
        )
    options.log_severity_level = 4
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, name)  # noqa: PTH118 - a text is needed
        options.optimized_model_filepath = os.path.join(folder, OPTIMIZED)  # noqa: PTH118
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
    source = model if isinstance(model, bytes) else str(model)
    return runtime.InferenceSession(source, options, providers=[CPU])


def _open_chain(model: Source | bytes, profile: str | None) -> Any:  # noqa: ANN401 - a type of the runtime
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    source = model if isinstance(model, bytes) else str(model)
    return runtime.InferenceSession(source, options, providers=[CPU])


def _warm_up_both(sessions: Sequence[Any], feeds: Feeds, seconds: float) -> tuple[int, float]:
    """Run all sessions for a while; how often each ran, and the seconds of its last run."""
    runs = 0
    end = time.perf_counter() + seconds
    last_s = 0.0
    while runs == 0 or time.perf_counter() < end:
        for session in sessions:
            began = time.perf_counter()
            session.run(None, feeds)
            last_s = time.perf_counter() - began
        runs += 1
    return runs, last_s


def _take_turns(
    sessions: Sequence[Any],
    chains: Sequence[Chain],
    feeds: Feeds,
    threads: int | None,
    duration_s: float,
    *,
    settle: int,
    most: int,
) -> list[tuple[list[float], list[float]]]:
    """Time the sessions in turns, each after `settle` untimed runs, because the other one had the caches."""
    cpu_clock = time.thread_time if threads == 1 else time.process_time
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in sessions]
    begun = time.perf_counter()
    for runs in range(max(FEWEST_RUNS, most)):
        spent_s = time.perf_counter() - begun
        if runs >= FEWEST_RUNS and spent_s > 2 * duration_s:
            clean = sum(map(is_clean, *taken[1]))
            is_enough = threads != 1 or clean >= max(FEWEST_CLEAN, runs // 4)
            if is_enough or spent_s > PATIENCE * 2 * duration_s:
                break
        for session, (wall_s, cpu_s) in zip(sessions, taken):  # noqa: B905 - Python 3.8
            for _ in range(settle):
                session.run(None, feeds)
            cpu = cpu_clock()
            wall = time.perf_counter()
            session.run(None, feeds)
            wall_s.append(time.perf_counter() - wall)
            cpu_s.append(cpu_clock() - cpu)
        for chain in chains:
            chain.run()
    return taken


def is_clean(wall_s: float, cpu_s: float) -> bool:
    """Whether the thread was hardly kept waiting in a run of so many seconds."""
    return wall_s - cpu_s < CLEAN_SHARE * wall_s + CLEAN_S


def _read_profile(path: str) -> Record:
    """What is of use in a profile of ONNX Runtime, a hundredth of its bytes.

    Returns:
        a dict: "runs" (of each run its begin and how long it took, in microseconds), "nodes" (name, operator, number and
        how many tensors it reads) and "kernels" (the place of the node in that list, begin and microseconds).
    """
    events = json.loads(Path(path).read_text(encoding="utf-8"))
    nodes: dict[tuple[Any, ...], int] = {}
    kernels = []
    runs = []
    for event in events:
        name = str(event.get("name", ""))
        if name == MODEL:
            runs.append([event["ts"], event["dur"]])
        elif event.get("cat") == "Node" and name.endswith(KERNEL):
            args = event["args"]
            node = (
                name[: -len(KERNEL)],
                str(args["op_name"]),
                int(args["node_index"]),
                len(args.get("input_type_shape", ())),
            )
            kernels.append([nodes.setdefault(node, len(nodes)), event["ts"], event["dur"]])
    return {"runs": runs, "nodes": [list(node) for node in nodes], "kernels": kernels}


# -- TensorRT ------------------------------------------------------------------------------------

ENGINES = (".engine", ".plan", ".trt")
"""Files of these kinds are engines already."""

ITEM_BYTES = {
    "FLOAT": 4,
    "HALF": 2,
    "BF16": 2,
    "INT8": 1,
    "UINT8": 1,
    "INT32": 4,
    "INT64": 8,
    "BOOL": 1,
}
NUMPY_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Engines:
    """Builds engines with TensorRT's Python package, 8.5 to 11, and runs them on the first GPU that the driver shows.

    From version 10 on networks are strongly typed: types are those of the model. Before, half precision is allowed where
    the model uses it. Sparse kernels are allowed.

    Args:
        feeds: an array for each input, by name.
        driver: the driver's library; None loads it.

    Attributes:
        about: name and version of the runtime.

    Raises:
        ImportError: the package or the driver is not there.
    """

    def __init__(self, feeds: Feeds, driver: Any = None) -> None:  # noqa: ANN401 - a library
        self._trt = importlib.import_module("tensorrt")
        self.about = "tensorrt " + self._trt.__version__
        self._gpu = Gpu(driver)
        self._feeds = feeds
        self._built: dict[str, bytes] = {}

    def open(self, model: Source) -> EngineSession:
        """Make a model ready to run; it is built if that was not done yet."""
        key = str(model)
        if key not in self._built:
            is_engine = key.endswith(ENGINES)
            self._built[key] = Path(key).read_bytes() if is_engine else self._build(key)
        return EngineSession(self._trt, self._built[key], self._gpu, self._feeds)

    def _build(self, model: str) -> bytes:
        trt = self._trt
        said: list[str] = []
        logger = _engine_logger(trt, said)
        try:
            builder = trt.Builder(logger)
        except TypeError as error:
            raise ImportError(
                f"TensorRT does not work here: {_last(said)}", name=TENSORRT
            ) from error
        major = int(trt.__version__.split(".", 1)[0])
        kinds = trt.NetworkDefinitionCreationFlag
        flags = 0
        if major < 10:
            flags = 1 << int(kinds.EXPLICIT_BATCH)
        elif major == 10:
            flags = 1 << int(kinds.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(model):
            found = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            raise RuntimeError("TensorRT does not read the model: " + _last(found or said))
        config = builder.create_builder_config()
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if major < 10 and _has_halves(trt, network):
            config.set_flag(trt.BuilderFlag.FP16)
        profile = None
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            if min(tensor.shape, default=0) < 0:
                profile = profile or builder.create_optimization_profile()
                sizes = tuple(self._feeds[tensor.name].shape)
                profile.set_shape(tensor.name, sizes, sizes, sizes)
        if profile is not None:
            config.add_optimization_profile(profile)
        built = builder.build_serialized_network(network, config)
        if built is None:
            raise RuntimeError("TensorRT builds no engine of the model: " + _last(said))
        return bytes(built)


def _engine_logger(trt: Any, said: list[str]) -> Any:  # noqa: ANN401 - types of the package
    """A logger that keeps what went wrong; nothing is printed."""

    class Keeper(trt.ILogger):  # type: ignore[misc]  # a base that is known at run time only
        def __init__(self) -> None:
            # The binding looks for its own constructor.
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - an enum of the package
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                said.append(message)

    return Keeper()


def _has_halves(trt: Any, network: Any) -> bool:  # noqa: ANN401 - types of the package
    """Whether a layer of the network computes in half precision."""
    return any(
        network.get_layer(number).get_output(index).dtype == trt.DataType.HALF
        for number in range(network.num_layers)
        for index in range(network.get_layer(number).num_outputs)
    )


def _last(said: Sequence[str]) -> str:
    """The last things that were said, on one line."""
    return "; ".join(" ".join(text.split()) for text in said[-4:]) or "it does not say why"


class EngineSession:
    """An engine that is ready to run, with its inputs and outputs in the device's memory: see `opener` of `sample`."""

    def __init__(
        self,
        trt: Any,  # noqa: ANN401 - a module
        engine: bytes,
        gpu: Gpu,
        feeds: Feeds,
    ) -> None:
        said: list[str] = []
        logger = _engine_logger(trt, said)
        self._gpu, self._said = gpu, said
        self._addresses: list[int] = []
        runtime = trt.Runtime(logger)
        opened = runtime.deserialize_cuda_engine(engine)
        context = None if opened is None else opened.create_execution_context()
        if context is None:
            raise RuntimeError("TensorRT does not take the engine on this GPU: " + _last(said))
        # The engine needs the runtime, and that its logger, for as long as it is used.
        self._kept = (logger, runtime, opened)
        self._context: Any = context
        names = [opened.get_tensor_name(index) for index in range(opened.num_io_tensors)]
        are_inputs = {
            name: opened.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names
        }
        for name in names:
            if are_inputs[name] and min(opened.get_tensor_shape(name), default=0) < 0:
                context.set_input_shape(name, tuple(feeds[name].shape))
        for name in names:
            if opened.get_tensor_location(name) == trt.TensorLocation.HOST:
                raise RuntimeError(
                    f"'{name}' is read by the engine on the host, which is not supported"
                )
            self._bind(
                name,
                str(opened.get_tensor_dtype(name).name),
                tuple(context.get_tensor_shape(name)),
                feeds[name] if are_inputs[name] else None,
            )

    def run(self, names: None, feeds: Feeds) -> None:
        """Run it once; outputs stay on the device."""
        del names
        self.device_s(feeds)

    def device_s(self, feeds: Feeds) -> float:
        """Run it once on the inputs that it was opened with; seconds by the device's clock."""
        del feeds
        self._gpu.begin_clock()
        if not self._context.execute_async_v3(self._gpu.stream):
            raise RuntimeError("the engine does not run: " + _last(self._said))
        return self._gpu.end_clock()

    def get_providers(self) -> list[str]:
        """The GPU."""
        return [self._gpu.name]

    def close(self) -> None:
        """Give the memory back."""
        self._context = None
        self._kept = ()  # type: ignore[assignment]  # nothing is kept any more
        for address in self._addresses:
            self._gpu.free(address)
        self._addresses = []

    def _bind(self, name: str, dtype: str, shape: tuple[int, ...], array: Any) -> None:  # noqa: ANN401 - an array
        """Give a tensor its memory; that of an input is filled."""
        if dtype not in ITEM_BYTES or min(shape, default=0) < 0:
            msg = f"'{name}' ({dtype}, {list(shape)}) cannot be handed over to the engine"
            raise RuntimeError(msg)
        size = ITEM_BYTES[dtype]
        for length in shape:
            size *= int(length)
        address = self._gpu.reserve(size)
        self._addresses.append(address)
        if array is not None:
            # numpy knows no bfloat16: such arrays come as they lie in memory.
            kind = NUMPY_TYPES.get(dtype, array.dtype)
            self._gpu.upload(address, array.astype(kind).tobytes(), size)
        if not self._context.set_tensor_address(name, address):
            raise RuntimeError(f"the engine does not take '{name}': {_last(self._said)}")


class Gpu:
    """The first GPU that NVIDIA's driver shows, used through the driver's library alone. Source: cuda.h.

    Args:
        driver: the library; None loads it.

    Raises:
        ImportError: there is none, or no GPU.
    """

    def __init__(self, driver: Any = None) -> None:  # noqa: ANN401 - a library
        import ctypes

        self._c = ctypes
        if driver is None:
            try:
                driver = ctypes.CDLL(DRIVER)
            except OSError as error:
                raise ImportError(f"there is no NVIDIA driver: {error}", name=DRIVER) from error
        self._driver = driver
        count, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise ImportError("the NVIDIA driver shows no GPU: check nvidia-smi", name=DRIVER)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, ctypes.c_int(256), ctypes.c_int(0))
        self.name = name.value.decode(errors="replace")
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(0))
        self._call("cuCtxSetCurrent", context)
        # Its work does not wait for that of others in the default stream.
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))
        self._stream = stream
        self._events = (ctypes.c_void_p(), ctypes.c_void_p())
        for event in self._events:
            self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))

    @property
    def stream(self) -> int:
        """Handle of the stream that work is put in."""
        return self._stream.value or 0

    def reserve(self, size: int) -> int:
        """The address of memory, of at least one byte: engines refuse null addresses of empty tensors."""
        address = self._c.c_uint64()
        self._call("cuMemAlloc_v2", self._c.byref(address), self._c.c_size_t(max(size, 1)))
        return int(address.value)

    def upload(self, address: int, data: bytes, room: int) -> None:
        """Fill memory."""
        if len(data) != room:
            raise RuntimeError(f"an input has {len(data)} bytes, and the engine takes {room}")
        if data:
            self._call(
                "cuMemcpyHtoD_v2",
                self._c.c_uint64(address),
                self._c.c_char_p(data),
                self._c.c_size_t(room),
            )

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", self._c.c_uint64(address))

    def begin_clock(self) -> None:
        """Note the time at which the stream gets here."""
        self._call("cuEventRecord", self._events[0], self._stream)

    def end_clock(self) -> float:
        """Wait until the stream gets here; seconds since `begin_clock`."""
        elapsed_ms = self._c.c_float()
        self._call("cuEventRecord", self._events[1], self._stream)
        self._call("cuEventSynchronize", self._events[1])
        self._call("cuEventElapsedTime", self._c.byref(elapsed_ms), *self._events)
        return float(elapsed_ms.value) * 1e-3

    def _call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - what C takes
        code = getattr(self._driver, name)(*arguments)
        if code == 2:
            raise MemoryError("the GPU has not enough memory free for the model")
        if code:
            raise RuntimeError(f"the GPU failed: {name} says {code}")


# -- trtexec -------------------------------------------------------------------------------------

TRTEXEC_PLACES = (
    "/usr/src/tensorrt/bin/trtexec",
    "/opt/tensorrt/bin/trtexec",
    "/usr/local/tensorrt/bin/trtexec",
)
"""Where NVIDIA's packages put it, which is on nobody's path."""

STATIC = "Static model does not take explicit shapes"
MOST_RUNS = 500
"""Runs of a launch that are kept: a small engine runs ten thousand times a second."""


class Trtexec:
    """NVIDIA's `trtexec`, of TensorRT 8 to 11: builds an engine, and times it in a process of its own.

    Args:
        feeds: an array for each input, by name.

    Attributes:
        about: name and version of the runtime.
        said: what it said while it built the last engine.

    Raises:
        ImportError: it is not there, or does not start.
    """

    def __init__(self, feeds: Feeds) -> None:
        tool = find_trtexec()
        if tool is None:
            text = "trtexec is neither on the path nor where packages put it (/usr/src/tensorrt/bin)"
            raise ImportError(text, name=TRTEXEC)
        self._tool = tool
        # Options come and go between versions; what it knows it lists.
        helped = _run_command([tool, "--help"], None, 60.0)
        self._options = set(re.findall(r"--(\w+)", helped["text"]))
        if "loadEngine" not in self._options:
            raise ImportError(
                "'{} --help' does not answer: {}".format(tool, _last([helped["text"]])),
                name=TRTEXEC,
            )
        self.about = TRTEXEC + read_trtexec_version(helped["text"])
        self.said = ""
        self._feeds = feeds
        self._folder = tempfile.mkdtemp(prefix="deploykit-trtexec-")
        self._shaped: dict[str, bool] = {}

    def close(self) -> None:
        """Remove the engines."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def build(self, model: Source, number: int, wait: Callable[[Any], None]) -> str:
        """Build an engine of a model, unless it is one; its path.

        Args:
            model: the model.
            number: of it, for the name of the file.
            wait: waits for a process.

        Raises:
            RuntimeError: trtexec refuses the model.
        """
        if str(model).endswith(ENGINES):
            return str(model)
        path = os.path.join(self._folder, f"{number}.engine")  # noqa: PTH118 - a text is needed
        skip = "skipInference" if "skipInference" in self._options else "buildOnly"
        plain = ["--onnx=" + str(model), "--saveEngine=" + path, "--" + skip]
        plain += self._known("sparsity=enable", "stronglyTyped", "verbose")
        shapes = self._shapes()
        # A model that leaves no size open refuses to be given any; one that does would be built for others.
        code, text = self._run([*plain, shapes], wait)
        is_shaped = STATIC not in text
        if not is_shaped:
            code, text = self._run(plain, wait)
        if (
            code
            and "stronglyTyped" not in self._options
            and re.search("fp16|half", text, re.IGNORECASE)
        ):
            # Before version 10 half precision has to be allowed, also where the model is in it.
            code, text = self._run([*plain, "--fp16", *([shapes] if is_shaped else [])], wait)
        if code or not os.path.exists(path):  # noqa: PTH110 - a text
            raise RuntimeError("trtexec builds no engine of the model: " + _trtexec_error(text))
        self._shaped[path] = is_shaped
        self.said = text
        return path

    def profile(
        self,
        engine: str,
        *,
        warmup_s: float,
        duration_s: float,
        wait: Callable[[Any], None],
    ) -> str:
        """Time the layers of an engine; the JSON that trtexec writes of them.

        Raises:
            RuntimeError: it does not run.
        """
        file = os.path.join(self._folder, "profile.json")  # noqa: PTH118 - a text is needed
        extra = ["--dumpProfile", "--exportProfile=" + file, *self._known("separateProfileRun")]
        self._load(
            engine,
            warmup_s=warmup_s,
            duration_s=duration_s,
            runs=10,
            extra=[*extra, *self._inputs()],
            wait=wait,
            file=file,
        )
        with open(file, encoding="utf-8") as read:  # noqa: PTH123 - a text
            return read.read()

    def launch(
        self,
        engine: str,
        *,
        warmup_s: float,
        duration_s: float,
        runs: int,
        wait: Callable[[Any], None],
    ) -> list[float]:
        """Run an engine for a while; seconds of each run on the device's clock, without copies to it and back.

        Raises:
            RuntimeError: it does not run, or its times cannot be read.
        """
        times = os.path.join(self._folder, "times.json")  # noqa: PTH118 - a text is needed
        extra = ["--exportTimes=" + times, *self._known("noDataTransfers", "useSpinWait")]
        self._load(
            engine,
            warmup_s=warmup_s,
            duration_s=duration_s,
            runs=runs,
            extra=[*extra, *self._inputs()],
            wait=wait,
            file=times,
        )
        with open(times, encoding="utf-8") as file:  # noqa: PTH123 - a text
            rows = json.load(file)
        found = [float(row["computeMs"]) * 1e-3 for row in rows]
        if not found:
            raise RuntimeError("trtexec took no times: give a longer duration")
        return found

    def _load(
        self,
        engine: str,
        *,
        warmup_s: float,
        duration_s: float,
        runs: int,
        extra: Sequence[str],
        wait: Callable[[Any], None],
        file: str,
    ) -> None:
        """Run an engine with options that make trtexec write a file."""
        arguments = [
            "--loadEngine=" + engine,
            f"--iterations={runs}",
            f"--warmUp={max(warmup_s * 1e3, 1.0):g}",
            f"--duration={duration_s:g}",
            *extra,
        ]
        if self._shaped.get(engine):
            arguments.append(self._shapes())
        if os.path.exists(file):  # noqa: PTH110 - a text
            os.remove(file)  # noqa: PTH107 - a text
        code, text = self._run(arguments, wait)
        if code or not os.path.exists(file):  # noqa: PTH110 - a text
            raise RuntimeError("trtexec does not run the engine: " + _trtexec_error(text))

    def _shapes(self) -> str:
        """The option that gives sizes to what a model leaves open."""
        return "--shapes=" + ",".join(
            name + ":" + "x".join(map(str, array.shape)) for name, array in self._feeds.items()
        )

    def _known(self, *options: str) -> list[str]:
        """Those of the options that this version has."""
        return [
            "--" + option for option in options if option.partition("=")[0] in self._options
        ]

    def _inputs(self) -> list[str]:
        """The option that gives it our inputs, where their names can be written in it."""
        if "loadInputs" not in self._options or any(
            set(name) & set(":,'\" ") for name in self._feeds
        ):
            return []
        given = []
        for number, (name, array) in enumerate(self._feeds.items()):
            path = os.path.join(self._folder, f"input{number}.bin")  # noqa: PTH118 - a text is needed
            if not os.path.exists(path):  # noqa: PTH110 - a text
                Path(path).write_bytes(array.tobytes())
            given.append(name + ":" + path)
        return ["--loadInputs=" + ",".join(given)]

    def _run(self, arguments: Sequence[str], wait: Callable[[Any], None]) -> tuple[int, str]:
        """Run it; the exit code, and what it said."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(  # noqa: S603 - the tool that was found
                [self._tool, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=_plain_environment(),
            )
            try:
                wait(process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            said.seek(0)
            return process.returncode, said.read().decode("utf-8", errors="replace")


def find_trtexec() -> str | None:
    """The path of trtexec; None where there is none."""
    return _find_tool(TRTEXEC) or next(
        (path for path in TRTEXEC_PLACES if os.access(path, os.X_OK)), None
    )


def read_trtexec_version(text: str) -> str:
    """The version in "[TensorRT v8502]" or "[TensorRT v100300]", as " 8.5.2" or " 10.3.0"; empty if it says none."""
    found = re.search(r"\[TensorRT v(\d+)\]", text)
    if found is None:
        return ""
    number = int(found[1])
    # 8 wrote major, minor and patch with two digits in all; 10 and later with four.
    head, rest = divmod(number, 10000 if number >= 100000 else 1000)
    minor, patch = divmod(rest, 100)
    return f" {head}.{minor}.{patch}"


def _trtexec_error(text: str) -> str:
    """What trtexec complained of: lines such as "[E] Error[4]: ..."."""
    wrong = [line.partition("[E]")[2] for line in text.splitlines() if "[E]" in line]
    return _last(wrong or text.splitlines())


def _sample_launches(
    tool: Trtexec,
    models: Sequence[Source],
    *,
    dice: random.Random,
    start: float,
    warmup_s: float,
    duration_s: float,
    runs: int,
    rebuilds: int,
    deadline: float,
    seed: int,
    on_round: Callable[[float, Record], None] | None,
    watch: Mapping[str, Any] | None,
    tell: Callable[[str, int], None],
) -> Record:
    """What `sample` does, with launches of a program for sessions: all models take turns, in a new order every time."""
    count = len(models)
    watcher = Watcher(watch or {}, start)

    def wait(process: Any) -> None:  # noqa: ANN401 - a process
        while process.poll() is None:
            watcher.take()
            time.sleep(0.02)

    taken: list[Record] = []
    load_s: list[list[float]] = [[] for _ in models]
    truncated = False
    try:
        engines = []
        for index, model in enumerate(models):
            tell("open", index)
            engines.append(tool.build(model, index, wait))
        for turn in range(rebuilds):
            if taken and time.perf_counter() > deadline:
                truncated = True
                break
            order = dice.sample(range(count), count)
            times: list[list[float]] = [[] for _ in models]
            for place, index in enumerate(order):
                tell("warm", index)
                began = time.perf_counter()
                times[index] = tool.launch(
                    engines[index],
                    warmup_s=warmup_s,
                    duration_s=duration_s / rebuilds,
                    runs=runs,
                    wait=wait,
                )
                # What is not running is loading, and the program's own start.
                took_s = time.perf_counter() - began
                load_s[index].append(max(took_s - sum(times[index]) - warmup_s, 0.0))
                if on_round is not None and place + 1 < count:
                    on_round(
                        (turn + (place + 1) / count) / rebuilds,
                        {"rebuild": turn, "order": order},
                    )
            fewest = min(map(len, times))
            kept = range(0, fewest, -(-fewest // MOST_RUNS))
            taken += [
                {"rebuild": turn, "order": order, "wall_s": [each[run] for each in times]}
                for run in kept
            ]
            if on_round is not None:
                on_round((turn + 1) / rebuilds, taken[-1])
    finally:
        watcher.stop()
        tool.close()
    wall_s = [[record["wall_s"][index] for record in taken] for index in range(count)]
    nothing = [[0] * len(taken) for _ in models]
    return {
        "rebuild": [record["rebuild"] for record in taken],
        "wall_s": wall_s,
        # What the host does meanwhile is not known of single runs.
        "cpu_s": wall_s,
        "switches": nothing,
        "faults": nothing,
        "load_s": load_s,
        "cpu_clock": "process",
        "is_device": True,
        "truncated": truncated,
        "elapsed_s": time.perf_counter() - start,
        "providers": ["GPU"],
        "runtime": tool.about,
        "threads": None,
        "rebuilds": rebuilds,
        "seed": seed,
        "states": watcher.states,
    }


def _most_memory() -> int | None:
    """The most memory that this process ever held, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        if resource is None:
            return None
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Apple's systems count bytes, all others kilobytes.
        return most if sys.platform == "darwin" else most * 1024
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def main(arguments: Sequence[str]) -> int:
    """Carry out a job file; print each round, then the whole result, one JSON document a line.

    Args:
        arguments: path of a JSON file with "models" and "inputs" and any of the settings of `sample`, or with one model
            and "memory": true.

    Returns:
        the exit code.
    """
    if len(arguments) != 1:
        sys.stderr.write("usage: python sampler.py job.json\n")
        return 2
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        return _carry_out(job)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises is told to who gave the job
        if isinstance(error, OSError) and error.errno in FULL:
            return DISK_FULL
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        _print({"event": "error", **_describe(error)})
        return 1


def _carry_out(job: Record) -> int:
    """Do what a job says; the exit code."""
    if "look" in job:
        _print({"event": "end", **look(**job["look"])})
        return 0
    if "trace" in job:
        options = {**job["trace"], "threads": job.get("threads", 1)}
        _print(
            {
                "event": "end",
                **trace(job["models"], job["inputs"], on_step=_print_step, **options),
            }
        )
        return 0
    is_memory = job.pop("memory", False)
    unknown = sorted(
        set(job) - set(DEFAULTS) - {"models", "inputs", "providers", "watch", "runtime"}
    )
    if unknown or "models" not in job or "inputs" not in job:
        sys.stderr.write(
            "a job has models, inputs and {}; not {}\n".format(", ".join(DEFAULTS), unknown)
        )
        return 2
    if is_memory:
        options = {key: job[key] for key in ("threads", "providers") if key in job}
        for model in job["models"][:1]:
            _print({"event": "open", "model": 0})
            _print({"event": "end", **measure_memory(model, job["inputs"], **options)})
        return 0

    def show(done: float, record: Record) -> None:
        _print({"event": "round", "done": round(done, 4), **record})

    _print({"event": "end", **sample(**job, on_round=show, on_step=_print_step)})
    return 0


def _print_step(what: str, index: int) -> None:
    _print({"event": what, "model": index})


def _describe(error: Exception) -> Record:
    """What went wrong, for who gave the job."""
    text = f"{type(error).__name__}: {error}"[:MOST_TEXT]
    if isinstance(error, ImportError):
        return {"kind": "missing", "name": error.name or "", "text": text}
    if isinstance(error, MemoryError):
        return {"kind": "memory", "text": text}
    loaded = sys.modules.get("onnxruntime")
    version = "" if loaded is None else "onnxruntime " + str(loaded.__version__)
    return {"kind": "model", "text": text, "runtime": version}


def _print(document: Record) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _read(inputs: Source | Mapping[str, Any]) -> Feeds:
    if not isinstance(inputs, (str, Path)):
        return dict(inputs)
    import numpy as np

    with np.load(str(inputs), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _open_all(
    models: Sequence[Source],
    open_one: Callable[[Source], Any],
    dice: random.Random,
    load_s: Sequence[list[float]],
    tell: Callable[[str, int], None],
) -> list[Any]:
    """Open the models in a random order, so that none always gets the same place in memory.

    How long each took is added to `load_s`.
    """
    order = dice.sample(range(len(models)), len(models))
    opened = {}
    for index in order:
        tell("open", index)
        began = time.perf_counter()
        opened[index] = open_one(models[index])
        load_s[index].append(time.perf_counter() - began)
    return [opened[index] for index in range(len(models))]


def _warm_up(session: Any, feeds: Feeds, seconds: float) -> None:  # noqa: ANN401 - a type of the runtime
    """Run for `seconds`, at least once."""
    end = time.perf_counter() + seconds
    _run(session, feeds)
    while time.perf_counter() < end:
        _run(session, feeds)


def _run(session: Any, feeds: Feeds) -> float | None:  # noqa: ANN401 - a type of the runtime
    """Run a model once; the seconds by its device's clock if it has one."""
    timer = getattr(session, "device_s", None)
    if timer is not None:
        return float(timer(feeds))
    session.run(None, feeds)
    return None


def _round(
    sessions: Sequence[Any], feeds: Feeds, order: Sequence[int], threads: int | None
) -> Record:
    """Time each model once, in the given order."""
    cpu_clock = time.thread_time if threads == 1 else time.process_time
    wall_s = [0.0] * len(sessions)
    cpu_s = [0.0] * len(sessions)
    switches = [0] * len(sessions)
    faults = [0] * len(sessions)
    for index in order:
        _warm_up(sessions[index], feeds, SETTLE_S)
        switched, faulted = _disturbances(threads)
        cpu = cpu_clock()
        wall = time.perf_counter()
        device_s = _run(sessions[index], feeds)
        elapsed_s = time.perf_counter() - wall
        wall_s[index] = elapsed_s if device_s is None else device_s
        cpu_s[index] = cpu_clock() - cpu
        switched_after, faulted_after = _disturbances(threads)
        switches[index] = switched_after - switched
        faults[index] = faulted_after - faulted
    return {
        "order": order,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "switches": switches,
        "faults": faults,
    }


def _disturbances(threads: int | None) -> tuple[int, int]:
    """How often this thread (with several: this process) lost its core so far, and its page faults."""
    if resource is None:
        return 0, 0
    whose = resource.RUSAGE_SELF
    if threads == 1:
        # Linux alone counts by thread.
        whose = getattr(resource, "RUSAGE_THREAD", whose)
    usage = resource.getrusage(whose)
    return usage.ru_nivcsw, usage.ru_minflt + usage.ru_majflt


def _runtime() -> Any:  # noqa: ANN401 - a module of the runtime
    return importlib.import_module("onnxruntime")


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    if exit_code == DISK_FULL:
        # Python would try once more to write what is left, and end with a code of its own.
        os._exit(exit_code)
    sys.exit(exit_code)
