"""Times the layers of a model, under the names that they have in the user's file.

The times come from ONNX Runtime's own profile, taken in a session of its own that takes turns with one that is not
profiled. Three things stand between that profile and an honest figure:

* *Names.* The runtime renames, fuses and inserts nodes: `layer_names` undoes that.
* *The profiler's own time.* While it takes notes about a kernel the clock of that kernel runs on: 2 to 3 us each, more
  than small kernels take. How much it is, is measured on chains of small nodes, in turns with the model, by the number of
  tensors that a kernel reads (each is noted down); it is subtracted from every kernel. Nothing is scaled to fit:
  whether the sum of the layers is the time of the whole model, which is measured without the profiler, remains to be
  seen in `total_s` and `whole_s`.
* *Other processes.* Kernels are timed on the wall clock. Runs in which the thread was kept waiting are left out; where
  hardly any was spared, what each run waited (its wall time less its processor time) is taken off its kernels: off those
  first that took the longest beyond their shortest, then off the long ones in proportion, which are interrupted always.

Of a kernel's times the middle half is averaged: the profile counts whole microseconds, and so would a median.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import ModelError
from deploykit.profile.layer_names import Match, Nodes, match, tag
from deploykit.profile.statistics import Clock, Timings, choose_clock
from deploykit.runtimes.onnxruntime import load, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir

__all__ = ["LayerProfile", "LayerTime", "profile_layers"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Event: TypeAlias = dict[str, Any]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

MOST_EVENTS = 40_000
"""Each is about a kilobyte of JSON; the runtime itself stops at a million."""

FEWEST_RUNS = 10
FEWEST_CLEAN = 5
PATIENCE = 3
"""On a busy machine it takes up to so many times as long, to find moments in which the thread was not kept waiting."""

SETTLED_S = 0.005
"""A model that takes longer finds nothing of its own in the caches anyway: it need not run untimed before it is timed."""

TURN_S = 0.001
"""Other processes let one run for about that long, or longer, before they take its core."""

SHORTEST = 0.1
"""Share of a kernel's times that may be shorter than it can be, by an accident of the clock."""

CHAIN = 40
CHAIN_INPUTS = (1, 2, 3)
CHAIN_SHAPE = (1, 8)
"""Small on purpose: tensors of 4 KiB in a row make loads wait for stores, in one session and not in the other."""

MOST_CHAIN_RUNS = 400

