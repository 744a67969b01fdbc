"""Finds a tritonserver: on PATH, in the nvidia-pytriton package, or in its wheel.

The wheel holds a whole server without its C++ backends; it need not be installed, and should not
be beside Boxwright with its dependencies, since it asks for NumPy below 2.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import RequestError, SourceError, StoreError
from boxwright.store import locked

__all__ = ["WHEEL", "Installation", "cache_folder", "find_server"]

WHEEL = "nvidia-pytriton==0.7.0"
_HOW = (
    f"pip install --no-deps {WHEEL}, or pip download --no-deps {WHEEL} and give the wheel with "
    "--server"
)
_STUB = "triton_python_backend_stub"
_NEEDED = re.compile(rb"libpython(3\.[0-9]+)\.so")


@dataclass(frozen=True, slots=True)
class Installation:
    """A server that is there.

    Attributes:
        binary: The executable.
        backends: Folder of its backends.
        caches: Folder of its response caches; may be missing.
        libraries: Folders that its parts need on the library path.
        stubs: The Python backend's stub for each version of Python (`3.11`); empty where the
            server has no Python backend.
    """

    binary: Path
    backends: Path
    caches: Path
    libraries: tuple[Path, ...]
    stubs: dict[str, Path]


def cache_folder() -> Path:
    """Return where Boxwright keeps what it unpacks and installs for servers.

    `BOXWRIGHT_CACHE`, or `boxwright` in the user's cache folder.
    """
    own = os.environ.get("BOXWRIGHT_CACHE")
    if own:
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "boxwright"


def find_server(given: Path | None = None, cache: Path | None = None) -> Installation:
    """Find a server.

    Args:
        given: The executable, a folder that holds one, or an nvidia-pytriton wheel; None looks on
            PATH, then in the nvidia-pytriton package.
        cache: Where a wheel is unpacked; None is `cache_folder()`.

    Raises:
        RequestError: There is none.
        SourceError: What was given is no server.
    """
    if given is not None:
        return _given(given, cache or cache_folder())
    on_path = shutil.which("tritonserver")
    if on_path:
        return _installation(Path(on_path).resolve())
    spec = importlib.util.find_spec("pytriton")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(place, "tritonserver", "bin", "tritonserver")
        if binary.is_file():
            return _installation(binary)
    raise RequestError(
        "tritonserver", "it is neither on PATH nor in an nvidia-pytriton package", _HOW
    )


def _given(given: Path, cache: Path) -> Installation:
    if given.suffix == ".whl":
        return _installation(_unpacked(given, cache))
    if given.is_file():
        return _installation(given.resolve())
    for inside in ("bin", "tritonserver/bin", "pytriton/tritonserver/bin"):
        binary = given / inside / "tritonserver"
        if binary.is_file():
            return _installation(binary.resolve())
    found = "it holds no bin/tritonserver" if given.is_dir() else "there is no such file"
    raise SourceError(str(given), found, _HOW)


def _installation(binary: Path) -> Installation:
    """Look around an executable.

    Raises:
        SourceError: It cannot be executed.
    """
    if not os.access(binary, os.X_OK):
        raise SourceError(str(binary), "it may not be executed", f"chmod +x {binary}")
    top = binary.parent.parent
    libraries = [top / "lib", top.parent.parent / "nvidia_pytriton.libs"]
    stubs = {p.parent.name: p for p in sorted(top.glob(f"python_backend_stubs/*/{_STUB}"))}
    own = top / "backends" / "python" / _STUB
    if own.is_file():
        match = _NEEDED.search(own.read_bytes())
        if match:
            stubs[match.group(1).decode()] = own
    return Installation(
        binary=binary,
        backends=top / "backends",
        caches=top / "caches",
        libraries=tuple(p for p in libraries if p.is_dir()),
        stubs=stubs,
    )


def _unpacked(wheel: Path, cache: Path) -> Path:
    """Unpack a wheel, once, and return the executable in it.

    Raises:
        SourceError: It is no wheel of nvidia-pytriton.
        StoreError: The cache is not writable, or another process unpacks it.
    """
    if not wheel.is_file():
        raise SourceError(str(wheel), "there is no such file", _HOW)
    facts = wheel.stat()
    key = hashlib.sha256(f"{wheel.name} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
    target = cache / f"tritonserver-{key[:12]}"
    binary = target / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if binary.is_file():
        return binary
    with locked(target, "wait for it"):
        if binary.is_file():
            return binary
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=cache))
        try:
            with zipfile.ZipFile(wheel) as archive:
                _extract(archive, part)
            if not (part / binary.relative_to(target)).is_file():
                raise SourceError(str(wheel), "it holds no tritonserver", _HOW)
            part.chmod(0o755)
            part.replace(target)
        except (zipfile.BadZipFile, EOFError) as error:
            raise SourceError(str(wheel), f"it is damaged ({error})", "download it again") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(
                str(cache), reason, "free some space, or set BOXWRIGHT_CACHE"
            ) from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return binary


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    """Extract the server and its libraries; who may be executed in the wheel may be here."""
    for member in archive.infolist():
        if not member.filename.startswith(("pytriton/tritonserver/", "nvidia_pytriton.libs/")):
            continue
        path = Path(archive.extract(member, folder))
        if (member.external_attr >> 16) & stat.S_IXUSR and path.is_file():
            path.chmod(0o755)
