"""The stamp: what a file says of itself, as JSON in the ONNX metadata.

Kept apart from `graph` so that detecting with a file does not import onnx.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from boxwright.errors import SourceError
from boxwright.types import ModelSpec, NmsSettings, Target

__all__ = ["Stamp", "metadata_from_stamp", "stamp_from_metadata"]

_SPEC_KEY, _TARGET_KEY, _NMS_KEY = "boxwright.spec", "boxwright.target", "boxwright.nms"
_PARENT_KEY = "boxwright.parent"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file says of itself.

    Attributes:
        spec: The model.
        target: What was asked for; None in a file that only carries a spec.
        nms: Settings baked into an end-to-end graph.
        parent: SHA-256 of what the file was made from, or "".
    """

    spec: ModelSpec
    target: Target | None = None
    nms: NmsSettings | None = None
    parent: str = ""


def metadata_from_stamp(stamp: Stamp) -> dict[str, str]:
    """Return the metadata entries of a stamp, and those that Ultralytics' loader reads."""
    height, width = stamp.spec.input_size
    values = {
        _SPEC_KEY: json.dumps(stamp.spec.as_dict(), sort_keys=True),
        _PARENT_KEY: stamp.parent,
        "task": stamp.spec.task,
        "names": repr(dict(enumerate(stamp.spec.class_names))),
        "stride": str(max(stamp.spec.layout.strides, default=32)),
        "imgsz": repr([height, width]),
    }
    if stamp.target is not None:
        values[_TARGET_KEY] = json.dumps(stamp.target.as_dict(), sort_keys=True)
        values["batch"] = str(stamp.target.batch or 1)
    if stamp.nms is not None:
        values[_NMS_KEY] = json.dumps(stamp.nms.as_dict(), sort_keys=True)
    return values


def stamp_from_metadata(metadata: Mapping[str, str], what: str) -> Stamp | None:
    """Read the stamp out of a file's metadata; None when it carries none.

    Raises:
        SourceError: The stamp is damaged or of a newer version.
    """
    if _SPEC_KEY not in metadata:
        return None
    try:
        target, nms = metadata.get(_TARGET_KEY), metadata.get(_NMS_KEY)
        return Stamp(
            spec=ModelSpec.from_dict(json.loads(metadata[_SPEC_KEY])),
            target=Target.from_dict(json.loads(target)) if target else None,
            nms=NmsSettings.from_dict(json.loads(nms)) if nms else None,
            parent=metadata.get(_PARENT_KEY, ""),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise SourceError(
            what,
            f"its Boxwright metadata cannot be read ({error})",
            "update Boxwright or export the file again",
        ) from None
