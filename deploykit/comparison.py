"""Compares two models, or two documents about models that `optimize` or `profile` wrote.

Two models are run: on the same inputs for their outputs, and in turns for their speed. Of two documents the samples
are all there is. They were taken on two occasions, so that nothing can be paired, and what the machine did differently
is in the result; where both have a model in common, its two times tell how much that was.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import model_io, profiling, size
from deploykit.errors import UsageError
from deploykit.profile.statistics import Timings, unpaired_ratio
from deploykit.report import profile_records as records
from deploykit.report.profile_wording import labels, seconds_text
from deploykit.report.records import Count, OutputRow, ValidationRecord
from deploykit.report.wording import bytes_text, change_text, count_text
from deploykit.validate import compare as compare_outputs
from deploykit.validate import find_inputs, load_inputs, run_reference

if TYPE_CHECKING:
    from deploykit.validate import Validation

__all__ = ["compare", "is_document"]

Document: TypeAlias = Mapping[str, Any]

PROBE_BYTES = 4096

UNPAIRED = (
    "the two were measured on different occasions: what the machine did differently is in these ratios and not in their "
    "intervals. Compare the models themselves ('deploykit compare A.onnx B.onnx') for a ratio that can be relied on"
)


def compare(
    request: profiling.Request, *, progress: profiling.Progress = profiling.silent
) -> records.Comparison:
    """Compare the two models, or the two documents, of a request.

    Raises:
        UsageError: one is a model and the other a document, or a document is none of ours.
        ModelError: a model cannot be read, or the first one does not run.
        RuntimeUnavailable: the runtime is not there.
    """
    began = time.perf_counter()
    a, b = (_in_folder(path) for path in request.models)
    kinds = [is_document(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        model, document = (b, a) if kinds[0] else (a, b)
        msg = (
            f"'{model}' is a model and '{document}' a report, which have nothing in common to compare. "
            "Give two models, or two reports."
        )
        raise UsageError(msg)
    if kinds[0] and not request.place.is_local:
        msg = f"reports are compared as they are, and nothing is measured on {request.place.name}: leave out --on, or give two models."
        raise UsageError(msg)
    request = dataclasses.replace(request, models=(a, b))
    found = _compare_documents(request) if kinds[0] else _compare_models(request, progress)
    return dataclasses.replace(found, elapsed_s=time.perf_counter() - began)


def _in_folder(path: Path) -> Path:
    """A result folder stands for its report."""
    report = path / "report.json"
    return report if path.is_dir() and report.is_file() else path


def is_document(path: Path) -> bool:
    """Whether a file is a JSON document; models that are written as JSON are none of those meant."""
    try:
        # A pipe would be waited for.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(PROBE_BYTES).lstrip()
    except OSError:
        return False
    return head.startswith(b"{") and b'"schema_version"' in head


# -- models --------------------------------------------------------------------------------------


def _compare_models(
    request: profiling.Request, progress: profiling.Progress
) -> records.Comparison:
    measured = profiling.profile(request, progress=progress)
    first, second = measured.models
    progress("comparing outputs")
    validation = _validate(request)
    shapes = {row.name: row.shape for row in measured.inputs}
    counts = [size.count(model_io.load(path).model, shapes) for path in request.models]
    facts = [
        _number("parameters", counts[0].parameters, counts[1].parameters),
        _number("bytes", first.bytes, second.bytes, bytes_text),
        _number("multiply-adds", counts[0].macs, counts[1].macs),
        _number("nodes", counts[0].nodes, counts[1].nodes, str),
        *_latency_facts(first, second, measured.clock),
        _times("load time", first.load_s, second.load_s),
    ]
    if first.memory_bytes is not None and second.memory_bytes is not None:
        facts.append(
            _number("memory peak", first.memory_bytes, second.memory_bytes, bytes_text)
        )
    return records.Comparison(
        command=request.command,
        versions=measured.versions,
        compared="models",
        a=records.Subject(first.name, first.path, first.sha256),
        b=records.Subject(second.name, second.path, second.sha256),
        facts=tuple(facts),
        relative=measured.relative,
        validation=None if validation.failure is not None else _validation_record(validation),
        outputs_differ=validation.failure,
        layers=pair_layers(first.layers, second.layers),
        profile=measured,
        warnings=(*measured.warnings, *validation.notes),
        elapsed_s=0.0,
    )


def _validate(request: profiling.Request) -> Validation:
    """Compare the outputs of the models on a few inputs, of the sizes that both take."""
    from deploykit.runtimes.onnxruntime import Session

    a, b = request.models
    with Session(a, optimization="none") as session:
        specs = session.inputs
    given = []
    if request.inputs is not None:
        given = load_inputs(request.inputs, specs)
        generated: Sequence[Mapping[str, Any]] = ()
    else:
        feeds, _ = profiling.find_feeds(request, labels((a, b)))
        shapes = {name: array.shape for name, array in feeds.items()}
        generated = find_inputs(a, shapes).feeds
    reference = run_reference(a, [*given, *generated], given=len(given))
    return compare_outputs(reference, b)


def pair_layers(
    a: Sequence[records.LayerRow], b: Sequence[records.LayerRow]
) -> tuple[records.LayerPair, ...]:
    """The layers of two models side by side, by name, in the order of the first; those of the second only come last.

    Where a node takes time in one model only, the note says in which other one its work is done in the other model.
    """
    mine = {row.name: row for row in a}
    theirs = {row.name: row for row in b}
    covered = [{name: row.name for row in rows for name in row.covers} for rows in (a, b)]
    pairs = []
    for name in dict.fromkeys((*mine, *theirs)):
        left, right = mine.get(name), theirs.get(name)
        row = left or right
        if row is None:
            continue
        note = ""
        if left is None:
            note = f"A: in {covered[0][name]}" if name in covered[0] else "not in A"
        elif right is None:
            note = f"B: in {covered[1][name]}" if name in covered[1] else "not in B"
        pairs.append(
            records.LayerPair(
                name,
                row.op_type,
                None if left is None else left.seconds,
                None if right is None else right.seconds,
                note,
            )
        )
    return tuple(pairs)


def _validation_record(found: Validation) -> ValidationRecord:
    return ValidationRecord(
        max_abs_error=found.max_abs_error,
        max_rel_error=found.max_rel_error,
        inputs=found.inputs,
        verdict=found.verdict,
        tolerance=found.tolerance,
        worst_output=found.worst,
        outputs=tuple(
            OutputRow(
                name=row.name,
                dtype=row.dtype,
                max_abs_error=row.max_abs_error,
                max_rel_error=row.max_rel_error,
                tolerance=row.tolerance,
                equal=row.verdict == "equal",
            )
            for row in found.outputs
        ),
    )


# -- documents -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFacts:
    """What a document says about one model."""

    name: str
    sha256: str | None
    p50_s: float | None
    bytes: int | None
    load_s: float | None
    memory_bytes: int | None
    timings: Timings | None


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """What a document says, as far as others say it, too.

    Attributes:
        subject: the document.
        kind: "report" or "profile".
        models: the models it measured; of a report, the original and the written one.
        main: the model that the document is about.
        verdict: of a report.
        ratio: of a report: time of the written model over that of the original, in words.
        counts: of a report: counts of the written model, by what they count.
        threads: threads of the sessions; 0 where nothing was measured.
        fingerprint: of the device; None if it is not known.
        runtime: what ran the models; None where nothing was measured.
    """

    subject: records.Subject
    kind: str
    models: tuple[ModelFacts, ...]
    main: ModelFacts
    verdict: str | None
    ratio: str | None
    counts: Mapping[str, int | None]
    threads: int | None
    fingerprint: str | None
    runtime: str | None


def _compare_documents(request: profiling.Request) -> records.Comparison:
    names = labels(request.models)
    a, b = (_summarize(path, name) for path, name in zip(request.models, names, strict=True))
    facts = []
    if a.verdict is not None and b.verdict is not None:
        facts.append(_words("verdict", a.verdict, b.verdict))
    if a.ratio is not None and b.ratio is not None:
        # Whether the two differ is for the ratio between them to say.
        facts.append(records.Fact("time / original", a.ratio, b.ratio, ""))
    facts += [
        _number(
            what, a.counts[what], b.counts[what], bytes_text if what == "bytes" else count_text
        )
        for what in a.counts
        if what in b.counts
    ]
    pairs = _pair_models(a, b)
    for mine, theirs in pairs:
        of = "" if len(pairs) == 1 else f" of {theirs.name}"
        if mine.bytes is not None and theirs.bytes is not None:
            facts.append(_number(f"bytes{of}", mine.bytes, theirs.bytes, bytes_text))
        if mine.p50_s is not None and theirs.p50_s is not None:
            facts.append(_times(f"latency p50{of}", mine.p50_s, theirs.p50_s))
        if mine.load_s is not None and theirs.load_s is not None:
            facts.append(_times(f"load time{of}", mine.load_s, theirs.load_s))
        if mine.memory_bytes is not None and theirs.memory_bytes is not None:
            facts.append(
                _number(f"memory peak{of}", mine.memory_bytes, theirs.memory_bytes, bytes_text)
            )
    relative, warnings = _relative(a, b, pairs)
    return records.Comparison(
        command=request.command,
        versions=profiling.versions(),
        compared="reports",
        a=a.subject,
        b=b.subject,
        facts=tuple(facts),
        relative=relative,
        validation=None,
        outputs_differ=None,
        layers=(),
        profile=None,
        warnings=warnings,
        elapsed_s=0.0,
    )


def _summarize(path: Path, name: str) -> Summary:
    """Read a document.

    Raises:
        UsageError: it is none of ours, or of a later form.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        msg = f"'{path}' cannot be read as a report: {error}. Give the report.json of 'optimize', or what 'profile -o' wrote."
        raise UsageError(msg) from error
    try:
        version = str(document["schema_version"])
        if (
            version.split(".", maxsplit=1)[0]
            != records.SCHEMA_VERSION.split(".", maxsplit=1)[0]
        ):
            msg = f"'{path}' has schema version {version}, which this deploykit does not read: it reads {records.SCHEMA_VERSION}."
            raise UsageError(msg)
        if document.get("kind") == "profile":
            return _of_profile(document, path, name)
        if "verdict" in document and "candidates" in document:
            return _of_report(document, path, name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        msg = (
            f"'{path}' is not a whole report: {type(error).__name__} at {error}. Make it anew."
        )
        raise UsageError(msg) from error
    msg = f"'{path}' is no report of 'optimize' or 'profile'. Give the report.json of the one, or what 'profile -o' wrote."
    raise UsageError(msg)


def _of_profile(document: Document, path: Path, name: str) -> Summary:
    models = tuple(
        ModelFacts(
            str(row["name"]),
            str(row["sha256"]),
            float(row["latency"]["p50_s"]),
            int(row["bytes"]),
            float(row["load_s"]),
            None if row["memory_bytes"] is None else int(row["memory_bytes"]),
            _timings(row["samples"]),
        )
        for row in document["models"]
    )
    return Summary(
        subject=records.Subject(name, str(path), None),
        kind="profile",
        models=models,
        main=models[0],
        verdict=None,
        ratio=None,
        counts={},
        threads=document["threads"],
        fingerprint=document["device"].get("fingerprint"),
        runtime=str(document["runtime"]),
    )


def _of_report(document: Document, path: Path, name: str) -> Summary:
    sizes = document["size"]
    counts = {
        what: sizes[key]["after"]
        for what, key in (
            *(("parameters", "parameters"), ("bytes", "bytes")),
            *(("multiply-adds", "macs"), ("nodes", "nodes")),
        )
    }
    measured = document.get("profile")
    models = []
    for which in ("baseline", "optimized"):
        samples = ((measured or {}).get("samples") or {}).get(which)
        is_original = which == "baseline"
        models.append(
            ModelFacts(
                "original" if is_original else "model.onnx",
                str(document["source"]["sha256"]) if is_original else None,
                None if measured is None else float(measured[which]["p50_s"]),
                None,
                None,
                None,
                None if samples is None else _timings(samples),
            )
        )
    ratio = None
    if measured is not None:
        lo, hi = measured["ratio"]["ci95"]
        ratio = f"{measured['ratio']['median']:.3f} [{lo:.3f}, {hi:.3f}]"
    return Summary(
        subject=records.Subject(name, str(path), None),
        kind="report",
        models=tuple(models),
        main=models[1],
        verdict=str(document["verdict"]),
        ratio=ratio,
        counts=counts,
        threads=0 if measured is None else measured["threads"],
        fingerprint=None if measured is None else measured["device"].get("fingerprint"),
        runtime=None if measured is None else str(measured["runtime"]),
    )


def _timings(samples: Document) -> Timings:
    return Timings(
        np.asarray(samples["rebuild"], dtype=np.int64),
        np.asarray(samples["wall_s"], dtype=np.float64),
        np.asarray(samples["cpu_s"], dtype=np.float64),
    )


def _pair_models(a: Summary, b: Summary) -> list[tuple[ModelFacts, ModelFacts]]:
    """Which models of two documents to compare: those of one name or content, else the main ones."""
    if a.kind != b.kind:
        return [(a.main, b.main)]
    theirs = {model.name: model for model in b.models}
    pairs = [(model, theirs[model.name]) for model in a.models if model.name in theirs]
    hashed = {model.sha256: model for model in b.models if model.sha256 is not None}
    known = {id(model) for pair in pairs for model in pair}
    for model in a.models:
        other = None if model.sha256 is None else hashed.get(model.sha256)
        if other is not None and id(model) not in known and id(other) not in known:
            pairs.append((model, other))
    return pairs or [(a.main, b.main)]


def _relative(
    a: Summary, b: Summary, pairs: Sequence[tuple[ModelFacts, ModelFacts]]
) -> tuple[tuple[records.Relative, ...], tuple[str, ...]]:
    """Ratios of what was kept, and what weakens them."""
    measured = [
        pair for pair in pairs if pair[0].timings is not None and pair[1].timings is not None
    ]
    if not measured:
        return (), (
            "the documents hold no samples to compare times by: make them anew, with measuring",
        )
    if a.threads != b.threads:
        told = (
            f"one was measured with {a.threads or 'all'} threads and the other with {b.threads or 'all'}: their times are not "
            "compared. Measure both with the same --threads"
        )
        return (), (told,)
    rows = []
    controls = []
    for mine, theirs in measured:
        if mine.timings is None or theirs.timings is None:
            continue
        ratio = unpaired_ratio(mine.timings, theirs.timings, threads=a.threads)
        row = profiling.relative_row(
            f"{theirs.name} ({b.subject.name})",
            f"{mine.name} ({a.subject.name})",
            ratio,
            paired=False,
        )
        rows.append(row)
        if mine.sha256 is not None and mine.sha256 == theirs.sha256:
            controls.append(row)
    warnings = [UNPAIRED]
    if a.fingerprint is None or b.fingerprint is None:
        warnings.append(
            "one of the documents does not say which device it is from: compare their 'device' by eye"
        )
    elif a.fingerprint != b.fingerprint:
        warnings.append(
            f"they are from different devices or runtimes (fingerprints {a.fingerprint} and {b.fingerprint}): the ratios say as "
            "much about those as about the models. Measure both on one device"
        )
    warnings += [
        f"{row.model.split(' (')[0]} is the same model in both, and its time is {row.ratio:.3f} [{row.ci95[0]:.3f}, "
        f"{row.ci95[1]:.3f}] of what it was: by so much the machine itself changed. Hold the other ratios against it"
        for row in controls
        if row.proven
    ]
    return tuple(rows), tuple(warnings)


# -- facts ---------------------------------------------------------------------------------------


def _words(what: str, a: str, b: str) -> records.Fact:
    return records.Fact(what, a, b, "the same" if a == b else "changed")


def _number(what: str, a: int | None, b: int | None, show: object = count_text) -> records.Fact:
    text = show if callable(show) else str
    return records.Fact(
        what,
        "?" if a is None else str(text(a)),
        "?" if b is None else str(text(b)),
        change_text(Count(a, b)),
        (a, b),
    )


def _times(what: str, a: float, b: float) -> records.Fact:
    change = f"{100 * (b / a - 1):+.1f} %"
    return records.Fact(what, seconds_text(a), seconds_text(b), change, (a, b))


def _latency_facts(
    a: records.ProfiledModel, b: records.ProfiledModel, clock: str
) -> list[records.Fact]:
    return [
        # How much it changed is for the paired ratio to say.
        records.Fact(
            f"latency {name} ({clock})",
            seconds_text(before),
            seconds_text(after),
            "",
            (before, after),
        )
        for name, before, after in (
            ("p50", a.latency.p50_s, b.latency.p50_s),
            ("p99", a.latency.p99_s, b.latency.p99_s),
        )
    ]
