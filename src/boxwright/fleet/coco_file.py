"""COCO JSON out of the shards, written as they are read: `coco.json` and `coco_results.json`.

The first is a whole data set, with images, categories and annotations that carry a score; the
second the bare list of results that pycocotools' `loadRes` takes. An image's id is its row's id
plus one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from boxwright.fleet.job import Job
from boxwright.fleet.rows import Row
from boxwright.fleet.shard_files import rows_from_file, shard_name
from boxwright.store import store_error

__all__ = ["write_coco"]

_DATA, _RESULTS = "coco.json", "coco_results.json"


def write_coco(folder: Path, shards: Path, job: Job) -> list[str]:
    """Write both files; each appears whole or not at all.

    Returns:
        Their names.

    Raises:
        StoreError: The disk is full or the place is not writable.
    """

    def rows() -> Iterator[Row]:
        for shard in range(job.shards):
            yield from rows_from_file(job, shards / shard_name(job, shard))

    def data(stream: TextIO) -> None:
        info = {"description": f"detections of {job.artifact}", "artifact": job.artifact_sha256}
        stream.write('{"info": ' + json.dumps(info) + ',\n"categories": ')
        names = enumerate(job.class_names)
        stream.write(json.dumps([{"id": i, "name": n} for i, n in names]) + ',\n"images": ')
        _write_list(stream, (_image(row) for row in rows()))
        stream.write(',\n"annotations": ')
        annotations = (a for row in rows() for a in _annotations(row))
        numbered = (_completed(number, a) for number, a in enumerate(annotations, 1))
        _write_list(stream, numbered)
        stream.write("}\n")

    def results(stream: TextIO) -> None:
        _write_list(stream, (a for row in rows() for a in _annotations(row)))
        stream.write("\n")

    for name, write in ((_DATA, data), (_RESULTS, results)):
        part = folder / f".{name}.part"
        try:
            with part.open("w", encoding="utf-8") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(folder / name)
        except OSError as error:
            raise store_error(folder / name, error) from None
        finally:
            part.unlink(missing_ok=True)
    return [_DATA, _RESULTS]


def _write_list(stream: TextIO, items: Iterable[dict[str, Any]]) -> None:
    before = "["
    for item in items:
        stream.write(before + "\n" + json.dumps(item))
        before = ","
    stream.write("[]" if before == "[" else "\n]")


def _image(row: Row) -> dict[str, Any]:
    height, width = row.size or (0, 0)
    image = {"id": row.id + 1, "file_name": row.path, "width": width, "height": height}
    return {**image, "error": row.error} if row.error else image


def _completed(number: int, annotation: dict[str, Any]) -> dict[str, Any]:
    _, _, width, height = annotation["bbox"]
    return {"id": number, **annotation, "area": round(width * height, 3), "iscrowd": 0}


def _annotations(row: Row) -> Iterator[dict[str, Any]]:
    boxes, scores, ids = row.xyxy.tolist(), row.scores.tolist(), row.class_ids.tolist()
    for index, (box, score, class_id) in enumerate(zip(boxes, scores, ids, strict=True)):
        x1, y1, x2, y2 = box
        record: dict[str, Any] = {
            "image_id": row.id + 1,
            "category_id": class_id,
            "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 6),
        }
        if row.masks is not None and row.size is not None:
            record["segmentation"] = {"size": list(row.size), "counts": row.masks[index]}
        if row.keypoints is not None:
            record["keypoints"] = _points(row.keypoints[index].tolist())
        if row.rotated is not None:
            record["rbox"] = [round(v, 5) for v in row.rotated[index].tolist()]
        yield record


def _points(values: list[Any]) -> list[float]:
    """Return x, y, visibility of each point; those of two numbers count as visible."""
    flat: list[float] = []
    for value in values:
        if not isinstance(value, list):
            return [round(v, 3) for v in values]  # as a Parquet file has them
        flat += [round(v, 3) for v in value] + ([1.0] if len(value) == 2 else [])
    return flat
