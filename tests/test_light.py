"""The base install suffices: no module and no `--help` needs an optional dependency."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import boxwright

SOURCE = Path(boxwright.__file__).parents[1]
OPTIONAL = (
    "torch",
    "torchvision",
    "ultralytics",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "cuda",
    "nvidia",
    "safetensors",
    "supervision",
    "tritonclient",
    "grpc",
    "pyarrow",
    "pytriton",
    "ray",
    "triton_python_backend_utils",
)

_BLOCK = f"""
import importlib.machinery, sys
class Base(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            return None
        return super().find_spec(name, path, target)
sys.meta_path = [Base if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
sys.path.insert(0, {str(SOURCE)!r})
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that has the base dependencies alone."""
    return subprocess.run(
        [sys.executable, "-c", _BLOCK + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_imports_without_extras():
    """All but the networks: below `boxwright.nets` every module is made of torch's classes."""
    done = run_blocked(
        """
        import importlib, pkgutil, boxwright
        names = [m.name for m in pkgutil.walk_packages(boxwright.__path__, "boxwright.")]
        for name in names:
            if name != "boxwright.__main__" and not name.startswith("boxwright.nets."):
                importlib.import_module(name)
        print(len(names))
        """
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "run",
        "demo",
        "export",
        "build",
        "fetch",
        "verify",
        "benchmark",
        "tune",
        "evaluate",
        "report",
        "compare",
        "predict",
        "fleet",
        "serve",
        "repo",
        "inspect",
        "doctor",
        "clean",
    ],
)
def test_every_help_prints_without_extras(verb):
    words = [verb, "--help"] if verb else ["--help"]
    done = run_blocked(f"from boxwright.cli import main; main({words!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: boxwright") and not done.stderr


@pytest.mark.parametrize(
    "verb", ["build", "add-version", "promote", "rollback", "list", "check", "deploy"]
)
def test_every_help_of_repositories_prints_without_extras(verb):
    done = run_blocked(f"from boxwright.cli import main; main(['repo', {verb!r}, '--help'])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: boxwright repo {verb}") and not done.stderr


@pytest.mark.parametrize("verb", ["predict", "run", "evaluate"])
def test_every_help_of_fleets_prints_without_extras(verb):
    done = run_blocked(f"from boxwright.cli import main; main(['fleet', {verb!r}, '--help'])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: boxwright fleet {verb}") and not done.stderr


def test_a_repository_without_its_extra_names_the_command(tmp_path):
    done = run_blocked(
        f"""
        from boxwright.cli import main
        from boxwright.sample import onnx_file
        main(["repo", "build", str(onnx_file()), "--out", {str(tmp_path / "models")!r}])
        """
    )
    assert done.returncode == 2 and 'pip install "boxwright[triton]"' in done.stderr
    assert not (tmp_path / "models").exists()


def test_import_loads_nothing_heavy():
    done = run_blocked(
        """
        import boxwright
        heavy = {"numpy", "cv2", "onnx", "onnxruntime", "pydantic", "rich", "click", "yaml"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_predict_path_does_not_import_onnx(tmp_path):
    """Detecting with a file of ours needs no graph library: cold starts stay fast."""
    done = run_blocked(
        """
        import boxwright.loading, boxwright.predict, boxwright.backends.onnxruntime
        print(sorted({"onnx", "pydantic", "onnxslim", "huggingface_hub"} & set(sys.modules)))
        """
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_missing_extra_names_its_command(tmp_path):
    done = run_blocked(
        """
        from boxwright.cli import main
        main(["run", "yolo11n.yaml", "--out", "never"])
        """
    )
    assert done.returncode == 2
    assert 'pip install "boxwright[export]"' in done.stderr and "Traceback" not in done.stderr


def test_public_names_exist():
    for name in boxwright.__all__:
        assert getattr(boxwright, name) is not None
    with pytest.raises(AttributeError):
        boxwright.nonsense  # noqa: B018
