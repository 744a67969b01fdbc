"""What a report speaks of: files, each in its runtimes, with their figures brought together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from boxwright.measurement.records import Measured
from boxwright.report.records import SOURCE, Evaluated, Made, Report
from boxwright.types import Parity, Target

__all__ = [
    "Node",
    "Subject",
    "budgets",
    "file_of",
    "finite",
    "front",
    "in_order",
    "labels",
    "lineage",
    "size_ratios",
    "subjects",
]


@dataclass(frozen=True, slots=True)
class Subject:
    """A file in a runtime, with what is known of the two.

    Attributes:
        file: Name of the artefact, or `source`.
        label: The same, short.
        runtime: Name of the runtime; "" where the file was not measured.
        made: The artefact; None for the source.
        parity: Of the file; None where it was not verified.
        evaluated: Accuracy, or None.
        measured: Latency in every setting, the first setting first.
        chosen: It is the one to ship.
        color: Number of the file's body (precision and deployment), from 1; 0 is the source.
        variant: Number of the file among those of its body, from 0.
    """

    file: str
    label: str
    runtime: str
    made: Made | None
    parity: Parity | None
    evaluated: Evaluated | None
    measured: tuple[Measured, ...]
    chosen: bool
    color: int
    variant: int

    @property
    def title(self) -> str:
        """Label and runtime in one line."""
        return f"{self.label} · {self.runtime}" if self.runtime else self.label

    @property
    def rejected(self) -> bool:
        """Whether a check refused the file."""
        return self.made is not None and self.made.state == "rejected"

    @property
    def first(self) -> Measured | None:
        """Latency in the first setting."""
        return self.measured[0] if self.measured else None


@dataclass(frozen=True, slots=True)
class Node:
    """A file in the tree of what was made from what.

    Attributes:
        name: Of the file.
        sha256: Of its bytes; "" when unknown.
        made: The artefact; None for the source and for files that are not in the report.
        note: What else there is to say.
        children: Made from it.
    """

    name: str
    sha256: str
    made: Made | None
    note: str
    children: tuple[Node, ...]


def labels(report: Report) -> dict[str, str]:
    """Return a short name for each file, and for the source.

    The model's name and the suffix go, as long as what is left tells the files apart.
    """
    names = [a.artifact.path.name for a in report.artifacts]
    short = [_shortened(n, report.name) for n in names]
    apart = {
        n: s if s and short.count(s) == 1 and s != SOURCE else n
        for n, s in zip(names, short, strict=True)
    }
    return {SOURCE: SOURCE, **apart}


def _shortened(name: str, model: str) -> str:
    return name.removeprefix(f"{model}.").removesuffix(".onnx")


def file_of(measured: Measured, report: Report) -> str:
    """Return which artefact was measured: the last part of its path tells; else `source`."""
    names = {a.artifact.path.name for a in report.artifacts}
    for kind in (PurePosixPath, PureWindowsPath):
        if (last := kind(measured.file).name) in names:
            return last
    return SOURCE


def subjects(report: Report) -> tuple[Subject, ...]:
    """Return each file in each runtime that it was measured in, the source first."""
    made = {a.artifact.path.name: a for a in in_order(report.artifacts)}
    short = labels(report)
    evaluated = {(e.file, e.runtime): e for e in report.accuracy}
    measured: dict[tuple[str, str], list[Measured]] = {}
    for m in report.benchmark.measured if report.benchmark else ():
        measured.setdefault((file_of(m, report), m.runtime), []).append(m)
    pairs = list(dict.fromkeys([*evaluated, *measured]))
    files = list(dict.fromkeys([SOURCE, *made, *(file for file, _ in pairs)]))
    choice = (report.choice.file, report.choice.runtime) if report.choice else ("", "")
    places = _places([made.get(f) for f in files])
    found = []
    for file, (color, variant) in zip(files, places, strict=True):
        runtimes = [r for f, r in pairs if f == file]
        if file == SOURCE and not runtimes:
            continue
        for runtime in runtimes or [""]:
            found.append(
                Subject(
                    file=file,
                    label=short.get(file, file),
                    runtime=runtime,
                    made=made.get(file),
                    parity=report.parity.get(file),
                    evaluated=evaluated.get((file, runtime)),
                    measured=tuple(measured.get((file, runtime), ())),
                    chosen=file == choice[0] and runtime in ("", choice[1]),
                    color=color,
                    variant=variant,
                )
            )
    return tuple(found)


def in_order(artifacts: Sequence[Made]) -> list[Made]:
    """Return the files from FP32 to INT8, raw before end-to-end."""
    precisions, outputs = ("fp32", "fp16", "int8"), ("raw", "end2end")

    def place(made: Made) -> tuple[int, str, int]:
        target = made.artifact.target
        precision = precisions.index(target.precision)
        return precision, target.deployment, outputs.index(target.outputs)

    return sorted(artifacts, key=place)


def _places(made: Sequence[Made | None]) -> list[tuple[int, int]]:
    """Return (number of the body, number among its files) of each file."""
    bodies: dict[tuple[str, str], int] = {}
    seen: dict[int, int] = {}
    places = []
    for one in made:
        number = 0
        if one is not None:
            target = one.artifact.target
            number = bodies.setdefault((target.precision, target.deployment), len(bodies) + 1)
        places.append((number, seen.get(number, 0)))
        seen[number] = seen.get(number, 0) + 1
    return places


def size_ratios(report: Report) -> dict[str, float]:
    """Return each file's size over that of the FP32 file with the same input and outputs, if any.

    Without such a file it is the first FP32 file's.
    """
    full = [a for a in report.artifacts if a.artifact.target.precision == "fp32" and a.size_bytes]
    if not full:
        return {}
    kinds = {_ends(a.artifact.target): a.size_bytes for a in reversed(full)}
    return {
        a.artifact.path.name: a.size_bytes / kinds.get(_ends(a.artifact.target), full[0].size_bytes)
        for a in report.artifacts
    }


def _ends(target: Target) -> tuple[str, str]:
    """Return what goes in and what comes out of a file."""
    return target.input, target.outputs


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the (cost, worth) points that no other point beats, cheapest first.

    A point is beaten by one that costs no more and is worth no less, and differs.

    >>> front([(1.0, 0.5), (2.0, 0.7), (3.0, 0.6), (2.0, 0.7)])
    [0, 1, 3]
    """
    return sorted(
        (
            i
            for i, (cost, worth) in enumerate(points)
            if not any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
        ),
        key=lambda i: (points[i][0], i),
    )


