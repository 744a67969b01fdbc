"""Optional packages of the extra `ray`, imported where they are needed."""

from __future__ import annotations

from typing import Any

from boxwright.errors import MissingExtraError

__all__ = ["fsspec_module", "parquet_modules", "ray_module"]


def parquet_modules(what: str) -> tuple[Any, Any]:
    """Return `pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtraError: They are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError(what, "ray") from None
    return pyarrow, parquet


def fsspec_module(what: str) -> Any:
    """Return `fsspec`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError(what, "ray") from None
    return fsspec


def ray_module(what: str) -> Any:
    """Return `ray`, with `ray.data`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError(what, "ray") from None
    return ray
