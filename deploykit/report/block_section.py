"""The section on dense blocks: weights as they came and in the order of their blocks, and what each layer was made."""

from __future__ import annotations

from html import escape

from deploykit.report.markup import Column, Shown, breakable, cell, folded, noted, table
from deploykit.report.mask_image import image
from deploykit.report.records import BlockLayer, MaskPicture, Report
from deploykit.report.wording import block_text, outcome_text

__all__ = ["block_layers"]

NARROWEST, WIDEST = 0.6, 2.0
"""A picture has the proportions of its matrix within these bounds."""


def block_layers(report: Report) -> str:
    """Pictures of the weights of which blocks spare most, and a table of all; nothing where there are no blocks."""
    rows = report.block_layers
    if not rows:
        return ""
    lowered = sum(row.form not in {"", "dense"} for row in rows)
    several = f"{len(rows)} layers are" if len(rows) > 1 else "one layer is"
    text = (
        f"The weights of {several} dense blocks with zeros around them: the output channels of a block read the same input "
        f"channels, and no others. {_counted(lowered, len(rows))}"
    )
    drawn = [row for row in rows if row.picture is not None]
    first = (
        f"The {len(drawn)} of which blocks spare most: rows"
        if len(drawn) < len(rows)
        else "Rows"
    )
    key = f"{first} are output channels, columns input channels; the stronger the colour, the larger the weights of a kernel."
    pictures = "".join(_figures(row) for row in drawn)
    return (
        f'<h2>Blocks</h2><p>{text}</p><p class="soft">{key}</p><div class="masks">{pictures}</div>'
        f"{folded('all layers with blocks', _table(rows))}"
    )


def _counted(lowered: int, total: int) -> str:
    """How many of the layers are computed block by block."""
    if lowered == 0:
        return "They stay dense." if total > 1 else "It stays dense."
    if lowered == total:
        who = "They are" if total > 1 else "It is"
        return f"{who} computed block by block."
    are, stay = (
        "is" if lowered == 1 else "are",
        "other stays" if total - lowered == 1 else "others stay",
    )
    return f"{lowered} of them {are} computed block by block, the {stay} dense."


def _figures(row: BlockLayer) -> str:
    ordered = "in the order of its blocks"
    parts = "".join(
        f"<figure><h3><small>{word}</small></h3>{_outlined(row, picture, word, with_blocks=word == ordered)}</figure>"
        for word, picture in (("as it came", row.picture), (ordered, row.picture_ordered))
        if picture is not None
    )
    told = ": ".join(filter(None, (block_text(row), outcome_text(row))))
    return (
        f'<div class="mask"><h3>{breakable(row.weight)}<small>{escape(told)}</small></h3>'
        f'<div class="row">{parts}</div></div>'
    )


def _outlined(row: BlockLayer, picture: MaskPicture, word: str, *, with_blocks: bool) -> str:
    """A picture in the proportions of its matrix, with the blocks outlined."""
    ratio = min(WIDEST, max(NARROWEST, row.inputs / row.outputs))
    lines = ""
    if with_blocks and row.outlines:
        shapes = "".join(
            f'<rect x="{each.column}" y="{each.row}" width="{each.columns}" height="{each.rows}"></rect>'
            for each in row.outlines
        )
        lines = f'<svg viewBox="0 0 {row.inputs} {row.outputs}" preserveAspectRatio="none" aria-hidden="true">{shapes}</svg>'
    return f'<div class="matrix" style="aspect-ratio: {ratio:.3f}">{image(picture, f"{row.weight}, {word}")}{lines}</div>'


def _table(rows: tuple[BlockLayer, ...]) -> str:
    cells = [
        [
            noted(row.weight, row.op_type),
            cell(str(row.outputs), Shown(f"{place}.outputs", row.outputs)),
            cell(str(row.inputs), Shown(f"{place}.inputs", row.inputs)),
            cell(
                "x".join(map(str, row.kernel)),
                *(Shown(f"{place}.kernel.{at}", size) for at, size in enumerate(row.kernel)),
            ),
            cell(row.text),
            cell(f"{100 * row.share:.1f} %", Shown(f"{place}.share", row.share)),
            noted(row.form, row.reason),
        ]
        for index, row in enumerate(rows)
        for place in [f"block_layers.{index}"]
    ]
    columns = [
        Column("weight"),
        *(Column(name, is_number=True) for name in ("outputs", "inputs", "kernel")),
        Column("blocks"),
        Column("of it", is_number=True),
        Column("computed"),
    ]
    return table(columns, cells)
