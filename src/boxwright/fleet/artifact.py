"""What an artefact is, told without its runtime: a driver may have no GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from boxwright import catalog
from boxwright.errors import RequestError, SourceError
from boxwright.sources import SourceRequest
from boxwright.stamps import stamp_from_metadata
from boxwright.triton_address import is_address
from boxwright.types import ModelSpec

__all__ = ["file_from_text", "spec_from_file"]

_PLANS = (".plan", ".engine")


def file_from_text(text: str) -> Path:
    """Return the path of an artefact.

    Raises:
        RequestError: It is on a server.
        SourceError: There is no such file.
    """
    if is_address(text):
        raise RequestError(
            text, "a server's model has no hash that results could be told by", "name the file"
        )
    path = Path(text)
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is no such file"
        raise SourceError(text, found, "check the path")
    return path


def spec_from_file(path: Path, family: str | None = None, labels: str | None = None) -> ModelSpec:
    """Return what a file's model is.

    Args:
        path: ONNX, a plan with its description beside it, or a checkpoint.
        family, labels: Of a raw file that does not say.

    Raises:
        SourceError: It is damaged, or does not say.
        RequestError: An option does not fit.
    """
    from boxwright.sources.sidecars import read_labels

    given = read_labels(labels) if labels else None
    metadata: dict[str, str] = {}
    if path.suffix.lower() in _PLANS:
        from boxwright.engine_record import read_record

        record = read_record(path)
        metadata = dict(record.metadata) if record else {}
    elif path.suffix.lower() == ".onnx":
        from boxwright.graph.io import model_from_file

        metadata = {p.key: p.value for p in model_from_file(path).metadata_props}
    stamp = stamp_from_metadata(metadata, str(path))
    if stamp is None:
        if path.suffix.lower() in _PLANS:
            raise SourceError(
                str(path),
                f"nothing says what model it is: {path.name}.json is missing, or has no stamp",
                "keep that file beside the plan, or build it with: boxwright build",
            )
        names, colors = (given.names, given.colors) if given else (None, ())
        request = SourceRequest(path, path.stem, family=family, labels=names, colors=colors)
        return catalog.source_of(path).describe(request)
    if given is not None:
        return dataclasses.replace(stamp.spec, class_names=given.names)
    return stamp.spec
