"""Writes a model repository, and writes it again without losing what someone changed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxwright.errors import StoreError
from boxwright.outcome import Listener
from boxwright.serve.folder_parts import Folder
from boxwright.serve.model_config import (
    VersionPolicy,
    config_from_text,
    config_message,
    text_from_config,
)
from boxwright.serve.repository_record import (
    CONFIG,
    CPU_CONFIG,
    ModelRecord,
    Version,
    add_version_folder,
    content_hashes,
    damaged_files,
    put_model,
    read_model_record,
    restore_version_folder,
    stamp_now,
    version_numbers_in,
    write_file,
    write_model_record,
)
from boxwright.serve.text_merge import difference, merge
from boxwright.store import locked, sha256_of_bytes

__all__ = ["HandEdits", "Written", "write_folders"]


@dataclass(frozen=True, slots=True)
class HandEdits:
    """What becomes of files that are not as they were generated.

    Attributes:
        force: Replace them, after a copy; and put changed files there as a new version.
        edit: Merge what was changed by hand with what is generated now.
    """

    force: bool = False
    edit: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What was done with one model.

    Attributes:
        name: Of the model.
        kind: What it is.
        action: `made`, `unchanged`, `new version`, `restored` or `configured`.
        version: That is served of it.
        notes: What a reader needs to know besides.
    """

    name: str
    kind: str
    action: str
    version: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Change:
    """What is to be written of one model."""

    folder: Folder
    place: Path
    record: ModelRecord
    number: int
    new_model: bool = False
    new_version: bool = False
    restored: bool = False
    configs: dict[str, str] | None = None  # those that are written
    backups: tuple[str, ...] = ()
    shared: dict[str, bytes] | None = None
    notes: tuple[str, ...] = ()


