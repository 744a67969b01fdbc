"""Checkpoints that are damaged, and files that only carry the name: one line each.

Attacks stand in test_checkpoint_attacks.py.
"""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boxwright.errors import SourceError
from boxwright.sources.pickles import summarise

TINY = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [[[0], 1, "Detect", ["nc"]]]}
_NUMPY = "numpy.core.multiarray"


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


def _value(value: Any) -> bytes:
    """Return opcodes that push a plain value: a pickle without its frame."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _call(module: str, name: str, *args: bytes) -> bytes:
    """Return opcodes that call a global with arguments."""
    return f"c{module}\n{name}\n(".encode() + b"".join(args) + b"tR"


def _archive(path: Path, stream: bytes) -> Path:
    """Write a checkpoint file around a pickle, with one storage of 16 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best/data.pkl", stream)
        archive.writestr("best/data/0", bytes(16))
    return path


def _tensor(
    storage: str, count: int, offset: Any, shape: Any, stride: Any, key: str = "0"
) -> bytes:
    identity = (
        b"(" + _value("storage") + f"ctorch\n{storage}\n".encode() + _value(key) + _value("cpu")
    )
    identity += _value(count) + b"tQ"
    arguments = [identity, *(_value(v) for v in (offset, shape, stride, False, None))]
    return _call("torch._utils", "_rebuild_tensor_v2", *arguments)


