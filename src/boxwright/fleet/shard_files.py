"""Shard files: the rows of some neighbouring inputs, as Parquet or as JSON lines.

A file is written under a name of its writer's own, flushed and renamed, so that several writers of
one shard cannot disturb each other: each writes the same rows, and the last one stays.
"""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.errors import SourceError
from boxwright.fleet.extras import parquet_modules
from boxwright.fleet.job import Job
from boxwright.fleet.rows import Row
from boxwright.store import store_error

__all__ = [
    "bytes_from_rows",
    "rows_from_file",
    "shard_name",
    "sweep_parts",
    "whole_shards",
    "write_shard",
]

_PART = ".part"
_json = json.JSONEncoder(check_circular=False).encode  # faster; a row holds no circle
_SUFFIX = {"parquet": ".parquet", "jsonl": ".jsonl", "coco": ".jsonl"}


def shard_name(job: Job, shard: int) -> str:
    """Return the file name of a shard.

    Args:
        job: What was asked for.
        shard: Its number.
    """
    return f"shard-{shard:06d}{_SUFFIX[job.format]}"


def write_shard(folder: Path, name: str, data: bytes) -> None:
    """Write a shard so that it appears whole or not at all, whoever else writes it.

    Raises:
        StoreError: The disk is full or the place is not writable.
    """
    part = folder / f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{_PART}"
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(folder / name)
    except BaseException as error:  # an interruption, too, leaves nothing half written
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise store_error(folder / name, error) from None
        raise


def sweep_parts(folder: Path) -> None:
    """Remove what killed writers left."""
    for part in folder.glob(f".shard-*{_PART}"):
        part.unlink(missing_ok=True)


def whole_shards(folder: Path, job: Job) -> set[int]:
    """Return the shards that are there; a file under its final name is whole."""
    present = {path.name for path in folder.iterdir()}
    return {s for s in range(job.shards) if shard_name(job, s) in present}


def bytes_from_rows(job: Job, rows: Sequence[Row]) -> bytes:
    """Return the file of a shard.

    Raises:
        MissingExtraError: pyarrow is not installed, for Parquet.
    """
    if job.format == "parquet":
        return _parquet(job, rows)
    return b"".join(_line(job, row) for row in rows)


def rows_from_file(job: Job, path: Path) -> Iterator[Row]:
    """Yield the rows of a shard file.

    Raises:
        SourceError: It is not a shard file of ours, or damaged.
    """
    try:
        yield from (_read_parquet if job.format == "parquet" else _read_lines)(path)
    except (ValueError, KeyError, TypeError, OSError, IndexError) as error:  # pyarrow's among them
        reason = f"{type(error).__name__}: {error}"[:160]
        raise SourceError(
            str(path), f"it is no whole shard ({reason})", "remove it and start again"
        ) from None


# -- JSON lines


def _line(job: Job, row: Row) -> bytes:
    detections = []
    boxes, scores, ids = row.xyxy.tolist(), row.scores.tolist(), row.class_ids.tolist()
    for index, (box, score, class_id) in enumerate(zip(boxes, scores, ids, strict=True)):
        one: dict[str, Any] = {
            "class_id": class_id,
            "class_name": job.class_name(class_id),
            "score": score,
            "xyxy": box,
        }
        if row.masks is not None:
            one["mask"] = row.masks[index]
        if row.keypoints is not None:
            one["keypoints"] = row.keypoints[index].tolist()
        if row.rotated is not None:
            one["rotated"] = row.rotated[index].tolist()
        detections.append(one)
    height, width = row.size or (None, None)
    record = {
        "id": row.id,
        "path": row.path,
        "width": width,
        "height": height,
        "detections": detections,
        "error": row.error or None,
        "artifact": job.artifact_sha256,
        "runs_on": row.runs_on,
    }
    return (_json(record) + "\n").encode()


def _read_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for line in stream:
            yield _row_from_record(json.loads(line))


def _row_from_record(record: Mapping[str, Any]) -> Row:
    found = record["detections"]
    first = found[0] if found else {}
    return Row(
        id=record["id"],
        path=record["path"],
        size=None if record["height"] is None else (record["height"], record["width"]),
        xyxy=np.array([d["xyxy"] for d in found], np.float32).reshape(-1, 4),
        scores=np.array([d["score"] for d in found], np.float32),
        class_ids=np.array([d["class_id"] for d in found], np.int32),
        masks=tuple(d["mask"] for d in found) if "mask" in first else None,
        keypoints=_floats(found, "keypoints"),
        rotated=_floats(found, "rotated"),
        error=record["error"] or "",
        runs_on=record["runs_on"],
    )


