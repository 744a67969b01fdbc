"""Measures how well each body detects in each runtime, on its raw file.

An end-to-end file has the body of a raw one, and its verification proved that both detect the same
at the operating thresholds; mAP itself needs the low scores that such a file leaves out.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from boxwright.datasets import Dataset
from boxwright.detector import Detector
from boxwright.environment import describe_environment, package_versions
from boxwright.errors import BackendError, CheckFailedError
from boxwright.evaluate import evaluate
from boxwright.loading import load
from boxwright.outcome import Listener
from boxwright.significance import Matches, change
from boxwright.tune.request import runtimes_of
from boxwright.types import Accuracy, Change

__all__ = ["REFERENCE", "Accuracies", "detections_lost", "measure_accuracies"]

REFERENCE = ("fp32", "onnxruntime")
_SAME_F1 = 0.02


@dataclass(slots=True)
class Accuracies:
    """How well bodies detect, by (body, runtime).

    Attributes:
        measured: The figures.
        changes: Against FP32 in ONNX Runtime, with intervals paired by picture.
        refused: Why a runtime does not run a body.
        notes: What is wrong with the data.
    """

    measured: dict[tuple[str, str], Accuracy] = field(default_factory=dict)
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def figure_of(self, body: str, runtime: str) -> float | None:
        """Return mAP50-95 or the task's own figure, or None when it was not measured."""
        found = self.measured.get((body, runtime))
        return found.figure if found else None

    @property
    def measure(self) -> str:
        """Name of the figure."""
        return next((a.measure for a in self.measured.values()), "mAP50-95")

    def drop_of(self, body: str, runtime: str) -> float | None:
        """Return what is lost against FP32 in ONNX Runtime, or None when it was not measured."""
        own, reference = self.figure_of(body, runtime), self.figure_of(*REFERENCE)
        return None if own is None or reference is None else reference - own


def measure_accuracies(
    bodies: dict[str, Path],
    runtimes: tuple[str, ...],
    dataset: Dataset,
    batch: int | None,
    listener: Listener,
) -> Accuracies:
    """Measure every body in every runtime, and FP32 in ONNX Runtime in any case.

    Args:
        bodies: Raw file of each body.
        runtimes: That run ONNX files.
        dataset: Labelled pictures.
        batch: That the files are fixed to, if they are.
        listener: Told what happens.

    Raises:
        CheckFailedError: There is no mAP to compare with.
        BackendError: ONNX Runtime refuses the FP32 file.
        SourceError: No picture can be read.
    """
    found = Accuracies()
    wanted = [REFERENCE, *((b, r) for b in bodies for r in runtimes_of(b, runtimes))]
    with ExitStack() as stack:
        detectors: dict[str, Detector] = {}
        keys: dict[str, tuple[str, str]] = {}
        for body, runtime in dict.fromkeys(wanted):
            path = bodies[body]
            try:
                detector = load(path, runtime, device="cpu", quiet=True)  # type: ignore[arg-type]
            except BackendError as error:
                if (body, runtime) == REFERENCE:
                    raise
                found.refused[body, runtime] = error.found
                continue
            name = f"{path.name} ({runtime})"
            detectors[name] = stack.enter_context(detector)
            keys[name] = (body, runtime)
        listener.note(f"accuracy of {len(detectors)} on {len(dataset.items)} pictures")
        found.notes += [f"{dataset.name}: {n} {what}" for what, n in dataset.problems.items()]
        matches: dict[str, Matches] = {}
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            listener.count("accuracy", done, len(dataset.items))

        results = evaluate(
            detectors,
            dataset,
            batch=batch or 1,
            environment={**describe_environment(), **package_versions(("faster-coco-eval",))},
            advance=advance,
            report=found.notes.append,
            matches=matches,
        )
    found.measured = {keys[name]: accuracy for name, accuracy in results.items()}
    if found.figure_of(*REFERENCE) is None:
        raise CheckFailedError(
            dataset.name,
            "it has no mAP: no object could be measured",
            "give other labelled pictures",
        )
    first = next(name for name, key in keys.items() if key == REFERENCE)
    found.changes = {
        key: change(matches[name], matches[first], first)
        for name, key in keys.items()
        if key != REFERENCE
    }
    return found


def detections_lost(
    whole: Path, raw: Path, runtime: str, dataset: Dataset, batch: int | None
) -> str | None:
    """Compare an end-to-end file with the raw one of its body, at the thresholds that are baked in.

    Args:
        whole, raw: The files.
        runtime: That runs both.
        dataset: Labelled pictures.
        batch: That the files are fixed to, if they are.

    Returns:
        What is wrong, in words, or None: the F1 of both is the same within 0.02.
    """
    with ExitStack() as stack:
        pair: dict[str, Detector] = {}
        for path in (whole, raw):
            detector = load(path, runtime, device="cpu", quiet=True)  # type: ignore[arg-type]
            pair[path.name] = stack.enter_context(detector)
        pair[raw.name].nms = pair[whole.name].nms
        found = evaluate(pair, dataset, batch=batch or 1)
    one, other = found[whole.name].f1, found[raw.name].f1
    if one is None or other is None or one >= other - _SAME_F1:
        return None
    return (
        f"its F1 is {one:.3f} where the raw file's is {other:.3f}: {runtime} computes it otherwise "
        "than it was verified"
    )
