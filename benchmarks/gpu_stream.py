"""Frames and JPEG files to detections through a plan: latency, rates, and what bounds them.

On a GPU machine (Python 3.10 or newer with the base dependencies, TensorRT and cuda-bindings; NVRTC
for --preprocess gpu, nvImageCodec and nvJPEG for --decode gpu):

    python benchmarks/gpu_stream.py yolo11n.fp16.end2end.plan pictures/ --out gpu_stream.json

The plan is an end-to-end one whose profile reaches --batch. Files are listed over and over, so that
they come from the page cache. Results are written after each step; a step that fails is recorded
with its error and the next one runs. Every path's detections are compared with the plain loop's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import Any

import numpy as np

from boxwright.backends.tensorrt import TensorRtBackend
from boxwright.boxes import iou_matrix
from boxwright.detector import Detector
from boxwright.device_arrays import DeviceArray
from boxwright.environment import package_versions
from boxwright.errors import BoxwrightError
from boxwright.freed_memory import keep_freed_memory
from boxwright.images import decode_image, expand_paths, read_image
from boxwright.loading import load
from boxwright.nvidia import cuda_result, cuda_runtime
from boxwright.preprocess import prepare
from boxwright.store import write_atomic
from boxwright.stream import Stream
from boxwright.stream.decoding import Encoded
from boxwright.stream.gpu_decode import open_decoder
from boxwright.types import Detections, Latency

_WARM_BATCHES = 6
_PART_FRAMES = 500
_PACKAGES = (
    "numpy", "opencv-python-headless", "tensorrt", "cuda-bindings", "nvidia-nvimgcodec-cu12",
    "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg-cu12", "nvidia-nvjpeg", "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("images", nargs="+", help="pictures, folders or globs")
    parser.add_argument("--files", type=int, default=4096, help="length of the list, with repeats")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lanes", type=int, default=3, help="batches in flight")
    parser.add_argument("--decoders", default="1,4,8,16", help="threads to try, a comma list")
    parser.add_argument("--hardware", default="1.0,0.7,0", help="shares of the JPEG engines to try")
    parser.add_argument("--codec-threads", type=int, default=4, help="of the GPU's decoder")
    parser.add_argument("--depth", type=int, default=2, help="batches that the GPU decodes at once")
    parser.add_argument(
        "--codec-options", default=":fancy_upsampling=1", help="of the GPU's decoder"
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="keep freed memory, as `predict` does"
    )
    parser.add_argument("--no-reuse", action="store_true", help="new memory for every picture")
    parser.add_argument("--iterations", type=int, default=2000, help="of the latency")
    parser.add_argument("--seconds", type=float, default=6.0, help="of every rate")
    parser.add_argument("--only", default="", help="words of which a step's name must hold one")
    parser.add_argument("--out", type=Path, default=Path("gpu_stream.json"))
    return parser.parse_args()


class Bench:
    """The detector, the files and the results."""

    def __init__(self, wishes: argparse.Namespace) -> None:
        self.wishes = wishes
        self.unique = expand_paths(wishes.images)
        self.files = list(islice(cycle(self.unique), max(wishes.files, len(self.unique))))
        self.images = [read_image(p) for p in self.unique]
        self.bytes = [p.read_bytes() for p in self.unique]
        self.detector: Detector = load(wishes.plan, quiet=True)
        backend = self.detector.backend
        assert isinstance(backend, TensorRtBackend)
        self.backend = backend
        self.threads = [int(n) for n in wishes.decoders.split(",")]
        self.expected = self.plain()
        self.result: dict[str, Any] = {
            "machine": machine(),
            "plan": wishes.plan.name,
            "description": self.detector.description,
            "settings": {k: str(v) for k, v in vars(wishes).items()},
            "files": {
                "unique": len(self.unique),
                "listed": len(self.files),
                "mean_bytes": float(np.mean([len(b) for b in self.bytes])),
                "mean_pixels": float(np.mean([i.shape[0] * i.shape[1] for i in self.images])),
            },
            "detections": sum(map(len, self.expected)),
            "steps": {},
            "errors": {},
        }

    def plain(self) -> list[Detections]:
        """Return what the plain loop finds in each file."""
        found: list[Detections] = []
        step = self.wishes.batch
        for first in range(0, len(self.images), step):
            found += self.detector(self.images[first : first + step])
        return found

    def stream(self, **how: Any) -> Stream:
        """Return a stream with the settings of the command line."""
        how = {"batch": self.wishes.batch, "lanes": self.wishes.lanes, "preprocess": "gpu", **how}
        return Stream(self.detector, **how)

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do one step, and write what there is."""
        words = [w for w in self.wishes.only.split(",") if w]
        if words and not any(w in name for w in words):
            return
        try:
            found = work()
            self.result["steps"][name] = found
            shown = {k: v for k, v in found.items() if not isinstance(v, (list, dict))}
            print(name, json.dumps(shown), json.dumps(found.get("agreement", "")), flush=True)
        except BoxwrightError as error:
            self.result["errors"][name] = str(error)
            print(f"{name}: {error}", flush=True)
        except (RuntimeError, TypeError, ValueError, AttributeError, OSError, AssertionError):
            self.result["errors"][name] = traceback.format_exc()  # the other steps still run
            traceback.print_exc()
        write_atomic(self.wishes.out, json.dumps(self.result).encode())


