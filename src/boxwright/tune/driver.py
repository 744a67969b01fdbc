"""Drives a tuning: files, accuracy, memory, rounds that drop what cannot win, the final round."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from boxwright import __version__
from boxwright.benchmark import BenchmarkSettings
from boxwright.benchmark.comparison import speed_up
from boxwright.environment import describe_machine
from boxwright.measurement.records import BenchmarkResult, Measured
from boxwright.measurement.statistics import median, rounds_of
from boxwright.outcome import Listener
from boxwright.recipe import Recipe
from boxwright.store import write_atomic
from boxwright.tune.accuracy import (
    REFERENCE,
    Accuracies,
    detections_lost,
    measure_accuracies,
)
from boxwright.tune.commands import commands_for
from boxwright.tune.files import Files, make_files
from boxwright.tune.front import Choice, Point, Rival, choose, excesses, front, prune
from boxwright.tune.race import SOURCE_FILE, Track, point_of
from boxwright.tune.records import Budgets, Candidate, Combination, Drop, Sweep, TuneResult
from boxwright.tune.request import BASELINE, Request, check_request, raw_target
from boxwright.tune.words import why_none, why_winner
from boxwright.types import Accuracy

__all__ = ["RESULT_FILE", "tune"]

RESULT_FILE = "tuned.json"

_AT_ONCE = 12  # candidates that are open at once; each holds a model
_FEW = 6  # so many go to the final round without another one before
_FIRST = 10  # samples of each candidate in the first round; doubled from round to round
_ROUNDS = 3
_WARMUP = 2
_MANY_PICTURES = 500


def tune(
    recipe: Recipe,
    out: Path,
    *,
    budgets: Budgets | None = None,
    sweep: Sweep | None = None,
    models: Path = Path("models"),
    force_download: bool = False,
    force_convert: bool = False,
    listener: Listener | None = None,
) -> TuneResult:
    """Find the fastest file, runtime and threads within budgets, and the Pareto front.

    Files are made and proven by the pipeline, in `out/<name>/`; what is there is skipped. All that
    was tried is written to `out/<name>/tuned.json`, with or without a winner.

    Args:
        recipe: Source, the files that may win (`targets`), calibration and labelled pictures.
        out: Parent of the run directory.
        budgets: What a winner must keep.
        sweep: Runtimes, threads and how to measure.
        models: Folder for downloads.
        force_download, force_convert: Do not skip what is there.
        listener: Told what happens.

    Raises:
        CheckFailedError: The FP32 raw file failed its verification, or the data have no mAP.
        BoxwrightError: The request or an input is wrong.
    """
    listener = listener or Listener()
    request = check_request(
        recipe,
        out,
        budgets or Budgets(),
        sweep or Sweep(),
        models=models,
        force_download=force_download,
        force_convert=force_convert,
        listener=listener,
    )
    files = make_files(request, listener)
    with Track(request, listener) as track:
        result = _Tuning(request, files, track, listener).result()
    data = json.dumps(result.as_dict(), indent=1, allow_nan=False) + "\n"
    write_atomic(request.folder / RESULT_FILE, data.encode())
    return result


class _Tuning:
    """One tuning over files that are made: who is left, what was measured, who wins."""

    def __init__(self, request: Request, files: Files, track: Track, listener: Listener) -> None:
        self.request = request
        self.files = files
        self.track = track
        self.listener = listener
        self.seed = request.recipe.seed
        self.combinations = request.combinations()
        self.baselines = self._baselines()
        self.accuracies = Accuracies()
        self.drops: dict[str, Drop] = {}
        self.memory: dict[str, float | None] = {}
        self.measured: dict[str, Measured] = {}
        self.stages: list[tuple[str, BenchmarkResult]] = []
        self.notes = list(request.notes)
        self.confirmed: set[str] = set()

    def result(self) -> TuneResult:
        """Run all stages and sum up."""
        environment = describe_machine()
        self._leave_out_missing()
        self._measure_accuracy()
        if self.request.budgets.max_memory_mb is not None:
            self._keep_memory_budget()
        self._screen()
        self._final()
        candidates, choice = self._summed_up()
        while choice is not None and not self._is_confirmed(choice.winner):
            candidates, choice = self._summed_up()
        winner = next((c for c in candidates if choice and c.name == choice.winner), None)
        budgets = self.request.budgets
        if winner is not None and choice is not None:
            why = why_winner(winner, choice, candidates)
        else:
            why = "; ".join(why_none(candidates, budgets))
        return TuneResult(
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            boxwright=__version__,
            folder=self.request.folder,
            request=self.request.recipe.model_dump(mode="json"),
            budgets=budgets,
            sweep=self.request.sweep,
            environment=environment,
            data=self._data(),
            pictures=self.track.what,
            candidates=candidates,
            winner=winner,
            why=why,
            tied=choice.tied if choice else (),
            accuracy=self._accuracy_records(),
            measurements=tuple(self.stages),
            notes=tuple(dict.fromkeys([*self.notes, *self._cautions(winner)])),
            commands=commands_for(self.request, winner.combination) if winner else (),
            unsure=choice.unsure if choice else (),
        )

    def _baselines(self) -> list[Combination]:
        """Return FP32 raw in ONNX Runtime at its default threads, and the source in PyTorch."""
        request = self.request
        name, batch = request.file_of(BASELINE), request.sweep.batch
        path = request.folder / name
        load = max(c.in_flight for c in self.combinations)
        first = Combination(name, path, "fp32", "raw", "onnx", "onnxruntime", None, batch, load)
        if not request.has_torch:
            return [first]
        path = request.resolved.request.path
        source = Combination(SOURCE_FILE, path, "fp32", "raw", "onnx", "pytorch", None, batch)
        return [first, source]

    def _alive(self) -> list[Combination]:
        return [c for c in self.combinations if c.name not in self.drops]

    def _drop(self, which: Combination, stage: str, reason: str) -> None:
        self.drops[which.name] = Drop(stage, reason)

    def _tell(self, stage: str, before: int) -> None:
        """Say how many a stage dropped."""
        left = len(self._alive())
        if left < before:
            self.listener.note(f"{stage}: {before - left} of {before} candidates dropped")

    def _leave_out_missing(self) -> None:
        for which in self._alive():
            reason = self.files.failed.get(which.file)
            if reason is not None:
                self._drop(which, "files", reason)
                self.notes.append(f"{which.file} is left out: {reason}")

    def _measure_accuracy(self) -> None:
        """Measure every body that is left, and drop what loses too much."""
        request = self.request
        if request.dataset is None:
            return
        wanted = dict.fromkeys([REFERENCE[0], *(c.body for c in self._alive())])
        names = {body: request.file_of(raw_target(body)) for body in wanted}
        bodies = {p: request.folder / n for p, n in names.items() if n in self.files.sha256}
        self.accuracies = measure_accuracies(
            bodies, request.sweep.runtimes, request.dataset, request.recipe.batch, self.listener
        )
        self.notes += self.accuracies.notes
        limit, alive = request.budgets.max_drop, self._alive()
        measure = self.accuracies.measure
        for which in alive:
            key = which.body, which.runtime
            drop = self.accuracies.drop_of(*key)
            if key in self.accuracies.refused:
                self._drop(which, "accuracy", self.accuracies.refused[key])
            elif drop is None:
                self._drop(which, "accuracy", f"{which.body} has no raw file to measure")
            elif limit is not None and drop > limit:
                self._drop(
                    which,
                    "accuracy",
                    f"it loses {drop:.4f} {measure}, at most {limit:g} is allowed",
                )
        self._tell("accuracy", len(alive))

    def _keep_memory_budget(self) -> None:
        limit = self.request.budgets.max_memory_mb
        assert limit is not None, "asked only with a budget"
        alive = self._alive()
        for number, which in enumerate(alive):
            self.listener.count("memory", number, len(alive))
            peak = self.memory[which.name] = self.track.peak_memory(which)
            if peak is None:
                self._drop(which, "memory", "its peak memory could not be measured")
            elif peak > limit:
                self._drop(which, "memory", f"it takes {peak:.0f} MB, at most {limit:g} is allowed")
        self.listener.count("memory", len(alive), len(alive))
        self._tell("memory", len(alive))

    def _settings(self, iterations: int | None = None) -> BenchmarkSettings:
        """Return how a round is measured; the final one as long as was asked for."""
        settings = BenchmarkSettings(
            iterations=self.request.sweep.iterations,
            seconds=self.request.sweep.seconds,
            device="cpu",
            memory=False,
            seed=self.seed,
        )
        if iterations is None:
            return settings
        return dataclasses.replace(settings, iterations=iterations, seconds=None, warmup=_WARMUP)

    def _screen(self) -> None:
        """Measure those that are left, longer each time, until few are, and drop the dominated."""
        most = self._settings().call_count
        for number in range(_ROUNDS):
            alive, iterations = self._alive(), _FIRST * 2**number
            if len(alive) <= (1 if number == 0 else _FEW) or (number and iterations >= most):
                break
            stage, groups = f"round {number + 1}", self._groups(alive)
            self.listener.note(f"{stage}: {len(alive)} candidates, {min(iterations, most)} samples")
            for group in groups:
                self._run(group, stage, self._settings(min(iterations, most)))
                self._prune(group, stage)
            self._tell(stage, len(alive))
        self._cap()

    def _groups(self, alive: Sequence[Combination]) -> list[list[Combination]]:
        """Deal candidates out to groups that can be open at once; each gets some fast ones."""
        count = -(-len(alive) // _AT_ONCE)
        order = sorted(alive, key=lambda c: self._cost(c.name))
        return [order[i::count] for i in range(count)]

    def _cost(self, name: str) -> float:
        found = self.measured.get(name)
        return 0.0 if found is None else median([v for r in rounds_of(found) for v in r])

    def _run(self, group: Sequence[Combination], stage: str, settings: BenchmarkSettings) -> None:
        result, refused = self.track.run(group, settings, stage)
        self.stages.append((stage, result))
        self.measured |= {m.name: m for m in result.measured}
        for which in group:
            if which.name in refused:
                self._drop(which, stage, refused[which.name])

    def _point(self, which: Combination) -> Point:
        drop = self.accuracies.drop_of(which.body, which.runtime)
        # Memory counts as an axis only where it was measured before anything was dropped for speed.
        asked = self.request.budgets.max_memory_mb is not None
        memory = self.memory.get(which.name) if asked else None
        return point_of(self.measured[which.name], drop, memory, self.seed)

    def _prune(self, group: Sequence[Combination], stage: str) -> None:
        alive = [c for c in group if c.name not in self.drops]
        reasons = prune([self._point(c) for c in alive], self.request.budgets)
        for which in alive:
            if which.name in reasons:
                self._drop(which, stage, reasons[which.name])

    def _cap(self) -> None:
        """Where noise decided too little, take the best so far to the final round, and say so."""
        alive = self._alive()
        if len(alive) <= _AT_ONCE:
            return
        leading = front([self._point(c) for c in alive])
        order = sorted(alive, key=lambda c: (c.name not in leading, self._cost(c.name)))
        for place, which in enumerate(order[_AT_ONCE:], _AT_ONCE + 1):
            self._drop(
                which,
                "final",
                f"the machine is too noisy to decide between {len(alive)}: the {_AT_ONCE} best go "
                f"on, and this was number {place} with {self._cost(which.name):.2f} ms",
            )

    def _final(self) -> None:
        """Measure who is left together with the baselines, and the memory of all of them."""
        alive = self._alive()
        if not alive:
            return
        self.listener.note(f"final: {len(alive)} candidates and {len(self.baselines)} baselines")
        self._run([*alive, *self.baselines], "final", self._settings())
        if not self.request.sweep.memory:
            return
        missing = [c for c in [*self._alive(), *self.baselines] if c.name not in self.memory]
        for number, which in enumerate(missing):
            self.listener.count("memory", number, len(missing))
            self.memory[which.name] = self.track.peak_memory(which)
        self.listener.count("memory", len(missing), len(missing))

    def _is_confirmed(self, name: str) -> bool:
        """Whether an end-to-end winner finds in its runtime what its body does; else drop it.

        It was verified in one runtime, and another may compute the whole graph in another way.
        """
        which = next(c for c in self.combinations if c.name == name)
        dataset = self.request.dataset
        if dataset is None or which.outputs == "raw" or which.file in self.confirmed:
            return True
        self.listener.note(f"confirm {which.file} in {which.runtime}")
        worse = detections_lost(
            which.path,
            self.request.folder / self.request.file_of(raw_target(which.body)),
            which.runtime,
            dataset,
            self.request.recipe.batch,
        )
        if worse is None:
            self.confirmed.add(which.file)
            return True
        for other in self._alive():
            if (other.file, other.runtime) == (which.file, which.runtime):
                self._drop(other, "confirmation", worse)
        self.notes.append(f"{which.file} in {which.runtime} is left out: {worse}")
        return False

    def _summed_up(self) -> tuple[tuple[Candidate, ...], Choice | None]:
        """Return the candidates, the best first and the baselines last, and who wins."""
        alive = [c for c in self._alive() if c.name in self.measured]
        points = {c.name: self._point(c) for c in alive}
        best = front(list(points.values()))
        finished = [self._candidate(c, points[c.name], c.name in best) for c in alive]
        gone = [self._candidate(c) for c in self.combinations if c.name in self.drops]
        final = self.stages[-1][1] if self.stages and self.stages[-1][0] == "final" else None
        ran = {m.name for m in final.measured} if final else set()
        bases = [
            dataclasses.replace(self._candidate(c), baseline=True)
            for c in self.baselines
            if c.name in ran
        ]
        finished.sort(key=lambda c: self._cost(c.name))
        gone.sort(key=lambda c: (c.measured is None, self._cost(c.name)))
        rivals = [
            Rival(c.name, rounds_of(c.measured), c.combination.simplicity)
            for c in finished
            if c.eligible and c.measured is not None
        ]
        return (*finished, *gone, *bases), choose(rivals, seed=self.seed)

    def _candidate(
        self, which: Combination, point: Point | None = None, on_front: bool = False
    ) -> Candidate:
        measured = self.measured.get(which.name)
        final = {} if point is None else {b.name: self.measured.get(b.name) for b in self.baselines}
        memory = self.memory.get(which.name)
        over: tuple[str, ...] = ()
        if point is not None:
            known_point = dataclasses.replace(point, memory_mb=memory)
            over = excesses(known_point, self.request.budgets, self.accuracies.measure)
        known = which.file != SOURCE_FILE
        key = which.body, which.runtime
        return Candidate(
            combination=which,
            sha256=self.files.sha256.get(which.file, ""),
            figure=self.accuracies.figure_of(*key) if known else None,
            measure=self.accuracies.measure,
            drop=self.accuracies.drop_of(*key) if known else None,
            measured=measured,
            peak_memory_mb=memory,
            speed_ups=tuple(
                speed_up(base, measured, self.seed)
                for base in final.values()
                if base is not None and measured is not None
            ),
            dropped=self.drops.get(which.name),
            over=over,
            on_front=on_front,
            change=self.accuracies.changes.get(key) if known else None,
        )

    def _data(self) -> dict[str, Any]:
        dataset = self.request.dataset
        if dataset is None:
            return {}
        return {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "pictures": len(dataset.items),
            "objects": sum(int((~item.crowd).sum()) for item in dataset.items),
        }

    def _accuracy_records(self) -> tuple[tuple[str, str, Accuracy], ...]:
        return tuple(
            (self.request.file_of(raw_target(body)), runtime, figures)
            for (body, runtime), figures in self.accuracies.measured.items()
        )

    def _cautions(self, winner: Candidate | None) -> list[str]:
        """Return what the reader should know before relying on the winner."""
        cautions = []
        pictures = {figures.pictures for figures in self.accuracies.measured.values()}
        if pictures and min(pictures) < _MANY_PICTURES:
            cautions.append(
                f"accuracy was measured on {min(pictures)} pictures, which are few: differences of "
                f"some thousandths of {self.accuracies.measure} mean little"
            )
        if winner is None:
            return cautions
        noise = winner.measured.noise if winner.measured else None
        if noise is not None and noise.verdict == "noisy":
            cautions.append(
                f"the machine was noisy while the winner ran ({'; '.join(noise.reasons)}): "
                f"{noise.advice}, and tune again"
            )
        if winner.combination.file in self.files.unproven:
            cautions.append(
                f"the source found nothing on the pictures that {winner.combination.file} was "
                "verified on: its detections are unproven; give --images that show objects"
            )
        return cautions
