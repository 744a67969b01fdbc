"""What the interpreter costs a picture of the bulk path, without a GPU.

    python benchmarks/stream_overhead.py pictures/ --rounds 5

The real `Stream` with `decode="gpu", preprocess="gpu"` runs JPEG files through lanes whose CUDA,
codec, kernel and network cost nothing: what is left is Python, which all threads share. The network
answers with random boxes. Besides the whole, parts are timed by themselves in this thread, on
batches; `--profile` prints where the threads' time goes by function.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import os
import pstats
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from boxwright.detector import Detector
from boxwright.fleet.rows import row_from_detections
from boxwright.fleet.shard_files import bytes_from_rows
from boxwright.frame_lane import FrameLane
from boxwright.images import expand_paths
from boxwright.plan_context import Plan
from boxwright.preprocess import place
from boxwright.stream import Stream
from boxwright.stream.decoding import Encoded, Entry, read_entry
from boxwright.stream.gpu_decode import GpuDecoder
from boxwright.types import HeadLayout, ModelSpec, Preprocess, Target, TensorInfo

_SIZE = (640, 640)
_PLACES = 300  # of an end-to-end file's detections
_CLASSES = tuple(str(n) for n in range(80))


class FreeCuda:
    """Calls that cost and do nothing; memory is the host's."""

    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )

    def __init__(self) -> None:
        self._blocks: list[Any] = []

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        self._blocks.append(ctypes.create_string_buffer(size))
        return 0, ctypes.addressof(self._blocks[-1])

    cudaMallocHost = cudaMalloc  # noqa: N815

    def __getattr__(self, name: str) -> Callable[..., tuple[int, int]]:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        nothing = (0,) if "Create" not in name and "Get" not in name else (0, 0)
        setattr(self, name, lambda *_: nothing)
        return getattr(self, name)  # type: ignore[no-any-return]


