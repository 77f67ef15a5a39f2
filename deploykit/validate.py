"""Says whether two models compute the same: the same inputs through both, the outputs compared.

Both run as they are written, with the runtime's own optimisation off, one after the other.

An error is judged against how much an output *moves* from input to input, not against how large it is: a network
whose outputs hardly depend on its input would excuse any error in what little it does compute. Where an output moves
by less than 1 % of its size, 1 % is taken, because float sums of that size resolve no more than that; a note says so.
Beyond that, an error within the rounding of the arithmetic itself is none, whatever the tolerance: see `Reference.rounding`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from deploykit import emulation, one_file
from deploykit.errors import ModelError, UsageError
from deploykit.output_change import LEAST_SPREAD, OutputChange, find_changes, find_spreads
from deploykit.runtimes.onnxruntime import Session

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from deploykit.runtimes import TensorSpec

__all__ = [
    "RETYPED",
    "TOLERANCES",
    "Inputs",
    "OutputComparison",
    "Reference",
    "Validation",
    "compare",
    "find_inputs",
    "generate_inputs",
    "load_inputs",
    "run_reference",
    "validate",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Feeds: TypeAlias = "dict[str, Array]"
Verdict: TypeAlias = Literal["equal", "differs"]

TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "int8": 2e-2, "bfloat16": 4e-2}
"""Allowed error by the coarsest type that a model computes in, finest first, as a share of what an output moves by.
"int8" stands for models with QuantizeLinear, where another order of float sums can flip a value to the next step."""

RETYPED = "its inputs have other types than those of the original; outputs were compared in the original's"
"""Said of a model that cannot be fed what the original is."""

EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LEAST_ROUNDINGS, LEAST_ROUNDINGS_HALF, MOST_ROUNDINGS = 16.0, 4.0, 256.0
"""How many roundings of an output's size its error may be: of short sums, of types of 16 bits, of the longest sums."""

NOISE_FACTOR = 3.0
NOISE_LIMIT = 100.0

LARGEST_INPUT = 2**32
"""Elements of the largest input that is generated: 32 GiB while it is drawn."""

INTEGER_LIMITS = (100, 10, 2, 1)

INPUTS, FEWER_INPUTS = 5, 3
"""How many inputs are generated; of the fewer ones, for heavy models, one is constant, too."""
HEAVY_BYTES = 1 << 30
"""Constants of this size make a model heavy: to run it once takes a good part of a second, on every core."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes for dynamic axes of which nothing is known but their place.

    Attributes:
        batch: first axes.
        length: later axes of anything that is not an image or a volume.
        image: the last two axes of four.
        volume: the last three axes of five, and whatever has more.
    """

    batch: int = 1
    length: int = 32
    image: tuple[int, int] = (224, 224)
    volume: int = 32

    def of(self, spec: TensorSpec, axis: int) -> int:
        """The size for an axis of an input."""
        name = spec.shape[axis]
        if axis == 0 or (isinstance(name, str) and "batch" in name.lower()):
            return self.batch
        if axis >= 2 and len(spec.shape) == 4:
            return self.image[axis - 2]
        return self.volume if axis >= 2 and len(spec.shape) > 4 else self.length


# Tried in this order until the model runs: classifiers, lines of text of two heights, detectors, small images. All
# survive five halvings, except the last.
FIRST_SIZES = (
    Sizes(),
    Sizes(length=64, image=(48, 320), volume=64),
    Sizes(length=128, image=(32, 320), volume=96),
    Sizes(length=16, image=(640, 640), volume=16),
    Sizes(length=8, image=(512, 512)),
    Sizes(length=1, image=(64, 64)),
    Sizes(length=2, image=(28, 28)),
)


