"""The rows as Markdown: times, what did not run and why, and layers dense and in 2:4 form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.gpu.measuring import Row

__all__ = ["write_tables"]


def write_tables(rows: Sequence[Row]) -> str:
    """All tables."""
    ran = [row for row in rows if "p50_ms" in row]
    parts = [_times(ran)] if ran else ["Nothing ran."]
    refused = [row for row in rows if "reason" in row]
    if refused:
        parts.append("## What did not run, and why\n\n" + _refused(refused))
    layers = [row for row in rows if row.get("layers")]
    if layers:
        parts.append(
            "## Layers as single products, dense and in 2:4 form\n\nOf convolutions with kernels of more than one element the "
            "product with patches that lie there already: a network gains less.\n\n"
            + _layers(layers)
        )
    return "\n\n".join(parts)


def _times(rows: Sequence[Row]) -> str:
    head = (
        "| network | batch | form | runtime | median | time / dense | error | eligible | found | chosen | sparse kernels |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in rows:
        ratio = ""
        if "ratio" in row:
            ratio = f"{row['ratio']:.3f} [{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]"
        sparse = row.get("sparse")
        error = f"{row['error']:.1e}" if "error" in row else "no outputs"
        cells = (
            *(row["network"], row["batch"], row["form"], row["runtime"]),
            *(f"{row['p50_ms']:.3f} ms ({row['clock']})", ratio, error),
            *(_count(sparse, key) for key in ("eligible", "found", "chosen", "tactics")),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return head + "\n".join(lines)


def _count(sparse: dict[str, Any] | None, key: str) -> str:
    """How many layers; a question mark where nobody said, and nothing where nobody chooses."""
    if sparse is None:
        return ""
    found = sparse[key]
    if found is None:
        return "?"
    return str(found["count"] if isinstance(found, dict) else len(found))


def _refused(rows: Sequence[Row]) -> str:
    head = "| runtime | what | reason |\n|---|---|---|\n"
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        what = f"{row['network']} {row['form']}, batch {row['batch']}" if "form" in row else ""
        reasons.setdefault((row["runtime"], row["reason"]), []).append(what)
    lines = [
        f"| {runtime} | {'; '.join(filter(None, what)) or 'everything'} | {_cell(reason)} |"
        for (runtime, reason), what in reasons.items()
    ]
    return head + "\n".join(lines)


def _layers(rows: Sequence[Row]) -> str:
    head = (
        "| network | batch | layer | rows x depth x columns | dense | 2:4 | 2:4 / dense | error | note |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for row in rows:
        for layer in row["layers"]:
            if layer["dense_s"] is None:
                continue
            sparse, ratio, error = "", "", ""
            if layer["ratio"] is not None:
                sparse = f"{layer['sparse_s'] * 1e6:.1f} us"
                ratio = f"{layer['ratio']:.2f} [{layer['ci95'][0]:.2f}, {layer['ci95'][1]:.2f}]"
                error = f"{layer['error']:.1e}"
            cells = (
                *(row["network"], row["batch"], layer["layer"]),
                " x ".join(map(str, layer["product"])),
                *(
                    f"{layer['dense_s'] * 1e6:.1f} us",
                    sparse,
                    ratio,
                    error,
                    _cell(layer["reason"]),
                ),
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return head + "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
