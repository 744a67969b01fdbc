"""The exceptions that a user of Boxwright can meet.

One tree, so that a caller can catch all of it or one branch::

    BoxwrightError                 exit code 2: the request or the input is wrong
    ├── RequestError               an option, a recipe key or a name is wrong
    ├── SourceError                an input file is missing, damaged or of an unknown kind
    │   ├── UnsafeCheckpointError  a checkpoint wants code or classes that are not admitted
    │   └── UnknownFamilyError     nothing in the catalog recognises the graph
    ├── ImageError                 a picture or video cannot be read
    ├── MissingExtraError          an optional dependency is not installed
    ├── DownloadError              a download failed or did not match its checksum
    ├── StoreError                 the run directory is locked, occupied or not writable
    ├── GraphError                 a graph cannot be rewritten as asked
    ├── BackendError               a runtime cannot load or run a file
    │   └── MemoryShortError       the GPU's memory does not suffice
    └── CheckFailedError           exit code 1: a parity, accuracy or speed check failed

Every message is one line made of what was asked, what was found and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "BoxwrightError",
    "CheckFailedError",
    "DownloadError",
    "GraphError",
    "ImageError",
    "MissingExtraError",
    "RequestError",
    "SourceError",
    "StoreError",
    "UnknownFamilyError",
    "UnsafeCheckpointError",
    "nearest_name",
]


class BoxwrightError(Exception):
    """A failure that the user can act on.

    Args:
        asked: What was asked for: the option, file or name.
        found: What was found instead.
        do: What to do about it; may be empty where nothing can be advised.
    """

    exit_code = 2

    def __init__(self, asked: str, found: str, do: str = "") -> None:
        self.asked = " ".join(asked.split())
        self.found = " ".join(found.split())
        self.do = " ".join(do.split())
        super().__init__(f"{self.asked}: {self.found}" + (f"; {self.do}" if self.do else ""))


class RequestError(BoxwrightError):
    """An option, a recipe key or a name is wrong."""


class SourceError(BoxwrightError):
    """An input file is missing, damaged or of an unknown kind."""


class UnsafeCheckpointError(SourceError):
    """A checkpoint needs a class or function that is not admitted."""


class UnknownFamilyError(SourceError):
    """No family of the catalog recognises the graph."""


class ImageError(BoxwrightError):
    """A picture or video cannot be read."""


class MissingExtraError(BoxwrightError):
    """An optional dependency is not installed.

    >>> str(MissingExtraError("OpenVINO", "openvino"))
    'OpenVINO: it is not installed; install it with: pip install "boxwright[openvino]"'
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            what, "it is not installed", f'install it with: pip install "boxwright[{extra}]"'
        )


class DownloadError(BoxwrightError):
    """A download failed or did not match its size or checksum."""


class StoreError(BoxwrightError):
    """The run directory is locked, occupied or not writable."""


class GraphError(BoxwrightError):
    """A graph cannot be rewritten as asked."""


class BackendError(BoxwrightError):
    """A runtime cannot load or run a file."""


class MemoryShortError(BackendError):
    """The GPU's memory does not suffice."""


class CheckFailedError(BoxwrightError):
    """A parity, accuracy or speed check failed."""

    exit_code = 1


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that is spelt most like `name`, or "" when none is close.

    >>> nearest_name("fp61", ["fp16", "fp32", "int8"])
    'fp16'
    """
    close = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1, cutoff=0.5)
    return next((k for k in known if close and k.lower() == close[0]), "")
