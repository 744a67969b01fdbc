"""What a benchmark is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxwright import catalog
from boxwright.errors import RequestError, SourceError
from boxwright.loading import Device, choose_runtime
from boxwright.triton_address import artifact_name

__all__ = ["BenchmarkSettings", "Entry", "entries_named"]

DEFAULT_ITERATIONS = 50


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to measure in one runtime.

    Attributes:
        path: The file; or the address of a served model, as text.
        runtime: Name of the runtime, or `auto`.
        name: As tables show it; "" takes the file's name.
        family, labels: Of a raw file that does not say.
        random_weights: It was made of a configuration.
    """

    path: Path | str
    runtime: str = "auto"
    name: str = ""
    family: str | None = None
    labels: str | None = None
    random_weights: bool = False


@dataclass(frozen=True, slots=True)
class BenchmarkSettings:
    """How to measure.

    Attributes:
        images: Pictures: files, folders, globs; empty: the sample's pages for the sample
            detector, generated pictures for all others.
        max_images: At most so many of them, evenly spaced.
        batches: Pictures in one call; empty: what a file is fixed to, otherwise 1.
        threads: CPU threads of one inference; None is the runtime's default (in throughput mode
            the usable cores shared out).
        device, cuda_graph, provider_options, engine_cache, profile_batch: As `load` takes them.
        iterations: Samples of each file in each setting; None: 50, unless `seconds` says.
        seconds: Measure each file at least so long instead.
        warmup: Calls before the first sample, at least 1.
        concurrency: None measures latency; a number measures throughput with so many in flight.
        baseline: Name of the file that the others are compared with; None: the first.
        memory: Measure peak memory, in a fresh process for each file and setting; of latency only.
        settle_s: Pause between files: idle threads of ONNX Runtime spin for about 50 ms.
        seed: Of the order of turns and of the bootstrap.
    """

    images: tuple[str, ...] = ()
    max_images: int = 64
    batches: tuple[int, ...] = ()
    threads: tuple[int | None, ...] = (None,)
    device: Device = "auto"
    cuda_graph: bool = True
    provider_options: Mapping[str, str] = field(default_factory=dict)
    engine_cache: Path | None = None
    profile_batch: tuple[int, int, int] | None = None
    iterations: int | None = None
    seconds: float | None = None
    warmup: int = 5
    concurrency: int | None = None
    baseline: str | None = None
    memory: bool = True
    settle_s: float = 0.1
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that contradict each other or are out of range.

        Raises:
            RequestError: One does.
        """
        if self.iterations is not None and self.seconds is not None:
            raise RequestError(
                "--iterations --seconds", "they say how long in two ways", "drop one of them"
            )
        counts = {"--iterations": self.iterations, "--warmup": self.warmup}
        counts["--concurrency"] = self.concurrency
        for option, value in counts.items():
            if value is not None and value < 1:
                raise RequestError(f"{option} {value}", "it is less than 1", "use e.g. 5")
        if self.seconds is not None and not 0 < self.seconds < 86400:
            raise RequestError(
                f"--seconds {self.seconds:g}", "it is not between 0 and a day", "use e.g. 10"
            )
        for option, values in (("--batch", self.batches), ("--threads", self.threads)):
            wrong = [v for v in values if v is not None and not 1 <= v <= 4096]
            if wrong:
                raise RequestError(f"{option} {wrong[0]}", "it is not 1 to 4096", "use e.g. 1")
        if not self.threads:
            raise RequestError("--threads", "it is empty", "use e.g. 2")

    @property
    def call_count(self) -> int:
        """Samples of each file, where they are counted."""
        return self.iterations or DEFAULT_ITERATIONS

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        values = dataclasses.asdict(self)
        if self.engine_cache is not None:
            values["engine_cache"] = str(self.engine_cache)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def gpu_settings_as_dict(self) -> dict[str, Any]:
        """Return `gpu_arguments` in JSON types."""
        cache = str(self.engine_cache) if self.engine_cache else None
        return {**self.gpu_arguments(), "engine_cache": cache}

    def gpu_arguments(self) -> dict[str, Any]:
        """Return what `load` is told of the device."""
        names = ("device", "cuda_graph", "provider_options", "engine_cache", "profile_batch")
        return {name: getattr(self, name) for name in names}


def entries_named(entries: list[Entry], device: Device) -> list[Entry]:
    """Return the entries with their runtimes chosen and names that tell them apart.

    Raises:
        RequestError: There is none, a runtime does not read a file, or one is given twice.
        SourceError: A file is missing.
    """
    if not entries:
        raise RequestError("benchmark", "there is no file to measure", "name one")
    chosen = [dataclasses.replace(e, runtime=_runtime(e, device)) for e in entries]
    if len({(e.path, e.runtime) for e in chosen}) < len(chosen):
        raise RequestError("benchmark", "a file is given twice for one runtime", "drop one")
    plain = [e.name or artifact_name(e.path) for e in chosen]
    paths = {name: {e.path for e, n in zip(chosen, plain, strict=True) if n == name}
             for name in plain}  # fmt: skip
    names = [
        name if len(paths[name]) == 1 else str(e.path)
        for e, name in zip(chosen, plain, strict=True)
    ]
    several = {name for name in names if names.count(name) > 1}
    return [
        dataclasses.replace(e, name=f"{name} ({e.runtime})" if name in several else name)
        for e, name in zip(chosen, names, strict=True)
    ]


def _runtime(entry: Entry, device: Device) -> str:
    if isinstance(entry.path, str):
        if entry.runtime not in ("auto", "triton"):
            raise RequestError(
                f"--runtime {entry.runtime}", f"{entry.path} runs on its server", "drop the option"
            )
        return "triton"
    if not entry.path.is_file():
        found = "it is a folder" if entry.path.is_dir() else "there is no such file"
        raise SourceError(str(entry.path), found, "check the path")
    suffix = entry.path.suffix.lower()
    if entry.runtime == "auto":
        return choose_runtime(suffix, device)
    kind = catalog.backend(entry.runtime)
    if suffix not in kind.suffixes:
        raise RequestError(
            f"--runtime {entry.runtime}",
            f"it does not read {entry.path.name}",
            f"it reads {', '.join(kind.suffixes)}",
        )
    return kind.name