def lineage(report: Report) -> tuple[Node, ...]:
    """Return the trees of what was made from what; the first begins with the source."""
    made = in_order(report.artifacts)
    known = {a.artifact.sha256: a for a in reversed(made)}
    source_hash = _text(report.source.get("sha256"))
    children: dict[str, list[Made]] = {}
    for one in made:
        children.setdefault(one.artifact.parent, []).append(one)
    placed: set[int] = set()

    def below(sha256: str) -> tuple[Node, ...]:
        nodes = []
        for one in children.get(sha256, []):
            if id(one) not in placed:  # hashes that point in a circle end here
                placed.add(id(one))
                artifact = one.artifact
                nodes.append(
                    Node(artifact.path.name, artifact.sha256, one, "", below(artifact.sha256))
                )
        return tuple(nodes)

    asked = _text(report.source.get("asked")) or SOURCE
    note = " ".join(w for w in (_text(report.source.get("kind")), "source") if w)
    trees = [Node(asked, source_hash, None, note, below(source_hash))]
    for parent in children:
        if parent not in known and any(id(c) not in placed for c in children[parent]):
            note = "an intermediate or other file that is not in this report"
            trees.append(Node("not in this report", parent, None, note, below(parent)))
    for one in made:
        if id(one) not in placed:
            placed.add(id(one))
            artifact = one.artifact
            nodes = below(artifact.sha256)
            trees.append(Node(artifact.path.name, artifact.sha256, one, "", nodes))
    return tuple(trees)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def finite(value: float | None) -> float | None:
    """Return a number, or None for what is none."""
    return value if value is not None and math.isfinite(value) else None


def budgets(report: Report) -> Mapping[str, Made]:
    """Return the files whose accuracy budget left something to show."""
    return {a.artifact.path.name: a for a in in_order(report.artifacts) if a.budget}
