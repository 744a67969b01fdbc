"""`boxwright inspect`: what a file is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

__all__ = ["command"]


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, family: str | None, as_json: bool) -> None:
    """Say what a file is: family, input, outputs, classes, lineage.

    Reads .onnx files, plans (.plan, .engine; by their description) and checkpoints (.pt,
    .pth, .safetensors), the latter without torch and without running them.
    """
    from boxwright.errors import RequestError

    if file.suffix == ".pth" or _is_project_pickle(file):
        facts = _native(file)
    elif file.suffix == ".pt":
        facts = _checkpoint(file)
    elif file.suffix == ".safetensors":
        facts = _own_checkpoint(file)
    elif file.suffix == ".onnx":
        facts = _graph(file, family)
    elif file.suffix in (".plan", ".engine"):
        facts = _plan(file)
    else:
        known = ".onnx, .plan, .engine, .pt, .pth and .safetensors"
        raise RequestError(str(file), f"only {known} files are known", "give one of these")
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=str))
        return
    for key, value in facts.items():
        if isinstance(value, (list, tuple)) and len(value) > 12:
            value = [*value[:12], f"... {len(value)} in all"]
        click.echo(f"{key}: {value}")


def _checkpoint(file: Path) -> dict[str, Any]:
    from boxwright.sources.pickles import summarise

    return {"file": str(file), **dataclasses.asdict(summarise(file))}


def _is_project_pickle(file: Path) -> bool:
    from boxwright.sources.native import claims

    return claims(file)


def _native(file: Path) -> dict[str, Any]:
    from boxwright.sources.native_files import read_native

    found = read_native(file)
    return {
        "file": str(file),
        "project": found.config.project if found.config else found.project,
        "family": found.config.kind if found.config else found.project,
        "class_names": found.class_names,
        "input_size": found.input_size,
        "strides": found.strides,
        "parameter_count": sum(
            t.size for n, t in found.tensors.items() if n.endswith(("weight", "bias"))
        ),
    }


def _plan(file: Path) -> dict[str, Any]:
    from boxwright.engine_record import read_record, sidecar_path
    from boxwright.errors import SourceError

    if not file.is_file():
        raise SourceError(str(file), "there is no such file", "check the path")
    record = read_record(file)
    if record is None:
        name = sidecar_path(file).name
        raise SourceError(
            str(file), f"{name} is missing, and a plan does not describe itself", "keep it beside"
        )
    return {"file": str(file), **record.as_dict()}


def _own_checkpoint(file: Path) -> dict[str, Any]:
    from boxwright.nets import network_name
    from boxwright.sources.safetensors_file import read_header
    from boxwright.store import sha256_of_file

    header = read_header(file)
    return {
        "file": str(file),
        "sha256": sha256_of_file(file),
        "network": network_name(header.config),
        "config": header.config.as_dict(),
        "weights": len(header.tensors),
        **header.spec.as_dict(),
    }


def _graph(file: Path, family: str | None) -> dict[str, Any]:
    from boxwright import catalog
    from boxwright.graph.builder import default_opset
    from boxwright.graph.io import model_from_file, read_stamp, signature_of, tensor_infos
    from boxwright.store import sha256_of_file

    model = model_from_file(file)
    facts: dict[str, Any] = {
        "file": str(file),
        "sha256": sha256_of_file(file),
        "producer": model.producer_name,
        "opset": default_opset(model),
        "nodes": len(model.graph.node),
        "inputs": [
            f"{i.name} {i.dtype} {list(i.shape)}" for i in tensor_infos(list(model.graph.input))
        ],
        "outputs": [
            f"{o.name} {o.dtype} {list(o.shape)}" for o in tensor_infos(list(model.graph.output))
        ],
    }
    stamp = read_stamp(model, str(file))
    if stamp is None:
        found, match = catalog.recognise(signature_of(model), family, str(file))
        facts |= {"family": found.name, "layout": match.layout.as_dict()}
        facts["classes"] = match.class_count
        return facts
    facts |= stamp.spec.as_dict()
    facts["target"] = stamp.target.as_dict() if stamp.target else None
    facts["nms"] = stamp.nms.as_dict() if stamp.nms else None
    facts["parent"] = stamp.parent
    return facts
