"""The demo: the whole main job on the embedded sample, offline, from the base install."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boxwright import catalog
from boxwright.boxes import iou_matrix
from boxwright.errors import RequestError, StoreError
from boxwright.outcome import Listener, Outcome
from boxwright.sources import SourceRequest
from boxwright.types import FloatArray

if TYPE_CHECKING:
    from boxwright.recipe import Recipe
    from boxwright.sample.pages_on_disk import LabelledPage

__all__ = ["DemoResult", "Found", "run_demo", "summary_text"]

_MARK = ".boxwright-demo"
HELD_OUT_END = 100_000  # pages with seeds below it were never trained on
CALIBRATION_SEEDS = range(30_000, 30_016)  # never trained on, never measured on
_IOU = 0.5  # least overlap at which a box counts as found, as in mAP50


@dataclass(frozen=True, slots=True)
class Found:
    """What the detector found on one page.

    Attributes:
        page: File name.
        true: Text blocks on the page.
        found: Of them, how many have a box over them (IoU of 0.5 or more).
        wrong: Boxes with no text block below.
    """

    page: str
    true: int
    found: int
    wrong: int


@dataclass(slots=True)
class DemoResult:
    """What the demo made.

    Attributes:
        folder: Where it is.
        outcome: The files and their proof.
        found: Per page.
        drawings: The pages with boxes on them.
        runs_on: The runtime that detected, in words.
        file: The file that detected.
        seconds: Of each stage.
    """

    folder: Path
    outcome: Outcome
    found: list[Found]
    drawings: list[Path]
    runs_on: str
    file: Path
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    folder: Path,
    *,
    pages: int = 6,
    seed: int = 42,
    threads: int | None = None,
    from_torch: bool = False,
    listener: Listener | None = None,
) -> DemoResult:
    """Generate pages, make and prove every kind of file, detect, draw, and write a summary.

    Args:
        folder: For everything; made when it is not there. One that an earlier demo made is
            brought up to date.
        pages: How many to generate.
        seed: Of the first page; the detector was never trained on seeds under 100000.
        threads: CPU threads of one inference.
        from_torch: Start from the torch weights in the place of the raw ONNX; needs the export
            extra.
        listener: Told what happens.

    Raises:
        RequestError: Less than one page is asked for, or the seed is one that was trained on.
        MissingExtraError: `from_torch`, without torch.
        StoreError: The folder holds something else, or cannot be written.
        CheckFailedError: A file failed its verification.
    """
    from boxwright.pipeline import run
    from boxwright.sample import checkpoint_file, onnx_file
    from boxwright.sample.pages_on_disk import coco_bytes, sample_pages
    from boxwright.store import write_atomic

    listener = listener or Listener()
    _check(pages, seed)
    source = checkpoint_file() if from_torch else onnx_file()
    catalog.source_for(source.suffix).check(SourceRequest(source, source.stem))
    _claim(folder)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] = now - clock
        clock = now

    listener.note(f"generate {pages} pages (seeds {seed} to {seed + pages - 1})")
    labelled = sample_pages(range(seed, seed + pages))
    wanted = _write_pages(folder / "pages", labelled)
    calibration = _write_pages(folder / "calibration", sample_pages(CALIBRATION_SEEDS))
    write_atomic(folder / "pages" / "truth.json", coco_bytes(labelled))
    lap("generate")
    outcome = run(
        _recipe(str(source), wanted, calibration, folder / "pages" / "truth.json", threads),
        folder,
        listener=listener,
    )
    lap("export and verify")
    file = next(r.path for r in outcome.rows if r.path.name.endswith(".fp32.end2end.onnx"))
    listener.note(f"detect with {file.name}")
    truths = [p.page.boxes for p in labelled]
    found, drawings, runs_on = _detect(file, wanted, truths, folder, threads)
    lap("detect and draw")
    result = DemoResult(folder, outcome, found, drawings, runs_on, file, seconds)
    write_atomic(folder / "summary.md", summary_text(result).encode())
    return result


def _check(pages: int, seed: int) -> None:
    if pages < 1:
        raise RequestError(f"--pages {pages}", "it is not a positive number", "use e.g. 6")
    last = seed + pages - 1
    if seed < 0 or last >= HELD_OUT_END:
        raise RequestError(
            f"--seed {seed}",
            f"only pages 0 to {HELD_OUT_END - 1} were never trained on",
            "choose a smaller one",
        )
    if seed < CALIBRATION_SEEDS.stop and last >= CALIBRATION_SEEDS.start:
        raise RequestError(
            f"--seed {seed}",
            f"pages {CALIBRATION_SEEDS.start} to {CALIBRATION_SEEDS.stop - 1} calibrate INT8, and "
            "what calibrates is not measured",
            "choose another",
        )


def _claim(folder: Path) -> None:
    """Make the folder, or take over one that a demo made.

    Raises:
        StoreError: It holds something else, or cannot be made.
    """
    mark = folder / _MARK
    try:
        if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
            raise StoreError(str(folder), "it is not empty", "name another folder with --out")
        for part in ("pages", "calibration", "drawn"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        mark.write_text("This folder was made by `boxwright demo`.\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreError(
            str(folder), f"it cannot be written ({reason})", "choose another --out"
        ) from None


def _write_pages(folder: Path, pages: list[LabelledPage]) -> list[Path]:
    """Write pages as PNG files, those that differ alone; remove an earlier demo's others."""
    from boxwright.sample.pages_on_disk import png_bytes
    from boxwright.store import write_atomic

    wanted = [folder / p.name for p in pages]
    _empty(folder, keep=wanted, suffix=".png")
    for path, page in zip(wanted, pages, strict=True):
        data = png_bytes(page.page)
        if not path.is_file() or path.read_bytes() != data:
            write_atomic(path, data)
    return wanted


