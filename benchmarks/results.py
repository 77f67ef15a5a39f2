"""Where results go: results/NAME.json and results/NAME.md, with the device and the date."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["FOLDER", "device", "save"]

FOLDER = Path(__file__).parent / "results"


def device() -> dict[str, Any]:
    """The machine and the versions that a result was made with."""
    cpu, flags = platform.processor(), []
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            line.split(":", 1) for line in info.read_text().splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        cpu = fields.get("model name", cpu)
        known = ("avx2", "avx512f", "avx512_vnni", "amx_tile")
        flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "flags": flags,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("onnxruntime", "onnx", "onnx-ir", "numpy")
        },
        "load": round(os.getloadavg()[0], 2),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(name: str, rows: Sequence[Mapping[str, Any]], title: str, table: str) -> None:
    """Write one benchmark's rows and its table."""
    FOLDER.mkdir(exist_ok=True)
    about = device()
    document = {"schema_version": 1, "device": about, "rows": list(rows)}
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
    head = f"{about['cpu']}, {about['cores']} cores ({', '.join(about['flags'])}); {versions}"
    (FOLDER / f"{name}.md").write_text(f"# {title}\n\n{head}; {about['date']}\n\n{table}\n")
