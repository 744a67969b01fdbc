"""What a server is started with: found, laid out, and refused where it cannot work."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from boxwright.errors import BackendError, RequestError, SourceError
from boxwright.serve import installation as places
from boxwright.serve.control import ModelState
from boxwright.serve.installation import cache_folder, find_server
from boxwright.serve.launch import HEADER, ServeRequest, command_line, taken_ports, variables
from boxwright.serve.layout import backends_of, chosen_models, lay_out_backends, parts_of
from boxwright.serve.python_environment import check_python, prepare_environment
from boxwright.serve.requirements import requirements_of
from boxwright.serve.server import _states
from boxwright.serve.watch import ProcessWatch, Stub, stub_from_words

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def fake_server(top: Path, versions: tuple[str, ...] = ("3.11",)) -> Path:
    """Write what an unpacked server looks like; its executable says hello."""
    (top / "bin").mkdir(parents=True)
    binary = top / "bin" / "tritonserver"
    binary.write_text("#!/bin/sh\necho hello\n")
    binary.chmod(0o755)
    (top / "backends" / "python").mkdir(parents=True)
    (top / "backends" / "python" / "libtriton_python.so").write_bytes(b"so")
    for version in versions:
        stub = top / "python_backend_stubs" / version / "triton_python_backend_stub"
        stub.parent.mkdir(parents=True)
        stub.write_bytes(version.encode())
    return binary


def wheel(path: Path) -> Path:
    """Write a wheel with a server in it, and a file outside of it."""
    folder = path.parent / "content"
    fake_server(folder / "pytriton" / "tritonserver")
    (folder / "nvidia_pytriton.libs").mkdir()
    (folder / "nvidia_pytriton.libs" / "libx.so").write_bytes(b"x")
    (folder / "pytriton" / "models.py").write_text("")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


def test_a_wheel_is_unpacked_once(tmp_path):
    given = wheel(tmp_path / "nvidia_pytriton-0.7.0-py3-none-any.whl")
    cache = tmp_path / "cache"
    cache.mkdir()
    found = find_server(given, cache)
    assert os.access(found.binary, os.X_OK)
    assert subprocess.check_output([found.binary], text=True) == "hello\n"
    assert list(found.stubs) == ["3.11"]
    assert [p.name for p in found.libraries] == ["nvidia_pytriton.libs"]
    assert not list(cache.rglob("models.py"))
    written = found.binary.stat().st_mtime_ns
    assert find_server(given, cache) == found
    assert found.binary.stat().st_mtime_ns == written
    assert [p.name for p in cache.iterdir() if not p.name.startswith(".")] == [
        found.binary.parents[3].name
    ]


def test_a_damaged_wheel_leaves_nothing(tmp_path):
    given = wheel(tmp_path / "nvidia_pytriton-0.7.0-py3-none-any.whl")
    given.write_bytes(given.read_bytes()[:-40])
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(SourceError, match="damaged"):
        find_server(given, cache)
    assert not list(cache.iterdir())


def test_a_server_is_looked_for_on_path_first(tmp_path, monkeypatch):
    binary = fake_server(tmp_path / "triton")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_server().binary == binary
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install --no-deps nvidia-pytriton") as refused:
        find_server()
    assert "neither on PATH" in refused.value.found


@pytest.mark.parametrize(
    ("name", "says"), [("nothing", "no such file"), ("empty", "holds no bin/tritonserver")]
)
def test_what_is_no_server_is_refused(tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=says):
        find_server(tmp_path / name)


def test_a_container_tells_the_version_of_its_stub(tmp_path):
    binary = fake_server(tmp_path, versions=())
    own = tmp_path / "backends" / "python" / "triton_python_backend_stub"
    own.write_bytes(b"\x7fELF....libpython3.12.so.1.0\0")
    assert find_server(binary).stubs == {"3.12": own}


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("BOXWRIGHT_CACHE", raising=False)
    assert cache_folder() == tmp_path / "x" / "boxwright"
    monkeypatch.setenv("BOXWRIGHT_CACHE", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b"


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy is below 2 here")
def test_numpy_2_is_refused_for_models():
    with pytest.raises(BackendError) as refused:
        prepare_environment((), (HERE,), python=Path(sys.executable))
    assert "corrupts tensors" in str(refused.value)
    assert '"numpy>=1.24,<2"' in str(refused.value)


def test_a_python_without_a_stub_is_refused():
    with pytest.raises(BackendError, match=r"the server has stubs for 3\.8"):
        prepare_environment((), ("3.8",), python=Path(sys.executable))


def test_a_python_that_does_not_run_is_refused(tmp_path):
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(BackendError, match="it is broken"):
        check_python(broken)


def test_a_failed_install_leaves_nothing(tmp_path, monkeypatch):
    """pip is asked for a package that no index has; nothing stays in the cache."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises((BackendError, RequestError)) as refused:
        prepare_environment(("no-such-package-at-all",), (HERE, "3.10", "3.11"), cache=cache)
    assert "could not be installed" in str(refused.value) or "it takes" in str(refused.value)
    assert not [p for p in cache.iterdir() if not p.name.endswith(".lock")]


