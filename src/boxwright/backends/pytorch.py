"""PyTorch on the CPU, as a reference to compare with; not a runtime to ship."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendKind, BackendOptions, Feed, StepTimes
from boxwright.devices import device_from_text
from boxwright.errors import BackendError, RequestError
from boxwright.types import TensorInfo

__all__ = ["BACKEND", "PyTorchBackend"]


class PyTorchBackend:
    """A torch module behind the backend interface.

    Args:
        module: Takes (B, 3, H, W) float32 and returns the raw output tensor, or several.
        image_size: Network input (height, width) in pixels.
        output_name: Name of the raw output, or of each of them.
        options: Threads and device.
    """

    def __init__(
        self,
        module: Any,
        image_size: tuple[int, int],
        output_name: str | tuple[str, ...],
        options: BackendOptions,
    ) -> None:
        import torch

        choice = device_from_text(options.device)
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if choice.kind == "tensorrt":
            raise BackendError(
                f"--device {options.device}", "PyTorch has no TensorRT", "use --device cuda"
            )
        if choice.kind == "cuda" and choice.index >= seen:
            found = f"this PyTorch sees {seen or 'no'} CUDA device{'s' if seen > 1 else ''}"
            raise BackendError(f"--device {options.device}", found, "use --device cpu")
        self._torch = torch
        self._device = "cpu"
        if choice.kind != "cpu" and seen:
            self._device = f"cuda:{choice.index}" if choice.index else "cuda"
        self._module = module.to(self._device).eval()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        names = (output_name,) if isinstance(output_name, str) else output_name
        self._names = names
        self.description = f"pytorch {torch.__version__} ({self._device.upper()})"
        self.inputs = (TensorInfo("images", "float32", ("batch", 3, *image_size)),)
        self.outputs = tuple(TensorInfo(n, "float32", ("batch", "?", "?")) for n in names)
        self.metadata: dict[str, str] = {}

    def infer(self, feed: Feed) -> dict[str, npt.NDArray[Any]]:
        """Run once.

        Raises:
            BackendError: The module fails on this input.
        """
        tensor = self._torch.from_numpy(np.ascontiguousarray(feed["images"])).to(self._device)
        try:
            with self._torch.inference_mode():
                output = self._module(tensor)
        except RuntimeError as error:
            raise BackendError(
                "inference", f"PyTorch failed ({str(error)[:160]})", "check the input's shape"
            ) from None
        return self._on_host(output)

    def _on_host(self, output: Any) -> dict[str, npt.NDArray[Any]]:
        """Name the outputs; what the module returns beyond the names is left out."""
        values = output if isinstance(output, (tuple, list)) else [output]
        return {n: v.float().cpu().numpy() for n, v in zip(self._names, values, strict=False)}

    def infer_in_steps(self, feed: Feed) -> tuple[dict[str, npt.NDArray[Any]], StepTimes]:
        """Run once; on CUDA with events, which the device itself stamps between the copies.

        On the CPU the tensor is the feed's own memory: no copies.

        Raises:
            BackendError: The module fails on this input.
        """
        if self._device == "cpu":
            start = perf_counter()
            outputs = self.infer(feed)
            return outputs, StepTimes(0.0, (perf_counter() - start) * 1e3, 0.0)
        cuda = self._torch.cuda
        begin, fed, done, end = (cuda.Event(enable_timing=True) for _ in range(4))
        array = np.ascontiguousarray(feed["images"])
        try:
            with self._torch.inference_mode():
                begin.record()
                tensor = self._torch.from_numpy(array).to(self._device)
                fed.record()
                output = self._module(tensor)
                done.record()
                values = self._on_host(output)
                end.record()
        except RuntimeError as error:
            raise BackendError(
                "inference", f"PyTorch failed ({str(error)[:160]})", "check the input's shape"
            ) from None
        cuda.synchronize()
        marks = ((begin, fed), (fed, done), (done, end))
        return values, StepTimes(*(float(a.elapsed_time(b)) for a, b in marks))

    def close(self) -> None:
        """Free the module."""
        del self._module


def _missing() -> str | None:
    return None if importlib.util.find_spec("torch") else "export"


def _refuse(model: Path | bytes, options: BackendOptions) -> NoReturn:
    what = "model" if isinstance(model, bytes) else str(model)
    raise RequestError(what, "a checkpoint is opened by its source, not as a file", "use load()")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"torch": version("torch")}


BACKEND = BackendKind(
    name="pytorch",
    suffixes=(".pt", ".pth", ".safetensors"),
    missing=_missing,
    open=_refuse,
    open_bytes=_refuse,
    versions=_versions,
)
