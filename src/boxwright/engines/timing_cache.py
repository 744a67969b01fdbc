"""The timing cache: measured kernels, kept from build to build for one TensorRT and one GPU.

The file is TensorRT's own, so that trtexec reads and writes it, too; whose it is stands beside it
in `FILE.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.errors import RequestError, SourceError
from boxwright.nvidia import Gpu, logger_class
from boxwright.store import locked, sha256_of_bytes, write_atomic

__all__ = [
    "CacheKey",
    "load_timing_cache",
    "merge_timing_caches",
    "refused_cache",
    "save_timing_cache",
]


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Whose timings they are; those of another GPU would choose the wrong kernels.

    Attributes:
        version: Of TensorRT.
        gpu, compute_capability: That they were measured on.
    """

    version: str
    gpu: str
    compute_capability: str

    @classmethod
    def of(cls, version: str, gpu: Gpu) -> CacheKey:
        """Return the key of this machine."""
        return cls(version, gpu.name, gpu.compute_capability)

    def __str__(self) -> str:
        return f"TensorRT {self.version} on {self.gpu} ({self.compute_capability})"


def merge_timing_caches(trt: Any, path: Path, parts: Sequence[Path]) -> None:
    """Put the timings of several processes into one file, and remove the parts.

    What is in the file already stays (`ITimingCache.combine`, TensorRT 8.6 and newer).

    Args:
        trt: TensorRT's module.
        path: The cache that all of them began with.
        parts: What each of them wrote; all of one TensorRT and GPU.

    Raises:
        RequestError: The parts are of different GPUs, or TensorRT does not take one.
        SourceError: A part cannot be read.
        StoreError: The file cannot be written, or another process writes it.
    """
    keys = [_owner(part) for part in parts]
    if len(set(keys)) > 1:
        raise refused_cache(path, f"its parts are of {' and of '.join(map(str, set(keys)))}")
    with locked(path, "wait for it; the parts are kept"):
        config = trt.Builder(logger_class(trt)()).create_builder_config()
        whole = config.create_timing_cache(load_timing_cache(path, keys[0]))
        for part, key in zip(parts, keys, strict=True):
            found = config.create_timing_cache(load_timing_cache(part, key))
            if whole is None or found is None or not whole.combine(found, False):
                raise refused_cache(path, f"TensorRT does not take {part.name}")
        save_timing_cache(path, bytes(memoryview(whole.serialize())), keys[0])
    for part in parts:
        part.unlink(missing_ok=True)
        _key_file(part).unlink(missing_ok=True)


def _owner(path: Path) -> CacheKey:
    """Return whose timings a cache of ours holds."""
    try:
        found = json.loads(_key_file(path).read_text(encoding="utf-8"))
        return CacheKey(found["version"], found["gpu"], found["compute_capability"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SourceError(
            str(_key_file(path)), "it is not the description of a timing cache", "remove the part"
        ) from None


def _key_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def load_timing_cache(path: Path, key: CacheKey) -> bytes:
    """Return the cache's bytes; none when there is no file yet.

    A file without a description beside it (trtexec's) is left to TensorRT to judge.

    Raises:
        RequestError: It is of another TensorRT or GPU.
        SourceError: It cannot be read.
    """
    if not path.exists():
        if not path.absolute().parent.is_dir():
            raise RequestError(
                f"--timing-cache {path}", "its folder does not exist", "make it first"
            )
        return b""
    try:
        data = path.read_bytes()
        described = _key_file(path)
        text = described.read_text(encoding="utf-8") if described.is_file() else ""
    except OSError as error:
        raise SourceError(str(path), f"it cannot be read ({error.strerror})", "check it") from None
    if not text:
        return data
    try:
        found = json.loads(text)
        owner = CacheKey(found["version"], found["gpu"], found["compute_capability"])
        same_bytes = found["sha256"] == sha256_of_bytes(data)
    except (ValueError, KeyError, TypeError):
        raise SourceError(
            str(described), "it is not the description of a timing cache", "remove it"
        ) from None
    if same_bytes and owner != key:
        raise refused_cache(path, f"it is of {owner}, this is {key}")
    return data


def refused_cache(path: Path, why: str) -> RequestError:
    """Return the error of a cache that cannot be used here."""
    return RequestError(f"--timing-cache {path}", why, "name another file, or remove this one")


def save_timing_cache(path: Path, data: bytes, key: CacheKey) -> None:
    """Write the cache and what it belongs to, each whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    facts = {
        "version": key.version,
        "gpu": key.gpu,
        "compute_capability": key.compute_capability,
        "sha256": sha256_of_bytes(data),
    }
    write_atomic(path, data)
    write_atomic(_key_file(path), (json.dumps(facts, indent=2) + "\n").encode())