def test_the_server_keeps_freed_memory_unless_it_is_told_otherwise(tmp_path, monkeypatch):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    found = find_server(fake_server(tmp_path / "server"))
    assert variables(found, None, with_home=False)["MALLOC_MMAP_THRESHOLD_"] == "33554432"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    assert variables(found, None, with_home=False)["MALLOC_TRIM_THRESHOLD_"] == "4096"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=9")
    assert "MALLOC_MMAP_THRESHOLD_" not in variables(found, None, with_home=False)


def repository(folder: Path, **models: str) -> Path:
    for name, text in models.items():
        (folder / name).mkdir()
        (folder / name / "config.pbtxt").write_text(text)
    return folder


def test_backends_are_read_from_configurations(tmp_path):
    repository(
        tmp_path,
        a='name: "a"\nbackend: "onnxruntime"\n',
        b="  platform: 'tensorrt_plan'\n",
        c='platform: "ensemble"',
        d='input { name: "backend" }\n',
    )
    assert backends_of(tmp_path) == {
        "onnxruntime": ("a",),
        "tensorrt": ("b",),
        "ensemble": ("c",),
    }


def test_an_ensemble_that_is_not_listed_names_the_part_that_failed(tmp_path):
    steps = "".join(f'step {{\n  model_name: "{n}"\n model_version: -1 }}\n' for n in "abca")
    repository(
        tmp_path, whole=f'platform: "ensemble"\nensemble_scheduling {{ {steps} }}', a="", b="", c=""
    )
    assert parts_of(tmp_path, "whole") == ("a", "b", "c")
    index = (
        ModelState("a", "1", "READY", ""),
        ModelState("b", "1", "UNAVAILABLE", "the plan is of another GPU"),
        ModelState("c", "", "", ""),
        ModelState("whole", "", "", ""),
    )
    control = SimpleNamespace(index=lambda: index)
    (state,) = _states(control, ("whole",), tmp_path)
    assert (state.name, state.state) == ("whole", "UNAVAILABLE")
    assert "b (the plan is of another GPU); c (the server says no reason)" in state.reason
    found = {m.name: m.reason for m in _states(control, ("a", "c"), tmp_path)}
    assert found == {"a": "", "c": "the server does not list it"}


def test_models_are_chosen(tmp_path):
    repository(tmp_path, yolo_small="", yolo_large="")
    (tmp_path / ".hidden").mkdir()
    assert chosen_models(tmp_path, ()) == ("yolo_large", "yolo_small")
    assert chosen_models(tmp_path, ("yolo_small",)) == ("yolo_small",)
    with pytest.raises(RequestError, match="did you mean yolo_small"):
        chosen_models(tmp_path, ("yolo_smal",))
    with pytest.raises(SourceError, match=r"no MODEL/config\.pbtxt"):
        chosen_models(tmp_path / "yolo_small", ())
    with pytest.raises(SourceError, match="no such folder"):
        chosen_models(tmp_path / "x", ())


def test_ours_stand_in_for_the_backends_that_are_missing(tmp_path):
    found = find_server(fake_server(tmp_path / "triton"))
    (found.backends / "onnxruntime").mkdir()
    (found.backends / "onnxruntime" / "libtriton_onnxruntime.so").write_bytes(b"so")
    (tmp_path / "layout").mkdir()
    folder = lay_out_backends(found, "3.11", tmp_path / "layout")
    assert (folder / "onnxruntime" / "libtriton_onnxruntime.so").is_file()
    assert not (folder / "onnxruntime" / "model.py").exists()
    for name in ("tensorrt", "dali"):
        assert {p.name for p in (folder / name).iterdir()} == {"model.py", "joining.py"}
    stub = folder / "python" / "triton_python_backend_stub"
    assert stub.read_bytes() == b"3.11"
    assert not stub.is_symlink()
    assert (folder / "python" / "boxwright" / "__init__.py").is_file()
    assert {p.name for p in found.backends.iterdir()} == {"python", "onnxruntime"}