def machine() -> dict[str, Any]:
    """Return what it ran on."""
    fields = "name,driver_version,compute_cap,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        gpu = "nvidia-smi is missing"
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "gpu": gpu,
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **package_versions(_PACKAGES),
    }


# -- agreement


def compare(found: list[Detections | None], expected: list[Detections]) -> dict[str, Any]:
    """Match detections with the plain loop's: each to the best box of its class."""
    total = {"pictures": 0, "detections": 0, "unmatched": 0, "extra": 0, "other_pictures": 0}
    worst_iou, worst_score = 1.0, 0.0
    for mine, want in zip(found, expected, strict=False):
        total["pictures"] += 1
        total["detections"] += len(want)
        if mine is None:
            total["unmatched"] += len(want)
            total["other_pictures"] += 1
            continue
        free = set(range(len(mine)))
        lost = 0
        for index in range(len(want)):
            near = [j for j in free if mine.class_ids[j] == want.class_ids[index]]
            overlaps = iou_matrix(want.xyxy[index : index + 1], mine.xyxy[near])[0] if near else []
            best = int(np.argmax(overlaps)) if near else -1
            if best < 0 or overlaps[best] < 0.5:
                lost += 1
                continue
            free.discard(near[best])
            worst_iou = min(worst_iou, float(overlaps[best]))
            gap = abs(float(want.scores[index]) - float(mine.scores[near[best]]))
            worst_score = max(worst_score, gap)
        total["unmatched"] += lost
        total["extra"] += len(free)
        total["other_pictures"] += bool(lost or free)
    return {**total, "worst_iou": worst_iou, "worst_score_gap": worst_score}


# -- (a) latency of one frame


def latency(bench: Bench, preprocess: str) -> dict[str, Any]:
    """Time a uint8 frame on the host to boxes on the host, one after the other."""
    samples = []
    with bench.stream(batch=1, lanes=1, preprocess=preprocess) as stream:
        found: list[Detections | None] = [stream.detect_now([i])[0] for i in bench.images]
        for image in islice(cycle(bench.images), bench.wishes.iterations):
            begin = perf_counter()
            stream.detect_now([image])
            samples.append((perf_counter() - begin) * 1e3)
    return {**summary(1, samples), "agreement": compare(found, bench.expected)}


