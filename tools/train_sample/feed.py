"""Generates canvases in many processes and hands them to the training process.

Each worker owns a few slots of one anonymous shared mapping (no /dev/shm needed) and a pipe:
it says which slot is full, the parent's thread copies the slot into pinned memory and gives it
back. The training thread alone writes the ring, on its own stream, so no canvas is ever torn.
Workers are forked before CUDA starts; a worker that dies ends its pipe, which the thread sees.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2
import data
import numpy as np
import numpy.typing as npt
import torch

SLOTS = 3  # per worker: one being filled, one being copied, one spare


@dataclass(frozen=True, slots=True)
class Plan:
    """What the workers do.

    Attributes:
        generator: `module:function` of the page generator.
        workers: Processes.
        held_out: Pages of seeds 0.. made first, for the evaluation.
        first_seed: Of the training pages; worker w takes first_seed + w, + w + workers, …
        crops: Crops beside the whole page.
        pages: Pages of one chunk.
        cjk_share: Share of the pages, held-out ones too, with CJK lettering.
    """

    generator: str
    workers: int
    held_out: int
    first_seed: int
    crops: int
    pages: int
    cjk_share: float = 0.0

    @property
    def chunk_canvases(self) -> int:
        """Most canvases of one chunk."""
        return self.pages * (1 + self.crops)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The labels of one full slot.

    Attributes:
        held_out: For the evaluation, not for training.
        worker, slot: Where the pictures lie.
        boxes: (N, MAX_BOXES, 4) float32 xyxy in canvas pixels.
        flags: (N, MAX_BOXES) uint8, NONE after the last box.
        extents: (N, 2) int32 width and height of the picture in the canvas.
        seeds: (N,) int64.
        next_seed: The first training seed that this worker did not use.
        failures: (seed, traceback) of pages that could not be made.
        dropped: Canvases that held more than MAX_BOXES boxes.
        asked: Pages this chunk answers for, those that failed included.
    """

    held_out: bool
    worker: int
    slot: int
    boxes: data.FloatArray
    flags: data.ByteArray
    extents: npt.NDArray[np.int32]
    seeds: npt.NDArray[np.int64]
    next_seed: int
    failures: tuple[tuple[int, str], ...]
    dropped: int
    asked: int


@dataclass(slots=True)
class Staged:
    """A chunk whose pictures lie in (pinned) host memory; `copied` is set by whoever reads it."""

    images: torch.Tensor
    copied: torch.cuda.Event | None = None
    chunk: Chunk | None = None


@dataclass(slots=True)
class Counts:
    """What the workers delivered so far."""

    pages: int = 0
    canvases: int = 0
    dropped: int = 0
    failed: int = 0
    next_seed: int = 0
    dead_workers: list[int] = field(default_factory=list)
    failures: list[tuple[int, str]] = field(default_factory=list)


