"""What Boxwright knows: a file in one of four folders is an entry, imported on demand.

`families/yolox.py` with a `FAMILY` is the family `yolox`; likewise `SOURCE`, `BACKEND` and
`TASK`. Nothing registers itself, and nothing else imports these folders by name. Installed packages
add families of their own by entry points of the group `boxwright.families` (docs/extending.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.errors import RequestError, UnknownFamilyError, nearest_name
from boxwright.types import GraphSignature

if TYPE_CHECKING:
    from boxwright.backends import BackendKind
    from boxwright.families import Family, Match
    from boxwright.sources import Source
    from boxwright.tasks import Task

__all__ = [
    "backend",
    "backend_names",
    "families",
    "family",
    "family_packages",
    "recognise",
    "source_for",
    "source_of",
    "sources",
    "task",
]

_GROUP = "boxwright.families"
_SOURCE_ORDER = ("onnx_file", "ultralytics", "safetensors_file", "native")


@lru_cache(maxsize=8)
def _file_names(package: str) -> tuple[str, ...]:
    """Return the entry files of a folder, sorted; files without the entry are left out later."""
    folder = importlib.import_module(f"boxwright.{package}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folder.__path__)))


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Return every family: Boxwright's by file name, then those of other installed packages.

    Raises:
        RequestError: An installed package offers one that cannot be used.
    """
    modules = [importlib.import_module(f"boxwright.families.{n}") for n in _file_names("families")]
    found: list[Family] = [m.FAMILY for m in modules]
    for point in _entry_points():
        added = _family_of(point)
        taken = {spelling for f in found for spelling in (f.name, *f.aliases)}
        twice = sorted(taken.intersection((added.name, *added.aliases)))
        if twice:
            raise _unusable(point, f"it is called {twice[0]}, as another family is")
        found.append(added)
    return tuple(found)


def family_packages() -> dict[str, str]:
    """Return version by name of the installed packages that offer families."""
    packages = [point.dist for point in _entry_points() if point.dist is not None]
    return {package.name: package.version for package in packages}


def _entry_points() -> list[EntryPoint]:
    return sorted(entry_points(group=_GROUP), key=lambda point: (point.name, point.value))


def _unusable(point: EntryPoint, found: str) -> RequestError:
    package = f" of the package {point.dist.name}" if point.dist is not None else ""
    return RequestError(
        f"family {point.name}{package} ({point.value})",
        " ".join(found.split()),
        "mend or uninstall that package",
    )


def _family_of(point: EntryPoint) -> Family:
    """Load the family that another package offers.

    Raises:
        RequestError: It cannot be imported, or is none.
    """
    kind = importlib.import_module("boxwright.families").Family
    try:
        found = point.load()
    except Exception as error:
        raise _unusable(point, f"{type(error).__name__}: {error}"[:200]) from error
    if not isinstance(found, kind):
        raise _unusable(point, f"it is of type {type(found).__name__}, not a Family")
    loaded: Family = found
    return loaded


def family(name: str) -> Family:
    """Return a family by its name or an alias.

    Raises:
        RequestError: There is none; the nearest is named.
    """
    known = {spelling: f for f in families() for spelling in (f.name, *f.aliases)}
    if name.lower() in known:
        return known[name.lower()]
    near = nearest_name(name, known)
    raise RequestError(
        f"--family {name}",
        "there is no such family",
        (f"did you mean {near}? " if near else "")
        + "known: "
        + ", ".join(f.name for f in families()),
    )


def recognise(signature: GraphSignature, name: str | None, what: str) -> tuple[Family, Match]:
    """Find the family of a raw graph.

    A family that the file itself confirms wins; otherwise exactly one may fit by shape.

    Args:
        signature: Of the graph.
        name: `--family`, or None to recognise it.
        what: The file, for errors.

    Raises:
        UnknownFamilyError: None fits, or several do.
    """
    shapes = ", ".join(f"{o.name} {list(o.shape)}" for o in signature.outputs)
    if name is not None:
        chosen = family(name)
        finished = importlib.import_module("boxwright.families").finished_match
        # Detections that are counted are read alike, whoever found them.
        match = chosen.recognise(signature, True) or finished(signature)
        if match is None:
            raise UnknownFamilyError(
                what, f"its outputs ({shapes}) do not fit --family {chosen.name}", "check --family"
            )
        return chosen, match
    matches = [(f, m) for f in families() if (m := f.recognise(signature, False)) is not None]
    certain = [(f, m) for f, m in matches if m.certain]
    best = certain or matches
    if len(best) == 1:
        return best[0]
    known = ", ".join(f.name for f in families())
    if best:
        found = "it may be " + " or ".join(f.name for f, _ in best)
    else:
        found = f"no known family has outputs like {shapes}"
    raise UnknownFamilyError(what, found, f"say which with --family ({known})")


def sources() -> tuple[Source, ...]:
    """Return every kind of source, in the order in which they are asked."""
    return tuple(importlib.import_module(f"boxwright.sources.{n}").SOURCE for n in _SOURCE_ORDER)


def source_for(suffix: str) -> Source:
    """Return the source that reads files of a suffix (`.pt`).

    Raises:
        RequestError: There is none.
    """
    for source in sources():
        if suffix.lower() in source.suffixes:
            return source
    known = ", ".join(s for source in sources() for s in source.suffixes)
    raise RequestError(
        f"source of kind {suffix or '(no suffix)'}", "it is not supported", f"give one of {known}"
    )


def source_of(path: Path) -> Source:
    """Return the source that reads a file: by its suffix, and `.pt` files by what they hold.

    Raises:
        RequestError: There is none.
    """
    native = importlib.import_module("boxwright.sources.native")
    if native.claims(path):
        claimed: Source = native.SOURCE
        return claimed
    return source_for(path.suffix)


def backend_names() -> tuple[str, ...]:
    """Return the names of the runtimes."""
    return _file_names("backends")


def backend(name: str) -> BackendKind:
    """Return a runtime by name.

    Raises:
        RequestError: There is none; the nearest is named.
    """
    if name not in backend_names():
        near = nearest_name(name, backend_names())
        raise RequestError(
            f"--runtime {name}",
            "there is no such runtime",
            (f"did you mean {near}? " if near else "") + "known: " + ", ".join(backend_names()),
        )
    kind: BackendKind = importlib.import_module(f"boxwright.backends.{name}").BACKEND
    return kind


def task(name: str) -> Task:
    """Return a task by name.

    Raises:
        RequestError: There is none.
    """
    if name not in _file_names("tasks"):
        known = ", ".join(_file_names("tasks"))
        raise RequestError(f"task {name}", "it is not supported yet", f"known: {known}")
    found: Task = importlib.import_module(f"boxwright.tasks.{name}").TASK
    return found
