"""The sidecar of a report: what intervals of its accuracies are made from, in one .npz file.

It lies beside report.json, so that two runs can be compared picture by picture later on.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.errors import SourceError
from boxwright.significance import Matches, arrays_from_matches, matches_from_arrays
from boxwright.store import MATCHES_FILE, write_atomic

__all__ = ["MATCHES_FILE", "read_matches", "write_matches"]

_NAMES = "names"
_MAX_BYTES = 1 << 31  # unpacked; 5,000 pictures of COCO with ten files take a tenth of it


def write_matches(path: Path, matches: Mapping[tuple[str, str], Matches]) -> None:
    """Write the matches of files, by (file, runtime).

    Raises:
        StoreError: The disk is full or the place is not writable.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        _NAMES: np.array(list(matches), dtype=np.str_).reshape(-1, 2)
    }
    for index, one in enumerate(matches.values()):
        arrays |= {f"{index}.{k}": v for k, v in arrays_from_matches(one).items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_atomic(path, stream.getvalue())


def read_matches(path: Path) -> dict[tuple[str, str], Matches]:
    """Read what `write_matches` wrote; nothing in the file is run.

    Raises:
        SourceError: The file is missing, damaged, or not one of these.
    """
    try:
        arrays = _arrays(path)
        names = arrays[_NAMES]
        if names.ndim != 2 or names.shape[1] != 2 or names.dtype.kind != "U":
            raise ValueError(f"names is {names.dtype} {names.shape}")
        found = {}
        for index, (file, runtime) in enumerate(names.tolist()):
            prefix = f"{index}."
            own = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
            found[file, runtime] = matches_from_arrays(own)
        return found
    except (
        ValueError, KeyError, OSError, EOFError, MemoryError, OverflowError, SyntaxError,
        RuntimeError, TypeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}"[:160]
        raise SourceError(
            str(path), f"it holds no matches of ours ({reason})", "run again, or remove it"
        ) from None


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read every array, without pickles and within bounds.

    Raises:
        ValueError: Something else is in it, or too much.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(m.file_size for m in members) > _MAX_BYTES:
            raise ValueError("it unpacks to over 2 GiB")
        for member in members:
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename!r} is no array")
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
            arrays[member.filename.removesuffix(".npy")] = array
    return arrays
