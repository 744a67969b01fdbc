"""`boxwright doctor`: what this machine is and can do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from boxwright.doctor import Machine, Verdict
    from boxwright.measurement.tables import Table

__all__ = ["command"]


@click.command("doctor")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(files: tuple[Path, ...], as_json: bool) -> int:
    """Say what this machine is, what it can do, and what is missing.

    FILE is a plan, an ONNX file or a checkpoint: will it run here, and why not. Exit status 1 when
    one of them cannot, otherwise 0; see docs/doctor.md.

    \b
    boxwright doctor
    boxwright doctor runs/yolo11n/yolo11n.fp16.trt8.6.0-sm90.plan
    """
    from boxwright.doctor import judge, judge_file, look_at_machine

    machine = look_at_machine()
    verdicts = judge(machine)
    asked = [judge_file(path, machine) for path in files]
    if as_json:
        data = {
            "machine": machine.as_dict(),
            "verdicts": [dataclasses.asdict(v) for v in verdicts],
            "files": [dataclasses.asdict(v) for v in asked],
        }
        click.echo(json.dumps(data, indent=2))
    else:
        _print(machine, verdicts, asked)
    return 0 if all(v.can for v in asked) else 1


def _print(machine: Machine, verdicts: tuple[Verdict, ...], asked: list[Verdict]) -> None:
    from boxwright.cli.console import print_table

    for table in _tables(machine):
        if table.rows:
            print_table(table)
    for verdict in (*verdicts, *asked):
        click.echo(str(verdict))


def _tables(machine: Machine) -> list[Table]:
    from boxwright.measurement.tables import Table

    def pairs(title: str, values: dict[str, str]) -> Table:
        rows = tuple((name.replace("_", " "), text) for name, text in values.items() if text)
        return Table(title, ("what", "found"), rows)

    disk = "" if machine.disk_free_gib is None else f"{machine.disk_free_gib:g} GiB free here"
    system = {**machine.system, "disk": disk, "tritonserver": machine.tritonserver}
    runtimes = tuple(
        (
            r.name,
            " ".join(r.suffixes),
            ", ".join(f"{name} {v}" for name, v in r.versions.items()) or "-",
            f"{r.missing}: {r.install}" if r.missing else "ready",
        )
        for r in machine.runtimes
    )
    providers = tuple((p.name, p.problem or "its libraries load") for p in machine.providers)
    libraries = tuple((p.name, p.version or "-", p.problem or "-") for p in machine.plan_libraries)
    gpus = tuple(
        (
            f"{g.index} {g.name}",
            g.compute_capability or "-",
            "-" if g.memory_mib is None else f"{g.memory_used_mib or 0} / {g.memory_mib}",
            g.driver or "-",
            machine.cuda_served or "-",
            g.mig or "-",
            g.persistence or "-",
            g.clocks or "-",
        )
        for g in machine.gpus
    )
    gpu_head = ("GPU", "compute", "MiB used", "driver", "CUDA", "MIG", "persistence", "clocks")
    jetson = machine.jetson
    board = {
        "board": jetson.board,
        "Jetson Linux (L4T)": jetson.l4t,
        "JetPack": jetson.jetpack,
        "DLA cores": str(jetson.dla_cores),
        "power mode": jetson.power_mode,
    } if jetson else {}  # fmt: skip
    return [
        pairs("system", system),
        pairs("processor", dict(machine.processor)),
        Table("runtimes", ("runtime", "files", "versions", "state"), runtimes),
        Table("ONNX Runtime", ("provider", "state"), providers),
        Table("plans", ("library", "version", "problem"), libraries),
        Table("GPUs", gpu_head, gpus),
        pairs("Jetson", board),
        pairs("packages", dict(machine.packages)),
    ]
