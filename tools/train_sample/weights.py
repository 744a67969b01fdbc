"""What a run leaves on disk, small enough to travel, and the moving average of the weights.

The training machine gives back files of at most 16 MiB, so the state keeps the optimiser's
moments and the average's distance from the weights in bfloat16. Files appear whole or not at all.
"""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

LARGEST_FILE_BYTES = 16 * 1024 * 1024
_SAFETENSORS_NAMES = {torch.float32: "F32", torch.int64: "I64"}


class Average:
    """Exponential moving average of a model's parameters and buffers.

    The decay grows as decay * (1 - exp(-step / ramp)), so that early averages are short.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.ramp = decay, ramp
        theirs, ours = model.state_dict(), self.model.state_dict()
        # The tensors of a state dictionary share memory with the model's, so this stays valid.
        floats = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        self._sources, self._targets = [theirs[n] for n in floats], [ours[n] for n in floats]
        others = [name for name in ours if name not in set(floats)]
        self._counters = [(theirs[n], ours[n]) for n in others]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model after step number `step` (from 1)."""
        decay = self.decay * (1 - math.exp(-step / self.ramp))
        torch._foreach_lerp_(self._targets, self._sources, 1 - decay)

    @torch.no_grad()
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averaged tensors on the host, contiguous, with the model's counters."""
        for source, target in self._counters:
            target.copy_(source)
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in self.model.state_dict().items()
        }


def pack_state(
    model: nn.Module, average: Average, optimiser: torch.optim.Optimizer, progress: dict[str, Any]
) -> dict[str, Any]:
    """Return what a second command needs to go on, on the host."""
    weights = {n: t.detach().to("cpu", copy=True) for n, t in model.state_dict().items()}
    offsets = {
        name: (tensor - weights[name]).to(torch.bfloat16)
        for name, tensor in average.state_dict().items()
        if tensor.is_floating_point()
    }
    moments = optimiser.state_dict()
    moments["state"] = {
        index: {
            key: value.detach().to("cpu", torch.bfloat16 if value.dim() else None)
            for key, value in entry.items()
        }
        for index, entry in moments["state"].items()
    }
    return {
        "model": weights,
        "average_offset": offsets,
        "optimiser": moments,
        "progress": progress,
    }


def unpack_state(
    state: Mapping[str, Any], model: nn.Module, average: Average, optimiser: torch.optim.Optimizer
) -> None:
    """Bring model, average and optimiser to a saved state; shapes and names must agree."""
    model.load_state_dict(state["model"])
    averaged = {
        name: tensor + state["average_offset"][name].float()
        if name in state["average_offset"]
        else tensor
        for name, tensor in state["model"].items()
    }
    average.model.load_state_dict(averaged)
    optimiser.load_state_dict(state["optimiser"])  # casts the moments to the parameters' dtype


def save_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def save_state(path: Path, state: Mapping[str, Any]) -> int:
    """Write a state and return its size in bytes."""
    part = path.with_name(path.name + ".part")
    torch.save(dict(state), part)
    size = part.stat().st_size
    part.replace(path)
    return size


def load_state(path: Path) -> dict[str, Any]:
    """Read a state; tensors and plain values only."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def safetensors_bytes(tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> bytes:
    """Return a safetensors file: header length, JSON header, tensors one behind the other.

    Format: https://github.com/huggingface/safetensors, section Format.
    """
    header: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    body = bytearray()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        start = len(body)
        body += tensor.numpy().tobytes()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, len(body)],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(body)
