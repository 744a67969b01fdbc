"""`fleet run`: the main job over many sources and targets, as one graph of steps.

Each step is done once, whoever needs its file, in a process of its own; a step that fails takes
what is made of it along, and everything else goes on. Stores are written by this process alone,
which holds the lock of each; what was made stays when it dies, and the next run takes it up.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from boxwright.errors import BoxwrightError, RequestError, StoreError
from boxwright.fleet.predict import FleetListener
from boxwright.pipeline import Prepared, prepare
from boxwright.plan import Step, decide
from boxwright.recipe import Recipe, recipe_from_mapping
from boxwright.store import Entry, Store, locked, write_atomic

__all__ = ["RUN_FILE", "Branch", "Executor", "FleetRun", "fleet_run", "recipes_of_run"]

RUN_FILE = "fleet.json"
_SCHEMA = 1
State = Literal["made", "there", "failed", "left out"]


@dataclass(slots=True)
class Branch:
    """What became of one file, or of a source of which nothing can be made.

    Attributes:
        source, file: Whose; `file` is empty where the source itself failed.
        state: `there` was made before; `left out` is one whose parent failed.
        sha256: Of the published file, or "".
        error: Why it failed, or "".
    """

    source: str
    file: str
    state: State
    sha256: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class FleetRun:
    """What a run came to.

    Attributes:
        out: The folder with a run directory for each source.
        branches: In the order of recipes, then of files.
    """

    out: Path
    branches: tuple[Branch, ...]

    @property
    def failed(self) -> int:
        """How many branches came to nothing."""
        return sum(b.state in ("failed", "left out") for b in self.branches)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        rows = [{n: getattr(b, n) for n in Branch.__slots__} for b in self.branches]
        return {"out": str(self.out), "branches": rows, "failed": self.failed}


class Executor(Protocol):
    """Does nodes somewhere, several at a time."""

    def free(self) -> bool:
        """Whether another node can begin."""
        ...

    def begin(self, key: str, message: Mapping[str, Any]) -> None:
        """Begin a node."""
        ...

    def next_done(self) -> tuple[str, dict[str, Any]]:
        """Wait for a node to end; return its key and answer."""
        ...

    def close(self) -> None:
        """End what still runs."""
        ...


@dataclass(slots=True)
class _Source:
    """A recipe on its way."""

    recipe: Recipe
    ready: Prepared | None = None
    steps: dict[str, Step] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    store: Store | None = None
    begun: set[str] = field(default_factory=set)
    proof: Literal["waiting", "begun", "done"] = "waiting"
    error: str = ""

    def settled(self) -> bool:
        """Whether every step was made or will not be."""
        return all(file in self.states for file in self.steps)


class _Graph:
    """All sources, what can begin, and what has become of it."""

    def __init__(
        self, recipes: Sequence[Recipe], out: Path, models: Path, listener: FleetListener
    ) -> None:
        self.out, self.models, self.listener = out, models, listener
        self.sources = [_Source(_without_latency(r)) for r in recipes]
        self.stack = contextlib.ExitStack()
        self.results = Path(self.stack.enter_context(_results(out)))

    def open(self) -> None:
        """Plan every source and lock its run directory; one that cannot be is a failed branch."""
        taken: dict[Path, str] = {}
        for source in self.sources:
            try:
                self._open(source, taken)
            except BoxwrightError as error:
                source.error, source.proof = str(error), "done"
                self.listener.note(f"{source.recipe.source} failed: {error}")

    def _open(self, source: _Source, taken: dict[Path, str]) -> None:
        ready = prepare(source.recipe, self.out, models=self.models)
        folder = ready.plan.folder
        if folder in taken:
            raise RequestError(
                source.recipe.source,
                f"its files would be in {folder}, as those of {taken[folder]}",
                "give it another name, or ask for all its files in one recipe",
            )
        store = Store(folder)
        store.__enter__()
        source.store = store  # it is let go before the proof, which locks it again
        plan = decide(ready.plan, store, force=False, parity_keys=ready.keys)
        taken[folder] = source.recipe.source
        source.ready = ready
        source.steps = {s.file: s for s in plan.steps}
        source.wanted = [s.file for s in plan.steps if s.wanted]
        source.states = {s.file: "there" for s in plan.steps if s.action != "make"}

    def close(self) -> None:
        """Let go of every store."""
        for source in self.sources:
            _let_go(source)
        self.stack.close()

    def ready_nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the key and the message of each node that can begin now; mark it as begun."""
        for number, source in enumerate(self.sources):
            if source.proof != "waiting" or source.ready is None:
                continue
            for file, step in source.steps.items():
                parent = source.states.get(step.parent) if step.parent else "made"
                if file in source.states or file in source.begun or parent is None:
                    continue
                source.begun.add(file)
                yield f"{number}/{file}", self._message(source, "step", file, number)
            if source.settled():
                good = [f for f in source.wanted if source.states[f] in ("made", "there")]
                if not good:
                    _let_go(source)
                    source.proof = "done"
                    continue
                source.proof = "begun"
                _let_go(source)
                yield f"{number}/", self._message(source, "prove", "", number)

    def _message(self, source: _Source, kind: str, file: str, number: int) -> dict[str, Any]:
        assert source.ready is not None
        folder = source.ready.plan.folder.name
        recipe = source.recipe.model_dump(mode="json", exclude_defaults=True)
        if kind == "prove":
            recipe["targets"] = targets = self._good_targets(source)
            precisions = {t.get("precision", "fp32") for t in targets}
            if "int8" not in precisions:
                recipe.pop("calibration", None)  # `run` refuses what nothing asks for
            if precisions == {"fp32"}:
                recipe.pop("max_drop", None)
        return {
            "kind": kind,
            "recipe": recipe,
            "out": str(self.out),
            "models": str(self.models),
            "cwd": str(Path.cwd()),
            "folder": folder,
            "file": file,
            "label": file or f"prove {folder}",
            "result": str(self.results / f"{number}-{file}.result"),
            "command": f"boxwright fleet run --out {self.out}",
        }

    @staticmethod
    def _good_targets(source: _Source) -> list[dict[str, Any]]:
        """Return the recipe's targets whose files could be made."""
        assert source.ready is not None
        name = source.ready.plan.folder.name
        records = source.recipe.target_records()
        kept = []
        for option in source.recipe.targets:
            one = source.recipe.model_copy(update={"targets": (option,)}).target_records()[0]
            file = f"{name}.{one.suffix}.onnx"
            if one in records and source.states.get(file) in ("made", "there"):
                kept.append(option.model_dump(mode="json", exclude_defaults=True))
        return kept

    def settle(self, key: str, answer: Mapping[str, Any]) -> None:
        """Take the answer of a node."""
        number, _, file = key.partition("/")
        source = self.sources[int(number)]
        error = answer.get("error")
        if not file:
            self._proven(source, answer)
        elif error:
            self._fail(source, file, _line(error))
        else:
            self._keep(source, file, Path(self.results / f"{number}-{file}.result"))

    def _keep(self, source: _Source, file: str, stem: Path) -> None:
        """Put a file that was made into its store."""
        assert source.store is not None
        data, described = stem.with_suffix(".bin"), stem.with_suffix(".json")
        record = json.loads(described.read_text(encoding="utf-8"))
        try:
            source.store.source = record["source"]
            source.store.put(file, data.read_bytes(), Entry(**record["entry"]))
        except StoreError as error:
            self._fail(source, file, str(error))
            return
        finally:
            data.unlink(missing_ok=True)
            described.unlink(missing_ok=True)
        source.states[file] = "made"
        self.listener.note(f"made {source.store.folder.name}/{file}")

    def _fail(self, source: _Source, file: str, error: str) -> None:
        source.states[file], source.errors[file] = "failed", error
        self.listener.note(f"{file} failed: {error}")
        lost = {file}
        for other, step in source.steps.items():  # parents come first
            if step.parent in lost and other not in source.states:
                lost.add(other)
                source.states[other] = "left out"
                source.errors[other] = f"{step.parent} failed"

    def _proven(self, source: _Source, answer: Mapping[str, Any]) -> None:
        source.proof = "done"
        source.files = dict(answer.get("files", {}))
        error = answer.get("error")
        if error:
            for file in answer.get("failed") or source.wanted:
                if source.states.get(file) in ("made", "there"):
                    source.states[file], source.errors[file] = "failed", _line(error)
            self.listener.note(f"{source.recipe.source} failed: {_line(error)}")

    def branches(self) -> Iterator[Branch]:
        """Yield what became of everything."""
        for source in self.sources:
            if source.ready is None or source.error:
                yield Branch(source.recipe.source, "", "failed", error=source.error)
                continue
            for file in source.wanted:
                state = source.states.get(file, "left out")
                sha256 = source.files.get(file, "") if state in ("made", "there") else ""
                yield Branch(source.recipe.source, file, state, sha256, source.errors.get(file, ""))


