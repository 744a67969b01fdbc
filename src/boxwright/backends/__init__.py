"""Runtimes: one file each, with a `BACKEND`; every backend is feed in, outputs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt

from boxwright.types import TensorInfo

__all__ = ["Backend", "BackendKind", "BackendOptions", "Feed"]

Feed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a runtime is opened.

    Attributes:
        threads: CPU threads of one inference; None leaves the runtime's default.
        device: `auto` takes a GPU when the runtime has one; `cpu` and `cuda` insist.
        spin: Idle threads keep polling, which saves latency and burns a core; several models that
            run in turn slow each other down with it.
    """

    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    spin: bool = True


class Backend(Protocol):
    """A loaded model that computes.

    Attributes:
        description: Runtime, version, device and threads, in words.
        inputs, outputs: Of the graph; optional inputs included.
        metadata: The file's own key-value metadata.
    """

    @property
    def description(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run once; outputs are valid until the next call.

        Raises:
            BackendError: The runtime refuses the feed or fails.
        """
        ...

    def close(self) -> None:
        """Free what the runtime holds."""
        ...


@dataclass(frozen=True, slots=True)
class BackendKind:
    """A runtime.

    Attributes:
        name: As `--runtime` takes it.
        suffixes: Of the files that it runs.
        missing: None when it can run here, otherwise the extra to install.
        open: Loads a file.
        open_bytes: Loads a serialised model.
        versions: Library versions, for the environment record.
    """

    name: str
    suffixes: tuple[str, ...]
    missing: Callable[[], str | None]
    open: Callable[[Path, BackendOptions], Backend]
    open_bytes: Callable[[bytes, BackendOptions], Backend]
    versions: Callable[[], dict[str, str]]