SUFFIX = "_kernel_time"


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """The time of one node of the user's model.

    Attributes:
        name: its name, or where it has none, that of its first result.
        op_type: its operator.
        seconds: what it takes in one run, with all that is done for it.
        runtime_ops: the kernels that do its work, as the runtime calls them; those that the runtime put in to hand data
            over are in round brackets.
        covers: names of the other nodes whose work is done in the same kernels.
    """

    name: str
    op_type: str
    seconds: float
    runtime_ops: tuple[str, ...]
    covers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """Where the time of one run goes.

    Attributes:
        layers: the nodes that take time, in the order of the model.
        total_s: sum of all kernels, without the profiler's own time.
        whole_s: time of the whole model without the profiler; the thread's processor time where the machine was too busy
            for wall time to mean anything.
        unmapped_s: the part of `total_s` that belongs to no node of the user's model.
        overhead_s: the profiler's own time, which was subtracted, in all.
        runs: how many profiled runs the figures are from.
        clock: the clock of `whole_s`, "wall" or "cpu".
    """

    layers: tuple[LayerTime, ...]
    total_s: float
    whole_s: float
    unmapped_s: float
    overhead_s: float = 0.0
    runs: int = 0
    clock: Clock = "wall"

    @property
    def mapped_share(self) -> float:
        """Share of the time that belongs to nodes of the user's model, 0 to 1."""
        return 1.0 - self.unmapped_s / self.total_s if self.total_s > 0.0 else 1.0


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of the runtime.

    Attributes:
        op_type: the runtime's name for what it does.
        seconds: time of one run, without the profiler's own.
        overhead_s: the profiler's own time in one run.
    """

    op_type: str
    seconds: float
    overhead_s: float


class Chain:
    """A chain of small nodes, with the profiler and without, from which the profiler's own time is told.

    Args:
        runtime: the module of the runtime.
        inputs: how many tensors each node reads.
        folder: where the profile goes.
    """

    def __init__(self, runtime: Any, inputs: int, folder: Path) -> None:  # noqa: ANN401 - a module
        self._short = _open_chain(runtime, 1, inputs, None)
        self._plain = _open_chain(runtime, CHAIN + 1, inputs, None)
        self._profiled = _open_chain(runtime, CHAIN + 1, inputs, folder / f"chain{inputs}")
        self._feeds = {"x": np.ones(CHAIN_SHAPE, np.float32)}
        self._short_s: list[float] = []
        self._plain_s: list[float] = []

    def run(self) -> None:
        """Run it once with the profiler and once without, unless that was done often enough."""
        if len(self._plain_s) >= MOST_CHAIN_RUNS:
            return
        for session, seconds in ((self._short, self._short_s), (self._plain, self._plain_s)):
            session.run(None, self._feeds)
            began = time.perf_counter()
            session.run(None, self._feeds)
            seconds.append(time.perf_counter() - began)
        self._profiled.run(None, self._feeds)

    def cost_s(self, rounds: Ints) -> float:
        """What the profiler adds to the time of a node, in seconds, over the given rounds; ends the profile."""
        done = np.arange(len(self._plain_s))
        rounds = np.intersect1d(rounds, done)
        if not rounds.size:
            rounds = done
        # Each round is judged by itself first, so that a machine that changes its speed does so for both sides.
        profiled_s = [
            _middle_mean([event["dur"] for event in kernels]) * 1e-6
            for _, kernels in _by_run(_end_profiling(self._profiled), set(rounds.tolist()))
        ]
        plain_s = np.subtract(self._plain_s, self._short_s)[rounds] / CHAIN
        return max(0.0, _middle_mean(np.array(profiled_s) - plain_s))


def profile_layers(
    path: str | os.PathLike[str],
    feeds: Mapping[str, Array],
    *,
    threads: int | None = 1,
    duration_s: float = 1.0,
    warmup_s: float = 0.2,
) -> LayerProfile:
    """Time the layers of a model on the CPU.

    Args:
        path: the model.
        feeds: an array for each input, by name.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        duration_s: seconds of profiled running, at least 10 runs, and as many again without the profiler; up
            to three times that on a busy machine.
        warmup_s: seconds of running before that, at least once.

    Raises:
        ModelError: the model cannot be read, or does not run on these inputs.
        RuntimeUnavailable: the runtime is not there.
    """
    runtime = load()
    with tempfile.TemporaryDirectory(prefix="deploykit-layers-") as folder:
        nodes, source = _tagged(path)
        try:
            profiled = _open(runtime, source, Path(path).parent, threads, Path(folder))
            plain = _open(runtime, source, Path(path).parent, threads, None)
            del source
            sessions = (plain, profiled)
            chains = [Chain(runtime, count, Path(folder)) for count in CHAIN_INPUTS]
            skipped, seconds = _warm_up(sessions, feeds, warmup_s)
            settle = int(seconds < SETTLED_S)
            optimized = _optimized(Path(folder))
            most = MOST_EVENTS // ((1 + settle) * max(len(optimized.graph), 1))
            timings = _take_turns(
                sessions, chains, feeds, threads, duration_s, settle=settle, most=most
            )
            events = _end_profiling(profiled)
        except _failures(runtime) as error:
            msg = f"the layers of '{os.fspath(path)}' cannot be timed: {shorten(error)}"
            raise ModelError(msg) from error
        kept = _cleanest(timings[1]) if threads == 1 else np.arange(timings[1].wall_s.size)
        costs = [chain.cost_s(kept) for chain in chains]
    numbers = [skipped + (1 + settle) * int(run) + settle for run in kept]
    waited_s = np.maximum(timings[1].wall_s - timings[1].cpu_s, 0.0)[kept]
    if threads != 1:
        # Processor time adds up what runs side by side, and says nothing about waiting.
        waited_s = np.zeros_like(waited_s)
    kernels = _kernels(events, numbers, waited_s, costs)
    layers, unmapped_s = _by_layer(nodes, optimized, kernels)
    whole_s, clock = _whole(timings[0], threads)
    return LayerProfile(
        layers=layers,
        total_s=sum(kernel.seconds for kernel in kernels.values()),
        whole_s=whole_s,
        unmapped_s=unmapped_s,
        overhead_s=sum(kernel.overhead_s for kernel in kernels.values()),
        runs=len(kept),
        clock=clock,
    )


def _whole(timings: Timings, threads: int | None) -> tuple[float, Clock]:
    """Time of the whole model, and the clock it is by."""
    clock, _ = choose_clock([timings], threads)
    seconds = timings.on(clock)
    if clock == "wall" and threads == 1 and timings.is_clean.sum() >= FEWEST_CLEAN:
        seconds = seconds[timings.is_clean]
    return _middle_mean(seconds), clock


def _tagged(path: str | os.PathLike[str]) -> tuple[Nodes, bytes]:
    """The model with tags for names, serialized; external data stays where it is."""
    import onnx_ir as ir

    try:
        model = ir.load(path)
        nodes = tag(model)
        return nodes, ir.to_proto(model).SerializeToString()
    except Exception as error:  # onnx_ir and protobuf raise many kinds, all about the file
        msg = f"the layers of '{os.fspath(path)}' cannot be timed: {error}"
        raise ModelError(msg) from error


def _open(
    runtime: Any,  # noqa: ANN401 - a module of the runtime
    source: bytes,
    data_folder: Path,
    threads: int | None,
    folder: Path | None,
) -> Any:  # noqa: ANN401 - a type of the runtime
    """Open a session; one that is profiled, and writes the graph that it runs, if there is a folder for that."""
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(data_folder.resolve())
    )
    options.log_severity_level = 4
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.data"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _failures(runtime: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401 - a module
    state = runtime.capi.onnxruntime_pybind11_state
    own = [
        kind
        for kind in vars(state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    return (*own, RuntimeError, ValueError)


def _optimized(folder: Path) -> ir.Model:
    import onnx_ir as ir

    return ir.load(folder / "optimized.onnx")


def _warm_up(
    sessions: Sequence[Any], feeds: Mapping[str, Array], seconds: float
) -> tuple[int, float]:
    """Run all sessions for a while; give how often each ran, and the seconds of its last run."""
    runs = 0
    end = time.perf_counter() + seconds
    last_s = 0.0
    while runs == 0 or time.perf_counter() < end:
        for session in sessions:
            began = time.perf_counter()
            session.run(None, dict(feeds))
            last_s = time.perf_counter() - began
        runs += 1
    return runs, last_s


def _take_turns(
    sessions: Sequence[Any],
    chains: Sequence[Chain],
    feeds: Mapping[str, Array],
    threads: int | None,
    duration_s: float,
    *,
    settle: int,
    most: int,
) -> list[Timings]:
    """Time the sessions in turns, each after `settle` untimed runs, because the other one had the caches."""
    cpu_clock = time.thread_time if threads == 1 else time.process_time
    given = dict(feeds)
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in sessions]
    begun = time.perf_counter()
    for runs in range(max(FEWEST_RUNS, most)):
        spent_s = time.perf_counter() - begun
        if runs >= FEWEST_RUNS and spent_s > 2 * duration_s:
            found = _timings(*taken[1])
            is_enough = threads != 1 or found.is_clean.sum() >= max(FEWEST_CLEAN, runs // 4)
            if is_enough or spent_s > PATIENCE * 2 * duration_s:
                break
        for session, (wall_s, cpu_s) in zip(sessions, taken, strict=True):
            for _ in range(settle):
                session.run(None, given)
            cpu = cpu_clock()
            wall = time.perf_counter()
            session.run(None, given)
            wall_s.append(time.perf_counter() - wall)
            cpu_s.append(cpu_clock() - cpu)
        for chain in chains:
            chain.run()
    return [_timings(*each) for each in taken]


def _timings(wall_s: Sequence[float], cpu_s: Sequence[float]) -> Timings:
    return Timings(np.zeros(len(wall_s), np.int64), np.array(wall_s), np.array(cpu_s))


def _cleanest(timings: Timings) -> Ints:
    """Numbers of the runs in which the thread was hardly kept waiting, or of all if there are too few of them."""
    clean = np.flatnonzero(timings.is_clean)
    is_enough = clean.size >= max(FEWEST_CLEAN, timings.wall_s.size // 4)
    return clean if is_enough else np.arange(timings.wall_s.size)


def _kernels(
    events: Sequence[Event], runs: Sequence[int], waited_s: Floats, costs: Sequence[float]
) -> dict[tuple[str, int], Kernel]:
    """Time of each kernel, by name and place in the graph.

    Args:
        events: the profile.
        runs: numbers of the runs that count.
        waited_s: shape `(runs,)`; what the thread waited in each.
        costs: what the profiler adds to a kernel, by `CHAIN_INPUTS`.
    """
    about: dict[tuple[str, int], Event] = {}
    column: dict[tuple[str, int], Floats] = {}
    share = np.zeros(len(runs))
    for number, (run_s, run) in enumerate(_by_run(events, set(runs))):
        for event in run:
            key = (event["name"].removesuffix(SUFFIX), int(event["args"]["node_index"]))
            about[key] = event["args"]
            column.setdefault(key, np.zeros(len(runs)))[number] += event["dur"] * 1e-6
        share[number] = sum(event["dur"] for event in run) * 1e-6 / max(run_s, 1e-9)
    if not column:
        return {}
    # What was waited between kernels is in none of them.
    undisturbed = _without_waits(
        np.stack(list(column.values())), waited_s * np.minimum(share, 1.0)
    )
    # More tensors take more time; where it is measured the other way round, that is noise.
    seconds = np.maximum.accumulate(costs)
    found = {}
    for key, times in zip(column, undisturbed, strict=True):
        read = len(about[key].get("input_type_shape", ()))
        mean_s = _middle_mean(times)
        overhead_s = min(float(np.interp(read, CHAIN_INPUTS, seconds)), mean_s)
        found[key] = Kernel(str(about[key]["op_name"]), mean_s - overhead_s, overhead_s)
    return found


def _without_waits(times: Floats, waited_s: Floats) -> Floats:
    """Take what each run waited off its kernels.

    Args:
        times: shape `(kernels, runs)`; wall time of each kernel in each run.
        waited_s: shape `(runs,)`; what the thread waited in each.
    """
    beyond = np.maximum(times - np.quantile(times, SHORTEST, axis=1, keepdims=True), 0.0)
    total = beyond.sum(axis=0)
    # An interruption hits one kernel, and what is a little beyond the shortest is not waiting: the largest come first.
    order = np.argsort(-beyond, axis=0)
    largest = np.take_along_axis(beyond, order, axis=0)
    before = np.cumsum(largest, axis=0) - largest
    taken = np.zeros_like(times)
    np.put_along_axis(taken, order, np.clip(waited_s - before, 0.0, largest), axis=0)
    times = times - taken
    rest = np.maximum(waited_s - total, 0.0)
    # What is left hides in kernels that are interrupted every time, and those are long.
    is_long = np.median(times, axis=1, keepdims=True) > TURN_S
    shares = np.where(is_long | ~is_long.any(), times, 0.0)
    shares /= np.maximum(shares.sum(axis=0), 1e-12)
    left: Floats = np.maximum(times - shares * rest, 0.0)
    return left


def _by_run(events: Sequence[Event], wanted: set[int]) -> Iterator[tuple[float, list[Event]]]:
    """Seconds and kernels of the main graph, for each of the wanted runs."""
    runs = sorted(
        (event for event in events if event.get("name") == "model_run"),
        key=lambda event: event["ts"],
    )
    kernels = [
        event
        for event in events
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(SUFFIX)
    ]
    # Kernels of a subgraph lie within that of its If or Loop, which counts them already.
    kernels.sort(key=lambda event: (event["ts"], -event["dur"]))
    at = 0
    for number, run in enumerate(runs):
        end = run["ts"] + run["dur"]
        found: list[Event] = []
        busy_until = -1
        while at < len(kernels) and kernels[at]["ts"] <= end:
            event = kernels[at]
            if event["ts"] + event["dur"] > busy_until or event["ts"] >= busy_until:
                found.append(event)
                busy_until = event["ts"] + event["dur"]
            at += 1
        if number in wanted:
            yield run["dur"] * 1e-6, found


def _middle_mean(seconds: Sequence[float] | Array) -> float:
    """Mean of the middle half."""
    ordered = np.sort(np.asarray(seconds, dtype=np.float64))
    quarter = ordered.size // 4
    return float(ordered[quarter : ordered.size - quarter].mean())


def _end_profiling(session: Any) -> list[Event]:  # noqa: ANN401 - a type of the runtime
    events: list[Event] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _open_chain(runtime: Any, nodes: int, inputs: int, profile: Path | None) -> Any:  # noqa: ANN401 - of the runtime
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return runtime.InferenceSession(
        _chain(nodes, inputs), options, providers=["CPUExecutionProvider"]
    )


def _chain(length: int, inputs: int) -> bytes:
    """A model of nodes that do little, each reading as many tensors as asked for."""
    import onnx_ir as ir

    shape, kind = ir.Shape(CHAIN_SHAPE), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=shape, type=kind)
    nodes = []
    last = x
    for index in range(length):
        node = ir.node("Max", [last, *([x] * (inputs - 1))], name=f"n{index}")
        last = node.outputs[0]
        last.name, last.shape, last.type = f"v{index}", shape, kind
        nodes.append(node)
    graph = ir.Graph([x], [last], nodes=nodes, opset_imports={"": 17}, name="chain")
    serialized: bytes = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    return serialized


def _by_layer(
    nodes: Nodes, optimized: ir.Model, kernels: Mapping[tuple[str, int], Kernel]
) -> tuple[tuple[LayerTime, ...], float]:
    """Times by the user's names, and the time that belongs to none of them."""
    matches: dict[str, Match] = {}
    for node, found in zip(optimized.graph, match(nodes, optimized), strict=True):
        matches.setdefault(node.name or "", found)
    seconds: dict[int, float] = {}
    ops: dict[int, list[str]] = {}
    covers: dict[int, list[int]] = {}
    unmapped_s = 0.0
    for (name, _), kernel in kernels.items():
        found = matches.get(name, Match(None))
        if found.node is None:
            unmapped_s += kernel.seconds
            continue
        seconds[found.node] = seconds.get(found.node, 0.0) + kernel.seconds
        label = f"({kernel.op_type})" if found.inserted else kernel.op_type
        ops.setdefault(found.node, []).append(label)
        covers.setdefault(found.node, []).extend(found.covers)
    layers = tuple(
        LayerTime(
            nodes.names[number],
            nodes.op_types[number],
            seconds[number],
            tuple(ops[number]),
            tuple(nodes.names[part] for part in dict.fromkeys(covers[number])),
        )
        for number in sorted(seconds)
    )
    return layers, unmapped_s