class FreeImage:
    """A decoded picture that says where it lies."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        width = self.shape[1]
        return {
            "shape": self.shape,
            "strides": (width * 3, 3, 1),
            "typestr": "|u1",
            "data": (4096, False),
            "version": 3,
            "stream": 1,
        }


class FreeCodec:
    """Knows the size of every file already."""

    ColorSpec = SimpleNamespace(SRGB=1)
    BackendKind = SimpleNamespace(GPU_ONLY=1, HYBRID_CPU_GPU=2, HW_GPU_ONLY=3)

    def __init__(self, files: list[Path]) -> None:
        self.images: dict[int, FreeImage] = {}
        for file in files:
            data = file.read_bytes()
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            self.images[len(data)] = FreeImage(np.asarray(decoded).shape)
        self.CodeStream, self._other = self._stream, FreeImage((64, 64, 3))

    Backend = DecodeParams = staticmethod(lambda *_, **__: None)

    def _stream(self, data: bytes) -> Any:
        return _Stream(self.images.get(len(data), self._other))

    def Decoder(self, **_: object) -> Any:  # noqa: N802
        return SimpleNamespace(decode=lambda streams, **__: [s.image for s in streams])


class _Stream:
    codec_name, num_channels = "jpeg", 3
    __slots__ = ("image",)

    def __init__(self, image: FreeImage) -> None:
        self.image = image


class FreeContext:
    """A context whose network has answered already."""

    stream = 1

    def __init__(self, outputs: dict[str, Any]) -> None:
        self._outputs = outputs

    def attach_thread(self) -> None:
        pass

    def bind_own(self, *_: Any) -> int:
        return 4096

    def start_frames(self, *_: Any) -> None:
        pass

    def finish(self, *, patient: bool = False) -> dict[str, Any]:
        return dict(self._outputs)


class FreeBackend:
    """An opened plan that costs nothing."""

    inputs = (TensorInfo("images", "float32", ("batch", 3, *_SIZE)),)
    outputs = ()
    largest_batch = None
    description = "nothing"

    def __init__(self, cuda: FreeCuda, batch: int, found: int) -> None:
        self.cuda, self.answers = cuda, answers(batch, found)

    def frame_lanes(self, rules: Preprocess, size: tuple[int, int], count: int) -> list[FrameLane]:
        plan: Any = Plan.__new__(Plan)
        plan.inputs, plan.cuda, plan.device = self.inputs, self.cuda, 0
        kernel: Any = SimpleNamespace(launcher=lambda *_: lambda: None)
        contexts: list[Any] = [FreeContext(self.answers) for _ in range(count)]
        return [FrameLane(plan, c, kernel, rules, size) for c in contexts]

    def close(self) -> None:
        pass


def answers(batch: int, found: int) -> dict[str, Any]:
    """Return end-to-end outputs as TensorRT's NMS leaves them, 0 to `2 * found` boxes a picture."""
    rng = np.random.default_rng(5)
    scores = np.sort(rng.uniform(0.26, 1, (batch, _PLACES)).astype(np.float32))[:, ::-1]
    return {
        "num_dets": rng.integers(0, 2 * found, (batch, 1), np.int32, endpoint=True),
        "det_boxes": rng.uniform(0, 640, (batch, _PLACES, 4)).astype(np.float32),
        "det_scores": np.ascontiguousarray(scores),
        "det_classes": rng.integers(0, 80, (batch, _PLACES), np.int32),
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", nargs="+", help="JPEG files, folders or globs")
    parser.add_argument("--count", type=int, default=20_000, help="pictures, with repeats")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--decoders", type=int, default=2, help="threads that read")
    parser.add_argument("--boxes", type=int, default=7, help="found in a picture, on the mean")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    return parser.parse_args()


class Bench:
    """A detector that costs nothing, and files."""

    def __init__(self, wishes: argparse.Namespace) -> None:
        self.wishes = wishes
        files = expand_paths(wishes.images)
        self.files = list(islice(cycle(files), wishes.count))
        self.cuda, self.codec = FreeCuda(), FreeCodec(files)
        spec = ModelSpec("free", "none", "detect", _CLASSES, _SIZE, Preprocess(), HeadLayout())
        backend: Any = FreeBackend(self.cuda, wishes.batch, wishes.boxes)
        self.answers = backend.answers
        self.detector = Detector(backend, spec, Target(outputs="end2end", nms="efficient_nms"))

    def whole(self) -> dict[str, float]:
        """Run the stream once; microseconds of a picture, by the clock and of the processor."""
        decoder = GpuDecoder(self.codec, self.cuda)
        with Stream(
            self.detector,
            batch=self.wishes.batch,
            decoders=self.wishes.decoders,
            decode="gpu",
            preprocess="gpu",
            gpu_decoder=decoder,
        ) as stream:
            begin, before = time.perf_counter(), os.times()
            seen = deque(stream.detect(self.files), maxlen=1)
            wall, after = time.perf_counter() - begin, os.times()
        assert seen[0].index == len(self.files) - 1 and not seen[0].error
        user, system = after.user - before.user, after.system - before.system
        spent = {"clock": wall, "cpu": user + system, "cpu outside the kernel": user}
        return {name: 1e6 * seconds / len(self.files) for name, seconds in spent.items()}

    def parts(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yield parts of the way of one batch, each with what to call."""
        wishes, files = self.wishes, self.files[: self.wishes.batch]
        entries = [read_entry(Entry(i, f)) for i, f in enumerate(files)]
        encoded = [e.image for e in entries]
        assert all(isinstance(e, Encoded) for e in encoded)
        decoder = GpuDecoder(self.codec, self.cuda)
        pictures, _ = decoder.decode(encoded)
        (lane,) = self.detector.backend.frame_lanes(Preprocess(), _SIZE, 1)  # type: ignore[attr-defined]
        places = [
            place((p.shape[0], p.shape[1]), _SIZE, Preprocess()) for p in pictures if p is not None
        ]
        found = self.detector.postprocess(self.answers, places)
        job: Any = SimpleNamespace(format="jsonl", artifact_sha256="0" * 64, class_name=str)
        rows = [
            row_from_detections(i, str(f), d, "nothing")
            for i, (f, d) in enumerate(zip(files, found, strict=True))
        ]

        def reserve() -> None:
            lane.reserve(pictures, wishes.batch, device_is_rgb=True)
            lane.release()

        def decode() -> None:
            _, held = decoder.decode(encoded)
            decoder.give_back(held)

        yield "read", lambda: [read_entry(Entry(i, f)) for i, f in enumerate(files)]
        yield "decode", decode
        yield "reserve", reserve
        yield "postprocess", lambda: self.detector.postprocess(self.answers, places)
        yield (
            "fleet: rows",
            lambda: [row_from_detections(i, "a", d, "nothing") for i, d in enumerate(found)],
        )
        yield "fleet: JSON lines", lambda: bytes_from_rows(job, rows)
        yield "fleet: digests", lambda: [r.digest() for r in rows]


def profile(work: Callable[[], Any]) -> None:
    """Print where the time of all threads goes; they are profiled one by one, which costs."""
    profiles: list[cProfile.Profile] = []
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        mine = cProfile.Profile(time.thread_time)
        profiles.append(mine)
        mine.runcall(run, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign,assignment]
    try:
        main = cProfile.Profile(time.thread_time)
        main.runcall(work)
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
    stats = pstats.Stats(main)
    for one in profiles:
        stats.add(one)
    stats.sort_stats("tottime").print_stats(40)


def main() -> None:
    """Measure and print."""
    wishes = arguments()
    bench = Bench(wishes)
    if wishes.profile:
        profile(bench.whole)
        return
    times: dict[str, list[float]] = {}
    for _ in range(wishes.rounds):
        for name, value in bench.whole().items():
            times.setdefault(f"whole, {name}", []).append(value)
        for name, work in bench.parts():
            work()
            begin = time.thread_time()
            for _ in range(60):
                work()
            spent = time.thread_time() - begin
            times.setdefault(name, []).append(1e6 * spent / 60 / wishes.batch)
    for name, values in times.items():
        print(f"{name:30} {statistics.median(values):8.2f} µs a picture")
    print(f"{1e6 / statistics.median(times['whole, clock']):.0f} pictures/s")


if __name__ == "__main__":
    main()
