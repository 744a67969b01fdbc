"""`boxwright benchmark`: how fast files are."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.devices import devices_option, words_again
from boxwright.cli.options import counts_from_text, device_arguments, device_options
from boxwright.errors import CheckFailedError, RequestError

if TYPE_CHECKING:
    from boxwright.benchmark import BenchmarkResult, BenchmarkSettings
    from boxwright.outcome import Listener

__all__ = ["command"]

_RUNTIMES = ("auto", "onnxruntime", "openvino", "pytorch", "tensorrt")
_QUICK = {"iterations": 10, "warmup": 2}
# Options that are about the result of all processes.
_OF_THE_WHOLE = ("style", "as_json", "save", "force", "strict", "max_latency_ms", "baseline")


@click.command("benchmark")
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help="Pictures: files, folders, globs. Without: generated ones.",
)
@click.option(
    "--max-images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="At most so many of them, evenly spaced.",
)
@click.option(
    "--runtime",
    "runtimes",
    default="auto",
    show_default=True,
    metavar="LIST",
    help="auto, or a comma list of onnxruntime, openvino, pytorch, tensorrt.",
)
@device_options
@devices_option
@click.option("--gate", type=click.Path(path_type=Path), hidden=True, help="Internal.")
@click.option("--threads", metavar="LIST", help="CPU threads of one inference; a comma list.")
@click.option("--batch", metavar="LIST", help="Pictures per call; a comma list. Default: 1.")
@click.option("--iterations", type=int, help="Samples of each file and setting. Default: 50.")
@click.option("--seconds", type=float, help="Measure each at least so long instead.")
@click.option("--warmup", type=int, help="Calls before the first sample. Default: 5.")
@click.option(
    "--concurrency",
    metavar="LIST",
    help="Throughput with so many inferences in flight; of served models a comma list.",
)
@click.option(
    "--client-processes",
    type=click.IntRange(1, 64),
    help="That send requests to a served model. Default: one for 8 in flight, within the cores.",
)
@click.option("--no-perf-analyzer", is_flag=True, help="Leave perf_analyzer out where it is.")
@click.option("--baseline", metavar="NAME", help="File to compare with. Default: the first.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "markdown", "json", "csv"]),
    default="text",
    show_default=True,
    help="Of what is printed.",
)
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
@click.option("--save", type=click.Path(path_type=Path), help="JSON file with every raw sample.")
@click.option("--force", is_flag=True, help="Replace the file of --save.")
@click.option("--strict", is_flag=True, help="Exit status 1 when the machine was noisy.")
@click.option("--max-latency-ms", type=float, metavar="MS", help="Budget for the p95 of total.")
@click.option(
    "--memory/--no-memory", default=None, help="Peak memory, in processes of its own. Default: on."
)
@click.option("--quick", is_flag=True, help="10 samples, 2 warm-up calls, no memory.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of turns, intervals and random weights.",
)
@click.option("--family", metavar="NAME", help="Family of a raw ONNX that does not say.")
@click.option("--labels", metavar="FILE", help="Class names: JSON or text, or coco.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Keep what configurations are exported to. Default: a temporary folder.",
)
@click.pass_context
def command(context: click.Context, /, artifacts: tuple[str, ...], **options: Any) -> int:
    """Measure latency or throughput of files, in turns.

    ARTIFACT is a .onnx file, a .plan, a checkpoint (.pt, .safetensors; PyTorch, as a reference),
    a configuration such as yolov8n.yaml, which is exported first with random weights, or a served
    model, triton://host:port/model; with --concurrency those are put under load. Braces in quotes
    are expanded. Latency is the whole path from picture file to detections, span by span.
    Exit status 1 when a budget is exceeded; see docs/benchmark.md. With --devices several
    artefacts run on several GPUs at once; one artefact runs on all of them, for their throughput.

    \b
    boxwright benchmark runs/yolo11n/*.onnx --runtime onnxruntime,openvino --images pictures/
    boxwright benchmark "yolov8{n,s,m,l,x}.yaml" --runtime onnxruntime,openvino --format markdown
    """
    from boxwright.cli.console import ConsoleListener
    from boxwright.cli.options import words_from_text
    from boxwright.predict import Wishes
    from boxwright.triton_address import is_address

    if any(is_address(a) for a in artifacts) and options["concurrency"] is not None:
        from boxwright.cli.served import load_servers

        return load_servers(artifacts, options)
    runtimes = words_from_text("--runtime", options["runtimes"], _RUNTIMES)
    budget = options["max_latency_ms"]
    if budget is not None and not budget > 0:
        raise RequestError(f"--max-latency-ms {budget:g}", "it is not positive", "use e.g. 20")
    settings = _settings(options)
    settings.check()
    Wishes(json_file=options["save"], force=options["force"]).check()
    worst = 0
    with ConsoleListener() as listener:
        if options["devices"] is None:
            result = _measure(artifacts, runtimes, options, settings, listener)
        else:
            found, worst = _measure_on_devices(context, artifacts, options, listener)
            if found is None:
                return worst
            result = found
    if options["save"] is not None:
        from boxwright.store import write_atomic

        write_atomic(options["save"], (json.dumps(result.as_dict()) + "\n").encode())
    _print(result, "json" if options["as_json"] else options["style"])
    _check_budget(result, budget)
    if options["strict"] and result.noisy:
        raise CheckFailedError("--strict", *_noise(result))
    return worst


def _measure(
    artifacts: tuple[str, ...],
    runtimes: list[str],
    options: dict[str, Any],
    settings: BenchmarkSettings,
    listener: Listener,
) -> BenchmarkResult:
    from boxwright.benchmark import benchmark
    from boxwright.contenders import entries_from_texts
    from boxwright.gpu_jobs import Gate

    gate = Gate(options["gate"]) if options["gate"] is not None else None
    with ExitStack() as stack:
        folder = options["out"] or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="boxwright-"))
        )
        entries = entries_from_texts(
            artifacts,
            runtimes,
            folder,
            seed=options["seed"],
            family=options["family"],
            labels=options["labels"],
            listener=listener,
        )
        return benchmark(
            entries,
            settings=settings,
            listener=listener,
            before_load=gate.wait if gate is not None else None,
        )


def _measure_on_devices(
    context: click.Context,
    artifacts: tuple[str, ...],
    options: dict[str, Any],
    listener: Listener,
) -> tuple[BenchmarkResult | None, int]:
    """Measure in a process for each artefact, or of one artefact for each GPU.

    Returns:
        What was measured, or None where every process failed; and the worst exit status.
    """
    import os

    from boxwright.contenders import expand_braces
    from boxwright.gpu_jobs import Gate, Job, run_jobs
    from boxwright.gpus import device_numbers
    from boxwright.measurement.merging import merged
    from boxwright.measurement.records import BenchmarkResult

    devices = device_numbers(options["devices"], os.environ)
    if options["baseline"] is not None:
        raise RequestError(
            "--baseline --devices", "files on different GPUs are not compared", "drop one of them"
        )
    files = [w for a in artifacts for w in ([a] if Path(a).exists() else expand_braces(a))]
    together = len(files) == 1 and len(devices) > 1
    # Several exports of one configuration would meet in one --out.
    apart = ("devices", "gate", *(["out"] if together else []))
    given = words_again(context, (*_OF_THE_WHOLE, *apart))
    with tempfile.TemporaryDirectory(prefix="boxwright-gate-") as folder:
        gate = None
        words = ("benchmark", *given, "--format", "json")
        if together:
            gate = Gate(Path(folder))
            if options["concurrency"] is None:
                listener.note("one file on several GPUs: their throughput, --concurrency 1 on each")
                words = (*words, "--concurrency", "1")
            words = (*words, "--gate", folder)
            jobs = [Job(files[0], (*words, files[0]), number) for number, _ in devices]
        else:
            jobs = [Job(file, (*words, file)) for file in files]
        done = run_jobs(jobs, devices, listener=listener, gate=gate)
    results = [
        (one.device, BenchmarkResult.from_dict(json.loads(one.out))) for one in done if not one.code
    ]
    worst = max(one.code for one in done)
    return (merged(results, together=together) if results else None), worst


def _settings(options: dict[str, Any]) -> BenchmarkSettings:
    from boxwright.benchmark import BenchmarkSettings

    quick = options["quick"]
    values = {k: options[k] for k in ("iterations", "warmup") if options[k] is not None}
    if quick and options["seconds"] is None:
        values = {**_QUICK, **values}
    memory = options["memory"]
    threads = options["threads"]
    return BenchmarkSettings(
        images=options["images"],
        max_images=options["max_images"],
        batches=counts_from_text("--batch", options["batch"]) if options["batch"] else (),
        threads=counts_from_text("--threads", threads) if threads else (None,),
        **device_arguments(options),
        seconds=options["seconds"],
        concurrency=_one_concurrency(options["concurrency"]),
        baseline=options["baseline"],
        memory=not quick if memory is None else memory,
        seed=options["seed"],
        **values,
    )


def _one_concurrency(text: str | None) -> int | None:
    """Return the inferences in flight of files.

    Raises:
        RequestError: There are several.
    """
    if text is None:
        return None
    counts = counts_from_text("--concurrency", text)
    if len(counts) > 1:
        raise RequestError(
            f"--concurrency {text}", "files are measured with one number", "name one of them"
        )
    return counts[0]


def _print(result: BenchmarkResult, style: str) -> None:
    from boxwright.cli.console import print_table
    from boxwright.measurement import tables

    if style == "json":
        click.echo(json.dumps(result.as_dict()))
    elif style == "csv":
        click.echo(tables.csv_from_result(result), nl=False)
    elif style == "markdown":
        click.echo(tables.markdown_from_result(result), nl=False)
    else:
        for table in tables.tables_of(result):
            print_table(table)
        click.echo(f"pictures: {result.pictures}")
    if style in ("text", "json", "csv"):
        for line in tables.noise_lines(result):
            click.echo(line if style == "text" else f"boxwright: {line}", err=style != "text")


def _check_budget(result: BenchmarkResult, budget: float | None) -> None:
    over = result.over_budget(budget) if budget is not None else ()
    if not over:
        return
    texts = [
        f"{m.name} in {m.runtime}, batch {m.batch} ({m.main.p95:.2f} ms"
        f"{', noisy' if m.noise.verdict == 'noisy' else ''})"
        for m in over
    ]
    raise CheckFailedError(
        f"--max-latency-ms {budget:g}",
        f"the p95 of {over[0].main_span} is more for {', '.join(texts)}",
        "choose a faster file or runtime, or raise the budget",
    )


def _noise(result: BenchmarkResult) -> tuple[str, str]:
    """Return what was seen and what to do, for one line."""
    seen = [f"{m.name} in {m.runtime} ({', '.join(m.noise.reasons)})" for m in result.noisy]
    return f"the machine was noisy for {'; '.join(seen)}", result.noisy[0].noise.advice
