"""Shared by all tests: `tests/` on the path, tiny models, and the command line in this process."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of OpenMP that wait for each other spin them away.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import tiny_models


@dataclass(frozen=True)
class Ran:
    """What the command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error line, without its prefix; there must be exactly one, and it comes last."""
        lines = self.err.splitlines()
        found = [line for line in lines if line.startswith("boxwright: error: ")]
        assert len(found) == 1, self.err
        assert lines[-1] == found[0], self.err
        assert all(line.startswith("boxwright: ") for line in lines), self.err
        assert re.fullmatch(r"boxwright: error: .+: .+; .+", found[0]), found[0]
        return found[0].removeprefix("boxwright: error: ")


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of a child process, in which this very boxwright is found."""
    import boxwright

    places = [str(Path(boxwright.__file__).parents[1]), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process; words that are not text are made text.

    `run` measures latency only where `--seconds` asks for it: it takes its time.
    """
    from boxwright.cli import main

    def call(*words: object) -> Ran:
        capsys.readouterr()
        if words[:1] == ("run",) and "--seconds" not in words:
            words = ("run", "--skip-benchmark", *words[1:])
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a tiny Ultralytics-like raw head."""
    return tiny_models.ultralytics_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx").read_bytes()


@pytest.fixture
def place(tmp_path: Path, tiny_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds `tiny.onnx` and `pics/` with two pictures."""
    (tmp_path / "tiny.onnx").write_bytes(tiny_bytes)
    (tmp_path / "pics").mkdir()
    for index, picture in enumerate(tiny_models.pictures(2)):
        cv2.imwrite(str(tmp_path / "pics" / f"p{index}.png"), picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> dict[str, str]:
    """Return every path below a folder, with the hash of a file's bytes."""
    return {
        str(p.relative_to(folder)): (
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        )
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Return what a folder holds, to compare before and after."""
    return tree
