"""Parts of an evaluation: some neighbouring pictures measured, and what is kept of them."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.curve_plan import CurvePlan, plan_curve
from boxwright.datasets import Dataset, open_dataset
from boxwright.datasets import Wanted as WantedLabels
from boxwright.errors import SourceError
from boxwright.evaluate import Totals, check_classes, measure_items
from boxwright.fleet.coco_parts import Part, part_from_pictures
from boxwright.fleet.job import Pace, Settings
from boxwright.fleet.shard_files import write_shard
from boxwright.fleet.worker import open_artifact
from boxwright.measures import Measure, measure_for
from boxwright.overlaps import Overlap
from boxwright.scoring import Counts
from boxwright.types import NmsSettings, TaskName

__all__ = ["MeasuredPart", "Wanted", "measure_parts", "part_name", "read_part"]


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """An evaluation, as every worker is told of it.

    Attributes:
        artifact, artifact_sha256: The file, and of its bytes.
        settings: How it runs; its thresholds are the operating point.
        pace: How fast.
        data, split, images, pages: The data set, as `open_dataset` takes it.
        class_names, task, keypoints: Of the model.
        fingerprint: Of the data set.
        max_images: At most so many pictures, evenly spaced.
        part_size: Pictures of a part.
        score_threshold, iou_threshold, max_detections: Of the curve.
    """

    artifact: str
    artifact_sha256: str
    settings: Settings
    pace: Pace
    data: str
    split: str | None
    images: str | None
    pages: int | None
    class_names: tuple[str, ...]
    task: TaskName
    keypoints: int
    fingerprint: str
    max_images: int | None
    part_size: int
    score_threshold: float | None
    iou_threshold: float | None
    max_detections: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**found, "settings": self.settings.as_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Wanted:
        """Read what `as_dict` returned."""
        pace = data["pace"]
        profile = pace["profile_batch"]
        return cls(
            **{
                **data,
                "class_names": tuple(data["class_names"]),
                "settings": Settings.from_dict(data["settings"]),
                "pace": Pace(**{**pace, "profile_batch": tuple(profile) if profile else None}),
            }
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the figures, to tell one evaluation from another."""
        left_out = ("artifact", "pace")
        return {
            "artifact_name": Path(self.artifact).name,
            **{k: v for k, v in self.as_dict().items() if k not in left_out},
        }

    def dataset(self) -> Dataset:
        """Open the data set.

        Raises:
            SourceError: It is not the one that the evaluation was begun with.
        """
        found = open_dataset(
            self.data,
            class_names=self.class_names,
            split=self.split,
            images=Path(self.images) if self.images else None,
            pages=self.pages,
            wanted=WantedLabels(self.task, self.keypoints),
        )
        if self.max_images:
            found = found.limited(self.max_images)
        if self.fingerprint and found.fingerprint != self.fingerprint:
            raise SourceError(
                self.data, "it is not the data that the evaluation was begun with", "check it"
            )
        return found


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MeasuredPart:
    """A part, read back.

    Attributes:
        parts: What makes the curves, by what is compared; of classifiers there are none.
        totals: Counts.
        plan: How it was measured.
        problems: Pictures that could not be measured, by reason.
        runs_on: Runtime, version and device, in words.
    """

    parts: Mapping[Overlap, Part]
    totals: Totals
    plan: CurvePlan
    problems: dict[str, int]
    runs_on: str


def part_name(number: int) -> str:
    """Return the file name of a part."""
    return f"part-{number:06d}.npz"


@lru_cache(maxsize=1)
def _opened(data: str) -> Dataset:
    """Return a data set; a worker that does several pieces of one opens it once."""
    return Wanted.from_dict(json.loads(data)).dataset()


def measure_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Measure parts, and leave a file of each.

    Args:
        message: `wanted`, `parts` (numbers) and `folder`.

    Returns:
        `{}`.

    Raises:
        BoxwrightError: The artefact or the data is refused, or the runtime fails.
    """
    wanted = Wanted.from_dict(message["wanted"])
    dataset = _opened(json.dumps(message["wanted"], sort_keys=True))
    folder = Path(message["folder"])
    path = Path(wanted.artifact)
    with open_artifact(path, wanted.artifact_sha256, wanted.settings, wanted.pace) as detector:
        check_classes(path.name, detector, dataset)
        measure = measure_for(detector.spec, dataset)
        score, iou = wanted.score_threshold, wanted.iou_threshold
        plan = plan_curve(detector, score, iou, wanted.max_detections, measure)
        for number in message["parts"]:
            first = number * wanted.part_size
            items = dataset.items[first : first + wanted.part_size]
            piece = dataclasses.replace(dataset, items=items)
            problems: dict[str, int] = {}
            seen = measure_items(detector, plan, piece, wanted.settings.batch, problems)
            count, limit = len(dataset.class_names), plan.evaluation.keep_topk
            measured = MeasuredPart(
                {
                    by: part_from_pictures(seen.pictures, count, limit, by)
                    for by in measure.compared
                },
                Totals.of(seen, count, limit, measure),
                plan,
                problems,
                detector.description,
            )
            write_shard(folder, part_name(number), _bytes(measured))
    return {}


def _bytes(measured: MeasuredPart) -> bytes:
    plan, totals = measured.plan, measured.totals
    record = {
        "pictures": totals.pictures,
        "crowded": totals.crowded,
        "counts": [totals.counts.right, totals.counts.wrong, totals.counts.missed],
        "evaluation": plan.evaluation.as_dict(),
        "operating": plan.operating.as_dict(),
        "twice": plan.twice,
        "warnings": list(plan.warnings),
        "measure": dataclasses.asdict(plan.measure),
        "top": totals.top,
        "problems": measured.problems,
        "runs_on": measured.runs_on,
    }
    stream = io.BytesIO()
    parts = measured.parts.items()
    arrays = {f"{by}.{name}": a for by, part in parts for name, a in part.arrays().items()}
    arrays["shown"] = totals.objects
    np.savez(stream, record=np.array(json.dumps(record)), **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def read_part(path: Path) -> MeasuredPart:
    """Read a part.

    Raises:
        SourceError: It is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record = json.loads(str(arrays.pop("record")[()]))
        measure = Measure(**record["measure"])
        right, close = record["top"]
        return MeasuredPart(
            {by: _part_from_arrays(arrays, by) for by in measure.compared},
            Totals(
                record["pictures"],
                arrays["shown"],
                record["crowded"],
                Counts(*record["counts"]),
                (right, close),
            ),
            CurvePlan(
                NmsSettings.from_dict(record["evaluation"]),
                NmsSettings.from_dict(record["operating"]),
                record["twice"],
                tuple(record["warnings"]),
                measure,
            ),
            record["problems"],
            record["runs_on"],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise SourceError(
            str(path), f"it is no part of ours ({reason})", "remove it and start again"
        ) from None


def _part_from_arrays(arrays: Mapping[str, Any], by: Overlap) -> Part:
    """Return the part of one kind of overlap."""
    return Part.from_arrays({n: arrays[f"{by}.{n}"] for n in Part.__slots__})