def test_packages_follow_backends(tmp_path):
    assert requirements_of(tmp_path, ("onnxruntime",), on_gpu=False) == ("onnxruntime",)
    assert requirements_of(tmp_path, ("onnxruntime", "dali"), on_gpu=False) == (
        "nvidia-dali-cuda120",
        "onnxruntime",
    )
    assert requirements_of(tmp_path, ("tensorrt",), on_gpu=False) == ()


def test_the_command_line_keeps_to_this_machine(tmp_path):
    found = find_server(fake_server(tmp_path / "triton"))
    request = ServeRequest(tmp_path, models=("a", "b"), metrics=False, cache_mib=64)
    words = command_line(request, found, found.backends, "cpu", "", "p_")
    for word in ("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--allow-metrics=false",
                 "--model-control-mode=explicit", "--load-model=a", "--load-model=b",
                 "--model-config-name=cpu", f"--cache-config=local,size={64 * 2**20}"):  # fmt: skip
        assert word in words
    assert not any("restricted" in w for w in words)
    open_words = command_line(request, found, found.backends, "", "secret", "p_")
    assert any(w.endswith(f"{HEADER}=secret") and "model-repository" in w for w in open_words)


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        request = ServeRequest(tmp_path, http_port=port, grpc_port=0, metrics_port=0)
        with (
            pytest.raises(RequestError, match=f"--http-port {port}.*nothing can listen there"),
            taken_ports(request),
        ):
            pass


def test_free_ports_differ(tmp_path):
    with taken_ports(ServeRequest(tmp_path, http_port=0, grpc_port=0, metrics_port=0)) as ports:
        assert len(set(ports.values())) == 3


class Pretended:
    """A server's endpoints, as a watch sees them."""

    def __init__(self) -> None:
        self.states = [("m", "1", "READY")]
        self.loaded: list[str] = []

    def index(self):
        from boxwright.serve.control import ModelState

        return tuple(ModelState(*s, "") for s in self.states)

    def config(self, model: str):
        return {"name": model}

    def load(self, model: str, config: object) -> None:
        self.loaded.append(model)


def watched(monkeypatch, alive: list[Stub]):
    import boxwright.serve.watch as module

    monkeypatch.setattr(module, "stubs_of", lambda server: tuple(alive))
    control = Pretended()
    watch = ProcessWatch(1, control, lambda text: None)
    watch._look()
    return watch, control


def test_a_process_that_is_gone_twice_is_dead(monkeypatch):
    alive = [Stub(10, "m", "1", "m_0"), Stub(11, "m", "1", "m_1")]
    watch, _ = watched(monkeypatch, alive)
    del alive[0]
    assert watch._look() == []
    assert watch._look() == ["m"]
    assert watch._look() == []


@pytest.mark.parametrize("state", ["UNAVAILABLE", "UNLOADING"])
def test_a_model_that_was_unloaded_is_left_alone(monkeypatch, state):
    alive = [Stub(10, "m", "1", "m_0")]
    watch, control = watched(monkeypatch, alive)
    alive.clear()
    control.states = [("m", "1", state)]
    assert [watch._look() for _ in range(4)] == [[]] * 4


def test_a_new_version_is_no_death(monkeypatch):
    alive = [Stub(10, "m", "1", "m_0")]
    watch, control = watched(monkeypatch, alive)
    alive.append(Stub(12, "m", "2", "m_0"))
    assert watch._look() == []
    del alive[0]
    control.states = [("m", "1", "UNAVAILABLE"), ("m", "2", "READY")]
    assert [watch._look() for _ in range(3)] == [[]] * 3


def test_other_processes_are_no_stubs():
    assert stub_from_words(1, ["/usr/bin/python3", "x.py"]) is None
    assert stub_from_words(1, [""]) is None


def test_serve_refuses_before_it_starts(cli, tmp_path):
    done = cli("serve", tmp_path / "nothing")
    assert done.code == 2
    assert "there is no such folder" in done.error
    repository(tmp_path, m='backend: "python"')
    done = cli("serve", tmp_path, "--server", tmp_path / "x.whl")
    assert done.code == 2
    assert "there is no such file" in done.error
