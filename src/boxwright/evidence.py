"""Evidence: how well and how fast the files of a run are, in each runtime, and a few pictures.

What was measured before and depends on nothing that changed is taken from the report that is there.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from boxwright import catalog
from boxwright.benchmark import BenchmarkSettings, Entry, benchmark
from boxwright.datasets import Dataset, Item
from boxwright.detector import Detector
from boxwright.environment import describe_environment, package_versions
from boxwright.errors import ImageError
from boxwright.evaluate import evaluate
from boxwright.images import read_image
from boxwright.loading import load
from boxwright.measurement.records import BenchmarkResult
from boxwright.outcome import Listener
from boxwright.plan import hash_of
from boxwright.recipe import Recipe
from boxwright.report import SOURCE, Evaluated, Made, Report, Shown
from boxwright.significance import Matches, change, default_resamples, interval
from boxwright.types import Image

__all__ = ["Evidence", "installed_runtimes"]

_MOST_DRAWS = 500  # of the bootstrap
_KEY = 3  # raised when what is measured changes its meaning
_SIDE_PX = 640  # of the report's pictures
_QUALITY = 80
_PICTURES = 32  # that latency is measured on


def installed_runtimes(wanted: Sequence[str] = (), option: str = "--runtimes") -> tuple[str, ...]:
    """Return the installed runtimes of .onnx files, or the wanted ones of them.

    Raises:
        MissingExtraError: A wanted one is not installed.
    """
    names = wanted or [n for n in catalog.backend_names() if ".onnx" in catalog.backend(n).suffixes]
    found = []
    for name in names:
        extra = catalog.backend(name).missing()
        if extra is None:
            found.append(name)
        elif wanted:
            from boxwright.errors import MissingExtraError

            raise MissingExtraError(f"{option} {name}", extra)
    return tuple(found)


@dataclass(slots=True)
class Evidence:
    """Measures the files of one run.

    Attributes:
        recipe: What was asked for.
        folder: Where the files are.
        files: Those in place that were asked for.
        source: Opens the source as a detector, and says what runs it; None where it cannot run.
        source_entry: The source as `benchmark` opens it; None where it cannot.
        source_key: Hash of the source and of what it is asked for.
        dataset: Labelled pictures, or None.
        pictures: Those that were verified on.
        random_weights: The source is a configuration, so that there is no accuracy.
        known: The report that is there, or None.
        listener: Told what happens.
        known_matches: What the accuracies of `known` were counted from.
        notes: What was not measured and why; filled.
        matches: What the accuracies were counted from, by file and runtime; filled.
        fresh: Files and runtimes that were measured now; filled.
    """

    recipe: Recipe
    folder: Path
    files: Sequence[Made]
    source: Callable[[], Detector]
    source_runtime: str
    source_entry: Entry | None
    source_key: str
    dataset: Dataset | None
    pictures: Sequence[Path | Image]
    random_weights: bool
    known: Report | None
    known_matches: Mapping[tuple[str, str], Matches]
    listener: Listener
    notes: list[str] = field(default_factory=list)
    matches: dict[tuple[str, str], Matches] = field(default_factory=dict)
    fresh: set[tuple[str, str]] = field(default_factory=set)

    def accuracy(self) -> tuple[Evaluated, ...]:
        """Measure the source and each file in each runtime on the labelled pictures."""
        if self.dataset is None or not self.recipe.measure.accuracy:
            if self.recipe.measure.accuracy:
                self.notes.append("accuracy was not measured: --data names labelled pictures")
            return ()
        if self.random_weights:
            self.notes.append("accuracy was not measured: the weights are random")
            return ()
        rows = [self._evaluated(SOURCE, self.source_runtime, self.source_key, self.source)]
        for made, runtime in self._pairs(for_speed=False):
            name, size = made.artifact.path.name, made.artifact.target.source_size
            try:
                opener = self._opener(made, runtime)
                rows.append(self._evaluated(name, runtime, made.artifact.sha256, opener))
            except ImageError as error:
                if size is None:
                    raise
                self._note(f"accuracy of {name} was not measured: {error.found}")
        return tuple(self._with_changes(rows))

    def _opener(self, made: Made, runtime: str) -> Callable[[], Detector]:
        path = self.folder / made.artifact.path.name
        return lambda: load(path, runtime, threads=self.recipe.threads, quiet=True)  # type: ignore[arg-type]

    def _evaluated(
        self, file: str, runtime: str, content: str, opened: Callable[[], Detector]
    ) -> Evaluated:
        """Measure one file in one runtime, unless that was done before."""
        dataset = self.dataset
        assert dataset is not None, "asked before"
        key = hash_of([_KEY, content, runtime, _versions(runtime), _data_key(dataset)])
        for row in self.known.accuracy if self.known else ():
            seen = self.known_matches.get((file, runtime))
            if (row.file, row.runtime, row.key) == (file, runtime, key) and seen is not None:
                self.matches[file, runtime] = seen
                return row
        label, done = f"accuracy {file} {runtime}", 0

        def advance() -> None:
            nonlocal done
            done += 1
            self.listener.count(label, done, len(dataset.items))

        self.listener.note(f"accuracy of {file} in {runtime} on {len(dataset.items)} pictures")
        detector = opened()
        matches: dict[str, Matches] = {}
        try:
            found = evaluate(
                {file: detector},
                dataset,
                environment={**describe_environment(), **package_versions(("faster-coco-eval",))},
                advance=advance,
                report=self.listener.note,
                matches=matches,
            )[file]
        finally:
            if file != SOURCE:
                detector.close()
        self.matches[file, runtime] = matches[file]
        self.fresh.add((file, runtime))
        draws = min(_MOST_DRAWS, default_resamples(matches[file]))
        ends = interval(matches[file], resamples=draws)
        return Evaluated(file, runtime, key, dataclasses.replace(found, interval=ends))

    def _with_changes(self, rows: Sequence[Evaluated]) -> Iterator[Evaluated]:
        """Compare raw files with the source, and end-to-end files with the FP32 one of their form.

        An end-to-end file's curve ends at the threshold that is baked in, so that against the
        source it would seem to lose what its threshold cuts off.
        """
        by_file = {(r.file, r.runtime): r for r in rows}
        targets = {a.artifact.path.name: a.artifact.target for a in self.files}
        for row in rows:
            target = targets.get(row.file)
            if target is None:
                yield row
                continue
            baseline: Evaluated | None = rows[0]
            if target.outputs == "end2end":
                whole = [
                    name
                    for name, t in targets.items()
                    if (t.precision, t.outputs, t.nms, t.batch)
                    == ("fp32", "end2end", target.nms, target.batch)
                ]
                first = [by_file[w, r] for w in whole for r in RUNTIMES if (w, r) in by_file]
                baseline = first[0] if first and first[0] is not row else None
            yield self._compared(row, baseline)

    def _compared(self, row: Evaluated, baseline: Evaluated | None) -> Evaluated:
        if baseline is None or row.accuracy.figure is None:
            return dataclasses.replace(row, change=None)
        if row.change is not None and (baseline.file, baseline.runtime) not in self.fresh:
            return row
        name = baseline.file if baseline.file == SOURCE else f"{baseline.file} ({baseline.runtime})"
        one, other = (self.matches[r.file, r.runtime] for r in (row, baseline))
        draws = min(_MOST_DRAWS, default_resamples(one, other))
        return dataclasses.replace(row, change=change(one, other, name, resamples=draws))

    def _pairs(self, for_speed: bool) -> Iterator[tuple[Made, str]]:
        """Yield each file with each runtime that computes it as it is meant."""
        runtimes = installed_runtimes(self.recipe.measure.runtimes)
        for made in self.files:
            target, name = made.artifact.target, made.artifact.path.name
            if target.nms == "efficient_nms" and target.outputs == "end2end":
                self._note(f"{name} was only verified: its NMS runs in TensorRT alone")
                continue
            if target.precision == "int8" and target.deployment == "openvino":
                if "openvino" in runtimes:
                    yield made, "openvino"
                continue
            if target.precision == "int8" and target.deployment == "tensorrt":
                # OpenVINO overflows on its 8-bit weights where a processor has no VNNI
                if for_speed:
                    self._note(
                        f"{name} was not timed: it is meant for TensorRT, not for this machine"
                    )
                elif "onnxruntime" in runtimes:
                    self._note(
                        f"accuracy of {name} is that of ONNX Runtime; its plan can lose more: "
                        "evaluate the plan where it runs"
                    )
                    yield made, "onnxruntime"
                continue
            for runtime in runtimes:
                yield made, runtime

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def latency(self) -> tuple[BenchmarkResult | None, str]:
        """Measure the source and each file in each runtime, in turns; also return the key."""
        options = self.recipe.measure
        pairs = list(self._pairs(for_speed=True))
        if not pairs:
            return None, ""
        entries = [Entry(self.folder / m.artifact.path.name, r) for m, r in pairs]
        if self.source_entry is not None:
            entries.insert(0, self.source_entry)
        else:
            self._note("the source was not timed: it does not run by itself as it was asked for")
        runtimes = sorted({e.runtime for e in entries})
        key = hash_of(
            [
                _KEY,
                self.source_key if self.source_entry else "",
                [[m.artifact.path.name, m.artifact.sha256, r] for m, r in pairs],
                {r: _versions(r) for r in runtimes},
                options.seconds,
                self.recipe.threads,
                describe_environment().get("processor"),
                self._timed_pictures(),
            ]
        )
        if self.known and self.known.benchmark and self.known.benchmark_key == key:
            return self.known.benchmark, key
        if not options.latency:
            self.notes.append("latency was not measured: it was switched off")
            return None, ""
        self.listener.note(
            f"latency of {len(entries)} files and runtimes, {options.seconds:g} s each"
        )
        settings = BenchmarkSettings(
            images=tuple(self._timed_pictures()),
            max_images=_PICTURES,
            threads=(self.recipe.threads,),
            seconds=options.seconds,
            warmup=3,
            memory=False,
            seed=self.recipe.seed,
        )
        return benchmark(entries, settings=settings, listener=self.listener), key

    def _timed_pictures(self) -> list[str]:
        """Return the files that latency is measured on; none means generated ones."""
        paths = [p for p in self.pictures if isinstance(p, Path)]
        if not paths and self.dataset is not None:
            paths = [i.path for i in self.dataset.items if i.path is not None]
        return [str(p) for p in _evenly(paths, _PICTURES)]

    def shown(self) -> tuple[tuple[Shown, ...], str]:
        """Detect in a few pictures with the source and each file; also return the key."""
        chosen = self._chosen_pictures()
        key = hash_of(
            [
                _KEY,
                self.source_key,
                [a.artifact.sha256 for a in self.files],
                [name for name, _, _ in chosen],
                _data_key(self.dataset) if self.dataset else "",
            ]
        )
        if self.known and self.known.pictures and self.known.pictures_key == key:
            return self.known.pictures, key
        if not chosen:
            return (), ""
        images = [image() for _, image, _ in chosen]
        self.listener.note(f"detect in {len(chosen)} pictures for the report")
        found = {SOURCE: [self.source()(i).as_dicts() for i in images]}
        for made in self.files:
            target = made.artifact.target
            if target.nms == "efficient_nms":
                continue
            if target.source_size and any(i.shape[:2] != target.source_size for i in images):
                continue
            with load(
                self.folder / made.artifact.path.name,
                "openvino" if target.deployment == "openvino" else "onnxruntime",
                threads=self.recipe.threads,
                quiet=True,
            ) as detector:
                found[made.artifact.path.name] = [_one(detector, i).as_dicts() for i in images]
        shown = []
        for index, ((name, _, item), image) in enumerate(zip(chosen, images, strict=True)):
            each = {file: tuple(rows[index]) for file, rows in found.items()}
            shown.append(_shown(name, image, self._truth(item, image), each))
        return tuple(shown), key

    def _chosen_pictures(self) -> list[tuple[str, Callable[[], Image], Item | None]]:
        """Return name, reader and labels of the pictures to show, those with objects first."""
        wanted = self.recipe.measure.pictures
        if self.dataset is not None:
            items = [i for i in self.dataset.items if len(i.boxes)] or list(self.dataset.items)
            return [(i.name, i.read, i) for i in _evenly(items, wanted)]
        paths = [p for p in self.pictures if isinstance(p, Path)]
        return [(p.name, _reader(p), None) for p in _evenly(paths, wanted)]

    def _truth(self, item: Item | None, image: Image) -> tuple[Mapping[str, Any], ...] | None:
        if item is None or self.dataset is None:
            return None
        height, width = image.shape[:2]
        truth = item.truth((height, width))
        return tuple(
            {
                "xyxy": [round(float(v), 1) for v in box],
                "class_name": self.dataset.class_names[int(class_id)],
            }
            for box, class_id in zip(truth.xyxy, truth.class_ids, strict=True)
        )


RUNTIMES = ("onnxruntime", "openvino")  # the first that is there is the baseline


def _reader(path: Path) -> Callable[[], Image]:
    return lambda: read_image(path)


def _one(detector: Detector, image: Image) -> Any:
    return detector(image)


def _versions(runtime: str) -> dict[str, str]:
    return catalog.backend(runtime).versions()


def _data_key(dataset: Dataset) -> str:
    """Return a hash of labels and of the pictures' sizes and times of change."""
    files = []
    for item in dataset.items:
        if item.path is not None and item.path.is_file():
            status = item.path.stat()
            files.append([item.name, status.st_size, status.st_mtime_ns])
    return hash_of([dataset.fingerprint, files])


def _evenly(values: Sequence[Any], count: int) -> list[Any]:
    """Return at most so many of some values, evenly spaced."""
    if len(values) <= count or not count:
        return list(values) if count else []
    step = len(values) / count
    return [values[int(i * step)] for i in range(count)]


def _shown(
    name: str,
    image: Image,
    truth: tuple[Mapping[str, Any], ...] | None,
    found: Mapping[str, tuple[Mapping[str, Any], ...]],
) -> Shown:
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done, "a picture can be a JPEG"
    jpeg = base64.b64encode(data.tobytes()).decode("ascii")
    return Shown(name, (height, width), jpeg, size[0] / width, truth, found)
