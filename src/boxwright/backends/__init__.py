"""Runtimes: one file each, with a `BACKEND`; every backend is feed in, outputs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from boxwright.devices import Device
from boxwright.types import Preprocess, TensorInfo

__all__ = [
    "Advising",
    "Backend",
    "BackendKind",
    "BackendOptions",
    "Bounded",
    "Feed",
    "Launching",
    "Queueing",
    "StepTimes",
    "Stepwise",
    "TakesFrames",
    "TakesTensors",
]

Feed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a runtime is opened.

    Attributes:
        threads: CPU threads of one inference; None leaves the runtime's default.
        device: `auto` takes a GPU when the runtime has one; `cpu`, `cuda`, `cuda:N` and `tensorrt`
            (ONNX Runtime's TensorRT provider) insist.
        spin: Idle threads keep polling, which saves latency and burns a core; several models that
            run in turn slow each other down with it.
        streams: Inferences that a `Queueing` runtime keeps in flight at once; others ignore it.
        cuda_graph: TensorRT, and ONNX Runtime on a GPU, capture the network as a CUDA graph and
            replay it; others ignore it.
        provider_options: Names and values that ONNX Runtime's GPU providers are told.
        engine_cache: Folder in which ONNX Runtime's TensorRT provider keeps engines and timings.
        profile_batch: Smallest, best and largest batch of that provider; None is 1.
    """

    threads: int | None = None
    device: Device = "auto"
    spin: bool = True
    streams: int = 1
    cuda_graph: bool = True
    provider_options: tuple[tuple[str, str], ...] = ()
    engine_cache: Path | None = None
    profile_batch: tuple[int, int, int] | None = None


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
class StepTimes:
    """What the parts of one inference took, in milliseconds.

    Attributes:
        copy_in_ms: Feed to the device; 0 where the runtime reads the feed in place.
        infer_ms: The network.
        copy_out_ms: Outputs to the host; 0 where they are handed over as they are.
    """

    copy_in_ms: float
    infer_ms: float
    copy_out_ms: float


@runtime_checkable
class Advising(Protocol):
    """A runtime on which some files are slower than they need be."""

    def advice(self, classes: int) -> str:
        """Return what speaks against the open file on its device, in one line; "" for nothing.

        Args:
            classes: That its NMS goes by; 1 where it is agnostic.
        """
        ...


@runtime_checkable
class Stepwise(Protocol):
    """A backend that can tell copying from computing."""

    def infer_in_steps(self, feed: Feed) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
        """Run once as `infer` does, and say what its parts took.

        Raises:
            BackendError: The runtime refuses the feed or fails.
        """
        ...


@runtime_checkable
class Launching(Protocol):
    """A backend that can run the network alone, on a feed that lies on the GPU already."""

    @property
    def launch_clock(self) -> str:
        """What `launch_times` goes by, in words; "" where this session has nothing to tell."""
        ...

    def launch_times(self, feed: Feed, count: int) -> list[float]:
        """Return the milliseconds of each of `count` runs.

        Raises:
            BackendError: The feed does not fit, or a run fails.
        """
        ...


@runtime_checkable
class Queueing(Protocol):
    """A backend with a queue of its own that keeps several inferences in flight."""

    def infer_queued(self, feed: Feed, go_on: Callable[[], bool]) -> list[tuple[float, float]]:
        """Run the same feed over and over, `BackendOptions.streams` at once.

        Args:
            feed: Of every inference.
            go_on: Asked before each is submitted; False ends it.

        Returns:
            Of each inference, when it was submitted and when it was done, in seconds of
            `time.perf_counter`.

        Raises:
            BackendError: The runtime refuses the feed or fails.
        """
        ...


@runtime_checkable
class Bounded(Protocol):
    """A backend whose free batch has an end."""

    @property
    def largest_batch(self) -> int | None:
        """The most pictures of one call; None when that is not known."""
        ...


@runtime_checkable
class TakesTensors(Protocol):
    """A backend with several contexts whose input memory may be filled in place."""

    def tensor_lanes(self, count: int) -> list[Any]:
        """Return so many contexts: `input_view`, `start`, `finish`, `attach_thread`.

        Raises:
            BackendError: There is not enough memory.
        """
        ...


@runtime_checkable
class TakesFrames(Protocol):
    """A backend that takes uint8 pictures and letterboxes them on its device."""

    def frame_lanes(self, rules: Preprocess, size: tuple[int, int], count: int) -> list[Any]:
        """Return so many lanes: `reserve`, `fill`, `start`, `finish`, `attach_thread`, `close`.

        Raises:
            RequestError: The device does not do what the rules say.
            BackendError: There is not enough memory, or no compiler.
        """
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
        open_address: Opens a served model, of a runtime that is a client.
    """

    name: str
    suffixes: tuple[str, ...]
    missing: Callable[[], str | None]
    open: Callable[[Path, BackendOptions], Backend]
    open_bytes: Callable[[bytes, BackendOptions], Backend]
    versions: Callable[[], dict[str, str]]
    open_address: Callable[[str, BackendOptions], Backend] | None = None
