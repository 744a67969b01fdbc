"""Checkpoints that want to run something: nothing of them may run.

Every attack asks for a command that would create a file; the tests prove that it never appears.
The attacks are first given to Python's own unpickler, to prove that they work.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import shlex
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwright.errors import UnsafeCheckpointError
from boxwright.sources import pickle_builders, pickle_machine
from boxwright.sources.admitted import FUNCTIONS, GlobalRef
from boxwright.sources.inert import RefusedError
from boxwright.sources.pickles import summarise

SYSTEM = f"{os.system.__module__}.system"
SYSTEM_GLOBAL = f"c{os.system.__module__}\nsystem\n".encode()
EXTENSION = 0x51
TINY = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[0], 1, "Detect", ["nc"]]]}

Payload = Callable[[str], bytes]


def _value(value: Any) -> bytes:
    """Return opcodes that push a plain value: a pickle without its frame."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _call(function: bytes, *args: bytes) -> bytes:
    """Return opcodes that call a global with arguments."""
    return function + b"(" + b"".join(args) + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _python(command: str) -> str:
    """Return an expression that runs a command and is an activation, as a careful attack is."""
    return f"(__import__('os').system({command!r}), torch.nn.SiLU())[1]"


def _archive(path: Path, stream: bytes) -> Path:
    """Write a checkpoint file around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", stream)
        archive.writestr("best/version", b"3\n")
    return path


# Name, opcodes between PROTO and STOP, what is found; whether pickle.loads alone runs it.
ATTACKS: tuple[tuple[str, Payload, str, bool], ...] = (
    ("os.system", lambda c: _call(SYSTEM_GLOBAL, _value(c)), SYSTEM, True),
    (
        "builtins.eval",
        lambda c: _call(_global("builtins", "eval"), _value(f"__import__('os').system({c!r})")),
        "builtins.eval",
        True,
    ),
    (
        "functools.partial",
        lambda c: _call(_call(_global("functools", "partial"), SYSTEM_GLOBAL, _value(c))),
        "functools.partial",
        True,
    ),
    (
        "in _rebuild_parameter",
        lambda c: _call(
            _global("torch._utils", "_rebuild_parameter"),
            _call(SYSTEM_GLOBAL, _value(c)),
            _value(True),
            _value(None),
        ),
        SYSTEM,
        False,
    ),
    ("torch.hub.load", lambda c: _call(_global("torch.hub", "load"), _value("a/b")), "hub", False),
    ("torch.load", lambda c: _call(_global("torch", "load"), _value("x")), "torch.load", False),
    (
        "torch.serialization.load",
        lambda c: _call(_global("torch.serialization", "load"), _value("x")),
        "torch.serialization.load",
        False,
    ),
    (
        "dotted name",
        lambda c: _value("pathlib") + _value("os.system") + b"\x93" + _value(c) + b"\x85R",
        "pathlib.os.system",
        sys.version_info < (3, 13),
    ),
    (
        "dotted name of an admitted class",
        lambda c: _value("collections") + _value("OrderedDict.__init__") + b"\x93",
        "collections.OrderedDict.__init__",
        False,
    ),
    (
        "getattr of a function",
        lambda c: _call(
            _global("builtins", "getattr"), _global("_codecs", "encode"), _value("__self__")
        ),
        "builtins.getattr of '__self__'",
        False,
    ),
    (
        "getattr of a layer's globals",
        lambda c: _call(
            _global("builtins", "getattr"),
            _global("torch.nn.modules.conv", "Conv2d"),
            _value("__init__"),
        ),
        "builtins.getattr of '__init__'",
        False,
    ),
    (
        "dill type",
        lambda c: _call(_global("dill._dill", "_load_type"), _value("CodeType")),
        "dill._dill._load_type of 'CodeType'",
        False,
    ),
    ("INST", lambda c: b"(" + _value(c) + b"i" + SYSTEM_GLOBAL[1:], SYSTEM, True),
    ("OBJ", lambda c: b"(" + SYSTEM_GLOBAL + _value(c) + b"o", SYSTEM, True),
    ("EXT1", lambda c: bytes([0x82, EXTENSION]) + _value(c) + b"\x85R", "EXT1", True),
    (
        "BUILD on a class",
        lambda c: _global("torch.nn.modules.conv", "Conv2d") + _value({"forward": c}) + b"b",
        "sets attributes of torch.nn.modules.conv.Conv2d",
        False,
    ),
    (
        "BUILD with slots on a function",
        lambda c: _global("torch._utils", "_rebuild_parameter") + _value((None, {"a": c})) + b"b",
        "sets attributes of torch._utils._rebuild_parameter",
        False,
    ),
    (
        "constructor by REDUCE",
        lambda c: _call(
            _global("ultralytics.nn.tasks", "DetectionModel"),
            _value({**TINY, "activation": _python(c)}),
        ),
        "calls the constructor of ultralytics.nn.tasks.DetectionModel",
        False,
    ),
    (
        "constructor by NEWOBJ",
        lambda c: _global("ultralytics.nn.tasks", "DetectionModel") + _value((c,)) + b"\x81",
        "calls the constructor of ultralytics.nn.tasks.DetectionModel",
        False,
    ),
    (
        "constructor by NEWOBJ_EX",
        lambda c: (
            _global("ultralytics.nn.tasks", "DetectionModel") + b")" + _value({"cfg": c}) + b"\x92"
        ),
        "calls ultralytics.nn.tasks.DetectionModel with keyword arguments",
        False,
    ),
    ("text PERSID", lambda c: b"P" + c.encode() + b"\n", "the pickle operation PERSID", False),
    ("out-of-band buffer", lambda c: b"\x97", "the pickle operation NEXT_BUFFER", False),
    ("call of a value", lambda c: _value("text") + b")R", "calls something that is not", False),
    ("call of a storage", lambda c: _call(_global("torch", "ByteStorage")), "ByteStorage", False),
    (
        "codec",
        lambda c: _call(_global("_codecs", "encode"), _value("a"), _value("idna")),
        "the codec 'idna'",
        False,
    ),
    (
        "copyreg",
        lambda c: _call(
            _global("copyreg", "_reconstructor"),
            _global("torch.nn.modules.conv", "Conv2d"),
            _global("builtins", "dict"),
            _value({}),
        ),
        "with a base of its own",
        False,
    ),
    (
        "terminal escapes",
        lambda c: _global("os\x1b[31m", "system\r"),
        r"os?[31m.system?, which",
        False,
    ),
    (
        "YOLOv5",
        lambda c: _global("models.yolo", "DetectionModel"),
        "come from the original YOLOv5 or YOLOv7 project; export it to ONNX",
        False,
    ),
)


@pytest.mark.parametrize(
    ("name", "payload", "found", "live"), ATTACKS, ids=[attack[0] for attack in ATTACKS]
)
def test_attack_runs_nothing(
    tmp_path: Path, name: str, payload: Payload, found: str, live: bool
) -> None:
    marker = tmp_path / "ran"
    command = f"echo > {shlex.quote(str(marker))}"
    stream = b"\x80\x04" + payload(command) + b"."
    copyreg.add_extension(os.system.__module__, "system", EXTENSION)  # type: ignore[arg-type]
    try:
        if live:
            pickle.loads(stream)
            assert marker.exists(), "the attack does not work, so the test proves nothing"
            marker.unlink()
        path = _archive(tmp_path / "attack.pt", stream)
        with pytest.raises(UnsafeCheckpointError) as caught:
            summarise(path)
    finally:
        copyreg.remove_extension(os.system.__module__, "system", EXTENSION)  # type: ignore[arg-type]
        copyreg.clear_extension_cache()
    message = str(caught.value)
    assert found in message and message.isprintable()
    assert "--trust-checkpoint" in message or "ONNX" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "payload", "found", "live"),
    [a for a in ATTACKS if a[0] != "YOLOv5"],
    ids=[a[0] for a in ATTACKS if a[0] != "YOLOv5"],
)
def test_attack_by_a_projects_checkpoint_runs_nothing(
    tmp_path: Path, name: str, payload: Payload, found: str, live: bool
) -> None:
    """Where classes of YOLOv5, 6, 7 and OpenMMLab become records, nothing else is let in."""
    from boxwright.sources.native_files import read_native

    marker = tmp_path / "ran"
    stream = b"\x80\x04" + payload(f"echo > {shlex.quote(str(marker))}") + b"."
    path = _archive(tmp_path / "attack.pth", stream)
    with pytest.raises(UnsafeCheckpointError):
        read_native(path)
    assert not marker.exists()


def test_modules_that_a_projects_checkpoint_names_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name, which happens to be there, stays as it is."""
    from boxwright.errors import SourceError
    from boxwright.sources.native_files import read_native

    marker = tmp_path / "ran"
    for name in ("models", "mmengine"):
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"open({str(marker)!r}, 'w')")
        (folder / "yolo.py").write_text("class Model: pass")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for number, module in enumerate(("models.yolo", "mmengine.yolo")):
        stream = b"\x80\x04" + _global(module, "Model") + b")\x81."
        with pytest.raises(SourceError):
            read_native(_archive(tmp_path / f"{number}.pth", stream))
    assert not marker.exists()


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """torch on one thread, with ultralytics imported as Boxwright does it."""
    for name in ("torch", "ultralytics"):
        pytest.importorskip(name, reason=f"{name} is not installed: no network can be built")
    from boxwright.sources.rebuild import prepare_ultralytics

    prepare_ultralytics()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small for more
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(torch: Any) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(pickle.loads(pickle.dumps(TINY)), verbose=False)


