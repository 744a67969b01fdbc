"""What lies in a version folder of our python models: `model.py` and what it imports.

The modules are verbatim copies of this installation's. A repository then answers as it was built,
whatever is installed where it is served; NumPy below 2 and OpenCV suffice there. Track F runs a
file in a runtime, for which it takes Boxwright as it is installed where it is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["COPIED", "PythonModel", "python_model_files"]

PythonModel: TypeAlias = Literal["preprocess", "decode", "gate", "postprocess", "fused"]

_PACKAGE = Path(__file__).parents[1]
COPIED = (
    "__init__.py",
    "boxes.py",
    "errors.py",
    "freed_memory.py",
    "images.py",
    "preprocess.py",
    "serve/__init__.py",
    "serve/picture_header.py",
    "serve/settled_process.py",
    "serve/steps.py",
    "types.py",
)


def python_model_files(kind: PythonModel) -> Mapping[str, bytes]:
    """Return the files of a version folder, by path in it."""
    copied = () if kind == "fused" else COPIED
    files = {f"boxwright/{name}": (_PACKAGE / name).read_bytes() for name in copied}
    return {"model.py": (_PACKAGE / "serve/models" / f"{kind}.py").read_bytes(), **files}