# Name, opcodes before STOP, what is found besides "it is damaged".
BROKEN: tuple[tuple[str, bytes, str], ...] = (
    ("no end", b"X\x01\x00\x00\x00", "ValueError"),
    ("nothing", b"", "IndexError"),
    ("unknown operation", b"\xff", "ValueError"),
    ("bare mark", b"(", "IndexError"),
    ("no mark", b"t", "IndexError"),
    ("unknown memo", b"h\x07", "KeyError"),
    ("huge memo index", b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff0j\x00\x00\x00\x7f", "KeyError"),
    ("huge text", b"X\xff\xff\xff\x7fabc", "ValueError"),
    ("huge bytes", b"\x8e" + b"\xff" * 8, "ValueError"),
    ("huge integer", b"\x8b\xff\xff\xff\x7f\x01", "ValueError"),
    ("bad text", b"X\x02\x00\x00\x00\xff\xfe", "UnicodeDecodeError"),
    ("bad number", b"Iabc\n", "ValueError"),
    ("odd dictionary", b"(" + _value(1) + b"d", "ValueError"),
    ("list as key", b"}]Ns", "ValueError"),
    ("deep tuple as key", b"})" + b"\x85" * 100_000 + b"Ns", "ValueError"),
    ("append to a number", _value(1) + b"Na", "ValueError"),
    ("attributes of a number", _value(1) + b"}b", "ValueError"),
    ("set of lists", b"\x8f(]\x90", "ValueError"),
    ("huge bytearray", _call("builtins", "bytearray", _value(1 << 60)), "ValueError"),
    ("parameter of text", _call("torch._utils", "_rebuild_parameter", _value("x"), b"N"), "tensor"),
    ("date of text", _call("datetime", "datetime", _value("x")), "a date"),
    ("NumPy object", _call(_NUMPY, "scalar", _call("numpy", "dtype", _value("O8")), b"N"), "dtype"),
    ("storage id", b")Q", "ValueError"),
    ("missing storage", _tensor("FloatStorage", 1, 0, (1,), (1,), "7"), "KeyError"),
    ("storage outside", _tensor("FloatStorage", 1, 0, (1,), (1,), "../data.pkl"), "KeyError"),
    ("short storage", _tensor("FloatStorage", 5, 0, (5,), (1,)), "cut short"),
    ("tensor too long", _tensor("FloatStorage", 4, 0, (5,), (1,)), "beyond its storage"),
    ("tensor offset", _tensor("FloatStorage", 4, 3, (2,), (1,)), "beyond its storage"),
    ("tensor stride", _tensor("FloatStorage", 4, 0, (2, 2), (3, 1)), "beyond its storage"),
    ("negative offset", _tensor("FloatStorage", 4, -1, (2,), (1,)), "whole number"),
    ("negative stride", _tensor("FloatStorage", 4, 3, (2,), (-1,)), "whole number"),
    ("repeated", _tensor("FloatStorage", 4, 0, (1 << 40,), (0,)), "larger than its storage"),
    ("shape of text", _tensor("FloatStorage", 4, 0, "ab", (1,)), "not a tuple"),
    ("lengths differ", _tensor("FloatStorage", 4, 0, (2,), (1, 1)), "differ in length"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "stream", "found"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_pickle_is_one_line(tmp_path: Path, name: str, stream: bytes, found: str) -> None:
    path = _archive(tmp_path / "broken.pt", b"\x80\x04" + stream + b".")
    with pytest.raises(SourceError, match="it is damaged") as caught:
        summarise(path)
    message = str(caught.value)
    assert type(caught.value) is SourceError and found in message and "\n" not in message


def _zip(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


PICKLE = ("best/data.pkl", b"\x80\x02N.")
GOOD = _zip(PICKLE, ("best/data/0", bytes(1000)))
_CENTRAL = GOOD.index(b"PK\x01\x02", GOOD.index(b"PK\x01\x02") + 1)  # of best/data/0
LYING = GOOD[: _CENTRAL + 24] + b"\xff\xff\xff\x7f" + GOOD[_CENTRAL + 28 :]
LYING_TWICE = GOOD[: _CENTRAL + 20] + b"\xff\xff\xff\x7f" * 2 + GOOD[_CENTRAL + 28 :]

# Name, bytes of the file, what is found or advised.
FILES: tuple[tuple[str, bytes, str], ...] = (
    ("empty", b"", "the file is empty"),
    ("zeros", bytes(4096), "only zero bytes"),
    ("web page", b"\n<!DOCTYPE html><html>Not found</html>", "a web page"),
    ("XML", b"<?xml version='1.0'?><Error/>", "a web page"),
    ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid 0\n", "git lfs pull"),
    ("text", "Größe: 5 – ja\n".encode() * 90, "a text file"),
    ("PNG", b"\x89PNG\r\n\x1a\n" + bytes(9), "a PNG picture"),
    ("JPEG", b"\xff\xd8\xff\xe0" + bytes(9), "a JPEG picture"),
    ("gzip", b"\x1f\x8b\x08" + bytes(9), "unpack it first"),
    ("ONNX", b"\x08\x0a\x12\x07pytorch" + bytes(9), "an ONNX model"),
    ("safetensors", (90).to_bytes(8, "little") + b'{"a":{}}', "weights only"),
    ("legacy torch", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "torch.save(torch.load("),
    ("bare pickle", pickle.dumps({}, protocol=4), "a bare pickle"),
    ("noise", random.Random(1).randbytes(900), "not a torch checkpoint"),
    ("cut short", GOOD[:-30], "cut short"),
    ("cut in half", GOOD[: len(GOOD) // 2], "cut short"),
    ("flipped byte", GOOD.replace(b"\x80\x02N.", b"\x80\x02K."), "damaged (Bad CRC-32"),
    ("TorchScript", _zip(PICKLE, ("best/constants.pkl", b"")), "TorchScript"),
    ("other zip", _zip(("a.txt", b"hello")), "a zip archive with no data.pkl"),
    ("two checkpoints", _zip(PICKLE, ("last/data.pkl", b"N.")), "a zip archive with 2 data.pkl"),
    ("big-endian", _zip(PICKLE, ("best/byteorder", b"big")), "big-endian"),
    ("compressed", _zip(PICKLE, ("best/data/0", bytes(1 << 20)), compression=8), "compressed"),
    ("lying size", LYING, "two sizes of the member 'best/data/0'"),
    ("lying twice", LYING_TWICE, "members larger than the file"),
    ("comment as name", GOOD.replace(b"best/data/0", b"best/data.p"), "no Ultralytics network"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "data", "found"), FILES, ids=[f[0] for f in FILES])
def test_file_of_another_kind(tmp_path: Path, name: str, data: bytes, found: str) -> None:
    (tmp_path / "file.pt").write_bytes(data)
    with pytest.raises(SourceError) as caught:
        summarise(tmp_path / "file.pt")
    assert found in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(_zip(PICKLE, PICKLE))
    with pytest.raises(SourceError, match=r"two members 'best/data\.pkl'"):
        summarise(tmp_path / "file.pt")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it is a directory"):
        summarise(tmp_path)
    with pytest.raises(SourceError, match="the file does not exist"):
        summarise(tmp_path / "missing.pt")


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_any_damage_is_one_line(torch: Any, tiny: Any, tmp_path: Path) -> None:
    """Seeded random damage to a real pickle ends in a network or in one line, never otherwise."""
    from boxwright.sources.rebuild import load_network

    torch.save({"model": tiny}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        members = {info.filename: good.read(info) for info in good.infolist()}
    (name,) = (n for n in members if n.endswith("/data.pkl"))
    chance, refused = random.Random(5), 0
    for _ in range(300):
        stream = bytearray(members[name])
        for _ in range(chance.randint(1, 4)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        with zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
            for member, data in members.items():
                bad.writestr(member, bytes(stream) if member == name else data)
        try:
            load_network(tmp_path / "bad.pt")
        except SourceError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize(
    "stream",
    [
        b"]" + b"q\x00" + b"h\x00a" + b".",  # a list in itself
        b"]" + b"(]" * 2000 + b"l" * 2000 + b".",
    ],
    ids=["cycle", "deep"],
)
def test_odd_shapes_of_plain_data(tmp_path: Path, stream: bytes) -> None:
    with pytest.raises(SourceError, match="no Ultralytics network"):
        summarise(_archive(tmp_path / "odd.pt", b"\x80\x02" + stream))


def test_configuration_cannot_explode(torch: Any, tiny: Any, tmp_path: Path) -> None:
    bomb: list[Any] = ["ha"]
    for _ in range(60):
        bomb = [bomb, bomb]
    tiny.yaml["bomb"] = bomb
    torch.save({"model": tiny}, tmp_path / "bomb.pt")
    with pytest.raises(SourceError, match="its configuration is too large"):
        summarise(tmp_path / "bomb.pt")
