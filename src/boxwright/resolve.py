"""From what a user wrote to a local source: a path, a name, an hf:// address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from boxwright import catalog
from boxwright.datasets import Dataset, open_dataset, wanted_of
from boxwright.errors import RequestError, SourceError
from boxwright.measures import check_budget_measure
from boxwright.recipe import Recipe
from boxwright.sources import Source, SourceRequest
from boxwright.sources.names import config_name, parse_name
from boxwright.sources.sidecars import read_labels

__all__ = ["Resolved", "labelled_data", "needs_download", "resolve"]

_LOCAL = (
    ".onnx",
    ".pth",
    ".safetensors",
    ".yaml",
    ".yml",
)  # never the end of a model's official name


@dataclass(frozen=True, slots=True)
class Resolved:
    """A source that is ready to be read.

    Attributes:
        source: Its kind.
        request: Where it is and what is asked of it.
    """

    source: Source
    request: SourceRequest


def needs_download(text: str) -> bool:
    """Whether a source is named by its official name or an address, not by a local file.

    Raises:
        RequestError: It looks like a name, but no model is called so.
        SourceError: It looks like a path, but there is no such file.
    """
    if "://" in text:
        return True
    path = Path(text)
    if path.is_file():
        return False
    if path.is_dir():
        raise SourceError(text, "it is a folder", "name the checkpoint in it")
    if path.parent != Path() or path.suffix in _LOCAL:
        if path.suffix in (".yaml", ".yml") and path.parent == Path():
            config_name(text)  # a configuration that ultralytics ships, or an error
            return False
        raise SourceError(text, "there is no such file", "check the path")
    try:
        parse_name(text)
    except RequestError:
        if not path.suffix:
            raise
        raise SourceError(
            text, "there is no such file, and no official model is called so", "check the path"
        ) from None
    return True


def resolve(recipe: Recipe, models: Path, fetch: Callable[[str, Path], list[Path]]) -> Resolved:
    """Find the source's file, downloading it when it is named and not there.

    Args:
        recipe: What was asked for.
        models: Folder for downloads.
        fetch: Downloads a name into a folder and returns the files.

    Raises:
        RequestError: A name or an option is wrong.
        SourceError: There is no such file, or a folder holds no checkpoint.
    """
    text = recipe.source
    if needs_download(text):
        files = fetch(text, models)
        path = _checkpoint_among(text, files)
        name = text.rstrip("/").rsplit("/", 1)[-1] if len(files) > 1 else path.stem
    elif Path(text).is_file():
        path, name = Path(text), Path(text).stem
    else:
        path = Path(config_name(text))
        name = Path(text).stem
    source = catalog.source_of(path)
    labels = read_labels(recipe.labels) if recipe.labels else None
    request = SourceRequest(
        path=path,
        name=recipe.name or name,
        family=recipe.family,
        image_size=recipe.image_size,
        head=recipe.head,
        labels=labels.names if labels else None,
        colors=labels.colors if labels else (),
        opset=recipe.opset,
        batch=recipe.batch,
        simplify=recipe.simplify,
        trust_checkpoint=recipe.trust_checkpoint,
        config=Path(recipe.config) if recipe.config else None,
        seed=recipe.seed,
    )
    source.check(request)
    return Resolved(source, request)


def _checkpoint_among(text: str, files: list[Path]) -> Path:
    """Return the one checkpoint of a download: .pt before .pth before .onnx."""
    for suffix in (".pt", ".pth", ".onnx"):
        found = [f for f in files if f.suffix == suffix]
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(
                text, f"it holds {len(found)} {suffix} files", "name one of them in the address"
            )
    raise SourceError(
        text, "it holds no .pt, .pth or .onnx file", "name the checkpoint in the address"
    )


def labelled_data(
    recipe: Recipe,
    resolved: Resolved,
    count: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset | None:
    """Open the labelled pictures that a recipe names; None where it names none.

    Args:
        recipe: What was asked for.
        resolved: The model, whose class names count.
        count: Told how many pages of `sample` are generated, and of how many.

    Raises:
        RequestError: An option does not fit the kind of data, or there is a budget and the labels
            have not what the model's task adds to boxes.
        SourceError: The data cannot be read, or has no class of the model.
    """
    if recipe.data is None:
        return None
    pages = recipe.max_data if recipe.data == "sample" else None
    spec = resolved.source.describe(resolved.request)
    found = open_dataset(
        recipe.data,
        class_names=spec.class_names,
        split=recipe.data_split,
        images=Path(recipe.data_images) if recipe.data_images else None,
        pages=pages,
        wanted=wanted_of(spec),
        count=count,
    )
    if recipe.max_drop is not None:
        check_budget_measure(spec, found, "--max-drop")
    return found.limited(recipe.max_data) if recipe.max_data and pages is None else found
