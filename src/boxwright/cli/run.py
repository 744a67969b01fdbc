"""`boxwright run`: the main job."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import conversion_options, recipe_data_from_options, words_from_text

if TYPE_CHECKING:
    from boxwright.outcome import Outcome

__all__ = ["command", "execute", "recipe_from_path"]


@click.command("run")
@click.argument("source", metavar="SOURCE|RECIPE.yaml")
@conversion_options
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help="Pictures to verify on: files, folders, globs. Without: generated ones.",
)
@click.option("--max-images", type=int, help="At most so many of them. Default: 200.")
@click.option("--threads", type=int, help="CPU threads of one inference.")
@click.option("--runtimes", metavar="LIST", help="Measure in: onnxruntime, openvino. Default: all.")
@click.option("--seconds", type=float, help="Time each file for so long. Default: 2.")
@click.option("--skip-verify", is_flag=True, help="Publish the files unproven.")
@click.option("--skip-benchmark", is_flag=True, help="Do not measure latency.")
@click.option("--skip-evaluate", is_flag=True, help="Do not measure accuracy.")
@click.option("--force-measure", is_flag=True, help="Measure again what was measured.")
@click.option("--download-only", is_flag=True, help="Stop after the download.")
def command(source: str, **options: Any) -> None:
    """Export, convert, verify, measure and report.

    SOURCE is a checkpoint (.pt, .safetensors), a configuration (.yaml, random weights), a raw ONNX
    of a known family, an official name (yolo11n) or hf://owner/repo/path. RECIPE.yaml holds all of
    this and the options; see docs/recipe.md. What is there unchanged is skipped. Latency is
    measured in every runtime that is installed, accuracy on --data; report.html tells it all.

    \b
    boxwright run yolo11n.pt --precision fp32,fp16 --outputs raw,end2end --images pictures/
    """
    execute(source, options, verify=not options["skip_verify"])


def execute(source: str, options: dict[str, Any], *, verify: bool) -> Outcome:
    """Build the recipe, run it, print the result and return it; `export` shares it."""
    from boxwright.cli.console import (
        ConsoleListener,
        outcome_as_dict,
        print_evidence,
        print_outcome,
        print_parity,
    )
    from boxwright.pipeline import run
    from boxwright.plan import plan_lines
    from boxwright.recipe import recipe_from_mapping

    recipe = recipe_from_path(source, options)
    if recipe is None:
        data = recipe_data_from_options(source, options)
        if options["images"]:
            data["images"] = list(options["images"])
        for key in ("max_images", "threads"):
            if options[key] is not None:
                data[key] = options[key]
        data["verify"] = verify
        data["measure"] = _measure(options)
        recipe = recipe_from_mapping(data, "request", options=True)
    with ConsoleListener() as listener:
        outcome = run(
            recipe,
            options["out"],
            models=options["models"],
            dry_run=options["dry_run"],
            force_download=options["force_download"] or options["force_all"],
            force_convert=options["force_convert"] or options["force_all"],
            download_only=options["download_only"],
            measure_again=options["force_measure"] or options["force_all"],
            command=shlex.join(["boxwright", *click.get_current_context().obj]),
            listener=listener,
        )
    if options["as_json"]:
        data = outcome_as_dict(outcome)
        if options["dry_run"] and outcome.plan:
            data["plan"] = [
                {"action": a, "file": f, "from": p, "why": w}
                for a, f, p, w in plan_lines(outcome.plan.steps)
            ]
        click.echo(json.dumps(data, indent=2))
    elif options["dry_run"] and outcome.plan:
        for action, file, parent, why in plan_lines(outcome.plan.steps):
            click.echo(f"{action:7} {outcome.folder}/{file}  from {parent}  ({why})")
    elif outcome.folder is None:
        for path in outcome.downloaded:
            click.echo(str(path))
    else:
        print_outcome(outcome)
        print_evidence(outcome)
        for row in outcome.rows:
            if options["verbose"] and row.parity is not None:
                print_parity(row.parity, row.path.name)
    return outcome


def recipe_from_path(source: str, options: dict[str, Any]) -> Any:
    """Return the recipe when SOURCE is one (a YAML mapping with `source`), otherwise None.

    Raises:
        RequestError: Options that the recipe decides were given besides.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    import yaml

    from boxwright.errors import RequestError
    from boxwright.recipe import recipe_from_file

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        return recipe_from_file(path)  # it words the error
    if isinstance(data, dict) and "backbone" in data:
        return None  # a model configuration
    recipe = recipe_from_file(path)
    harmless = {
        "out", "models", "force_download", "force_convert", "force_all", "dry_run", "as_json",
        "verbose", "download_only", "skip_verify", "skip_benchmark", "skip_evaluate",
        "force_measure",
    }  # fmt: skip
    given = [k for k, v in options.items() if k not in harmless and v not in (None, False, (), "")]
    if given:
        raise RequestError(
            f"--{given[0].replace('_', '-')}", f"the recipe {path} decides that", "put it there"
        )
    measure = recipe.measure.model_copy(
        update={
            key: False
            for key, option in (("latency", "skip_benchmark"), ("accuracy", "skip_evaluate"))
            if options[option]
        }
    )
    verify = recipe.verify and not options["skip_verify"]
    return recipe.model_copy(update={"verify": verify, "measure": measure})


def _measure(options: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's keys about measuring."""
    found: dict[str, Any] = {
        "latency": not options["skip_benchmark"],
        "accuracy": not options["skip_evaluate"],
    }
    if options["seconds"] is not None:
        found["seconds"] = options["seconds"]
    if options["runtimes"]:
        found["runtimes"] = words_from_text(
            "--runtimes", options["runtimes"], ("onnxruntime", "openvino")
        )
    return found
