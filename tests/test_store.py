"""The run directory: nothing half written, nothing of a stranger's touched, one run at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxwright.errors import StoreError
from boxwright.store import MANIFEST, Entry, Store, sha256_of_bytes, sha256_of_file, write_atomic


@pytest.fixture
def record(place, cli):
    """The record of a real file, as a manifest holds it."""
    assert cli("export", "tiny.onnx", "--out", "made").code == 0
    manifest = json.loads((place / "made/tiny" / MANIFEST).read_text(encoding="utf-8"))
    return manifest["files"]["tiny.fp32.onnx"]["record"]


def _entry(data: bytes, record: dict[str, object], **more: object) -> Entry:
    return Entry("key", sha256_of_bytes(data), **{"state": "built", "record": record, **more})


def _put(folder: Path, record: dict[str, object], *names: str, publish: bool = True) -> None:
    with Store(folder) as store:
        for name in names:
            data = name.encode()
            store.put(name, data, _entry(data, record))
            if publish:
                store.publish(name, "published")


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_write_atomic_leaves_nothing_when_it_fails(error, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("os.fsync", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else StoreError
    with pytest.raises(expected):
        write_atomic(tmp_path / "a", b"new")
    assert _names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_empty_run_leaves_nothing(tmp_path):
    with Store(tmp_path / "a/b/c"):
        assert (tmp_path / "a/b/c").is_dir()
    assert not (tmp_path / "a").exists()
    with pytest.raises(KeyboardInterrupt), Store(tmp_path / "a/b/c") as store:
        (store.work / "half.onnx").write_bytes(b"written but not announced")
        raise KeyboardInterrupt
    assert not (tmp_path / "a").exists()


def test_an_existing_folder_stays_as_it_was(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with Store(tmp_path):
        pass
    assert _names(tmp_path) == {"mine.txt"}


def test_a_lock_that_is_a_folder_is_refused_and_nothing_stays(tmp_path):
    (tmp_path / "run/.lock").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"), Store(tmp_path / "run"):
        pass
    assert _names(tmp_path / "run") == {".lock"}


def test_only_one_run_at_a_time(tmp_path, record):
    folder = tmp_path / "run"
    with Store(folder) as store:
        with pytest.raises(StoreError, match=r"another run \(process \d+\) is working"):
            Store(folder).__enter__()
        store.put("a.onnx", b"a", _entry(b"a", record))  # the refused one did no harm
    with Store(folder) as store:
        assert store.is_whole("a.onnx")


def test_the_lock_is_free_after_its_file_was_removed(tmp_path):
    """Two runs in turn, each without a result, each remove the lock file."""
    for _ in range(2):
        with Store(tmp_path):
            pass


def test_peek_changes_nothing(tmp_path, record, snapshot):
    folder = tmp_path / "run"
    _put(folder, record, "a.onnx")
    (folder / ".work").mkdir()
    (folder / "a.onnx").replace(folder / ".work/a.onnx")  # a crash before the last step
    (folder / ".manifest.json.part").write_bytes(b"half")
    before = snapshot(folder)
    assert Store.peek(folder).is_whole("a.onnx")
    assert not Store.peek(tmp_path / "nowhere").entries
    assert snapshot(folder) == before
    with Store(folder) as store:
        assert store.is_whole("a.onnx")
        assert (folder / "a.onnx").read_bytes() == b"a.onnx"
    assert _names(folder) == {"a.onnx", MANIFEST, ".lock"}


def test_sweeping_spares_what_is_not_ours(tmp_path, record):
    folder = tmp_path / "run"
    _put(folder, record, "a.onnx", publish=False)
    strangers = [folder / ".notes.part", folder / ".work/notes.txt", folder / "b.onnx.part"]
    for path in strangers:
        path.write_text("mine")
    leftovers = [folder / ".a.onnx.part", folder / ".work/.a.onnx.part", folder / ".work/old.onnx"]
    for path in leftovers:
        path.write_text("half")
    with Store(folder) as store:
        assert store.is_whole("a.onnx")
    assert all(p.exists() for p in strangers)
    assert not any(p.exists() for p in leftovers)


def test_replacing_withdraws_what_was_published(tmp_path, record):
    folder = tmp_path / "run"
    _put(folder, record, "a.onnx")
    with Store(folder) as store:
        store.put("a.onnx", b"new", _entry(b"new", record))
        assert not (folder / "a.onnx").exists(), "the manifest no longer tells of it"
        store.publish("a.onnx", "rejected")
    assert _names(folder) == {"a.onnx.rejected", MANIFEST, ".lock"}


def _damage(data, *path, value):
    *parents, last = path
    for key in parents:
        data = data[key]
    data[last] = value


DAMAGE = {
    "not JSON": lambda d: "{",
    "empty": lambda d: "",
    "a list": lambda d: "[]",
    "nested too deeply": lambda d: "[" * 100_000,
    "of another tool": lambda d: '{"name": "app", "icons": []}',
    "newer schema": lambda d: _damage(d, "schema", value=99),
    "files is a list": lambda d: _damage(d, "files", value=[]),
    "entry is a word": lambda d: _damage(d, "files", "a.onnx", value="x"),
    "entry of other keys": lambda d: _damage(d, "files", "a.onnx", "colour", value="red"),
    "state": lambda d: _damage(d, "files", "a.onnx", "state", value="lost"),
    "hash is a number": lambda d: _damage(d, "files", "a.onnx", "sha256", value=5),
    "settings is a list": lambda d: _damage(d, "files", "a.onnx", "settings", value=[]),
    "record is empty": lambda d: _damage(d, "files", "a.onnx", "record", value={}),
    "spec is a word": lambda d: _damage(d, "files", "a.onnx", "record", "spec", value="x"),
    "parity is a word": lambda d: _damage(d, "files", "a.onnx", "parity", value="x"),
    "a file elsewhere": lambda d: d["files"].update({"../mine.txt": d["files"].pop("a.onnx")}),
    "an absolute file": lambda d: d["files"].update({"/mine.txt": d["files"].pop("a.onnx")}),
    "no name": lambda d: d["files"].update({"": d["files"].pop("a.onnx")}),
    "the parent": lambda d: d["files"].update({"..": d["files"].pop("a.onnx")}),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("verb", ["run", "clean", "dry run"])
def test_damaged_manifests_are_refused(case, verb, place, record, cli, snapshot):
    folder = place / "out/tiny"
    _put(folder, record, "a.onnx")
    (place / "out/mine.txt").write_text("mine")
    data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    text = DAMAGE[case](data)
    (folder / MANIFEST).write_text(text if isinstance(text, str) else json.dumps(data))
    (folder / ".lock").unlink()
    before = snapshot(place)
    words = {"run": ["run", "tiny.onnx", "--out", "out"], "clean": ["clean", folder]}
    ran = cli(*words.get(verb, ["run", "tiny.onnx", "--out", "out", "--dry-run"]))
    assert ran.code == 2
    assert "it is not a manifest of ours" in ran.error
    assert snapshot(place) == before


def test_clean_removes_what_runs_built_and_nothing_else(place, cli):
    assert cli("run", "tiny.onnx", "--out", "out", "--outputs", "raw,end2end").code == 0
    folder = place / "out/tiny"
    (folder / "mine.txt").write_text("mine")
    changed = folder / "tiny.fp32.onnx"
    changed.write_bytes(changed.read_bytes() + b"\0")
    before = _names(folder)
    ran = cli("clean", "out", "--dry-run")
    assert ran.code == 0
    assert f"would remove {Path('out/tiny/tiny.fp32.end2end.onnx')}" in ran.out
    assert "would keep" in ran.out
    assert _names(folder) == before
    ran = cli("clean", "out")
    assert ran.code == 0
    assert "tiny.fp32.end2end.onnx" in ran.out
    assert "kept out/tiny/tiny.fp32.onnx, since it was changed" in ran.err
    assert _names(folder) == {
        "mine.txt",
        "recipe.yaml",
        "report.html",
        "report.json",
        "tiny.fp32.onnx",
    }


def test_clean_waits_for_no_run(place, cli):
    assert cli("export", "tiny.onnx", "--out", "out").code == 0
    with Store(place / "out/tiny"):
        ran = cli("clean", "out")
    assert ran.code == 2
    assert "another run" in ran.error
    assert (place / "out/tiny/tiny.fp32.onnx").exists()


def test_hashes_agree(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert sha256_of_file(tmp_path / "a") == sha256_of_bytes(b"abc" * 1_000_000)
