"""The life of a served model: versions come, are promoted, and are rolled back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.engine_record import sidecar_path
from boxwright.errors import CheckFailedError, RequestError, StoreError
from boxwright.serve.folder_parts import DETECTIONS
from boxwright.serve.model_config import VersionPolicy, config_from_text, policy_text
from boxwright.serve.python_models import python_model_files
from boxwright.serve.repository_record import (
    CONFIG,
    CPU_CONFIG,
    ModelRecord,
    Version,
    add_version_folder,
    content_hashes,
    damaged_files,
    models_in,
    read_model_record,
    record_of,
    stamp_now,
    version_numbers_in,
    write_file,
    write_model_record,
)
from boxwright.serve.served_files import ServedFile, check_batch, format_of, read_file
from boxwright.serve.text_merge import with_block
from boxwright.serve.tracks import FORMATS, FUSED
from boxwright.store import locked

__all__ = [
    "Listed",
    "add_version",
    "list_models",
    "promote",
    "rollback",
]

_ADVICE = "wait for it"


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of a repository.

    Attributes:
        name: Of its folder.
        kind: What it is, or "" when it is none of ours.
        backend: That runs it.
        max_batch: Largest batch.
        versions: That are there.
        served: Of these, the ones that the configuration names; empty for the latest.
        previous: What was served before; empty when that is not known.
        edited: Configurations that were edited by hand.
        sources: Where the file of each version came from.
        size_bytes: Of the versions.
    """

    name: str
    kind: str
    backend: str
    max_batch: int
    versions: tuple[int, ...]
    served: tuple[int, ...]
    previous: tuple[int, ...]
    edited: tuple[str, ...]
    sources: Mapping[int, str]
    size_bytes: int


def list_models(repository: Path) -> list[Listed]:
    """Describe the models of a repository.

    Raises:
        RequestError: There is no such folder.
        BoxwrightError: A configuration or a record is damaged.
    """
    return [_listed(repository / name) for name in models_in(repository)]