def latency_parts(bench: Bench) -> dict[str, Any]:
    """Say where a frame's time goes: by the host's clock, and by CUDA events.

    Each is the median of frames that pass one after the other: `host_*` of the way of `detect_now`,
    `gpu_*` of runs with events between, launch by launch or around the graph.
    """
    detector, spec = bench.detector, bench.detector.spec
    settings, batch = detector.settings(), detector.fixed_batch or 1
    (lane,) = bench.backend.frame_lanes(spec.preprocess, spec.input_size, 1)
    samples: dict[str, list[float]] = {}

    def took(name: str, since: float) -> float:
        now = perf_counter()
        samples.setdefault(name, []).append((now - since) * 1e3)
        return now

    def one(image: Any) -> None:
        begin = now = perf_counter()
        places = lane.reserve([image], batch)
        now = took("host_reserve_ms", now)
        lane._send([image])
        now = took("host_copy_and_send_ms", now)
        lane._launch()
        now = took("host_launch_ms", now)
        samples.setdefault("host_until_launched_ms", []).append((now - begin) * 1e3)
        outputs = lane.finish(patient=False)
        now = took("host_wait_ms", now)
        detector.postprocess(outputs, places, settings)
        took("host_postprocess_ms", now)
        took("host_whole_ms", begin)

    def apart(image: Any) -> None:
        lane.reserve([image], batch)
        begin = perf_counter()
        lane.fill(0, image)
        took("host_copy_alone_ms", begin)
        names = ("gpu_copy_in_ms", "gpu_letterbox_ms", "gpu_network_ms", "gpu_copy_out_ms")
        for name, value in zip(names, lane.run_in_parts(), strict=True):
            samples.setdefault(name, []).append(value)

    def around(image: Any) -> None:
        lane.reserve([image], batch)
        for name, value in zip(
            ("gpu_send_ms", "gpu_graph_ms"), lane.run_timed([image]), strict=True
        ):
            samples.setdefault(name, []).append(value)

    try:
        for work in (one, apart, around):
            for image in bench.images:
                work(image)
        samples.clear()
        for work in (one, apart, around):
            for image in islice(cycle(bench.images), _PART_FRAMES):
                work(image)
    finally:
        lane.close()
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    p95 = {name: float(np.percentile(values, 95)) for name, values in samples.items()}
    return {
        "frames": _PART_FRAMES, **medians, "runs_on": bench.backend.description, "p95": p95,
        "samples": samples,
    }  # fmt: skip


def equal_to_launches(bench: Bench) -> dict[str, Any]:
    """Hold frames through the graph against the same plan without graphs, number by number.

    Frames of all sizes in turns, some of them 4K, so that memory grows and graphs are dropped.
    """
    large = [np.tile(i, (6, 6, 1))[:2160, :3840].copy() for i in bench.images[:3]]
    images = bench.images[:20] + large + bench.images[20:40] + large[:1] + bench.images
    other, worst_px, worst_score = 0, 0.0, 0.0
    with load(bench.wishes.plan, quiet=True, cuda_graph=False) as plain:
        detectors = (plain, bench.detector)
        streams = [Stream(d, batch=1, lanes=1, preprocess="gpu") for d in detectors]
        try:
            for image in images:
                (want,), (mine,) = (s.detect_now([image]) for s in streams)
                if not np.array_equal(want.class_ids, mine.class_ids):
                    other += 1
                elif len(want):
                    worst_px = max(worst_px, float(np.abs(want.xyxy - mine.xyxy).max()))
                    worst_score = max(worst_score, float(np.abs(want.scores - mine.scores).max()))
        finally:
            for stream in streams:
                stream.close()
    return {
        "frames": len(images), "other_frames": other, "worst_px": worst_px,
        "worst_score_gap": worst_score, "runs_on": bench.backend.description,
    }  # fmt: skip


def latency_of_call(bench: Bench) -> dict[str, Any]:
    """Time the public call `detector(frame)`."""
    samples = []
    for image in bench.images:
        bench.detector(image)
    for image in islice(cycle(bench.images), bench.wishes.iterations):
        begin = perf_counter()
        bench.detector(image)
        samples.append((perf_counter() - begin) * 1e3)
    return summary(1, samples)


def summary(batch: int, samples: list[float]) -> dict[str, Any]:
    """Return samples in ms and what is derived from them."""
    facts = Latency("total", batch, tuple(samples)).as_dict()
    p95, p99 = (float(np.percentile(samples, q)) for q in (95, 99))
    return {**facts, "p95_ms": p95, "p99_ms": p99, "images_per_s": 1e3 * batch / np.mean(samples)}


# -- (b) the engine alone, and resident frames


def bare(bench: Bench, batch: int, contexts: int) -> dict[str, Any]:
    """Run the network alone, launches queued without waiting, in one or several contexts."""
    info = bench.backend.inputs[0]
    tensor = np.zeros((batch, 3, *bench.detector.spec.input_size), info.dtype)
    lanes = bench.backend.tensor_lanes(contexts)
    for lane in lanes:
        lane.start({info.name: tensor})
        lane.finish()

    def run(count: int) -> float:
        begin = perf_counter()
        for _ in range(count):
            for lane in lanes:
                lane.launch()
        for lane in lanes:
            lane.synchronize()
        return perf_counter() - begin

    once = run(5) / 5
    count = max(5, int(bench.wishes.seconds / 5 / once))
    samples = [run(count) for _ in range(5)]
    rates = [batch * contexts * count / s for s in samples]
    return {
        "batch": batch,
        "contexts": contexts,
        "images_per_s": float(np.median(rates)),
        "ms_per_batch": 1e3 * float(np.median(samples)) / count / contexts,
        "seconds": samples,
        "launches": count * contexts,
    }


