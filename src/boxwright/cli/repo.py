"""`boxwright repo`: Triton model repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from boxwright.cli.options import words_from_text
from boxwright.cli.repo_build import build_command

__all__ = ["command"]


@click.group("repo")
def command() -> None:
    """Build, change and check model repositories of NVIDIA Triton.

    See docs/repositories.md. Needs: pip install "boxwright[triton]"
    """


command.add_command(build_command)
_REPOSITORY = click.argument(
    "repository", type=click.Path(path_type=Path), metavar="REPO", required=True
)


@command.command("add-version")
@_REPOSITORY
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--version", "number", type=int, help="Its number. Default: the next.")
@click.option("--promote", is_flag=True, help="Serve it at once.")
def add_version_command(
    repository: Path, model: str, file: Path, number: int | None, promote: bool
) -> None:
    """Put FILE into MODEL of REPO as a new version, not yet served.

    The file must be of the model's kind, with its tensors, classes and thresholds.
    """
    from boxwright.serve.versions import add_version

    made = add_version(repository, model, file, number=number, serve=promote)
    state = "is served" if promote else f"boxwright repo promote {repository} {model} {made}"
    click.echo(f"{repository / model}/{made}  {state}")


@command.command("promote")
@_REPOSITORY
@click.argument("model")
@click.argument("version", type=int)
def promote_command(repository: Path, model: str, version: int) -> None:
    """Serve VERSION of MODEL, and no other.

    Its files must be as they were put there. A server that polls takes it up; one with explicit
    model control is told to load the model again.
    """
    from boxwright.serve.versions import promote

    before = ", ".join(str(n) for n in promote(repository, model, version)) or "the latest"
    click.echo(f"{repository / model}: version {version} is served; before: {before}")


@command.command("rollback")
@_REPOSITORY
@click.argument("model")
def rollback_command(repository: Path, model: str) -> None:
    """Serve the version of MODEL that was served before."""
    from boxwright.serve.versions import rollback

    click.echo(f"{repository / model}: version {rollback(repository, model)} is served")


@command.command("list")
@_REPOSITORY
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(repository: Path, as_json: bool) -> None:
    """Show the models of REPO, their versions, and what is served."""
    import dataclasses

    from boxwright.serve.versions import list_models

    models = list_models(repository)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(m) for m in models], indent=2))
        return
    from boxwright.cli.console import print_table, size_text
    from boxwright.measurement.tables import Table

    rows = tuple(
        (
            m.name,
            m.kind or "(not ours)",
            m.backend,
            str(m.max_batch),
            ", ".join(str(n) for n in m.versions) or "none",
            ", ".join(str(n) for n in m.served) or "latest",
            size_text(m.size_bytes),
            ", ".join(m.edited) or "-",
        )
        for m in models
    )
    head = ("model", "kind", "backend", "batch", "versions", "served", "size", "edited by hand")
    print_table(Table(str(repository), head, rows))


@command.command("check")
@_REPOSITORY
@click.option("--server", metavar="URL", help="Also load every model on this server, http://….")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_command(repository: Path, server: str | None, as_json: bool) -> int:
    """Check REPO: configurations, files, labels, ensembles, plans against this GPU.

    With --server every model is loaded on a live server with explicit model control, which serves
    this very folder; its own errors are shown. Exit status 1 when something is wrong.
    """
    import dataclasses

    from boxwright.serve.check_repository import check_repository, load_on_server
    from boxwright.serve.repository_record import models_in

    found = check_repository(repository)
    names = models_in(repository)
    if server:
        found += load_on_server(names, server)
    wrong = [f for f in found if f.level == "error"]
    if as_json:
        findings = [dataclasses.asdict(f) for f in found]
        click.echo(json.dumps({"models": names, "findings": findings}, indent=2))
    else:
        for one in found:
            click.echo(f"{one.level}: {one.model}: {one.text}")
        click.echo(f"{len(names)} models, {len(wrong)} errors")
    return 1 if wrong else 0


@command.command("deploy")
@_REPOSITORY
@click.option(
    "--out", type=click.Path(path_type=Path), default="deploy", show_default=True, help="Folder."
)
@click.option("--name", default="boxwright", show_default=True, help="Of services and resources.")
@click.option("--load", metavar="LIST", help="Models to load; a comma list. Default: all.")
@click.option("--gpus", type=int, default=1, show_default=True, help="Of a server; 0: on the CPU.")
@click.option("--replicas", type=int, default=1, show_default=True, help="Servers in Kubernetes.")
@click.option(
    "--image", default="boxwright-triton:latest", show_default=True, help="Of the server."
)
@click.option(
    "--triton-tag", default="24.10-py3", show_default=True,
    help="Of NVIDIA's image; its TensorRT must be that of the plans.",
)  # fmt: skip
@click.option(
    "--jetson-tag", default="24.10-py3-igpu", show_default=True, help="The same, for a Jetson."
)
@click.option(
    "--package", default="boxwright[export,triton]", show_default=True,
    help="What pip installs as Boxwright in its own images.",
)  # fmt: skip
@click.option("--claim", default="boxwright-models", show_default=True, help="Volume claim.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def deploy_command(repository: Path, out: Path, load: str | None, **options: Any) -> None:
    """Write Dockerfiles, docker compose, Kubernetes and KServe files for REPO.

    What was tried of them, and what was only checked against a schema: docs/repositories.md.
    """
    from boxwright.serve.deployment import Deployment, write_deployment
    from boxwright.serve.repository_record import models_in

    names = models_in(repository)
    wanted = words_from_text("--load", load, tuple(names)) if load else []
    asked = Deployment(
        name=options["name"],
        repository=str(repository.resolve()),
        models=tuple(wanted),
        triton_tag=options["triton_tag"],
        jetson_tag=options["jetson_tag"],
        package=options["package"],
        image=options["image"],
        gpus=options["gpus"],
        replicas=options["replicas"],
        claim=options["claim"],
    )
    for path in write_deployment(asked, out, force=options["force"]):
        click.echo(str(path))
