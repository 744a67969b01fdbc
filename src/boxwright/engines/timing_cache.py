"""The timing cache: measured kernels, kept from build to build for one TensorRT and one GPU.

The file is TensorRT's own, so that trtexec reads and writes it, too; whose it is stands beside it
in `FILE.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import RequestError, SourceError
from boxwright.nvidia import Gpu
from boxwright.store import sha256_of_bytes, write_atomic

__all__ = ["CacheKey", "load_timing_cache", "save_timing_cache"]


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