def rate(bench: Bench, stream: Stream, items: list[Any]) -> dict[str, Any]:
    """Run items through a stream for some seconds, over and over."""
    found: dict[int, Detections | None] = {}
    unique, warm = len(bench.unique), _WARM_BATCHES * bench.wishes.batch
    stamps: list[float] = []
    begin, count = 0.0, 0
    before = getrusage(RUSAGE_SELF)
    results = stream.detect(cycle(items))
    for seen in results:
        if seen.index < unique:
            found[seen.index] = seen.detections
        if seen.index == warm:
            begin, before = perf_counter(), getrusage(RUSAGE_SELF)
        elif seen.index > warm:
            count += 1
            if count % bench.wishes.batch == 0:
                stamps.append(perf_counter() - begin)
                if stamps[-1] > bench.wishes.seconds and len(found) == unique:
                    break
    after = getrusage(RUSAGE_SELF)
    results.close()  # type: ignore[attr-defined]
    seconds = stamps[-1]
    ordered = [found[i] for i in sorted(found)]
    return {
        "runs_on": stream.description,
        "images_per_s": count / seconds,
        "count": count,
        "seconds": seconds,
        "left_to_opencv": stream.decoded_on_host,
        "user_us": 1e6 * (after.ru_utime - before.ru_utime) / count,
        "system_us": 1e6 * (after.ru_stime - before.ru_stime) / count,
        "page_faults": (after.ru_minflt - before.ru_minflt) / count,
        "switches": (after.ru_nvcsw - before.ru_nvcsw) / count,
        "agreement": compare(ordered, bench.expected),
        "stamps_s": [round(s, 5) for s in stamps],
    }


def resident(bench: Bench, decoders: int, preprocess: str) -> dict[str, Any]:
    """uint8 frames in the host's memory."""
    with bench.stream(decoders=decoders, preprocess=preprocess) as stream:
        return rate(bench, stream, list(bench.images))


def resident_on_gpu(bench: Bench, decoders: int) -> dict[str, Any]:
    """uint8 frames in the GPU's memory."""
    cuda = cuda_runtime()
    assert cuda is not None
    kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
    addresses, items = [], []
    for image in bench.images:
        address = int(cuda_result(cuda.cudaMalloc(image.nbytes), "cudaMalloc"))
        cuda_result(cuda.cudaMemcpy(address, image.ctypes.data, image.nbytes, kind), "cudaMemcpy")
        addresses.append(address)
        items.append(DeviceArray(address, image.shape, None, "uint8", 0, None))
    try:
        with bench.stream(decoders=decoders) as stream:
            return rate(bench, stream, items)
    finally:
        for address in addresses:
            cuda.cudaFree(address)


# -- (c) files


def files(bench: Bench, decoders: int, preprocess: str = "gpu") -> dict[str, Any]:
    """JPEG files, decoded by OpenCV."""
    with bench.stream(decoders=decoders, preprocess=preprocess) as stream:
        return rate(bench, stream, bench.files)


def files_on_gpu(bench: Bench, decoders: int, hardware: float) -> dict[str, Any]:
    """JPEG files, decoded on the GPU."""
    with bench.stream(decoders=decoders, decode="gpu", gpu_decoder=decoder(bench, hardware)) as s:
        return rate(bench, s, bench.files)


def decoder(bench: Bench, hardware: float) -> Any:
    """Open the GPU's decoder with the settings of the command line."""
    wishes = bench.wishes
    return open_decoder(
        depth=wishes.depth,
        threads=wishes.codec_threads,
        hardware=hardware,
        reuse=not wishes.no_reuse,
        options=wishes.codec_options,
    )


def plain_files(bench: Bench) -> dict[str, Any]:
    """The plain loop over files: read, decode, letterbox and infer one after the other."""
    count, batch = 0, bench.wishes.batch
    begin = perf_counter()
    for first in cycle(range(0, len(bench.files) - batch + 1, batch)):
        bench.detector(bench.files[first : first + batch])
        count += batch
        if perf_counter() - begin > bench.wishes.seconds:
            break
    return {"images_per_s": count / (perf_counter() - begin), "count": count}


# -- the stages alone


