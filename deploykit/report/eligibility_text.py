"""What sparse kernels could make of each layer, as a table on a terminal, with a note for each thing that speaks against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.console import Group as Rendered
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploykit.report.console_text import result_console
from deploykit.report.eligibility_records import RemarkRecord, SparseInspection, SparseLayer

__all__ = ["print_inspection", "render", "summary"]

WORDS: Mapping[str, str] = {
    "eligible": "yes",
    "doubtful": "perhaps",
    "not yet": "not yet",
    "no": "no",
}
STYLES: Mapping[str, str] = {
    "eligible": "green",
    "doubtful": "yellow",
    "not yet": "yellow",
    "no": "dim",
}
ORDER = ("no", "not yet", "doubtful", "eligible")


def print_inspection(found: SparseInspection, *, console: Console | None = None) -> None:
    """Print an inspection to a console, by default to stdout."""
    result_console(console).print(render(found))


def render(found: SparseInspection) -> RenderableType:
    """A sentence, the table, and its notes."""
    parts: list[RenderableType] = [Text(summary(found), "bold")]
    notes = _numbered(found.layers)
    if found.layers:
        parts += [Text(""), _layers(found, notes)]
    if notes:
        parts += [Text(""), _notes(notes)]
    parts += [Text.assemble(("warning: ", "bold yellow"), text) for text in found.warnings]
    return Rendered(*parts)


def summary(found: SparseInspection) -> str:
    """How many layers sparse kernels could take, in a sentence."""
    total = len(found.layers)
    if not total:
        return "No layer of this model multiplies by anything."
    eligible, doubtful, not_yet = (
        found.count("eligible"),
        found.count("doubtful"),
        found.count("not yet"),
    )
    of = f"of {total} layer{'s' if total > 1 else ''}"
    text = f"Target {found.target}: {eligible + doubtful} {of} could run in sparse {found.pattern} kernels as they are"
    if doubtful:
        text += f", {'all' if not eligible else doubtful} of them doubtful"
    if not_yet:
        text += f"; {not_yet} more if {'it' if not_yet == 1 else 'they'} obeyed the pattern"
    obeying = sum(layer.share == 1 for layer in found.layers)
    text += f"; {obeying} obey{'s' if obeying == 1 else ''} it."
    return text


def _numbered(layers: Sequence[SparseLayer]) -> dict[RemarkRecord, str]:
    """A letter for each different remark: the worst kind first, then in the order in which they come up."""
    found = dict.fromkeys(remark for layer in layers for remark in layer.remarks)
    ordered = sorted(found, key=lambda remark: ORDER.index(remark.answer))
    return {remark: _letters(at) for at, remark in enumerate(ordered)}


def _letters(number: int) -> str:
    """Names for notes: a to z, then aa, ab, and so on."""
    head, tail = divmod(number, 26)
    return (_letters(head - 1) if head else "") + chr(ord("a") + tail)


def _layers(found: SparseInspection, notes: Mapping[RemarkRecord, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", overflow="fold", ratio=1)
    table.add_column("op", no_wrap=True)
    table.add_column("shape, axis", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column(f"obey {found.pattern}", justify="right", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("sparse?", no_wrap=True)
    table.add_column("notes", overflow="fold")
    for layer in found.layers:
        table.add_row(
            escape(layer.weight or layer.node),
            escape(layer.op_type),
            _shape(layer),
            layer.precision,
            _percent(layer.share),
            _percent(layer.kept),
            Text(WORDS[layer.answer], STYLES[layer.answer]),
            " ".join(notes[remark] for remark in layer.remarks),
        )
    return table


def _shape(layer: SparseLayer) -> str:
    """The shape of a weight, with the axis along which groups lie in brackets."""
    return "x".join(
        f"\\[{size}]" if axis == layer.axis else str(size)
        for axis, size in enumerate(layer.shape)
    )


def _notes(notes: Mapping[RemarkRecord, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("note", no_wrap=True)
    table.add_column("sparse?", no_wrap=True)
    table.add_column("why not", overflow="fold", ratio=3)
    table.add_column("what to do", overflow="fold", ratio=2)
    for remark, letters in notes.items():
        table.add_row(
            letters, WORDS[remark.answer], escape(remark.reason), escape(remark.advice)
        )
    return table


def _percent(share: float | None) -> str:
    """A share in whole percent; what is not all is not 100, and what is not nothing not 0."""
    if share is None:
        return ""
    percent = 100 * share
    if 0 < percent < 1:
        return "< 1 %"
    return f"{int(percent) if percent > 99 else round(percent)} %"