class Feed:
    """The workers, and the thread that stages what they make.

    Create it before anything touches CUDA; then `start` the thread; then `take` and `release`.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.first_seed < data.HELD_OUT_END:
            raise ValueError(f"training seeds start at {data.HELD_OUT_END}, not {plan.first_seed}")
        if plan.held_out > data.HELD_OUT_END:
            raise ValueError(f"at most {data.HELD_OUT_END} pages are held out")
        self.plan = plan
        self.counts = Counts(next_seed=plan.first_seed)
        generate = data.load_generator(plan.generator)  # before the fork: an error shows here
        shape = (plan.workers, SLOTS, plan.chunk_canvases, data.CANVAS, data.CANVAS, 3)
        self._memory = mmap.mmap(-1, int(np.prod(shape, dtype=np.int64)))
        self._slots: data.ByteArray = np.frombuffer(self._memory, np.uint8).reshape(shape)
        self._pipes: dict[Connection, int] = {}
        self._processes = []
        context = multiprocessing.get_context("fork")  # the mapping is inherited, not named
        for worker in range(plan.workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(theirs, self._slots[worker], plan, worker, generate, os.getpid()),
                daemon=True,
            )
            process.start()
            theirs.close()  # so that the pipe ends when the worker does
            self._pipes[ours] = worker
            self._processes.append(process)
        self._ready: queue.Queue[Staged] = queue.Queue()
        self._free: queue.Queue[Staged] = queue.Queue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, device: torch.device, buffers: int = 8) -> None:
        """Start staging; `buffers` chunks may wait for the training thread."""
        shape = (self.plan.chunk_canvases, data.CANVAS, data.CANVAS, 3)
        for _ in range(buffers):
            pinned = device.type == "cuda"
            self._free.put(Staged(torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)))
        self._thread = threading.Thread(target=self._stage, name="feed", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float = 0.0) -> Staged | None:
        """Return a staged chunk, or None when none comes in time.

        Raises:
            RuntimeError: The staging thread failed.
        """
        if self._error is not None:
            raise RuntimeError("the feed stopped") from self._error
        try:
            return self._ready.get(timeout=timeout_s) if timeout_s else self._ready.get_nowait()
        except queue.Empty:
            return None

    def release(self, staged: Staged, device: torch.device) -> None:
        """Give a chunk's memory back; copies queued on the current stream may still read it."""
        if device.type == "cuda":
            staged.copied = torch.cuda.Event()
            staged.copied.record()
        self._free.put(staged)

    @property
    def workers_alive(self) -> int:
        """How many workers still deliver."""
        return len(self._pipes)

    def stop(self) -> None:
        """End the thread and the workers; harmless when called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(timeout=5)

    def _stage(self) -> None:
        try:
            while not self._stopping.is_set() and self._pipes:
                for pipe in wait(list(self._pipes), timeout=0.2):
                    assert isinstance(pipe, Connection)
                    self._receive(pipe)
        except BaseException as error:  # noqa: BLE001 - raised again in the training thread
            self._error = error

    def _receive(self, pipe: Connection) -> None:
        try:
            chunk: Chunk = pipe.recv()
        except (EOFError, ConnectionResetError):
            self.counts.dead_workers.append(self._pipes.pop(pipe))
            return
        staged = self._wait_for_buffer()
        if staged is None:
            return
        count = len(chunk.seeds)
        if staged.copied is not None:
            staged.copied.synchronize()
        staged.images[:count].copy_(torch.from_numpy(self._slots[chunk.worker, chunk.slot, :count]))
        staged.chunk = chunk
        try:
            pipe.send(chunk.slot)
        except OSError:
            self.counts.dead_workers.append(self._pipes.pop(pipe))
        counts = self.counts
        counts.failed += len(chunk.failures)
        counts.failures += chunk.failures[: max(0, 20 - len(counts.failures))]
        counts.dropped += chunk.dropped
        if not chunk.held_out:
            counts.pages += len(np.unique(chunk.seeds))
            counts.canvases += count
            counts.next_seed = max(counts.next_seed, chunk.next_seed)
        self._ready.put(staged)

    def _wait_for_buffer(self) -> Staged | None:
        while not self._stopping.is_set():
            try:
                return self._free.get(timeout=0.2)
            except queue.Empty:
                continue
        return None


def _seeds(plan: Plan, worker: int) -> Iterator[tuple[bool, list[int]]]:
    """Yield the seeds of each chunk of a worker: its share of the held-out ones, then training."""
    held_out = list(range(worker, plan.held_out, plan.workers))
    for start in range(0, len(held_out), plan.pages):
        yield True, held_out[start : start + plan.pages]
    seed = plan.first_seed + worker
    while True:
        yield False, [seed + i * plan.workers for i in range(plan.pages)]
        seed += plan.pages * plan.workers


def _work(
    pipe: Connection,
    slots: data.ByteArray,
    plan: Plan,
    worker: int,
    generate: data.Generator,
    parent: int,
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)  # the training process goes first when cores are short
    cv2.setNumThreads(0)
    free = deque(range(SLOTS))
    for held_out, seeds in _seeds(plan, worker):
        while not free:
            if pipe.poll(2.0):
                free.append(pipe.recv())
            elif os.getppid() != parent:
                return
        try:
            _fill(pipe, slots, free.popleft(), plan, worker, generate, held_out, seeds)
        except OSError:  # the parent closed the pipe
            return


def _fill(
    pipe: Connection,
    slots: data.ByteArray,
    slot: int,
    plan: Plan,
    worker: int,
    generate: data.Generator,
    held_out: bool,
    seeds: list[int],
) -> None:
    canvases: list[tuple[int, data.Canvas]] = []
    failures: list[tuple[int, str]] = []
    for seed in seeds:
        try:
            made = (
                [data.page_canvas(generate, seed, plan.cjk_share)]
                if held_out
                else data.training_canvases(generate, seed, plan.crops, plan.cjk_share)
            )
        except Exception:  # noqa: BLE001 - one bad page must not end a run; it is counted and named
            failures.append((seed, traceback.format_exc(limit=-4)))
            continue
        canvases += [(seed, canvas) for canvas in made]
    fitting = [(s, c) for s, c in canvases if len(c.boxes) <= data.MAX_BOXES]
    count = len(fitting)
    boxes = np.zeros((count, data.MAX_BOXES, 4), np.float32)
    flags = np.zeros((count, data.MAX_BOXES), np.uint8)
    for i, (_, canvas) in enumerate(fitting):
        slots[slot, i] = canvas.image
        boxes[i, : len(canvas.boxes)] = canvas.boxes
        flags[i, : len(canvas.flags)] = canvas.flags
    pipe.send(
        Chunk(
            held_out,
            worker,
            slot,
            boxes,
            flags,
            np.array([c.extent for _, c in fitting], np.int32).reshape(-1, 2),
            np.array([s for s, _ in fitting], np.int64),
            plan.first_seed if held_out else max(seeds) + 1,
            tuple(failures),
            len(canvases) - count,
            len(seeds),
        )
    )


def send(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy a small array to the device without waiting for the work queued there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":  # pageable memory would make the host wait
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.clone()


class Ring:
    """Canvases on the training device, the oldest overwritten by the newest.

    Only the training thread touches it, so every read is ordered after the write before it.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self.filled, self._next = 0, 0
        side = data.CANVAS
        self.images = torch.empty((capacity, side, side, 3), dtype=torch.uint8, device=device)
        self.boxes = torch.zeros((capacity, data.MAX_BOXES, 4), device=device)
        self.flags = torch.zeros((capacity, data.MAX_BOXES), dtype=torch.uint8, device=device)
        self.extents = torch.zeros((capacity, 2), dtype=torch.int32, device=device)
        self._used = np.zeros(capacity, np.int64)  # rows of boxes that hold one, on the host

    def add(self, images: torch.Tensor, chunk: Chunk) -> None:
        """Write the first len(chunk.seeds) pictures and their labels."""
        start, count = 0, len(chunk.seeds)
        while start < count:
            at = self._next
            run = min(count - start, self.capacity - at)
            here, there = slice(at, at + run), slice(start, start + run)
            self.images[here].copy_(images[there], non_blocking=True)
            self.boxes[here] = send(chunk.boxes[there], self.device)
            self.flags[here] = send(chunk.flags[there], self.device)
            self.extents[here] = send(chunk.extents[there], self.device)
            self._used[here] = (chunk.flags[there] != data.NONE).sum(axis=1)
            self._next = (at + run) % self.capacity
            self.filled = max(self.filled, min(self.capacity, at + run))
            start += run

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw canvases with replacement.

        Returns:
            images (B, 640, 640, 3) uint8, boxes (B, M, 4), flags (B, M) and extents (B, 2), where
            M is the most boxes of these canvases, rounded up to a multiple of 8.
        """
        picks = rng.integers(0, self.filled, count)
        rows = int(min(data.MAX_BOXES, max(8, -(-int(self._used[picks].max()) // 8) * 8)))
        index = send(picks, self.device)
        return (
            self.images[index],
            self.boxes[index, :rows],
            self.flags[index, :rows],
            self.extents[index],
        )


class HeldOut:
    """The held-out pages, on the host, in the order of their seeds."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[torch.Tensor, data.FloatArray, data.ByteArray]] = {}
        self.answered = 0  # pages that came, failed or were dropped

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, images: torch.Tensor, chunk: Chunk) -> None:
        """Copy a chunk's pages."""
        self.answered += chunk.asked
        for i, seed in enumerate(chunk.seeds.tolist()):
            used = chunk.flags[i] != data.NONE
            self._pages[seed] = (images[i].clone(), chunk.boxes[i][used], chunk.flags[i][used])

    def first(
        self, count: int
    ) -> tuple[list[torch.Tensor], list[data.FloatArray], list[data.ByteArray], list[int]]:
        """Return images, boxes, flags and seeds of the `count` lowest seeds."""
        seeds = sorted(self._pages)[:count]
        pages = [self._pages[seed] for seed in seeds]
        return [p[0] for p in pages], [p[1] for p in pages], [p[2] for p in pages], seeds