def _line(error: Sequence[str]) -> str:
    asked, found, do = error
    return f"{asked}: {found}" + (f"; {do}" if do else "")


def _let_go(source: _Source) -> None:
    if source.store is not None:
        source.store.__exit__(None, None, None)
        source.store = None


def _without_latency(recipe: Recipe) -> Recipe:
    """Return a recipe that times nothing: other work runs on the machine at the same time."""
    measure = recipe.measure.model_copy(update={"latency": False})
    return recipe.model_copy(update={"measure": measure})


@contextlib.contextmanager
def _results(out: Path) -> Iterator[str]:
    """Make a folder for what nodes leave, beside the run directories; what a crash left goes."""
    with tempfile.TemporaryDirectory(prefix=".fleet-", dir=out) as name:
        yield name


def _sweep(out: Path) -> None:
    import shutil

    for old in out.glob(".fleet-*"):
        shutil.rmtree(old, ignore_errors=True)


def recipes_of_run(out: Path) -> list[Recipe]:
    """Return the recipes of the run that a folder remembers.

    Raises:
        RequestError: It remembers none.
    """
    path = out / RUN_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != _SCHEMA:
            raise ValueError(f"schema {data['schema']}")
        if data["cwd"] != str(Path.cwd()):  # recipes name files from there
            raise RequestError(
                f"--resume --out {out}", f"it was begun in {data['cwd']}", "start it there again"
            )
        return [recipe_from_mapping(r, str(path)) for r in data["recipes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"[:160]
        raise RequestError(
            f"--resume --out {out}",
            f"no run of a fleet is recorded there ({reason})",
            "name recipes",
        ) from None


def fleet_run(
    recipes: Sequence[Recipe],
    out: Path,
    executor: Executor,
    *,
    models: Path = Path("models"),
    listener: FleetListener | None = None,
) -> FleetRun:
    """Make, prove and publish what many recipes ask for; a branch that fails stops no other.

    Args:
        recipes: What was asked for.
        out: Folder with a run directory for each source.
        executor: Does the steps.
        models: Folder for downloads.
        listener: Told what happens.

    Raises:
        StoreError: Another fleet works in `out`, or it is not writable.
    """
    listener = listener or FleetListener()
    out = out.absolute()
    with locked(out / RUN_FILE, "wait for it, or choose another --out"):
        _sweep(out)
        asked = [r.model_dump(mode="json", exclude_defaults=True) for r in recipes]
        _record(out, asked, [])
        graph = _Graph(recipes, out, models.absolute(), listener)
        try:
            graph.open()
            _drive(graph, executor)
            run = FleetRun(out, tuple(graph.branches()))
            _record(out, asked, run.as_dict()["branches"])
            return run
        finally:
            executor.close()
            graph.close()


def _record(out: Path, recipes: list[dict[str, Any]], branches: list[dict[str, Any]]) -> None:
    data = {"schema": _SCHEMA, "cwd": str(Path.cwd()), "recipes": recipes, "branches": branches}
    write_atomic(out / RUN_FILE, (json.dumps(data, indent=1) + "\n").encode())


def _drive(graph: _Graph, executor: Executor) -> None:
    """Begin what can begin, take what ends, until nothing is left."""
    waiting: list[tuple[str, dict[str, Any]]] = []
    running = 0
    while True:
        waiting += graph.ready_nodes()
        while waiting and executor.free():
            executor.begin(*waiting.pop(0))
            running += 1
        if not running:
            return
        key, answer = executor.next_done()
        running -= 1
        graph.settle(key, answer)
