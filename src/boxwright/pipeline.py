"""The main job: resolve, plan, and have the plan carried out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from boxwright import catalog
from boxwright.calibration_cache import cached_pictures
from boxwright.datasets import Dataset
from boxwright.errors import RequestError
from boxwright.evidence import installed_runtimes
from boxwright.job import Job
from boxwright.outcome import Listener, Outcome, Row
from boxwright.plan import Plan, decide, hash_of, make_plan
from boxwright.recipe import Recipe
from boxwright.resolve import Resolved, labelled_data, needs_download, resolve
from boxwright.store import Store, sha256_of_file

__all__ = ["Listener", "Outcome", "Prepared", "Row", "prepare", "run"]

_PICTURES_OF_DATA = 32  # that files are verified on where no other pictures are named


def run(
    recipe: Recipe,
    out: Path,
    *,
    models: Path = Path("models"),
    dry_run: bool = False,
    force_download: bool = False,
    force_convert: bool = False,
    download_only: bool = False,
    measure_again: bool = False,
    command: str = "",
    listener: Listener | None = None,
) -> Outcome:
    """Make, prove and publish everything that a recipe asks for.

    Files land in `out/<name>/`. What is there unchanged is skipped; what a crash interrupted is
    taken up again; a file that fails its verification is kept as `<file>.rejected`.

    Args:
        recipe: What was asked for.
        out: Parent of the run directory.
        models: Folder for downloads.
        dry_run: Only plan; nothing is written but a download that planning needs.
        force_download, force_convert: Do not skip what is there.
        download_only: Stop after the download.
        measure_again: Measure accuracy and latency anew, even where nothing changed.
        command: The command line that asked for it, for the report.
        listener: Told what happens.

    Raises:
        CheckFailedError: A file failed its verification.
        BoxwrightError: The request or an input is wrong.
    """
    listener = listener or Listener()
    if download_only:
        _check_request(recipe)
        if not needs_download(recipe.source):
            raise RequestError("--download-only", f"{recipe.source} is a local file", "drop it")
        return Outcome(None, downloaded=_fetch(recipe.source, models, force_download, listener))
    ready = prepare(recipe, out, models=models, force_download=force_download, listener=listener)
    plan, keys = ready.plan, ready.keys
    if dry_run:
        seen = Store.peek(plan.folder)
        decided = decide(plan, seen, force=force_convert, parity_keys=keys)
        return Outcome(plan.folder, decided)
    with Store(plan.folder) as store:
        decided = decide(plan, store, force=force_convert, parity_keys=keys)
        if any(step.action != "skip" for step in decided.steps):
            _check_pictures(ready.pictures)
        job = ready.job(decided, store, listener, command, measure_again)
        try:
            job.make_all()
        finally:
            job.close()
        return Outcome(plan.folder, decided, job.rows, ready.fetched, job.report)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A recipe whose inputs were found and checked, and what it comes to.

    Attributes:
        recipe: What was asked for.
        resolved: Its source.
        plan: The steps, before the run directory was looked at.
        keys: By file, the hash of what its verification depends on.
        pictures: To verify on.
        calibration: Pictures to calibrate on, or the cache in their place.
        dataset: To measure accuracy on.
        fetched: What was downloaded.
    """

    recipe: Recipe
    resolved: Resolved
    plan: Plan
    keys: dict[str, str]
    pictures: list[Path]
    calibration: list[Path]
    dataset: Dataset | None
    fetched: list[Path]

    def job(
        self,
        plan: Plan,
        store: Store,
        listener: Listener,
        command: str = "",
        measure_again: bool = False,
    ) -> Job:
        """Return what carries out a plan in a store."""
        return Job(
            self.recipe,
            self.resolved,
            plan,
            store,
            self.pictures,
            self.keys,
            self.calibration,
            self.dataset,
            listener,
            command,
            measure_again,
        )


def prepare(
    recipe: Recipe,
    out: Path,
    *,
    models: Path = Path("models"),
    force_download: bool = False,
    listener: Listener | None = None,
) -> Prepared:
    """Find and check everything that a recipe names, and lay out its steps.

    Args:
        recipe: What was asked for.
        out: Parent of the run directory.
        models: Folder for downloads.
        force_download: Download what is there.
        listener: Told what happens.

    Raises:
        BoxwrightError: The request or an input is wrong.
    """
    listener = listener or Listener()
    _check_request(recipe)
    fetched: list[Path] = []

    def fetch(name: str, folder: Path) -> list[Path]:
        files = _fetch(name, folder, force_download, listener)
        fetched.extend(files)
        return files

    pictures = _pictures(recipe)
    resolved = resolve(recipe, models, fetch)
    _check_picture_input(recipe, resolved)
    _check_plugin(recipe, resolved)
    calibration = _calibration_files(recipe)
    dataset = labelled_data(
        recipe, resolved, lambda done, all_: listener.count("pages", done, all_)
    )
    data_key = dataset.fingerprint[:16] if dataset else ""
    if recipe.verify and not pictures:
        pictures = _other_pictures(recipe, dataset, calibration)
    plan = make_plan(recipe, resolved, out, _calibration_key(recipe, calibration), data_key)
    keys = _parity_keys(plan, recipe, pictures) if recipe.verify else {}
    return Prepared(recipe, resolved, plan, keys, pictures, calibration, dataset, fetched)


def _fetch(name: str, folder: Path, force: bool, listener: Listener) -> list[Path]:
    from boxwright.sources.hub import fetch as download

    return download(name, folder, force=force, progress=listener.bytes)


