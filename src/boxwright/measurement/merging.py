"""Benchmarks of several processes, each with a GPU of its own, as one result. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from boxwright.measurement.records import BenchmarkResult, Measured, Noise, Round
from boxwright.types import Latency, Span

__all__ = ["merged"]


def merged(results: Sequence[tuple[int, BenchmarkResult]], *, together: bool) -> BenchmarkResult:
    """Return one result of all: every name says its GPU.

    Speed-ups stay within a process, whose files ran in turns on one GPU; between GPUs there are
    none, since nothing was paired.

    Args:
        results: Number of the GPU and what was measured on it, in the order to show.
        together: All measured the same at once: a further row has the sum of their rates.

    Raises:
        ValueError: There is no result.
    """
    if not results:
        raise ValueError("there is no result to merge")
    first = results[0][1]
    measured = [_named(m, device) for device, result in results for m in result.measured]
    if together and len(results) > 1:
        for index in range(min(len(r.measured) for _, r in results)):
            measured.append(
                _together([(device, result.measured[index]) for device, result in results])
            )
    pictures = "; ".join(dict.fromkeys(r.pictures for _, r in results))
    gpus = ",".join(str(n) for n in dict.fromkeys(device for device, _ in results))
    return dataclasses.replace(
        first,
        environment={**first.environment, "devices": gpus},
        settings={**first.settings, "devices": gpus},
        pictures=pictures,
        measured=tuple(measured),
    )


def _on(name: str, runtime: str, where: str) -> str:
    """Return a name with its GPU, before the runtime that tells it from others.

    >>> _on("a.onnx (openvino)", "openvino", "GPU 1"), _on("a.plan", "tensorrt", "GPU 0")
    ('a.onnx [GPU 1] (openvino)', 'a.plan [GPU 0]')
    """
    plain = name.removesuffix(f" ({runtime})")
    return f"{plain} [{where}]" + (f" ({runtime})" if plain != name else "")


def _named(measured: Measured, device: int) -> Measured:
    faster = measured.speed_up
    if faster is not None:
        base = f"{faster.baseline} [GPU {device}]"
        faster = dataclasses.replace(faster, baseline=base)
    name = _on(measured.name, measured.runtime, f"GPU {device}")
    return dataclasses.replace(measured, name=name, speed_up=faster)


def _together(parts: Sequence[tuple[int, Measured]]) -> Measured:
    """Return the row of all GPUs: rates added, samples of all, the worst verdict."""
    first = parts[0][1]
    all_of = [m for _, m in parts]
    spans: dict[Span, Latency] = {
        span: Latency(
            span, first.batch, tuple(s for m in all_of for s in m.latencies[span].samples_ms)
        )
        for span in first.latencies
        if all(span in m.latencies for m in all_of)
    }
    rounds = [
        Round(same[0].number, same[0].started_s, round(sum(r.images_per_s or 0.0 for r in same), 4))
        for same in zip(*(m.rounds for m in all_of), strict=False)
    ]
    where = f"GPUs {'+'.join(str(device) for device, _ in parts)} together"
    return dataclasses.replace(
        first,
        name=_on(first.name, first.runtime, where),
        description=f"{first.description}, {len(parts)} GPUs",
        concurrency=sum(m.concurrency for m in all_of),
        latencies=spans,
        sample_rounds=tuple(n for m in all_of for n in m.sample_rounds),
        rounds=tuple(rounds),
        images_per_s=round(sum(m.images_per_s for m in all_of), 4),
        noise=_worst([m.noise for m in all_of]),
        peak_memory_mb=None,
        speed_up=None,
    )


def _worst(noises: Sequence[Noise]) -> Noise:
    order = ("noisy", "unknown", "quiet")
    return min(noises, key=lambda noise: order.index(noise.verdict))
