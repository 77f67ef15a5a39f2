"""The results of a sweep as one Parquet file, which every tool for data frames reads."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deploykit
from deploykit.atomic import write_whole
from deploykit.errors import RuntimeUnavailable
from deploykit.sweep.records import Row

__all__ = ["check_writable", "write_table"]


def check_writable() -> None:
    """Check that tables can be written, before hours are spent on what would be in them.

    Raises:
        RuntimeUnavailable: pyarrow is not installed.
    """
    _pyarrow()


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write all rows. Columns that no row has a value for keep their type.

    Raises:
        RuntimeUnavailable: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow()
    kinds = {
        "str": pyarrow.string(),
        "str | None": pyarrow.string(),
        "State": pyarrow.string(),
        "int": pyarrow.int64(),
        "int | None": pyarrow.int64(),
        "float": pyarrow.float64(),
        "float | None": pyarrow.float64(),
        "bool | None": pyarrow.bool_(),
    }
    fields = dataclasses.fields(Row)
    schema = pyarrow.schema(
        [(field.name, kinds[str(field.type)]) for field in fields],
        metadata={"deploykit": deploykit.__version__, "schema_version": "1.0"},
    )
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields}
    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, schema=schema), content)
    write_whole(path, content.getvalue())


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        msg = "the table of a sweep needs the extra 'ray', which brings pyarrow: pip install 'deploykit-onnx[ray]'."
        raise RuntimeUnavailable(msg) from error
    return pa, parquet
