"""Does shards: a detector, and what reads pictures for it. The same in every engine.

The result of a shard is a function of its inputs, the artefact and the settings: batches never
cross its end, and their order is that of the listing. Several shards flow through one stream
without a pause between them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from boxwright.detector import Detector
from boxwright.errors import BackendError, ImageError, SourceError
from boxwright.fleet.inputs import FleetPicture
from boxwright.fleet.job import Pace, Settings
from boxwright.fleet.rows import Row, row_from_detections, row_from_error
from boxwright.loading import load
from boxwright.store import sha256_of_file
from boxwright.stream import Stream
from boxwright.stream.decoding import image_from_picture
from boxwright.types import Detections

__all__ = ["NOT_CHECKED", "BatchCheck", "Done", "Task", "Worker", "open_artifact"]

_CHECKED = 4  # pictures that are detected alone, too


@dataclass(frozen=True, slots=True)
class Task:
    """A shard to do.

    Attributes:
        shard: Its number.
        first: The number of its first picture.
        addresses: Of its pictures.
    """

    shard: int
    first: int
    addresses: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A shard that was done: one row an input, in their order."""

    task: Task
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class BatchCheck:
    """Whether a picture in a batch gives what it gives alone, tried on a few.

    Attributes:
        pictures: Tried.
        differ: Of them, whose detections differ in any bit.
        score: The largest difference of a score, 0..1; 1 where their number differs.
    """

    pictures: int = 0
    differ: int = 0
    score: float = 0.0

    def plus(self, other: BatchCheck) -> BatchCheck:
        """Return both together."""
        return BatchCheck(
            self.pictures + other.pictures, self.differ + other.differ, max(self.score, other.score)
        )


NOT_CHECKED = BatchCheck()


def open_artifact(path: Path, sha256: str, settings: Settings, pace: Pace) -> Detector:
    """Open the artefact as a job says, after checking that it is the very file.

    Raises:
        SourceError: It is another file than the job was begun with.
        BackendError: The runtime refuses it.
    """
    if path.is_file() and sha256_of_file(path) != sha256:
        raise SourceError(
            str(path), "it is not the file that the job was begun with", "put that file there"
        )
    return load(
        path,
        settings.runtime,  # type: ignore[arg-type]
        threads=pace.threads,
        device=settings.device,
        score_threshold=settings.score_threshold,
        iou_threshold=settings.iou_threshold,
        family=settings.family,
        cuda_graph=settings.cuda_graph,
        provider_options=dict(settings.provider_options),
        engine_cache=Path(pace.engine_cache) if pace.engine_cache else None,
        profile_batch=pace.profile_batch,
        quiet=True,
    )


class _Eye(Protocol):
    """Detects in pictures, in order."""

    def detect(self, items: Iterable[FleetPicture]) -> Iterator[tuple[Detections | None, str]]:
        """Yield what was found in each item, or None and why not."""
        ...

    def close(self) -> None: ...


class _InTurn:
    """Reads and detects one after the other: the least work where the network is small."""

    def __init__(self, detector: Detector, settings: Settings) -> None:
        self._detector, self._batch = detector, detector.fixed_batch or settings.batch
        self._class_ids = settings.class_ids

    def detect(self, items: Iterable[FleetPicture]) -> Iterator[tuple[Detections | None, str]]:
        errors: list[str] = []
        images: list[Any] = []
        for item in items:
            try:
                images.append(image_from_picture(item))
                errors.append("")
            except ImageError as error:
                errors.append(str(error))
            if len(images) == self._batch or item.ends_batch:
                yield from self._found(images, errors)
                errors, images = [], []
        yield from self._found(images, errors)

    def _found(
        self, images: list[Any], errors: list[str]
    ) -> Iterator[tuple[Detections | None, str]]:
        found = iter(self._detector(images, class_ids=self._class_ids) if images else ())
        for error in errors:
            yield (None, error) if error else (next(found), "")

    def close(self) -> None:
        pass


class _InThreads:
    """Reads ahead in threads, several batches in flight."""

    def __init__(self, detector: Detector, settings: Settings, decoders: int) -> None:
        self._stream = Stream(
            detector,
            batch=settings.batch,
            decoders=decoders,
            decode=settings.decode,
            preprocess=settings.preprocess,
            class_ids=settings.class_ids,
        )

    def detect(self, items: Iterable[FleetPicture]) -> Iterator[tuple[Detections | None, str]]:
        with contextlib.closing(self._stream.detect(items)) as answers:  # type: ignore[type-var]
            for seen in answers:
                yield seen.detections, seen.error

    def close(self) -> None:
        self._stream.close()


@dataclass(slots=True)
class _Shard:
    """A shard on its way: the rows that are known."""

    task: Task
    rows: list[Row] = field(default_factory=list)


