"""Pictures whose bytes are in the rows of a Parquet file: `parquet:FILE#row`.

Rows are asked for nearly in order, by several threads. A reader keeps the last few batches of rows,
so that each is read once, and a file of any size needs no more memory than a row group.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from boxwright.errors import ImageError
from boxwright.fleet.extras import fsspec_module, parquet_modules

__all__ = ["PREFIX", "bytes_column", "load_row"]

PREFIX = "parquet:"
_COLUMNS = ("image", "bytes", "data", "content")
_BATCH = 32  # rows
_KEPT = 4  # batches


def bytes_column(file: Any) -> str | None:
    """Return the column that holds pictures, in dots; None where there is none.

    It is binary, or as Hugging Face's data sets have it a struct with `bytes`.
    """
    pa, _ = parquet_modules("Parquet")
    schema = file.schema_arrow
    for name in _COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return name
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{name}.bytes"
    return None


class _Reader:
    """Reads rows of one file; several threads may ask."""

    def __init__(self, name: str) -> None:
        _, parquet = parquet_modules(name)
        source = fsspec_module(name).open(name, "rb").open() if "://" in name else name
        self._file = parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
        column = bytes_column(self._file)
        if column is None:
            raise ImageError(name, "it holds no column of pictures", "name one image")
        self._column = column
        counts = [
            self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)
        ]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._lock = Lock()
        self._kept: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._group, self._next = -1, 0
        self._batches: Any = iter(())

    def row(self, index: int) -> Any:
        """Return the bytes of a row; None where it is empty."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        number, place = divmod(index - int(self._starts[group]), _BATCH)
        with self._lock:
            key = (group, number)
            if key not in self._kept:
                self._read(group, number)
            self._kept.move_to_end(key)
            return self._kept[key][place]

    def _read(self, group: int, number: int) -> None:
        if group != self._group or number < self._next:
            self._batches = self._file.iter_batches(
                batch_size=_BATCH, row_groups=[group], columns=[self._column]
            )
            self._group, self._next = group, 0
        while self._next <= number:
            column = next(self._batches).column(0)
            values = column.to_pylist()
            if "." in self._column:
                values = [v["bytes"] if v else None for v in values]
            self._kept[group, self._next] = values
            self._next += 1
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)


@lru_cache(maxsize=4)
def _reader(name: str) -> _Reader:
    return _Reader(name)


def load_row(address: str) -> bytes:
    """Return the bytes that an address names.

    Raises:
        ImageError: The row is empty, or the file cannot be read.
    """
    name, _, index = address.removeprefix(PREFIX).rpartition("#")
    try:
        data = _reader(name).row(int(index))
    except (ValueError, OSError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise ImageError(address, f"it cannot be read ({reason})", "check the file") from None
    if not isinstance(data, bytes):
        raise ImageError(address, "the row is empty", "check the file")
    return data
