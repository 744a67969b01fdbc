"""The job of `boxwright repo build`: gather or make the files, lay them out, write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from boxwright.errors import RequestError
from boxwright.ort_providers import note_on_nms
from boxwright.outcome import Listener
from boxwright.serve.folder_parts import Folder, ServeOptions
from boxwright.serve.folders import folders_of
from boxwright.serve.gathering import Conversion, Gathered, gather
from boxwright.serve.repository import HandEdits, Written, write_folders
from boxwright.serve.tracks import FormatName, model_name

__all__ = ["build_repository"]


def build_repository(
    sources: Sequence[str],
    sizes: Sequence[str],
    formats: Sequence[FormatName],
    out: Path,
    how: Conversion,
    served: ServeOptions,
    edits: HandEdits | None = None,
    *,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> tuple[list[Gathered], list[Written]]:
    """Build a repository; return what was found or made of each model, and what was written.

    Args:
        sources: Checkpoints, names, ONNX files, plans, run folders.
        sizes: Take models of these sizes only; without sources, official ones.
        formats: What is served.
        out: The repository.
        how: What is missing is made so.
        served: How models are served.
        edits: What becomes of configurations that were edited by hand.
        dry_run: Write no repository.
        listener: Told what happens.

    Raises:
        RequestError: An option is wrong, or two models would be one folder.
        MissingExtraError: tritonclient is not installed.
        BoxwrightError: A file is damaged, or cannot be made or written.
    """
    from boxwright.serve.model_config import ServedModel, config_message

    model_name(served.template, "model", "")
    config_message(ServedModel("probe", "python", 1, (), ()))  # its extra is there, before work
    gathered = gather(sources, sizes, formats, how, listener)
    folders: list[Folder] = []
    for one in gathered:
        if one.files:
            folders += folders_of(one.name, one.files, tuple(formats), served)
            if listener is not None and served.accelerator is None:
                _note_slow_files(one, listener)
    _refuse_doubles(folders)
    written = write_folders(
        folders, out, latest=served.latest, edits=edits, dry_run=dry_run, listener=listener
    )
    return gathered, written


def _note_slow_files(one: Gathered, listener: Listener) -> None:
    """Say which end-to-end files are slow on the CUDA provider."""
    for file in {f.path: f for f in one.files.values()}.values():
        classes = 1 if file.nms is None or file.nms.class_agnostic else len(file.spec.class_names)
        note = note_on_nms(file.operators, classes)
        if note:
            listener.note(
                f"{file.path.name}: {note} (--onnx-nms portable makes one from the raw file)"
            )


def _refuse_doubles(folders: Sequence[Folder]) -> None:
    seen: dict[str, str] = {}
    for folder in folders:
        name = folder.config.name
        if name in seen:
            raise RequestError(
                f"folder {name}",
                f"{seen[name]} and {folder.model} ({folder.kind}) would both be it",
                "use --name-template with {name}",
            )
        seen[name] = f"{folder.model} ({folder.kind})"
