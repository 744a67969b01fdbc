"""`boxwright benchmark triton://... --concurrency`: served models under load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.options import counts_from_text
from boxwright.errors import CheckFailedError, RequestError

if TYPE_CHECKING:
    from boxwright.benchmark.served_records import ServedResult

__all__ = ["load_servers"]


def load_servers(artifacts: tuple[str, ...], options: dict[str, Any]) -> int:
    """Put served models under load, one after the other.

    Raises:
        RequestError: An option is one of files, or a file is among the models.
        CheckFailedError: The budget is exceeded.
    """
    from boxwright.benchmark.served import ServedSettings, measure_served
    from boxwright.cli.console import ConsoleListener
    from boxwright.predict import Wishes
    from boxwright.triton_address import address_from_text, is_address

    _refuse_options_of_files(artifacts, options)
    files = [a for a in artifacts if not is_address(a)]
    if files:
        raise RequestError(
            f"{files[0]} --concurrency", "served models are loaded by themselves", "drop the files"
        )
    for artifact in artifacts:
        address_from_text(artifact)
    batches = counts_from_text("--batch", options["batch"]) if options["batch"] else (1,)
    if len(batches) > 1:
        raise RequestError(f"--batch {options['batch']}", "one is taken at a time", "name one")
    settings = ServedSettings(
        concurrencies=counts_from_text("--concurrency", options["concurrency"]),
        images=options["images"],
        max_images=options["max_images"],
        batch=batches[0],
        seconds=options["seconds"],
        warmup=5 if options["warmup"] is None else options["warmup"],
        processes=options["client_processes"],
        perf_analyzer=not options["no_perf_analyzer"],
        seed=options["seed"],
    )
    settings.check()
    Wishes(json_file=options["save"], force=options["force"]).check()
    with ConsoleListener() as listener:
        results = [measure_served(a, settings, listener) for a in artifacts]
    told = {"served": [r.as_dict() for r in results]}
    if options["save"] is not None:
        from boxwright.store import write_atomic

        write_atomic(options["save"], (json.dumps(told) + "\n").encode())
    _print_served(results, told, "json" if options["as_json"] else options["style"])
    _check_served_budget(results, options["max_latency_ms"])
    return 1 if any(one.failed for r in results for one in r.loads) else 0


def _refuse_options_of_files(artifacts: tuple[str, ...], options: dict[str, Any]) -> None:
    """Refuse what a load test does not do.

    Raises:
        RequestError: Such an option was given.
    """
    for name in ("devices", "threads", "iterations", "baseline", "family", "labels", "out"):
        if options[name] is not None:
            raise RequestError(
                f"--{name}", f"it is of files, and {artifacts[0]} is served", "drop the option"
            )
    if options["device"] != "auto" or options["provider_options"] or options["engine_cache"]:
        raise RequestError(
            "--device", f"{artifacts[0]} runs where its server runs it", "drop the option"
        )
    if options["runtimes"] != "auto":
        raise RequestError("--runtime", f"{artifacts[0]} runs on its server", "drop the option")
    if options["style"] == "csv":
        raise RequestError("--format csv", "served models have no such table", "use --format json")


def _print_served(results: Sequence[ServedResult], told: dict[str, Any], style: str) -> None:
    from boxwright.benchmark.served_records import tables_of_served
    from boxwright.cli.console import print_table

    if style == "json":
        click.echo(json.dumps(told))
        return
    for table in tables_of_served(results):
        if style == "markdown":
            click.echo(table.as_markdown() + "\n")
        else:
            print_table(table)
    if style == "text":
        for result in results:
            click.echo(f"{result.description}; pictures: {result.pictures}")
        for text, count in {t: c for r in results for one in r.loads
                            for t, c in one.errors.items()}.items():  # fmt: skip
            click.echo(f"failed {count}: {text}")


def _check_served_budget(results: Sequence[ServedResult], budget: float | None) -> None:
    """Compare the p95 of every load with the budget.

    Raises:
        CheckFailedError: One is more.
    """
    if budget is None:
        return
    over = [(r.address, one) for r in results for one in r.loads
            if (one.percentile(95) or 0.0) > budget]  # fmt: skip
    if over:
        texts = [f"{a} with {one.concurrency} in flight ({one.percentile(95):.2f} ms)"
                 for a, one in over]  # fmt: skip
        raise CheckFailedError(
            f"--max-latency-ms {budget:g}",
            f"the p95 is more for {', '.join(texts)}",
            "choose a faster model or fewer in flight, or raise the budget",
        )
