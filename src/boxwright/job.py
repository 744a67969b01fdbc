"""Carries out a plan in an open run directory: make, verify, publish, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright import __version__, catalog
from boxwright.backends import Backend, BackendOptions
from boxwright.environment import describe_environment, package_versions
from boxwright.errors import CheckFailedError
from boxwright.outcome import Listener, Row
from boxwright.plan import Plan, Step
from boxwright.recipe import Recipe
from boxwright.report import Report
from boxwright.reporting import write_report
from boxwright.resolve import Resolved
from boxwright.store import Entry, Store, sha256_of_bytes
from boxwright.types import (
    Artifact,
    Image,
    ModelSpec,
    NmsSettings,
    Parity,
)

if TYPE_CHECKING:
    import onnx

    from boxwright.datasets import Dataset
    from boxwright.detector import Detector
    from boxwright.quantization import Converter

__all__ = ["Job"]

_DONE = {"make": "made", "verify": "verified", "skip": "skipped"}


class Job:
    """One run over an open store."""

    def __init__(
        self,
        recipe: Recipe,
        resolved: Resolved,
        plan: Plan,
        store: Store,
        pictures: list[Path],
        parity_keys: dict[str, str],
        calibration: list[Path],
        dataset: Dataset | None,
        listener: Listener,
        command: str = "",
        measure_again: bool = False,
    ) -> None:
        self.recipe = recipe
        self.resolved = resolved
        self.plan = plan
        self.store = store
        self.pictures: list[Path | Image] = list(pictures)
        self.parity_keys = parity_keys
        self.calibration = calibration
        self.dataset = dataset
        self.listener = listener
        self.command = command
        self.measure_again = measure_again
        self.report: Report | None = None
        self.rows: list[Row] = []
        self._reference: Detector | None = None
        self._lossy: Converter | None = None
        self._models: dict[str, onnx.ModelProto] = {}
        self._budgets: dict[str, dict[str, Any] | None] = {}

    def close(self) -> None:
        if self._reference is not None:
            self._reference.close()

    def make_all(self) -> None:
        for step in self.plan.steps:
            if step.action == "make":
                self.listener.note(f"{step.kind}: {step.file}")
                self._make(step)
        wanted = [s for s in self.plan.steps if s.wanted]
        unproven = [s for s in wanted if not self._is_proven(s)]
        if unproven:
            self._prove(unproven)
        failed: list[Step] = []
        for step in wanted:
            parity = self._parity(step)
            if step in unproven and parity is not None and not parity.passed:
                failed.append(step)
                self._reject(step)
            elif self.store.entries[step.file].state == "built":
                self.store.publish(step.file, "published")
            self._add_row(step, "rejected" if step in failed else _DONE[step.action], parity)
        self.report = write_report(
            self.store,
            self.recipe,
            self.resolved,
            source=self._open_reference,
            dataset=self.dataset,
            pictures=self.pictures,
            command=self.command,
            again=self.measure_again,
            listener=self.listener,
        )
        if failed:
            raise CheckFailedError(*self._failure(failed))

    def _parity(self, step: Step) -> Parity | None:
        stored = self.store.entries[step.file].parity
        return Parity.from_dict(stored) if stored else None

    def _is_proven(self, step: Step) -> bool:
        """Whether nothing is to be verified, or it was done already."""
        key = self.parity_keys.get(step.file, "")
        parity = self._parity(step)
        known = parity is not None and parity.passed
        return not key or (known and self.store.entries[step.file].parity_key == key)

    def _make(self, step: Step) -> None:
        data, entry = self.built(step)
        self.store.source = self.source_record()
        self.store.put(step.file, data, entry)

    def source_record(self) -> dict[str, Any]:
        """Return what the manifest says of the source."""
        return {
            "asked": self.recipe.source,
            "kind": self.resolved.source.name,
            "sha256": self.plan.source_hash,
            "files": self.plan.source_files,
        }

    def built(self, step: Step) -> tuple[bytes, Entry]:
        """Return the file of a step, whose parent is in the store, and its entry; store nothing.

        Raises:
            BoxwrightError: It cannot be made.
        """
        from boxwright.graph.builder import default_opset
        from boxwright.graph.io import bytes_from_model, check_model, tensor_infos, write_stamp
        from boxwright.graph.shapes import real_inputs
        from boxwright.stamps import Stamp

        model, spec, nms = self._build(step)
        target = dataclasses.replace(step.target, opset=default_opset(model))
        parent = self.store.entries[step.parent].sha256 if step.parent else self.plan.source_hash
        write_stamp(model, Stamp(spec, target, nms, parent))
        check_model(model, step.file)
        data = bytes_from_model(model, step.file)
        artifact = Artifact(
            path=Path(step.file),
            sha256=sha256_of_bytes(data),
            spec=spec,
            target=target,
            inputs=tensor_infos(real_inputs(model.graph)),
            outputs=tensor_infos(list(model.graph.output)),
            parent=parent,
            made_with={
                "boxwright": __version__,
                **package_versions(),
                **self.resolved.source.versions(),
            },
        )
        self._models[step.file] = model
        entry = Entry(
            key=step.key,
            sha256=artifact.sha256,
            state="built",
            parent=parent,
            settings=step.settings,
            record={**_record(artifact, nms, len(data)), "budget": self._budgets.get(step.file)},
        )
        return data, entry

    def _build(self, step: Step) -> tuple[onnx.ModelProto, ModelSpec, NmsSettings | None]:
        if step.kind == "export":
            request = self.resolved.request
            raw = self.resolved.source.export(request)
            colors = request.colors or raw.spec.class_colors
            return raw.model, dataclasses.replace(raw.spec, class_colors=colors), None
        parent, spec, baked = self._parent(step.parent)
        if step.kind == "image":
            from boxwright.graph.image_input import add_image_input

            return add_image_input(parent, spec, step.target), spec, baked
        if step.kind in ("fp16", "int8"):
            convert = self._converter(spec)
            if step.kind == "fp16":
                model, self._budgets[step.file] = convert.half(parent, self._pictures(spec))
            else:
                model, self._budgets[step.file] = convert.integer(parent, step.target.deployment)
            return model, spec, None
        from boxwright.graph.end2end import add_end2end

        nms = self.recipe.nms_settings(spec.score_threshold, spec.iou_threshold)
        return add_end2end(parent, spec, nms, step.target), spec, nms

    def _converter(self, spec: ModelSpec) -> Converter:
        from boxwright.quantization import Converter

        if self._lossy is None:
            self._lossy = Converter(
                spec, self.recipe, self.calibration, self.dataset, self.listener
            )
        return self._lossy

    def _parent(self, file: str) -> tuple[onnx.ModelProto, ModelSpec, NmsSettings | None]:
        from boxwright.graph.io import model_from_file, read_stamp

        if file not in self._models:
            self._models[file] = model_from_file(self.store.path(file))
        stamp = read_stamp(self._models[file], file)
        assert stamp is not None, f"{file} was made by this program"
        return self._models[file], stamp.spec, stamp.nms

    def _pictures(self, spec: ModelSpec) -> list[Path | Image]:
        """Return the pictures to verify on; generated ones where none were named."""
        from boxwright.pictures import generated_pictures

        if not self.pictures:
            self.pictures = [*generated_pictures(spec.input_size, seed=self.recipe.seed)]
        return self.pictures

    def _prove(self, steps: list[Step]) -> None:
        """Verify files together, so that the source runs once for each picture."""
        from boxwright.graph.image_input import NETWORK_INPUT
        from boxwright.verify import Candidate, choose_threshold, verify

        reference = self._open_reference()
        self._pictures(reference.spec)
        candidates: dict[str, Candidate] = {}
        lowered: dict[str, float] = {}
        thresholds: dict[NmsSettings, float] = {}
        for step in steps:
            settings = self._operating_settings(step, reference.spec)
            if settings not in thresholds:
                thresholds[settings] = choose_threshold(reference, self.pictures, settings)
            threshold = thresholds[settings]
            if threshold < settings.score_threshold:
                lowered[step.file] = threshold
            detector = self._open_candidate(step, threshold, settings)
            extra = NETWORK_INPUT if step.target.input == "image" else ""
            candidates[step.file] = Candidate(detector, step.target.precision, extra)
        total, done = len(self.pictures), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.listener.count("verify", done, total)

        self.listener.note(f"verify {len(steps)} files on {total} pictures")
        results = verify(
            reference,
            candidates,
            self.pictures,
            environment=describe_environment(),
            advance=advance,
        )
        if not any(parity.detections for parity in results.values()):
            self.listener.note(
                "the source detects nothing on these pictures, so detections stay unproven; give "
                "--images that show objects"
            )
        for step in steps:
            candidates[step.file].detector.close()
            parity = results[step.file]
            if step.file in lowered:
                note = f"at score threshold {lowered[step.file]:.3g}, nothing scores more"
                parity = _with_note(parity, note)
            if step.target.nms == "efficient_nms":
                parity = _with_note(parity, "the plugin's inputs, with NMS in ONNX Runtime")
            entry = self.store.entries[step.file]
            entry.parity, entry.parity_key = parity.as_dict(), self.parity_keys[step.file]
        self.store.save()

    def _reject(self, step: Step) -> None:
        entry = self.store.entries[step.file]
        if entry.state == "published":  # verified later than published: take it back
            self.store.withdraw(step.file)
        self.store.publish(step.file, "rejected")

    def _failure(self, failed: list[Step]) -> tuple[str, str, str]:
        """Return what was asked, found and to do, of the files that failed."""
        texts = []
        for step in failed:
            parity = self._parity(step)
            assert parity is not None
            checks = "; ".join(
                f"{c.name} is {c.measured:.4g}, at most {c.limit:.4g} is allowed"
                + (f" ({c.note})" if c.note else "")
                for c in parity.failures
            )
            texts.append(checks or "nothing could be measured")
        names = ", ".join(s.file for s in failed)
        more = f" (and {len(texts) - 1} more)" if texts[1:] else ""
        found = f"parity failed: {texts[0]}{more}"
        return names, found, f"kept as .rejected in {self.store.folder}; it must not be shipped"

    def _operating_settings(self, step: Step, spec: ModelSpec) -> NmsSettings:
        if step.target.outputs == "end2end":
            return self.recipe.nms_settings(spec.score_threshold, spec.iou_threshold)
        return NmsSettings(score_threshold=spec.score_threshold, iou_threshold=spec.iou_threshold)

    def _open_reference(self) -> Detector:
        from boxwright.detector import Detector

        if self._reference is None:
            self.listener.note(f"open the source: {self.recipe.source}")
            request, source = self.resolved.request, self.resolved.source
            backend: Backend = source.reference(
                request, BackendOptions(self.recipe.threads, "cpu", spin=False)
            )
            self._reference = Detector(backend, self._spec())
        return self._reference

    def _spec(self) -> ModelSpec:
        """Return the spec that the built files carry."""
        for step in self.plan.steps:
            if step.file in self.store.entries:
                return ModelSpec.from_dict(self.store.entries[step.file].record["spec"])
        raise AssertionError("no file was built")

    def _open_candidate(self, step: Step, threshold: float, settings: NmsSettings) -> Detector:
        """Open a file on the CPU, at the threshold that the pictures allow."""
        from boxwright.detector import Detector
        from boxwright.graph.end2end import runnable_anywhere, with_score_threshold
        from boxwright.graph.image_input import with_network_input
        from boxwright.graph.io import bytes_from_model, model_from_file

        options = BackendOptions(self.recipe.threads, "cpu", spin=False)
        path = self.store.path(step.file)
        from boxwright.quantization import runtime_of

        runtime = catalog.backend(runtime_of(step.target.deployment))
        nms = dataclasses.replace(settings, score_threshold=threshold)
        spec = self._spec()
        changed = threshold < settings.score_threshold
        pictures, plugin = step.target.input == "image", step.target.nms == "efficient_nms"
        end2end = step.target.outputs == "end2end"
        if not pictures and not (end2end and (plugin or changed)):
            return Detector(runtime.open(path, options), spec, step.target, nms)
        model = model_from_file(path)
        if changed and end2end:
            model = with_score_threshold(model, threshold)
        if end2end:
            model = runnable_anywhere(model)
        if pictures:
            model = with_network_input(model)
        backend = runtime.open_bytes(bytes_from_model(model, step.file), options)
        return Detector(backend, spec, step.target, nms)

    def _add_row(self, step: Step, action: str, parity: Parity | None) -> None:
        path = self.store.path(step.file)
        size = path.stat().st_size
        self.rows.append(Row(path, action, size, self.store.entries[step.file].sha256, parity))


def _record(artifact: Artifact, nms: NmsSettings | None, size_bytes: int) -> dict[str, Any]:
    return {
        "spec": artifact.spec.as_dict(),
        "target": artifact.target.as_dict(),
        "nms": nms.as_dict() if nms else None,
        "inputs": [dataclasses.asdict(i) for i in artifact.inputs],
        "outputs": [dataclasses.asdict(o) for o in artifact.outputs],
        "made_with": dict(artifact.made_with),
        "size_bytes": size_bytes,
    }


def _with_note(parity: Parity, note: str) -> Parity:
    checks = tuple(
        dataclasses.replace(c, note=f"{c.note}, {note}" if c.note else note)
        if c.name == "detections missing"
        else c
        for c in parity.checks
    )
    return dataclasses.replace(parity, checks=checks)
