"""From what a user wrote to the files that a benchmark measures: braces, runtimes, configurations.

A configuration (`yolov8n.yaml`) is exported first, with random weights: they take the same time as
trained ones, and nothing has to be downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from boxwright import catalog
from boxwright.benchmark.settings import Entry
from boxwright.errors import RequestError
from boxwright.outcome import Listener
from boxwright.pipeline import run
from boxwright.recipe import recipe_from_mapping
from boxwright.resolve import needs_download
from boxwright.triton_address import is_address

__all__ = ["entries_from_texts", "expand_braces"]

_CONFIGURATIONS = (".yaml", ".yml")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def expand_braces(text: str) -> list[str]:
    """Expand `{a,b}` as a shell does, for words that came in quotes; inner braces first.

    >>> expand_braces("yolov8{n,s}.yaml"), expand_braces("a.onnx"), expand_braces("{a,b{c,d}}")
    (['yolov8n.yaml', 'yolov8s.yaml'], ['a.onnx'], ['a', 'bc', 'bd'])
    """
    match = _BRACES.search(text)
    if match is None:
        return [text]
    words = [
        f"{text[: match.start()]}{choice}{text[match.end() :]}"
        for choice in match.group(1).split(",")
    ]
    return list(dict.fromkeys(found for word in words for found in expand_braces(word)))


def entries_from_texts(
    texts: Sequence[str],
    runtimes: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    family: str | None = None,
    labels: str | None = None,
    listener: Listener | None = None,
) -> list[Entry]:
    """Return the files to measure, after exporting those that are configurations.

    Args:
        texts: Files, configurations, addresses of served models, words with braces.
        runtimes: `auto`, or names; each file runs in all of them that read it.
        folder: Where exported files land, in FOLDER/NAME/.
        seed: Of random weights.
        family, labels: Of raw files that do not say.
        listener: Told what happens.

    Raises:
        RequestError: A runtime reads none of the files, or a file none of the runtimes.
        SourceError: A file is missing, or no configuration is called so.
        MissingExtraError: What exports configurations is not installed.
    """
    words = [w for t in texts for w in ([t] if Path(t).exists() else expand_braces(t))]
    suffixes = {w: _suffix_to_run(w) for w in words if not is_address(w)}
    _check_runtimes(suffixes, runtimes)
    configurations = [w for w in words if Path(w).suffix.lower() in _CONFIGURATIONS]
    for word in configurations:  # all of them, before the first is exported
        needs_download(word)
    files = {w: _exported(w, folder, seed, listener or Listener()) for w in configurations}
    entries = []
    for word in words:
        if is_address(word):
            entries.append(Entry(word, "auto", "", family, labels))
            continue
        for runtime in runtimes:
            if runtime != "auto" and suffixes[word] not in catalog.backend(runtime).suffixes:
                continue
            name = Path(word).stem if word in files else ""
            path = files.get(word, Path(word))
            entries.append(Entry(path, runtime, name, family, labels, word in files))
    return entries


def _suffix_to_run(word: str) -> str:
    """Return the suffix of the file that will run: a configuration becomes ONNX."""
    suffix = Path(word).suffix.lower()
    return ".onnx" if suffix in _CONFIGURATIONS else suffix


def _check_runtimes(suffixes: dict[str, str], runtimes: Sequence[str]) -> None:
    if "auto" in runtimes:
        if len(runtimes) > 1:
            raise RequestError(
                f"--runtime {','.join(runtimes)}", "auto stands alone", "name the runtimes, or auto"
            )
        return
    kinds = [catalog.backend(r) for r in runtimes]
    for word, suffix in suffixes.items():
        if not any(suffix in kind.suffixes for kind in kinds):
            raise RequestError(
                f"--runtime {','.join(runtimes)}",
                f"none of them reads {word}",
                "say --runtime auto, or name one that does",
            )
    for kind in kinds:
        if not any(suffix in kind.suffixes for suffix in suffixes.values()):
            raise RequestError(
                f"--runtime {kind.name}",
                "it reads none of the files",
                f"it reads {', '.join(kind.suffixes)}",
            )


def _exported(word: str, folder: Path, seed: int, listener: Listener) -> Path:
    """Export a configuration as raw FP32 ONNX, or find it there from before."""
    data = {"source": word, "verify": False, "seed": seed}
    outcome = run(recipe_from_mapping(data, word), folder, listener=listener)
    return outcome.rows[0].path
