"""The driver: a thread that makes batches of decoded pictures and sends them down the lanes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import numpy as np

from boxwright.device_arrays import is_on_device
from boxwright.errors import ImageError
from boxwright.stream.crew import Crew
from boxwright.stream.decoding import (
    Encoded,
    Entry,
    Picture,
    Seen,
    decode_entry,
    decode_on_host,
    read_entry,
)
from boxwright.stream.gpu_decode import GpuDecoder
from boxwright.stream.lanes import Lane

__all__ = ["Driver"]

_LARGEST_CHUNK = 8
_BATCHES_AHEAD = 4  # of decoded pictures: the driver asks for more between its own steps only
_MOST_FILLERS = 4
_MOST_BYTES = 1 << 30  # of decoded pictures that wait
_MOST_BAD = 1024  # unreadable items that one batch may carry along
_POLL_S = 0.1

Chunk = list[Entry]


class _Stopped(Exception):  # noqa: N818 - it is no error
    """The consumer went away."""


@dataclass(slots=True)
class _Batch:
    """Entries in their order; the good ones go down the lane.

    Attributes:
        entries: All.
        good: Those that could be read.
        lane: Where they run; None when none could be read.
        held: Memory of the GPU's decoder.
        host_decoded: JPEG files that it left to OpenCV.
    """

    entries: list[Entry] = field(default_factory=list)
    good: list[Entry] = field(default_factory=list)
    lane: Lane | None = None
    held: Any = None
    host_decoded: int = 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if entry.image is not None:
            self.good.append(entry)


class Driver:
    """Runs items through crew and lanes; `results` yields lists of `Seen` in order."""

    def __init__(
        self,
        items: Iterable[Any],
        crew: Crew,
        lanes: list[Lane],
        batch: int,
        *,
        gpu: GpuDecoder | None = None,
        takes_device: bool = False,
        keep_images: bool = False,
    ) -> None:
        """Prepare; `results` starts it.

        Args:
            items: Paths or arrays.
            crew: Threads that read and fill.
            lanes: Ways through the backend.
            batch: Good pictures of a batch.
            gpu: Decoder of JPEG files.
            takes_device: The lanes take pictures that lie on the GPU.
            keep_images: Hand the pictures back.
        """
        self._takes_device = takes_device
        # Threads of its own: the crew's are needed to read, and to fill what the GPU leaves.
        self._codec = ThreadPoolExecutor(gpu.depth, "boxwright-codec") if gpu else None
        self._items, self._crew, self._batch, self._gpu = iter(items), crew, batch, gpu
        # Where filling is but a copy it waits for no decoder; on the host it is the letterbox.
        self._fillers = crew
        if takes_device:
            self._fillers = Crew(min(_MOST_FILLERS, max(2, crew.size // 4)), "boxwright-filler")
        self._keep_images = keep_images
        self._all_lanes = lanes
        self._free = deque(lanes)
        self._running: deque[_Batch] = deque()
        self._chunk = max(1, min(_LARGEST_CHUNK, batch // 4))
        ahead = _BATCHES_AHEAD * max(batch, crew.size)
        self._most_chunks = max(crew.size + 1, -(-ahead // self._chunk))
        self._decoding: deque[Future[Chunk]] = deque()
        self._mean_bytes = 0.0
        self._next_index = 0
        self._exhausted = False
        self._out: Queue[list[Seen] | BaseException | None] = Queue(2 * len(lanes))
        self._stop = Event()
        self.decoded_on_host = 0
        self._thread = Thread(target=self._drive, name="boxwright-driver", daemon=True)

    def results(self) -> Iterator[list[Seen]]:
        """Start, and yield lists of results in the order of the items.

        Raises:
            BackendError: The runtime failed; what came before was yielded.
        """
        self._thread.start()
        while True:
            found = self._out.get()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found

    def close(self) -> None:
        """Stop, wait for what runs, and give the lanes back; a second call does nothing."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._out.get(timeout=_POLL_S)
            except Empty:
                continue
        if self._codec is not None:
            self._codec.shutdown(cancel_futures=True)
        if self._fillers is not self._crew:
            self._fillers.close()

    # -- the thread

    def _drive(self) -> None:
        end: BaseException | None = None
        try:
            for lane in self._all_lanes:
                lane.attach_thread()
            for batch in self._decoded_batches():
                self._send(batch)
            while self._running:
                self._finish_oldest()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            end = error
        finally:
            self._abandon()
        with suppress(_Stopped):
            self._put(end)

    def _put(self, found: list[Seen] | BaseException | None) -> None:
        """Hand something out, unless the consumer goes away first."""
        while True:
            self._check_stop()
            try:
                self._out.put(found, timeout=_POLL_S)
            except Full:
                continue
            return

    def _abandon(self) -> None:
        """Wait for what is in flight after an error, so that the lanes can be used again."""
        for future in self._decoding:
            future.cancel()
        while self._running:
            batch = self._running.popleft()
            try:
                if batch.lane is not None:
                    batch.lane.finish()
            except Exception:  # noqa: BLE001 - the first error is the one that is told
                pass
            self._let_go(batch)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _top_up(self) -> None:
        """Have the next items decoded, as far as the window goes."""
        while (
            not self._exhausted
            and len(self._decoding) < self._most_chunks
            and (self._expected_bytes() < _MOST_BYTES or not self._decoding)
        ):
            items = list(islice(self._items, self._chunk))
            if not items:
                self._exhausted = True
                return
            chunk = [Entry(self._next_index + i, item) for i, item in enumerate(items)]
            self._next_index += len(chunk)
            self._decoding.append(self._crew.ask(partial(self._decode, chunk)))

    def _decode(self, chunk: Chunk) -> Chunk:
        read = decode_entry if self._gpu is None else read_entry
        for entry in chunk:
            if self._stop.is_set():
                break
            if not self._takes_device and is_on_device(entry.item):
                entry.error = str(
                    ImageError(f"item {entry.index}", "it lies on the GPU", "use --preprocess gpu")
                )
                continue
            read(entry)
        return chunk

    def _expected_bytes(self) -> float:
        """Return what the decoded pictures of the window hold, by the last ones' sizes."""
        return self._mean_bytes * self._chunk * len(self._decoding)

    def _entries(self) -> Iterator[Entry]:
        """Yield entries in order."""
        while True:
            self._top_up()
            if not self._decoding:
                return
            chunk: Chunk = self._wait(self._decoding.popleft())
            self._mean_bytes = sum(e.size_bytes for e in chunk) / len(chunk)
            self._top_up()
            yield from chunk

    def _wait(self, future: Future[Any]) -> Any:
        """Return a job's result, unless the consumer goes away first."""
        while True:
            self._check_stop()
            try:
                return future.result(_POLL_S)
            except FutureTimeoutError:
                if future.done():  # the job itself ran out of some time
                    raise

    def _batches(self) -> Iterator[_Batch]:
        """Yield full batches of good entries with the bad ones between them, and the rest."""
        batch = _Batch()
        for entry in self._entries():
            batch.add(entry)
            full = len(batch.good) == self._batch or len(batch.entries) >= _MOST_BAD + self._batch
            if full or (isinstance(entry.item, Picture) and entry.item.ends_batch):
                yield batch
                batch = _Batch()
        if batch.entries:
            yield batch

    def _decoded_batches(self) -> Iterator[_Batch]:
        """Yield batches whose pictures are decoded; the GPU works some batches ahead."""
        gpu, codec = self._gpu, self._codec
        if gpu is None or codec is None:
            yield from self._batches()
            return
        ahead: deque[Future[_Batch]] = deque()
        for batch in self._batches():
            ahead.append(codec.submit(self._decode_on_gpu, batch))
            if len(ahead) > gpu.depth:
                yield self._wait(ahead.popleft())
        while ahead:
            yield self._wait(ahead.popleft())

    def _decode_on_gpu(self, batch: _Batch) -> _Batch:
        assert self._gpu is not None
        files = [e for e in batch.good if isinstance(e.image, Encoded)]
        pictures, batch.held = self._gpu.decode([e.image for e in files])
        left = []
        for entry, picture in zip(files, pictures, strict=True):
            if picture is None:
                left.append(entry)
            else:
                entry.image = picture
        batch.host_decoded = decode_on_host(left)
        batch.good = [e for e in batch.good if e.image is not None]
        return batch

    def _send(self, batch: _Batch) -> None:
        """Put a batch into a lane and start it."""
        self.decoded_on_host += batch.host_decoded
        if not batch.good:
            self._running.append(batch)
            while len(self._running) > len(self._all_lanes):
                self._finish_oldest()
            return
        while not self._free:
            self._finish_oldest()
        lane = self._free.popleft()
        try:
            lane.reserve([e.image for e in batch.good])
            self._fill(lane, batch.good)
            lane.start()
        except BaseException:
            self._free.append(lane)
            self._let_go(batch)
            raise
        batch.lane = lane
        self._running.append(batch)
        if not self._keep_images:
            for entry in batch.good:
                entry.image = None

    def _fill(self, lane: Lane, entries: Chunk) -> None:
        """Have the lane filled, and wait for it; what lies on the GPU is there already."""
        here = [i for i, entry in enumerate(entries) if isinstance(entry.image, np.ndarray)]
        share = -(-len(here) // self._fillers.size)

        def fill(indexes: list[int]) -> None:
            for index in indexes:
                lane.fill(index, entries[index].image)

        jobs = [
            self._fillers.ask(partial(fill, here[first : first + share]), urgent=True)
            for first in range(0, len(here), max(share, 1))
        ]
        for job in jobs:
            self._wait(job)

    def _finish_oldest(self) -> None:
        """Wait for the oldest batch and hand its results out."""
        batch = self._running.popleft()
        found: dict[int, Any] = {}
        if batch.lane is not None:
            try:
                detections = batch.lane.finish()
            finally:
                self._free.append(batch.lane)
                self._let_go(batch)
            found = dict(zip([e.index for e in batch.good], detections, strict=True))
        results = [
            Seen(e.index, e.item, found.get(e.index), e.error, e.image) for e in batch.entries
        ]
        self._put(results)

    def _let_go(self, batch: _Batch) -> None:
        if self._gpu is not None and batch.held is not None:
            self._gpu.give_back(batch.held)
            batch.held = None