def _listed(folder: Path) -> Listed:
    record = read_model_record(folder)
    numbers = version_numbers_in(folder)
    config: Any = None
    if (folder / CONFIG).is_file():
        path = folder / CONFIG
        config = config_from_text(path.read_text(encoding="utf-8"), str(path))
    generated = record.generated if record else {}
    edited = [
        name
        for name, text in generated.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
    files = (p for n in numbers for p in (folder / str(n)).rglob("*") if p.is_file())
    return Listed(
        name=folder.name,
        kind=record.kind if record else "",
        backend=(config.backend or config.platform) if config is not None else "",
        max_batch=config.max_batch_size if config is not None else 0,
        versions=tuple(numbers),
        served=tuple(config.version_policy.specific.versions) if config is not None else (),
        previous=tuple(record.history[-2]) if record and len(record.history) > 1 else (),
        edited=tuple(edited),
        sources={n: v.source for n, v in record.versions.items()} if record else {},
        size_bytes=sum(p.stat().st_size for p in files),
    )


def add_version(
    repository: Path,
    model: str,
    file: Path,
    *,
    number: int | None = None,
    serve: bool = False,
) -> int:
    """Put a file into a model as a new version; it is not served before it is promoted.

    Args:
        repository: The repository.
        model: Name of a served file, not of an ensemble or a python model.
        file: A typed ONNX file or a plan, of the same kind and with the same tensors.
        number: Of the version; None takes the next.
        serve: Promote it at once.

    Returns:
        The number.

    Raises:
        RequestError: The model holds no files, or the file does not fit it.
        StoreError: There is such a version, or it cannot be written.
    """
    folder = repository / model
    with locked(repository.absolute(), _ADVICE):
        record = record_of(repository, model)
        served = _fitting(folder, record, file)
        plan = served.is_plan
        files: dict[str, bytes | Path] = {"model.plan" if plan else "model.onnx": file}
        if plan:
            files["model.plan.json"] = sidecar_path(file)
        if record.kind in FUSED:
            files |= python_model_files("fused")
        wanted = max([*version_numbers_in(folder), *record.versions, 0]) + 1
        if number is not None:
            if number < 1:
                raise RequestError(f"--version {number}", "versions count from 1", "use e.g. 2")
            wanted = number
        add_version_folder(folder, wanted, files)
        record.versions[wanted] = Version(content_hashes(files), str(file), stamp_now())
        write_model_record(folder, record)
        if serve:
            _serve(folder, record, wanted)
    return wanted


def _fitting(folder: Path, record: ModelRecord, file: Path) -> ServedFile:
    """Return a file that fits a model's configuration.

    Raises:
        RequestError: It does not.
    """
    asked = f"{file} in {folder.name}"
    if record.kind not in FORMATS or record.kind == "dali":
        raise RequestError(
            asked, f"this model is of kind {record.kind}", "build it again: boxwright repo build"
        )
    if not file.is_file():
        raise RequestError(str(file), "there is no such file", "check the path")
    served = read_file(file)
    if served is None:
        raise RequestError(asked, "the file does not say what it is", "export it with boxwright")
    check_batch(served)
    entry = format_of(served)
    taken = {**{n: n for n in FORMATS}, **FUSED}[record.kind]  # type: ignore[index]
    if entry is None or entry.name != taken:
        kind: str = entry.name if entry is not None else "of no track"
        raise RequestError(
            asked,
            f"the file is {kind}, the model {record.kind}",
            "give a file of that kind",
        )
    path = folder / CONFIG
    config = config_from_text(path.read_text(encoding="utf-8"), str(path))
    kinds = [("input", served.inputs), ("output", served.outputs)]
    if record.kind in FUSED:  # its input is the encoded picture, its outputs are the first four
        kinds = [("output", tuple(o for o in served.outputs if o.name in DETECTIONS))]
    for kind, infos in kinds:
        ours = {i.name: tuple(d if isinstance(d, int) else -1 for d in i.shape[1:]) for i in infos}
        there = {t.name: tuple(t.dims) for t in getattr(config, kind)}
        if ours != there:
            raise RequestError(
                asked,
                f"its {kind}s are {ours}, the configuration's {there}",
                "build a repository of its own",
            )
    import json

    stamp = json.loads(config.parameters["boxwright"].string_value or "{}")
    for key, what in (("names", "classes"), ("boxwright.nms", "thresholds")):
        if stamp.get(key) != served.metadata.get(key):
            raise RequestError(
                asked, f"its {what} are others", "build it again: boxwright repo build --force"
            )
    profile = served.profile_batch
    if profile is not None and profile[2] < config.max_batch_size:
        raise RequestError(
            asked,
            f"it takes up to {profile[2]} pictures, the configuration {config.max_batch_size}",
            "build the plan with a larger --batch",
        )
    return served


def promote(repository: Path, model: str, number: int) -> tuple[int, ...]:
    """Serve a version, and no other; return what was served before.

    Raises:
        RequestError: There is no such model or version.
        CheckFailedError: A file of the version is not as it was put there.
        StoreError: It cannot be written.
    """
    folder = repository / model
    with locked(repository.absolute(), _ADVICE):
        record = record_of(repository, model)
        there = version_numbers_in(folder)
        if number not in there:
            known = ", ".join(str(n) for n in there) or "none"
            raise RequestError(
                f"version {number} of {model}", f"it is not there; there are {known}", "name one"
            )
        damaged = damaged_files(folder, record, number)
        if damaged:
            raise CheckFailedError(
                f"version {number} of {model}",
                f"{damaged[0]} is not as it was put there",
                "add the version again",
            )
        return _serve(folder, record, number)


def rollback(repository: Path, model: str) -> int:
    """Serve what was served before; return its number.

    Raises:
        RequestError: Nothing was served before, or it is gone.
        StoreError: It cannot be written.
    """
    folder = repository / model
    with locked(repository.absolute(), _ADVICE):
        record = record_of(repository, model)
        there = version_numbers_in(folder)
        earlier = [i for i, served in enumerate(record.history[:-1]) if served]
        if not earlier:
            raise RequestError(
                f"rollback of {model}", "nothing else was served before", "use promote"
            )
        number = record.history[earlier[-1]][-1]
        if number not in there:
            raise RequestError(
                f"rollback of {model}", f"version {number} is gone", "use promote with another"
            )
        record.history = record.history[: earlier[-1]]
        _serve(folder, record, number)
    return number


def _serve(folder: Path, record: ModelRecord, number: int) -> tuple[int, ...]:
    """Name a version in the configurations, one step each; what was edited by hand stays."""
    before = tuple(record.served)
    policy = VersionPolicy(specific=(number,))
    block = policy_text(policy)
    texts: dict[str, str] = {}
    for name in (CONFIG, CPU_CONFIG):
        path = folder / name
        if not path.is_file():
            continue
        text = with_block(path.read_text(encoding="utf-8"), "version_policy", block)
        config = config_from_text(text, str(path))
        if list(config.version_policy.specific.versions) != [number]:
            raise StoreError(
                str(path),
                "its version_policy cannot be changed in place",
                "write it on its own line",
            )
        texts[name] = text
    for name, text in texts.items():
        write_file(folder, name, text.encode())
    record.generated = {
        name: with_block(text, "version_policy", block) for name, text in record.generated.items()
    }
    record.history.append([number])
    write_model_record(folder, record)
    return before