def _empty(folder: Path, keep: Sequence[Path], suffix: str) -> None:
    """Remove the pages of an earlier demo that are not asked for now."""
    for path in folder.glob(f"page_*{suffix}"):
        if path not in keep:
            path.unlink()


def _recipe(
    source: str, pictures: list[Path], calibration: list[Path], truth: Path, threads: int | None
) -> Recipe:
    from boxwright.recipe import recipe_from_mapping

    targets = [
        {"precision": precision, "outputs": outputs}
        for precision in ("fp32", "fp16", "int8")
        for outputs in ("raw", "end2end")
    ]
    data = {
        "source": source,
        "targets": targets,
        "images": [str(p) for p in pictures],
        "calibration": {"images": [str(p) for p in calibration]},
        "data": str(truth),
        "measure": {"seconds": 0.5, "runtimes": ["onnxruntime"]},
        "threads": threads,
    }
    return recipe_from_mapping(data, "demo")


def _detect(
    file: Path, pictures: list[Path], truths: list[FloatArray], folder: Path, threads: int | None
) -> tuple[list[Found], list[Path], str]:
    """Detect in the pages, draw what was found, and count it against the truth."""
    from boxwright.loading import load
    from boxwright.predict import Wishes, open_inputs, predict

    drawn = folder / "drawn"
    drawings = [drawn / f"{p.stem}.jpg" for p in pictures]
    _empty(drawn, keep=drawings, suffix=".jpg")
    with load(file, "onnxruntime", threads=threads, device="cpu") as detector:
        wishes = Wishes(drawings=drawn, json_file=folder / "found.json", force=True)
        summary = predict(detector, open_inputs([str(p) for p in pictures]), wishes)
        found = [
            _counted(picture.name, truth, record)
            for picture, truth, record in zip(pictures, truths, summary.records, strict=True)
        ]
        return found, drawings, detector.description


def _counted(page: str, truth: FloatArray, record: dict[str, Any]) -> Found:
    """Pair the boxes of a page with its text blocks, the best score first, one to one."""
    boxes = np.array([d["xyxy"] for d in record["detections"]], np.float32).reshape(-1, 4)
    overlap = iou_matrix(boxes, truth)
    free = np.ones(len(truth), bool)
    for row in overlap:
        best = int(np.argmax(np.where(free, row, -1.0))) if free.any() else -1
        if best >= 0 and row[best] >= _IOU:
            free[best] = False
    found = int((~free).sum())
    return Found(page, len(truth), found, len(boxes) - found)


def summary_text(result: DemoResult) -> str:
    """Return what the demo did and what to do next, as Markdown that also reads well as it is."""
    true = sum(f.true for f in result.found)
    found = sum(f.found for f in result.found)
    wrong = sum(f.wrong for f in result.found)
    rows = result.outcome.rows
    proven = sum(1 for r in rows if r.parity is not None and r.parity.passed)
    folder = result.folder
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    lines = [
        f"{proven} of {len(rows)} files proven against their source; "
        f"{found} of {true} text blocks found on {len(result.found)} pages, "
        f"{wrong} wrong boxes (IoU {_IOU}, {result.file.name}).",
        "",
        f"- files and report: {result.file.parent}",
        f"- pages and truth:  {folder / 'pages'}",
        f"- drawings:         {folder / 'drawn'}",
        f"- ran on:           {result.runs_on}",
        f"- took:             {took}",
        "",
        "Next, with a checkpoint of your own:",
        "",
        '    pip install "boxwright[export]"     # reads .pt files; detecting does not need it',
        "    boxwright run yours.pt --precision fp32,fp16,int8 --outputs raw,end2end \\",
        "        --images pictures/ --calib-images other-pictures/",
        "    boxwright predict runs/yours/yours.fp32.end2end.onnx pictures/ --out drawn/",
    ]
    return "\n".join(lines) + "\n"