def _check_request(recipe: Recipe) -> None:
    """Refuse what cannot succeed before anything is downloaded or imported."""
    from boxwright.graph.end2end import check_nms_request

    if recipe.family is not None:
        catalog.family(recipe.family)
    if recipe.measure.runtimes:
        installed_runtimes(recipe.measure.runtimes)
    if any(t.deployment == "openvino" for t in recipe.target_records()):
        installed_runtimes(("openvino",), "--deploy")
    settings = recipe.nms_settings(0.25, 0.7)
    for target in recipe.target_records():
        if target.outputs == "end2end":
            check_nms_request(False, target, settings)


def _check_picture_input(recipe: Recipe, resolved: Resolved) -> None:
    """Refuse image-input files of a model whose preprocessing no graph can do."""
    if any(t.input == "image" for t in recipe.targets):
        from boxwright.graph.end2end import check_picture_outputs
        from boxwright.graph.image_input import check_preprocess

        spec = resolved.source.describe(resolved.request)
        check_preprocess(spec.preprocess, recipe.source)
        for target in recipe.target_records():
            check_picture_outputs(spec.task, target)


def _check_plugin(recipe: Recipe, resolved: Resolved) -> None:
    """Refuse TensorRT's NMS plugin for a task that it cannot serve, before anything is exported.

    Raises:
        RequestError: It is asked for.
    """
    from boxwright.graph.end2end import check_nms_request

    targets = [t for t in recipe.target_records() if t.outputs == "end2end"]
    if any(t.nms == "efficient_nms" for t in targets):
        spec = resolved.source.describe(resolved.request)
        settings = recipe.nms_settings(0.25, 0.7)
        for target in targets:
            check_nms_request(spec.layout.nms_free, target, settings, spec.task)


def _calibration_files(recipe: Recipe) -> list[Path]:
    """Return the pictures to calibrate on, or the cache in their place; none without INT8.

    Raises:
        RequestError: INT8 is asked for and neither is given, or they are given for nothing.
    """
    options = recipe.calibration
    _check_budget(recipe)
    if not any(t.precision == "int8" for t in recipe.targets):
        for asked, name in ((options.images, "--calib-images"), (options.cache, "--calib-cache")):
            if asked:
                raise RequestError(name, "no INT8 file is asked for", "add --precision int8")
        return []
    if options.cache and Path(options.cache).is_file():
        return [Path(options.cache)]
    if not options.images:
        raise RequestError(
            "--precision int8",
            "it needs pictures like those that it will see, to calibrate on",
            "give --calib-images with 100 to 500 of them",
        )
    from boxwright.images import expand_paths

    return _evenly(expand_paths(options.images), options.count)


def _calibration_key(recipe: Recipe, files: list[Path]) -> str:
    """Return a hash of the pictures that were or will be calibrated on, cached or not."""
    if not files:
        return ""
    cache = recipe.calibration.cache
    if cache and files == [Path(cache)]:
        hashes = cached_pictures(files[0])
    else:
        hashes = [sha256_of_file(p) for p in files]
    return hash_of(hashes)[:16]


def _check_budget(recipe: Recipe) -> None:
    """Refuse an accuracy that nothing can be measured for, or that nothing asks for."""
    if recipe.max_drop is not None:
        if recipe.data is None:
            raise RequestError("--max-drop", "it needs --data", "give labelled pictures")
        if all(t.precision == "fp32" for t in recipe.targets):
            raise RequestError(
                "--max-drop", "no INT8 or FP16 file is asked for", "add --precision int8 or fp16"
            )
    if recipe.data is None:
        asked = {"--split": recipe.data_split, "--data-images": recipe.data_images}
        for option, value in {**asked, "--max-data": recipe.max_data}.items():
            if value is not None:
                raise RequestError(option, "it needs --data", "give labelled pictures")
        if recipe.calibration.method == "auto":
            raise RequestError(
                "--calib-method auto", "it chooses by accuracy, and needs --data", "give --data"
            )


def _evenly(paths: list[Path], count: int) -> list[Path]:
    """Return at most so many of some paths, evenly spaced."""
    if len(paths) <= count:
        return paths
    step = len(paths) / count
    return [paths[int(i * step)] for i in range(count)]


def _pictures(recipe: Recipe) -> list[Path]:
    """Return the named pictures to verify on, at most `max_images`, evenly spaced."""
    if not recipe.verify or not recipe.images:
        return []
    from boxwright.images import expand_paths

    return _evenly(expand_paths(recipe.images), recipe.max_images)


def _other_pictures(recipe: Recipe, dataset: Dataset | None, calibration: list[Path]) -> list[Path]:
    """Return pictures to verify on where none are named: those of the data, or calibrated on.

    Generated ones, which show no objects, are the last resort: the little that a detector sees in
    them says nothing about an INT8 file.
    """
    limit = min(recipe.max_images, _PICTURES_OF_DATA)
    paths = [i.path for i in dataset.items if i.path is not None] if dataset else []
    cache = recipe.calibration.cache
    if not paths and not (cache and calibration == [Path(cache)]):
        paths = calibration
    return _evenly(paths, limit)


def _check_pictures(pictures: list[Path]) -> None:
    """Refuse a picture that cannot be read before anything is made.

    Raises:
        ImageError: One is damaged.
    """
    if pictures:
        from boxwright.images import read_image

        for path in pictures:
            read_image(path)


def _parity_keys(plan: Plan, recipe: Recipe, pictures: list[Path]) -> dict[str, str]:
    hashes = [sha256_of_file(p) for p in pictures]
    return {s.file: hash_of([s.key, hashes, recipe.seed]) for s in plan.steps if s.wanted}