@dataclasses.dataclass(frozen=True)
class OutputComparison:
    """One output of two models, over all inputs.

    Attributes:
        name: the output's name.
        dtype: its element type.
        max_abs_error: largest absolute difference; infinite where one has a NaN or infinity and the other does not.
        max_rel_error: floats: largest difference relative to what the output moves by on that input; integers, bools and strings:
            largest share of elements that differ.
        tolerance: what `max_rel_error` may be.
        elements: how many elements were compared, over all inputs.
        differing: integers, bools and strings: how many of them differ; floats: how many are finite in one model only.
        verdict: "equal" or "differs".
        note: what weakens the comparison, in words; empty if nothing does.
    """

    name: str
    dtype: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    elements: int
    differing: int
    verdict: Verdict
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Whether two models compute the same.

    Attributes:
        max_abs_error: the largest of all outputs.
        max_rel_error: the largest of all outputs.
        inputs: how many inputs both models were run on.
        tolerance: what `max_rel_error` of a float output may be; the largest, where outputs differ in it.
        verdict: "equal" or "differs".
        outputs: one row an output.
        worst: name of the output with the largest error in relation to its tolerance.
        failure: why the second model could not be compared at all, in words; None if it could.
        notes: what weakens the comparison, in words.
        changes: how far the outputs are apart, on the user's inputs and on generated ones.
    """

    max_abs_error: float
    max_rel_error: float
    inputs: int
    tolerance: float
    verdict: Verdict
    outputs: tuple[OutputComparison, ...] = ()
    worst: str | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[OutputChange, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What the original computes: run once, compared with as many candidates as there are.

    Attributes:
        path: where the original lies.
        inputs: what it was run on.
        outputs: what it returned, one entry an input.
        precision: the coarsest type it computes in, a key of `TOLERANCES`.
        threads: threads it ran with; None is the runtime's own number.
        given: how many of the inputs, the first ones, the user gave; the others were generated.
    """

    path: str
    inputs: tuple[Mapping[str, Array], ...]
    outputs: tuple[Mapping[str, Array], ...]
    precision: str
    threads: int | None
    given: int = 0

    @functools.cached_property
    def rounding(self) -> float:
        """What rounding may change in an output, as a share of its size.

        A sum of n numbers errs by about the square root of n roundings. Types of 16 bits are summed in 32 bits and
        rounded once a layer, so the length of their sums does not count.
        """
        epsilon = EPSILONS.get(self.precision, EPSILONS["float32"])
        if self.precision in {"float16", "bfloat16"}:
            return LEAST_ROUNDINGS_HALF * epsilon
        from deploykit.size import longest_sum

        shapes = {name: array.shape for name, array in self.inputs[0].items()}
        length = longest_sum(one_file.load(Path(self.path)), shapes)
        return min(max(LEAST_ROUNDINGS, math.sqrt(length)), MOST_ROUNDINGS) * epsilon

    @functools.cached_property
    def noise(self) -> Mapping[str, tuple[float, ...]]:
        """What another order of sums changes in the original: largest difference of each output on each input.

        The other order is that of the runtime's own optimisation. On a constant image, for one, rounding errors are
        the same at every pixel, and a classifier of six layers of squeeze-and-excite moves by 2e-3.
        """
        try:
            with Session(self.path, threads=self.threads, optimization="all") as session:
                outputs = tuple(session.run(feeds) for feeds in self.inputs)
        except ModelError:
            return {name: (0.0,) * len(self.inputs) for name in self.outputs[0]}
        return {
            name: tuple(
                _largest_difference(mine[name], theirs[name])
                for mine, theirs in zip(self.outputs, outputs, strict=True)
            )
            for name, array in self.outputs[0].items()
            if array.dtype.kind == "f"
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs that a model was seen to run on, or the first of them.

    Attributes:
        feeds: arrays by input name, one entry a run.
        notes: what was tried and refused by the model, in words.
        probe: what the model returned on the first of them.
    """

    feeds: tuple[Feeds, ...]
    notes: tuple[str, ...] = ()
    probe: Mapping[str, Array] = dataclasses.field(default_factory=dict)


def validate(
    original: str | os.PathLike[str],
    optimized: str | os.PathLike[str],
    inputs: Sequence[Mapping[str, Array]],
    tolerance: float | None = None,
    *,
    threads: int | None = None,
) -> Validation:
    """Run both models on the same inputs and compare what they return.

    Args:
        original: path of the reference.
        optimized: path of what is held against it.
        inputs: arrays by input name, one entry a run.
        tolerance: allowed error of float outputs, as a share of what an output moves by; None is the value of
            `TOLERANCES` for the coarsest type that the original computes in.
        threads: threads to run with; None leaves the number to the runtime.

    Returns:
        the comparison. If `optimized` does not run, or its outputs have other names, types or shapes, the verdict is
        "differs" and `failure` says why.

    Raises:
        ModelError: the original itself does not run on these inputs.
        UsageError: there are no inputs.
    """
    return compare(run_reference(original, inputs, threads=threads), optimized, tolerance)


def run_reference(
    original: str | os.PathLike[str],
    inputs: Sequence[Mapping[str, Array]],
    *,
    threads: int | None = None,
    given: int = 0,
    known: Mapping[int, Mapping[str, Array]] | None = None,
    is_lenient: bool = False,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Reference:
    """Run the original on all inputs; the first `given` are the user's own.

    Args:
        original: path of the model.
        inputs: arrays by input name, one entry a run.
        threads: threads to run with; None leaves the number to the runtime.
        given: how many of the inputs, the first ones, the user gave.
        known: what it was seen to return already, by position of the input; it is not run on these again.
        is_lenient: whether inputs that the user did not give are left out where the model refuses them.
        is_wanted: asked before each run whether to go on; the result is of no use once it says no.

    Raises:
        ModelError: it does not run on one of them.
        UsageError: there are no inputs.
    """
    if not inputs:
        msg = "there are no inputs to compare the models on"
        raise UsageError(msg)
    needed = given if is_lenient else len(inputs)
    runs: list[tuple[Mapping[str, Array], Mapping[str, Array]]] = []
    try:
        with Session(original, threads=threads, optimization="none") as session:
            for index, feeds in enumerate(inputs):
                if not is_wanted():
                    break
                try:
                    outputs = (known or {}).get(index) or session.run(feeds)
                except ModelError:
                    if index < needed:
                        raise
                else:
                    runs.append((feeds, outputs))
    except ModelError as error:
        msg = (
            f"the original model cannot be run, so nothing can be compared with it: {error} "
            "Give inputs that it takes with --inputs, or sizes with --shape."
        )
        raise ModelError(msg) from error
    return Reference(
        str(original),
        tuple(feeds for feeds, _ in runs),
        tuple(outputs for _, outputs in runs),
        find_precision(original),
        threads,
        given,
    )


def compare(
    reference: Reference,
    optimized: str | os.PathLike[str],
    tolerance: float | None = None,
    *,
    is_retyped: bool = False,
) -> Validation:
    """Run a model on the inputs of a reference and compare what it returns; see `validate`.

    Args:
        reference: the original's outputs.
        optimized: the model.
        tolerance: of every output; None: by its type.
        is_retyped: whether its inputs and outputs may be floats of another type.
    """
    if tolerance is not None and not 0.0 <= tolerance < math.inf:
        msg = f"the tolerance must be a number from 0 on, not {tolerance}"
        raise UsageError(msg)
    precision = reference.precision
    if is_retyped:
        precision = max(precision, find_precision(optimized), key=TOLERANCES.__getitem__)
    allowed = TOLERANCES[precision] if tolerance is None else tolerance
    count = len(reference.inputs)
    try:
        outputs, notes = _run_beside(reference, optimized, is_retyped=is_retyped)
    except ModelError as error:
        return Validation(math.inf, math.inf, count, allowed, "differs", failure=str(error))
    failure = _find_mismatch(reference.outputs, outputs)
    if failure is not None:
        return Validation(math.inf, math.inf, count, allowed, "differs", failure=failure)
    rows = tuple(
        _compare_output(
            name,
            [arrays[name] for arrays in reference.outputs],
            [arrays[name] for arrays in outputs],
            _tolerance(array.dtype, precision, tolerance),
            reference,
            # Who names a tolerance wants that one.
            lenient=tolerance is None,
        )
        for name, array in reference.outputs[0].items()
    )
    if not rows:
        msg = f"'{reference.path}' has no tensor among its outputs, so there is nothing to compare"
        raise ModelError(msg)
    worst = max(rows, key=lambda row: (row.verdict == "differs", _strain(row)))
    return Validation(
        max_abs_error=max(row.max_abs_error for row in rows),
        max_rel_error=max(row.max_rel_error for row in rows),
        inputs=count,
        tolerance=max(row.tolerance for row in rows) or allowed,
        verdict="differs" if any(row.verdict == "differs" for row in rows) else "equal",
        outputs=rows,
        worst=worst.name,
        notes=(*notes, *(f"output '{row.name}': {row.note}" for row in rows if row.note)),
        changes=find_changes(reference.outputs, outputs, reference.given),
    )


def _run_beside(
    reference: Reference, optimized: str | os.PathLike[str], *, is_retyped: bool
) -> tuple[tuple[dict[str, Array], ...], tuple[str, ...]]:
    """What a model returns on the inputs of a reference, and what is to be said of how that was found.

    Raises:
        ModelError: the model does not run.
    """
    notes: list[str] = []

    def run(path: str | os.PathLike[str]) -> tuple[dict[str, Array], ...]:
        with Session(path, threads=reference.threads, optimization="none") as session:
            types = {spec.name: spec.dtype for spec in session.inputs} if is_retyped else {}
            outputs = []
            for feeds in reference.inputs:
                fitting = {
                    name: _as_type(array, types.get(name)) for name, array in feeds.items()
                }
                if any(fitting[name].dtype != array.dtype for name, array in feeds.items()):
                    notes[:] = [RETYPED]
                outputs.append(session.run(fitting))
        if not is_retyped:
            return tuple(outputs)
        return tuple(
            {
                name: _as_type(array, mine[name].dtype.name if name in mine else None)
                for name, array in theirs.items()
            }
            for mine, theirs in zip(reference.outputs, outputs, strict=True)
        )

    try:
        return run(optimized), tuple(notes)
    except ModelError:
        with tempfile.TemporaryDirectory(prefix="deploykit-") as folder:
            emulated = emulation.write_emulated(Path(optimized), Path(folder))
            if emulated is None:
                raise
            return run(emulated), (emulation.NOTE,)


def _as_type(array: Array, dtype: str | None) -> Array:
    """An array of floats in another type of floats; anything else as it is."""
    if array.dtype.kind != "f" or dtype not in {"float16", "float32", "float64"}:
        return array
    return array.astype(dtype, copy=False)


def find_precision(model: str | os.PathLike[str]) -> str:
    """The coarsest type that a model computes in: a key of `TOLERANCES`.

    Its weights and its interface tell; a model with QuantizeLinear counts as "int8" unless it is coarser.
    """
    import onnx_ir as ir

    loaded = one_file.load(Path(model))
    graphs = [loaded.graph, *(function.graph for function in loaded.functions.values())]
    found = {"float64"}
    for graph in graphs:
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        found.update(value.dtype.name.lower() for value in values if value.dtype is not None)
        for node in graph.all_nodes():
            if node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"}:
                found.add("int8.quantized")
            elif node.op_type == "Cast":
                found.add(ir.DataType(node.attributes["to"].as_int()).name.lower())
            elif node.op_type == "Constant":
                found.update(
                    value.dtype.name.lower()
                    for value in node.outputs
                    if value.dtype is not None
                )
    if "float" in found:
        found.add("float32")
    # Integer tensors (indices, shapes) say nothing about precision; quantisation does.
    found.discard("int8")
    if "int8.quantized" in found:
        found.add("int8")
    return max(found & set(TOLERANCES), key=lambda name: TOLERANCES[name])


def find_inputs(
    model: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    count: int = INPUTS,
    seed: int = 0,
    threads: int | None = None,
    probe_only: bool = False,
) -> Inputs:
    """Generate inputs, and keep those that the model runs on.

    Sizes of dynamic axes and the range of integers are guesses: a second size that the model refuses (many models
    have a dynamic batch axis by name only) is left out with a note, and integers are tried smaller.

    Args:
        model: path of the model.
        shapes: sizes of inputs by name, for those with dynamic axes.
        count: how many inputs to generate.
        seed: of the random numbers.
        threads: threads to run with; None leaves the number to the runtime.
        probe_only: whether to run the first input only, and to keep the others unseen.

    Returns:
        at least one input.

    Raises:
        ModelError: the model runs on none of them.
        UsageError: `shapes` does not fit the model.
    """
    with Session(model, threads=threads, optimization="none") as session:
        specs = session.inputs
        notes: dict[str, None] = {}

        def run(feeds: Feeds) -> Mapping[str, Array] | None:
            try:
                return session.run(feeds)
            except ModelError as error:
                notes.setdefault(str(error))
                return None

        has_integers = any(_kind(spec) in "iu" for spec in specs)
        limits = INTEGER_LIMITS if has_integers else INTEGER_LIMITS[:1]
        for first, limit in itertools.product(_distinct(specs, shapes, FIRST_SIZES), limits):
            (probe,) = generate_inputs(
                specs, shapes, count=1, seed=seed, integer_limit=limit, sizes=(first, first)
            )
            returned = run(probe)
            if returned is not None:
                break
        else:
            msg = f"no generated input suits the model: {next(iter(notes))} " + (
                "Does it take the sizes given with --shape? Detectors often want multiples of 32."
                if shapes
                else "Give inputs with --inputs, or the sizes of its dynamic axes with --shape."
            )
            raise ModelError(msg)
        # What was refused on the way to sizes that suit is no news.
        notes.clear()
        second = first
        for other in _distinct(specs, shapes, (first, *_other_sizes(first)))[1:]:
            (other_probe,) = generate_inputs(
                specs, shapes, count=1, seed=seed, integer_limit=limit, sizes=(other, other)
            )
            if run(other_probe) is not None:
                second = other
                notes.clear()
                break
        if notes:
            taken = ", ".join(f"{name} {list(array.shape)}" for name, array in probe.items())
            reason = next(iter(notes))
            notes = {
                f"of its dynamic sizes the model was only seen to take {taken}: {reason}": None
            }
        feeds = generate_inputs(
            specs, shapes, count=count, seed=seed, integer_limit=limit, sizes=(first, second)
        )
        # The first of them is the probe.
        if not probe_only:
            feeds = [probe, *(each for each in feeds[1:] if run(each) is not None)]
    return Inputs(tuple(feeds), tuple(notes), returned)


def _other_sizes(first: Sizes) -> tuple[Sizes, ...]:
    """Sizes that differ from `first`, in as many axes as possible first."""
    height, width = first.image
    larger = dataclasses.replace(
        first,
        length=first.length + 16,
        image=(height + 32, width + 32),
        volume=first.volume + 32,
    )
    wider = dataclasses.replace(larger, image=(height, width + 32))
    return (
        dataclasses.replace(larger, batch=2),
        dataclasses.replace(wider, batch=2),
        larger,
        wider,
        dataclasses.replace(first, batch=2),
    )


def _distinct(
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]] | None,
    sizes: Sequence[Sizes],
) -> list[Sizes]:
    """Those of the sizes that make a difference to the model."""
    seen = {str(resolve_shapes(specs, shapes or {}, each)): each for each in reversed(sizes)}
    return [each for each in sizes if each in seen.values()]


def generate_inputs(
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    count: int = 5,
    seed: int = 0,
    integer_limit: int = INTEGER_LIMITS[0],
    sizes: tuple[Sizes, Sizes] | None = None,
) -> list[Feeds]:
    """Generate inputs for a model.

    Floats are drawn from a normal distribution, integers from 0 up to `integer_limit` (masks and segment numbers:
    below 2), bools evenly. The second input is all ones. Dynamic axes take one size in some inputs and another one in
    the third and fifth; axes with one symbol agree.

    Args:
        specs: the model's inputs.
        shapes: sizes of inputs by name; they fix dynamic axes, also those of other inputs with the same symbol.
        count: how many inputs to generate.
        seed: of the random numbers.
        integer_limit: integers stay below it.
        sizes: two sets of sizes for dynamic axes; None is a default of 224 x 224 for images, then larger.

    Returns:
        `count` dicts of arrays by input name.

    Raises:
        UsageError: `shapes` names no input of the model, or contradicts its fixed sizes.
        ModelError: an input holds something that cannot be generated (strings).
    """
    shapes = dict(shapes or {})
    _check_shapes(specs, shapes)
    dice = np.random.default_rng(seed)
    if sizes is None:
        sizes = (FIRST_SIZES[0], _other_sizes(FIRST_SIZES[0])[0])
    variants = [resolve_shapes(specs, shapes, each) for each in sizes]
    feeds = []
    for index in range(count):
        # Each size is used at least twice where there are five inputs, so that the spread between inputs is known.
        resolved = variants[index in {2, 4}]
        feeds.append(
            {
                spec.name: _draw(spec, resolved[spec.name], dice, integer_limit)
                if index != 1
                else np.full(resolved[spec.name], _one(spec, integer_limit), _dtype(spec))
                for spec in specs
            }
        )
    return feeds


def resolve_shapes(
    specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], sizes: Sizes
) -> dict[str, tuple[int, ...]]:
    """Give every dynamic axis a size: from `shapes`, from an axis with the same symbol, or from `sizes`."""
    known = {
        size: given
        for spec in specs
        for size, given in zip(spec.shape, shapes.get(spec.name, ()), strict=False)
        if isinstance(size, str)
    }
    resolved = {}
    for spec in specs:
        if spec.name in shapes:
            resolved[spec.name] = tuple(shapes[spec.name])
            continue
        resolved[spec.name] = tuple(
            size
            if isinstance(size, int)
            else sizes.of(spec, axis)
            if size is None
            else known.setdefault(size, sizes.of(spec, axis))
            for axis, size in enumerate(spec.shape)
        )
    return resolved


def load_inputs(path: str | os.PathLike[str], specs: Sequence[TensorSpec]) -> list[Feeds]:
    """Read inputs from an .npz file.

    The file holds an array for each input, by its name. Arrays with one axis more than the inputs have hold several
    inputs, along their first axis.

    Args:
        path: the file.
        specs: the model's inputs.

    Returns:
        dicts of arrays by input name, one an input.

    Raises:
        UsageError: the file cannot be read, or its arrays do not fit the inputs.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        OSError,
        EOFError,
        ValueError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:
        msg = f"'{path}' cannot be read as inputs: {error}. It must be an .npz file, as numpy.savez writes it."
        raise UsageError(msg) from error
    names = [spec.name for spec in specs]
    if set(names) != set(arrays):
        msg = (
            f"'{path}' holds arrays named {_list(sorted(arrays))}, the model's inputs are {_list(names)}: "
            "give one array for each input, by its name."
        )
        raise UsageError(msg)
    stacked = {spec.name: _fit(path, spec, arrays[spec.name]) for spec in specs}
    counts = {len(each) for each in stacked.values()}
    if len(counts) != 1 or 0 in counts:
        sizes = ", ".join(f"'{name}': {len(each)}" for name, each in stacked.items())
        msg = f"'{path}' holds different numbers of inputs ({sizes}): each array needs the same, at least one."
        raise UsageError(msg)
    return [
        {name: each[index] for name, each in stacked.items()} for index in range(counts.pop())
    ]


def _fit(path: str | os.PathLike[str], spec: TensorSpec, array: Array) -> Sequence[Array]:
    """The inputs that an array of the file holds, in the type and shape that the model wants."""
    rank = len(spec.shape)
    if array.ndim not in {rank, rank + 1}:
        msg = (
            f"'{path}': array '{spec.name}' has shape {list(array.shape)}, but the input has {rank} axes "
            f"{_shape(spec)}; one axis more holds several inputs."
        )
        raise UsageError(msg)
    several = array if array.ndim == rank + 1 else array[np.newaxis]
    _check_shapes([spec], {spec.name: several.shape[1:]})
    wanted = _dtype(spec)
    if not np.can_cast(array.dtype, wanted, casting="same_kind"):
        msg = f"'{path}': array '{spec.name}' is {array.dtype}, but the input is {spec.dtype}: convert it first."
        raise UsageError(msg)
    return list(np.ascontiguousarray(several, dtype=wanted))


def _check_shapes(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> None:
    by_name = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        if name not in by_name:
            msg = f"a shape is given for '{name}', but the model's inputs are {_list(by_name)}."
            raise UsageError(msg)
        spec = by_name[name]
        fits = len(shape) == len(spec.shape) and all(
            given == size if isinstance(size, int) else given >= 0
            for given, size in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            msg = f"shape {list(shape)} does not fit the input '{name}' {_shape(spec)}: only its dynamic axes are free."
            raise UsageError(msg)


def _one(spec: TensorSpec, integer_limit: int) -> int:
    return min(1, integer_limit - 1) if _kind(spec) in "iu" else 1


def _draw(
    spec: TensorSpec, shape: tuple[int, ...], dice: np.random.Generator, limit: int
) -> Array:
    dtype = _dtype(spec)
    kind = _kind(spec)
    if math.prod(shape) > LARGEST_INPUT:
        msg = (
            f"the input '{spec.name}' has {math.prod(shape):,} elements, and {LARGEST_INPUT:,} are generated at most. "
            "Give real inputs with --inputs, or a smaller size with --shape."
        )
        raise ModelError(msg)
    if kind == "b":
        return dice.random(shape) < 0.5
    if kind in "iu":
        name = spec.name.lower()
        below = (
            min(limit, 2)
            if any(part in name for part in ("mask", "type", "segment"))
            else limit
        )
        drawn = dice.integers(0, below, shape, dtype=np.int64).astype(dtype)
        if "mask" in name and drawn.size:
            # A mask that hides everything has no meaning, and many models return NaN for it.
            drawn[..., :1] = 1
        return drawn
    return np.asarray(dice.standard_normal(shape)).astype(dtype)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError as error:
        msg = f"the input '{spec.name}' holds {spec.dtype}, of which numpy knows nothing: such models cannot be run."
        raise ModelError(msg) from error


def _kind(spec: TensorSpec) -> str:
    kind = _dtype(spec).kind
    if kind not in "biuf":
        msg = f"the input '{spec.name}' holds {spec.dtype}, which cannot be generated. Give inputs with --inputs."
        raise ModelError(msg)
    return kind


def _find_mismatch(
    reference: Sequence[Mapping[str, Array]], outputs: Sequence[Mapping[str, Array]]
) -> str | None:
    for index, (mine, theirs) in enumerate(zip(reference, outputs, strict=True)):
        if list(mine) != list(theirs):
            return f"its outputs are {_list(theirs)}, those of the original {_list(mine)}"
        for name, array in mine.items():
            other = theirs[name]
            if array.shape != other.shape or array.dtype != other.dtype:
                return (
                    f"output '{name}' is {other.dtype} {list(other.shape)} on input {index}, "
                    f"that of the original {array.dtype} {list(array.shape)}"
                )
    return None


def _compare_output(
    name: str,
    expected: Sequence[Array],
    actual: Sequence[Array],
    tolerance: float,
    reference: Reference,
    *,
    lenient: bool,
) -> OutputComparison:
    if expected[0].dtype.kind != "f":
        return _compare_exactly(name, expected, actual)
    spreads = find_spreads(expected)
    errors, scales, sizes = [], [], []
    collapsed = []
    lopsided = infinite = 0
    for mine, theirs, spread in zip(expected, actual, spreads, strict=True):
        finite = np.isfinite(mine)
        same = (
            np.isfinite(theirs) & finite | (mine == theirs) | np.isnan(mine) & np.isnan(theirs)
        )
        lopsided += int(mine.size - same.sum())
        infinite += not finite.all()
        size = float(np.abs(mine[finite], dtype=np.float64).max(initial=0.0))
        collapsed.append(spread < LEAST_SPREAD * size)
        sizes.append(size)
        errors.append(_largest_difference(mine, theirs))
        scales.append(max(spread, LEAST_SPREAD * size))
    beyond = [index for index, error in enumerate(errors) if error > tolerance * scales[index]]
    rounded = []
    if beyond and not lopsided:
        rounded = [i for i in beyond if errors[i] <= reference.rounding * sizes[i]]
        beyond = [index for index in beyond if index not in rounded]
    excused = []
    if beyond and lenient and not lopsided:
        natural = reference.noise[name]
        excused = [
            index
            for index in beyond
            if errors[index]
            <= min(NOISE_FACTOR * natural[index], NOISE_LIMIT * tolerance * scales[index])
        ]
    max_abs = max(errors)
    max_rel = max(
        error / scale if scale > 0.0 else math.inf if error > 0.0 else 0.0
        for error, scale in zip(errors, scales, strict=True)
    )
    if lopsided:
        max_abs = max_rel = math.inf
    notes = []
    if infinite:
        notes.append(
            f"the original returns NaN or infinity on {infinite} of {len(expected)} inputs"
        )
    if any(collapsed):
        weak = f"it moves by less than {LEAST_SPREAD:.0%} of its size on {sum(collapsed)} of {len(expected)} inputs"
        if not reference.given:
            advice = "which makes them a weak test: give typical ones with --inputs"
        elif any(collapsed[: reference.given]):
            advice = f"{sum(collapsed[: reference.given])} of the given ones among them: a weak test, give more varied ones"
        else:
            advice = f"all of them generated: a weak test, so it is the {reference.given} given ones that tell"
        notes.append(f"{weak}, {advice}")
    if rounded:
        notes.append(
            f"on {len(rounded)} of {len(expected)} inputs the error exceeds the tolerance, but it is within the rounding "
            f"of float arithmetic ({reference.rounding:.1g} of the output's size); the output moves too little there for "
            "a strong test: give typical inputs with --inputs"
        )
    if excused:
        notes.append(
            f"on {len(excused)} of {len(expected)} inputs the error exceeds the tolerance, but it is what another order "
            "of float sums makes of the original itself (runtime's optimisation on or off)"
        )
    return OutputComparison(
        name=name,
        dtype=str(expected[0].dtype),
        max_abs_error=max_abs,
        max_rel_error=max_rel,
        tolerance=tolerance,
        elements=sum(array.size for array in expected),
        differing=lopsided,
        verdict="differs" if lopsided or len(excused) < len(beyond) else "equal",
        note="; ".join(notes),
    )


def _compare_exactly(
    name: str, expected: Sequence[Array], actual: Sequence[Array]
) -> OutputComparison:
    differing, share, max_abs = 0, 0.0, 0.0
    for mine, theirs in zip(expected, actual, strict=True):
        apart = mine != theirs
        count = int(apart.sum())
        if count:
            differing += count
            share = max(share, count / mine.size)
            if mine.dtype.kind in "biu":
                # Python's integers: differences of unsigned or 64-bit ones would wrap around.
                pairs = zip(mine[apart].tolist(), theirs[apart].tolist(), strict=True)
                max_abs = max(max_abs, *(float(abs(int(a) - int(b))) for a, b in pairs))
            else:
                max_abs = math.inf
    return OutputComparison(
        name=name,
        dtype=str(expected[0].dtype),
        max_abs_error=max_abs,
        max_rel_error=share,
        tolerance=0.0,
        elements=sum(array.size for array in expected),
        differing=differing,
        verdict="differs" if differing else "equal",
    )


def _largest_difference(expected: Array, actual: Array) -> float:
    """Largest absolute difference where both are finite; infinite if their shapes differ."""
    if expected.shape != actual.shape:
        return math.inf
    finite = np.isfinite(expected) & np.isfinite(actual)
    apart = np.subtract(actual[finite], expected[finite], dtype=np.float64)
    return float(np.abs(apart).max(initial=0.0))


def _tolerance(dtype: np.dtype[Any], precision: str, asked: float | None) -> float:
    if asked is not None:
        return asked
    return max(TOLERANCES[precision], TOLERANCES.get(dtype.name, 0.0))


def _strain(row: OutputComparison) -> float:
    return row.max_rel_error / row.tolerance if row.tolerance > 0.0 else row.max_rel_error


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in spec.shape) + "]"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