def _floats(found: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.float32] | None:
    if not found or key not in found[0]:
        return None
    return np.array([d[key] for d in found], np.float32)


# -- Parquet


def _parquet(job: Job, rows: Sequence[Row]) -> bytes:
    pa, parquet = parquet_modules("Parquet")
    table = pa.table(
        {
            "id": pa.array([r.id for r in rows], pa.int64()),
            "path": pa.array([r.path for r in rows], pa.string()),
            "width": pa.array([r.size[1] if r.size else None for r in rows], pa.int32()),
            "height": pa.array([r.size[0] if r.size else None for r in rows], pa.int32()),
            "detections": _detections(pa, job, rows),
            "error": pa.array([r.error or None for r in rows], pa.string()),
            "artifact": pa.array([job.artifact_sha256] * len(rows), pa.string()),
            "runs_on": pa.array([r.runs_on for r in rows], pa.string()),
        }
    )
    table = table.replace_schema_metadata({"boxwright.job": job.as_json()})
    stream = io.BytesIO()
    parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def _detections(pa: Any, job: Job, rows: Sequence[Row]) -> Any:
    """Return list<struct>, one list a row, built from whole columns."""
    counts = np.array([len(r) for r in rows], np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(r.xyxy for r in rows)])
    ids = np.concatenate([np.zeros(0, np.int32), *(r.class_ids for r in rows)])
    scores = np.concatenate([np.zeros(0, np.float32), *(r.scores for r in rows)])
    columns = {
        "class_id": pa.array(ids, pa.int32()),
        "class_name": pa.array([job.class_name(i) for i in ids.tolist()], pa.string()),
        "score": pa.array(scores, pa.float32()),
        **{n: pa.array(boxes[:, i], pa.float32()) for i, n in enumerate(("x1", "y1", "x2", "y2"))},
    }
    if job.task == "segment":
        columns["mask"] = pa.array([m for r in rows for m in r.masks or ()], pa.string())
    for name in ("keypoints", "rotated"):
        if (job.task, name) in (("pose", "keypoints"), ("obb", "rotated")):
            parts = [p for r in rows if (p := getattr(r, name)) is not None]
            lists = [one.ravel().tolist() for part in parts for one in part]
            columns[name] = pa.array(lists, pa.list_(pa.float32()))
    inner = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)


def _read_parquet(path: Path) -> Iterator[Row]:
    _, parquet = parquet_modules("Parquet")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from _rows_from_batch(batch)


def _rows_from_batch(batch: Any) -> Iterator[Row]:
    names = ("id", "path", "width", "height", "error", "runs_on")
    plain = {n: batch.column(n).to_pylist() for n in names}
    lists = batch.column("detections")
    ends = lists.offsets.to_numpy()
    inner = lists.values  # the whole child: offsets count in it
    boxes = np.stack(
        [inner.field(n).to_numpy(zero_copy_only=False) for n in ("x1", "y1", "x2", "y2")], 1
    )
    scores = inner.field("score").to_numpy(zero_copy_only=False)
    ids = inner.field("class_id").to_numpy(zero_copy_only=False)
    fields = {inner.type.field(i).name for i in range(inner.type.num_fields)}
    extras = {
        n: inner.field(n).to_pylist() for n in ("mask", "keypoints", "rotated") if n in fields
    }
    for i in range(batch.num_rows):
        own = slice(int(ends[i]), int(ends[i + 1]))
        height = plain["height"][i]
        yield Row(
            id=plain["id"][i],
            path=plain["path"][i],
            size=None if height is None else (height, plain["width"][i]),
            xyxy=boxes[own],
            scores=scores[own],
            class_ids=ids[own],
            masks=tuple(extras["mask"][own]) if "mask" in extras else None,
            keypoints=_array(extras, "keypoints", own),
            rotated=_array(extras, "rotated", own),
            error=plain["error"][i] or "",
            runs_on=plain["runs_on"][i],
        )


def _array(
    extras: Mapping[str, list[Any]], name: str, own: slice
) -> npt.NDArray[np.float32] | None:
    return np.array(extras[name][own], np.float32) if extras.get(name) else None