def test_constructor_attack_beats_weights_only(torch: Any, tmp_path: Path) -> None:
    """torch's own guard with the classes on its list runs the command; ours does not."""
    from ultralytics.nn.tasks import DetectionModel

    from boxwright.sources.rebuild import load_network

    marker = tmp_path / "ran"
    config = {**TINY, "activation": _python(f"echo > {shlex.quote(str(marker))}")}
    stream = _call(_global("ultralytics.nn.tasks", "DetectionModel"), _value(config))
    path = _archive(tmp_path / "attack.pt", b"\x80\x02" + stream + b".")
    with torch.serialization.safe_globals([DetectionModel]):
        torch.load(path, weights_only=True)
    assert marker.exists(), "the attack does not work, so the test proves nothing"
    marker.unlink()
    with pytest.raises(UnsafeCheckpointError, match="DetectionModel, which can run code"):
        load_network(path)
    assert not marker.exists()


def _replace_forward_by_layer(model: Any) -> None:
    model.model[0].__dict__["forward"] = model.model[0].conv


def _borrow_forward(model: Any) -> None:
    model.model[0].__dict__["forward"] = model.model[1].forward


SHADOWS: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("forward by text", lambda m: vars(m.model[0]).update(forward="x"), "Conv.forward"),
    ("forward by a layer", _replace_forward_by_layer, "Conv.forward"),
    ("forward of another layer", _borrow_forward, "Conv.forward"),
    ("predict", lambda m: vars(m).update(predict=m.model), "DetectionModel.predict"),
    ("fuse", lambda m: vars(m).update(fuse=m.model), "DetectionModel.fuse"),
    ("type by a layer", lambda m: vars(m.model[0]).update(type=m.model), "Conv.type"),
    ("__class__", lambda m: vars(m.model[0]).update({"__class__": 1}), "Conv.__class__"),
    ("_call_impl", lambda m: vars(m.model[0]).update(_call_impl=m.model), "Conv._call_impl"),
)


@pytest.mark.parametrize(("name", "change", "found"), SHADOWS, ids=[s[0] for s in SHADOWS])
def test_method_cannot_be_replaced(
    torch: Any, tiny: Any, tmp_path: Path, name: str, change: Any, found: str
) -> None:
    from boxwright.sources.rebuild import load_network

    change(tiny)
    torch.save({"model": tiny}, tmp_path / "shadow.pt")
    with pytest.raises(UnsafeCheckpointError, match=f"replaces {found}"):
        load_network(tmp_path / "shadow.pt")


def test_every_admitted_function_has_a_builder() -> None:
    named = {name for names in FUNCTIONS.values() for name in names} - {"object"}
    assert named == set(pickle_builders.BUILDERS)


def test_nothing_on_the_stack_is_callable() -> None:
    """What a name becomes cannot be called, changed or given attributes."""
    ref = GlobalRef("torch", "FloatStorage", "storage")
    assert not callable(ref)
    with pytest.raises(AttributeError):
        ref.name = "other"  # type: ignore[misc]
    with pytest.raises(RefusedError):
        pickle_machine.inert_from_pickle(b"c__main__\nanything\n.", lambda identity: identity)