def wait_until_filled(
    feed: Feed, ring: Ring, held_out: HeldOut, minimum: int, limit_s: float
) -> None:
    """Block until the ring holds `minimum` canvases and all held-out pages are here.

    Raises:
        RuntimeError: It took longer than `limit_s`, or every worker died.
    """
    began = time.monotonic()
    while True:
        drain(feed, ring, held_out, timeout_s=0.5)
        if ring.filled >= minimum and held_out.answered >= feed.plan.held_out:
            return
        waited_s = time.monotonic() - began
        late = waited_s > limit_s
        if late and ring.filled >= minimum:
            print(f"only {len(held_out)} held-out pages came in time", file=sys.stderr, flush=True)
            return
        if late or (not feed.workers_alive and ring.filled < minimum):
            raise RuntimeError(
                f"{ring.filled} of {minimum} canvases after {waited_s:.0f} s; "
                f"workers dead: {feed.counts.dead_workers}; failures: {feed.counts.failures[:2]}"
            )


def drain(feed: Feed, ring: Ring, held_out: HeldOut, timeout_s: float = 0.0, most: int = 4) -> int:
    """Move staged chunks into the ring, at most `most`; return how many."""
    for done in range(most):
        staged = feed.take(timeout_s if done == 0 else 0.0)
        if staged is None:
            return done
        assert staged.chunk is not None
        if staged.chunk.held_out:
            held_out.add(staged.images, staged.chunk)
        else:
            ring.add(staged.images, staged.chunk)
        feed.release(staged, ring.device)
    return most
