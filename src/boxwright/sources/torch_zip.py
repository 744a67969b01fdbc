"""The zip container that `torch.save` writes, read with the standard library alone.

Everything in a checkpoint is hostile until it is shown to be sound: the members must be stored
(not compressed), so that no size in the file can be larger than the file itself, and named once.
Files that only carry the name `.pt` are told apart by their first bytes, so that the message says
what was found and what to do.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from boxwright.errors import SourceError

__all__ = ["TorchArchive", "open_archive"]

_AGAIN = "download or copy it again"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickled 0x1950a86a20f9469cfc6c
_ENCRYPTED = 0x1
_HEAD_BYTES = 512
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    OSError,
)

# First bytes, what the file seems to be, and what to do about it.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "it is a git-lfs pointer, not the file itself",
        "fetch the file with: git lfs pull",
    ),
    (
        _LEGACY_MAGIC,
        "it has the legacy torch format from before torch 1.6",
        "if you trust it, re-save it with a current torch: "
        "torch.save(torch.load(path, weights_only=False), path), "
        "or let --trust-checkpoint load it as it is",
    ),
    (b"\x89PNG", "it seems to be a PNG picture", ""),
    (b"\xff\xd8\xff", "it seems to be a JPEG picture", ""),
    (b"GIF8", "it seems to be a GIF picture", ""),
    (b"BM", "it seems to be a BMP picture", ""),
    (b"RIFF", "it seems to be a WebP picture or a video", ""),
    (b"%PDF", "it seems to be a PDF document", ""),
    (b"\x1f\x8b", "it seems to be a gzip archive", "unpack it first"),
    (b"7z\xbc\xaf", "it seems to be a 7z archive", "unpack it first"),
    (b"Rar!", "it seems to be a RAR archive", "unpack it first"),
    (b"\x7fELF", "it seems to be a program", ""),
    (b"\x89HDF", "it seems to be an HDF5 (Keras) file", ""),
    (b"\x93NUMPY", "it seems to be a NumPy array", ""),
    (b"\x80", "it seems to be a bare pickle, which torch.save does not write", ""),
)
_GIVE_CHECKPOINT = "give the .pt file that training wrote"


class TorchArchive:
    """An open checkpoint file; its members are bounded by the size of the file.

    Args:
        path: For messages.
        archive: The open zip file.
        file_bytes: Size of the file on disk.

    Raises:
        SourceError: The archive is not an intact checkpoint.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, file_bytes: int) -> None:
        self.path = path
        self._archive = archive
        self._members = _sound_members(path, archive, file_bytes)
        pickles = [n for n in self._members if n.endswith("/data.pkl") and n.count("/") == 1]
        self._refuse_others(pickles)
        self._prefix = pickles[0].removesuffix("data.pkl")
        order = self._members.get(f"{self._prefix}byteorder")
        if order is not None and self._read(order).strip() != b"little":
            raise SourceError(
                str(path),
                "it was saved on a big-endian machine",
                "re-save it on a little-endian one",
            )

    def _refuse_others(self, pickles: list[str]) -> None:
        """Raise `SourceError` unless the members are those of one `torch.save`."""
        names = self._members
        if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
            raise SourceError(
                str(self.path),
                "it is a TorchScript archive, which holds compiled code",
                "give the original checkpoint that it was exported from",
            )
        if len(pickles) != 1:
            raise SourceError(
                str(self.path),
                f"it is a zip archive with {len(pickles) or 'no'} data.pkl, not a torch checkpoint",
                _GIVE_CHECKPOINT,
            )

    def pickle_bytes(self) -> bytes:
        """Return the pickle that describes the checkpoint."""
        return self._read(self._members[f"{self._prefix}data.pkl"])

    def storage_size(self, key: str) -> int:
        """Return how many bytes a storage has; raises `KeyError` when there is none."""
        return self._members[f"{self._prefix}data/{key}"].file_size

    def storage_bytes(self, key: str) -> bytes:
        """Return the bytes of a storage; raises `KeyError` when there is none."""
        return self._read(self._members[f"{self._prefix}data/{key}"])

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        try:
            return self._archive.read(member)
        except _ZIP_ERRORS as error:
            raise SourceError(str(self.path), f"it is damaged ({error})", _AGAIN) from error


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[TorchArchive]:
    """Open a checkpoint file for reading.

    Raises:
        SourceError: The file is missing, damaged or not a torch checkpoint.
    """
    if path.is_dir():
        raise SourceError(str(path), "it is a directory", "give the .pt file in it")
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise SourceError(str(path), "the file does not exist", "check the path") from error
    except OSError as error:
        raise SourceError(
            str(path), f"the file cannot be read ({error.strerror})", "check the path"
        ) from error
    with stream:
        head = stream.read(_HEAD_BYTES)
        if not head.startswith(b"PK\x03\x04"):
            raise SourceError(str(path), *_diagnose_bytes(head))
        file_bytes = stream.seek(0, io.SEEK_END)
        try:
            archive = zipfile.ZipFile(stream)
        except _ZIP_ERRORS as error:
            raise SourceError(str(path), f"it is damaged or cut short ({error})", _AGAIN) from error
        with archive:
            yield TorchArchive(path, archive, file_bytes)


def _sound_members(
    path: Path, archive: zipfile.ZipFile, file_bytes: int
) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name after checking that their sizes cannot lie."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise SourceError(str(path), f"it is damaged (two members {info.filename!r})", _AGAIN)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise SourceError(
                str(path),
                f"its member {info.filename!r} is compressed or encrypted, which torch never does",
                _GIVE_CHECKPOINT,
            )
        if info.file_size != info.compress_size:
            raise SourceError(
                str(path), f"it is damaged (two sizes of the member {info.filename!r})", _AGAIN
            )
        members[info.filename] = info
    # Members that overlap would let a small file unfold into a large one.
    if sum(info.file_size for info in members.values()) > file_bytes:
        raise SourceError(str(path), "it is damaged (members larger than the file)", _AGAIN)
    return members


def _diagnose_bytes(head: bytes) -> tuple[str, str]:
    """Return what a file that is no zip archive seems to be, and what to do.

    >>> _diagnose_bytes(b"")
    ('the file is empty', 'download or copy it again')
    >>> _diagnose_bytes(b"<!DOCTYPE html><html>")[0]
    'it seems to be a web page, saved in place of the file'
    """
    if not head.strip(b"\0"):
        return ("the file is empty" if not head else "it holds only zero bytes"), _AGAIN
    for magic, found, do in _KINDS:
        if head.startswith(magic):
            return found, do or _GIVE_CHECKPOINT
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "it seems to be an ONNX model", "give it the name .onnx"
    if head[8:10] == b'{"':
        return "it seems to be a safetensors file, which holds weights only", _GIVE_CHECKPOINT
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it seems to be a web page, saved in place of the file", _AGAIN
    text = head.decode("utf-8", errors="ignore")  # the last character may be cut in two
    whole = len(text.encode()) > len(head) - 4
    if whole and all(c.isprintable() or c.isspace() for c in text):
        return "it seems to be a text file", _GIVE_CHECKPOINT
    return "it is not a torch checkpoint", _GIVE_CHECKPOINT
