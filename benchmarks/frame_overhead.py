"""What the host does for one frame, uint8 pixels to boxes, without a GPU.

    python benchmarks/frame_overhead.py --rounds 5

The real `Stream(batch=1, lanes=1, preprocess="gpu").detect_now` runs on the real lane, context and
kernel launch; only CUDA, its driver and TensorRT are stand-ins whose calls cost nothing, and the
network has answered already. What is left is Python and the copy of the pixels into pinned memory
(here ordinary memory). The calls of cuda-bindings themselves, a few microseconds each, are not in
it: `benchmarks/gpu_stream.py --only "latency parts"` measures with them.

Frames of five sizes come in turns, so that no layout is the one before; `--one-size` has them all
480x640. The whole is timed first, then its parts one after the other; the median of each round's
medians is printed, and the least. `--profile` prints where the time goes by function.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import stream_overhead

from boxwright.detector import Detector
from boxwright.frame_lane import FrameLane
from boxwright.gpu_preprocess import Letterbox
from boxwright.plan_context import Plan, PlanContext
from boxwright.stream import Stream
from boxwright.types import HeadLayout, ModelSpec, Preprocess, Target, TensorInfo

_INPUT = (640, 640)
_PLACES = 300
_SIZES = ((480, 640), (640, 480), (427, 640), (640, 428), (500, 375))
_IMAGES = 120  # more than a processor's caches hold, as a camera's frames are new
_OUTPUTS = (
    TensorInfo("num_dets", "int32", (1, 1)),
    TensorInfo("det_boxes", "float32", (1, _PLACES, 4)),
    TensorInfo("det_scores", "float32", (1, _PLACES)),
    TensorInfo("det_classes", "int32", (1, _PLACES)),
)


class FreeCuda(stream_overhead.FreeCuda):
    """With graphs."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def cudaStreamEndCapture(self, *_: Any) -> tuple[int, int]:  # noqa: N802
        return 0, 5

    def cudaGraphInstantiate(self, *_: Any) -> tuple[int, int]:  # noqa: N802
        return 0, 6


class FreeTensorRt:
    """An engine and its context: shapes are known, a run is nothing."""

    def create_execution_context(self) -> FreeTensorRt:
        return self

    def set_input_shape(self, *_: Any) -> bool:
        return True

    def get_tensor_shape(self, name: str) -> tuple[Any, ...]:
        return next(o.shape for o in _OUTPUTS if o.name == name)

    def set_tensor_address(self, *_: Any) -> None:
        pass

    def execute_async_v3(self, *_: Any) -> bool:
        return True


class FreeBackend:
    """An opened plan whose lanes are real."""

    inputs = (TensorInfo("images", "float32", ("batch", 3, *_INPUT)),)
    outputs = _OUTPUTS
    largest_batch = None
    description = "nothing"

    def __init__(self, *, graph: bool) -> None:
        self._graph = graph
        self.lanes: list[FrameLane] = []
        self.contexts: list[PlanContext] = []

    def frame_lanes(self, rules: Preprocess, size: tuple[int, int], count: int) -> list[FrameLane]:
        plan = Plan(
            trt=None, cuda=FreeCuda(), log=SimpleNamespace(errors=[]), inputs=self.inputs,
            outputs=self.outputs, profile={}, device=0, wants_graph=self._graph,
        )  # fmt: skip
        kernel = free_letterbox(rules, size)
        self.contexts = [PlanContext(plan, FreeTensorRt(), "plan") for _ in range(count)]
        self.lanes = [FrameLane(plan, c, kernel, rules, size) for c in self.contexts]
        return self.lanes

    def close(self) -> None:
        pass


def free_letterbox(rules: Preprocess, size: tuple[int, int]) -> Letterbox:
    """Return the kernel with a driver that compiles and launches nothing."""
    from boxwright import gpu_preprocess

    driver = SimpleNamespace(
        cuModuleLoadData=lambda *_: (0, 1),
        cuModuleGetFunction=lambda *_: (0, 2),
        cuLaunchKernel=lambda *_: (0,),
    )
    gpu_preprocess.cuda_driver = lambda: driver  # type: ignore[attr-defined]
    gpu_preprocess.compile_source = lambda *_: b""
    return Letterbox(rules, size, "float32", "9.0")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=2000, help="of a round")
    parser.add_argument("--boxes", type=int, default=7, help="found in each frame")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-size", action="store_true", help="all frames are 480x640")
    parser.add_argument("--no-graph", action="store_true", help="as a plan without CUDA graphs")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    return parser.parse_args()


class Bench:
    """A detector whose GPU costs nothing, and frames."""

    def __init__(self, wishes: argparse.Namespace) -> None:
        self.wishes = wishes
        spec = ModelSpec(
            "free", "none", "detect", tuple(map(str, range(80))), _INPUT, Preprocess(), HeadLayout()
        )
        backend: Any = FreeBackend(graph=not wishes.no_graph)
        self.detector = Detector(backend, spec, Target(outputs="end2end", nms="efficient_nms"))
        rng = np.random.default_rng(0)
        sizes = _SIZES[:1] if wishes.one_size else _SIZES
        self.images = [
            rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8) for i in range(_IMAGES)
        ]
        self.stream = Stream(self.detector, batch=1, lanes=1, preprocess="gpu")
        self.lane: FrameLane = backend.lanes[0]
        for image in self.images:
            self.stream.detect_now([image])
        outputs = backend.contexts[0].outputs()
        for name, values in stream_overhead.answers(1, wishes.boxes).items():
            outputs[name][...] = values
        outputs["num_dets"][:] = wishes.boxes
        (found,) = self.stream.detect_now(self.images[:1])
        assert len(found) == wishes.boxes

    def whole(self, index: int) -> None:
        """Detect in one frame."""
        self.stream.detect_now([self.images[index]])

    def parts(self) -> Iterator[tuple[str, Callable[[int], Any]]]:
        """Yield parts of a frame's way, each with what to call with a frame's number."""
        images, lane, detector = self.images, self.lane, self.detector
        settings = detector.settings()
        yield "read", lambda i: detector.read(images[i])
        yield "reserve", lambda i: lane.reserve([images[i]], 1)

        places = lane.reserve(images[:1], 1)
        alike = [image for image in images if image.shape == images[0].shape]
        yield "copy and send", lambda i: lane._send([alike[i % len(alike)]])
        yield "  of it the copy", lambda i: lane.fill(0, alike[i % len(alike)])
        yield "launch", lambda _: lane._launch()
        yield "finish", lambda _: lane.finish(patient=False)
        outputs = lane.finish(patient=False)
        yield "postprocess", lambda _: detector.postprocess(outputs, places, settings)


def median_us(work: Callable[[int], Any], frames: int, start: Iterator[int]) -> float:
    """Return the median microseconds of a call; the frames go round."""
    samples = []
    for _ in range(frames):
        index = next(start) % _IMAGES
        begin = time.perf_counter()
        work(index)
        samples.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(samples)


def main() -> None:
    """Measure and print."""
    wishes = arguments()
    bench = Bench(wishes)
    start = count()
    if wishes.profile:
        profile = cProfile.Profile()
        profile.runcall(median_us, bench.whole, wishes.frames, start)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    times: dict[str, list[float]] = {}
    for _ in range(wishes.rounds):
        for name, work in [("whole", bench.whole), *bench.parts()]:
            times.setdefault(name, []).append(median_us(work, wishes.frames, start))
    for name, values in times.items():
        print(f"{name:18} {statistics.median(values):8.1f} µs a frame, least {min(values):.1f}")
    bench.stream.close()


if __name__ == "__main__":
    main()
