"""Will a file run here, and why not: asked of what would run it."""

from __future__ import annotations

from pathlib import Path

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.doctor.records import Machine, Verdict
from boxwright.engine_record import check_fits, read_plan, read_record
from boxwright.errors import BoxwrightError, SourceError
from boxwright.gpus import GpuFacts
from boxwright.nvidia import TITLES, Gpu

__all__ = ["judge_file"]

_CHECKPOINTS = (".pt", ".safetensors")


def judge_file(path: Path, machine: Machine) -> Verdict:
    """Return whether a file will run here.

    A plan is compared with this machine by its description, without deserialising it; an ONNX file
    is opened in ONNX Runtime on the CPU; of a checkpoint only its framework is looked at.

    Args:
        path: `.plan`, `.engine`, `.onnx`, `.pt` or `.safetensors`.
        machine: What it shall run on.
    """
    subject = f"run {path}"
    try:
        if not path.is_file():
            found = "it is a folder" if path.is_dir() else "there is no such file"
            raise SourceError(str(path), found, "check the path")
        suffix = path.suffix.lower()
        if suffix in catalog.backend("tensorrt").suffixes:
            return _plan(path, machine, subject)
        if suffix == ".onnx":
            catalog.backend("onnxruntime").open(path, BackendOptions(device="cpu")).close()
            return Verdict(subject, True, "ONNX Runtime opens it")
        if suffix in _CHECKPOINTS:
            return _checkpoint(machine, subject)
    except BoxwrightError as error:
        return Verdict(subject, False, error.found, error.do)
    known = ".onnx, .plan, .engine, .pt and .safetensors"
    return Verdict(subject, False, f"no runtime reads {path.suffix or 'it'}", f"give {known} files")


def _plan(path: Path, machine: Machine, subject: str) -> Verdict:
    record = read_record(path)
    if record is None:
        raise SourceError(
            str(path),
            f"{path.name}.json is missing, so nothing says what it was built for",
            "keep that file beside the plan, or build it with: boxwright build",
        )
    read_plan(path, record)
    library = machine.library(record.runtime)
    title = TITLES.get(record.runtime, record.runtime)
    if library is None:
        problem = next((p.problem for p in machine.plan_libraries if p.name == record.runtime), "")
        because, _, do = (
            problem or f"{title} is not installed; install it, or build for another runtime"
        ).partition("; ")
        return Verdict(subject, False, f"{title} {record.version} is wanted: {because}", do)
    if not machine.gpus:
        return Verdict(subject, False, "there is no GPU here", f"run it on {record.gpu or 'one'}")
    refusals = []
    for facts in machine.gpus:
        try:
            check_fits(record, str(path), library.version, _gpu(facts))
        except BoxwrightError as error:
            refusals.append(error)
        else:
            return Verdict(subject, True, f"{title} {library.version} on {facts.name}")
    return Verdict(subject, False, refusals[0].found, refusals[0].do)


def _gpu(facts: GpuFacts) -> Gpu:
    return Gpu(facts.name, facts.compute_capability, facts.driver)


def _checkpoint(machine: Machine, subject: str) -> Verdict:
    runtime = machine.runtime("pytorch")
    if runtime is not None and runtime.missing:
        return Verdict(subject, False, f"torch: {runtime.missing}", runtime.install)
    return Verdict(subject, True, "torch is here; the checkpoint itself was not opened")
