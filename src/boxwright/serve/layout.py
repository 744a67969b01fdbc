"""Lays out what a server reads beside the repository: its backends, ours among them.

Files are copied, since Triton refuses a backend whose library is a link out of its folder.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import boxwright
from boxwright.errors import RequestError, SourceError, nearest_name
from boxwright.serve.installation import Installation

__all__ = ["OURS", "backends_of", "chosen_models", "lay_out_backends", "parts_of", "write_backend"]

OURS = ("onnxruntime", "tensorrt", "dali")
_FOLDER = Path(__file__).parent / "backends"
_STUB = "triton_python_backend_stub"
_PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
_NAMED = re.compile(r'^\s*(?:backend|platform)\s*:\s*["\']([^"\']+)["\']', re.MULTILINE)
_STEP = re.compile(r'^\s*model_name\s*:\s*["\']([^"\']+)["\']', re.MULTILINE)


def chosen_models(repository: Path, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return the models of a repository, or those that were asked for.

    Raises:
        SourceError: The folder holds no model.
        RequestError: One of those asked for is not there; the nearest is named.
    """
    if not repository.is_dir():
        raise SourceError(str(repository), "there is no such folder", "name a model repository")
    known = sorted(
        p.name
        for p in repository.iterdir()
        if p.is_dir() and not p.name.startswith(".") and (p / "config.pbtxt").is_file()
    )
    if not known:
        raise SourceError(
            str(repository),
            "it holds no MODEL/config.pbtxt",
            "name a model repository (boxwright repo build makes one)",
        )
    for name in asked:
        if name not in known:
            near = nearest_name(name, known)
            raise RequestError(
                f"--model {name}",
                f"{repository} holds {', '.join(known)}",
                f"did you mean {near}?" if near else "name one of them",
            )
    return tuple(dict.fromkeys(asked)) or tuple(known)


def backends_of(repository: Path) -> dict[str, tuple[str, ...]]:
    """Return the backend of every model, by backend (`ensemble` for ensembles).

    Raises:
        SourceError: A configuration cannot be read.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        try:
            match = _NAMED.search(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(str(path), f"it cannot be read ({error})", "mend it") from None
        if match:
            name = _PLATFORMS.get(match.group(1), match.group(1))
            found.setdefault(name, []).append(path.parent.name)
    return {name: tuple(models) for name, models in found.items()}


def parts_of(repository: Path, model: str) -> tuple[str, ...]:
    """Return the models that an ensemble asks, in order; () for another model.

    Raises:
        SourceError: The configuration cannot be read.
    """
    path = repository / model / "config.pbtxt"
    try:
        return tuple(dict.fromkeys(_STEP.findall(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(str(path), f"it cannot be read ({error})", "mend it") from None


def write_backend(name: str, folder: Path) -> None:
    """Copy one of our backends to FOLDER/NAME, as a server reads it.

    Args:
        name: One of `OURS`.
        folder: A server's folder of backends, or one that is made.
    """
    target = folder / name
    target.mkdir(parents=True)
    shutil.copyfile(_FOLDER / name / "model.py", target / "model.py")
    shutil.copyfile(_FOLDER / "joining.py", target / "joining.py")


def lay_out_backends(installation: Installation, version: str, folder: Path) -> Path:
    """Compose a folder of backends: the server's own, and ours where it has none.

    Args:
        installation: The server.
        version: Of the Python that models run in; "" for a server without a Python backend.
        folder: An empty folder.

    Returns:
        The folder to give to the server.
    """
    missing = [n for n in OURS if not (installation.backends / n).is_dir()]
    if not version:
        return installation.backends
    for own in sorted(p for p in installation.backends.iterdir() if p.is_dir()):
        if own.name != "python":
            (folder / own.name).symlink_to(own, target_is_directory=True)
    python = folder / "python"
    shutil.copytree(installation.backends / "python", python)
    shutil.copy(installation.stubs[version], python / _STUB)
    # The stub puts this folder on sys.path: models may import Boxwright from wherever it is.
    (python / "boxwright").symlink_to(Path(boxwright.__file__).parent, target_is_directory=True)
    for name in missing:
        write_backend(name, folder)
    return folder
