"""The Python that Triton's Python backend runs in: one of its own, with NumPy below 2.

The stub embeds libpython and finds its packages through the first `python3` on PATH. With NumPy 2
there it corrupts tensors without a word, so that NumPy is checked before each start.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import BackendError, RequestError, StoreError
from boxwright.serve.installation import cache_folder
from boxwright.store import locked

__all__ = [
    "NUMPY",
    "PythonEnvironment",
    "check_python",
    "plain_environment",
    "prepare_environment",
]

NUMPY = "numpy>=1.24,<2"
_NEWEST = (3, 12)  # NumPy below 2 has no wheels for later ones
_PROBE = """
import json, sys, sysconfig
try:
    import numpy
    found = numpy.__version__
except ImportError as error:
    found = ""
print(json.dumps({
    "version": list(sys.version_info[:2]), "numpy": found, "prefix": sys.base_prefix,
    "folder": sysconfig.get_config_var("LIBDIR"), "library": sysconfig.get_config_var("INSTSONAME"),
}))
"""
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class PythonEnvironment:
    """A Python for the stub.

    Attributes:
        python: Its executable.
        version: `3.11`.
        library_folder: Where its own libpython lies; that of another build does not fit.
        numpy: Version of NumPy in it; "" where there is none.
    """

    python: Path
    version: str
    library_folder: Path | None
    numpy: str


def plain_environment(*, with_home: bool = False) -> dict[str, str]:
    """Return this process's environment without what would lead another Python astray."""
    without = ("PYTHONPATH", "VIRTUAL_ENV", *(() if with_home else ("PYTHONHOME",)))
    return {k: v for k, v in os.environ.items() if k not in without}


def check_python(python: Path, *, with_home: bool = False) -> PythonEnvironment:
    """Look into a Python as the stub will see it, which does not heed PYTHONPATH.

    Args:
        python: Its executable.
        with_home: Whether PYTHONHOME, where it is set, is meant for it.

    Raises:
        BackendError: It does not run.
    """
    try:
        done = subprocess.run(
            [python, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
            env=plain_environment(with_home=with_home),
        )
        told = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        cause = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise BackendError(
            f"--python {python}", f"it does not run ({' '.join(cause)[:200]})", "name another"
        ) from None
    folders = [Path(told["folder"] or "/"), Path(told["prefix"], "lib")]
    holding = next((f for f in folders if (f / (told["library"] or "?")).is_file()), None)
    major, minor = told["version"]
    return PythonEnvironment(python, f"{major}.{minor}", holding, told["numpy"])


def _refuse_unfit(found: PythonEnvironment, versions: Sequence[str]) -> None:
    """Refuse a Python that the stub cannot use.

    Raises:
        BackendError: Its version has no stub, its NumPy is 2, or it has no shared library.
    """
    what = str(found.python)
    if found.version not in versions:
        raise BackendError(
            what,
            f"it is Python {found.version}, the server has stubs for {', '.join(versions)}",
            "name another with --python",
        )
    if not found.numpy:
        raise BackendError(what, "it has no NumPy", f'install "{NUMPY}" in it')
    if int(found.numpy.split(".")[0]) >= 2:
        raise BackendError(
            what,
            f"it has NumPy {found.numpy}, with which Triton's Python backend corrupts tensors",
            f'install "{NUMPY}" in it, or drop --python',
        )
    if found.library_folder is None:
        raise BackendError(
            what, "its libpython is not a shared library", "install it (Debian: libpython3-dev)"
        )


def prepare_environment(
    requirements: Iterable[str],
    versions: Sequence[str],
    *,
    python: Path | None = None,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> PythonEnvironment:
    """Return a Python that is fit for the stub; made on first use and kept in the cache.

    Args:
        requirements: What pip installs besides NumPy.
        versions: Of Python that the server has stubs for.
        python: A prepared Python of the user's; nothing is installed into it.
        cache: None is `cache_folder()`.
        note: Told what happens.

    Raises:
        BackendError: The Python is unfit, or installing fails.
        RequestError: No fit version of Python is here.
    """
    if python is not None:
        found = check_python(python, with_home=True)
        _refuse_unfit(found, versions)
        return found
    base = _base_python(versions)
    wanted = sorted({NUMPY, *requirements})
    text = json.dumps([str(base.python), base.version, wanted])
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    target = (cache or cache_folder()) / f"triton-python{base.version}-{key}"
    executable = target / "bin" / "python3"
    if not executable.exists():
        with locked(target, "wait for it"):
            if not executable.exists():
                note(f"installing {', '.join(wanted)} for the server into {target}")
                _install(base.python, wanted, target)
    found = check_python(executable)
    _refuse_unfit(found, versions)
    return found


def _base_python(versions: Sequence[str]) -> PythonEnvironment:
    """Return this Python, or another on PATH, of a version that has a stub and NumPy below 2.

    Raises:
        RequestError: There is none.
    """
    able = [v for v in versions if tuple(int(n) for n in v.split(".")) <= _NEWEST]
    places = [Path(getattr(sys, "_base_executable", sys.executable))]
    newest_first = sorted(able, key=lambda v: int(v.split(".")[1]), reverse=True)
    places += [Path(p) for v in newest_first if (p := shutil.which(f"python{v}"))]
    seen = []
    for place in places:
        try:
            found = check_python(place)
        except BackendError:
            continue
        if found.version in able and found.library_folder is not None:
            return found
        shared = "" if found.library_folder else " without a shared libpython"
        seen.append(f"{place} ({found.version}{shared})")
    raise RequestError(
        "Python for the server's models",
        f"found {', '.join(seen) or 'none'}; it takes {', '.join(able)}, with a shared libpython",
        "install one of them, or name one that has NumPy below 2 with --python",
    )


def _install(python: Path, requirements: Sequence[str], target: Path) -> None:
    """Make a virtual environment that appears whole or not at all.

    Raises:
        BackendError: pip fails.
        StoreError: The cache is not writable.
    """
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _run([str(python), "-m", "venv", "--without-pip", str(part)])
        inside = str(part / "bin" / "python3")
        if importlib.util.find_spec("pip") is not None:
            pip = [sys.executable, "-m", "pip", "--python", inside, "install", "-q"]
            pip += ["--disable-pip-version-check", "--no-warn-script-location"]
        elif uv := shutil.which("uv"):
            pip = [uv, "pip", "install", "-q", "--python", inside]
        else:
            raise BackendError(
                "packages for the server", "there is neither pip nor uv", "python -m ensurepip"
            )
        _run([*pip, *requirements])
        part.chmod(0o755)
        part.replace(target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreError(str(target), reason, "free some space, or set BOXWRIGHT_CACHE") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _run(command: list[str]) -> None:
    without = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER")
    environment = {k: v for k, v in plain_environment().items() if k not in without}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [n for n in (done.stderr or done.stdout).splitlines() if n.strip()]
        errors = [n for n in lines if "error" in n.lower()] or lines or ["it gives no reason"]
        raise BackendError(
            "packages for the server",
            f"they could not be installed ({errors[-1].strip()[:300]})",
            "check the network, or name a prepared Python with --python",
        )
