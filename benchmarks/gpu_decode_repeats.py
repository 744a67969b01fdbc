"""Does the GPU's JPEG decoder give the same pixels twice? By decoder, threads and memory.

On a GPU machine with nvImageCodec, nvJPEG and cuda-bindings:

    python benchmarks/gpu_decode_repeats.py pictures/ --passes 6 --out gpu_decode_repeats.json

Each setting decodes all pictures in batches, pass after pass, in another order each time, and
counts pictures whose pixels are not those of its first pass; the pixels of settings are compared
with those of the first setting, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.device_arrays import DeviceArray
from boxwright.errors import BoxwrightError
from boxwright.images import expand_paths
from boxwright.nvidia import cuda_result, cuda_runtime
from boxwright.store import write_atomic
from boxwright.stream.decoding import Encoded
from boxwright.stream.gpu_decode import open_decoder

_SETTINGS: dict[str, dict[str, Any]] = {
    "as Stream decodes": {},
    "one batch at a time": {"depth": 1},
    "new memory for every picture": {"reuse": False},
    "one batch at a time, new memory": {"depth": 1, "reuse": False},
    "without the JPEG engines": {"hardware": 0.0},
    "without the JPEG engines, one batch at a time": {"hardware": 0.0, "depth": 1},
    "half on the JPEG engines": {"hardware": 0.5},
    "one thread of the processor": {"threads": 1},
    "without fancy upsampling": {"options": ""},
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", nargs="+", help="JPEG files, folders or globs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("gpu_decode_repeats.json"))
    return parser.parse_args()


def _digest(picture: DeviceArray) -> str:
    """Return a digest of a picture's pixels, without the gaps between rows."""
    cuda = cuda_runtime()
    assert cuda is not None and picture.strides is not None
    height, width = picture.shape[0], picture.shape[1] * 3
    rows = np.empty((height, width), np.uint8)
    kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    cuda_result(
        cuda.cudaMemcpy2D(
            rows.ctypes.data, width, picture.pointer, picture.strides[0], width, height, kind
        ),
        "cudaMemcpy2D",
    )
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _passes(files: list[Encoded], wishes: argparse.Namespace, how: dict[str, Any]) -> list[Any]:
    """Return the digests of each pass, by name; None where the GPU leaves a file."""
    decoder = open_decoder(**how)
    found: list[dict[str, str | None]] = []

    def decode(batch: list[Encoded]) -> dict[str, str | None]:
        pictures, held = decoder.decode(batch)
        pairs = zip(batch, pictures, strict=True)
        seen = {f.name: None if p is None else _digest(p) for f, p in pairs}
        decoder.give_back(held)
        return seen

    try:
        with ThreadPoolExecutor(decoder.depth) as pool:
            for number in range(wishes.passes):
                order = random.Random(number).sample(files, len(files))
                step = wishes.batch
                batches = [order[i : i + step] for i in range(0, len(order), step)]
                merged: dict[str, str | None] = {}
                for seen in pool.map(decode, batches):
                    merged |= seen
                found.append(merged)
    finally:
        decoder.close()
    return found


def main() -> None:
    """Run it."""
    wishes = _arguments()
    paths = [p for p in expand_paths(wishes.images) if p.suffix.lower() in (".jpg", ".jpeg")]
    files = [Encoded(p.name, p.read_bytes()) for p in paths]
    result: dict[str, Any] = {"pictures": len(files), "passes": wishes.passes, "settings": {}}
    first: dict[str, str | None] = {}
    for name, how in _SETTINGS.items():
        try:
            found = _passes(files, wishes, how)
        except (BoxwrightError, RuntimeError, TypeError) as error:
            result["settings"][name] = {"error": str(error)}
            print(f"{name}: {error}", flush=True)
            continue
        first = first or found[0]
        facts = {
            "unlike the first pass": [sum(one[n] != found[0][n] for n in one) for one in found[1:]],
            "unlike the first setting": sum(found[0][n] != first[n] for n in first),
            "left to the host": sum(d is None for d in found[0].values()),
        }
        result["settings"][name] = facts
        print(f"{name}: {facts}", flush=True)
        write_atomic(wishes.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
