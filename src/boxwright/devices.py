"""What `--device` names: `auto`, `cpu`, `cuda`, `cuda:1`, `tensorrt`, `tensorrt:1`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from boxwright.errors import RequestError, nearest_name

__all__ = ["Device", "DeviceChoice", "DeviceKind", "device_from_text"]

Device: TypeAlias = str  # as `--device` takes it; `device_from_text` reads it
DeviceKind: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt"]
_KINDS: tuple[DeviceKind, ...] = ("auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device.

    Attributes:
        kind: `auto` takes a GPU when the runtime has one; the others insist. `tensorrt` is ONNX
            Runtime's TensorRT provider; for a plan it is the same as `cuda`.
        index: Which GPU, as CUDA counts them.
    """

    kind: DeviceKind
    index: int = 0

    @property
    def insists_on_gpu(self) -> bool:
        """Whether nothing but a GPU will do."""
        return self.kind in ("cuda", "tensorrt")


def device_from_text(text: str) -> DeviceChoice:
    """Read a device.

    Raises:
        RequestError: There is no such device; the nearest is named.

    >>> device_from_text("cuda:1")
    DeviceChoice(kind='cuda', index=1)
    """
    match = re.fullmatch(r"(auto|cpu|cuda|tensorrt)(?::([0-9]{1,3}))?", text.strip().lower())
    kind = next((k for k in _KINDS if match and match.group(1) == k), None)
    if match is None or kind is None or (match.group(2) and kind in ("auto", "cpu")):
        near = nearest_name(text, _KINDS)
        raise RequestError(
            f"--device {text}",
            "known are auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N",
            f"did you mean {near}?" if near else "use one of them",
        )
    return DeviceChoice(kind, int(match.group(2) or 0))
