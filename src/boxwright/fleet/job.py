"""What a job is: the listing, the artefact and the settings, which alone decide every result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from boxwright.types import TaskName

__all__ = ["Format", "Job", "Pace", "Settings"]

Format = Literal["parquet", "jsonl", "coco"]
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the numbers, besides the artefact.

    Attributes:
        runtime: Never `auto`: every worker runs the same.
        device: As `--device` takes it, without a number.
        batch: Pictures of one inference. No batch crosses the end of a shard, so that a picture
            has the same neighbours whoever does it.
        decode, preprocess: Where JPEG files are decoded and pictures letterboxed.
        score_threshold, iou_threshold: Operating settings; None takes the file's own.
        class_ids: Only these; None keeps all.
        family: Of a raw file that does not say.
        cuda_graph, provider_options: Of GPUs.
    """

    runtime: str = "onnxruntime"
    device: str = "auto"
    batch: int = 1
    decode: Literal["cpu", "gpu"] = "cpu"
    preprocess: Literal["host", "gpu"] = "host"
    score_threshold: float | None = None
    iou_threshold: float | None = None
    class_ids: tuple[int, ...] | None = None
    family: str | None = None
    cuda_graph: bool = True
    provider_options: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """Read what `as_dict` returned."""
        ids, options = data["class_ids"], data["provider_options"]
        return cls(
            **{
                **data,
                "class_ids": None if ids is None else tuple(ids),
                "provider_options": tuple((str(k), str(v)) for k, v in options),
            }
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """What decides how fast it goes, and nothing else.

    Attributes:
        threads: CPU threads of one inference; None leaves the runtime's default.
        decoders: Threads that read and decode beside the network; 0 reads in turn with it.
        engine_cache: Folder of ONNX Runtime's TensorRT provider.
        profile_batch: Of that provider.
    """

    threads: int | None = None
    decoders: int = 0
    engine_cache: str | None = None
    profile_batch: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its manifest has it; two jobs with equal records have equal results.

    Attributes:
        input: As it was asked for.
        count: Pictures.
        listing_sha256: Of their addresses, in order.
        shard_size: Pictures of a shard; the last may have fewer.
        format: Of the shards.
        artifact: Its name.
        artifact_sha256: Of its bytes.
        task: Of the model.
        class_names: Of the model.
        settings: What else decides the numbers.
        boxwright: Version.
    """

    input: str
    count: int
    listing_sha256: str
    shard_size: int
    format: Format
    artifact: str
    artifact_sha256: str
    task: TaskName
    class_names: tuple[str, ...]
    settings: Settings
    boxwright: str

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.count // self.shard_size)

    def first(self, shard: int) -> int:
        """Return the number of the first picture of a shard."""
        return shard * self.shard_size

    def rows(self, shard: int) -> int:
        """Return how many pictures a shard has."""
        return min(self.shard_size, self.count - self.first(shard))

    def class_name(self, class_id: int) -> str:
        """Return the name of a class, or its number as text when it has none."""
        if 0 <= class_id < len(self.class_names):
            return self.class_names[class_id]
        return str(class_id)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            "schema": SCHEMA,
            **data,
            "class_names": list(self.class_names),
            "settings": self.settings.as_dict(),
        }

    def as_json(self) -> str:
        """Return one line."""
        return json.dumps(self.as_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Read what `as_dict` returned.

        Raises:
            ValueError: It is of another version.
        """
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']}, this version knows {SCHEMA}")
        names = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in data.items() if k in names}
        return cls(
            **{
                **values,
                "class_names": tuple(data["class_names"]),
                "settings": Settings.from_dict(data["settings"]),
            }
        )
