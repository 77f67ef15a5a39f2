"""Times the layers of a model, under the names that they have in the user's file.

The times come from ONNX Runtime's own profile, taken in a session of its own that takes turns with one that is not
profiled: `sampler.trace` does that, here or on a device. Three things stand between that profile and an honest figure:

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

import base64
import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.errors import DeploykitError, ModelError
from deploykit.profile.layer_names import Match, Nodes, match, tag
from deploykit.profile.place import HERE, Place
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

FEWEST_CLEAN = 5

TURN_S = 0.001
"""Other processes let one run for about that long, or longer, before they take its core."""

SHORTEST = 0.1
"""Share of a kernel's times that may be shorter than it can be, by an accident of the clock."""

CHAIN = 40
CHAIN_INPUTS = (1, 2, 3)
CHAIN_SHAPE = (1, 8)
"""Small on purpose: tensors of 4 KiB in a row make loads wait for stores, in one session and not in the other."""

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


def _chain_cost_s(chain: Mapping[str, Any], rounds: Ints) -> float:
    """What the profiler adds to the time of a node, in seconds, over the given rounds of a chain."""
    done = np.arange(len(chain["long_s"]))
    rounds = np.intersect1d(rounds, done)
    if not rounds.size:
        rounds = done
    # Each round is judged by itself first, so that a machine that changes its speed does so for both sides.
    profiled_s = [
        _middle_mean([event["dur"] for event in kernels]) * 1e-6
        for _, kernels in _by_run(_events(chain["profile"]), set(rounds.tolist()))
    ]
    plain_s = np.subtract(chain["long_s"], chain["short_s"])[rounds] / CHAIN
    return max(0.0, _middle_mean(np.array(profiled_s) - plain_s))


def _events(profile: Mapping[str, Any]) -> list[Event]:
    """Events of a profile, from the short form that the sampler gives them."""
    about = [
        (
            f"{name}{SUFFIX}",
            {"op_name": op_type, "node_index": number, "input_type_shape": (None,) * reads},
        )
        for name, op_type, number, reads in profile["nodes"]
    ]
    return [
        *({"name": "model_run", "ts": begin, "dur": took} for begin, took in profile["runs"]),
        *(
            {
                "cat": "Node",
                "name": about[node][0],
                "args": about[node][1],
                "ts": ts,
                "dur": dur,
            }
            for node, ts, dur in profile["kernels"]
        ),
    ]


def profile_layers(
    path: str | os.PathLike[str],
    feeds: Mapping[str, Array],
    *,
    threads: int | None = 1,
    duration_s: float = 1.0,
    warmup_s: float = 0.2,
    place: Place = HERE,
) -> LayerProfile:
    """Time the layers of a model on a CPU.

    Args:
        path: the model.
        feeds: an array for each input, by name.
        threads: threads that share the work of one operator; None leaves the number to the runtime.
        duration_s: seconds of profiled running, at least 10 runs, and as many again without the profiler; up
            to three times that on a busy machine.
        warmup_s: seconds of running before that, at least once.
        place: where it runs.

    Raises:
        ModelError: the model cannot be read, or does not run on these inputs.
        RuntimeUnavailable: the place or the runtime is not there.
    """
    nodes, source = _tagged(path)
    chains = [_chain(length, count) for count in CHAIN_INPUTS for length in (1, CHAIN + 1)]
    try:
        taken = place.trace(
            Path(path),
            source,
            chains,
            feeds,
            threads=threads,
            duration_s=duration_s,
            warmup_s=warmup_s,
            most_runs=MOST_EVENTS // max(len(nodes.names), 1),
        )
    except DeploykitError:
        raise
    except _failures(load()) as error:
        msg = f"the layers of '{os.fspath(path)}' cannot be timed: {shorten(error)}"
        raise ModelError(msg) from error
    del source
    plain, profiled = (
        _timings(wall_s, cpu_s)
        for wall_s, cpu_s in zip(taken["wall_s"], taken["cpu_s"], strict=True)
    )
    kept = _cleanest(profiled) if threads == 1 else np.arange(profiled.wall_s.size)
    costs = [_chain_cost_s(chain, kept) for chain in taken["chains"]]
    settle = int(taken["settle"])
    numbers = [int(taken["skipped"]) + (1 + settle) * int(run) + settle for run in kept]
    waited_s = np.maximum(profiled.wall_s - profiled.cpu_s, 0.0)[kept]
    if threads != 1:
        # Processor time adds up what runs side by side, and says nothing about waiting.
        waited_s = np.zeros_like(waited_s)
    kernels = _kernels(_events(taken["profile"]), numbers, waited_s, costs)
    layers, unmapped_s = _by_layer(nodes, _optimized(taken["optimized"]), kernels)
    whole_s, clock = _whole(plain, threads)
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


def _failures(runtime: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401 - a module
    state = runtime.capi.onnxruntime_pybind11_state
    own = [
        kind
        for kind in vars(state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    return (*own, RuntimeError, ValueError)


def _optimized(encoded: str) -> ir.Model:
    """The graph that ran; its large weights are not there, and not needed."""
    import onnx_ir as ir

    with tempfile.TemporaryDirectory(prefix="deploykit-graph-") as folder:
        file = Path(folder) / "optimized.onnx"
        file.write_bytes(base64.b64decode(encoded))
        return ir.load(file)


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