def write_folders(
    folders: Sequence[Folder],
    repository: Path,
    *,
    latest: int = 0,
    edits: HandEdits | None = None,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> list[Written]:
    """Write the folders of a repository; nothing is written before all of them can be.

    Args:
        folders: What is served.
        repository: Where; it is made.
        latest: Serve so many of the latest versions; 0: the one that was promoted.
        edits: What becomes of hand-edited files.
        dry_run: Check everything, write nothing.
        listener: Told the differences of files that were edited by hand.

    Raises:
        StoreError: A folder is not ours, a file would change, or a configuration was edited by
            hand and would change; or it cannot be written.
        MissingExtraError: tritonclient is not installed.
    """
    listener = listener or Listener()
    edits = edits or HandEdits()
    if dry_run:
        return [_written(_change(f, repository, latest, edits, listener)) for f in folders]
    with locked(repository.absolute(), "wait for it, or choose another --out"):
        changes = [_change(f, repository, latest, edits, listener) for f in folders]
        for change in changes:
            _apply(change)
    return [_written(change) for change in changes]


def _change(
    folder: Folder, repository: Path, latest: int, edits: HandEdits, listener: Listener
) -> _Change:
    place = repository / folder.config.name
    hashes = content_hashes(folder.version)
    record = read_model_record(place) if place.is_dir() else None
    if record is None:
        if place.exists():
            raise StoreError(
                str(place),
                "it was not built by boxwright",
                "choose another --out or --name-template",
            )
        fresh = ModelRecord(folder.kind, folder.model)
        change = _Change(folder, place, fresh, 1, new_model=True, new_version=True)
        change.configs = _texts(folder, _policy([1], latest))
        fresh.history = [[] if latest else [1]]
        fresh.versions[1] = Version(hashes, folder.source, stamp_now())
        fresh.generated = dict(change.configs)
        fresh.files = {name: sha256_of_bytes(data) for name, data in folder.files.items()}
        change.shared = dict(folder.files)
        return change
    return _update(folder, place, record, hashes, latest, edits, listener)


def _update(
    folder: Folder,
    place: Path,
    record: ModelRecord,
    hashes: Mapping[str, str],
    latest: int,
    edits: HandEdits,
    listener: Listener,
) -> _Change:
    """Return what changes of a model that is there."""
    there = version_numbers_in(place)
    same = [n for n in there if _holds(place, record, n, hashes)]
    served = [n for n in record.served if n in there] or there[-1:]
    number = next((n for n in reversed(served) if n in same), same[-1] if same else 0)
    change = _Change(folder, place, record, number)
    change.restored = bool(number) and any(
        not (place / str(number) / name).is_file() for name in hashes
    )
    if not number:
        number = change.number = max([*there, *record.versions, 0]) + 1
        change.new_version = True
        if any(_is_filled(place, record, n) for n in served) and not edits.force:
            raise StoreError(
                str(place),
                f"version {served[-1]} of it holds other files",
                "use --force to put these there as a new version and serve it, or "
                "boxwright repo add-version",
            )
        record.versions[number] = Version(hashes, folder.source, stamp_now())
    if latest:
        wanted: list[int] = []
    else:
        wanted = [number] if change.new_version or not record.served else record.served
    if record.served != wanted or not record.history:
        record.history.append(wanted)
    ours = _texts(folder, _policy(wanted, latest))
    change.configs, backups, notes = {}, [], []
    for name, text in ours.items():
        kept, copied, note = _decided(
            place / name, record.generated.get(name), text, edits, listener
        )
        if kept is not None:
            change.configs[name] = kept
        backups += [name] if copied else []
        notes += [note] if note else []
    record.generated = dict(ours)
    change.shared = _shared(place, record, folder, notes)
    change.backups, change.notes = tuple(backups), tuple(notes)
    return change


def _holds(place: Path, record: ModelRecord, number: int, hashes: Mapping[str, str]) -> bool:
    """Whether a version is that of these files; `clean` may have removed some of them."""
    known = record.versions.get(number)
    if known is None or known.files != hashes:
        return False
    damaged = damaged_files(place, record, number)
    return not any((place / str(number) / name).is_file() for name in damaged)


def _is_filled(place: Path, record: ModelRecord, number: int) -> bool:
    """Whether a version holds any of its files still."""
    known = record.versions.get(number)
    names = known.files if known else [p.name for p in (place / str(number)).iterdir()]
    return any((place / str(number) / name).is_file() for name in names)


def _shared(place: Path, record: ModelRecord, folder: Folder, notes: list[str]) -> dict[str, bytes]:
    """Return the shared files that are written; those changed by hand stay as they are."""
    found: dict[str, bytes] = {}
    for name, data in folder.files.items():
        path = place / name
        known = record.files.get(name)
        if path.is_file():
            there = sha256_of_bytes(path.read_bytes())
            if there == sha256_of_bytes(data):
                continue
            if known is not None and there != known:
                notes.append(f"kept {name}, which was changed by hand")
                continue
        found[name] = data
        record.files[name] = sha256_of_bytes(data)
    return found


def _decided(
    path: Path, base: str | None, ours: str, edits: HandEdits, listener: Listener
) -> tuple[str | None, bool, str]:
    """Decide on a configuration, three ways: as generated before, as it is, as generated now.

    Returns:
        What is written (None: nothing), whether what is there is copied first, and a note.

    Raises:
        StoreError: It was edited by hand, and what is generated changed, too.
    """
    if not path.is_file():
        return ours, False, ""
    theirs = path.read_text(encoding="utf-8")
    if theirs == ours:
        return None, False, ""
    if theirs == base:
        return ours, False, ""
    if base == ours:
        return None, False, f"kept {path.name} as it was edited by hand"
    if edits.force:
        return ours, True, f"replaced {path.name}, which was edited by hand; a copy lies beside it"
    for line in difference(base or "", theirs, f"{path.name} as generated", "as it is"):
        listener.note(line)
    for line in difference(base or "", ours, f"{path.name} as generated", "as it would be"):
        listener.note(line)
    if edits.edit and base is not None:
        result = merge(base, theirs, ours)
        if not result.conflicts:
            config_from_text(result.text, str(path))
            return result.text, False, f"merged {path.name} with what was edited by hand"
        raise StoreError(
            str(path),
            f"both changed the same lines ({'; '.join(result.conflicts)[:120]})",
            "mend it by hand, or use --force",
        )
    raise StoreError(
        str(path),
        "it was edited by hand, and what is generated changed, too",
        "use --edit to merge both, or --force to replace it",
    )


def _policy(wanted: list[int], latest: int) -> VersionPolicy:
    return VersionPolicy(latest=latest) if latest else VersionPolicy(specific=tuple(wanted))


def _texts(folder: Folder, policy: VersionPolicy) -> dict[str, str]:
    """Return the configurations of a model, by path."""
    import dataclasses

    found = {CONFIG: folder.config, CPU_CONFIG: folder.cpu}
    return {
        name: text_from_config(config_message(dataclasses.replace(config, policy=policy)))
        for name, config in found.items()
        if config is not None
    }


def _apply(change: _Change) -> None:
    """Write one model: the version before the configuration that names it, the record last."""
    configs = change.configs or {}
    if change.new_model:
        put_model(
            change.place,
            change.record,
            configs,
            change.shared or {},
            change.number,
            change.folder.version,
        )
        return
    if change.new_version:
        add_version_folder(change.place, change.number, change.folder.version)
    if change.restored:
        restore_version_folder(change.place, change.number, change.folder.version)
    for name, data in (change.shared or {}).items():
        write_file(change.place, name, data)
    for name in change.backups:
        old = (change.place / name).read_bytes()
        write_file(change.place, f"{name}.{stamp_now()}.bak", old)
    for name, text in configs.items():
        write_file(change.place, name, text.encode())
    write_model_record(change.place, change.record)


def _written(change: _Change) -> Written:
    if change.new_model:
        action = "made"
    elif change.new_version:
        action = "new version"
    elif change.restored:
        action = "restored"
    else:
        action = "configured" if change.configs or change.shared else "unchanged"
    return Written(
        change.folder.config.name, change.folder.kind, action, change.number, change.notes
    )