class Worker:
    """Does shards; a context manager.

    Attributes:
        runs_on: Runtime, version and device, in words.
        check: Whether batches change results, tried on the first pictures.
    """

    def __init__(self, artifact: Path, sha256: str, settings: Settings, pace: Pace) -> None:
        """Open the artefact.

        Raises:
            SourceError: It is another file than the job was begun with.
            BackendError: The runtime refuses it.
        """
        self.check = NOT_CHECKED
        self._checked = False
        self._settings = settings
        self._pace = pace
        self._eye: _Eye | None = None
        self._detector = open_artifact(artifact, sha256, settings, pace)
        self.runs_on = self._detector.description

    def _look(self, items: Iterable[FleetPicture]) -> Iterator[tuple[Detections | None, str]]:
        """Detect; what reads and detects is opened when it is first needed.

        Raises:
            RequestError: The settings do not go together.
        """
        if self._eye is None:
            settings = self._settings
            on_gpu = "gpu" in (settings.decode, settings.preprocess)
            threads = self._pace.decoders or int(on_gpu)
            self._eye = (
                _InThreads(self._detector, settings, threads)
                if threads
                else _InTurn(self._detector, settings)
            )
        return self._eye.detect(items)

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Do shards, each yielded when its last picture is known; `tasks` is drawn as needed.

        A picture that cannot be looked at is a row with its error. Where one spoils its whole
        batch, the shards that were on their way are done again, picture by picture.

        Raises:
            RequestError: The settings do not go together.
            BackendError: The runtime fails.
        """
        # Before lanes are opened: those of a plan hold its contexts.
        source = self._compared(iter(tasks))
        waiting: deque[_Shard] = deque()
        while True:
            try:
                yield from self._flow(source, waiting)
                return
            except ImageError:
                spoilt, waiting = waiting, deque()
                for shard in spoilt:
                    yield Done(shard.task, self._one_by_one(shard.task))

    def _flow(self, source: Iterator[Task], waiting: deque[_Shard]) -> Iterator[Done]:
        def items() -> Iterator[FleetPicture]:
            for task in source:
                waiting.append(_Shard(task))
                yield from _pictures(task)

        for found, error in self._look(items()):
            shard = waiting[0]
            task, position = shard.task, len(shard.rows)
            shard.rows.append(self._row(task, position, found, error))
            if len(shard.rows) == len(task.addresses):
                yield Done(waiting.popleft().task, shard.rows)

    def _row(self, task: Task, position: int, found: Detections | None, error: str) -> Row:
        index, address = task.first + position, task.addresses[position]
        self.runs_on = self._detector.description  # a GPU tells more after the first call
        if found is None:
            return row_from_error(index, address, error, self.runs_on)
        return row_from_detections(index, address, found, self.runs_on)

    def _one_by_one(self, task: Task) -> list[Row]:
        rows = []
        for position, picture in enumerate(_pictures(task)):
            picture.ends_batch = True
            try:
                ((found, error),) = self._look([picture])
            except ImageError as refusal:
                found, error = None, str(refusal)
            rows.append(self._row(task, position, found, error))
        return rows

    def _compared(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """Return the tasks, after the first worker's first pictures were tried, once."""
        free = self._settings.batch > 1 and self._detector.fixed_batch is None
        first = None if self._checked or not free else next(tasks, None)
        self._checked = True
        if first is None:
            return tasks
        with contextlib.suppress(BackendError):  # a plan that does not take one picture
            self.check = _batch_check(self._detector, _pictures(first)[:_CHECKED])
        return chain([first], tasks)

    def close(self) -> None:
        """Free the runtime; a second call does nothing."""
        if self._eye is not None:
            self._eye.close()
        self._detector.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _pictures(task: Task) -> list[FleetPicture]:
    last = len(task.addresses) - 1
    return [
        FleetPicture(task.first + i, address, i == last) for i, address in enumerate(task.addresses)
    ]


def _batch_check(detector: Detector, pictures: Sequence[FleetPicture]) -> BatchCheck:
    """Detect in a few pictures together and alone.

    Raises:
        BackendError: The runtime fails.
    """
    images = []
    for picture in pictures:
        with contextlib.suppress(ImageError):
            images.append(image_from_picture(picture))
    try:
        alone = [detector([i])[0] for i in images]
        together = detector(images) if images else []
    except ImageError:
        return NOT_CHECKED  # it will be some row's error
    pairs = list(zip(alone, together, strict=True))
    return BatchCheck(
        len(pairs),
        sum(not _same(a, b) for a, b in pairs),
        max((_score_gap(a, b) for a, b in pairs), default=0.0),
    )


def _same(first: Detections, second: Detections) -> bool:
    return (
        first.xyxy.tobytes() == second.xyxy.tobytes()
        and first.scores.tobytes() == second.scores.tobytes()
        and first.class_ids.tobytes() == second.class_ids.tobytes()
    )


def _score_gap(first: Detections, second: Detections) -> float:
    if len(first) != len(second):
        return 1.0
    return float(np.abs(first.scores - second.scores).max(initial=0.0))
