"""`boxwright fleet run`: the main job over many sources and targets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import conversion_options, recipe_data_from_options
from boxwright.cli.run import recipe_from_path

if TYPE_CHECKING:
    from boxwright.fleet.builds import Executor, FleetRun
    from boxwright.recipe import Recipe

__all__ = ["run_command"]

_OWN = ("engine", "jobs", "ray_address", "num_cpus", "resume")
_SKIPS = ("skip_verify", "skip_evaluate")


@click.command("run")
@click.argument("sources", nargs=-1, metavar="SOURCE|RECIPE.yaml...")
@conversion_options
@click.option("--images", multiple=True, metavar="PATH", help="Pictures to verify on.")
@click.option("--max-images", type=int, help="At most so many of them. Default: 200.")
@click.option("--threads", type=int, help="CPU threads of one inference.")
@click.option("--skip-verify", is_flag=True, help="Publish the files unproven.")
@click.option("--skip-evaluate", is_flag=True, help="Do not measure accuracy.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a Ray cluster whose nodes share all folders.",
)
@click.option("--jobs", type=click.IntRange(1, 1024), help="Steps at a time. Default: cores.")
@click.option("--ray-address", metavar="ADDRESS", help="As of fleet predict.")
@click.option("--num-cpus", type=float, help="CPUs of a step on Ray. Default: 1.")
@click.option("--resume", is_flag=True, help="Take up the run that --out remembers.")
def run_command(sources: tuple[str, ...], **options: Any) -> int:
    """Export, convert, verify and evaluate many models, as one graph of steps.

    Each step is made once and runs in a process of its own. A step that fails takes what is made of
    it along; everything else goes on, and the exit status is then 1. What is there unchanged is
    skipped, so that the same command, or --resume, goes on after a crash. The options hold for
    every SOURCE; a RECIPE.yaml has its own. Latency is not measured: other work runs meanwhile.

    \b
    boxwright fleet run *.pt --precision fp32,fp16 --outputs raw,end2end --out runs/
    """
    from boxwright.cli.fleet_console import FleetConsole
    from boxwright.errors import RequestError
    from boxwright.fleet.builds import fleet_run, recipes_of_run

    if bool(sources) == options["resume"]:
        asked = "--resume" if sources else "SOURCE"
        found = "it takes the recipes that --out remembers" if sources else "none is named"
        raise RequestError(asked, found, "name recipes, or use --resume without them")
    out: Path = options["out"]
    recipes = recipes_of_run(out) if options["resume"] else _recipes(sources, options)
    if options["dry_run"] or options["force_convert"] or options["force_all"]:
        raise RequestError(
            "--dry-run, --force-convert, --force-all", "they are of single runs", "boxwright run"
        )
    with FleetConsole(quiet=True) as listener:
        done = fleet_run(
            recipes, out, _executor(options), models=options["models"], listener=listener
        )
    _print(done, options["as_json"])
    return 1 if done.failed else 0


def _recipes(sources: tuple[str, ...], options: dict[str, Any]) -> list[Recipe]:
    """Return a recipe of each source; the options are of those that are not recipes themselves.

    Raises:
        RequestError: Options are given where every source is a recipe, or one is wrong.
    """
    shared = {k: v for k, v in options.items() if k not in _OWN}
    if any(Path(s).suffix not in (".yaml", ".yml") for s in sources):
        shared = {k: v for k, v in shared.items() if k in _SKIPS}
    shared |= {"skip_benchmark": True}
    return [recipe_from_path(s, shared) or _recipe(s, options) for s in sources]


def _recipe(source: str, options: dict[str, Any]) -> Recipe:
    """Return the recipe of a model and the options."""
    from boxwright.recipe import recipe_from_mapping

    data = recipe_data_from_options(source, options)
    if options["images"]:
        data["images"] = list(options["images"])
    for key in ("max_images", "threads"):
        if options[key] is not None:
            data[key] = options[key]
    data["verify"] = not options["skip_verify"]
    data["measure"] = {"latency": False, "accuracy": not options["skip_evaluate"]}
    return recipe_from_mapping(data, "request", options=True)


def _executor(options: dict[str, Any]) -> Executor:
    from boxwright.errors import RequestError
    from boxwright.fleet.executors import LocalExecutor, RayExecutor

    if options["engine"] == "ray":
        if options["jobs"]:
            raise RequestError("--jobs", "Ray decides that by --num-cpus", "drop it")
        return RayExecutor(options["ray_address"], options["num_cpus"] or 1.0)
    for name in ("ray_address", "num_cpus"):
        if options[name]:
            option = f"--{name.replace('_', '-')}"
            raise RequestError(option, "it is of the engine ray", "add --engine ray, or drop it")
    return LocalExecutor(options["jobs"] or os.cpu_count() or 1)


def _print(done: FleetRun, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done.as_dict(), indent=1, ensure_ascii=False))
        return
    for branch in done.branches:
        what = branch.file or branch.source
        told = branch.sha256[:16] if branch.sha256 else branch.error
        click.echo(f"{branch.state:8} {what}  {told}")
    good = len(done.branches) - done.failed
    click.echo(f"{good} files in {done.out}, {done.failed} branches failed")