def in_threads(bench: Bench, threads: int, work: Callable[[int], Any]) -> dict[str, Any]:
    """Do the work of a picture over and over in threads; it is given the picture's number."""
    seconds, count = bench.wishes.seconds / 2, len(bench.unique)

    def loop(first: int) -> int:
        done = 0
        for index in cycle([(first + i) % count for i in range(count)]):
            work(index)
            done += 1
            if perf_counter() - begin > seconds:
                return done
        return done

    with ThreadPoolExecutor(threads) as pool:
        begin = perf_counter()
        total = sum(pool.map(loop, [i * count // threads for i in range(threads)]))
        took = perf_counter() - begin
    return {"threads": threads, "images_per_s": total / took, "count": total, "seconds": took}


def letterbox_on_host(bench: Bench, threads: int) -> dict[str, Any]:
    """OpenCV's letterbox and the normalisation, into float32."""
    spec = bench.detector.spec
    outs = [np.empty((3, *spec.input_size), np.float32) for _ in bench.images]
    return in_threads(
        bench,
        threads,
        lambda i: prepare(bench.images[i], spec.input_size, spec.preprocess, outs[i]),
    )


def upload(bench: Bench) -> dict[str, Any]:
    """Fill, copy and letterbox a batch of uint8 frames without the network, and each alone."""
    spec, batch = bench.detector.spec, bench.wishes.batch
    (lane,) = bench.backend.frame_lanes(spec.preprocess, spec.input_size, 1)
    images = list(islice(cycle(bench.images), batch))
    try:
        lane.reserve(images, batch)
        fills, uploads = [], []
        for _ in range(10):
            begin = perf_counter()
            for index, image in enumerate(images):
                lane.fill(index, image)
            fills.append((perf_counter() - begin) * 1e3)
        for _ in range(60):
            begin = perf_counter()
            lane.upload()
            lane.synchronize()
            uploads.append((perf_counter() - begin) * 1e3)
        uploads = uploads[10:]
        size = lane.upload_bytes
        tensor = lane.tensor()
    finally:
        lane.close()
    expected = np.empty((batch, 3, *spec.input_size), np.float32)
    for index, image in enumerate(images):
        prepare(image, spec.input_size, spec.preprocess, expected[index])
    std = np.array(spec.preprocess.std, np.float32)[:, None, None]
    levels = np.abs(tensor.astype(np.float32) - expected) * std / np.float32(spec.preprocess.scale)
    median = float(np.median(uploads))
    return {
        "batch": batch,
        "images_per_s": 1e3 * batch / median,
        "fill_ms_of_one_thread": float(np.median(fills)),
        "copy_and_letterbox_ms": median,
        "bytes": size,
        "gb_per_s": size / median / 1e6,
        "worst_grey_levels": float(levels.max()),
        "share_that_differs": float(np.mean(levels > 0.5)),
        "samples_ms": uploads,
    }


def decode_on_gpu(bench: Bench, hardware: float) -> dict[str, Any]:
    """nvImageCodec alone, on bytes in memory, and how far its pixels are from OpenCV's."""
    batch, depth = bench.wishes.batch, bench.wishes.depth
    data = [Encoded(p.name, b) for p, b in zip(bench.unique, bench.bytes, strict=True)]
    codec = decoder(bench, hardware)
    left = 0
    seconds = bench.wishes.seconds / 2

    def loop(first: int) -> int:
        nonlocal left
        done, number = 0, first
        while perf_counter() - begin < seconds:
            files = [data[(number + i) % len(data)] for i in range(batch)]
            pictures, held = codec.decode(files)
            left += sum(p is None for p in pictures)
            codec.give_back(held)
            done, number = done + batch, number + batch
        return done

    try:
        difference = pixels(bench, codec, data)
        with ThreadPoolExecutor(depth) as pool:
            begin = perf_counter()
            total = sum(pool.map(loop, range(0, depth * batch, batch)))
            took = perf_counter() - begin
    finally:
        codec.close()
    return {
        "images_per_s": total / took, "count": total, "seconds": took, "left_to_opencv": left,
        "hardware": hardware, "depth": depth, "pixels": difference,
    }  # fmt: skip


def pixels(bench: Bench, codec: Any, data: list[Encoded]) -> dict[str, Any]:
    """Compare the GPU's pixels with OpenCV's, in grey levels."""
    cuda = cuda_runtime()
    assert cuda is not None
    kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
    pictures, held = codec.decode(data[:64])
    worst, means, shares, none, sizes = 0, [], [], 0, 0
    for picture, image in zip(pictures, bench.images, strict=False):
        if picture is None:
            none += 1
            continue
        if tuple(picture.shape) != image.shape:
            sizes += 1
            continue
        pitch, width = picture.strides[0], image.shape[1] * 3
        rows = np.empty((image.shape[0], width), np.uint8)
        cuda_result(
            cuda.cudaMemcpy2D(
                rows.ctypes.data, width, picture.pointer, pitch, width, image.shape[0], kind
            ),
            "cudaMemcpy2D",
        )
        gap = np.abs(rows.reshape(image.shape)[..., ::-1].astype(np.int16) - image)
        worst = max(worst, int(gap.max()))
        means.append(float(gap.mean()))
        shares.append(float(np.mean(gap > 2)))
    codec.give_back(held)
    return {
        "pictures": len(means), "not_decoded": none, "other_size": sizes, "worst_levels": worst,
        "mean_levels": float(np.mean(means)) if means else None,
        "share_over_2_levels": float(np.mean(shares)) if shares else None,
    }  # fmt: skip


def postprocess(bench: Bench) -> dict[str, Any]:
    """Outputs on the host to detections, in one thread."""
    batch, detector = bench.wishes.batch, bench.detector
    tensor, places = detector.preprocess(list(islice(cycle(bench.images), batch)))
    outputs = {k: v.copy() for k, v in detector.infer(tensor, detector.settings()).items()}
    samples = []
    for _ in range(50):
        begin = perf_counter()
        detector.postprocess(outputs, places)
        samples.append((perf_counter() - begin) * 1e3)
    return {"batch": batch, "images_per_s": 1e3 * batch / np.median(samples), "samples_ms": samples}


def steps(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what is to be measured, the targets first."""
    batch, most = bench.wishes.batch, max(bench.threads)
    shares = [float(n) for n in bench.wishes.hardware.split(",") if n]
    yield "latency gpu preprocess", lambda: latency(bench, "gpu")
    yield "latency parts", lambda: latency_parts(bench)
    yield "latency equal to launches", lambda: equal_to_launches(bench)
    yield "latency host preprocess", lambda: latency(bench, "host")
    yield "latency detector call", lambda: latency_of_call(bench)
    yield "bare batch 1", lambda: bare(bench, 1, 1)
    yield f"bare batch {batch}", lambda: bare(bench, batch, 1)
    yield (
        f"bare batch {batch}, {bench.wishes.lanes} contexts",
        lambda: bare(bench, batch, bench.wishes.lanes),
    )
    yield "resident frames", lambda: resident(bench, min(8, most), "gpu")
    yield "resident frames on the gpu", lambda: resident_on_gpu(bench, 2)
    yield "resident frames, host preprocess", lambda: resident(bench, most, "host")
    for threads in reversed(bench.threads):
        yield f"files, cpu decode, {threads} decoders", lambda t=threads: files(bench, t)  # type: ignore[misc]
    for share in shares:
        yield f"files, gpu decode, hardware {share}", lambda s=share: files_on_gpu(bench, 4, s)  # type: ignore[misc]
    yield f"files, host preprocess, {most} decoders", lambda: files(bench, most, "host")
    yield "files, plain loop", lambda: plain_files(bench)
    yield "stage read", lambda: in_threads(bench, 4, lambda i: bench.unique[i].read_bytes())
    for threads in sorted({1, most}):
        yield (
            f"stage decode, {threads} threads",
            lambda t=threads: in_threads(  # type: ignore[misc]
                bench, t, lambda i: decode_image(bench.bytes[i], "")
            ),
        )
        yield (
            f"stage host letterbox, {threads} threads",
            lambda t=threads: letterbox_on_host(  # type: ignore[misc]
                bench, t
            ),
        )
    yield "stage upload", lambda: upload(bench)
    for share in shares:
        yield f"stage gpu decode, hardware {share}", lambda s=share: decode_on_gpu(bench, s)  # type: ignore[misc]
    yield "stage postprocess", lambda: postprocess(bench)


def main() -> int:
    """Run every step."""
    wishes = arguments()
    if wishes.keep_memory:
        keep_freed_memory()
    bench = Bench(wishes)
    for name, work in steps(bench):
        bench.step(name, work)
    bench.detector.close()
    return 1 if bench.result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
